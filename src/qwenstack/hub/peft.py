"""Reads the folder in which PEFT keeps a LoRA adapter; the files may be hostile.

What is read is the change of each matrix, `scale · up @ down`, under the matrix's own name. A configuration that asks
for anything else than this sum is refused by the name of the setting, rather than computed wrongly.

Source: `LoraConfig` and the save format of PEFT 0.21; Hu et al. 2021, arXiv:2106.09685.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

import numpy as np

from qwenstack.core.errors import ModelFormatError
from qwenstack.hub.mapped_file import read_file
from qwenstack.hub.model_folder import file_in_folder
from qwenstack.hub.safetensors import parse_safetensors
from qwenstack.hub.stored_tensor import StoredTensor
from qwenstack.hub.strict_json import JsonObject, as_object, parse_json_object

CONFIG_FILE = "adapter_config.json"
WEIGHTS_FILE = "adapter_model.safetensors"
PICKLED_WEIGHTS = "adapter_model.bin"
_WHAT_TO_GIVE = f"Give the folder that PEFT's 'save_pretrained' wrote, with {CONFIG_FILE!r} and {WEIGHTS_FILE!r} in it"
MAX_CONFIG_BYTES = 1 << 20
MAX_WEIGHTS_BYTES = 2 << 30
"""All linear layers of an 8B model at rank 256 in bfloat16 are 1.4 GB; ranks in use are 8 to 64."""
MAX_RANK = 1024

_FACTOR_NAME = re.compile(r"base_model\.model\.([a-z0-9_.]{1,200})\.lora_([AB])\.weight")
_DESCRIPTIVE = frozenset(
    {
        "task_type",
        "auto_mapping",
        "peft_version",
        "base_model_name_or_path",
        "revision",
        "inference_mode",
        "target_modules",
        "exclude_modules",
        "layers_to_transform",
        "layers_pattern",
        "lora_dropout",
        "eva_config",
        "megatron_core",
        "qalora_group_size",
        "runtime_config",
    }
)
"""Settings of the training, or that the tensors themselves show: they do not change what is computed."""
_READ = frozenset(
    {"peft_type", "r", "lora_alpha", "rank_pattern", "alpha_pattern", "use_rslora", "bias", "init_lora_weights"}
)
_REASONS = {
    "use_dora": "DoRA rescales every row of the changed matrix",
    "modules_to_save": "it replaces whole modules, which all requests would have to share",
    "fan_in_fan_out": "it stores its matrices transposed, as GPT-2 does",
    "lora_bias": "it adds a bias",
    "target_parameters": "it changes parameters of experts",
    "trainable_token_indices": "it changes rows of the embedding",
    "alora_invocation_tokens": "it is active for a part of the prompt only",
}
_LEAVES_BASE = (True, False, "gaussian", "eva", "orthogonal")
"""Initialisations after which the base model is what it was; PiSSA, OLoRA and CorDA train against a changed one."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class LoraFactors:
    """The change of one matrix `[O, D]`: `scale · up @ down`."""

    down: StoredTensor
    """`[rank, D]`, PEFT's `lora_A`."""
    up: StoredTensor
    """`[O, rank]`, PEFT's `lora_B`."""
    scale: float

    @property
    def rank(self) -> int:
        """The inner size of the product."""
        return self.down.shape[0]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class PeftAdapter:
    """A LoRA adapter as its folder describes it."""

    path: Path
    digest: str
    """SHA-256 over the bytes of both files, in hexadecimal: what caches know the adapter by."""
    factors: Mapping[str, LoraFactors]
    """By the module that they change, such as `model.layers.0.self_attn.q_proj`."""


def read_adapter(folder: Path) -> PeftAdapter:
    """Read an adapter folder whole.

    Raises:
        ModelFormatError: a file is missing, too large or damaged, the factors do not fit together, or the adapter does
            more than to add a product of low rank.
    """
    raw_config = _read(folder, CONFIG_FILE, MAX_CONFIG_BYTES)
    config = parse_json_object(raw_config, repr(str(folder / CONFIG_FILE)))
    _refuse_what_is_not_computed(config, folder)
    raw_weights = _read(folder, WEIGHTS_FILE, MAX_WEIGHTS_BYTES)
    tensors = parse_safetensors(np.frombuffer(raw_weights, np.uint8), folder / WEIGHTS_FILE).tensors
    digest = hashlib.sha256(len(raw_config).to_bytes(8, "little") + raw_config)
    digest.update(raw_weights)
    return PeftAdapter(path=folder, digest=digest.hexdigest(), factors=_pair_factors(tensors, config, folder))


def _fail(folder: Path, what: str) -> NoReturn:
    raise ModelFormatError(f"The adapter {str(folder.absolute())!r} cannot be used: {what}.")


def _read(folder: Path, name: str, limit_bytes: int) -> bytes:
    if not folder.is_dir():
        _fail(folder, f"{'it is a file' if folder.exists() else 'there is no such folder'}. {_WHAT_TO_GIVE}")
    path = file_in_folder(folder, name)
    if path is not None:
        return read_file(path, limit_bytes)
    if name == WEIGHTS_FILE and (folder / PICKLED_WEIGHTS).exists():
        _fail(
            folder,
            f"{PICKLED_WEIGHTS!r} is a pickle, and opening a pickle can run code. Convert it with 'peft': "
            "PeftModel.from_pretrained(base, folder).save_pretrained(new_folder)",
        )
    _fail(folder, f"it has no {name!r}. {_WHAT_TO_GIVE}")


def _refuse_what_is_not_computed(config: JsonObject, folder: Path) -> None:
    if config.get("peft_type") != "LORA":
        _fail(folder, f"its 'peft_type' is {config.get('peft_type')!r}; only 'LORA' is computed here")
    if config.get("bias", "none") != "none":
        _fail(folder, f"its 'bias' is {config['bias']!r}; only adapters without trained biases ('none') are computed")
    if config.get("init_lora_weights", True) not in _LEAVES_BASE:
        _fail(
            folder,
            f"its 'init_lora_weights' is {config['init_lora_weights']!r}, which changes the base model too. Convert "
            "it with 'path_initial_model_for_weight_conversion' of PEFT's 'save_pretrained'",
        )
    for name, value in config.items():
        if name not in _DESCRIPTIVE and name not in _READ and value:
            reason = _REASONS.get(name, "what this changes is not computed here")
            _fail(folder, f"its {name!r} is set: {reason}. Train without it, or merge the adapter with PEFT")


def _pair_factors(tensors: Mapping[str, StoredTensor], config: JsonObject, folder: Path) -> Mapping[str, LoraFactors]:
    halves: dict[str, dict[str, StoredTensor]] = {}
    for name, tensor in tensors.items():
        match = _FACTOR_NAME.fullmatch(name)
        if match is None:
            _fail(folder, f"its tensor {name!r} is not a LoRA factor of a linear layer")
        if len(tensor.shape) != 2 or 0 in tensor.shape:
            _fail(folder, f"its tensor {name!r} has shape {list(tensor.shape)}; a factor has two sizes")
        halves.setdefault(match[1], {})[match[2]] = tensor
    if not halves:
        _fail(folder, "it holds no tensors")
    scaling = _Scaling.of(config, folder)
    factors: dict[str, LoraFactors] = {}
    for module, pair in halves.items():
        if len(pair) != 2:
            _fail(folder, f"{module!r} has only one of 'lora_A' and 'lora_B'")
        down, up = pair["A"], pair["B"]
        rank = down.shape[0]
        if up.shape[1] != rank or rank > MAX_RANK:
            _fail(
                folder,
                f"{module!r} has factors of {list(up.shape)} and {list(down.shape)}; the inner sizes must be one rank "
                f"of at most {MAX_RANK}",
            )
        factors[module] = LoraFactors(down=down, up=up, scale=scaling.scale(module, rank))
    return factors


@dataclass(frozen=True, slots=True, kw_only=True)
class _Scaling:
    """How PEFT scales the product of a module's factors: alpha / rank, or alpha / √rank."""

    folder: Path
    rank: int
    alpha: float
    rank_of: Mapping[str, float]
    alpha_of: Mapping[str, float]
    by_root: bool

    @classmethod
    def of(cls, config: JsonObject, folder: Path) -> _Scaling:
        rank = config.get("r")
        if type(rank) is not int or not 1 <= rank <= MAX_RANK:
            _fail(folder, f"its 'r' is {rank!r}; a rank lies between 1 and {MAX_RANK}")
        by_root = config.get("use_rslora", False)
        if not isinstance(by_root, bool):
            _fail(folder, f"its 'use_rslora' is {by_root!r}; true or false is meant")
        return cls(
            folder=folder,
            rank=rank,
            alpha=_positive(config.get("lora_alpha"), "lora_alpha", folder),
            rank_of=_pattern(config, "rank_pattern", folder),
            alpha_of=_pattern(config, "alpha_pattern", folder),
            by_root=by_root,
        )

    def scale(self, module: str, rank: int) -> float:
        expected = _first_match(self.rank_of, module, self.rank)
        if rank != expected:
            _fail(self.folder, f"{module!r} has rank {rank}; {CONFIG_FILE!r} says {expected:g}")
        alpha = _first_match(self.alpha_of, module, self.alpha)
        return alpha / math.sqrt(rank) if self.by_root else alpha / rank


def _positive(value: object, name: str, folder: Path) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= 1e6:
        _fail(folder, f"its {name!r} is {value!r}; a number above 0 and of at most a million is meant")
    return float(value)


def _pattern(config: JsonObject, name: str, folder: Path) -> Mapping[str, float]:
    """Return the numbers of single modules.

    PEFT takes the keys as regular expressions, written by whoever made the file, and such an expression can take
    minutes to match. Module names are all that is needed, so that nothing else is read.
    """
    members = as_object(config.get(name) or {})
    if members is None:
        _fail(folder, f"its {name!r} is not an object")
    for key in members:
        if re.fullmatch(r"\^?[a-z0-9_.]{1,200}", key) is None:
            _fail(folder, f"its {name!r} has the key {key!r}; only names of modules are read, no regular expressions")
    return {key: _positive(value, name, folder) for key, value in members.items()}


def _first_match(numbers: Mapping[str, float], module: str, default: float) -> float:
    """Return the number of the first key that names the module, or the end of its name from a dot on."""
    for key, number in numbers.items():
        if module == key.removeprefix("^") or (not key.startswith("^") and module.endswith(f".{key}")):
            return number
    return default
