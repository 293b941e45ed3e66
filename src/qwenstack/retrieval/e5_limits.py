"""The sizes of multilingual-e5-small.

Source: `config.json` of intfloat/multilingual-e5-small, Hugging Face.
"""

DIMENSIONS = 384
MAX_TOKENS = 512
"""Positions that it has, `query: ` and its two marks included."""
NUM_PARAMETERS = 117_653_760
