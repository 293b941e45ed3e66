"""The Qwen family: configuration, weight names and the forward pass."""

from qwenstack.models.batch import KVCache, PackedBatch, kv_bytes_per_token
from qwenstack.models.config import ModelConfig
from qwenstack.models.decoder import Decoder
from qwenstack.models.lora import LoraAdapter, load_adapter, merge_adapter
from qwenstack.models.weight_format import WeightFormat
from qwenstack.models.weights import WeightReader, read_config

__all__ = [
    "Decoder",
    "KVCache",
    "LoraAdapter",
    "ModelConfig",
    "PackedBatch",
    "WeightFormat",
    "WeightReader",
    "kv_bytes_per_token",
    "load_adapter",
    "merge_adapter",
    "read_config",
]
