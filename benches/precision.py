"""Measure what each precision costs and what it saves: bytes, distance from the file's own weights, speed.

One cell is a type of weights x a type of keys and values x a rounding of activations. Quality is the perplexity and the
mean KL divergence from the same file's weights with float32 keys and values and 16-bit activations, over Chinese and
English text in pieces of 64 to 1,024 tokens. Speed is a ratio to the first cell, measured in turns, so that a machine
that is busy with other things slows all cells alike.

    QWENSTACK_DATA=... python benches/precision.py qwen2.5-coder-0.5b --tokens 2048 --json

For GGUF files, whose weights are quantised already, `int8` is what a bfloat16 checkpoint of the same weights becomes.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import median
from typing import Literal, cast, get_args

import numpy as np

from qwenstack.engine.loading import load_tokenizer, num_cores
from qwenstack.engine.precision import PrecisionPolicy
from qwenstack.hub.checkpoint import Checkpoint, open_checkpoint
from qwenstack.hub.pull import locate
from qwenstack.hub.stored_tensor import StoredTensor
from qwenstack.kernels import ActivationBits, load_kernels
from qwenstack.models import (
    Decoder,
    KVCache,
    ModelConfig,
    PackedBatch,
    WeightFormat,
    WeightReader,
    kv_bytes_per_token,
    read_config,
)
from qwenstack.models.weight_format import convert
from qwenstack.tokenizer import Tokenizer

Activations = Literal["8", "16", "by_length"]

KV_DTYPES = {
    "float32": np.dtype(np.float32),
    "float16": np.dtype(np.float16),
    "bfloat16": np.dtype(np.uint16),
    "int8": np.dtype(np.int8),
}
BLOCK_SIZE = 16
PIECES = (64, 128, 256, 1024)
"""Lengths of the pieces of text, in turn: chat turns and documents."""
CONTEXT = 512
"""Tokens that are read, and then in the context of every decoded token, where speed is measured."""
DECODED = 16
FALLBACK_TEXT = Path(__file__).parents[1] / "tests" / "data" / "mixed_text.txt"


@dataclass(frozen=True, slots=True, kw_only=True)
class Class:
    """What fixes the bits of a result: two requests of one class are computed alike."""

    weights: WeightFormat
    kv: str
    bits: ActivationBits


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """One combination of precisions that a user may choose."""

    weights: WeightFormat
    kv: str
    activations: Activations

    def class_of(self, num_prompt_tokens: int, short_prompt_tokens: int) -> Class:
        """Return the class that a prompt gets."""
        if self.activations == "by_length":
            policy = PrecisionPolicy(activation_bits=8, short_prompt_tokens=short_prompt_tokens)
        else:
            policy = PrecisionPolicy(activation_bits=16 if self.activations == "16" else 8)
        return Class(weights=self.weights, kv=self.kv, bits=policy.choose(num_prompt_tokens))


@dataclass(slots=True, kw_only=True)
class Quality:
    """The positions of some text, one by one."""

    divergence: list[float] = field(default_factory=list[float])
    surprise: list[float] = field(default_factory=list[float])
    """Minus the log probability of each next token."""
    is_same_top: list[bool] = field(default_factory=list[bool])

    def extend(self, other: Quality) -> None:
        """Add the positions of more text."""
        self.divergence += other.divergence
        self.surprise += other.surprise
        self.is_same_top += other.is_same_top

    def summary(self) -> dict[str, object]:
        """Return the means."""
        return {
            "positions": len(self.divergence),
            "mean_kl": float(np.mean(self.divergence)),
            "kl_99_percent": float(np.quantile(self.divergence, 0.99)),
            "perplexity": float(np.exp(np.mean(self.surprise))),
            "same_top": float(np.mean(self.is_same_top)),
        }


class CountingReader(WeightReader):
    """Weights as a cell wants them, and how many bytes they take."""

    num_matrix_bytes = 0

    def matrix(self, name: str, out_features: int, in_features: int) -> StoredTensor:
        """Return a matrix; int8 goes through bfloat16, as it does in a float checkpoint."""
        tensor = self.stored_matrix(name, out_features, in_features)
        if self.weight_format == "int8":
            tensor = convert(tensor, "bfloat16")
        tensor = convert(tensor, self.weight_format)
        self.num_matrix_bytes += tensor.data.nbytes
        return tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class Model:
    """A decoder of one weight format."""

    config: ModelConfig
    decoder: Decoder
    weight_bytes: int

    @classmethod
    def load(cls, checkpoint: Checkpoint, weight_format: WeightFormat, threads: int) -> Model:
        """Read the weights in a format."""
        config = read_config(checkpoint)
        reader = CountingReader(checkpoint, config, weight_format)
        decoder = Decoder(config, reader, load_kernels(threads))
        return cls(config=config, decoder=decoder, weight_bytes=reader.num_matrix_bytes)

    def cache(self, kv: str, num_tokens: int) -> KVCache:
        """Reserve room for one sequence."""
        num_blocks = -(-num_tokens // BLOCK_SIZE)
        return KVCache.allocate(self.config, num_blocks=num_blocks, block_size=BLOCK_SIZE, dtype=KV_DTYPES[kv])

    def logits(self, ids: np.ndarray, kv: str, bits: ActivationBits, rows: np.ndarray) -> np.ndarray:
        """Return the logits of some positions of a text."""
        x_TD = self.decoder.forward(one_sequence(ids, 0, bits), self.cache(kv, len(ids)))
        return self.decoder.logits(x_TD[rows], bits)


def one_sequence(ids: np.ndarray, first: int, bits: ActivationBits) -> PackedBatch:
    """Pack tokens that follow `first` others of their sequence, in blocks in order."""
    length = first + len(ids)
    positions = np.arange(first, length, dtype=np.int64)
    return PackedBatch(
        token_ids=ids,
        positions=positions,
        slot_mapping=positions,
        query_start=np.array([0, len(ids)], np.int32),
        kv_len=np.array([length], np.int32),
        block_table=np.arange(-(-length // BLOCK_SIZE), dtype=np.int32)[None],
        activation_bits=bits,
    )


def pieces_of_text(tokenizer: Tokenizer, num_tokens: int) -> Iterator[np.ndarray]:
    """Yield pieces of text, at least `num_tokens` in all where the text suffices, languages in turn."""
    lengths = itertools.cycle(PIECES)
    left = num_tokens
    streams = [np.array(tokenizer.encode(text), np.int64) for text in texts()]
    while left > 0 and streams:
        stream = streams.pop(0)
        length = next(lengths)
        if len(stream) >= length:
            yield stream[:length]
            left -= length
            streams.append(stream[length:])


def texts() -> list[str]:
    """Return XQuAD's paragraphs in Chinese and in English from QWENSTACK_DATA, else the text that the tests use."""
    folder = os.environ.get("QWENSTACK_DATA")
    if not folder:
        return [FALLBACK_TEXT.read_text()]
    return [_paragraphs(Path(folder) / "reading" / f"xquad_{language}.json") for language in ("zh", "en")]


def _paragraphs(path: Path) -> str:
    articles = json.loads(path.read_text())["data"]
    return "\n".join(paragraph["context"] for article in articles[:8] for paragraph in article["paragraphs"])


def compare(theirs: np.ndarray, ours: np.ndarray, targets: np.ndarray) -> Quality:
    """Compare rows of logits, some at a time, since float64 logits are large; `targets` are the tokens that follow."""
    quality = Quality()
    for start in range(0, len(targets), 32):
        rows = slice(start, start + 32)
        p, q = (_log_softmax(logits[rows]) for logits in (theirs, ours))
        quality.divergence += (np.exp(p) * (p - q)).sum(axis=1).tolist()
        quality.surprise += (-q[np.arange(len(q)), targets[rows]]).tolist()
        quality.is_same_top += (p.argmax(axis=1) == q.argmax(axis=1)).tolist()
    return quality


def _log_softmax(logits: np.ndarray) -> np.ndarray:
    rows = logits.astype(np.float64)
    rows -= rows.max(axis=1, keepdims=True)
    return rows - np.log(np.exp(rows).sum(axis=1, keepdims=True))


def measure_quality(
    models: dict[WeightFormat, Model], classes: list[Class], pieces: list[np.ndarray], every: int
) -> dict[Class, list[Quality]]:
    """Compare each class with the reference, piece by piece."""
    results: dict[Class, list[Quality]] = {key: [] for key in classes}
    for ids in pieces:
        rows = np.arange(every - 1, len(ids) - 1, every)
        theirs = models["stored"].logits(ids, "float32", 16, rows)
        for key in classes:
            ours = models[key.weights].logits(ids, key.kv, key.bits, rows)
            results[key].append(compare(theirs, ours, ids[rows + 1]))
    return results


@dataclass(slots=True, kw_only=True)
class Speed:
    """Speed relative to the first class, round by round."""

    prefill: list[float] = field(default_factory=list[float])
    decode: list[float] = field(default_factory=list[float])

    def summary(self) -> dict[str, object]:
        """Return the medians, and every round, since a median alone hides the spread."""
        return {
            f"{phase}_{kind}": value
            for phase, ratios in (("prefill", self.prefill), ("decode", self.decode))
            for kind, value in (("ratio", round(median(ratios), 3)), ("ratios", [round(each, 2) for each in ratios]))
        }


def measure_speed(models: dict[WeightFormat, Model], classes: list[Class], rounds: int) -> dict[Class, Speed]:
    """Time each class in each round, one after the other."""
    results = {key: Speed() for key in classes}
    ids = np.random.default_rng(0).integers(0, models["stored"].config.vocab_size, CONTEXT)
    for _ in range(rounds):
        taken = {key: seconds_of(models[key.weights], key, ids) for key in classes}
        for key, (read, decoded) in taken.items():
            results[key].prefill.append(taken[classes[0]][0] / read)
            results[key].decode.append(taken[classes[0]][1] / decoded)
    return results


def seconds_of(model: Model, key: Class, ids: np.ndarray) -> tuple[float, float]:
    """Return how long reading a prompt takes, and then decoding."""
    cache = model.cache(key.kv, len(ids) + DECODED)
    start = time.perf_counter()
    x_TD = model.decoder.forward(one_sequence(ids, 0, key.bits), cache)
    model.decoder.logits(x_TD[-1:], key.bits)
    read = time.perf_counter()
    for at in range(DECODED):
        x_TD = model.decoder.forward(one_sequence(ids[at : at + 1], len(ids) + at, key.bits), cache)
        model.decoder.logits(x_TD, key.bits)
    return read - start, time.perf_counter() - read


def main() -> None:
    """Print a line for each cell."""
    arguments = read_arguments()
    checkpoint = open_checkpoint(locate(arguments.model).path)
    formats = cast("list[WeightFormat]", list(dict.fromkeys(["stored", *arguments.weights])))
    models = {weights: Model.load(checkpoint, weights, arguments.threads) for weights in formats}
    cells = [
        Cell(weights=weights, kv=kv, activations=activations)
        for weights, kv, activations in itertools.product(arguments.weights, arguments.kv, arguments.activations)
        if weights != "bfloat16" or activations == arguments.activations[0]  # floats meet activations unrounded
    ]
    pieces = list(pieces_of_text(load_tokenizer(checkpoint), arguments.tokens))
    class_of = {cell: [cell.class_of(length, arguments.short_prompt_tokens) for length in PIECES] for cell in cells}
    classes = list(dict.fromkeys(itertools.chain.from_iterable(class_of.values())))
    quality = measure_quality(models, classes, pieces, arguments.every)
    speed = measure_speed(models, classes, arguments.rounds)
    for cell in cells:
        report: dict[str, object] = asdict(cell) | {"weight_bytes": models[cell.weights].weight_bytes}
        report["kv_bytes_per_token"] = kv_bytes_per_token(models[cell.weights].config, KV_DTYPES[cell.kv])
        if pieces:
            mixed = Quality()
            for at, ids in enumerate(pieces):
                mixed.extend(quality[cell.class_of(len(ids), arguments.short_prompt_tokens)][at])
            report |= mixed.summary()
        if arguments.rounds and cell.activations != "by_length":  # its requests are as fast as their class
            report |= speed[class_of[cell][0]].summary()
        print_report(report, as_json=arguments.json)


def read_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", default="qwen2.5-coder-0.5b")
    parser.add_argument("--weights", nargs="+", default=["stored"], choices=get_args(WeightFormat))
    parser.add_argument("--kv", nargs="+", default=["float16", "bfloat16", "int8"], choices=list(KV_DTYPES))
    parser.add_argument("--activations", nargs="+", default=["8", "16", "by_length"], choices=get_args(Activations))
    parser.add_argument("--short-prompt-tokens", type=int, default=256, help="the limit of by_length")
    parser.add_argument("--tokens", type=int, default=2048, help="of text; 0: only speed")
    parser.add_argument("--every", type=int, default=1, help="score one position out of so many")
    parser.add_argument("--rounds", type=int, default=5, help="of the speed measurement; 0: only quality")
    parser.add_argument("--threads", type=int, default=num_cores())
    parser.add_argument("--json", action="store_true", help="one JSON object for each cell")
    return parser.parse_args()


def print_report(report: dict[str, object], *, as_json: bool) -> None:
    """Print one cell."""
    if as_json:
        print(json.dumps(report), flush=True)
        return
    shown = {name: value for name, value in report.items() if not isinstance(value, list)}
    words = (f"{name} {value:.4g}" if isinstance(value, float) else f"{name} {value}" for name, value in shown.items())
    print("  ".join(words), flush=True)


if __name__ == "__main__":
    main()
