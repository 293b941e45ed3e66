"""The arithmetic of a forward pass: one signature per operation, a readable numpy twin and a fast C++ one.

`load_kernels` picks an implementation of `Kernels` whose self-test passes; `dequantize` turns stored weights into
floats. The package knows arrays and storage types, not models, files or requests.
"""

from qwenstack.kernels.dequantize import dequantize
from qwenstack.kernels.load import KernelChoice, isas_to_try, load_kernels, self_test_of, supported_isas
from qwenstack.kernels.protocol import (
    ActivationBits,
    DenseLayer,
    Expert,
    Isa,
    Kernels,
    LayerLora,
    LoraMatrix,
    LoraRows,
    PackedLinear,
    PackedLora,
    Place,
    RawWeight,
    RecordedLayers,
)
from qwenstack.kernels.reference import ReferenceKernels
from qwenstack.kernels.self_test import SelfTest

__all__ = [
    "ActivationBits",
    "DenseLayer",
    "Expert",
    "Isa",
    "KernelChoice",
    "Kernels",
    "LayerLora",
    "LoraMatrix",
    "LoraRows",
    "PackedLinear",
    "PackedLora",
    "Place",
    "RawWeight",
    "RecordedLayers",
    "ReferenceKernels",
    "SelfTest",
    "dequantize",
    "isas_to_try",
    "load_kernels",
    "self_test_of",
    "supported_isas",
]
