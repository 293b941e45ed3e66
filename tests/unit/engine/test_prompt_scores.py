"""The scores of a prompt: computed once for all of its answers, and told before any of them has begun."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st
from support.toy import VOCABULARY, toy_model

from qwenstack.core.outputs import OutputDelta
from qwenstack.core.request_options import RequestOptions
from qwenstack.core.sampling_params import SamplingParams
from qwenstack.engine.engine import Engine

prompts = st.lists(st.integers(0, VOCABULARY - 1), min_size=1, max_size=60)
options = st.builds(
    RequestOptions,
    tenant=st.sampled_from(["", "a"]),
    priority=st.integers(-1, 1),
    prefix_cache=st.booleans(),
    speculation=st.booleans(),
    stream=st.booleans(),
)


@settings(max_examples=150, deadline=None)
@given(
    requests=st.lists(st.tuples(prompts, st.integers(1, 4), options, st.integers(0, 10)), min_size=1, max_size=6),
    num_blocks=st.integers(17, 40),
    budget=st.sampled_from([16, 17, 40, 200]),
    seats=st.integers(1, 12),
)
def test_the_first_answer_brings_the_scores_before_the_others_begin(
    requests: list[tuple[list[int], int, RequestOptions, int]], num_blocks: int, budget: int, seats: int
) -> None:
    engine = Engine(toy_model(num_blocks=num_blocks, max_num_batched_tokens=budget, max_num_seqs=seats))
    deltas: list[OutputDelta] = []
    for step in range(11):
        for number, (prompt, n, chosen, arrival) in enumerate(requests):
            if arrival == step:
                params = SamplingParams(max_tokens=20, seed=number, n=n, logprobs=0, prompt_logprobs=0)
                engine.add_request(str(number), prompt, params, chosen)
        deltas.extend(engine.step())
    while engine.has_work:
        deltas.extend(engine.step())
    for number, (prompt, _, _, _) in enumerate(requests):
        first, *others = [delta for delta in deltas if delta.request_id == str(number)]
        assert first.index == 0
        assert first.prompt_logprobs is not None
        assert len(first.prompt_logprobs) == len(prompt)
        assert all(delta.prompt_logprobs is None for delta in others)
