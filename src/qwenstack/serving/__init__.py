"""The model over HTTP: OpenAI's API, health, metrics and the web page.

`create_app` builds the application over any `AsyncLLM`, `create_admin_app` its administration; `serve_app` and
`run_server` listen and stop cleanly. Nothing here knows how the model works.
"""

from __future__ import annotations

from importlib import import_module
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

_IMPORTED_LATE = {
    "Door": "qwenstack.serving.server",
    "create_admin_app": "qwenstack.serving.admin.app",
    "create_app": "qwenstack.serving.app",
    "run_server": "qwenstack.serving.server",
    "serve_app": "qwenstack.serving.server",
}


def __getattr__(name: str) -> object:
    """Import the applications when they are first asked for: all that they are made of takes longer than a model."""
    if name not in _IMPORTED_LATE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_IMPORTED_LATE[name]), name)
