"""The engine's own door: what may be asked of the loaded model, checked again whoever calls."""

from __future__ import annotations

from collections.abc import Sequence

from qwenstack.core.errors import RequestError
from qwenstack.core.protocols import ModelCard
from qwenstack.core.sampling_params import SamplingParams

_MAX_SCORED_PROMPT = 32_768
"""Scores of a prompt come in one delta, about 340 bytes a token with 20 alternatives: 11 MB, a sixth of a frame."""


def check_request(prompt_token_ids: Sequence[int], params: SamplingParams, card: ModelCard) -> int:
    """Return how many tokens the answer may have.

    Raises:
        RequestError: the prompt is empty, too long, or an id is outside the vocabulary.
    """
    num_prompt, limit = len(prompt_token_ids), card.max_model_len
    if num_prompt == 0:
        raise RequestError("The prompt is empty; give at least one token.", param="prompt", code="invalid_value")
    if num_prompt >= limit:
        raise RequestError(
            f"The prompt has {num_prompt} tokens; this model's context holds {limit}, with the answer. Shorten it.",
            param="messages",
            code="context_length_exceeded",
        )
    highest, lowest = max(prompt_token_ids), min(prompt_token_ids)
    if lowest < 0 or highest >= card.vocab_size:
        wrong = lowest if lowest < 0 else highest
        raise RequestError(
            f"Token id {wrong} is not in the vocabulary; ids lie between 0 and {card.vocab_size - 1}.",
            param="prompt",
            code="invalid_value",
        )
    if params.prompt_logprobs is not None and num_prompt > _MAX_SCORED_PROMPT:
        raise RequestError(
            f"The prompt has {num_prompt} tokens; prompts of at most {_MAX_SCORED_PROMPT} can be scored at once.",
            param="logprobs",
            code="invalid_value",
        )
    _check_named_ids(params, card.vocab_size)
    room = limit - num_prompt
    if params.max_tokens is not None and params.max_tokens > room:
        raise RequestError(
            f"The prompt has {num_prompt} tokens and `max_tokens` is {params.max_tokens}, together more than the "
            f"{limit} of this model's context. Ask for at most {room}, or leave `max_tokens` out.",
            param="max_tokens",
            code="context_length_exceeded",
        )
    return room if params.max_tokens is None else params.max_tokens


def _check_named_ids(params: SamplingParams, vocab_size: int) -> None:
    for name, ids in (("logit_bias", params.logit_bias), ("stop_token_ids", params.stop_token_ids)):
        for token_id in ids:
            if not 0 <= token_id < vocab_size:
                raise RequestError(
                    f"`{name}` names token id {token_id}; ids lie between 0 and {vocab_size - 1}.",
                    param=name,
                    code="invalid_value",
                )
