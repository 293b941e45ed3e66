"""The safetensors reader against the `safetensors` package, and against files that lie."""

import json
import struct
from pathlib import Path

import numpy as np
import pytest
import safetensors
import safetensors.numpy
from hypothesis import given, settings
from hypothesis import strategies as st

from qwenstack.core.errors import ModelFormatError
from qwenstack.core.weight_type import WeightType
from qwenstack.hub.safetensors import open_safetensors, parse_safetensors


def build(header: str | bytes | dict, data: bytes = b"", *, length: int | None = None) -> bytes:
    """A safetensors file with every part under the test's control."""
    if isinstance(header, dict):
        header = json.dumps(header)
    raw = header.encode() if isinstance(header, str) else header
    return struct.pack("<Q", len(raw) if length is None else length) + raw + data


def tensor(shape=(1,), start=0, end=4, dtype="F32") -> dict:
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [start, end]}


def parse(raw: bytes):
    return parse_safetensors(np.frombuffer(raw, np.uint8), Path("some.safetensors"))


def package_accepts(raw: bytes) -> bool:
    try:
        safetensors.deserialize(raw)
    except safetensors.SafetensorError:
        return False
    return True


def we_accept(raw: bytes) -> bool:
    try:
        parse(raw)
    except ModelFormatError:
        return False
    return True


@pytest.fixture
def weights() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(5)
    return {
        "model.embed_tokens.weight": rng.standard_normal((7, 6)).astype(np.float32),
        "norm": rng.standard_normal(6).astype(np.float16),
        "experts": rng.standard_normal((2, 3, 4)).astype(np.float16),
        "scalar": np.array(2.5, np.float32),
        "名字": np.zeros((0, 5), np.float32),
    }


def test_tensors_are_those_that_the_safetensors_package_wrote(tmp_path, weights):
    path = tmp_path / "model.safetensors"
    safetensors.numpy.save_file(weights, path, metadata={"format": "pt"})
    with open_safetensors(path) as file:
        assert file.metadata == {"format": "pt"}
        assert set(file.tensors) == set(weights)
        for name, array in weights.items():
            stored = file.tensors[name]
            assert stored.shape == array.shape
            assert stored.weight_type.name == {"float32": "F32", "float16": "F16"}[array.dtype.name]
            assert stored.data.tobytes() == array.tobytes()
    assert not file.tensors


def test_bfloat16_is_read_and_rows_are_flattened():
    file = parse(build({"w": tensor((2, 3, 4), 0, 48, "BF16")}, bytes(range(48))))
    assert file.tensors["w"].weight_type is WeightType.BF16
    assert file.tensors["w"].data.shape == (6, 8)
    assert file.tensors["w"].data[5].tolist() == list(range(40, 48))


def test_tensors_are_read_only(tmp_path, weights):
    safetensors.numpy.save_file(weights, tmp_path / "model.safetensors")
    data = open_safetensors(tmp_path).tensors["norm"].data
    with pytest.raises(ValueError, match="read-only"):
        data[0, 0] = 1


FOUR = b"1234"
AGREED = {
    "no tensor": build("{}"),
    "spaces at the end": build("{}     \n"),
    "metadata of null": build('{"__metadata__":null}'),
    "an unknown field": build('{"a":{"dtype":"F32","x":-1,"shape":[1],"data_offsets":[0,4]}}', FOUR),
    "empty name": build({"": tensor()}, FOUR),
    "scalar": build({"a": tensor(())}, FOUR),
    "empty tensors": build({"a": tensor((0, 5), 0, 0), "b": tensor((5, 0), 0, 0), "c": tensor()}, FOUR),
    "header of 0 bytes": struct.pack("<Q", 0),
    "no header": b"1234567",
    "header of 2^64 bytes": build("{}", length=2**64 - 1),
    "header longer than allowed": build("{}", length=100_000_001),
    "header longer than the file": build("{}", length=3),
    "not an object": build("[]"),
    "not JSON": build("{a:1}"),
    "byte order mark": build(b"\xef\xbb\xbf{}"),
    "zero byte after it": build(b"{}\0"),
    "not UTF-8": build(b'{"\xff":1}'),
    "lone surrogate": build('{"\\ud800":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}', FOUR),
    "lone surrogate in a value": build('{"a":{"dtype":"F32","x":"\\udfff","shape":[1],"data_offsets":[0,4]}}', FOUR),
    "NaN": build('{"a":{"dtype":"F32","x":NaN,"shape":[1],"data_offsets":[0,4]}}', FOUR),
    "number out of range": build('{"a":{"dtype":"F32","x":1e999,"shape":[1],"data_offsets":[0,4]}}', FOUR),
    "very long number": build('{"a":{"dtype":"F32","x":' + "9" * 5000 + ',"shape":[1],"data_offsets":[0,4]}}', FOUR),
    "deep": build('{"a":' + "[" * 500 + "]" * 500 + "}"),
    "very deep": build('{"a":' + "[" * 100_000),
    "field twice": build('{"a":{"dtype":"F32","dtype":"F32","shape":[1],"data_offsets":[0,4]}}', FOUR),
    "metadata twice": build('{"__metadata__":{},"__metadata__":{}}'),
    "metadata of numbers": build('{"__metadata__":{"a":1}}'),
    "metadata a list": build('{"__metadata__":[]}'),
    "entry a number": build('{"a":1}'),
    "entry without a shape": build('{"a":{"dtype":"F32","data_offsets":[0,4]}}', FOUR),
    "shape a number": build('{"a":{"dtype":"F32","shape":1,"data_offsets":[0,4]}}', FOUR),
    "shape of true": build('{"a":{"dtype":"F32","shape":[true],"data_offsets":[0,4]}}', FOUR),
    "an offset of minus zero": build('{"a":{"dtype":"F32","shape":[1],"data_offsets":[-0,4]}}', FOUR),
    "shape of 1.0": build('{"a":{"dtype":"F32","shape":[1.0],"data_offsets":[0,4]}}', FOUR),
    "negative shape": build({"a": tensor((-1,))}, FOUR),
    "shape overflows": build({"a": tensor((2**32, 2**32, 2**32))}, FOUR),
    "shape wraps": build({"a": tensor((2**62, 4), 0, 0)}),
    "three offsets": build('{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4,4]}}', FOUR),
    "end before start": build({"a": tensor((0,), 4, 0)}, FOUR),
    "wrong size": build({"a": tensor((2,))}, FOUR),
    "hole at the start": build({"a": tensor((1,), 4, 8)}, FOUR * 2),
    "hole between": build({"a": tensor(), "b": tensor((1,), 8, 12)}, FOUR * 3),
    "overlap": build({"a": tensor((2,), 0, 8), "b": tensor((1,), 4, 8)}, FOUR * 2),
    "same bytes": build({"a": tensor(), "b": tensor()}, FOUR),
    "bytes after the last": build({"a": tensor()}, FOUR + b"5"),
    "bytes missing": build({"a": tensor()}, b"123"),
    "unknown type": build({"a": tensor(dtype="F31")}, FOUR),
}


@pytest.mark.parametrize("case", AGREED)
def test_the_safetensors_package_and_we_agree(case):
    assert we_accept(AGREED[case]) == package_accepts(AGREED[case])


STRICTER = {
    "the same name twice": ('{"a":1,"a":1}', "'a' stands twice"),
    "metadata key twice": ('{"__metadata__":{"a":"b","a":"c"}}', "'a' stands twice"),
    "space before the header": (" {}", "instead of b'{'"),
    "integers": (json.dumps({"a": tensor(dtype="I32")}), "'a' is stored as 'I32'"),
    "entry as a list": ('{"a":["F32",[1],[0,4]]}', "not an object"),
}


@pytest.mark.parametrize("case", STRICTER)
def test_we_also_refuse_what_the_format_forbids_or_we_cannot_run(case):
    header, reason = STRICTER[case]
    with pytest.raises(ModelFormatError, match=reason) as error:
        parse(build(header, FOUR))
    assert "some.safetensors" in str(error.value)


@settings(deadline=None, max_examples=300)
@given(st.data())
def test_what_we_accept_the_package_accepts(data):
    raw = bytearray(
        build(
            {"a": tensor((2,), 0, 8), "b": tensor((1, 2), 8, 12, "F16"), "c": tensor((1,), 12, 14, "BF16")}, b"x" * 14
        )
    )
    digits = [index for index, byte in enumerate(raw) if chr(byte).isdigit()]
    for _ in range(data.draw(st.integers(1, 3))):
        if data.draw(st.booleans()):
            raw[data.draw(st.sampled_from(digits))] = data.draw(st.sampled_from(b"0123456789"))
        else:
            raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.sampled_from(b'{}[],:"0123456789abF\\ \0\xff'))
    if we_accept(bytes(raw)):
        assert package_accepts(bytes(raw))


def write_shards(folder: Path) -> dict:
    safetensors.numpy.save_file({"a": np.ones((2, 2), np.float32)}, folder / "model-00001-of-00002.safetensors")
    safetensors.numpy.save_file({"b": np.zeros(3, np.float16)}, folder / "model-00002-of-00002.safetensors")
    index = {
        "metadata": {"total_size": 22},
        "weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"},
    }
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return index


def test_shards_are_read_as_one(tmp_path):
    write_shards(tmp_path)
    file = open_safetensors(tmp_path)
    assert list(file.tensors) == ["a", "b"]
    assert file.tensors["a"].data.view("<f4").tolist() == [[1, 1], [1, 1]]


@pytest.mark.parametrize(
    ("weight_map", "reason"),
    [
        ({"a": "../model-00001-of-00002.safetensors"}, "not a plain file name"),
        ({"a": "/etc/passwd.safetensors"}, "not a plain file name"),
        ({"a": "..\\x.safetensors"}, "not a plain file name"),
        ({"a": ".hidden.safetensors"}, "not a plain file name"),
        ({"a": "x\0.safetensors"}, "not a plain file name"),
        ({"a": "model-00001-of-00002.bin"}, "not a .safetensors file"),
        ({"a": "missing.safetensors"}, "'missing.safetensors' is missing"),
        ({"b": "model-00001-of-00002.safetensors"}, "'b' is in .*not there"),
        ({"a": ["x"]}, "no proper 'weight_map'"),
        ({}, "no proper 'weight_map'"),
        ([], "no proper 'weight_map'"),
        ({str(number): f"{number}.safetensors" for number in range(5000)}, "5000 shards"),
    ],
)
def test_sec_11_an_index_that_lies_is_refused(tmp_path, weight_map, reason):
    write_shards(tmp_path)
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    with pytest.raises(ModelFormatError, match=reason):
        open_safetensors(tmp_path)


def test_sec_11_a_link_out_of_the_folder_is_refused(tmp_path, weights):
    folder = tmp_path / "model"
    folder.mkdir()
    safetensors.numpy.save_file(weights, tmp_path / "elsewhere")
    (folder / "model.safetensors").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ModelFormatError, match="outside of the model's folder"):
        open_safetensors(folder)


def test_a_snapshot_of_hugging_faces_cache_is_read_through_its_links(tmp_path, weights):
    snapshot = tmp_path / "snapshots" / "abc"
    blobs = tmp_path / "blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    safetensors.numpy.save_file(weights, blobs / "0123")
    (snapshot / "model.safetensors").symlink_to("../../blobs/0123")
    assert set(open_safetensors(snapshot).tensors) == set(weights)


def test_a_folder_without_weights_is_refused(tmp_path):
    with pytest.raises(ModelFormatError, match=r"neither 'model\.safetensors' nor"):
        open_safetensors(tmp_path)
