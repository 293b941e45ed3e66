"""Which implementation of the kernels runs."""

from __future__ import annotations

import functools
import logging
from typing import Literal, TypeAlias

from qwenstack.kernels.protocol import ActivationBits, Isa, Kernels
from qwenstack.kernels.reference import ReferenceKernels
from qwenstack.kernels.self_test import SelfTest, run_self_test

logger = logging.getLogger(__name__)

KernelChoice: TypeAlias = Literal["auto", "avx512", "avx2", "neon", "scalar", "reference"]
"""`auto` takes the best instruction set of this processor; `reference` is numpy, slow and readable."""


def load_kernels(num_threads: int, isa: KernelChoice = "auto", *, activation_bits: ActivationBits = 8) -> Kernels:
    """Return the kernels of the user's choice, or slower ones where a self-test finds that those compute nonsense.

    Raises:
        ValueError: the processor lacks the instruction set, or `num_threads` is out of range.
        ImportError: the C++ extension was not built.
    """
    if isa == "reference":
        return ReferenceKernels(activation_bits)
    from qwenstack.kernels.native import NativeKernels  # the reference runs where the extension was not built

    for candidate in isas_to_try(isa):
        kernels = NativeKernels(num_threads, candidate, activation_bits=activation_bits)
        wrong = self_test_of(candidate).wrong
        if not wrong:
            return kernels
        logger.warning(
            "The kernels for %r compute wrong numbers on this processor (%s); the next slower ones are taken. "
            "`qwenstack doctor` says more.",
            candidate,
            ", ".join(wrong),
        )
    logger.warning("No compiled kernels compute right numbers here; those in numpy are taken, which are very slow.")
    return ReferenceKernels(activation_bits)


def supported_isas() -> tuple[Isa, ...]:
    """Return the instruction sets that were built and that this processor has, the fastest first."""
    from qwenstack.kernels import native

    return native.supported_isas()


def isas_to_try(isa: Isa | Literal["auto"]) -> tuple[Isa, ...]:
    """Return the instruction set that was chosen, and those that follow where its self-test fails."""
    supported = supported_isas()
    if isa == "auto":
        return supported
    return supported[supported.index(isa) :] if isa in supported else (isa,)


@functools.cache
def self_test_of(isa: Isa) -> SelfTest:
    """Return whether this processor computes right numbers with an instruction set; tested once in a process."""
    from qwenstack.kernels.native import NativeKernels

    return run_self_test(NativeKernels(1, isa), ReferenceKernels())
