"""How the next token is chosen and when a generation ends; checked once, here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, get_args

from qwenstack.core.errors import RequestError
from qwenstack.core.grammar import Grammar

OutputFormat = Literal["text", "thinking", "chat"]
"""What of an answer is kept apart from its text. `text`: nothing; `thinking`: its thinking; `chat`: tool calls too."""

MAX_N = 8
MAX_STOP_STRINGS = 16
MAX_STOP_CHARS = 256
MAX_LOGPROBS = 20
MAX_LOGIT_BIAS = 300
MAX_SEED = 2**63 - 1


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingParams:
    """Choices of one request, with vLLM's names and defaults.

    Raises:
        RequestError: a value is outside its range; `param` names the field.
    """

    temperature: float = 1.0
    """0 takes the most likely token each time; 1 samples from the model's own distribution."""
    top_p: float = 1.0
    """Sample from the smallest set of tokens whose probability reaches this."""
    top_k: int = 0
    """Sample from the k most likely tokens; 0 from all."""
    min_p: float = 0.0
    """Drop tokens less likely than this share of the most likely one."""
    repetition_penalty: float = 1.0
    """Divide positive logits (multiply negative ones) of tokens seen in prompt or output."""
    presence_penalty: float = 0.0
    """Subtract from the logits of tokens that are in the output."""
    frequency_penalty: float = 0.0
    """Subtract this times the count in the output."""
    logit_bias: Mapping[int, float] = field(default_factory=dict[int, float])
    """Added to the logits, by token id; -100 forbids a token, 100 forces it."""
    max_tokens: int | None = 16
    """New tokens at most; None: as many as the context leaves."""
    min_tokens: int = 0
    """No end-of-sequence token and no stop string before this many new tokens."""
    stop: str | Sequence[str] = ()
    """String or strings that end the generation; they are not part of the text. They are looked for in the text alone,
    not in what `output_format` keeps apart from it."""
    stop_token_ids: Sequence[int] = ()
    """Token ids that end the generation, besides the model's own."""
    ignore_eos: bool = False
    """Go on past the model's end-of-sequence tokens."""
    include_stop_str_in_output: bool = False
    seed: int | None = None
    """The same seed, prompt and parameters give the same tokens, whatever else runs."""
    n: int = 1
    """Independent answers to the same prompt."""
    logprobs: int | None = None
    """Report each chosen token's log-probability and this many of the likeliest; of the model's own distribution."""
    prompt_logprobs: int | None = None
    """The same for the tokens of the prompt."""
    skip_special_tokens: bool = True
    """Leave control tokens out of the text."""
    output_format: OutputFormat = "text"
    """What of the answer is kept apart from its text."""
    grammar: Grammar | None = None
    """What the text of the answer must look like."""
    thinking_budget: int | None = None
    """Tokens of thinking at most; at the limit it is closed with a sentence and the answer begins. None: no limit."""

    def __post_init__(self) -> None:
        """Check every range once, so that nothing behind this door has to."""
        _check_number("temperature", self.temperature, 0.0, 2.0)
        _check_number("top_p", self.top_p, 0.0, 1.0)
        if self.top_p == 0.0:
            raise _out_of_range("top_p", self.top_p, "greater than 0 and at most 1")
        _check_integer("top_k", self.top_k, 0, 1_000_000)
        _check_number("min_p", self.min_p, 0.0, 1.0)
        _check_number("repetition_penalty", self.repetition_penalty, 0.01, 10.0)
        _check_number("presence_penalty", self.presence_penalty, -2.0, 2.0)
        _check_number("frequency_penalty", self.frequency_penalty, -2.0, 2.0)
        if self.max_tokens is not None:
            _check_integer("max_tokens", self.max_tokens, 1, 1 << 30)
        _check_integer("min_tokens", self.min_tokens, 0, 1 << 30)
        if self.max_tokens is not None and self.min_tokens > self.max_tokens:
            raise RequestError(
                f"`min_tokens` is {self.min_tokens}, above `max_tokens` {self.max_tokens}.",
                param="min_tokens",
                code="invalid_value",
            )
        if self.seed is not None:
            _check_integer("seed", self.seed, -MAX_SEED - 1, MAX_SEED)
        _check_integer("n", self.n, 1, MAX_N)
        for name in ("logprobs", "prompt_logprobs"):
            count: int | None = getattr(self, name)
            if count is not None:
                _check_integer(name, count, 0, MAX_LOGPROBS)
        if not isinstance(self.grammar, Grammar | None):  # pyright: ignore[reportUnnecessaryIsInstance]: as above
            raise _out_of_range(
                "grammar", self.grammar, "a `Grammar`, such as `Grammar(kind='regex', source='[a-z]+')`"
            )
        if self.thinking_budget is not None:
            _check_integer("thinking_budget", self.thinking_budget, 0, 1 << 30)
        if self.output_format not in get_args(OutputFormat):
            raise _out_of_range("output_format", self.output_format, f"one of {', '.join(get_args(OutputFormat))}")
        self._check_stop()
        self._check_logit_bias()

    def _check_stop(self) -> None:
        if isinstance(self.stop, str):
            object.__setattr__(self, "stop", (self.stop,))
        if len(self.stop) > MAX_STOP_STRINGS:
            raise _out_of_range("stop", len(self.stop), f"at most {MAX_STOP_STRINGS} strings")
        for text in self.stop:
            if not 0 < len(text) <= MAX_STOP_CHARS:
                raise _out_of_range("stop", text, f"strings of 1 to {MAX_STOP_CHARS} characters")
        if len(self.stop_token_ids) > MAX_LOGIT_BIAS:
            raise _out_of_range("stop_token_ids", len(self.stop_token_ids), f"at most {MAX_LOGIT_BIAS} ids")

    def _check_logit_bias(self) -> None:
        if len(self.logit_bias) > MAX_LOGIT_BIAS:
            raise _out_of_range("logit_bias", len(self.logit_bias), f"at most {MAX_LOGIT_BIAS} entries")
        for bias in self.logit_bias.values():
            _check_number("logit_bias", bias, -100.0, 100.0)


def _check_number(name: str, value: object, low: float, high: float) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
        raise _out_of_range(name, value, f"between {low:g} and {high:g}")


def _check_integer(name: str, value: object, low: int, high: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise _out_of_range(name, value, f"a whole number between {low} and {high}")


def _out_of_range(name: str, value: object, limit: str) -> RequestError:
    return RequestError(f"`{name}` is {value!r}; it must be {limit}.", param=name, code="invalid_value")
