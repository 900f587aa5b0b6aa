"""Memory and time of a run, predicted before its first step.

The memory is predicted without allocating it: the generator runs on torch's "meta" device, where tensors have sizes but
no values, and what autograd would keep is added up. The time is measured on steps whose result is discarded.
"""

import time
from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.autograd.graph import saved_tensors_hooks

from ..utils.memory import available_memory, used_memory
from ..utils.text import duration, gigabytes

if TYPE_CHECKING:
    from .engine import Trainer

MEASURED = 2  # timed steps, after one for warming up
# Measured on CPUs (training/RESULTS.md, "Memory and time of a step"): what a step allocates besides its graphs.
IMAGES = 5  # copies of each image at full size: adapted and source image, training image, gradients
SEEN = 1.5  # memory for what the losses see, relative to the graph of the feature network
PASSING = 0.4  # gradients of feature maps, relative to the graph of the images that are drawn at once


@dataclass(frozen=True)
class Estimate:
    """What a run takes.

    Attributes:
        memory: predicted peak of the process in bytes; on a GPU, of its memory.
        available: bytes that the process can have.
        seconds: time of a step.
        steps: number of steps that are left.
    """

    memory: int
    available: int
    seconds: float
    steps: int

    def __str__(self) -> str:
        total = duration(self.seconds * self.steps)
        return f"{total} ({self.seconds:.2f} s per step), {gigabytes(self.memory)} of memory at its peak"


def graph_bytes(run: Callable[[], Any], network: nn.Module) -> int:
    """Return the bytes that autograd keeps for the backward pass of `run()`, without the parameters of `network`."""
    parameters = [parameter.untyped_storage() for parameter in network.parameters()]  # torch keeps one object for each
    excluded, kept = {id(storage) for storage in parameters}, {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if id(storage) not in excluded:
            kept[id(storage)] = storage
        return tensor

    with saved_tensors_hooks(keep, lambda tensor: tensor), torch.enable_grad():
        result = run()
    del result
    return sum(storage.nbytes() for storage in kept.values())


def generator_graph(generator, batch: int) -> int:
    """Return the bytes that the graph of `batch` images takes, with adapted weights in every layer.

    Args:
        generator: a network with `synthesis`, or one that maps z to images.
        batch: number of images that are drawn at once.
    """
    sizes = deepcopy(generator).to("meta").requires_grad_(True)
    if generator.has_styles:
        ws = torch.empty(batch, generator.num_ws, generator.w_dim, dtype=torch.float32, device="meta")
        kept = graph_bytes(lambda: sizes.synthesis(ws), sizes)
    else:
        z = torch.empty(batch, generator.z_dim, dtype=torch.float32, device="meta")
        kept = graph_bytes(lambda: sizes(z), sizes)
    return kept + 4 * sum(parameter.numel() for parameter in sizes.parameters())


def predict_memory(trainer: "Trainer", batch: int | None = None, micro_batch: int | None = None) -> int:
    """Predict the peak of the memory of a run in bytes, before its first step.

    Args:
        trainer: of the run.
        batch: number of images per step; None: that of the run.
        micro_batch: number of images whose activations are kept, see `TrainingConfig`; None: that of the run.
    """
    objective, generator, config = trainer.objective, trainer.generator, trainer.config
    batch, resolution = batch or config.train_batch_size, generator.resolution
    kept = trainer.graphs_kept(batch, micro_batch)
    drawn_at_once = generator_graph(generator, batch if kept is None else 1)
    graphs = drawn_at_once * (kept or 1) + PASSING * drawn_at_once
    if config.mixed_precision == "bf16":
        graphs /= 2
    views = 1 + objective.cropped(resolution)
    step = graphs + SEEN * batch * views * _feature_graph(trainer) + IMAGES * batch * 12 * resolution**2
    own = objective.images_of_regularisers(batch)
    alone = generator_graph(generator, own) * (1 + PASSING) if own else 0
    step += batch * _discriminator_graph(trainer)
    states = 16 * trainer.adapter.num_values()  # gradient, two moments of Adam, moving average
    states += 12 * sum(parameter.numel() for parameter in trainer.d_parameters)  # gradient, two moments
    used = torch.cuda.memory_allocated(trainer.device) if trainer.device.type == "cuda" else used_memory()
    return int(used + states + max(step, alone))


def _feature_graph(trainer: "Trainer") -> int:
    """Return the bytes of the feature network's graph of one view; 0 if the losses see no features."""
    objective, resolution = trainer.objective, trainer.generator.resolution
    features = objective.features
    if features is None:
        return 0
    side = min(resolution, objective.config.view_size or resolution)
    view = torch.zeros(1, 3, side, side, dtype=torch.float32, device=trainer.device, requires_grad=True)
    return graph_bytes(lambda: features(view, objective.levels), features)


def _discriminator_graph(trainer: "Trainer") -> int:
    """Return the bytes of the graphs of a real and a generated picture in a discriminator that sees pictures, or 0."""
    objective, resolution = trainer.objective, trainer.generator.resolution
    config = objective.config
    if not trainer.d_parameters or getattr(config, "discriminator", None) != "source":
        return 0
    network = deepcopy(objective.discriminator).to("meta")
    side = min(resolution, config.view_size or resolution)
    view = torch.zeros(2, 3, side, side, dtype=torch.float32, device="meta", requires_grad=True)
    graphs = 2 if config.r1_weight else 1  # the penalty's gradient has a graph of its own
    return graphs * graph_bytes(lambda: network(view), network)


def check_memory(trainer: "Trainer") -> tuple[int, int]:
    """Return the predicted peak and the available memory of a run in bytes.

    Raises:
        ValueError: the run needs more than there is; the message says what would need less.
    """
    needed, available = predict_memory(trainer), _available(trainer.device)
    if needed <= available:
        return needed, available
    whole, singly = trainer.config.train_batch_size, 1 if trainer.generator.has_styles else None
    ways = ["micro_batch_size=1"] if singly and predict_memory(trainer, whole, singly) <= available else []
    fitting = [batch for batch in range(1, whole) if predict_memory(trainer, batch) <= available]
    if fitting:
        ways.append(f"train_batch_size={fitting[-1]}")
    if trainer.generator.resolution > 256:
        ways.append("a smaller base, e.g. 'ffhq-256'")
    way = f"give {' or '.join(ways)}" if ways else "close other programs, or use a machine with more"
    raise ValueError(
        f"this run would need {gigabytes(needed)} of memory, but {gigabytes(available)} are available; {way}"
    )


def _available(device: torch.device) -> int:
    """Return the bytes that this process can have in all, with what it has already."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0] + torch.cuda.memory_reserved(device)
    return used_memory() + available_memory()


def time_step(trainer: "Trainer") -> float:
    """Return the seconds of a step, measured on up to three that leave the trainer as it was."""
    before = deepcopy(trainer.state())
    seconds = []
    for _ in range(min(MEASURED + 1, trainer.config.max_train_steps)):
        began = time.perf_counter()
        trainer.train_step()
        seconds.append(time.perf_counter() - began)
    trainer.load_state(before)
    trainer.step = 0
    timed = seconds[1:] or seconds
    return sum(timed) / len(timed)


def estimate(trainer: "Trainer") -> Estimate:
    """Predict memory and time of a run before its first step; the trainer stays as it was.

    Raises:
        ValueError: the machine has less memory than the run needs.
    """
    memory, available = check_memory(trainer)
    return Estimate(memory, available, time_step(trainer), trainer.config.max_train_steps)


def describe(trainer: "Trainer") -> str:
    """Return the lines of a dry run.

    Raises:
        ValueError: the machine has less memory than the run needs.
    """
    predicted, config = estimate(trainer), trainer.config
    numbers = trainer.adapter.num_values()
    lines = [
        f"base: {trainer.adapter.config.base_model_name_or_path}",
        f"adapter: {trainer.adapter.adapter_type}, {numbers:,} numbers, a file of about {2 * numbers:,} bytes",
        f"data: {trainer.report.data}",
        f"steps: {config.max_train_steps:,} of {config.train_batch_size} pictures",
        f"time: {duration(predicted.seconds * predicted.steps)} ({predicted.seconds:.2f} s per step)",
        f"memory: {gigabytes(predicted.memory)} at its peak, of {gigabytes(predicted.available)} available",
        "nothing was trained and nothing was written",
    ]
    return "\n".join(lines)
