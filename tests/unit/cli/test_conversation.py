"""What typed lines mean, and how a conversation grows."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qwenstack.cli.chat.conversation import COMMANDS, HELP, Command, Conversation, Draft, Say, Unknown, parse


def type_in(*lines: str) -> Draft | str:
    draft: Draft | str = Draft()
    for line in lines:
        assert isinstance(draft, Draft), "finished before the last line"
        draft = draft.add(line)
    return draft


@pytest.mark.parametrize(
    ("text", "meaning"),
    [
        ("", None),
        ("  \t ", None),
        ("你好", Say(text="你好")),
        (" what is 1/2? ", Say(text="what is 1/2?")),
        ("//usr/bin?", Say(text="/usr/bin?")),
        ("/exit", Command(name="/exit")),
        ("/system 你是诗人。", Command(name="/system", argument="你是诗人。")),
        ("/system two\nlines", Command(name="/system", argument="two\nlines")),
        ("/save  my file.md ", Command(name="/save", argument="my file.md")),
    ],
)
def test_a_line_is_a_message_or_a_command(text: str, meaning: object):
    assert parse(text) == meaning


def test_an_unknown_command_is_told_the_nearest_one():
    unknown = parse("/hepl me")
    assert isinstance(unknown, Unknown)
    assert "Did you mean /help?" in unknown.advice
    distant = parse("/usr/bin/env")
    assert isinstance(distant, Unknown)
    assert "Did you mean" not in distant.advice


def test_the_help_names_every_command():
    assert all(command in HELP for command in COMMANDS)


def test_a_backslash_at_the_end_continues_the_line():
    assert type_in("one\\", "two\\", "three") == "one\ntwo\nthree"


def test_a_block_ends_where_its_quotes_close():
    assert type_in('"""', "def f():\\", "", "    return 1", '"""') == "def f():\\\n\n    return 1"
    assert type_in('"""first', 'last"""') == "first\nlast"
    assert type_in('"""all in one"""') == "all in one"


def test_a_paste_of_several_lines_in_one_is_taken_as_it_is():
    assert type_in("first\nsecond") == "first\nsecond"


@given(lines=st.lists(st.text(st.characters(exclude_characters='"\n\r')).map(lambda line: f"{line}."), min_size=1))
@settings(deadline=None)
def test_a_block_keeps_every_line(lines: list[str]):
    assert type_in('"""', *lines, '"""') == "\n".join(lines)


@given(lines=st.lists(st.text(st.characters(exclude_characters='"\\\n\r')), min_size=1))
@settings(deadline=None)
def test_continued_lines_keep_every_line(lines: list[str]):
    assert type_in(*(f"{line}\\" for line in lines[:-1]), lines[-1]) == "\n".join(lines)


def test_the_system_prompt_comes_first_and_earlier_values_stay_as_they_were():
    start = Conversation(system="Be brief.")
    asked = start.ask("Hi")
    done = asked.answer("Hello")
    assert [(message.role, message.content) for message in done.messages] == [
        ("system", "Be brief."),
        ("user", "Hi"),
        ("assistant", "Hello"),
    ]
    assert start.turns == ()
    assert len(asked.turns) == 1


def test_a_conversation_is_written_down_for_people():
    text = Conversation(system="短").ask("Hi").answer("你好").as_markdown()
    assert text == "## System\n\n短\n\n## User\n\nHi\n\n## Assistant\n\n你好\n"
