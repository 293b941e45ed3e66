"""Drafts of a small model: always its own greedy continuation of the true text, whatever happened before."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.checkpoints import save_random, whole_text_batch
from transformers import Qwen3Config

from qwenstack.core.errors import CapacityError, ConfigError
from qwenstack.engine.config import EngineConfig
from qwenstack.engine.loading import load_model
from qwenstack.engine.speculation import DraftModel, DraftModelSpeculator, DraftRequest, StepCost, load_draft_model
from qwenstack.engine.speculation.draft_model import check_same_vocabulary
from qwenstack.hub.checkpoint import open_checkpoint
from qwenstack.kernels import load_kernels
from qwenstack.models import Decoder, KVCache, WeightReader, read_config

VOCABULARY = 37
BLOCK_SIZE = 8
LIMIT = 4
ALWAYS = StepCost(per_row=0.01)
"""So cheap that a draft nearly always pays."""


@pytest.fixture(scope="module")
def decoder(tmp_path_factory: pytest.TempPathFactory) -> Decoder:
    config = Qwen3Config(
        hidden_size=32,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        intermediate_size=40,
        num_hidden_layers=2,
        vocab_size=VOCABULARY + 3,  # padding rows, which must not be drafted
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=None,
    )
    checkpoint = open_checkpoint(save_random(tmp_path_factory.mktemp("draft"), config))
    model_config = read_config(checkpoint)
    return Decoder(model_config, WeightReader(checkpoint, model_config), load_kernels(1))


def draft_model(decoder: Decoder, num_blocks: int) -> DraftModel:
    dtype = np.dtype(np.float32)
    return DraftModel(
        decoder=decoder,
        kv_cache=KVCache.allocate(decoder.config, num_blocks=num_blocks, block_size=BLOCK_SIZE, dtype=dtype),
        vocab_size=VOCABULARY,
        relative_size=1.0,
    )


def likeliest(decoder: Decoder, text: list[int]) -> list[int]:
    """Return the likeliest token after each position, computed from the whole text at once."""
    batch = whole_text_batch(np.array(text))
    cache = KVCache.allocate(
        decoder.config, num_blocks=batch.block_table.size, block_size=16, dtype=np.dtype(np.float32)
    )
    return decoder.logits(decoder.forward(batch, cache))[:, :VOCABULARY].argmax(axis=1).tolist()


def is_greedy(decoder: Decoder, text: list[int], drafts: list[int]) -> bool:
    """Whether each draft is the likeliest token after the text and the drafts before it."""
    return likeliest(decoder, [*text, *drafts])[len(text) - 1 : -1] == drafts


def request(key: int, prompt: list[int], output: list[int], limit: int = LIMIT) -> DraftRequest:
    return DraftRequest(key=key, prompt_token_ids=prompt, output_token_ids=output, limit=limit)


tokens = st.integers(0, VOCABULARY - 1)
Action = tuple[int, str, int]
actions = st.lists(
    st.tuples(st.integers(0, 2), st.sampled_from(["accept", "accept", "reject", "pause", "stand", "forget"]), tokens),
    max_size=14,
)


@given(st.lists(st.lists(tokens, min_size=1, max_size=20), min_size=3, max_size=3), actions)
@settings(deadline=None, max_examples=25)
def test_drafts_are_the_models_own_continuation_of_what_was_chosen(
    decoder: Decoder, prompts: list[list[int]], actions: list[Action]
) -> None:
    speculator = DraftModelSpeculator(draft_model(decoder, num_blocks=40), cost=ALWAYS)
    outputs: list[list[int]] = [[], [], []]
    keys = [0, 1, 2]
    next_key = 3
    for at, action, token in [*actions, (0, "accept", 0)]:
        limits = [0 if action == "pause" and other == at else LIMIT for other in range(3)]
        proposed = speculator.propose([request(*each) for each in zip(keys, prompts, outputs, limits, strict=True)])
        for prompt, output, drafts, limit in zip(prompts, outputs, proposed, limits, strict=True):
            assert len(drafts) <= limit
            assert bool(drafts) == bool(limit) or len(output) > 16  # later it may pause
            assert is_greedy(decoder, prompt + output, drafts)
        if action == "forget":
            speculator.forget(keys[at])
            keys[at], next_key = next_key, next_key + 1
        elif action == "reject":
            outputs[at].extend([*proposed[at][: token % 3], *[token] * (1 + token % 2)])
        elif action == "accept":
            after = likeliest(decoder, prompts[at] + outputs[at] + proposed[at])[-1]
            outputs[at].extend([*proposed[at], after])
    for key in keys:
        speculator.forget(key)
    assert speculator.num_free_blocks == 40


def test_a_draft_model_that_is_the_target_is_always_right(decoder: Decoder) -> None:
    speculator = DraftModelSpeculator(draft_model(decoder, num_blocks=20), cost=ALWAYS)
    prompt = [3, 1, 4, 1, 5]
    answer: list[int] = []
    while len(answer) < 40:
        answer.append(likeliest(decoder, prompt + answer)[-1])
    output = answer[:1]
    num_steps = 0
    while len(output) < len(answer):
        (drafts,) = speculator.propose([request(1, prompt, output)])
        assert drafts
        assert drafts == answer[len(output) : len(output) + len(drafts)] or len(output) + len(drafts) > len(answer)
        output.extend(answer[len(output) : len(output) + len(drafts) + 1])
        num_steps += 1
    assert num_steps <= 40 / LIMIT


def test_a_long_prompt_is_read_in_pieces_beside_the_others_drafts(decoder: Decoder) -> None:
    speculator = DraftModelSpeculator(draft_model(decoder, num_blocks=200), cost=ALWAYS)
    rng = np.random.default_rng(2)
    long, short = rng.integers(0, VOCABULARY, 600).tolist(), [1, 2, 3]
    outputs: list[list[int]] = [[], []]
    steps = 0
    while True:
        drafts = speculator.propose([request(1, short, outputs[0]), request(2, long, outputs[1])])
        assert drafts[0]
        steps += 1
        if drafts[1]:
            break
        outputs[0].append(5)
    assert steps == 3  # 256 tokens at a time
    assert is_greedy(decoder, long, drafts[1])


def test_without_blocks_there_are_no_drafts_until_somebody_ends(decoder: Decoder) -> None:
    speculator = DraftModelSpeculator(draft_model(decoder, num_blocks=3), cost=ALWAYS)
    one, other = request(1, [1] * 12, []), request(2, [2] * 12, [])
    first, second = speculator.propose([one, other])
    assert first
    assert second == []
    speculator.forget(1)
    (second,) = speculator.propose([other])
    assert second
    assert is_greedy(decoder, [2] * 12, second)


def test_a_draft_model_that_is_always_wrong_pauses_longer_each_time(decoder: Decoder) -> None:
    speculator = DraftModelSpeculator(draft_model(decoder, num_blocks=100), cost=StepCost(per_row=0.3))
    prompt, output = [1, 2, 3], [0]
    drafted_at: list[int] = []
    for _ in range(600):
        (drafts,) = speculator.propose([request(1, prompt, output)])
        if drafts:
            drafted_at.append(len(output))
        wrong = next(token for token in range(VOCABULARY) if token not in drafts[:1])
        output.append(wrong)
    assert drafted_at[0] == 1
    assert max(at for at in drafted_at if at < 64) <= 32
    assert len(drafted_at) < 100


class Words:
    """What the check of a vocabulary looks at."""

    def __init__(self, words: list[bytes], eos: int = 0) -> None:
        self._words = words
        self.vocab_size = len(words)
        self.eos_token_ids = frozenset({eos})

    def token_bytes(self, token_id: int) -> bytes:
        return self._words[token_id]


@pytest.mark.parametrize(
    ("draft", "reason"),
    [
        (Words([b"", b"a"]), "knows 2 tokens, the model it drafts for 3"),
        (Words([b"", b"a", b"c"]), "Token 2 is b'c' to the draft model and b'b'"),
        (Words([b"", b"a", b"b"], eos=1), r"the tokens \[1\], the model it drafts for with \[0\]"),
    ],
)
def test_another_vocabulary_is_refused_with_the_reason(draft: Words, reason: str) -> None:
    target = Words([b"", b"a", b"b"])
    check_same_vocabulary(cast("Any", target), cast("Any", Words([b"", b"a", b"b"])))
    with pytest.raises(ConfigError, match=reason):
        check_same_vocabulary(cast("Any", target), cast("Any", draft))


@pytest.mark.weights
def test_a_real_model_drafts_for_itself_and_not_for_another_family(
    smollm2_gguf: Path, coder_gguf: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = load_model(EngineConfig(model_path=smollm2_gguf, model_name="smollm2", max_model_len=256))
    model = load_draft_model(smollm2_gguf, target, num_blocks=8)
    assert model.relative_size == 1.0
    speculator = DraftModelSpeculator(model, cost=ALWAYS)
    prompt = target.tokenizer.encode("The capital of France is")
    (drafts,) = speculator.propose([request(1, prompt, [])])
    assert target.tokenizer.decode(drafts).startswith(" Paris")
    with pytest.raises(ConfigError, match="Take a draft model of the same family"):
        load_draft_model(coder_gguf, target)
    monkeypatch.setattr("qwenstack.engine.speculation.draft_model.available_memory_bytes", lambda: 10**8)
    with pytest.raises(CapacityError, match=r"0\.1 GB are free"):
        load_draft_model(smollm2_gguf, target)
