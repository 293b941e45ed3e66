"""A conversation in a terminal: reads, lets the model answer, obeys slash commands, until the user leaves."""

from __future__ import annotations

from pathlib import Path

from qwenstack.cli.chat.answer import Answer, ChatModel, StopOnInterrupt, stream_answer
from qwenstack.cli.chat.conversation import HELP, Command, Conversation, Draft, Say, Unknown, parse
from qwenstack.cli.chat.terminal import Terminal
from qwenstack.core.errors import QwenStackError
from qwenstack.core.sampling_params import SamplingParams

_PROMPT = "> "
_CONTINUATION_PROMPT = ". "
_REMOVE_SYSTEM = "-"


class ChatSession:
    """One person talking to one model."""

    def __init__(
        self,
        model: ChatModel,
        terminal: Terminal,
        params: SamplingParams,
        *,
        system: str | None = None,
        enable_thinking: bool | None = None,
    ) -> None:
        """Start with an empty conversation."""
        self._model = model
        self._terminal = terminal
        self._params = params
        self._enable_thinking = enable_thinking
        self._conversation = Conversation(system=system)
        self._last_answer: Answer | None = None

    def run(self) -> None:
        """Talk until the user leaves with /exit, Ctrl-D, or Ctrl-C twice at the prompt."""
        self._terminal.note(f"{self._describe_model()}. /help lists the commands, Ctrl-D leaves.")
        was_interrupted = False
        while True:
            try:
                text = self._read()
            except EOFError:
                self._terminal.end_answer()
                return
            except KeyboardInterrupt:
                self._terminal.end_answer()
                if was_interrupted:
                    return
                self._terminal.note("Ctrl-C again, or Ctrl-D, leaves.")
                was_interrupted = True
                continue
            was_interrupted = False
            match parse(text):
                case None:
                    pass
                case Say(text=said):
                    self._answer(said)
                case Unknown() as unknown:
                    self._terminal.note(unknown.advice)
                case Command(name="/exit"):
                    return
                case Command() as command:
                    self._obey(command)

    def _read(self) -> str:
        draft: Draft | str = Draft().add(self._terminal.read_line(_PROMPT))
        while isinstance(draft, Draft):
            draft = draft.add(self._terminal.read_line(_CONTINUATION_PROMPT))
        return draft

    def _answer(self, text: str) -> None:
        asked = self._conversation.ask(text)
        try:
            with StopOnInterrupt() as stop:
                answer = stream_answer(
                    self._model,
                    asked.messages,
                    self._params,
                    enable_thinking=self._enable_thinking,
                    show=self._terminal.write,
                    is_stopped=lambda: stop.requested,
                )
        except QwenStackError as error:
            self._terminal.end_answer()
            self._terminal.note(f"error: {error} Your message was not kept; /new starts afresh.")
            return
        self._terminal.end_answer()
        self._last_answer = answer
        if answer.text:  # a question without any answer would leave two user turns in a row
            self._conversation = asked.answer(answer.text)
        if answer.finish_reason is None:
            self._terminal.note("stopped" if answer.text else "stopped; your message was not kept")
        elif answer.finish_reason == "length":
            self._terminal.note(f"cut off after {answer.num_tokens} tokens: --max-tokens or the context is used up")

    def _obey(self, command: Command) -> None:
        match command.name:
            case "/help":
                self._terminal.note(HELP)
            case "/new":
                self._conversation = Conversation(system=self._conversation.system)
                self._terminal.note("a new conversation")
            case "/system":
                self._set_system(command.argument)
            case "/save":
                self._save(command.argument)
            case "/model":
                self._terminal.note(self._describe_model())
            case _:
                self._terminal.note(self._describe_last_answer())

    def _set_system(self, text: str) -> None:
        if text:
            system = None if text == _REMOVE_SYSTEM else text
            self._conversation = Conversation(system=system, turns=self._conversation.turns)
        system = self._conversation.system
        self._terminal.note("no system prompt" if system is None else f"system prompt: {system}")

    def _save(self, name: str) -> None:
        if not name:
            self._terminal.note("Where to? /save FILE")
            return
        path = Path(name).expanduser()
        try:
            with path.open("x", encoding="utf-8") as file:
                file.write(self._conversation.as_markdown())
        except OSError as error:
            self._terminal.note(f"error: {str(path)!r} cannot be written: {error.strerror}. Try another name.")
        else:
            self._terminal.note(f"saved to {path}")

    def _describe_model(self) -> str:
        card = self._model.card
        parameters = f"{card.num_parameters / 1e6:,.0f} M parameters"
        return f"{card.id}: {parameters}, {card.weight_format}, context {card.max_model_len:,} tokens"

    def _describe_last_answer(self) -> str:
        answer = self._last_answer
        if answer is None:
            return "no answer yet"
        speed = answer.tokens_per_second
        return ", ".join(
            [
                f"{answer.num_tokens} tokens in {answer.total_s:.1f} s",
                f"first one after {answer.ttft_s:.2f} s",
                *([] if speed is None else [f"then {speed:.1f} tokens/s"]),
            ]
        )
