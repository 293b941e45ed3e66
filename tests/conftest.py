"""What all tests share: real weights from the cache."""

from __future__ import annotations

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
