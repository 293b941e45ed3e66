"""The GGUF reader against the `gguf` package, and against files that lie."""

import contextlib
import os
import struct
import time
from pathlib import Path

import gguf
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qwenstack.core.errors import ModelFormatError
from qwenstack.core.weight_type import WeightType
from qwenstack.hub.gguf import _TYPES_NOT_READ, open_gguf, parse_gguf

UINT8, INT8, UINT32, FLOAT32, BOOL, STRING, ARRAY, UINT64 = 0, 1, 4, 6, 7, 8, 9, 10


def text(value: str | bytes) -> bytes:
    raw = value.encode() if isinstance(value, str) else value
    return struct.pack("<Q", len(raw)) + raw


def entry(name="t", dims=(4,), type_id=0, offset=0) -> bytes:
    return text(name) + struct.pack(f"<I{len(dims)}QIQ", len(dims), *dims, type_id, offset)


def key(name: str, type_id: int, value: bytes) -> bytes:
    return text(name) + struct.pack("<I", type_id) + value


def array(item_type: int, count: int, items: bytes = b"") -> bytes:
    return struct.pack("<IQ", item_type, count) + items


def build(keys=(), entries=(), data=b"", *, magic=b"GGUF", version=3, num_tensors=None, num_keys=None) -> bytes:
    """A GGUF file with every part under the test's control."""
    counts = (
        len(entries) if num_tensors is None else num_tensors,
        len(keys) if num_keys is None else num_keys,
    )
    head = magic + struct.pack("<IQQ", version, *counts) + b"".join(keys) + b"".join(entries)
    return head + b"\0" * (-len(head) % 32) + data


def parse(raw: bytes):
    return parse_gguf(np.frombuffer(raw, np.uint8), Path("some.gguf"))


def random_blocks(weight_type: WeightType, rows: int, columns: int) -> np.ndarray:
    rng = np.random.default_rng(weight_type.gguf_id)
    return rng.integers(0, 256, (rows, weight_type.row_bytes(columns)), dtype=np.uint8)


@pytest.fixture
def written_file(tmp_path: Path) -> Path:
    """A file by the `gguf` package with all weight types and all kinds of metadata."""
    path = tmp_path / "all.gguf"
    writer = gguf.GGUFWriter(path, "qwen3")
    writer.add_uint8("a.u8", 255)
    writer.add_int8("a.i8", -128)
    writer.add_uint16("a.u16", 65535)
    writer.add_int16("a.i16", -32768)
    writer.add_uint32("a.u32", 2**32 - 1)
    writer.add_int32("a.i32", -(2**31))
    writer.add_uint64("a.u64", 2**64 - 1)
    writer.add_int64("a.i64", -(2**63))
    writer.add_float32("a.f32", 1.5)
    writer.add_float64("a.f64", 1e300)
    writer.add_bool("a.bool", True)
    writer.add_string("a.text", "你好 🌏\n")
    writer.add_array("a.texts", ["", "中文", "Ġword", "\u2028"])
    writer.add_array("a.ints", [1, -2, 3])
    writer.add_array("a.floats", [0.5, -0.25])
    writer.add_array("a.bools", [True, False])
    for number, weight_type in enumerate(WeightType):
        raw = random_blocks(weight_type, 3 + number, 256)
        writer.add_tensor(f"blk.{number}.weight", raw, raw_dtype=gguf.GGMLQuantizationType(weight_type.gguf_id))
    writer.add_tensor("norm.weight", np.arange(5, dtype=np.float32))
    writer.add_tensor("cube", np.arange(24, dtype=np.float16).reshape(2, 3, 4))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_tensors_are_those_that_the_gguf_package_reads(written_file):
    ours = open_gguf(written_file).tensors
    theirs = gguf.GGUFReader(written_file).tensors
    assert list(ours) == [tensor.name for tensor in theirs]
    for tensor in theirs:
        mine = ours[tensor.name]
        assert mine.shape == tuple(reversed(tensor.shape.tolist()))
        assert mine.weight_type.gguf_id == tensor.tensor_type
        assert mine.data.tobytes() == tensor.data.tobytes()
        assert mine.num_values == tensor.n_elements


def test_rows_are_flattened_to_bytes(written_file):
    tensors = open_gguf(written_file).tensors
    assert tensors["norm.weight"].data.shape == (1, 20)
    assert tensors["cube"].shape == (2, 3, 4)
    assert tensors["cube"].data.shape == (6, 8)


def test_metadata_is_what_the_gguf_package_reads(written_file):
    ours = open_gguf(written_file).metadata
    theirs = {
        name: field.contents()
        for name, field in gguf.GGUFReader(written_file).fields.items()
        if not name.startswith("GGUF.")
    }
    assert ours == theirs
    assert ours["a.bool"] is True
    assert ours["a.text"] == "你好 🌏\n"


def test_tensors_are_read_only_views_of_the_file(written_file):
    with open_gguf(written_file) as file:
        data = file.tensors["norm.weight"].data
    with pytest.raises(ValueError, match="read-only"):
        data[0, 0] = 1
    assert not file.tensors
    assert data.view("<f4").tolist() == [[0, 1, 2, 3, 4]], "a view outlives the file"


def test_version_2_reads_as_version_3():
    file = parse(build([key("k", UINT8, b"\x07")], [entry()], b"\1" * 16, version=2))
    assert file.version == 2
    assert file.metadata == {"k": 7}
    assert file.tensors["t"].data.tobytes() == b"\1" * 16


def test_arrays_of_arrays_are_lists_of_lists():
    value = array(ARRAY, 2, array(UINT8, 2, b"\1\2") + array(STRING, 1, text("中")))
    assert parse(build([key("k", ARRAY, value)])).metadata == {"k": [[1, 2], ["中"]]}


def test_a_file_without_tensors_is_a_vocabulary():
    assert parse(build()).tensors == {}


def test_another_alignment_is_obeyed():
    head = build([key("general.alignment", UINT32, struct.pack("<I", 128))], [entry()])
    file = parse(head + b"\0" * (-len(head) % 128) + b"\5" * 16)
    assert file.tensors["t"].data.tobytes() == b"\5" * 16


NESTED = array(ARRAY, 1, array(ARRAY, 1, array(ARRAY, 1, array(ARRAY, 1, array(UINT8, 0)))))
HUGE = 2**64 - 1

HOSTILE = {
    "wrong magic": (build(magic=b"GGML"), "starts with b'GGML'"),
    "version 1": (build(version=1), "version 1"),
    "big-endian": (build(version=3 << 24), "big-endian"),
    "only magic": (b"GGUF", "cut short"),
    "tensors promised": (build(num_tensors=HUGE), "promises 18446744073709551615 tensors"),
    "keys promised": (build(num_keys=2**40), "promises 1099511627776 metadata keys"),
    "more keys than bytes": (build(num_keys=3), "promises 3 metadata keys"),
    "key of 2^64 bytes": (build([struct.pack("<Q", HUGE) + b"x" * 40], num_keys=1), "says it has 18446744073709551615"),
    "long key": (build([key("k" * 70_000, UINT8, b"\0")]), "65535 are allowed"),
    "key not UTF-8": (build([text(b"\xff\xfe") + struct.pack("<IB", UINT8, 0)]), "not UTF-8"),
    "two equal keys": (build([key("k", UINT8, b"\0")] * 2), "'k' stands twice"),
    "unknown metadata type": (build([key("k", 13, b"\0" * 32)]), "unknown metadata type 13"),
    "unknown item type": (build([key("k", ARRAY, array(99, 1))]), "unknown metadata type 99"),
    "boolean of 2": (build([key("k", BOOL, b"\2")]), "neither 0 nor 1"),
    "boolean array of 2": (build([key("k", ARRAY, array(BOOL, 3, b"\0\1\2"))]), "neither 0 nor 1"),
    "string of 2^63 bytes": (
        build([key("k", STRING, struct.pack("<Q", 2**63) + b"abc")]),
        "says it has 9223372036854775808",
    ),
    "string not UTF-8": (build([key("k", STRING, text(b"a\xc3"))]), "not UTF-8"),
    "text in array not UTF-8": (build([key("k", ARRAY, array(STRING, 1, text(b"\xed\xa0\x80")))]), "not UTF-8"),
    "text in array too long": (build([key("k", ARRAY, array(STRING, 1, struct.pack("<Q", 2**62)))]), "says it has"),
    "texts cut short": (build([key("k", ARRAY, array(STRING, 9, text("a" * 99)))]), "of 9 strings"),
    "array of 2^61 doubles": (build([key("k", ARRAY, array(12, 2**61))]), "says it has 2305843009213693952 items"),
    "array of 2^64 bytes": (build([key("k", ARRAY, array(UINT8, HUGE))]), "items"),
    "nested arrays": (build([key("k", ARRAY, NESTED)]), "nested deeper"),
    "no dimension": (build(entries=[entry(dims=())]), "0 dimensions"),
    "five dimensions": (build(entries=[entry(dims=(1,) * 5)], data=b"\0" * 64), "5 dimensions"),
    "2^32 dimensions": (
        build(entries=[text("t") + struct.pack("<I", 2**32 - 1) + b"\0" * 32]),
        "4294967295 dimensions",
    ),
    "zero dimension": (build(entries=[entry(dims=(4, 0))]), "impossible shape"),
    "product overflows": (build(entries=[entry(dims=(2**33, 2**33, 2**33, 2**33))]), "impossible shape"),
    "product wraps to small": (build(entries=[entry(dims=(2**32, 2**32))], data=b"\0" * 64), "impossible shape"),
    "half a block": (build(entries=[entry(dims=(48,), type_id=2)], data=b"\0" * 64), "whole number of Q4_0 blocks"),
    "type not read": (build(entries=[entry(type_id=16)], data=b"\0" * 64), "'t' is stored as IQ2_XXS"),
    "unknown type": (build(entries=[entry(type_id=4000)], data=b"\0" * 64), r"unknown \(type 4000\)"),
    "same name twice": (build(entries=[entry(), entry(offset=32)], data=b"\0" * 64), "listed twice"),
    "long name": (build(entries=[entry(name="n" * 2000)], data=b"\0" * 64), "1024 are allowed"),
    "misaligned": (build(entries=[entry(offset=4)], data=b"\0" * 64), "not a multiple of 32"),
    "outside": (build(entries=[entry(offset=2**63)], data=b"\0" * 64), "cut short"),
    "one byte short": (build(entries=[entry()], data=b"\0" * 15), "ends at byte 80, the file at byte 79"),
    "overlap": (build(entries=[entry("a", (16,)), entry("b", offset=32)], data=b"\0" * 64), "overlaps with 'a'"),
    "same place": (build(entries=[entry("a"), entry("b")], data=b"\0" * 64), "overlaps"),
    "alignment 0": (build([key("general.alignment", UINT32, b"\0" * 4)]), "alignment is 0"),
    "alignment 48": (build([key("general.alignment", UINT32, struct.pack("<I", 48))]), "alignment is 48"),
    "huge alignment": (build([key("general.alignment", UINT32, struct.pack("<I", 1 << 31))]), "65536 is allowed"),
    "alignment as text": (build([key("general.alignment", STRING, text("32"))]), "alignment is '32'"),
    "alignment as boolean": (build([key("general.alignment", BOOL, b"\1")]), "alignment is True"),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_sec_02_a_file_that_lies_is_refused_by_name_and_reason(case):
    raw, reason = HOSTILE[case]
    with pytest.raises(ModelFormatError, match=reason) as error:
        parse(raw)
    assert "some.gguf" in str(error.value)


def test_arrays_have_a_budget_for_all_of_them_together():
    half = array(UINT8, (1 << 21) + 1, b"\0" * ((1 << 21) + 1))
    with pytest.raises(ModelFormatError, match="more than 4194304 items"):
        parse(build([key("a", ARRAY, half), key("b", ARRAY, half)]))


def test_every_truncation_of_a_file_is_refused(written_file):
    raw = written_file.read_bytes()
    padding = 16  # after the last tensor, of 48 bytes; a file that lacks only the padding is whole
    for length in range(0, len(raw) - padding, 37):
        with pytest.raises(ModelFormatError):
            parse(raw[:length])


@settings(deadline=None, max_examples=200)
@given(st.data())
def test_damage_never_gives_anything_but_a_typed_error(data):
    keys = [key("k", ARRAY, array(STRING, 2, text("ab") + text("中"))), key("x", FLOAT32, b"\0" * 4)]
    raw = bytearray(build(keys, [entry("a", (32, 2), 2), entry("b", (3,), 0, 64)], b"\7" * 96))
    for _ in range(data.draw(st.integers(1, 4))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    with contextlib.suppress(ModelFormatError):
        parse(bytes(raw))


def test_a_missing_file_an_empty_file_a_folder_and_a_pipe_are_refused(tmp_path):
    (tmp_path / "empty.gguf").touch()
    os.mkfifo(tmp_path / "pipe.gguf")
    for name, reason in {
        "none.gguf": "No such file",
        "empty.gguf": "is empty",
        ".": "regular file",
        "pipe.gguf": "regular file",
    }.items():
        with pytest.raises(ModelFormatError, match=reason):
            open_gguf(tmp_path / name)


def test_types_that_are_not_read_have_ggmls_names():
    for number, name in _TYPES_NOT_READ.items():
        assert gguf.GGMLQuantizationType(number).name == name


def test_a_large_vocabulary_is_read_quickly():
    tokens = [f"token {number} 词" for number in range(150_000)]
    raw = build([key("tokens", ARRAY, array(STRING, len(tokens), b"".join(map(text, tokens))))])
    started = time.perf_counter()
    assert parse(raw).metadata["tokens"] == tokens
    assert time.perf_counter() - started < 2, "far above what it takes (0.1 s), for busy machines"


@pytest.mark.weights
def test_a_real_model_is_read_as_the_gguf_package_reads_it(smollm2_gguf):
    ours = open_gguf(smollm2_gguf)
    theirs = gguf.GGUFReader(smollm2_gguf)
    assert list(ours.tensors) == [tensor.name for tensor in theirs.tensors]
    for tensor in theirs.tensors:
        assert ours.tensors[tensor.name].data.tobytes() == tensor.data.tobytes()
    tokens = theirs.get_field("tokenizer.ggml.tokens")
    assert ours.metadata["tokenizer.ggml.tokens"] == tokens.contents()
