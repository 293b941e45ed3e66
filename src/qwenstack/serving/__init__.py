"""The model over HTTP: OpenAI's API, health, metrics and the web page.

`create_app` builds the application over any `AsyncLLM`; `serve_app` and `run_server` listen and stop cleanly. Nothing
here knows how the model works.
"""

from qwenstack.serving.app import create_app
from qwenstack.serving.config import ServeConfig
from qwenstack.serving.identity import KeyRing, check_binding
from qwenstack.serving.server import open_socket, run_server, serve_app

__all__ = ["KeyRing", "ServeConfig", "check_binding", "create_app", "open_socket", "run_server", "serve_app"]
