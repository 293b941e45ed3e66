"""The kernels as a program without Python: checksums of the same results on this processor and on an emulated ARM."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
CROSS_COMPILER, EMULATOR = "aarch64-linux-gnu-g++", "qemu-aarch64"
ARM_LIBRARIES = "/usr/aarch64-linux-gnu"

pytestmark = [
    pytest.mark.xdist_group("kernel_sums"),  # built once
    pytest.mark.timeout(1800),  # -O3 of every instruction set
]


def build(folder: str, *definitions: str) -> Path:
    """Build `tests/native/kernel_sums.cc` with the flags that the extension has; quick where nothing changed."""
    search = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    cmake = shutil.which("cmake", path=search)
    if cmake is None:
        pytest.skip("no cmake here to build the program with; it comes with `pip install '.[dev]'`")
    at = ROOT / "build" / folder
    options = ["QWENSTACK_EXTENSION=OFF", "QWENSTACK_KERNEL_SUMS=ON", *definitions]
    for command in (
        [cmake, "-S", ROOT, "-B", at, *(f"-D{option}" for option in options)],
        [cmake, "--build", at, "--parallel", "2"],
    ):
        result = subprocess.run(command, capture_output=True, text=True)
        assert result.returncode == 0, result.stdout + result.stderr
    return at / "kernel_sums"


def sums(*command: str | Path) -> dict[str, dict[str, str]]:
    """Run the program; by instruction set, the checksum of each case."""
    result = subprocess.run(command, capture_output=True, text=True)
    assert (result.returncode, result.stderr) == (0, "")
    found: dict[str, dict[str, str]] = {}
    for line in result.stdout.splitlines():
        isa, rest = line.split(maxsplit=1)
        case, checksum = rest.rsplit(maxsplit=1)
        assert case not in found.setdefault(isa, {}), f"two cases are called {case}"
        found[isa][case] = checksum
    return found


@pytest.fixture(scope="module")
def native_sums() -> dict[str, dict[str, str]]:
    return sums(build("kernel-sums"))


@pytest.fixture(scope="module")
def arm_sums() -> dict[str, dict[str, str]]:
    missing = [tool for tool in (CROSS_COMPILER, EMULATOR) if shutil.which(tool) is None]
    if missing:
        pytest.skip(f"the ARM kernels were not checked: no {' and no '.join(missing)} here; `make test-arm` gets them")
    program = build(
        "kernel-sums-arm",
        "CMAKE_SYSTEM_NAME=Linux",
        "CMAKE_SYSTEM_PROCESSOR=aarch64",
        f"CMAKE_CXX_COMPILER={CROSS_COMPILER}",
    )
    return sums(EMULATOR, "-L", ARM_LIBRARIES, program)


def test_all_instruction_sets_of_this_processor_give_the_same_sums(native_sums):
    assert len(native_sums["scalar"]) > 400
    for isa, found in native_sums.items():
        assert found == native_sums["scalar"], isa


def test_arm_gives_the_sums_that_this_processor_gives(native_sums, arm_sums):
    assert set(arm_sums) == {"neon", "scalar"}
    for isa, found in arm_sums.items():
        assert found == native_sums["scalar"], isa
