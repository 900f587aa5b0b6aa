"""Teach an adapter the person of a few photos; behind `FewShotGAN.personalize` and `fewshot-gan restyle`.

The photos are aligned and inverted to w (`inversion.invert`). With these latents as pivots an adapter of the synthesis
network is trained by pivotal tuning (`methods.pivotal`, arXiv 2106.05744), through the same loop as every look.
"""

import tempfile
import threading
from collections.abc import Callable
from contextlib import nullcontext
from copy import deepcopy
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator

from ..adapters import Adapter
from ..adapters.base import LATENTS
from ..catalogue import ADAPTERS, PIVOTAL
from ..data.images import to_floats
from ..faces import read_faces
from ..features import load_features
from ..hub.cards import write_adapter_card
from ..methods.pivotal import PivotalConfig, PivotalObjective
from ..utils.files import user_path
from ..utils.ranges import COUNT, check_number
from .engine import Trainer, TrainingConfig
from .launch import holding

MOST_PHOTOS = 20
KINDS = ("left", "full")  # kinds of adapters whose files hold latents
SETTINGS: dict[str, Any] = {  # of `TrainingConfig`, in place of its defaults
    "train_batch_size": 1,
    "adam_beta1": 0.9,
    "lr_warmup_steps": 5,
    "lr_decay_start": 0.5,
    "lr_final": 0.1,
    "ema_decay": 0.0,
    "augment": "none",
    "sample_steps": 0,
    "checkpointing_steps": 40,
    "checkpoints_total_limit": 1,
}
_seeding = threading.Lock()  # new factors draw from torch's one generator
LEARNING_RATES = {"left": 5e-3, "full": 3e-4}


def personalize(
    pipe,
    photos,
    *,
    steps: int = 120,
    adapter: str = "left",
    output_dir=None,
    inversion_steps: int = 100,
    latents: torch.Tensor | None = None,
    align: bool = True,
    face: int = 0,
    seed: int = 0,
    config: PivotalConfig | None = None,
    settings: dict[str, Any] | None = None,
    on_step: Callable[[Trainer, dict[str, float]], None] | None = None,
    progress: bool = True,
) -> Adapter:
    """See `FewShotGAN.personalize`.

    Args:
        pipe: the base; it is not changed.
        photos, steps, adapter, output_dir, inversion_steps, align, face, seed, progress: see there.
        latents: w+ of the photos from `invert` in space "w", `[P, num_ws, w_dim]`; None: they are searched.
        config: weights of the losses.
        settings: of `TrainingConfig`, e.g. `learning_rate`.
        on_step: of `Trainer.train`.

    Raises:
        ValueError, OSError: see there.
    """
    check_number("steps", steps, COUNT, whole=True)
    check_number("inversion_steps", inversion_steps, COUNT, whole=True)
    if adapter not in KINDS:
        raise ValueError(
            f"adapter={adapter!r} cannot hold the latents of a person; give {' or '.join(map(repr, KINDS))}"
        )
    if face == "all":
        raise ValueError("face='all': an adapter is of one person; give the number of one face")
    if isinstance(photos, torch.Tensor):
        squares = photos
    else:
        landmarks = pipe.config.mean_landmarks
        squares, _ = read_faces(photos, pipe.generator.resolution, landmarks, align, face)
    if not 1 <= len(squares) <= MOST_PHOTOS:
        raise ValueError(f"{len(squares)} photos: give 1 to {MOST_PHOTOS} of one person")
    device = pipe._execution_device
    found: Any = latents
    if found is None:
        found = pipe.invert(squares, steps=inversion_steps, seed=seed, progress=progress).latents
    if found.shape != (len(squares), pipe.generator.num_ws, pipe.generator.w_dim):
        raise ValueError(f"latents of shape {tuple(found.shape)} are not one w+ for each of {len(squares)} photos")
    pivots = found[:, 0].half().float()  # as they are stored
    generator = deepcopy(pipe.generator).float().requires_grad_(False)
    config = config or PivotalConfig()
    options: dict[str, Any] = SETTINGS | {"learning_rate": LEARNING_RATES[adapter]} | (settings or {})
    with nullcontext(output_dir) if output_dir else tempfile.TemporaryDirectory(prefix="person-") as folder:
        folder = str(user_path(folder))
        training = TrainingConfig(folder, max_train_steps=steps, seed=seed, **options)
        record = asdict(replace(training, output_dir="")) | asdict(config) | {"num_images": len(squares)}
        record.pop("output_dir")
        cls: Any = ADAPTERS.load(adapter)
        with _seeding, torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)  # initial values of the factors
            fresh = cls.for_model(
                generator,
                roles=[role for role in cls.roles if role != "mapping"],  # the pivots are w, which no mapping draws
                latents_shape=list(pivots.shape),
                base_model_name_or_path=pipe.base_name,
                method=PIVOTAL.name,
                training=record,
            )
        getattr(fresh, LATENTS).copy_(pivots)
        pictures = squares if squares.dtype == torch.uint8 else ((squares + 1) * 127.5).round().to(torch.uint8)
        objective = PivotalObjective(
            config, to_floats(pictures).to(device), pivots.to(device), load_features(device=device)
        )
        accelerator = Accelerator(cpu=device.type == "cpu")
        with holding(folder, accelerator):
            trainer = Trainer(generator, fresh, objective, None, training, accelerator)
            trainer.report.data = f"{len(squares)} photos of a person"

            def finish(trained: Any) -> Any:
                if output_dir:
                    write_adapter_card(trained, folder, Path(folder).name)
                return trained

            trained: Any = trainer.train(on_step=on_step, finish=finish)
        return trained.eval().requires_grad_(False)
