"""Measure speculation: tokens a step, when it switches itself off, and its speed against the engine without it.

One JSON line for each prompt of `benches/data/speculation_prompts.json`, then one for each class. The answers are those
of temperature 0; speculation does not change them, so the steps it takes are counted by replaying them.

    python benches/speculation.py                                # the default model answers, then replay
    python benches/speculation.py --record answers.jsonl         # and keep the answers
    python benches/speculation.py --replay answers.jsonl         # without a model
    python benches/speculation.py --cost                         # time of a step by its rows
    python benches/speculation.py --pairs 3 --first 5            # speed, with and without in turn
    python benches/speculation.py --lookup                       # time of a draft at 32k tokens
"""

from __future__ import annotations

import argparse
import json
import random
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median

import numpy as np

from qwenstack.core.messages import Message
from qwenstack.core.sampling_params import SamplingParams
from qwenstack.engine.config import EngineConfig
from qwenstack.engine.engine import Engine
from qwenstack.engine.loading import LoadedModel, load_model
from qwenstack.engine.speculation import DraftRequest, NgramSpeculator, StepCost, measure_step_cost
from qwenstack.engine.speculation.replay import replay
from qwenstack.hub.pull import locate
from qwenstack.models import PackedBatch

PROMPTS = Path(__file__).parent / "data" / "speculation_prompts.json"
MAX_TOKENS = {"edits": 500, "free_text": 256}
_SWITCH_TOKENS = 32
"""Where it does not pay, drafting is to be off within so many tokens."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """A prompt and what the model says to it."""

    id: str
    kind: str
    prompt_token_ids: list[int]
    output_token_ids: list[int]


def read_prompts() -> Iterator[tuple[str, str, str]]:
    """Yield kind, name and text of every prompt."""
    for kind, prompts in json.loads(PROMPTS.read_text()).items():
        for prompt in prompts:
            text = prompt["instruction"]
            if "code" in prompt:
                text += "\n\n```" + prompt["code_language"] + "\n" + "\n".join(prompt["code"]) + "\n```"
            yield kind, prompt["id"], text


def open_model(name: str) -> LoadedModel:
    """Load a model with room for one answer at a time and a few more."""
    return load_model(EngineConfig(model_path=locate(name).path, model_name=name, max_model_len=4096, max_num_seqs=12))


def answer_all(model: LoadedModel) -> list[Answer]:
    """Let the engine answer every prompt at temperature 0, several at a time."""
    engine = Engine(model)
    answers: list[Answer] = []
    for kind, name, text in read_prompts():
        prompt_token_ids = model.tokenizer.encode_chat([Message(role="user", content=text)])
        params = SamplingParams(temperature=0.0, max_tokens=MAX_TOKENS[kind])
        engine.add_request(name, prompt_token_ids, params)
        answers.append(Answer(id=name, kind=kind, prompt_token_ids=prompt_token_ids, output_token_ids=[]))
    outputs = {answer.id: answer.output_token_ids for answer in answers}
    while engine.has_work:
        for delta in engine.step():
            outputs[delta.request_id].extend(delta.token_ids)
    return answers


def replay_all(answers: list[Answer], cost: StepCost, limit: int) -> None:
    """Print what n-gram speculation makes of known answers."""
    rows = [_replay_one(answer, cost, limit) for answer in answers if len(answer.output_token_ids) > 1]
    for row in rows:
        print(json.dumps(row))
    for kind in MAX_TOKENS:
        own = [row for row in rows if row["kind"] == kind]
        print(
            json.dumps(
                {
                    "class": kind,
                    "prompts": len(own),
                    "per_row": round(cost.per_row, 3),
                    "median_tokens_per_step": round(median(row["tokens_per_step"] for row in own), 2),
                    "median_predicted_speedup": round(median(row["predicted_speedup"] for row in own), 3),
                    "least_predicted_speedup": min(row["predicted_speedup"] for row in own),
                    "off_within_32_tokens": sum((row["off_after"] or 999) <= _SWITCH_TOKENS for row in own),
                    "on_at_32_tokens_and_paying": sum(
                        (row["off_after"] or 999) > _SWITCH_TOKENS and row["speedup_at_32"] > 1.0 for row in own
                    ),
                    "on_at_32_tokens_and_not_paying": sum(
                        (row["off_after"] or 999) > _SWITCH_TOKENS and row["speedup_at_32"] <= 1.0 for row in own
                    ),
                }
            )
        )


def _replay_one(answer: Answer, cost: StepCost, limit: int) -> dict[str, object]:
    speculator = NgramSpeculator(cost)
    num_tokens, num_steps, num_drafts, at_32 = 0, 0, 0, 1.0
    off_after: int | None = None
    for step in replay(speculator, answer.prompt_token_ids, answer.output_token_ids, limit=limit):
        num_steps += 1
        num_drafts += step.num_drafts
        if off_after is None and not speculator.is_on(0):
            off_after = num_tokens + 1  # with the first token, which the prompt gave
        num_tokens += step.num_tokens
        if num_tokens < _SWITCH_TOKENS:
            at_32 = num_tokens / (num_steps + cost.per_row * num_drafts)
    return {
        "id": answer.id,
        "kind": answer.kind,
        "tokens": num_tokens,
        "tokens_per_step": round(num_tokens / num_steps, 2),
        "drafts": num_drafts,
        "off_after": off_after,
        "speedup_at_32": round(at_32, 3),
        "predicted_speedup": round(num_tokens / (num_steps + cost.per_row * num_drafts), 3),
    }


def compare_speed(model: LoadedModel, pairs: int, first: int | None) -> None:
    """Decode each prompt with and without speculation in turn; the texts must be the same."""
    cost = measure_step_cost(model.decoder, model.kv_cache)
    ratios: dict[str, list[float]] = {kind: [] for kind in MAX_TOKENS}
    for kind, name, text in read_prompts():
        if first is not None and len(ratios[kind]) >= first:
            continue
        prompt_token_ids = model.tokenizer.encode_chat([Message(role="user", content=text)])
        params = SamplingParams(temperature=0.0, max_tokens=MAX_TOKENS[kind])
        seconds: dict[bool, list[float]] = {False: [], True: []}
        texts: set[tuple[int, ...]] = set()
        for run in range(2 * pairs):
            with_drafts = run % 2 == 1
            # A new engine each time: the prefix cache of the one before must not help.
            engine = Engine(model, speculator=NgramSpeculator(cost) if with_drafts else None)
            engine.add_request(name, prompt_token_ids, params)
            token_ids, elapsed = _decode(engine)
            texts.add(tuple(token_ids))
            seconds[with_drafts].append(elapsed)
        assert len(texts) == 1, f"{name}: speculation changed the answer"
        ratio = median(off / on for off, on in zip(seconds[False], seconds[True], strict=True))
        ratios[kind].append(ratio)
        print(json.dumps({"id": name, "kind": kind, "speedup": round(ratio, 3)}), flush=True)
    for kind, values in ratios.items():
        row = {"class": kind, "per_row": round(cost.per_row, 3), "pairs": pairs, "prompts": len(values)}
        print(json.dumps(row | {"median_speedup": round(median(values), 3), "least_speedup": round(min(values), 3)}))


def _decode(engine: Engine) -> tuple[list[int], float]:
    """Run the one request to its end; return its tokens and the seconds from the first on."""
    token_ids: list[int] = []
    start = time.perf_counter()
    while engine.has_work:
        deltas = engine.step()
        if not token_ids:
            start = time.perf_counter()
        for delta in deltas:
            token_ids.extend(delta.token_ids)
    return token_ids, time.perf_counter() - start


def measure_cost(model: LoadedModel, context: int = 256, repeats: int = 12) -> None:
    """Print the time of a step by its rows: least seconds, and the median ratio to a step of one row beside it."""
    rows = (1, 2, 3, 4, 5, 8, 12, 16)
    seconds: dict[int, list[float]] = {count: [] for count in rows}
    for _ in range(repeats):
        for count in rows:
            start = time.perf_counter()
            model.decoder.logits(model.decoder.forward(_batch(context, count, model), model.kv_cache))
            seconds[count].append(time.perf_counter() - start)
    for count in rows:
        ratio = median(own / one for own, one in zip(seconds[count], seconds[1], strict=True))
        slope = (ratio - 1) / (count - 1) if count > 1 else 0.0
        row = {"rows": count, "milliseconds": round(min(seconds[count]) * 1e3, 1), "steps": round(ratio, 2)}
        print(json.dumps(row | {"per_row": round(slope, 3)}))
    print(json.dumps({"measured_step_cost": asdict(measure_step_cost(model.decoder, model.kv_cache))}))


def _batch(context: int, count: int, model: LoadedModel) -> PackedBatch:
    positions = np.arange(context - count, context, dtype=np.int64)
    return PackedBatch(
        token_ids=np.arange(1000, 1000 + count, dtype=np.int64),
        positions=positions,
        slot_mapping=positions,
        query_start=np.array([0, count], np.int32),
        kv_len=np.array([context], np.int32),
        block_table=np.arange(-(-context // model.kv_cache.block_size), dtype=np.int32)[None],
    )


def measure_lookup(num_tokens: int = 32_768, steps: int = 500) -> None:
    """Print what drafting costs beside the model, in a long text whose words repeat."""
    rng = random.Random(0)  # noqa: S311 - a text for timing
    words = [[rng.randrange(150_000) for _ in range(rng.randint(1, 6))] for _ in range(400)]
    text: list[int] = []
    while len(text) < num_tokens + steps:
        text.extend(words[min(int(rng.expovariate(0.02)), 399)])
    output = text[num_tokens : num_tokens + 1]
    speculator = NgramSpeculator(StepCost())
    microseconds: list[float] = []
    for position in range(num_tokens + 1, num_tokens + steps):
        request = DraftRequest(key=0, prompt_token_ids=text[:num_tokens], output_token_ids=output, limit=16)
        start = time.perf_counter()
        speculator.propose([request])
        microseconds.append((time.perf_counter() - start) * 1e6)
        output.append(text[position])
    later = sorted(microseconds[1:])
    row = {"tokens": num_tokens, "index_microseconds": round(microseconds[0]), "median_microseconds": median(later)}
    print(json.dumps(row | {"p90_microseconds": later[len(later) * 9 // 10]}))


def main() -> None:
    """Run what was asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="qwen2.5-coder-0.5b")
    parser.add_argument("--limit", type=int, default=16, help="most drafts a step, in a replay")
    parser.add_argument("--per-row", type=float, help="cost of a row in steps, in a replay; measured if not given")
    parser.add_argument("--first", type=int, help="only so many prompts of each class, with --pairs")
    mode = parser.add_mutually_exclusive_group()
    mode.add_argument("--record", type=Path, metavar="FILE")
    mode.add_argument("--replay", type=Path, metavar="FILE")
    mode.add_argument("--pairs", type=int, metavar="N")
    mode.add_argument("--cost", action="store_true")
    mode.add_argument("--lookup", action="store_true")
    arguments = parser.parse_args()
    if arguments.lookup:
        measure_lookup()
        return
    if arguments.replay is not None:
        answers = [Answer(**json.loads(line)) for line in arguments.replay.read_text().splitlines()]
        cost = StepCost() if arguments.per_row is None else StepCost(per_row=arguments.per_row)
        replay_all(answers, cost, arguments.limit)
        return
    model = open_model(arguments.model)
    if arguments.cost:
        measure_cost(model)
    elif arguments.pairs is not None:
        compare_speed(model, arguments.pairs, arguments.first)
    else:
        answers = answer_all(model)
        if arguments.record is not None:
            lines = [json.dumps(asdict(answer), separators=(",", ":")) for answer in answers]
            arguments.record.write_text("\n".join(lines) + "\n")
        cost = measure_step_cost(model.decoder, model.kv_cache)
        replay_all(answers, cost if arguments.per_row is None else StepCost(per_row=arguments.per_row), arguments.limit)


if __name__ == "__main__":
    main()
