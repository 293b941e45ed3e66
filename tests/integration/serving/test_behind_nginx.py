"""The server behind Debian's nginx with `deploy/nginx.conf`, over TLS, as operators run it."""

from __future__ import annotations

import asyncio
import shutil
import ssl
import subprocess
from collections.abc import Awaitable, Callable
from pathlib import Path

import httpx
import pytest
from reliability.nginx import Nginx, nginx_before
from reliability.server import Server, serving
from reliability.verdict import RowSkipped

DEPLOY = Path(__file__).parents[3] / "deploy"
TOKEN_S = 0.3
QUESTION = {"messages": [{"role": "user", "content": "count"}], "max_tokens": 5}


def behind_nginx(ask: Callable[[Server, httpx.AsyncClient, Nginx], Awaitable[None]]) -> None:
    """Run what asks through nginx; skip where there is none."""

    async def run() -> None:
        async with serving(engine_options={"token_s": TOKEN_S}) as server, nginx_before(server, tls=True) as nginx:
            trust = ssl.create_default_context(cafile=str(nginx.folder / "fullchain.pem"))
            headers = {"Authorization": f"Bearer {server.key}"}
            base = f"https://localhost:{nginx.port}"
            async with httpx.AsyncClient(verify=trust, base_url=base, headers=headers, timeout=30) as client:
                await ask(server, client, nginx)

    try:
        asyncio.run(run())
    except RowSkipped as reason:
        pytest.skip(str(reason))


def test_a_stream_comes_through_token_by_token() -> None:
    async def ask(_: Server, client: httpx.AsyncClient, __: Nginx) -> None:
        clock, times = asyncio.get_running_loop().time, []
        async with client.stream("POST", "/v1/chat/completions", json=QUESTION | {"stream": True}) as answer:
            assert answer.headers["strict-transport-security"]
            async for line in answer.aiter_lines():
                if '"content":"' in line and '"content":""' not in line:
                    times.append(clock())
        assert len(times) == 5
        # All at once, as from a buffer, they would come within a moment: they are four ticks of the clock apart.
        assert times[-1] - times[0] > 2 * TOKEN_S

    behind_nginx(ask)


def test_what_nginx_refuses_does_not_reach_the_server_and_metrics_stay_inside() -> None:
    async def ask(server: Server, client: httpx.AsyncClient, nginx: Nginx) -> None:
        assert (await client.get("/v1/models")).status_code == 200
        assert len(nginx.passed_on()) == 1
        assert (await client.get("/metrics")).status_code == 404
        assert (await client.post("/v1/completions", content=b"x" * (3 << 20))).status_code == 413
        assert nginx.passed_on() == []
        assert server.is_alive

    behind_nginx(ask)


def test_the_unit_for_systemd_is_one() -> None:
    program = shutil.which("systemd-analyze")
    if program is None:
        pytest.skip("no systemd-analyze here; Debian's package is `systemd`")
    unit = DEPLOY / "qwenstack.service"
    result = subprocess.run([program, "verify", str(unit)], capture_output=True, text=True)
    complaints = [line for line in result.stderr.splitlines() if unit.name in line]
    assert [line for line in complaints if "is not executable: No such file" not in line] == []
    rating = subprocess.run(
        [program, "security", "--offline=true", "--threshold=20", str(unit)], capture_output=True, text=True
    )
    assert rating.returncode == 0, rating.stdout
