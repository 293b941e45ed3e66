"""Text and conversations to token ids and back."""

from __future__ import annotations

from qwenstack.tokenizer.chat_markers import ChatMarkers, Marks, ToolFormat
from qwenstack.tokenizer.detokenizer import StreamingDetokenizer
from qwenstack.tokenizer.stop_strings import StopStrings
from qwenstack.tokenizer.tokenizer import Tokenizer

__all__ = ["ChatMarkers", "Marks", "StopStrings", "StreamingDetokenizer", "Tokenizer", "ToolFormat"]
