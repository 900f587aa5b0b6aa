"""Teach an adapter the person of a few photos; behind `FewShotGAN.personalize` and `fewshot-gan restyle`.

The photos are aligned and inverted to w (`inversion.invert`). With these latents as pivots an adapter of the synthesis
network is trained by pivotal tuning (`methods.pivotal`, arXiv 2106.05744), through the same loop as every look.
"""

import tempfile
from collections.abc import Callable
from contextlib import nullcontext
from copy import deepcopy
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from safetensors.torch import save_file

from ..adapters import Adapter
from ..adapters.base import LATENTS, MOST_PHOTOS
from ..catalogue import ADAPTERS, PIVOTAL
from ..data.images import listed, to_bytes, to_floats
from ..faces import read_faces
from ..features import load_features
from ..hub.cards import write_adapter_card
from ..inversion import VERSION
from ..methods.pivotal import PivotalConfig, PivotalObjective
from ..models.latents import check_latents
from ..pipeline_inputs import as_floats
from ..utils.files import replace_file, user_path
from ..utils.hashing import hash_tensor
from ..utils.random import initialised
from ..utils.ranges import COUNT, check_number
from ..utils.safetensors_files import read_header, read_tensors
from .checkpoints import checkpoints, refuse_other_settings
from .engine import Trainer, TrainingConfig
from .launch import holding

LATENTS_NAME = "latents.safetensors"  # of the search, for a call that goes on
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
LEARNING_RATES = {"left": 1e-2, "full": 3e-4}  # of the kinds of adapters whose files hold latents


@torch.inference_mode(False)
@torch.enable_grad()
def personalize(
    pipe,
    photos,
    *,
    steps: int = 120,
    adapter: str = "left",
    output_dir=None,
    inversion_steps: int = 50,
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
    if adapter not in LEARNING_RATES:
        kinds = " or ".join(map(repr, LEARNING_RATES))
        raise ValueError(f"adapter={adapter!r} cannot hold the latents of a person; give {kinds}")
    if face == "all":
        raise ValueError("face='all': an adapter is of one person; give the number of one face")
    own = {field.name for field in fields(TrainingConfig)} - {
        *("output_dir", "max_train_steps", "seed"),
        *("noise", "micro_batch_size"),  # a photo is drawn alone, with the noise that the base stores
    }
    if unknown := set(settings or {}) - own:
        raise ValueError(f"settings has {', '.join(sorted(unknown))}; known: {', '.join(sorted(own))}")
    config = config or PivotalConfig()
    options: dict[str, Any] = SETTINGS | {"learning_rate": LEARNING_RATES[adapter]} | (settings or {})
    count = len(photos) if isinstance(photos, torch.Tensor) else len(listed(photos))
    if not 1 <= count <= MOST_PHOTOS:
        raise ValueError(f"{count} photos: give 1 to {MOST_PHOTOS} of one person")
    with nullcontext(output_dir) if output_dir else tempfile.TemporaryDirectory(prefix="person-") as folder:
        training = TrainingConfig(str(user_path(folder)), max_train_steps=steps, seed=seed, **options)
        pictures = _pictures(pipe, photos, align, face)
        accelerator = Accelerator(cpu=pipe._execution_device.type == "cpu")
        if accelerator.device.type != pipe._execution_device.type:
            raise ValueError(
                f"the pipeline is on {pipe._execution_device.type}, but this process trains on "
                f"{accelerator.device.type}; move the pipeline there, or start a new process"
            )
        with holding(training.output_dir, accelerator):
            search = {"steps": inversion_steps, "seed": seed, "progress": progress}
            pivots = _pivots(pipe, pictures, latents, Path(training.output_dir, LATENTS_NAME), search)
            return _train(pipe, pictures, pivots, adapter, config, training, accelerator, progress, on_step)


def _pictures(pipe, photos, align: bool, face: int) -> torch.Tensor:
    """Return aligned photos as uint8 `[P, 3, R, R]`."""
    size = pipe.generator.resolution
    if not isinstance(photos, torch.Tensor):
        return read_faces(photos, size, pipe.config.mean_landmarks, align, face)[0]
    if photos.ndim != 4 or photos.shape[1:] != (3, size, size):
        raise ValueError(f"photos of shape {list(photos.shape)} are not [P, 3, {size}, {size}]; crop and resize them")
    return to_bytes(as_floats(photos, size))


def _pivots(pipe, pictures: torch.Tensor, latents, file: Path, search: dict[str, Any]) -> torch.Tensor:
    """Return w `[P, w_dim]` of the photos, rounded as it is stored: given, kept by an earlier call, or searched."""
    wanted = len(pictures), pipe.generator.num_ws, pipe.generator.w_dim
    mark = {
        "photos": hash_tensor(pictures),
        "base": pipe.bank.fingerprint(),
        "inversion": str(VERSION),
        **{name: str(search[name]) for name in ("steps", "seed")},
    }
    if latents is not None:
        if check_latents(latents).shape != wanted or not (latents == latents[:, :1]).all():
            raise ValueError(
                f"latents of shape {list(latents.shape)} are not {list(wanted)} with equal rows; give those of "
                'pipe.invert(photos, space="w"), or leave them out'
            )
    elif (kept := _kept_mark(file)) == mark:
        latents = read_tensors(file)["latents"]
    else:
        if kept and checkpoints(file.parent):  # before a search: the trainer would refuse it
            refuse_other_settings(file.parent, kept, mark)
        latents = pipe.invert(pictures, **search).latents
        replace_file(file, lambda path: save_file({"latents": latents[:, 0].contiguous()}, path, metadata=mark))
    w = latents[:, 0] if latents.ndim == 3 else latents
    return w.float().half().float()


def _kept_mark(file: Path) -> dict[str, str]:
    """Return what an earlier call kept latents of; empty if there are none."""
    if not file.is_file():
        return {}
    return {"inversion": "3"} | read_header(file).metadata  # files that do not say it are of this version


def _train(pipe, pictures, pivots, kind, config, training, accelerator, progress, on_step) -> Adapter:
    """Train in a folder that is locked; see `personalize`."""
    device, folder = accelerator.device, Path(training.output_dir)
    generator = deepcopy(pipe.generator).float().requires_grad_(False)
    record = asdict(training) | asdict(config) | {"num_images": len(pictures)}
    record.pop("output_dir")
    cls: Any = ADAPTERS.load(kind)
    with initialised(training.seed):
        fresh = cls.for_model(
            generator,
            roles=[role for role in cls.roles if role != "mapping"],  # the pivots are w, which no mapping draws
            latents_shape=list(pivots.shape),
            base_model_name_or_path=pipe.base_name,
            method=PIVOTAL.name,
            training=record,
        )
    fresh.register_to_config(base_fingerprint=pipe.bank.fingerprint())  # of the weights as the pipeline has them
    getattr(fresh, LATENTS).copy_(pivots)
    features = load_features(device=device)
    objective = PivotalObjective(config, to_floats(pictures).to(device), pivots.to(device), features)
    trainer = Trainer(generator, fresh, objective, None, training, accelerator)
    trainer.progress = progress
    trainer.report.data = f"{len(pictures)} photos of a person"

    def finish(trained: Any) -> Any:
        write_adapter_card(trained, folder, folder.name)
        return trained

    trained: Any = trainer.train(on_step=on_step, finish=finish)
    return trained.eval().requires_grad_(False)
