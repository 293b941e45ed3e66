"""`qwenstack bench`: how fast it is here, with all that is needed to compare the figures.

Prompts are random token ids, fresh in every repetition, so that no cache can answer for the arithmetic.
"""

from __future__ import annotations

import dataclasses
import functools
import random
import statistics
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Protocol

from cyclopts import App, Parameter
from cyclopts.validators import Number

from qwenstack.cli.loading import engine_config, fetch_model
from qwenstack.cli.machine import describe_machine
from qwenstack.cli.needle import needle
from qwenstack.cli.options import AsJson, Assignments, ModelArgument
from qwenstack.cli.output import print_json, print_table
from qwenstack.cli.peers import peers
from qwenstack.cli.perplexity import perplexity
from qwenstack.cli.profile import Profiler, Section, print_profile
from qwenstack.cli.settings import load_settings
from qwenstack.core.errors import EngineError
from qwenstack.core.outputs import OutputDelta
from qwenstack.core.sampling_params import SamplingParams

if TYPE_CHECKING:
    from qwenstack.engine.loading import LoadedModel

bench = App(name="bench", help="Measure speed, and what a model finds in long texts.")
bench.command(needle)
bench.command(peers)
bench.command(perplexity)

_AT_LEAST_ONE = Parameter(validator=Number(gte=1))
_AT_LEAST_TWO = Parameter(validator=Number(gte=2))
_WARM_UP_TOKENS = 8
"""Enough to touch every weight and wake every thread once."""


class SteppedEngine(Protocol):
    """What a measurement needs of an engine."""

    @property
    def has_work(self) -> bool:
        """Whether a step would do anything."""
        ...

    def add_request(self, request_id: str, prompt_token_ids: Sequence[int], params: SamplingParams) -> None:
        """Queue a request."""
        ...

    def step(self) -> list[OutputDelta]:
        """Compute the next tokens."""
        ...


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """One repetition: `batch` prompts read and answered together."""

    prefill_tokens: int
    prefill_s: float
    """Until every answer has its first token."""
    decode_tokens: int
    """Generated after that moment."""
    decode_s: float

    @property
    def prefill_tokens_per_second(self) -> float:
        """How fast prompts are read."""
        return self.prefill_tokens / self.prefill_s

    @property
    def decode_tokens_per_second(self) -> float:
        """How fast answers are written, all together."""
        return self.decode_tokens / self.decode_s


@Parameter(name="*")
@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """What the engine has to do in a measurement."""

    prompt_tokens: Annotated[int, _AT_LEAST_ONE] = 512
    """Length of each prompt."""
    max_tokens: Annotated[int, _AT_LEAST_TWO] = 128
    """Length of each answer."""
    repetitions: Annotated[int, _AT_LEAST_ONE] = 5
    """Measurements; the median is reported."""
    batch: Annotated[int, _AT_LEAST_ONE] = 1
    """Prompts at the same time."""
    seed: int = 0
    """Chooses the random prompts."""


_DEFAULT_LOAD = Load()


@bench.command
def engine(
    model: ModelArgument = None,
    /,
    *,
    load: Load = _DEFAULT_LOAD,
    num_threads: Annotated[int | None, Parameter(help="Threads of the kernels.")] = None,
    profile: Annotated[
        bool, Parameter(negative="", show_default=False, help="Show where the time goes, kernel by kernel.")
    ] = False,
    as_json: AsJson = False,
    assignments: Assignments = (),
) -> None:
    """Measure how fast a model reads prompts (prefill) and writes answers (decode) in this process."""
    from qwenstack.engine.engine import Engine
    from qwenstack.engine.loading import load_model, num_cores

    settings = load_settings(assignments, {"model": model, "engine.num_threads": num_threads}).value
    config = engine_config(settings, fetch_model(settings))
    profiler = Profiler() if profile else None
    if profiler is None:
        loaded = load_model(config)
        stepped = Engine(loaded)
        run = measure
    else:
        loaded = load_model(config, instrument=profiler.instrument)
        stepped = Engine(loaded, clock=profiler)
        run = functools.partial(measure, on_section=profiler.begin)
    fresh_ids = _random_ids(random.Random(load.seed), loaded.card.vocab_size)  # noqa: S311 - prompts, not secrets
    measure(stepped, [fresh_ids(load.prompt_tokens)], max_tokens=_WARM_UP_TOKENS)
    prompts = [[fresh_ids(load.prompt_tokens) for _ in range(load.batch)] for _ in range(load.repetitions)]
    runs = [run(stepped, batch, max_tokens=load.max_tokens) for batch in prompts]
    report: dict[str, object] = {
        "model": loaded.card.id,
        "weight_format": loaded.card.weight_format,
        "kv_cache": loaded.kv_cache.dtype_name,
        "activations": str(loaded.precision),
        "kernels": loaded.decoder.kernels.name,
        **dataclasses.asdict(load),
        **summarise(runs),
        **_memory_report(loaded, num_tokens=load.batch * (load.prompt_tokens + load.max_tokens)),
        "machine": dataclasses.asdict(describe_machine()),
        **({} if profiler is None else _profile_report(profiler, config.num_threads or num_cores())),
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    if as_json:
        print_json(report)
    else:
        _print_report(report)
        if profiler is not None:
            print_profile(report)


def _memory_report(loaded: LoadedModel, *, num_tokens: int) -> dict[str, object]:
    """Return what the process takes, beside what it cannot do without: the weights and the keys and values in use."""
    from qwenstack.engine.memory import used_memory

    return {
        **dataclasses.asdict(used_memory()),
        "weight_bytes": loaded.weight_bytes,
        "kv_bytes": num_tokens * loaded.kv_cache.block_bytes() // loaded.kv_cache.block_size,
    }


def _memory_text(report: dict[str, object]) -> str:
    own = f"weights {_megabytes(report['weight_bytes'])}, keys and values {_megabytes(report['kv_bytes'])}"
    return f"{_megabytes(report['proportional_bytes'])} now, {_megabytes(report['peak_bytes'])} at most ({own})"


def _megabytes(num_bytes: object) -> str:
    return f"{num_bytes / 1e6:.0f} MB" if isinstance(num_bytes, int) else "unknown"


def _profile_report(profiler: Profiler, num_threads: int) -> dict[str, object]:
    """Return where the time went, beside what the memory could give in the same minute."""
    from qwenstack.cli.bandwidth import measure_read_bandwidth

    return {
        "profile": profiler.report(),
        "memory_bandwidth_gb_per_second": round(measure_read_bandwidth(num_threads) / 1e9, 2),
    }


def measure(
    stepped: SteppedEngine,
    prompts: Sequence[Sequence[int]],
    *,
    max_tokens: int,
    clock: Callable[[], float] = time.perf_counter,
    on_section: Callable[[Section | None], None] = lambda _: None,
) -> Run:
    """Run prompts of equal length to their end together, and time the two phases.

    `on_section` is called when one of them begins, and with None at the end.

    Raises:
        EngineError: the computation failed.
    """
    params = SamplingParams(temperature=0.0, max_tokens=max_tokens, ignore_eos=True)
    start = clock()
    for index, prompt_ids in enumerate(prompts):
        stepped.add_request(f"bench-{index}", prompt_ids, params)
    unread = {f"bench-{index}" for index in range(len(prompts))}
    all_read, decode_tokens = start, 0
    on_section("prefill")
    while stepped.has_work:
        deltas = stepped.step()
        for delta in deltas:
            if delta.finish_reason == "error":
                raise EngineError(delta.error or "The computation failed.")
        if unread:
            unread -= {delta.request_id for delta in deltas if delta.token_ids}
            all_read = clock()
            if not unread:
                on_section("decode")
        else:
            decode_tokens += sum(len(delta.token_ids) for delta in deltas)
    end = clock()
    on_section(None)
    return Run(
        prefill_tokens=sum(map(len, prompts)),
        prefill_s=all_read - start,
        decode_tokens=decode_tokens,
        decode_s=end - all_read,
    )


def summarise(runs: Sequence[Run]) -> dict[str, object]:
    """Return the medians, and every single figure, since a median alone hides the spread."""
    prefill = [run.prefill_tokens_per_second for run in runs]
    decode = [run.decode_tokens_per_second for run in runs]
    return {
        "prefill_tokens_per_second": round(statistics.median(prefill), 2),
        "decode_tokens_per_second": round(statistics.median(decode), 2),
        "ttft_ms": round(statistics.median(run.prefill_s for run in runs) * 1e3, 2),
        "prefill_tokens_per_second_runs": [round(value, 2) for value in prefill],
        "decode_tokens_per_second_runs": [round(value, 2) for value in decode],
    }


def _random_ids(source: random.Random, vocab_size: int) -> Callable[[int], list[int]]:
    return lambda count: [source.randrange(vocab_size) for _ in range(count)]


def _print_report(report: dict[str, object]) -> None:
    print_table(
        ("PHASE", "TOKENS/S (MEDIAN)", "ALL"),
        [
            (phase, str(report[f"{phase}_tokens_per_second"]), str(report[f"{phase}_tokens_per_second_runs"]))
            for phase in ("prefill", "decode")
        ],
    )
    machine = describe_machine()
    print_table(
        ("", ""),
        [
            ("model", f"{report['model']} ({report['weight_format']})"),
            ("keys and values", str(report["kv_cache"])),
            ("activations", str(report["activations"])),
            ("kernels", str(report["kernels"])),
            ("load", f"{report['batch']} x {report['prompt_tokens']} + {report['max_tokens']} tokens"),
            ("memory", _memory_text(report)),
            ("machine", f"{machine.cpu}, {machine.num_cores} cores, {machine.platform}"),
        ],
    )
