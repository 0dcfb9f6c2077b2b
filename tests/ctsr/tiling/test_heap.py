"""Free memory goes back to the system."""

import subprocess
import sys

import pytest

from ctsr.tiling import heap

LEAVES_GAPS = """
import importlib.util, psutil, sys
spec = importlib.util.spec_from_file_location("heap", sys.argv[1])  # without torch, which takes seconds
heap = importlib.util.module_from_spec(spec)
spec.loader.exec_module(heap)
resident = lambda: psutil.Process().memory_info().rss // 2**20
warm = [bytearray(2**20) for _ in range(3)]
del warm  # from now on glibc keeps blocks of this size in its heap
blocks = [bytearray(2**20) for _ in range(300)]
last = blocks[-1]
del blocks
before = resident()
heap.give_back()
print(before - resident())
"""


@pytest.mark.skipif(heap.malloc_trim() is None, reason="the C library has no malloc_trim")
def test_gaps_below_a_block_in_use_are_given_back():
    """In a process of its own, whose heap nothing else has touched."""
    command = [sys.executable, "-c", LEAVES_GAPS, heap.__file__]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    assert int(result.stdout) > 200


def test_another_c_library_is_left_alone(monkeypatch):
    monkeypatch.setattr(heap, "malloc_trim", lambda: None)
    heap.give_back()
