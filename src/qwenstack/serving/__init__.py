"""The model over HTTP: OpenAI's API, health, metrics and the web page.

`create_app` builds the application over any `AsyncLLM`, `create_admin_app` its administration; `serve_app` and
`run_server` listen and stop cleanly. Nothing here knows how the model works.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from qwenstack.serving.admin.config import admin_config
from qwenstack.serving.config import ServeConfig
from qwenstack.serving.identity import KeyRing, check_binding
from qwenstack.serving.listener import open_socket
from qwenstack.serving.traces import NO_TRACES, Traces

if TYPE_CHECKING:
    from qwenstack.serving.admin.app import create_admin_app
    from qwenstack.serving.app import create_app
    from qwenstack.serving.server import Door, run_server, serve_app

__all__ = [
    "NO_TRACES",
    "Door",
    "KeyRing",
    "ServeConfig",
    "Traces",
    "admin_config",
    "check_binding",
    "create_admin_app",
    "create_app",
    "open_socket",
    "run_server",
    "serve_app",
]


def __getattr__(name: str) -> object:
    """Import the applications when they are first asked for: all that they are made of takes longer than a model."""
    match name:
        case "create_app":
            from qwenstack.serving.app import create_app as found
        case "create_admin_app":
            from qwenstack.serving.admin.app import create_admin_app as found
        case "Door" | "run_server" | "serve_app":
            from qwenstack.serving import server

            found = getattr(server, name)
        case _:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return found
