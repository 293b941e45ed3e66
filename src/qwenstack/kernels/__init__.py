"""The arithmetic of a forward pass: one signature per operation, a readable numpy twin and a fast C++ one.

`load_kernels` picks an implementation of `Kernels` whose self-test passes; `dequantize` turns stored weights into
floats. The package knows arrays and storage types, not models, files or requests.
"""

from qwenstack.kernels.dequantize import dequantize
from qwenstack.kernels.load import KernelChoice, isas_to_try, load_kernels, self_test_of, supported_isas
from qwenstack.kernels.protocol import (
    ActivationBits,
    Expert,
    Isa,
    Kernels,
    LoraMatrix,
    LoraRows,
    PackedLinear,
    PackedLora,
    RawWeight,
)
from qwenstack.kernels.reference import ReferenceKernels
from qwenstack.kernels.self_test import SelfTest

__all__ = [
    "ActivationBits",
    "Expert",
    "Isa",
    "KernelChoice",
    "Kernels",
    "LoraMatrix",
    "LoraRows",
    "PackedLinear",
    "PackedLora",
    "RawWeight",
    "ReferenceKernels",
    "SelfTest",
    "dequantize",
    "isas_to_try",
    "load_kernels",
    "self_test_of",
    "supported_isas",
]
