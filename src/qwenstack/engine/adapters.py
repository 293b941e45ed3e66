"""The LoRA adapters that an engine serves by name: loaded and unloaded between steps, never under a running request.

A request holds the version of an adapter that it began with. Unloading a name, or loading another folder under it, is
seen by later requests alone; a version that nobody can ask for any more is dropped with the last request that uses it.

Like the engine, a set is used by one thread.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from qwenstack.core.errors import CapacityError, RequestError
from qwenstack.core.protocols import AdapterInfo
from qwenstack.core.weight_type import WeightType
from qwenstack.engine.config import MAX_ADAPTERS, check_adapter_name
from qwenstack.kernels import Kernels
from qwenstack.models import LoraAdapter, ModelConfig, load_adapter

MAX_ADAPTER_BYTES = 2 << 30
"""Of all adapters together; one of rank 16 on all layers of a 0.5B model takes 18 MB, of an 8B model 84 MB."""


class AdapterSet:
    """Loaded adapters by name, with a count of the sequences that use each version.

    Args:
        config: the model that they change.
        kernels: those of its decoder.
        is_quantized: whether its weights are; factors stored in float32 are then kept as float16, see `load_adapter`.
        max_adapters: names at a time.
        max_bytes: memory of all versions, those that are only used to the end included.
    """

    def __init__(
        self,
        config: ModelConfig,
        kernels: Kernels,
        *,
        is_quantized: bool,
        max_adapters: int = MAX_ADAPTERS,
        max_bytes: int = MAX_ADAPTER_BYTES,
    ) -> None:
        """Begin without adapters."""
        self._config = config
        self._kernels = kernels
        self._factor_type = WeightType.F16 if is_quantized else None
        self._max_adapters = max_adapters
        self._max_bytes = max_bytes
        self._by_name: dict[str, LoraAdapter] = {}
        self._num_users: Counter[LoraAdapter] = Counter()

    @property
    def num_bytes(self) -> int:
        """Memory of all versions that can be asked for or are still in use."""
        return sum(adapter.num_bytes for adapter in {*self._by_name.values(), *self._num_users})

    def load(self, name: str, path: Path) -> AdapterInfo:
        """Make the adapter of a PEFT folder known under a name; requests that use an older version keep it.

        Nothing changes if this fails.

        Raises:
            ConfigError: the name has other characters than names have.
            ModelFormatError: the folder holds no adapter for this model.
            CapacityError: there are too many adapters, or they take too much memory.
        """
        check_adapter_name(name)
        if name not in self._by_name and len(self._by_name) >= self._max_adapters:
            raise CapacityError(
                f"{len(self._by_name)} adapters are loaded, as many as `max_adapters` allows. Unload one first."
            )
        adapter = load_adapter(path, self._config, self._kernels, factor_type=self._factor_type)
        known = self._by_name.get(name)
        if known is None or known.digest != adapter.digest:
            kept = self.num_bytes - (known.num_bytes if known is not None and not self._num_users[known] else 0)
            if kept + adapter.num_bytes > self._max_bytes:
                raise CapacityError(
                    f"The adapter {name!r} takes {adapter.num_bytes} bytes beside {kept} of others; "
                    f"{self._max_bytes} are allowed. Unload one, or wait until requests that use an old one end."
                )
            self._by_name[name] = adapter
        return self._info(name)

    def unload(self, name: str) -> None:
        """Forget a name; requests that use its adapter run to their end.

        Raises:
            RequestError: there is no such adapter.
        """
        self.get(name)
        del self._by_name[name]

    def get(self, name: str) -> LoraAdapter:
        """Return the version that a name stands for now.

        Raises:
            RequestError: there is no such adapter.
        """
        adapter = self._by_name.get(name)
        if adapter is None:
            known = ", ".join(sorted(self._by_name)) or "none"
            raise RequestError(
                f"There is no adapter {name[:64]!r}; loaded: {known}.", param="adapter", code="model_not_found"
            )
        return adapter

    def hold(self, adapter: LoraAdapter) -> None:
        """Count one more sequence that uses a version, which must `release` it."""
        self._num_users[adapter] += 1

    def release(self, adapter: LoraAdapter) -> None:
        """Count one sequence less."""
        assert self._num_users[adapter] > 0
        self._num_users[adapter] -= 1
        if not self._num_users[adapter]:
            del self._num_users[adapter]

    def infos(self) -> list[AdapterInfo]:
        """Describe the adapters that requests may name, by name."""
        return [self._info(name) for name in sorted(self._by_name)]

    def _info(self, name: str) -> AdapterInfo:
        adapter = self._by_name[name]
        return AdapterInfo(
            name=name,
            rank=adapter.max_rank,
            num_bytes=adapter.num_bytes,
            num_sequences=self._num_users[adapter],
            digest=adapter.digest,
        )
