"""The file of one cached block: which block it is, its keys and values, and a digest over everything.

    header   magic, version, count of tokens, length of the payload, time of writing, key, parent's key
    tokens   4 bytes each
    payload  keys and values of all layers, in the order of the engine
    digest   SHA-256 of all before it

Numbers are little endian. A file is believed only after all of it was compared, so that it may be torn by a crash,
cut, flipped or put there by somebody else. SHA-256 because processors have instructions for it: 1.5 GB/s where
BLAKE2b makes 0.5 (AMD EPYC, `benches/kv_store.py`, 2026-11-25), 130 µs for a block of the default model.
"""

from __future__ import annotations

import hashlib
import struct
from dataclasses import dataclass

from qwenstack.engine.cache_key import KEY_BYTES, key_of_packed

MAGIC = b"QWENKV\r\n"
"""The line end shows a file that was copied as text."""
VERSION = 1
_HEADER = struct.Struct(f"<8sIIQd{KEY_BYTES}s{KEY_BYTES}s")
_DIGEST_BYTES = 32


@dataclass(frozen=True, slots=True, kw_only=True)
class KVBlock:
    """One block of keys and values, and what it is."""

    key: bytes
    parent: bytes
    packed_tokens: bytes
    """As `cache_key.pack_tokens` makes them."""
    written_at: float
    """Seconds since 1970."""
    payload: memoryview
    """Keys and values, bytes; read only."""


def file_bytes(num_tokens: int, payload_bytes: int) -> int:
    """Return the exact size of a block's file."""
    return _HEADER.size + 4 * num_tokens + payload_bytes + _DIGEST_BYTES


def encode_block(block: KVBlock) -> list[bytes | memoryview]:
    """Return the parts of a block's file; the payload is not copied."""
    header = _HEADER.pack(
        MAGIC,
        VERSION,
        len(block.packed_tokens) // 4,
        block.payload.nbytes,
        block.written_at,
        block.key,
        block.parent,
    )
    digest = hashlib.sha256(header)
    digest.update(block.packed_tokens)
    digest.update(block.payload)
    return [header, block.packed_tokens, block.payload, digest.digest()]


def decode_block(raw: bytes, *, key: bytes, packed_tokens: bytes, payload_bytes: int) -> KVBlock | None:
    """Return the block that was asked for, or None if this file is anything else.

    The payload is a view of `raw`.
    """
    if len(raw) != file_bytes(len(packed_tokens) // 4, payload_bytes):
        return None
    magic, version, num_tokens, length, written_at, found_key, parent = _HEADER.unpack_from(raw)
    view = memoryview(raw)
    payload_start = _HEADER.size + len(packed_tokens)
    is_the_block = (
        (magic, version, 4 * num_tokens, length) == (MAGIC, VERSION, len(packed_tokens), payload_bytes)
        and found_key == key
        and raw[_HEADER.size : payload_start] == packed_tokens
        and key_of_packed(parent, packed_tokens) == key
        and hashlib.sha256(view[:-_DIGEST_BYTES]).digest() == raw[-_DIGEST_BYTES:]
    )
    if not is_the_block:
        return None
    return KVBlock(
        key=key,
        parent=parent,
        packed_tokens=packed_tokens,
        written_at=written_at,
        payload=view[payload_start:-_DIGEST_BYTES],
    )
