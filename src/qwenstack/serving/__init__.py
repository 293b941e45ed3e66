"""The model over HTTP: OpenAI's API, health, metrics and the web page.

`create_app` builds the application over any `AsyncLLM`, `create_admin_app` its administration; `serve_app` and
`run_server` listen and stop cleanly. Nothing here knows how the model works.
"""

from qwenstack.serving.admin.app import admin_config, create_admin_app
from qwenstack.serving.app import create_app
from qwenstack.serving.config import ServeConfig
from qwenstack.serving.identity import KeyRing, check_binding
from qwenstack.serving.server import Door, open_socket, run_server, serve_app
from qwenstack.serving.traces import NO_TRACES, Traces

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
