"""qwenstack: from raw text to a served Qwen3 assistant.

from qwenstack import LLM, SamplingParams

llm = LLM("qwen2.5-coder-0.5b")
llm.chat([{"role": "user", "content": "你好！"}], SamplingParams(max_tokens=64))
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from qwenstack.core.grammar import Grammar
from qwenstack.core.request_options import RequestOptions
from qwenstack.core.sampling_params import SamplingParams

if TYPE_CHECKING:
    from qwenstack.engine.llm import LLM

__all__ = ["LLM", "Grammar", "RequestOptions", "SamplingParams"]
__version__ = "0.1.0"


def __getattr__(name: str) -> object:
    """Import the engine when it is first asked for, so that `qwenstack --help` does not wait for it."""
    if name == "LLM":
        from qwenstack.engine.llm import LLM

        return LLM
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
