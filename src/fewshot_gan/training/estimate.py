"""Time and memory that a run would take, measured on a few steps whose result is discarded."""

import sys
import time
from typing import TYPE_CHECKING

import torch

from ..utils.text import duration

if TYPE_CHECKING:
    from .engine import Trainer

MEASURED = 2  # timed steps, after one for warming up


def estimate(trainer: "Trainer") -> str:
    """Predict time and memory of a run; writes nothing.

    Args:
        trainer: of the run, before its first step; its adapter has taken steps afterwards.

    Returns:
        Lines of text. Time is for all steps on this machine as it is now; memory is the peak of the process.
    """
    config, seconds = trainer.config, []
    for _ in range(min(MEASURED + 1, config.max_train_steps)):
        began = time.perf_counter()
        trainer.train_step()
        seconds.append(time.perf_counter() - began)
    timed = seconds[1:] or seconds
    per_step = sum(timed) / len(timed)
    total = per_step * config.max_train_steps
    numbers = trainer.adapter.num_values()
    lines = [
        f"base: {trainer.adapter.config.base_model_name_or_path}",
        f"adapter: {trainer.adapter.adapter_type}, {numbers:,} numbers, a file of about {2 * numbers:,} bytes",
        f"data: {trainer.report.data}",
        f"steps: {config.max_train_steps:,} of {config.train_batch_size} pictures",
        f"time: {duration(total)} ({per_step:.2f} s per step, measured on {len(timed)} steps)",
        f"memory: {peak_memory(trainer.device) / 2**20:,.0f} MiB at most so far",
        "nothing was trained and nothing was written",
    ]
    return "\n".join(lines)


def peak_memory(device: torch.device) -> int:
    """Return the peak memory of this process in bytes: of the GPU if it computes on one, else of the machine."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    try:
        import resource
    except ImportError:  # Windows
        import psutil

        return getattr(psutil.Process().memory_info(), "peak_wset", 0)
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
