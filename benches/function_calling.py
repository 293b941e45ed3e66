"""Ask servers that speak OpenAI's chat completions to call functions, and count what is right.

62 questions in English and Chinese: one function and one call (`simple`), one of several functions (`multiple`),
several calls (`parallel`), no call (`none`). One JSON line for each server and class; `--answers` adds one for each
question. A call that a server hands out as text, because it did not see one in it, is a wrong answer to any question.

    qwenstack serve qwen2.5-coder-0.5b --port 8000 &
    python benches/function_calling.py --servers http://127.0.0.1:8000/v1 http://127.0.0.1:8080/v1
"""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import jsonschema

CASES = Path(__file__).parent / "data" / "function_calling.json"
MAX_TOKENS = 256
TIMEOUT_S = 300


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """A call as a server gave it."""

    name: str
    arguments: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """An answer as a server gave it."""

    calls: Sequence[Call]
    text: str

    @property
    def is_call_in_text(self) -> bool:
        """Whether the text is what should have been a call: an object with a name and arguments, in a block or not."""
        bare = self.text.strip().removeprefix("```json").removesuffix("```").strip()
        try:
            written = json.loads(bare)
        except ValueError:
            return False
        return isinstance(written, dict) and {"name", "arguments"} <= written.keys()


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What was right about one answer."""

    functions_are_right: bool
    """The right functions, each as often as it should be called."""
    arguments_are_right: bool
    """And the right arguments."""
    num_calls: int
    num_valid: int
    """Calls whose arguments are JSON that fits the function's schema."""
    is_call_in_text: bool
    """A call that came as text."""


def judge(case: Mapping[str, Any], answer: Answer, tools: Mapping[str, Any]) -> Verdict:
    """Compare an answer with what was expected; the order of calls does not matter."""
    expected, calls = case["calls"], answer.calls
    read = [(call.name, _read(call, tools)) for call in calls]
    names_are_right = sorted(call.name for call in calls) == sorted(one["name"] for one in expected)
    functions_are_right = names_are_right and not answer.is_call_in_text
    return Verdict(
        functions_are_right=functions_are_right,
        arguments_are_right=functions_are_right and _all_match(expected, read),
        num_calls=len(calls),
        num_valid=sum(arguments is not None for _, arguments in read),
        is_call_in_text=answer.is_call_in_text,
    )


def _read(call: Call, tools: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return a call's arguments; None where they are no JSON or do not fit."""
    try:
        arguments = json.loads(call.arguments)
        jsonschema.validate(arguments, tools[call.name]["function"]["parameters"])
    except (ValueError, KeyError, jsonschema.ValidationError):
        return None
    return arguments


def _all_match(expected: Sequence[Mapping[str, Any]], read: Sequence[tuple[str, dict[str, Any] | None]]) -> bool:
    """Whether each expected call can be paired with one of its own."""
    if not expected:
        return not read
    first, *others = expected
    return any(
        name == first["name"]
        and arguments is not None
        and _matches(first["arguments"], arguments)
        and _all_match(others, [*read[:at], *read[at + 1 :]])
        for at, (name, arguments) in enumerate(read)
    )


def _matches(accepted: Mapping[str, Sequence[Any]], arguments: Mapping[str, Any]) -> bool:
    """Whether each argument has one of its accepted values; what was not asked for may be there."""
    return all(
        name in arguments and _plain(arguments[name]) in map(_plain, values) for name, values in accepted.items()
    )


def _plain(value: object) -> object:
    return value.strip().casefold() if isinstance(value, str) else value


def ask(client: httpx.Client, server: str, model: str, case: Mapping[str, Any], tools: Mapping[str, Any]) -> Answer:
    """Ask one question."""
    body = {
        "model": model,
        "messages": [{"role": "user", "content": case["message"]}],
        "tools": [tools[name] for name in case["tools"]],
        "temperature": 0,
        "max_tokens": MAX_TOKENS,
    }
    response = client.post(f"{server}/chat/completions", json=body)
    response.raise_for_status()
    message = response.json()["choices"][0]["message"]
    functions = [call["function"] for call in message.get("tool_calls") or ()]
    calls = [Call(name=function["name"], arguments=function["arguments"]) for function in functions]
    return Answer(calls=calls, text=message.get("content") or "")


def main() -> None:
    """Print one JSON line for each server and class."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--servers", nargs="+", default=["http://127.0.0.1:8000/v1"])
    parser.add_argument("--model", default="default")
    parser.add_argument("--answers", action="store_true")
    arguments = parser.parse_args()
    data = json.loads(CASES.read_text())
    for server in arguments.servers:
        verdicts: dict[str, list[Verdict]] = defaultdict(list)
        with httpx.Client(timeout=TIMEOUT_S) as client:
            for case in data["cases"]:
                answer = ask(client, server, arguments.model, case, data["tools"])
                verdict = judge(case, answer, data["tools"])
                verdicts[case["class"]].append(verdict)
                if arguments.answers:
                    written = [{"name": call.name, "arguments": call.arguments} for call in answer.calls]
                    right = verdict.arguments_are_right
                    line = {"id": case["id"], "right": right, "calls": written, "text": answer.text}
                    print(json.dumps(line, ensure_ascii=False))
        verdicts["all"] = [verdict for group in verdicts.values() for verdict in group]
        for name, group in verdicts.items():
            counts = {
                "server": server,
                "class": name,
                "cases": len(group),
                "functions_right": sum(verdict.functions_are_right for verdict in group),
                "arguments_right": sum(verdict.arguments_are_right for verdict in group),
                "calls": sum(verdict.num_calls for verdict in group),
                "valid_calls": sum(verdict.num_valid for verdict in group),
                "calls_in_text": sum(verdict.is_call_in_text for verdict in group),
            }
            print(json.dumps(counts))


if __name__ == "__main__":
    main()
