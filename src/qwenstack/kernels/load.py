"""Which implementation of the kernels runs."""

from __future__ import annotations

from typing import Literal, TypeAlias

from qwenstack.kernels.protocol import ActivationBits, Isa, Kernels
from qwenstack.kernels.reference import ReferenceKernels

KernelChoice: TypeAlias = Literal["auto", "avx512", "avx2", "neon", "scalar", "reference"]
"""`auto` takes the best instruction set of this processor; `reference` is numpy, slow and readable."""


def load_kernels(num_threads: int, isa: KernelChoice = "auto", *, activation_bits: ActivationBits = 8) -> Kernels:
    """Return the kernels of the user's choice.

    Raises:
        ValueError: the processor lacks the instruction set, or `num_threads` is out of range.
        ImportError: the C++ extension was not built.
    """
    if isa == "reference":
        return ReferenceKernels(activation_bits)
    from qwenstack.kernels.native import NativeKernels  # the reference runs where the extension was not built

    return NativeKernels(num_threads, None if isa == "auto" else isa, activation_bits=activation_bits)


def supported_isas() -> tuple[Isa, ...]:
    """Return the instruction sets that were built and that this processor has, the fastest first."""
    from qwenstack.kernels import native

    return native.supported_isas()
