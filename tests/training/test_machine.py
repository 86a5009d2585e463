"""Freed memory is kept: later allocations cause hardly any page faults."""

import os
import subprocess
import sys

import pytest

from tslm.training.machine import keep_freed_memory

ROUNDS = """
import resource, sys
import torch
from tslm.training.machine import keep_freed_memory

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    arrays = [torch.ones(5_000_000) for _ in range(4)]  # 20 MB each
    del arrays
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

done = keep_freed_memory() if sys.argv[1] == "kept" else None
for _ in range(16):
    faults()
print(done, faults())
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc's allocator")
def test_freed_memory_is_reused_without_page_faults():
    def run(how):
        # By default glibc raises its thresholds by itself, in an order of events that changes from run to run.
        small = {"MALLOC_MMAP_THRESHOLD_": "131072", "MALLOC_TRIM_THRESHOLD_": "131072"}
        result = subprocess.run(
            [sys.executable, "-c", ROUNDS, how], capture_output=True, text=True, check=True, env=os.environ | small
        )
        done, faults = result.stdout.split()
        return done, int(faults)

    returned, kept = run("returned"), run("kept")
    assert returned[1] > 10_000  # 80 MB in pages of 4 KiB
    assert kept[0] == "True"
    assert kept[1] < returned[1] / 10


def test_other_systems_are_left_alone():
    assert keep_freed_memory("darwin") is False
