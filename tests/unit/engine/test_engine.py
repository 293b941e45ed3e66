"""The engine on a toy model: whatever happens around a request, its tokens are those it would get alone."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.toy import EOS, VOCABULARY, ToyTokenizer, toy_logits, toy_model

from qwenstack.core.errors import CapacityError, RequestError
from qwenstack.core.outputs import CompletionOutput, OutputDelta
from qwenstack.core.request_options import RequestOptions
from qwenstack.core.sampling_params import SamplingParams
from qwenstack.engine.engine import Engine
from qwenstack.engine.sampler import TokenHistory, choose_token, uniform_number
from qwenstack.engine.speculation import DraftRequest

GREEDY = SamplingParams(temperature=0, max_tokens=20)


def alone(prompt: list[int], params: SamplingParams, index: int = 0) -> list[int]:
    """Generate by the book: all tokens so far, one choice, again."""
    tokens, history = list(prompt), TokenHistory(np.unique(np.array(prompt)))
    assert params.max_tokens is not None
    for position in range(params.max_tokens):
        forbidden = (EOS,) if position < params.min_tokens and not params.ignore_eos else ()
        uniform = uniform_number(params.seed or 0, index, position)
        token = choose_token(toy_logits(tokens), params, history, forbidden_ids=forbidden, uniform=uniform)
        tokens.append(token)
        history.add(token)
        if token == EOS and not params.ignore_eos:
            break
    return tokens[len(prompt) :]


def collect(deltas: list[OutputDelta], outputs: dict[tuple[str, int], CompletionOutput]) -> None:
    for delta in deltas:
        output = outputs.setdefault((delta.request_id, delta.index), CompletionOutput(index=delta.index))
        assert output.finish_reason is None, "nothing comes after the end"
        output.text += delta.text
        output.token_ids.extend(delta.token_ids)
        output.finish_reason = delta.finish_reason
        output.stop_reason = delta.stop_reason


def run(engine: Engine) -> dict[tuple[str, int], CompletionOutput]:
    outputs: dict[tuple[str, int], CompletionOutput] = {}
    while engine.has_work:
        collect(engine.step(), outputs)
        engine.check_integrity()
    return outputs


prompts = st.lists(st.integers(0, VOCABULARY - 1), min_size=1, max_size=60)
choices = st.builds(
    SamplingParams,
    temperature=st.sampled_from([0.0, 0.7, 1.3]),
    top_k=st.sampled_from([0, 5]),
    top_p=st.sampled_from([1.0, 0.8]),
    repetition_penalty=st.sampled_from([1.0, 1.3]),
    frequency_penalty=st.sampled_from([0.0, 0.5]),
    max_tokens=st.integers(3, 40),
    min_tokens=st.integers(0, 3),
    ignore_eos=st.booleans(),
    seed=st.integers(0, 2**40),
    n=st.integers(1, 2),
)


@settings(max_examples=60, deadline=None)
@given(
    requests=st.lists(st.tuples(prompts, choices, st.integers(0, 10)), min_size=1, max_size=8),
    streams=st.lists(st.booleans(), min_size=8, max_size=8),
    num_blocks=st.integers(17, 40),
    budget=st.sampled_from([16, 17, 40, 200]),
    seats=st.integers(1, 12),
    aborts=st.lists(st.tuples(st.integers(0, 7), st.integers(0, 40)), max_size=3),
)
def test_nobody_notices_the_others(
    requests: list[tuple[list[int], SamplingParams, int]],
    streams: list[bool],
    num_blocks: int,
    budget: int,
    seats: int,
    aborts: list[tuple[int, int]],
) -> None:
    engine = Engine(toy_model(num_blocks=num_blocks, max_num_batched_tokens=budget, max_num_seqs=seats))
    outputs: dict[tuple[str, int], CompletionOutput] = {}
    aborted: set[int] = set()
    step = 0
    arrived = 0
    while arrived < len(requests) or engine.has_work:
        for number, (prompt, params, arrival) in enumerate(requests):
            if arrival == min(step, 10) and step <= 10:
                engine.add_request(str(number), prompt, params, RequestOptions(stream=streams[number]))
                arrived += 1
        for number, moment in aborts:
            if moment == step and number < len(requests) and requests[number][2] <= step:
                engine.abort(str(number))
                aborted.add(number)
        collect(engine.step(), outputs)
        engine.check_integrity()
        step += 1
        assert step < 5000, "somebody starves"
    assert engine.stats().num_blocks_free == num_blocks
    for number, (prompt, params, _) in enumerate(requests):
        for index in range(params.n):
            output = outputs.get((str(number), index))
            expected = alone(prompt, params, index)
            if number in aborted and (output is None or output.finish_reason is None):
                assert output is None or output.token_ids == expected[: len(output.token_ids)]
                continue
            assert output is not None
            assert output.token_ids == expected
            ended = expected[-1] == EOS and not params.ignore_eos
            assert output.finish_reason == ("stop" if ended else "length")


def test_preemption_happens_and_changes_nothing() -> None:
    engine = Engine(toy_model(num_blocks=17, max_num_seqs=8))
    params = SamplingParams(temperature=0, max_tokens=60, ignore_eos=True)
    for number in range(6):
        engine.add_request(str(number), [number] * 20, params)
    outputs = run(engine)
    assert engine.stats().num_preemptions > 0
    for number in range(6):
        assert outputs[(str(number), 0)].token_ids == alone([number] * 20, params)


def test_an_answer_that_is_wanted_whole_comes_in_few_pieces() -> None:
    params = SamplingParams(temperature=0, max_tokens=50, ignore_eos=True, logprobs=2)
    deltas: dict[bool, list[OutputDelta]] = {}
    for stream in (True, False):
        engine = Engine(toy_model())
        engine.add_request("a", [1, 2, 3], params, RequestOptions(stream=stream))
        told = [engine.step()]
        assert told[0][0].num_generated_tokens == 1, "the first token is not held back"
        while engine.has_work:
            told.append(engine.step())
        deltas[stream] = [delta for step in told for delta in step]
    whole, pieces = (CompletionOutput(index=0, logprobs=[]) for _ in range(2))
    for delta in deltas[True]:
        pieces.add(delta)
    for delta in deltas[False]:
        whole.add(delta)
    assert whole == pieces
    assert whole.num_generated_tokens == 50
    assert len(deltas[False]) == 5, "1, 16, 16, 16 and the rest"


def test_what_was_not_told_yet_is_told_before_a_failure_of_the_whole_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    model = toy_model()
    engine = Engine(model)
    engine.add_request("a", [1, 2, 3], SamplingParams(temperature=0, max_tokens=50), RequestOptions(stream=False))
    told = [delta for _ in range(12) for delta in engine.step()]

    def fail(*_: object) -> np.ndarray:
        raise MemoryError

    monkeypatch.setattr(type(model.decoder), "forward", fail)
    told += engine.step()
    assert told[-1].finish_reason == "error"
    assert sum(delta.num_generated_tokens for delta in told) == engine.stats().generation_tokens == 12


@settings(max_examples=60, deadline=None)
@given(prompt=prompts, stops=st.lists(st.text("abcdefgh中好ABC ", min_size=1, max_size=2), min_size=1, max_size=4))
def test_text_ids_and_logprobs_are_cut_together(prompt: list[int], stops: list[str]) -> None:
    params = SamplingParams(temperature=0, max_tokens=40, ignore_eos=True, stop=stops, logprobs=0)
    engine = Engine(toy_model())
    engine.add_request("a", prompt, params)
    text, ids, num_logprobs, last = "", [], 0, None
    while engine.has_work:
        for delta in engine.step():
            text += delta.text
            ids.extend(delta.token_ids)
            num_logprobs += len(delta.logprobs or ())
            last = delta
    tokens = alone(prompt, SamplingParams(temperature=0, max_tokens=40, ignore_eos=True))
    tokenizer = ToyTokenizer()
    whole = b"".join(b"" if token == EOS else tokenizer.token_bytes(token) for token in tokens).decode(errors="replace")
    cuts = [(whole.find(stop) + len(stop), -len(stop), stop) for stop in stops if stop in whole]
    assert last is not None
    assert ids == tokens[: len(ids)]
    assert num_logprobs == len(ids)
    if cuts:
        end, length, stop = min(cuts)
        assert text == whole[: end + length]
        assert (last.finish_reason, last.stop_reason) == ("stop", stop)
        spoken = b"".join(tokenizer.token_bytes(token) for token in ids if token != EOS).decode(errors="replace")
        assert len(spoken) <= len(text) + 1
    else:
        assert text == whole
        assert ids == tokens
        assert last.finish_reason == "length"


def test_prompt_logprobs_are_the_same_however_the_prompt_is_cut() -> None:
    prompt = [int(token) for token in np.random.default_rng(1).integers(0, VOCABULARY, 70)]
    params = SamplingParams(temperature=0, max_tokens=1, prompt_logprobs=2)
    for budget in (16, 31, 200):
        engine = Engine(toy_model(max_num_batched_tokens=budget))
        engine.add_request("a", prompt, params)
        deltas: list[OutputDelta] = []
        while engine.has_work:
            deltas.extend(engine.step())
        scored = deltas[0].prompt_logprobs
        assert scored is not None
        assert len(scored) == len(prompt)
        assert scored[0] is None
        for at, logprob in enumerate(scored[1:], start=1):
            row = toy_logits(prompt[:at]).astype(np.float64)
            assert logprob is not None
            assert logprob.token_id == prompt[at]
            assert logprob.logprob == pytest.approx(row[prompt[at]] - np.log(np.exp(row).sum()), abs=1e-5)


@pytest.mark.parametrize(
    ("prompt", "options", "param"),
    [
        ([], {}, "prompt"),
        ([VOCABULARY], {}, "prompt"),
        ([-1], {}, "prompt"),
        ([1] * 128, {}, "messages"),
        ([1] * 100, {"max_tokens": 29}, "max_tokens"),
        ([1], {"logit_bias": {VOCABULARY: 1.0}}, "logit_bias"),
        ([1], {"stop_token_ids": [-1]}, "stop_token_ids"),
    ],
)
def test_a_wrong_request_is_refused_and_leaves_no_trace(prompt: list[int], options: dict[str, Any], param: str) -> None:
    engine = Engine(toy_model())
    with pytest.raises(RequestError) as refused:
        engine.add_request("a", prompt, SamplingParams(**options))
    assert refused.value.param == param
    assert not engine.has_work


def test_a_full_queue_says_so() -> None:
    engine = Engine(toy_model(max_num_seqs=1, max_num_waiting=2))
    for number in range(3):
        engine.add_request(str(number), [1], GREEDY)
    with pytest.raises(CapacityError, match="waiting"):
        engine.add_request("one too many", [1], GREEDY)


def test_more_answers_than_places_can_never_be_taken() -> None:
    engine = Engine(toy_model(max_num_seqs=1, max_num_waiting=0))
    with pytest.raises(RequestError) as refused:
        engine.add_request("a", [1], SamplingParams(n=2))
    assert refused.value.param == "n"
    engine.add_request("b", [1], GREEDY)
    with pytest.raises(CapacityError):
        engine.add_request("c", [1], GREEDY)


def test_answers_of_one_request_leave_together_wherever_they_are() -> None:
    engine = Engine(toy_model(num_blocks=17, max_num_seqs=3))
    long = SamplingParams(temperature=0.9, seed=1, max_tokens=60, ignore_eos=True, n=6)
    engine.add_request("many", [5] * 20, long)
    engine.add_request("other", [6] * 20, GREEDY)
    outputs: dict[tuple[str, int], CompletionOutput] = {}
    for _ in range(30):
        collect(engine.step(), outputs)
    assert engine.abort("many")
    engine.check_integrity()
    assert not engine.abort("many")
    while engine.has_work:
        collect(engine.step(), outputs)
    assert outputs[("other", 0)].token_ids == alone([6] * 20, GREEDY)
    assert engine.stats().num_blocks_free == 17


def test_a_failing_step_ends_its_requests_and_not_the_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    model = toy_model()
    engine = Engine(model)
    engine.add_request("a", [1, 2], GREEDY)

    def broken(*_: object) -> np.ndarray:
        raise FloatingPointError("boom")

    with monkeypatch.context() as patched:
        patched.setattr(type(model.decoder), "forward", broken)
        (delta,) = engine.step()
    assert delta.finish_reason == "error"
    assert delta.error is not None
    assert "boom" in delta.error
    engine.add_request("b", [3], GREEDY)
    assert run(engine)[("b", 0)].token_ids == alone([3], GREEDY)


def test_logits_that_are_not_numbers_end_one_request_only(monkeypatch: pytest.MonkeyPatch) -> None:
    model = toy_model()
    engine = Engine(model)
    honest = type(model.decoder).logits
    monkeypatch.setattr(
        type(model.decoder),
        "logits",
        lambda decoder, x, bits, **_: np.concatenate([x[:1] * np.nan, honest(decoder, x[1:])]),
    )
    engine.add_request("bad", [1], SamplingParams(temperature=0, max_tokens=1))
    engine.add_request("good", [2], SamplingParams(temperature=0, max_tokens=1))
    outputs = run(engine)
    assert outputs[("bad", 0)].finish_reason == "error"
    assert outputs[("good", 0)].token_ids == alone([2], SamplingParams(temperature=0, max_tokens=1))


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("num_guessed", [0, 3, 7])
def test_what_was_chosen_before_a_failure_is_told_however_far_was_guessed(
    num_guessed: int, stream: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    params = SamplingParams(temperature=0, max_tokens=20, ignore_eos=True)
    prompt = [7, 3, 9]
    answer = alone(prompt, params)
    broken_row = toy_logits([*prompt, *answer[:5]])
    model = toy_model()

    def logits(_decoder: object, x_RD: np.ndarray, _bits: int, **_: object) -> np.ndarray:
        return np.where((x_RD == broken_row).all(1, keepdims=True), np.nan, x_RD)

    class Guesser:
        def propose(self, requests: list[DraftRequest]) -> list[list[int]]:
            return [answer[len(request.output_token_ids) :][: min(num_guessed, request.limit)] for request in requests]

        def forget(self, key: int) -> None: ...

    monkeypatch.setattr(type(model.decoder), "logits", logits)
    engine = Engine(model, speculator=Guesser() if num_guessed else None)
    engine.add_request("a", prompt, params, RequestOptions(stream=stream))
    output = run(engine)[("a", 0)]
    assert output.token_ids == answer[:5]
    assert output.finish_reason == "error"
