"""The command: from options and settings to a conversation or a single answer."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Annotated

from cyclopts import Parameter

from qwenstack.cli.chat.answer import ChatModel, stream_answer
from qwenstack.cli.chat.conversation import Conversation
from qwenstack.cli.chat.session import ChatSession
from qwenstack.cli.chat.terminal import ConsoleTerminal, input_history, printable
from qwenstack.cli.loading import load_llm
from qwenstack.cli.options import Assignments, ModelArgument
from qwenstack.cli.settings import load_settings, state_dir
from qwenstack.core.errors import ConfigError, RequestError
from qwenstack.core.sampling_params import SamplingParams

_FALLBACK_SAMPLING: Mapping[str, float | int] = {"temperature": 0.7, "top_p": 0.8, "top_k": 20}
"""What the makers of Qwen2.5 and of Qwen3 without thinking advise."""
_STANDARD_INPUT = "-"
_MAX_PROMPT_CHARS = 8 << 20


@Parameter(name="*")
@dataclass(frozen=True, slots=True, kw_only=True)
class ChatOptions:
    """What to say, and how the answer is chosen."""

    prompt: Annotated[str | None, Parameter(name=("--prompt", "-p"), allow_leading_hyphen=True)] = None
    """One message to answer; - reads it from standard input."""
    system: Annotated[str | None, Parameter(allow_leading_hyphen=True)] = None
    """System prompt."""
    temperature: float | None = None
    """0 always takes the likeliest token; default: what the model's makers advise."""
    max_tokens: int | None = None
    """Length of an answer at most; default: as much as the context leaves."""
    top_p: float | None = None
    """Sample from the likeliest tokens that reach this probability together."""
    top_k: int | None = None
    """Sample from this many of the likeliest tokens."""
    seed: int | None = None
    """The same seed gives the same answer."""
    think: bool | None = None
    """Let a model that can think do so before it answers, or not; default: as the model does by itself."""
    num_threads: int | None = None
    """Threads of the kernels; default: one for each core."""

    @property
    def sampling(self) -> dict[str, float | int]:
        """The wishes about sampling that were made."""
        names = ("temperature", "max_tokens", "top_p", "top_k", "seed")
        wishes: dict[str, float | int | None] = {name: getattr(self, name) for name in names}
        return {name: value for name, value in wishes.items() if value is not None}


_NO_OPTIONS = ChatOptions()


def chat(
    model: ModelArgument = None,
    /,
    *,
    options: ChatOptions = _NO_OPTIONS,
    assignments: Assignments = (),
) -> None:
    """Talk with a model in the terminal.

    With -p, or when something is piped in, print one answer and exit.
    """
    settings = load_settings(assignments, {"model": model, "engine.num_threads": options.num_threads}).value
    sampling_params({}, options.sampling)  # a wrong option is told before a model is loaded
    text = _read_prompt(options.prompt)
    llm: ChatModel = load_llm(settings)
    params = sampling_params(llm.default_sampling, options.sampling)
    if text is not None:
        answer_once(llm, text, params, system=options.system, enable_thinking=options.think)
        return
    terminal = ConsoleTerminal(has_colour="NO_COLOR" not in os.environ)
    with input_history(state_dir() / "chat_history"):
        ChatSession(llm, terminal, params, system=options.system, enable_thinking=options.think).run()


def answer_once(
    model: ChatModel, text: str, params: SamplingParams, *, system: str | None, enable_thinking: bool | None
) -> None:
    """Stream one answer to standard output; it is made harmless for a terminal, and left as it is in a pipe."""
    is_terminal = sys.stdout.isatty()

    def show(piece: str) -> None:
        sys.stdout.write(printable(piece) if is_terminal else piece)
        sys.stdout.flush()

    messages = Conversation(system=system).ask(text).messages
    answer = stream_answer(model, messages, params, enable_thinking=enable_thinking, show=show)
    sys.stdout.write("\n")
    if answer.finish_reason == "length":
        sys.stderr.write(f"The answer was cut off after {answer.num_tokens} tokens; see --max-tokens.\n")


def sampling_params(defaults: Mapping[str, float | int], wishes: Mapping[str, float | int]) -> SamplingParams:
    """Return the model's advice, or a common one, overruled by the user's wishes.

    Raises:
        ConfigError: a wish is outside its range.
    """
    try:
        return replace(SamplingParams(max_tokens=None), **{**(defaults or _FALLBACK_SAMPLING), **wishes})
    except RequestError as error:
        raise ConfigError(str(error)) from error


def _read_prompt(prompt: str | None) -> str | None:
    """Return the message of a single answer; None where a person will type."""
    is_interactive = sys.stdin.isatty() and sys.stdout.isatty()
    if prompt is None and is_interactive:
        return None
    if prompt is None and sys.stdin.isatty():
        raise ConfigError("There is nothing to answer: standard output is no terminal, and -p TEXT is missing.")
    text = _read_standard_input() if prompt in (None, _STANDARD_INPUT) else prompt
    if not text.strip():
        raise ConfigError("There is nothing to answer: the message is empty. Give one with -p TEXT.")
    return text


def _read_standard_input() -> str:
    try:
        text = sys.stdin.read(_MAX_PROMPT_CHARS + 1)
    except UnicodeDecodeError as error:
        raise ConfigError("The message on standard input is not UTF-8.") from error
    if len(text) > _MAX_PROMPT_CHARS:
        raise ConfigError(f"The message on standard input is longer than {_MAX_PROMPT_CHARS:,} characters.")
    return text
