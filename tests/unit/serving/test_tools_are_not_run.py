"""The server runs no tool: calls go back to the client, whatever they say, and tools of any other kind are refused."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from toy_llm import ToyLLM

from qwenstack.serving import ServeConfig, create_app

pytestmark = pytest.mark.anyio

QUESTION = [{"role": "user", "content": "Do it."}]
SCHEMA = {"type": "object", "properties": {"code": {"type": "string"}, "command": {"type": "string"}}}
STARTS = (
    "subprocess.Popen",
    "os.exec",
    "os.fork",
    "os.forkpty",
    "os.posix_spawn",
    "os.spawn",
    "os.system",
    "pty.spawn",
)
RUNS = ("exec", "compile", "import")
TEMPTING_NAMES = ("python", "bash", "os.system", "code_interpreter", "web_search")


class Watch:
    """Notes what this process starts, runs or imports while it is on; Python lets nobody take such a hook off again."""

    def __init__(self) -> None:
        self.is_on = False
        self.seen: list[str] = []
        sys.addaudithook(self._note)

    def _note(self, event: str, arguments: tuple[object, ...]) -> None:
        if self.is_on and event in (*STARTS, *RUNS):
            self.seen.append(f"{event}: {arguments!r:.200}")


WATCH = Watch()


@pytest.fixture
def watch() -> Iterator[Watch]:
    WATCH.seen.clear()
    yield WATCH
    WATCH.is_on = False


def function(name: str) -> dict[str, Any]:
    return {"name": name, "parameters": SCHEMA}


def openai_tool(name: str) -> dict[str, Any]:
    return {"type": "function", "function": function(name)}


def wires(name: str) -> dict[str, tuple[str, dict[str, Any]]]:
    """Return each wire's address, and a request that gives the model a tool of this name."""
    return {
        "chat": ("/v1/chat/completions", {"messages": QUESTION, "tools": [openai_tool(name)]}),
        "responses": ("/v1/responses", {"input": "Do it.", "tools": [{"type": "function", **function(name)}]}),
        "anthropic": (
            "/v1/messages",
            {"messages": QUESTION, "max_tokens": 300, "tools": [{"name": name, "input_schema": SCHEMA}]},
        ),
        "ollama": ("/api/chat", {"messages": QUESTION, "tools": [openai_tool(name)]}),
    }


def calls_in(wire: str, answer: Any) -> list[tuple[str, Any]]:
    """Return the names and arguments of an answer's calls."""
    match wire:
        case "chat":
            found = [call["function"] for call in answer["choices"][0]["message"]["tool_calls"]]
            return [(call["name"], json.loads(call["arguments"])) for call in found]
        case "responses":
            found = [item for item in answer["output"] if item["type"] == "function_call"]
            return [(call["name"], json.loads(call["arguments"])) for call in found]
        case "anthropic":
            return [(block["name"], block["input"]) for block in answer["content"] if block["type"] == "tool_use"]
        case _:
            found = [call["function"] for call in answer["message"]["tool_calls"]]
            return [(call["name"], call["arguments"]) for call in found]


async def test_a_watch_that_is_on_sees_programs_start(watch: Watch) -> None:
    subprocess.run([sys.executable, "-c", ""], check=True)
    assert watch.seen == []
    watch.is_on = True
    subprocess.run([sys.executable, "-c", ""], check=True)
    exec("1 + 1")
    assert {seen.partition(":")[0] for seen in watch.seen} >= {"subprocess.Popen", "compile", "exec"}


@pytest.mark.parametrize("wire", wires("f"))
async def test_sec_30_a_call_goes_back_to_the_client_and_nothing_is_run(
    client: httpx.AsyncClient, llm: ToyLLM, watch: Watch, tmp_path: Path, wire: str
) -> None:
    canary = tmp_path / "it-was-run"
    arguments = {"code": f"open({str(canary)!r}, 'w')", "command": f"touch {canary}"}

    async def ask(name: str) -> tuple[Any, str]:
        called = json.dumps({"name": name, "arguments": arguments})
        llm.says = f"<tool_call>\n{called}\n</tool_call>"
        address, body = wires(name)[wire]
        whole = await client.post(address, json={"model": "default", **body, "stream": False})
        streamed = await client.post(address, json={"model": "default", **body, "stream": True})
        assert (whole.status_code, streamed.status_code) == (200, 200), (whole.text, streamed.text)
        return whole.json(), streamed.text

    await ask("first")  # what the first request imports has been imported
    llm.prompts.clear()
    for name in TEMPTING_NAMES:
        watch.is_on = True
        answer, events = await ask(name)
        watch.is_on = False
        assert watch.seen == [], name
        assert calls_in(wire, answer) == [(name, arguments)]
        assert json.dumps(name) in events  # its arguments come in pieces
    assert not canary.exists()
    assert len(llm.prompts) == 2 * len(TEMPTING_NAMES)  # no answer of a tool went back to the model


OPENAI_HOSTED: list[dict[str, Any]] = [
    {"type": "code_interpreter", "container": {"type": "auto"}},
    {"type": "web_search"},
    {"type": "web_search_preview"},
    {"type": "file_search", "vector_store_ids": ["v"]},
    {"type": "computer_use"},
    {"type": "computer_use_preview", "display_width": 1, "display_height": 1, "environment": "linux"},
    {"type": "mcp", "server_label": "s", "server_url": "http://127.0.0.1:1/mcp"},
    {"type": "image_generation"},
    {"type": "local_shell"},
    {"type": "shell"},
    {"type": "apply_patch"},
    {"type": "custom", "name": "python"},
]
ANTHROPIC_HOSTED: list[dict[str, Any]] = [
    {"type": "code_execution_20250825", "name": "code_execution"},
    {"type": "web_search_20250305", "name": "web_search"},
    {"type": "web_fetch_20250910", "name": "web_fetch"},
    {"type": "computer_20250124", "name": "computer", "display_width_px": 1, "display_height_px": 1},
    {"type": "bash_20250124", "name": "bash"},
    {"type": "text_editor_20250728", "name": "str_replace_based_edit_tool"},
    {"type": "memory_20250818", "name": "memory"},
    {"type": "mcp_toolset", "mcp_server_name": "s"},
]
HOSTED = {
    "chat": OPENAI_HOSTED,
    "responses": OPENAI_HOSTED,
    "anthropic": [*ANTHROPIC_HOSTED, *({**tool, "name": "t", "input_schema": SCHEMA} for tool in ANTHROPIC_HOSTED)],
    "ollama": [*OPENAI_HOSTED, *({**tool, "function": function("f")} for tool in OPENAI_HOSTED)],
}


@pytest.mark.parametrize("wire", HOSTED)
async def test_sec_30_tools_that_the_server_would_run_are_refused(
    client: httpx.AsyncClient, llm: ToyLLM, wire: str
) -> None:
    address, body = wires("f")[wire]
    for tool in HOSTED[wire]:
        for tools in ([tool], [*body["tools"], tool]):
            for stream in (False, True):
                asked = {"model": "default", **body, "tools": tools, "stream": stream}
                answer = await client.post(address, json=asked)
                assert answer.status_code == 400, (tool, answer.text)
                assert "tools" in answer.text, (tool, answer.text)
    assert llm.prompts == []


@pytest.mark.parametrize(
    ("wire", "field", "value"),
    [
        ("chat", "web_search_options", {}),
        ("anthropic", "mcp_servers", [{"type": "url", "name": "s", "url": "http://127.0.0.1:1/mcp"}]),
        ("anthropic", "container", "c"),
        ("responses", "prompt", {"id": "p"}),
    ],
)
async def test_sec_30_fields_that_would_have_the_server_run_tools_are_refused(
    client: httpx.AsyncClient, llm: ToyLLM, wire: str, field: str, value: object
) -> None:
    address, body = wires("f")[wire]
    answer = await client.post(address, json={"model": "default", **body, field: value})
    assert answer.status_code == 400, answer.text
    assert field in answer.text
    assert llm.prompts == []


def test_sec_30_grpc_has_words_for_functions_alone() -> None:
    messages = pytest.importorskip("qwenstack.serving.grpc.v1.messages_pb2")
    assert [field.name for field in messages.Tool.DESCRIPTOR.fields] == ["function"]


async def test_sec_30_no_address_takes_programs(llm: ToyLLM) -> None:
    paths = {getattr(route, "path", "") for route in create_app(llm, ServeConfig()).routes}
    assert "/v1/chat/completions" in paths
    words = {word for path in paths for word in path.replace("-", "/").replace("_", "/").split("/")}
    assert words & {"run", "exec", "execute", "eval", "code", "shell", "tool", "tools", "mcp", "containers"} == set()
