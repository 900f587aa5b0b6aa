"""A process that keeps its freed memory pages no large tensor in twice."""

import json
import subprocess
import sys

import psutil
import pytest

from fewshot_gan.utils.memory import available_memory, used_memory

PROGRAM = """
import json, resource, sys
import torch
from fewshot_gan.utils.errors import script
from fewshot_gan.utils.memory import keep_freed_memory
agreed = sys.argv[1] == "keep" and keep_freed_memory()
if sys.argv[1] == "script":
    with script():
        pass
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
    for mode in ("keep", "usual", "script"):
        done = subprocess.run([sys.executable, "-c", PROGRAM, mode], capture_output=True, text=True, check=True)
        found[mode] = json.loads(done.stdout)
    agreed, faults = found["keep"]
    if not agreed:
        pytest.skip("another C library")
    # 16,384 pages of 4 KiB a tensor; the first few may find no block that fits
    assert faults < 0.4 * found["usual"][1], found
    assert found["script"][1] < 0.4 * found["usual"][1], "a script keeps it by itself"


def test_available_memory_is_that_of_the_container(tmp_path):
    """Both versions of control groups; pages of files that are no longer read count as free."""
    free = available_memory(tmp_path / "none", tmp_path / "none")
    assert 0 < free <= psutil.virtual_memory().total
    for version, line, names in (
        (2, "0::/box", ("memory.max", "memory.current", "inactive_file")),
        (1, "5:memory:/box", ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")),
    ):
        root, own = tmp_path / str(version), tmp_path / f"own-{version}"
        own.write_text(f"{line}\n", encoding="utf-8")
        group = root / ("memory" if version == 1 else "") / "box"
        group.mkdir(parents=True)
        limit, used, cache = names
        (group / limit).write_text("3000\n", encoding="utf-8")
        (group / used).write_text("1200\n", encoding="utf-8")
        (group / "memory.stat").write_text(f"anon 5\n{cache} 200\n", encoding="utf-8")
        assert available_memory(root, own) == 2000
        (group / used).write_text("9000\n", encoding="utf-8")
        assert available_memory(root, own) == 0
        (group / limit).write_text("max\n", encoding="utf-8")
        assert available_memory(root, own) > 3000


def test_memory_of_this_process():
    x = bytearray(300 * 2**20)
    x[::4096] = b"x" * len(x[::4096])
    assert used_memory() > 300 * 2**20
