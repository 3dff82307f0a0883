"""Freed memory that is kept for the next tensor."""

import platform
import subprocess
import sys

import pytest

PROGRAM = """
import resource, sys
import torch
from vgse.images.devices import freed_memory_kept

def pages_filled():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(20):
        torch.ones(40 << 18)  # 40 MiB
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

def held():
    return int(open("/proc/self/statm").read().split()[1]) * resource.getpagesize() >> 20

pages_filled()
plain, before = pages_filled(), held()
with freed_memory_kept():
    pages_filled()
    kept = pages_filled()
    inside = held()
print(plain, kept, before, inside, held())
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="a matter of the GNU C library")
def test_memory_is_used_again_inside_and_given_back_at_the_end() -> None:
    ran = subprocess.run(
        [sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True
    )
    plain, kept, before, inside, after = map(int, ran.stdout.split())
    assert plain > 20 * kept
    assert inside >= before + 38
    assert after <= before + 10
