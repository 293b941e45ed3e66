"""From a configuration to an engine with everything around it: model, caches, guesses, grammars, adapters, journal."""

from __future__ import annotations

import logging
import secrets
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from qwenstack.core.errors import ConfigError, QwenStackError
from qwenstack.engine.cache_key import numpy_probe
from qwenstack.engine.config import EngineConfig
from qwenstack.engine.engine import Engine
from qwenstack.engine.grammar import GrammarCompiler
from qwenstack.engine.hooks import SILENT, Journal, StepClock, StepRecorder
from qwenstack.engine.journal import open_journal
from qwenstack.engine.kv_store import KVStore, KVStoreConfig, default_folder
from qwenstack.engine.loading import LoadedModel, load_model
from qwenstack.engine.prefix_roots import PrefixRoots
from qwenstack.engine.private_folder import PrivateFolder
from qwenstack.engine.speculation import DraftModelSpeculator, NgramSpeculator, Speculator, StepCost, load_draft_model
from qwenstack.engine.tenant_secret import load_tenant_secret
from qwenstack.hub.fingerprint import checkpoint_fingerprint, fingerprint_memory, identify_checkpoint
from qwenstack.hub.peft import read_adapter
from qwenstack.kernels import Kernels

logger = logging.getLogger(__name__)

_ROW_COSTS = {"avx512": 0.07, "avx2": 0.3, "neon": 0.3, "scalar": 0.9}
"""Time of one more row in a decoding step, in steps: Qwen2.5-Coder-0.5B on two cores, `benches/speculation.py --cost`
(AVX2); from 47 tokens/s in decoding and 657 in prefill (AVX-512); what is bound by arithmetic alone (scalar). NEON was
never measured and is taken for AVX2."""


def build_engine(
    config: EngineConfig,
    *,
    instrument: Callable[[Kernels], Kernels] = lambda kernels: kernels,
    journal: Journal | None = None,
    recorder: StepRecorder = SILENT,
    clock: StepClock = SILENT,
) -> Engine:
    """Load a model and make an engine of it as the configuration says.

    Args:
        config: what to run.
        instrument: may wrap the kernels, to measure them.
        journal: instead of the one that the configuration names.
        recorder: is told who is computed.
        clock: measures the parts of a step.

    Raises:
        CheckpointError: a model is missing, damaged or of a kind that is not read here.
        CapacityError: it does not fit into memory.
        ConfigError: a setting does not suit the machine or the model.
    """
    fingerprint = _fingerprint_of(config)
    model = load_model(config, instrument=instrument)
    roots, store = _prefix_parts(model, fingerprint)
    return Engine(
        model,
        roots=roots,
        store=store,
        speculator=_speculator(config, model),
        grammars=GrammarCompiler(model.tokenizer, max_pending=config.max_pending_grammars),
        journal=open_journal(model) if journal is None else journal,
        recorder=recorder,
        clock=clock,
    )


def _fingerprint_of(config: EngineConfig) -> Callable[[], bytes]:
    """Begin to hash the model beside everything else; half a gigabyte takes half a second where it is not known."""
    identity = identify_checkpoint(config.model_path)
    pool = ThreadPoolExecutor(1, thread_name_prefix="fingerprint")
    hashing = pool.submit(checkpoint_fingerprint, identity, fingerprint_memory())
    pool.shutdown(wait=False)

    def fingerprint() -> bytes:
        try:
            return hashing.result()
        except (QwenStackError, OSError) as error:
            logger.warning("Cached prefixes are not shared with other runs: %s", error)
            return secrets.token_bytes(32)

    return fingerprint


def _prefix_parts(model: LoadedModel, fingerprint: Callable[[], bytes]) -> tuple[PrefixRoots, KVStore | None]:
    config = model.config
    folder = config.prefix_cache_dir or default_folder()
    store = None
    if config.enable_prefix_caching and config.prefix_cache_disk_bytes:
        store_config = KVStoreConfig(
            folder=folder, limit_bytes=config.prefix_cache_disk_bytes, max_age_s=config.prefix_cache_max_age_s
        )
        store = KVStore(store_config, payload_bytes=model.kv_cache.block_bytes())
    roots = PrefixRoots(
        fingerprint=fingerprint,
        secret=_tenant_secret(folder) if store is not None else secrets.token_bytes(32),
        kv_dtype=model.kv_cache.dtype_name,
        settings=_settings_of(model),
        arithmetic=numpy_probe(),
    )
    return roots, store


def _settings_of(model: LoadedModel) -> bytes:
    """Return what decides keys and values beside the model's files, type and precision."""
    config = model.config
    implementation = model.decoder.kernels.name.split()[0]  # all instruction sets give the same bits
    merged = read_adapter(config.merged_adapter).digest if config.merged_adapter is not None else "none"
    return f"{implementation} weights={config.weight_format} yarn={config.yarn_factor} merged={merged}".encode()


def _tenant_secret(folder: Path) -> bytes:
    try:
        return load_tenant_secret(PrivateFolder(folder))
    except (ConfigError, OSError):  # the store says why it is off
        return secrets.token_bytes(32)


def _speculator(config: EngineConfig, model: LoadedModel) -> Speculator | None:
    if config.draft_model_path is not None:
        return DraftModelSpeculator(load_draft_model(config.draft_model_path, model))
    if config.speculation == "off":
        return None
    kernels = model.decoder.kernels.name
    return NgramSpeculator(StepCost(per_row=next((cost for isa, cost in _ROW_COSTS.items() if isa in kernels), 1.0)))
