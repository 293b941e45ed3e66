"""100,000 characters in two languages: answered where the context holds them, else refused with the limit.

The model is random and small, its context stretched by YaRN as a user would; the tokenizer is a real byte-level BPE.
"""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import pytest
import tokenizers
from support.checkpoints import save_random
from tokenizers import decoders, models, pre_tokenizers, trainers
from transformers import Qwen3Config

from qwenstack.core.errors import ConfigError, RequestError
from qwenstack.core.sampling_params import SamplingParams
from qwenstack.engine import LLM
from qwenstack.evals.haystack import Language, made_sentences

NUM_CHARACTERS = 100_000
CONTROL_TOKENS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
GREEDY = SamplingParams(temperature=0.0, max_tokens=4, ignore_eos=True)


def long_text(language: Language) -> str:
    sentences = itertools.islice(made_sentences(language, 1), NUM_CHARACTERS // 15)
    text = "".join(sentences)[:NUM_CHARACTERS]
    assert len(text) == NUM_CHARACTERS
    return text


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One layer that was trained for 32,768 positions, and a vocabulary of 1,500 words."""
    bpe = tokenizers.Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=1500,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=CONTROL_TOKENS,
        show_progress=False,
    )
    corpus = [text for language in ("en", "zh") for text in itertools.islice(made_sentences(language, 0), 100)]
    bpe.train_from_iterator(corpus, trainer)
    config = Qwen3Config(
        hidden_size=16,
        num_attention_heads=1,
        num_key_value_heads=1,
        head_dim=16,
        intermediate_size=16,
        num_hidden_layers=1,
        vocab_size=bpe.get_vocab_size(),
        max_position_embeddings=32_768,
        rope_parameters={"rope_type": "default", "rope_theta": 10_000.0},
    )
    folder = save_random(tmp_path_factory.mktemp("tiny"), config)
    bpe.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": "<|im_end|>"}))
    return folder


@pytest.mark.parametrize("language", ["en", "zh"])
def test_a_long_text_is_answered_where_the_context_holds_it(checkpoint: Path, language: Language) -> None:
    llm = LLM(checkpoint, yarn_factor=4.0, max_num_batched_tokens=4096)
    assert llm.card.max_model_len == 131_072
    messages = [{"role": "user", "content": long_text(language)}]
    (output,) = llm.chat(messages, GREEDY)
    assert len(output.prompt_token_ids) > 15_000
    assert len(output.outputs[0].token_ids) == 4
    assert output.outputs[0].finish_reason == "length"


@pytest.mark.parametrize("language", ["en", "zh"])
def test_a_text_beyond_the_context_is_refused_with_the_limit_and_the_next_request_is_answered(
    checkpoint: Path, language: Language
) -> None:
    llm = LLM(checkpoint, max_model_len=2048)
    for ask in (llm.generate, lambda text, params: llm.chat([{"role": "user", "content": text}], params)):
        with pytest.raises(
            RequestError, match=r"The prompt has \d{5} tokens; this model's context holds 2048"
        ) as caught:
            ask(long_text(language), GREEDY)
        assert caught.value.code == "context_length_exceeded"
    (output,) = llm.generate("short", GREEDY)
    assert len(output.outputs[0].token_ids) == 4
    assert llm.stats().num_blocks_free == llm.stats().num_blocks_total


def test_a_length_beyond_the_training_is_refused_with_the_factor_that_reaches_it(checkpoint: Path) -> None:
    with pytest.raises(ConfigError, match="`yarn_factor` to 3, which reaches 98304"):
        LLM(checkpoint, max_model_len=70_000)
    assert LLM(checkpoint, max_model_len=70_000, yarn_factor=3.0).card.max_model_len == 70_000
