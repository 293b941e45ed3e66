"""Traces for `serve`, where somebody asked for them."""

from __future__ import annotations

import contextlib
from collections.abc import Generator

from qwenstack.core.errors import ConfigError
from qwenstack.serving.traces import NO_TRACES, Traces


@contextlib.contextmanager
def traces_to(endpoint: str | None) -> Generator[Traces]:
    """Send spans to an OTLP receiver within the block; None: nowhere, and nothing of OpenTelemetry is loaded.

    Raises:
        ConfigError: the packages are missing, or the endpoint is no address.
    """
    if endpoint is None:
        yield NO_TRACES
        return
    try:
        from qwenstack.serving.otel import open_traces
    except ImportError as error:
        raise ConfigError(
            f"`otel.endpoint` is {endpoint[:200]!r}, but the packages for traces are not installed. "
            "`.venv/bin/pip install -e '.[otel]'` in the project's folder installs them; or unset it."
        ) from error
    with contextlib.closing(open_traces(endpoint)) as traces:
        yield traces
