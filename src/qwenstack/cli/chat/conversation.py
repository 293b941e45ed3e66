"""The state of a conversation and what a typed line means; values and pure functions only."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from qwenstack.core.messages import Message

COMMANDS: Mapping[str, str] = {
    "/help": "show this list",
    "/new": "forget the conversation and start a new one",
    "/system [TEXT]": "show the system prompt, or set it; '/system -' removes it",
    "/save FILE": "write the conversation to a new Markdown file",
    "/model": "show which model answers",
    "/stats": "show the speed of the last answer",
    "/exit": "leave; so does Ctrl-D",
}
"""What can be typed instead of a message, and what it does."""

HELP = "\n".join(
    [
        *(f"  {command:<16} {meaning}" for command, meaning in COMMANDS.items()),
        "",
        '  End a line with \\ to go on in the next one, or put several lines between """ and """.',
        "  Ctrl-C stops an answer. Start with // to send a message that begins with a slash.",
    ]
)

_BLOCK_MARK = '"""'
_COMMAND_NAMES = [command.partition(" ")[0] for command in COMMANDS]


@dataclass(frozen=True, slots=True, kw_only=True)
class Conversation:
    """A system prompt and the turns so far; each change makes a new value."""

    system: str | None = None
    turns: tuple[Message, ...] = ()

    @property
    def messages(self) -> tuple[Message, ...]:
        """All messages, as a model takes them."""
        return self.turns if self.system is None else (Message(role="system", content=self.system), *self.turns)

    def ask(self, text: str) -> Conversation:
        """Add what the user says."""
        return replace(self, turns=(*self.turns, Message(role="user", content=text)))

    def answer(self, text: str) -> Conversation:
        """Add what the assistant said."""
        return replace(self, turns=(*self.turns, Message(role="assistant", content=text)))

    def as_markdown(self) -> str:
        """Write it down for people."""
        return "\n".join(f"## {message.role.capitalize()}\n\n{message.content}\n" for message in self.messages)


@dataclass(frozen=True, slots=True, kw_only=True)
class Say:
    """The user said something to the model."""

    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Command:
    """The user wants something of the chat itself."""

    name: str
    """With the slash; one of `COMMANDS`."""
    argument: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Unknown:
    """The user typed a command that does not exist."""

    name: str

    @property
    def advice(self) -> str:
        """What to try instead."""
        nearest = difflib.get_close_matches(self.name, _COMMAND_NAMES, n=1, cutoff=0.5)
        hint = f"Did you mean {nearest[0]}? " if nearest else ""
        return f"There is no command {self.name!r}. {hint}/help lists all."


def parse(text: str) -> Say | Command | Unknown | None:
    """Say what a complete input means; None where it is blank."""
    stripped = text.strip()
    if not stripped:
        return None
    if stripped.startswith("//"):
        return Say(text=stripped[1:])
    if not stripped.startswith("/"):
        return Say(text=stripped)
    name, *argument = stripped.split(maxsplit=1)
    return Command(name=name, argument="".join(argument)) if name in _COMMAND_NAMES else Unknown(name=name)


@dataclass(frozen=True, slots=True, kw_only=True)
class Draft:
    r"""Lines typed so far of an input that may have more than one: `\` at an end, or a block between `\"\"\"`."""

    lines: tuple[str, ...] = field(default=())
    is_block: bool = False

    def add(self, line: str) -> Draft | str:
        """Return the finished input, or the longer draft that waits for more lines."""
        if self.is_block:
            return self._add_to_block(line)
        if not self.lines and line.lstrip().startswith(_BLOCK_MARK):
            return replace(self, is_block=True).add(line.lstrip().removeprefix(_BLOCK_MARK))
        if line.endswith("\\"):
            return replace(self, lines=(*self.lines, line[:-1]))
        return "\n".join((*self.lines, line))

    def _add_to_block(self, line: str) -> Draft | str:
        closed = line.rstrip().endswith(_BLOCK_MARK)
        content = line.rstrip().removesuffix(_BLOCK_MARK) if closed else line
        lines = (*self.lines, content)
        return "\n".join(lines).strip("\n") if closed else replace(self, lines=lines)
