"""The engine: from token ids to token ids, for many callers at once."""

from qwenstack.engine.config import EngineConfig
from qwenstack.engine.llm import LLM

__all__ = ["LLM", "EngineConfig"]
