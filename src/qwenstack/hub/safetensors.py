"""A safetensors reader for files that may be hostile, single or sharded.

It refuses whatever the `safetensors` package refuses, and also what the format's text forbids but the package lets
through: duplicate names and a header that does not start with `{`.

Source: the format description of the safetensors project; checked against its package, version 0.8.0.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn, Self

from qwenstack.core.errors import ModelFormatError
from qwenstack.core.weight_type import WeightType
from qwenstack.hub.mapped_file import map_file, read_file
from qwenstack.hub.model_folder import file_in_folder
from qwenstack.hub.stored_tensor import Bytes, StoredTensor, stored_bytes, view_tensor
from qwenstack.hub.strict_json import as_list, as_object, parse_json_object

SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
MAX_HEADER_BYTES = 100_000_000
"""The limit of the `safetensors` package."""
MAX_INDEX_BYTES = 64 << 20
MAX_SHARDS = 4096
MAX_VALUES = 1 << 60

_METADATA = "__metadata__"
_DTYPES = {"F32": WeightType.F32, "F16": WeightType.F16, "BF16": WeightType.BF16}


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class SafetensorsFile:
    """What one safetensors file, or a folder of shards, holds."""

    path: Path
    metadata: dict[str, str]
    tensors: dict[str, StoredTensor]

    def close(self) -> None:
        """Let go of the tensors; files are unmapped when the last array handed out is dropped."""
        self.tensors.clear()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def open_safetensors(path: Path) -> SafetensorsFile:
    """Open a .safetensors file, or a folder with one, or with shards and their index.

    Raises:
        ModelFormatError: a file is missing, cannot be read, is damaged, or holds a type that is not read here.
    """
    if not path.is_dir():
        return parse_safetensors(map_file(path), path)
    single = file_in_folder(path, SINGLE_FILE)
    if single is not None:
        return parse_safetensors(map_file(single), path / SINGLE_FILE)
    index = file_in_folder(path, INDEX_FILE)
    if index is not None:
        return _open_shards(path, index)
    raise ModelFormatError(f"There is neither {SINGLE_FILE!r} nor {INDEX_FILE!r} in {str(path)!r}.")


def parse_safetensors(data: Bytes, path: Path) -> SafetensorsFile:
    """Read the bytes of one safetensors file; `path` is only named in errors.

    Raises:
        ModelFormatError: as `open_safetensors`.
    """
    header_end = 8 + _header_length(data, path)
    raw = data[8:header_end].tobytes()
    if not raw.startswith(b"{"):
        _fail(path, f"its header starts with {raw[:1]!r} instead of {b'{'!r}")
    header = parse_json_object(raw, f"The header of {str(path)!r}")
    metadata = _text_metadata(header.pop(_METADATA, None), path)
    entries = sorted((_read_entry(name, entry, path) for name, entry in header.items()), key=lambda entry: entry.span)
    position = 0
    for entry in entries:
        start, end = entry.span
        if start != position:
            _fail(path, f"tensor {entry.name!r} starts at {start}, the one before ends at {position}")
        position = end
    if header_end + position != len(data):
        _fail(path, f"the tensors end at byte {header_end + position}, the file at byte {len(data)}")
    tensors = {
        entry.name: view_tensor(
            entry.name, entry.weight_type, entry.shape, data[header_end + entry.span[0] : header_end + entry.span[1]]
        )
        for entry in entries
    }
    return SafetensorsFile(path=path, metadata=metadata, tensors=tensors)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Entry:
    """What the header says of one tensor."""

    name: str
    weight_type: WeightType
    shape: tuple[int, ...]
    span: tuple[int, int]
    """Start and end, from the end of the header."""


def _fail(path: Path, what: str) -> NoReturn:
    raise ModelFormatError(f"{str(path)!r} is damaged or not a safetensors file: {what}. Fetch the file again.")


def _header_length(data: Bytes, path: Path) -> int:
    if len(data) < 8:
        _fail(path, f"it has {len(data)} bytes, and the length of its header alone takes 8")
    length = int.from_bytes(data[:8].tobytes(), "little")
    if length > MAX_HEADER_BYTES:
        _fail(path, f"its header says it has {length} bytes; {MAX_HEADER_BYTES} are allowed")
    if length > len(data) - 8:
        _fail(path, f"its header says it has {length} bytes; {len(data) - 8} are left")
    return length


def _text_metadata(metadata: object, path: Path) -> dict[str, str]:
    if metadata is None:
        return {}
    members = as_object(metadata)
    if members is None:
        _fail(path, f"{_METADATA!r} is not an object")
    texts = {key: value for key, value in members.items() if isinstance(value, str)}
    if len(texts) != len(members):
        _fail(path, f"{_METADATA!r} holds more than texts")
    return texts


def _read_entry(name: str, entry: object, path: Path) -> _Entry:
    members = as_object(entry)
    if members is None:
        _fail(path, f"the entry of tensor {name!r} is not an object")
    dtype = members.get("dtype")
    weight_type = _DTYPES.get(dtype) if isinstance(dtype, str) else None
    if weight_type is None:
        raise ModelFormatError(
            f"{str(path)!r}: tensor {name!r} is stored as {dtype!r}; {', '.join(_DTYPES)} are read. "
            "Choose or convert to a checkpoint of one of these types."
        )
    shape = _whole_numbers(members.get("shape"), f"the shape of tensor {name!r}", path)
    if math.prod(max(size, 1) for size in shape) > MAX_VALUES:
        _fail(path, f"tensor {name!r} has the impossible shape {list(shape)}")
    span = _whole_numbers(members.get("data_offsets"), f"the place of tensor {name!r}", path)
    if len(span) != 2:
        _fail(path, f"the place of tensor {name!r} is not a start and an end")
    expected = stored_bytes(weight_type, shape)
    if span[1] - span[0] != expected:
        _fail(path, f"tensor {name!r} has {span[1] - span[0]} bytes; shape and type ask for {expected}")
    return _Entry(name=name, weight_type=weight_type, shape=shape, span=(span[0], span[1]))


def _whole_numbers(value: object, what: str, path: Path) -> tuple[int, ...]:
    items = as_list(value)
    # `type` and not `isinstance`: JSON's true is not a size.
    numbers = tuple(item for item in items or () if type(item) is int and item >= 0)
    if items is None or len(numbers) != len(items):
        _fail(path, f"{what} is not a list of whole numbers")
    return numbers


def _open_shards(folder: Path, index_path: Path) -> SafetensorsFile:
    index = parse_json_object(read_file(index_path, MAX_INDEX_BYTES), repr(str(folder / INDEX_FILE)))
    weight_map = as_object(index.get("weight_map")) or {}
    shard_of = {tensor: shard for tensor, shard in weight_map.items() if isinstance(shard, str)}
    if not shard_of or len(shard_of) != len(weight_map):
        raise ModelFormatError(f"{str(folder / INDEX_FILE)!r} has no proper 'weight_map'. Fetch the model again.")
    shard_names = set(shard_of.values())
    if len(shard_names) > MAX_SHARDS:
        raise ModelFormatError(f"{str(folder)!r} has {len(shard_names)} shards; at most {MAX_SHARDS} are read.")
    shards = {name: _open_shard(folder, name) for name in shard_names}
    tensors: dict[str, StoredTensor] = {}
    for name, shard_name in shard_of.items():
        tensor = shards[shard_name].tensors.get(name)
        if tensor is None:
            raise ModelFormatError(
                f"The index of {str(folder)!r} says that tensor {name!r} is in {shard_name!r}, but it is not there."
            )
        tensors[name] = tensor
    return SafetensorsFile(path=folder, metadata={}, tensors=tensors)


def _open_shard(folder: Path, name: str) -> SafetensorsFile:
    if not name.endswith(".safetensors"):
        raise ModelFormatError(f"The index of {str(folder)!r} names {name!r}, which is not a .safetensors file.")
    path = file_in_folder(folder, name)
    if path is None:
        raise ModelFormatError(f"The shard {name!r} is missing in {str(folder)!r}. Fetch the model again.")
    return parse_safetensors(map_file(path), folder / name)
