"""Measure what each precision costs and what it saves: bytes, distance from the file's own weights, speed.

One cell is a type of weights x a type of keys and values x a rounding of activations. Quality is the mean KL divergence
from, and the perplexity beside, the same file's dequantised weights with float32 keys and values and 16-bit activations,
over Chinese and English text in pieces of 64 to 1,024 tokens. Speed is a ratio to the first cell, measured in turns, so
that a machine that is busy with other things slows all cells alike.

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
from qwenstack.models import Decoder, KVCache, ModelConfig, PackedBatch, WeightFormat, WeightReader, read_config
from qwenstack.models import kv_bytes_per_token
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
class Cell:
    """One combination of precisions."""

    weights: WeightFormat
    kv: str
    activations: Activations

    def policy(self, short_prompt_tokens: int) -> PrecisionPolicy:
        """Return which class a prompt gets."""
        if self.activations == "by_length":
            return PrecisionPolicy(activation_bits=8, short_prompt_tokens=short_prompt_tokens)
        return PrecisionPolicy(activation_bits=16 if self.activations == "16" else 8)


@dataclass(slots=True, kw_only=True)
class Quality:
    """What was summed up over the tokens of a cell."""

    divergence: list[float] = field(default_factory=list[float])
    surprise: list[float] = field(default_factory=list[float])
    """Minus the log probability of each next token."""
    num_same_top: int = 0

    def summary(self) -> dict[str, float]:
        """Return the means."""
        return {
            "positions": len(self.divergence),
            "mean_kl": float(np.mean(self.divergence)),
            "kl_99_percent": float(np.quantile(self.divergence, 0.99)),
            "perplexity": float(np.exp(np.mean(self.surprise))),
            "same_top": self.num_same_top / len(self.divergence),
        }


class LikeABfloat16Checkpoint(WeightReader):
    """Weights that went through bfloat16 before they were converted, as those of a float checkpoint did."""

    def matrix(self, name: str, out_features: int, in_features: int) -> StoredTensor:
        """Return a matrix, converted twice."""
        return convert(convert(self.stored_matrix(name, out_features, in_features), "bfloat16"), "int8")


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
        reader_type = LikeABfloat16Checkpoint if weight_format == "int8" else WeightReader
        reader = reader_type(checkpoint, config, weight_format)
        decoder = Decoder(config, reader, load_kernels(threads))
        return cls(config=config, decoder=decoder, weight_bytes=decoder.num_weight_bytes)

    def cache(self, kv: str, num_tokens: int) -> KVCache:
        """Reserve room for one sequence."""
        num_blocks = -(-num_tokens // BLOCK_SIZE)
        return KVCache.allocate(self.config, num_blocks=num_blocks, block_size=BLOCK_SIZE, dtype=KV_DTYPES[kv])

    def logits(self, ids: np.ndarray, kv: str, bits: ActivationBits) -> np.ndarray:
        """Return the logits of every position of a text."""
        x_TD = self.decoder.forward(one_sequence(ids, 0, bits), self.cache(kv, len(ids)))
        return self.decoder.logits(x_TD, bits)


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


def compare(quality: Quality, theirs: np.ndarray, ours: np.ndarray, ids: np.ndarray) -> None:
    """Add the positions of one piece, some rows at a time: float64 logits are large."""
    for start in range(0, len(ids) - 1, 32):
        rows = slice(start, min(start + 32, len(ids) - 1))
        p, q = (_log_softmax(logits[rows]) for logits in (theirs, ours))
        quality.divergence.extend((np.exp(p) * (p - q)).sum(axis=1).tolist())
        targets = ids[rows.start + 1 : rows.stop + 1]
        quality.surprise.extend((-q[np.arange(len(targets)), targets]).tolist())
        quality.num_same_top += int((p.argmax(axis=1) == q.argmax(axis=1)).sum())


def _log_softmax(logits: np.ndarray) -> np.ndarray:
    rows = logits.astype(np.float64)
    rows -= rows.max(axis=1, keepdims=True)
    return rows - np.log(np.exp(rows).sum(axis=1, keepdims=True))


def seconds_of(model: Model, cell: Cell, bits: ActivationBits, ids: np.ndarray) -> tuple[float, float]:
    """Return how long reading a prompt and then decoding take."""
    cache = model.cache(cell.kv, len(ids) + DECODED)
    start = time.perf_counter()
    x_TD = model.decoder.forward(one_sequence(ids, 0, bits), cache)
    model.decoder.logits(x_TD[-1:], bits)
    read = time.perf_counter()
    for at in range(DECODED):
        x_TD = model.decoder.forward(one_sequence(ids[at : at + 1], len(ids) + at, bits), cache)
        model.decoder.logits(x_TD, bits)
    return read - start, time.perf_counter() - read


def measure_quality(
    models: dict[WeightFormat, Model], cells: list[Cell], pieces: list[np.ndarray], short_prompt_tokens: int
) -> dict[Cell, Quality]:
    """Compare every cell with the reference, piece by piece."""
    results = {cell: Quality() for cell in cells}
    for ids in pieces:
        theirs = models["stored"].logits(ids, "float32", 16)
        done: dict[tuple[WeightFormat, str, int], np.ndarray] = {}
        for cell in cells:
            bits = cell.policy(short_prompt_tokens).choose(len(ids))
            key = (cell.weights, cell.kv, bits)
            ours = done[key] if key in done else models[cell.weights].logits(ids, cell.kv, bits)
            if any(other.activations == "by_length" for other in cells):
                done[key] = ours
            compare(results[cell], theirs, ours, ids)
    return results


def measure_speed(
    models: dict[WeightFormat, Model], cells: list[Cell], rounds: int
) -> dict[Cell, tuple[list[float], list[float]]]:
    """Return the prefill and decode speed of each cell in each round, relative to the first cell in that round."""
    timed = [cell for cell in cells if cell.activations != "by_length"]  # its requests are of one class or the other
    ratios: dict[Cell, tuple[list[float], list[float]]] = {cell: ([], []) for cell in timed}
    ids = np.random.default_rng(0).integers(0, 10_000, CONTEXT)
    for _ in range(rounds):
        taken = {cell: seconds_of(models[cell.weights], cell, cell.policy(0).activation_bits, ids) for cell in timed}
        for cell, (read, decoded) in taken.items():
            ratios[cell][0].append(taken[timed[0]][0] / read)
            ratios[cell][1].append(taken[timed[0]][1] / decoded)
    return ratios


def main() -> None:
    """Print a line for each cell."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", default="qwen2.5-coder-0.5b")
    parser.add_argument("--weights", nargs="+", default=["stored"], choices=get_args(WeightFormat))
    parser.add_argument("--kv", nargs="+", default=["float16", "bfloat16", "int8"], choices=list(KV_DTYPES))
    parser.add_argument("--activations", nargs="+", default=["8", "16", "by_length"], choices=get_args(Activations))
    parser.add_argument("--short-prompt-tokens", type=int, default=256, help="the limit of by_length")
    parser.add_argument("--tokens", type=int, default=2048, help="of text; 0: only speed")
    parser.add_argument("--rounds", type=int, default=5, help="of the speed measurement; 0: only quality")
    parser.add_argument("--threads", type=int, default=num_cores())
    parser.add_argument("--json", action="store_true", help="one JSON object for each cell")
    arguments = parser.parse_args()
    checkpoint = open_checkpoint(locate(arguments.model).path)
    formats = cast("list[WeightFormat]", list(dict.fromkeys(["stored", *arguments.weights])))
    models = {weights: Model.load(checkpoint, weights, arguments.threads) for weights in formats}
    cells = [
        Cell(weights=weights, kv=kv, activations=activations)
        for weights, kv, activations in itertools.product(arguments.weights, arguments.kv, arguments.activations)
        if weights != "bfloat16" or activations == arguments.activations[0]  # floats meet activations unrounded
    ]
    pieces = list(pieces_of_text(load_tokenizer(checkpoint), arguments.tokens))
    quality = measure_quality(models, cells, pieces, arguments.short_prompt_tokens)
    speed = measure_speed(models, cells, arguments.rounds)
    for cell in cells:
        model = models[cell.weights]
        report: dict[str, object] = {
            **asdict(cell),
            "weight_bytes": model.weight_bytes,
            "kv_bytes_per_token": kv_bytes_per_token(model.config, KV_DTYPES[cell.kv]),
        }
        if pieces:
            report |= quality[cell].summary()
        if arguments.rounds and cell in speed:
            for phase, ratios in zip(("prefill", "decode"), speed[cell], strict=True):
                report |= {f"{phase}_ratio": round(median(ratios), 3), f"{phase}_ratios": [round(r, 2) for r in ratios]}
        print_report(report, as_json=arguments.json)


def print_report(report: dict[str, object], *, as_json: bool) -> None:
    """Print one cell."""
    if as_json:
        print(json.dumps(report), flush=True)
        return
    shown = {name: value for name, value in report.items() if not isinstance(value, list)}
    print("  ".join(f"{name} {value:.5g}" if isinstance(value, float) else f"{name} {value}" for name, value in shown.items()))


if __name__ == "__main__":
    main()
