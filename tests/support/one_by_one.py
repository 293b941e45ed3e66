"""Kernels that know no recordings: a model on them calls operation after operation."""

from __future__ import annotations

from typing import Any

from qwenstack.kernels import ActivationBits, Kernels


class OneByOne:
    """Other kernels without `record_layers`."""

    def __init__(self, kernels: Kernels) -> None:
        """Wrap them."""
        self.kernels = kernels

    def __getattr__(self, name: str) -> Any:
        return getattr(self.kernels, name)

    def with_activation_bits(self, activation_bits: ActivationBits) -> Any:
        """See `Kernels.with_activation_bits`."""
        return type(self)(self.kernels.with_activation_bits(activation_bits))

    def record_layers(self, *_: Any, **__: Any) -> None:
        """See `Kernels.record_layers`."""
