"""Alone = batched = chunked = preempted = cached = speculated, bit for bit, on quantised models."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.clairvoyant import Clairvoyant
from support.engine_runs import Answers, collect, run_to_end
from support.tiny_gguf import QWEN2_Q5, QWEN3_Q8, TinyShape, write_tiny_gguf

from qwenstack.core.request_options import RequestOptions
from qwenstack.core.sampling_params import SamplingParams
from qwenstack.engine.config import EngineConfig, IsaName
from qwenstack.engine.engine import Engine
from qwenstack.engine.loading import LoadedModel, load_model
from qwenstack.kernels import supported_isas
from qwenstack.models import KVCache

MAX_MODEL_LEN = 256
BASES = [[int(token) for token in np.random.default_rng(seed).integers(0, 256, 200)] for seed in range(3)]
"""Prompts are beginnings of these, with a few tokens of their own, so that many share blocks."""


@dataclasses.dataclass(frozen=True)
class Bed:
    """A loaded model and what it answers when nobody else is there."""

    model: LoadedModel
    known: dict[tuple[tuple[int, ...], str], list[list[int]]] = dataclasses.field(default_factory=dict)

    def engine(self, *, num_blocks: int, speculator: Clairvoyant | None = None, **config: int) -> Engine:
        """Return an engine with empty blocks; every one starts with NaN in it, so that reading too far is noticed."""
        cache = self.model.kv_cache
        layers = tuple(
            (np.full_like(k[:1], np.nan).repeat(num_blocks, 0), np.full_like(v[:1], np.nan).repeat(num_blocks, 0))
            for k, v in cache.layers
        )
        fresh = dataclasses.replace(
            self.model,
            config=dataclasses.replace(self.model.config, **config),
            kv_cache=KVCache(layers=layers, block_size=cache.block_size, num_blocks=num_blocks),
        )
        return Engine(fresh, speculator=speculator)

    def alone(self, prompt: list[int], params: SamplingParams) -> list[list[int]]:
        """Return the answers that a fresh engine gives to this request only, without cache and guesses."""
        name = (tuple(prompt), repr(params))
        if name not in self.known:
            engine = self.engine(num_blocks=MAX_MODEL_LEN // 16 * params.n + 1, max_num_batched_tokens=512)
            engine.add_request("a", prompt, params, RequestOptions(prefix_cache=False, speculation=False))
            answers = run_to_end(engine)
            self.known[name] = [answers["a", index].token_ids for index in range(params.n)]
        return self.known[name]


def load_bed(path: Path, *, isa: IsaName = "auto", **config: int) -> Bed:
    return Bed(
        load_model(EngineConfig(model_path=path, model_name="m", max_model_len=MAX_MODEL_LEN, isa=isa, **config))
    )


@pytest.fixture(scope="module", params=supported_isas())
def isa(request: pytest.FixtureRequest) -> IsaName:
    return request.param


@pytest.fixture(scope="module", params=[QWEN3_Q8, QWEN2_Q5], ids=["qwen3-q8_0-q4_0", "qwen2-q5_0-q4_1"])
def tiny(isa: IsaName, request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Bed:
    shape: TinyShape = request.param
    path = write_tiny_gguf(tmp_path_factory.mktemp("tiny") / "tiny.gguf", shape)
    bed = load_bed(path, num_threads=2, kv_cache_memory_bytes=1 << 22, isa=isa)
    assert isa in bed.model.decoder.kernels.name
    return bed


@st.composite
def prompts(draw: st.DrawFn) -> list[int]:
    base = draw(st.sampled_from(BASES))
    own = draw(st.lists(st.integers(0, 255), max_size=3))
    return [*base[: draw(st.integers(1, 120))], *own]


params_of_any_kind = st.builds(
    SamplingParams,
    temperature=st.sampled_from([0.0, 0.0, 0.8, 1.5]),
    top_k=st.sampled_from([0, 20]),
    top_p=st.sampled_from([1.0, 0.9]),
    repetition_penalty=st.sampled_from([1.0, 1.2]),
    max_tokens=st.integers(1, 30),
    ignore_eos=st.booleans(),
    seed=st.integers(0, 3),
    n=st.sampled_from([1, 1, 1, 2]),
)
options_of_any_kind = st.builds(
    RequestOptions,
    tenant=st.sampled_from(["", "a"]),
    priority=st.integers(-1, 1),
    prefix_cache=st.sampled_from([True, True, True, False]),
    speculation=st.sampled_from([True, True, True, False]),
)


@dataclasses.dataclass(frozen=True)
class Arrival:
    step: int
    prompt: list[int]
    params: SamplingParams
    options: RequestOptions
    abort_after: int | None


@st.composite
def arrivals(draw: st.DrawFn) -> Arrival:
    abort_after = draw(st.one_of(st.none(), st.none(), st.none(), st.integers(0, 20)))
    return Arrival(
        draw(st.integers(0, 25)), draw(prompts()), draw(params_of_any_kind), draw(options_of_any_kind), abort_after
    )


def serve(engine: Engine, load: list[Arrival]) -> Answers:
    """Let everybody arrive, and some leave, at their steps."""
    answers: Answers = {}
    last = max(arrival.step for arrival in load)
    for step in range(20_000):
        for name, arrival in enumerate(load):
            if arrival.step == step:
                engine.add_request(str(name), arrival.prompt, arrival.params, arrival.options)
            if arrival.abort_after is not None and arrival.step + arrival.abort_after == step:
                engine.abort(str(name))
        if step > last and not engine.has_work:
            return answers
        collect(engine.step(), answers)
        engine.check_integrity()
    raise AssertionError("somebody starves")


def check_everybody(bed: Bed, engine: Engine, load: list[Arrival], answers: Answers) -> None:
    for name, arrival in enumerate(load):
        for index, expected in enumerate(bed.alone(arrival.prompt, arrival.params)):
            answer = answers.get((str(name), index))
            if arrival.abort_after is not None and (answer is None or answer.finish_reason is None):
                assert answer is None or answer.token_ids == expected[: len(answer.token_ids)]
                continue
            assert answer is not None
            assert answer.token_ids == expected
    stats = engine.stats()
    assert stats.num_blocks_free == stats.num_blocks_total


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    load=st.lists(arrivals(), min_size=1, max_size=8),
    num_blocks=st.integers(17, 40),
    budget=st.sampled_from([16, 23, 64, 512]),
    seats=st.integers(1, 9),
    error_rate=st.sampled_from([0.0, 0.2, 0.6]),
)
def test_whatever_happens_around_a_request_its_tokens_are_those_it_gets_alone(
    tiny: Bed, load: list[Arrival], num_blocks: int, budget: int, seats: int, error_rate: float
) -> None:
    expected = {tuple(one.prompt): tiny.alone(one.prompt, one.params) for one in load}
    engine = tiny.engine(
        num_blocks=num_blocks,
        speculator=Clairvoyant(expected, vocab_size=256, error_rate=error_rate, seed=num_blocks),
        max_num_batched_tokens=max(budget, seats),
        max_num_seqs=seats,
    )
    check_everybody(tiny, engine, load, serve(engine, load))


def crowd(size: int, *, max_tokens: int, temperature: float) -> list[Arrival]:
    """Return as many requests at once, some with the same beginning."""
    rng = np.random.default_rng(size)
    return [
        Arrival(
            step=0,
            prompt=[*BASES[name % 3][: int(rng.integers(1, 120))], name],
            params=SamplingParams(temperature=temperature, seed=name, max_tokens=max_tokens, ignore_eos=True),
            options=RequestOptions(),
            abort_after=None,
        )
        for name in range(size)
    ]


@pytest.mark.parametrize("size", [1, 2, 4, 5, 16, 17])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_batch_of_any_size_gives_the_tokens_of_single_requests(tiny: Bed, size: int, temperature: float) -> None:
    load = crowd(size, max_tokens=12, temperature=temperature)
    engine = tiny.engine(num_blocks=17 * size, max_num_seqs=size, max_num_batched_tokens=512)
    check_everybody(tiny, engine, load, serve(engine, load))


def test_the_cases_meant_to_happen_do_happen(tiny: Bed) -> None:
    load = crowd(12, max_tokens=100, temperature=0.0)
    load += [dataclasses.replace(one, step=40) for one in load[:4]]
    expected = {tuple(one.prompt): tiny.alone(one.prompt, one.params) for one in load}
    guesses = Clairvoyant(expected, vocab_size=256, error_rate=0.2)
    engine = tiny.engine(num_blocks=40, speculator=guesses, max_num_seqs=8, max_num_batched_tokens=64)
    check_everybody(tiny, engine, load, serve(engine, load))
    stats = engine.stats()
    assert stats.num_preemptions > 0
    assert stats.prefix_cache_hits > 0
    assert stats.num_accepted_tokens > 100


def test_alone_is_what_the_forward_pass_says_token_by_token(tiny: Bed) -> None:
    """Without any engine: the whole text through the decoder again for every token."""
    from support.checkpoints import whole_text_batch

    prompt, params = BASES[0][:37], SamplingParams(temperature=0.0, max_tokens=20, ignore_eos=True)
    (expected,) = tiny.alone(prompt, params)
    tokens = list(prompt)
    for token in expected:
        batch = whole_text_batch(np.array(tokens))
        layers = tuple(
            (np.zeros_like(k[:1]).repeat(16, 0), np.zeros_like(v[:1]).repeat(16, 0))
            for k, v in (tiny.model.kv_cache.layers)
        )
        x_TD = tiny.model.decoder.forward(batch, KVCache(layers=layers, block_size=16, num_blocks=16))
        logits_V = tiny.model.decoder.logits(x_TD[-1:])[0, : tiny.model.card.vocab_size]
        assert int(logits_V.argmax()) == token
        tokens.append(token)


@pytest.fixture(scope="module")
def real(coder_gguf: Path) -> Bed:
    return load_bed(coder_gguf)


@pytest.mark.weights
@pytest.mark.timeout(1800)
@pytest.mark.xdist_group("real-weights")
def test_the_default_model_answers_a_crowd_as_it_answers_each_alone(real: Bed) -> None:
    """Twenty requests: 17 together, then three of them again, with guesses, few blocks and a small budget."""
    load = crowd(17, max_tokens=18, temperature=0.0)
    load += [dataclasses.replace(one, step=12) for one in load[:3]]
    load = [
        dataclasses.replace(one, params=dataclasses.replace(one.params, temperature=0.0 if at % 2 else 0.9))
        for at, one in enumerate(load)
    ]
    expected = {tuple(one.prompt): real.alone(one.prompt, one.params) for one in load}
    guesses = Clairvoyant(expected, vocab_size=1000, error_rate=0.2)
    engine = real.engine(num_blocks=36, speculator=guesses, max_num_seqs=16, max_num_batched_tokens=100)
    check_everybody(real, engine, load, serve(engine, load))
    assert engine.stats().num_preemptions > 0
    assert engine.stats().num_accepted_tokens > 0
