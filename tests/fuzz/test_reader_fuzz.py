"""Random damage, aimed at the structure of the formats: only typed errors, bounded memory, no slow case.

`QWENSTACK_FUZZ_SECONDS` sets the time for each reader (60), `QWENSTACK_FUZZ_SEED` the cases; 0 draws new ones, as
`make test-long` does. The usual run repeats the same cases, so that a change is judged by what it changes.
"""

import json
import os
import random
import struct
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import gguf
import numpy as np
import safetensors

from qwenstack.core.errors import ModelFormatError
from qwenstack.hub.gguf import parse_gguf
from qwenstack.hub.safetensors import parse_safetensors

SECONDS = float(os.environ.get("QWENSTACK_FUZZ_SECONDS", "60"))
MAX_EXTRA_BYTES = 64 << 20
MAX_CASE_SECONDS = 1.0
EDGES = [0, 1, 2, 3, 7, 8, 9, 12, 31, 32, 33, 255, 256, 2**16, 2**31 - 1, 2**31, 2**32 - 1, 2**32, 2**61, 2**62]
EDGES += [2**63 - 1, 2**63, 2**64 - 32, 2**64 - 1]

Fields = list[tuple[str, bytes]]
"""A file as a list of (struct code of an integer, or "raw"; its bytes), so that mutations hit the structure."""


def integer(code: str, value: int) -> tuple[str, bytes]:
    return code, struct.pack(f"<{code}", value)


def text(value: str) -> Fields:
    raw = value.encode()
    return [integer("Q", len(raw)), ("raw", raw)]


def gguf_seed(rng: random.Random) -> Fields:
    """A valid file with every kind of field; sizes vary by the seed."""
    keys: Fields = []
    scalars = [(0, "B"), (1, "b"), (2, "H"), (3, "h"), (4, "I"), (5, "i"), (7, "B"), (10, "Q"), (11, "q")]
    for type_id, code in scalars:
        keys += [*text(f"key.{type_id}"), integer("I", type_id), integer(code, rng.randrange(2))]
    keys += [*text("general.alignment"), integer("I", 4), integer("I", 32)]
    keys += [*text("name"), integer("I", 8), *text("千问 Qwen")]
    words = ["你好", "Ġthe", "", "🌏"][: rng.randrange(1, 5)]
    keys += [*text("tokens"), integer("I", 9), integer("I", 8), integer("Q", len(words))]
    for word in words:
        keys += text(word)
    keys += [*text("scores"), integer("I", 9), integer("I", 6), integer("Q", 3), ("raw", struct.pack("<3f", 1, 2, 3))]
    keys += [*text("nested"), integer("I", 9), integer("I", 9), integer("Q", 1)]
    keys += [integer("I", 0), integer("Q", 2), ("raw", b"\1\2")]
    entries: Fields = []
    offset = 0
    shapes = [((32, 3), 2, 54), ((256, 2), 12, 288), ((5,), 0, 20), ((4, 3, 2), 1, 48)]
    for number, (dims, type_id, length) in enumerate(shapes):
        entries += [*text(f"blk.{number}.weight"), integer("I", len(dims)), *(integer("Q", dim) for dim in dims)]
        entries += [integer("I", type_id), integer("Q", offset)]
        offset += -(-length // 32) * 32
    head = [("raw", b"GGUF"), integer("I", rng.choice([2, 3])), integer("Q", len(shapes)), integer("Q", 14), *keys]
    head += entries
    size = sum(len(raw) for _, raw in head)
    return [*head, ("raw", b"\0" * (-size % 32)), ("raw", rng.randbytes(offset))]


def mutate_fields(fields: Fields, rng: random.Random) -> bytes:
    fields = list(fields)
    for _ in range(rng.choice([0, 1, 1, 1, 2, 3])):
        place = rng.randrange(len(fields))
        code, raw = fields[place]
        if code != "raw" and rng.random() < 0.8:
            value = rng.choice([*EDGES, int.from_bytes(raw, "little") + rng.choice([-1, 1, 8, -8, 32])])
            raw = (value % (1 << 8 * len(raw))).to_bytes(len(raw), "little")
            fields[place] = (code, raw)
        elif rng.random() < 0.4:
            fields.insert(place, rng.choice(fields))
        elif rng.random() < 0.5:
            del fields[place]
        else:
            fields[place] = ("raw", mutate_bytes(raw, rng))
    joined = b"".join(raw for _, raw in fields)
    return mutate_bytes(joined, rng) if rng.random() < 0.3 else joined


def mutate_bytes(raw: bytes, rng: random.Random) -> bytes:
    if not raw:
        return rng.randbytes(rng.randrange(9))
    place = rng.randrange(len(raw))
    kind = rng.randrange(4)
    if kind == 0:
        return raw[:place]
    if kind == 1:
        return raw[:place] + rng.randbytes(rng.randrange(1, 9)) + raw[place:]
    if kind == 2:
        return raw[:place] + raw[place + rng.randrange(1, 9) :]
    return raw[:place] + bytes([raw[place] ^ 1 << rng.randrange(8)]) + raw[place + 1 :]


def safetensors_seed(rng: random.Random) -> tuple[str, bytes]:
    header: dict[str, object] = {"__metadata__": {"format": "pt"}} if rng.random() < 0.5 else {}
    position = 0
    for name, dtype, shape in [("a", "F32", [2, 3]), ("字", "F16", [4]), ("s", "BF16", []), ("z", "F32", [0, 2])]:
        size = {"F32": 4, "F16": 2, "BF16": 2}[dtype] * int(np.prod(shape))
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [position, position + size]}
        position += size
    return json.dumps(header, ensure_ascii=rng.random() < 0.5), rng.randbytes(position)


PIECES = [
    "{",
    "}",
    "[",
    "]",
    ",",
    ":",
    '"',
    "\\ud800",
    "\\",
    "-",
    "1e9",
    "1.0",
    "null",
    "true",
    "NaN",
    "18446744073709551616",
]
PIECES += [
    "0",
    "4",
    "8",
    "24",
    "F32",
    "F16",
    "I64",
    '"a":',
    '"shape"',
    '"dtype":"F32"',
    '"data_offsets":[0,24]',
    " ",
    "\n",
]
PIECES += ['{"dtype":"F32","shape":[1],"data_offsets":[0,4]}', "[" * 70, "\0", "\ufeff", "\u2028"]


def mutate_safetensors(seed: tuple[str, bytes], rng: random.Random) -> bytes:
    header, data = seed
    for _ in range(rng.choice([0, 1, 1, 1, 2, 3])):
        place = rng.randrange(len(header) + 1)
        cut = rng.choice([0, 0, 1, 1, 2, rng.randrange(30)])
        digits = [index for index, character in enumerate(header) if character.isdigit()]
        if digits and rng.random() < 0.4:
            place, cut = rng.choice(digits), 1
        header = header[:place] + rng.choice(["", *PIECES, str(rng.choice(EDGES))]) + header[place + cut :]
    raw = header.encode()
    length = len(raw) if rng.random() < 0.9 else rng.choice([*EDGES, len(raw) - 1, len(raw) + 1, 100_000_001]) % 2**64
    if rng.random() < 0.1:
        data = mutate_bytes(data, rng)
    joined = struct.pack("<Q", length) + raw + data
    return mutate_bytes(joined, rng) if rng.random() < 0.1 else joined


USUAL_SEED = 51557305229461
"""Found that `-0` was read as an offset, 2026-11-22."""


def fuzz(name: str, make: Callable[[random.Random], bytes], check: Callable[[bytes, random.Random], bool]) -> None:
    """Check random cases until the time is up; `check` says whether a case was accepted."""
    seed = int(os.environ.get("QWENSTACK_FUZZ_SEED", USUAL_SEED)) or random.SystemRandom().getrandbits(48)
    print(f"{name}: QWENSTACK_FUZZ_SEED={seed}")
    rng = random.Random(seed)
    accepted = cases = 0
    tracemalloc.start(1)
    try:
        end = time.monotonic() + SECONDS
        while time.monotonic() < end:
            raw = make(rng)
            tracemalloc.reset_peak()
            before, started = tracemalloc.get_traced_memory()[0], time.thread_time()
            accepted += check(raw, rng)
            took, grown = time.thread_time() - started, tracemalloc.get_traced_memory()[1] - before
            cases += 1
            assert took <= MAX_CASE_SECONDS, f"case {cases} took {took:.2f} s"
            assert grown <= len(raw) + MAX_EXTRA_BYTES, f"case {cases} took {grown} bytes of memory"
    finally:
        tracemalloc.stop()
    print(f"{name}: {cases} cases, {accepted} accepted")
    assert 0 < accepted < cases


def test_damaged_gguf_files_give_typed_errors_only(tmp_path):
    def check(raw: bytes, rng: random.Random) -> bool:
        try:
            file = parse_gguf(np.frombuffer(raw, np.uint8), Path("fuzzed.gguf"))
        except ModelFormatError:
            return False
        for tensor in file.tensors.values():
            tensor.data.sum()  # every byte that is promised can be read
        if rng.random() < 0.02:
            (tmp_path / "case.gguf").write_bytes(raw)
            theirs = {tensor.name: tensor for tensor in gguf.GGUFReader(tmp_path / "case.gguf").tensors}
            assert set(theirs) == set(file.tensors)
            for name, tensor in file.tensors.items():
                assert theirs[name].data.tobytes() == tensor.data.tobytes()
        return True

    fuzz("gguf", lambda rng: mutate_fields(gguf_seed(rng), rng), check)


STRICTER = ("stands twice", "instead of b'{'", "is stored as", "is not an object", "impossible shape", "nested deeper")
"""Reasons for which we refuse what the package accepts: the format forbids it, or the engine cannot run it."""


def test_damaged_safetensors_files_are_refused_exactly_when_the_package_refuses_them():
    def check(raw: bytes, _: random.Random) -> bool:
        try:
            safetensors.deserialize(raw)
        except safetensors.SafetensorError:
            agreed = False
        else:
            agreed = True
        try:
            file = parse_safetensors(np.frombuffer(raw, np.uint8), Path("fuzzed.safetensors"))
        except ModelFormatError as error:
            if agreed and not any(reason in str(error) for reason in STRICTER):
                raise
            return False
        assert agreed, raw
        for tensor in file.tensors.values():
            tensor.data.sum()
        return True

    fuzz("safetensors", lambda rng: mutate_safetensors(safetensors_seed(rng), rng), check)
