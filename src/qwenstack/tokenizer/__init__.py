"""Text and conversations to token ids and back."""

from __future__ import annotations

from qwenstack.tokenizer.detokenizer import StreamingDetokenizer
from qwenstack.tokenizer.stop_strings import StopStrings
from qwenstack.tokenizer.tokenizer import Tokenizer

__all__ = ["StopStrings", "StreamingDetokenizer", "Tokenizer"]
