"""A GGUF reader for files that may be hostile: versions 2 and 3, little-endian.

Every count, length and offset is checked against the bytes that the file has before anything is allocated for it.
The reader knows the container; what a metadata key or a tensor means is decided by its callers.

Source: the GGUF specification of the ggml project, version 3; checked against the `gguf` package.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn, Self, TypeAlias

from qwenstack.core.errors import ModelFormatError
from qwenstack.core.weight_type import WEIGHT_TYPE_BY_GGUF_ID, WeightType
from qwenstack.hub.mapped_file import map_file
from qwenstack.hub.stored_tensor import Bytes, StoredTensor, stored_bytes, view_tensor

MetadataScalar: TypeAlias = bool | int | float | str
MetadataArray: TypeAlias = "list[bool] | list[int] | list[float] | list[str] | list[MetadataArray]"
MetadataValue: TypeAlias = "MetadataScalar | MetadataArray"

MAGIC = b"GGUF"
VERSIONS = (2, 3)
DEFAULT_ALIGNMENT = 32
MAX_ALIGNMENT = 1 << 16
MAX_METADATA_KEYS = 1 << 16
MAX_TENSORS = 1 << 16
MAX_KEY_BYTES = (1 << 16) - 1
MAX_TENSOR_NAME_BYTES = 1024
MAX_DIMENSIONS = 4
MAX_ARRAY_DEPTH = 4
MAX_ARRAY_ITEMS = 1 << 22
"""Items of all metadata arrays together; the largest vocabularies in use need 1.3 million."""
MAX_VALUES = 1 << 62

_STRING = 8
_ARRAY = 9
_BOOL = 7
_SCALARS = {
    0: struct.Struct("<B"),
    1: struct.Struct("<b"),
    2: struct.Struct("<H"),
    3: struct.Struct("<h"),
    4: struct.Struct("<I"),
    5: struct.Struct("<i"),
    6: struct.Struct("<f"),
    _BOOL: struct.Struct("<?"),
    10: struct.Struct("<Q"),
    11: struct.Struct("<q"),
    12: struct.Struct("<d"),
}
_UINT32 = _SCALARS[4]
_UINT64 = _SCALARS[10]
_MIN_METADATA_BYTES = 8 + 4 + 1
_MIN_TENSOR_BYTES = 8 + 4 + 8 + 4 + 8
_TYPES_NOT_READ = {
    9: "Q8_1", 15: "Q8_K", 16: "IQ2_XXS", 17: "IQ2_XS", 18: "IQ3_XXS", 19: "IQ1_S", 20: "IQ4_NL", 21: "IQ3_S",
    22: "IQ2_S", 23: "IQ4_XS", 24: "I8", 25: "I16", 26: "I32", 27: "I64", 28: "F64", 29: "IQ1_M", 34: "TQ1_0",
    35: "TQ2_0", 39: "MXFP4",
}  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class GGUFFile:
    """What a GGUF file says: `metadata` by key and `tensors` by name, in the order of the file."""

    path: Path
    version: int
    metadata: dict[str, MetadataValue]
    tensors: dict[str, StoredTensor]

    def close(self) -> None:
        """Let go of the tensors; the file is unmapped when the last array handed out is dropped."""
        self.tensors.clear()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def open_gguf(path: Path) -> GGUFFile:
    """Open a GGUF file; tensors are views of the read-only mapping, nothing is copied.

    Raises:
        ModelFormatError: the file cannot be read, is damaged, or is of a version or type that is not read here.
    """
    return parse_gguf(map_file(path), path)


def parse_gguf(data: Bytes, path: Path) -> GGUFFile:
    """Read the bytes of a GGUF file; `path` is only named in errors.

    Raises:
        ModelFormatError: as `open_gguf`.
    """
    cursor = _Cursor(data.data, path)
    version, num_tensors, num_keys = _read_preamble(cursor)
    metadata = _read_metadata(cursor, num_keys)
    entries = _read_entries(cursor, num_tensors)
    alignment = _alignment(cursor, metadata)
    data_start = -(-cursor.offset // alignment) * alignment
    _check_layout(cursor, list(entries.values()), alignment, data_start)
    tensors: dict[str, StoredTensor] = {}
    for name, entry in entries.items():
        start = data_start + entry.offset
        tensors[name] = view_tensor(name, entry.weight_type, entry.shape, data[start : start + entry.length])
    return GGUFFile(path=path, version=version, metadata=metadata, tensors=tensors)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Entry:
    """What the header says of one tensor."""

    name: str
    weight_type: WeightType
    shape: tuple[int, ...]
    offset: int
    """From the start of the data section."""
    length: int
    at: int
    """Where in the file the entry stands, for errors."""


class _Cursor:
    """A reading position that never leaves the file."""

    def __init__(self, data: memoryview, path: Path) -> None:
        self.data = data
        self.path = path
        self.offset = 0
        self.array_items_left = MAX_ARRAY_ITEMS

    @property
    def bytes_left(self) -> int:
        return len(self.data) - self.offset

    def fail(self, at: int, what: str) -> NoReturn:
        """Refuse the file, naming it and the place."""
        raise ModelFormatError(f"{str(self.path)!r} is damaged or not a GGUF file: at byte {at}, {what}.")

    def take(self, length: int, what: str) -> int:
        """Step over `length` bytes and return where they start."""
        start = self.offset
        if length > self.bytes_left:
            self.fail(
                start, f"{what} needs {length} bytes, but the file ends {self.bytes_left} bytes on; it is cut short"
            )
        self.offset = start + length
        return start

    def uint32(self, what: str) -> int:
        return int(_UINT32.unpack_from(self.data, self.take(4, what))[0])

    def uint64(self, what: str) -> int:
        return int(_UINT64.unpack_from(self.data, self.take(8, what))[0])

    def text(self, what: str, limit: int) -> str:
        """Read a length and that many bytes of UTF-8."""
        at = self.offset
        length = self.uint64(f"the length of {what}")
        if length > min(limit, self.bytes_left):
            self.fail(at, f"{what} says it has {length} bytes; {self.bytes_left} are left and {limit} are allowed")
        start = self.take(length, what)
        try:
            return str(self.data[start : start + length], "utf-8")
        except UnicodeDecodeError as error:
            self.fail(start + error.start, f"{what} is not UTF-8")

    def texts(self, count: int, what: str) -> list[str]:
        """Read `count` strings; a vocabulary has hundreds of thousands, so that this loop is kept tight."""
        data, offset, end, unpack = self.data, self.offset, len(self.data), _UINT64.unpack_from
        texts: list[str] = []
        for _ in range(count):
            start = offset + 8
            if start > end:
                self.fail(offset, f"{what} holds {len(texts)} of {count} strings; the file is cut short")
            length: int = unpack(data, offset)[0]
            if length > end - start:
                self.fail(offset, f"a string of {what} says it has {length} bytes; {end - start} are left")
            offset = start + length
            try:
                texts.append(str(data[start:offset], "utf-8"))
            except UnicodeDecodeError as error:
                self.fail(start + error.start, f"a string of {what} is not UTF-8")
        self.offset = offset
        return texts


def _read_preamble(cursor: _Cursor) -> tuple[int, int, int]:
    """Return version, number of tensors and number of metadata keys."""
    start = cursor.take(4, "the magic number")
    magic = bytes(cursor.data[start : start + 4])
    if magic != MAGIC:
        cursor.fail(start, f"the file starts with {magic!r} instead of {MAGIC!r}")
    version = cursor.uint32("the version")
    if version not in VERSIONS:
        swapped = int.from_bytes(version.to_bytes(4, "little"), "big")
        found = f"{swapped}, big-endian" if swapped in VERSIONS else str(version)
        raise ModelFormatError(
            f"{str(cursor.path)!r} is a GGUF file of version {found}; versions 2 and 3, little-endian, are read. "
            "Convert it with a current llama.cpp, or choose another file of the model."
        )
    counts: list[int] = []
    for what, least, most in (
        ("tensors", _MIN_TENSOR_BYTES, MAX_TENSORS),
        ("metadata keys", _MIN_METADATA_BYTES, MAX_METADATA_KEYS),
    ):
        at = cursor.offset
        count = cursor.uint64(f"the number of {what}")
        if count > most or count * least > cursor.bytes_left:
            cursor.fail(
                at, f"the header promises {count} {what}; {cursor.bytes_left} bytes are left, {most} are allowed"
            )
        counts.append(count)
    return version, counts[0], counts[1]


def _read_metadata(cursor: _Cursor, num_keys: int) -> dict[str, MetadataValue]:
    metadata: dict[str, MetadataValue] = {}
    for _ in range(num_keys):
        at = cursor.offset
        key = cursor.text("a metadata key", MAX_KEY_BYTES)
        if key in metadata:
            cursor.fail(at, f"metadata key {key!r} stands twice")
        metadata[key] = _read_value(cursor, cursor.uint32(f"the type of {key!r}"), key)
    return metadata


def _read_value(cursor: _Cursor, type_id: int, key: str) -> MetadataValue:
    if type_id == _STRING:
        return cursor.text(f"the value of {key!r}", cursor.bytes_left)
    if type_id == _ARRAY:
        return _read_array(cursor, key, MAX_ARRAY_DEPTH)
    scalar = _SCALARS.get(type_id)
    if scalar is None:
        cursor.fail(cursor.offset - 4, f"{key!r} has the unknown metadata type {type_id}")
    at = cursor.take(scalar.size, f"the value of {key!r}")
    if type_id == _BOOL:
        _check_booleans(cursor, at, 1, key)
    value: MetadataScalar = scalar.unpack_from(cursor.data, at)[0]
    return value


def _read_array(cursor: _Cursor, key: str, depth_left: int) -> MetadataArray:
    at = cursor.offset
    type_id = cursor.uint32(f"the item type of {key!r}")
    count = cursor.uint64(f"the length of {key!r}")
    scalar = _SCALARS.get(type_id)
    # A string has at least its length of 8 bytes, an array its type and length.
    item_bytes = scalar.size if scalar else {_STRING: 8, _ARRAY: 12}.get(type_id)
    if item_bytes is None:
        cursor.fail(at, f"the items of {key!r} have the unknown metadata type {type_id}")
    if count * item_bytes > cursor.bytes_left:
        cursor.fail(at, f"{key!r} says it has {count} items; {cursor.bytes_left} bytes are left")
    if count > cursor.array_items_left:
        cursor.fail(at, f"the metadata arrays hold more than {MAX_ARRAY_ITEMS} items")
    cursor.array_items_left -= count
    if type_id == _STRING:
        return cursor.texts(count, repr(key))
    if type_id == _ARRAY:
        if depth_left == 1:
            cursor.fail(at, f"the arrays of {key!r} are nested deeper than {MAX_ARRAY_DEPTH}")
        return [_read_array(cursor, key, depth_left - 1) for _ in range(count)]
    assert scalar is not None
    start = cursor.take(count * scalar.size, f"the items of {key!r}")
    if type_id == _BOOL:
        _check_booleans(cursor, start, count, key)
    return list(struct.unpack_from(f"<{count}{scalar.format[1:]}", cursor.data, start))


def _check_booleans(cursor: _Cursor, start: int, count: int, key: str) -> None:
    if bytes(cursor.data[start : start + count]).strip(b"\x00\x01"):
        cursor.fail(start, f"{key!r} holds a boolean that is neither 0 nor 1")


def _read_entries(cursor: _Cursor, num_tensors: int) -> dict[str, _Entry]:
    entries: dict[str, _Entry] = {}
    for _ in range(num_tensors):
        entry = _read_entry(cursor)
        if entry.name in entries:
            cursor.fail(entry.at, f"tensor {entry.name!r} is listed twice")
        entries[entry.name] = entry
    return entries


def _read_entry(cursor: _Cursor) -> _Entry:
    at = cursor.offset
    name = cursor.text("a tensor name", MAX_TENSOR_NAME_BYTES)
    num_dimensions = cursor.uint32(f"the shape of {name!r}")
    if not 1 <= num_dimensions <= MAX_DIMENSIONS:
        cursor.fail(at, f"tensor {name!r} has {num_dimensions} dimensions; 1 to {MAX_DIMENSIONS} are allowed")
    dimensions = [cursor.uint64(f"the shape of {name!r}") for _ in range(num_dimensions)]
    num_values = 1
    for dimension in dimensions:
        num_values *= dimension
        if not 1 <= num_values <= MAX_VALUES:
            cursor.fail(at, f"tensor {name!r} has the impossible shape {dimensions}")
    weight_type = _weight_type(cursor, name, cursor.uint32(f"the type of {name!r}"))
    offset = cursor.uint64(f"the offset of {name!r}")
    # GGUF writes the fastest axis first; everyone else writes it last.
    shape = tuple(reversed(dimensions))
    try:
        length = stored_bytes(weight_type, shape)
    except ValueError as error:
        cursor.fail(at, f"tensor {name!r}: {str(error).rstrip('.')}")
    return _Entry(name=name, weight_type=weight_type, shape=shape, offset=offset, length=length, at=at)


def _weight_type(cursor: _Cursor, name: str, type_id: int) -> WeightType:
    weight_type = WEIGHT_TYPE_BY_GGUF_ID.get(type_id)
    if weight_type is None:
        known = ", ".join(known.name for known in WeightType)
        raise ModelFormatError(
            f"{str(cursor.path)!r}: tensor {name!r} is stored as {_TYPES_NOT_READ.get(type_id, 'unknown')} "
            f"(type {type_id}), which is not read here. Choose a file of the model with these types: {known}."
        )
    return weight_type


def _alignment(cursor: _Cursor, metadata: dict[str, MetadataValue]) -> int:
    alignment = metadata.get("general.alignment", DEFAULT_ALIGNMENT)
    if type(alignment) is int and 8 <= alignment <= MAX_ALIGNMENT and alignment.bit_count() == 1:
        return alignment
    raise ModelFormatError(
        f"{str(cursor.path)!r} is damaged: its alignment is {alignment!r}; "
        f"a power of two from 8 to {MAX_ALIGNMENT} is allowed."
    )


def _check_layout(cursor: _Cursor, entries: list[_Entry], alignment: int, data_start: int) -> None:
    """Refuse tensors that are misaligned, lie outside of the file or share bytes."""
    end_of_previous = 0
    previous = ""
    for entry in sorted(entries, key=lambda entry: entry.offset):
        if entry.offset % alignment:
            cursor.fail(entry.at, f"tensor {entry.name!r} lies at {entry.offset}, not a multiple of {alignment}")
        if entry.offset < end_of_previous:
            cursor.fail(entry.at, f"tensor {entry.name!r} overlaps with {previous!r}")
        end_of_previous, previous = entry.offset + entry.length, entry.name
        end = data_start + end_of_previous
        if end > len(cursor.data):
            raise ModelFormatError(
                f"{str(cursor.path)!r} is cut short: tensor {entry.name!r} ends at byte {end}, "
                f"the file at byte {len(cursor.data)}. Fetch the file again."
            )
