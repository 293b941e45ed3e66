"""Blocks, plan, prefix cache and queue together, driven through any order of events against a model of a few lines."""

from __future__ import annotations

import os
from collections import Counter

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, multiple, rule
from support.clairvoyant import Clairvoyant
from support.toy import EOS, VOCABULARY, toy_logits, toy_model

from qwenstack.core.errors import CapacityError
from qwenstack.core.outputs import OutputDelta
from qwenstack.core.request_options import RequestOptions
from qwenstack.core.sampling_params import SamplingParams
from qwenstack.engine.engine import Engine
from qwenstack.engine.sampler import TokenHistory, choose_token, uniform_number
from qwenstack.engine.scheduler import blocks_for

pytestmark = pytest.mark.timeout(7200)

BLOCK = 8
NUM_BLOCKS = 24
SEATS = 5
BUDGET = 24
PLACES = 14
OWN_PLACES = 6
"""Of the nine places to wait, what one tenant may have."""
MOST_STEPS = 4000
"""Far more than all requests of a run take one after the other."""
EXAMPLES, STEPS = (int(number) for number in os.environ.get("QWENSTACK_STATEFUL", "500x100").split("x"))

BASES = [[int(token) for token in np.random.default_rng(seed).integers(0, 60, 80)] for seed in range(2)]


def by_the_book(prompt: list[int], params: SamplingParams, index: int) -> list[int]:
    """Generate with nobody else there: all tokens so far, one choice, again."""
    tokens, history = list(prompt), TokenHistory(np.unique(np.array(prompt)))
    assert params.max_tokens is not None
    for position in range(params.max_tokens):
        uniform = uniform_number(params.seed or 0, index, position)
        token = choose_token(toy_logits(tokens), params, history, forbidden_ids=(), uniform=uniform)
        tokens.append(token)
        history.add(token)
        if token == EOS:
            break
    return tokens[len(prompt) :]


class EngineMachine(RuleBasedStateMachine):
    """Adds, steps and aborts; the model knows what each answer must become."""

    requests = Bundle("requests")

    def __init__(self) -> None:
        super().__init__()
        self.answers: dict[tuple[int, ...], list[list[int]]] = {}
        guesses = Clairvoyant(self.answers, vocab_size=VOCABULARY, error_rate=0.3)
        self.engine = Engine(
            toy_model(
                num_blocks=NUM_BLOCKS,
                block_size=BLOCK,
                max_num_seqs=SEATS,
                max_num_batched_tokens=BUDGET,
                max_num_waiting=PLACES - SEATS,
            ),
            speculator=guesses,
        )
        self.next_name = 0
        self.expected: dict[tuple[str, int], list[int]] = {}
        self.received: dict[tuple[str, int], list[int]] = {}
        self.ended: set[tuple[str, int]] = set()
        self.tenants: dict[str, str] = {}
        self.live: Counter[str] = Counter()
        self.seen_by: dict[str, set[tuple[int, ...]]] = {}
        self.num_computed = 0
        self._watch_forward()

    def _watch_forward(self) -> None:
        """Note how many tokens each forward pass computes."""
        decoder, sizes = self.engine.model.decoder, self
        honest = decoder.forward

        def forward(batch, kv_cache):
            sizes.num_computed = len(batch.token_ids)
            self._check_nobody_writes_what_others_read(batch)
            return honest(batch, kv_cache)

        decoder.forward = forward

    def _check_nobody_writes_what_others_read(self, batch) -> None:
        written = set((batch.slot_mapping // BLOCK).tolist())
        holders = Counter(block for sequence in self.engine._running.values() for block in sequence.blocks)
        assert all(holders[block] == 1 for block in written), "(3) a block that is written has one holder"
        assert not written & set(self.engine._blocks._prefixes._by_block), "(5) a cached block does not change"

    @rule(
        target=requests,
        base=st.sampled_from(BASES),
        size=st.integers(1, 60),
        own=st.lists(st.integers(0, 60), max_size=2),
        max_tokens=st.integers(1, 20),
        temperature=st.sampled_from([0.0, 1.0]),
        n=st.sampled_from([1, 1, 2, 3]),
        tenant=st.sampled_from(["", "a", "b"]),
        priority=st.sampled_from([-1, 0, 0, 1]),
        cached=st.sampled_from([True, True, True, False]),
    )
    def add(self, base, size, own, max_tokens, temperature, n, tenant, priority, cached):
        name = str(self.next_name)
        self.next_name += 1
        prompt = [*base[:size], *own]
        params = SamplingParams(temperature=temperature, seed=7, max_tokens=max_tokens, n=n)
        options = RequestOptions(tenant=tenant, priority=priority, prefix_cache=cached)
        in_house = sum(self.live.values())
        is_greedy = bool(tenant) and self.engine._waiting.count_of(tenant) + n > OWN_PLACES
        try:
            self.engine.add_request(name, prompt, params, options)
        except CapacityError:
            assert in_house + n > PLACES or is_greedy, "refused only when full"
            return multiple()
        assert in_house + n <= PLACES
        assert not is_greedy
        self.tenants[name] = tenant
        self.live[name] = n
        answers = [by_the_book(prompt, params, index) for index in range(n)]
        self.answers.setdefault(tuple(prompt), []).extend(answers)
        for index, answer in enumerate(answers):
            self.expected[name, index] = answer
            self.received[name, index] = []
        return name

    @rule(count=st.integers(1, 12))
    def step(self, count):
        for _ in range(count):
            self._step()

    @rule(name=consumes(requests))
    def abort(self, name):
        assert self.engine.abort(name) == (self.live[name] > 0)
        self.live[name] = 0
        for key in self.expected:
            if key[0] == name:
                self.ended.add(key)
        assert not any(one.request_id == name for one in self.engine._running.values()), "(6) nothing is left"

    def _step(self) -> None:
        self.num_computed = 0
        for delta in self.engine.step():
            self._receive(delta)
        assert self.num_computed <= BUDGET, "(7) the token budget holds"

    def _receive(self, delta: OutputDelta) -> None:
        key = (delta.request_id, delta.index)
        assert key not in self.ended, "(12) nothing comes after the end"
        assert delta.error is None
        self.received[key].extend(delta.token_ids)
        expected = self.expected[key]
        assert self.received[key] == expected[: len(self.received[key])], "(9) the tokens are those of a single request"
        if delta.finish_reason is not None:
            assert self.received[key] == expected, "(10) one end, with all its tokens"
            self.ended.add(key)
            self.live[delta.request_id] -= 1

    @invariant()
    def the_books_balance(self) -> None:
        self.engine.check_integrity()  # (1) and (2): free, idle and held blocks, and the holders of each
        running = list(self.engine._running.values())
        assert len(running) <= SEATS
        for sequence in running:
            assert len(sequence.blocks) == blocks_for(sequence.num_computed_tokens, BLOCK), "(4) no block too many"
        for cached in self.engine._blocks._prefixes._by_key.values():
            assert len(cached.token_ids) == BLOCK, "(5) cached blocks are full"
        stats = self.engine.stats()
        assert stats.num_requests_running + stats.num_requests_waiting == sum(self.live.values())
        assert min(stats.num_blocks_free, stats.prompt_tokens, stats.generation_tokens) >= 0, "(13)"

    @invariant()
    def tenants_share_no_block(self) -> None:
        owner: dict[int, str] = {}
        for sequence in self.engine._running.values():
            for block in sequence.blocks:
                assert owner.setdefault(block, sequence.options.tenant) == sequence.options.tenant, "(11)"

    def teardown(self) -> None:
        for _ in range(MOST_STEPS):  # (8) nobody waits for ever
            if not self.engine.has_work:
                break
            self._step()
        assert not self.engine.has_work
        assert set(self.expected) == self.ended, "(10) everybody got an end"
        stats = self.engine.stats()
        assert stats.num_blocks_free == stats.num_blocks_total


EngineMachine.TestCase.settings = settings(
    max_examples=EXAMPLES, stateful_step_count=STEPS, deadline=None, print_blob=True
)
test_no_order_of_events_breaks_the_engine = EngineMachine.TestCase
