"""What the garbage collector passes over, in a process of its own: it holds for all of one."""

from __future__ import annotations

import subprocess
import sys

PROGRAM = """
import gc, weakref
from qwenstack.core.heap import keep_what_is_here

class Knot:
    def __init__(self): self.me = self

def is_collected():
    gone = weakref.ref(Knot())
    gc.collect()
    return gone() is None

assert gc.get_freeze_count() == 0
before = len(gc.get_objects())
keep_what_is_here()
assert gc.get_freeze_count() >= before
assert len(gc.get_objects()) < before / 10
assert is_collected()
"""


def test_what_is_there_is_passed_over_and_what_comes_later_is_collected() -> None:
    subprocess.run([sys.executable, "-c", PROGRAM], check=True, timeout=60)
