"""What all tests share: real weights from the cache, and the public data where they are."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from qwenstack.hub.pull import locate


@pytest.fixture(scope="session")
def coder_gguf() -> Path:
    """The default model, Qwen2.5-Coder-0.5B-Instruct; fetched where it is not in the cache yet."""
    return locate("qwen2.5-coder-0.5b").path


@pytest.fixture(scope="session")
def smollm2_gguf() -> Path:
    """SmolLM2-135M-Instruct; fetched where it is not in the cache yet."""
    return locate("smollm2-135m").path


@pytest.fixture(scope="session")
def public_data() -> Path:
    """The folder of public data sets; tests that need it skip where it is absent."""
    folder = os.environ.get("QWENSTACK_DATA")
    if not folder:
        pytest.skip("set QWENSTACK_DATA to the folder of public data sets")
    return Path(folder)
