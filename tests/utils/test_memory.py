"""A process that keeps its freed memory pages no large tensor in twice."""

import json
import subprocess
import sys

import pytest

PROGRAM = """
import json, resource, sys
import torch
from fewshot_gan.utils.memory import keep_freed_memory
agreed = sys.argv[1] == "keep" and keep_freed_memory()
torch.set_num_threads(1)
x = torch.zeros(2**24)  # 64 MiB: above the largest block that glibc keeps by itself
def make():
    x + 1
for _ in range(3):
    make()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(30):
    make()
print(json.dumps([agreed, resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before]))
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="a setting of glibc")
def test_pages_are_fetched_once():
    found = {}
    for mode in ("keep", "usual"):
        done = subprocess.run([sys.executable, "-c", PROGRAM, mode], capture_output=True, text=True, check=True)
        found[mode] = json.loads(done.stdout)
    agreed, faults = found["keep"]
    if not agreed:
        pytest.skip("another C library")
    # 16,384 pages of 4 KiB a tensor; the first few may find no block that fits
    assert faults < 0.4 * found["usual"][1], found
