"""The public application and its administration in one process: they share the model and stop together."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from pathlib import Path

import httpx
import pytest
from toy_llm import ToyLLM

from qwenstack.serving import Door, ServeConfig, admin_config, create_admin_app, create_app, open_socket, serve_app
from qwenstack.storage import AuditLog, Database, open_database

KEY = "qsa-the-key-of-the-file-on-this-machine"


@pytest.fixture
def database(tmp_path: Path) -> Database:
    return open_database(f"sqlite:///{tmp_path / 'q.db'}")


@contextlib.contextmanager
def both(llm: ToyLLM, database: Database) -> Iterator[tuple[str, str, threading.Thread, Callable[[], object]]]:
    config = ServeConfig(port=0, admin_keys=(KEY,))
    inside = admin_config(config, host="127.0.0.1", port=0)
    app = create_app(llm, config, database=database)
    urls: tuple[Future[str], Future[str]] = (Future(), Future())

    async def serve() -> None:
        door = Door(
            app=create_admin_app(app, inside),
            config=inside,
            listener=admin_listener,
            on_ready=lambda found: urls[1].set_result(found[0]),
        )
        loop.set_result(asyncio.get_running_loop())
        await serve_app(
            app,
            config,
            listener=listener,
            on_ready=lambda found: urls[0].set_result(found[0]),
            administration=door,
        )

    loop: Future[asyncio.AbstractEventLoop] = Future()
    with open_socket(config) as listener, open_socket(inside) as admin_listener:
        thread = threading.Thread(target=lambda: asyncio.run(serve()))
        thread.start()

        def stop() -> None:
            with contextlib.suppress(RuntimeError):  # it has ended already
                loop.result(20).call_soon_threadsafe(app.state.lifetime.stop)

        try:
            yield urls[0].result(20), urls[1].result(20), thread, stop
        finally:
            stop()
            thread.join(20)
            assert not thread.is_alive()


def test_a_key_made_at_one_door_opens_the_other(database: Database) -> None:
    admin = {"authorization": f"Bearer {KEY}"}
    with both(ToyLLM(), database) as (public, inside, *_):
        assert httpx.get(f"{inside}/admin/v1/keys").status_code == 401
        assert httpx.get(f"{public}/admin/v1/keys", headers=admin).status_code == 403
        made = httpx.post(f"{inside}/admin/v1/keys", json={"name": "n"}, headers=admin).json()
        assert httpx.get(f"{public}/v1/models").status_code == 401
        bearer = {"authorization": f"Bearer {made['key']}"}
        assert httpx.get(f"{public}/v1/models", headers=bearer).status_code == 200
        assert httpx.get(f"{inside}/admin/v1/keys", headers=bearer).status_code == 403
        ours = f"{inside}/admin/v1/keys/{made['id']}"
        assert httpx.delete(ours, headers=admin).json()["state"] == "revoked"
        assert httpx.get(f"{public}/v1/models", headers=bearer).status_code == 401
        metrics = httpx.post(f"{inside}/admin/v1/keys", json={"name": "m", "scopes": ["metrics"]}, headers=admin).json()
        page = httpx.get(f"{public}/metrics", headers={"authorization": f"Bearer {metrics['key']}"}).text
        assert 'handler="/admin/v1/keys/{key_id}"' in page
    noted = {(entry.record.actor, entry.record.subject) for entry in AuditLog(database).newest()}
    assert ("local-admin", "DELETE /admin/v1/keys/{key_id}") in noted
    assert AuditLog(database).verify().broken_at is None


def test_both_doors_close_together_also_under_open_answers(database: Database) -> None:
    llm = ToyLLM(endless=True, step_s=0.01)
    with both(llm, database) as (public, inside, thread, stop):
        body = {"messages": [{"role": "user", "content": "x"}], "stream": True}
        with httpx.stream("POST", f"{public}/v1/chat/completions", json=body, timeout=20) as answer:
            lines = answer.iter_lines()
            assert next(lines)
            stop()
            assert "shutting down" in "".join(lines)
        thread.join(20)
    assert not thread.is_alive()
    assert llm.num_open == 0
    for url in (public, inside):
        with pytest.raises(httpx.TransportError):
            httpx.get(f"{url}/livez")
