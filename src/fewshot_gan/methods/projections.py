"""Training images projected into the base's latent space, for the methods whose terms start from them (D3T-GAN)."""

import json
from dataclasses import dataclass, field, fields, replace
from pathlib import Path

import torch
from safetensors.torch import save_file

from ..data.images import to_bytes
from ..inversion import SPACES, VERSION, invert, latent_statistics, lpips_network
from ..models.latents import check_latents
from ..models.layers import as_ws
from ..utils.files import replace_file, user_path
from ..utils.hashing import hash_tensor
from ..utils.ranges import COUNT, NOT_NEGATIVE, check_number
from ..utils.safetensors_files import read_header, read_tensors

DEFAULTS = {"space": "w", "projection_steps": 150, "projection_prior": 0.05}  # what projections depend on


@dataclass(frozen=True)
class ProjectionOptions:
    """How training images are projected; None: the default.

    Attributes:
        space: latent space of the projected images.
        projection_steps: optimisation steps of each projection.
        projection_prior: strength of the pull of a projection towards the mean w.
        projections: file that keeps the projections.
    """

    space: str | None = field(
        default=None,
        metadata={"choices": list(SPACES), "help": f"latent space of projected images; default {DEFAULTS['space']}"},
    )
    projection_steps: int | None = field(
        default=None, metadata={"help": f"steps of each projection; default {DEFAULTS['projection_steps']}"}
    )
    projection_prior: float | None = field(
        default=None,
        metadata={"help": f"pull of a projection towards the mean w; default {DEFAULTS['projection_prior']}"},
    )
    projections: str | None = field(
        default=None, metadata={"help": "file that keeps the projections; default: in the output folder"}
    )

    def __post_init__(self):
        if self.space not in (None, *SPACES):
            raise ValueError(f"space={self.space!r}: choose one of {', '.join(SPACES)}")
        if self.projection_steps is not None:
            check_number("projection_steps", self.projection_steps, COUNT, whole=True)
        if self.projection_prior is not None:
            check_number("projection_prior", self.projection_prior, NOT_NEGATIVE)


def complete(options, config):
    """`options` with defaults in place of None.

    Args:
        options: a `ProjectionOptions`.
        config: weights of an objective, which says whether a term needs latents.

    Raises:
        ValueError: an option was given, but no term uses projected images.
    """
    for option in fields(ProjectionOptions):
        value = getattr(options, option.name)
        if value is not None and not config.needs_latents:
            raise ValueError(f"--{option.name} {value} is of projected images, but no term here uses any; leave it out")
    return replace(options, **{name: usual for name, usual in DEFAULTS.items() if getattr(options, name) is None})


def recorded(options) -> dict:
    """What an adapter's config says of the projections."""
    return {name: getattr(options, name) for name in DEFAULTS}


def as_layers(latents: torch.Tensor, generator) -> torch.Tensor:
    """w `[K, D]` or w+ `[K, L, D]` as w+, on the generator's device."""
    latents = latents.to(generator.device)
    return as_ws(latents, generator.num_ws, generator.w_dim) if latents.ndim == 2 else latents


def project(path: Path, pipe, images: torch.Tensor, options, seed: int, dry: bool = False) -> torch.Tensor:
    """Project training images into the base's latent space, or read projections that are kept.

    Args:
        path: file to keep them in, unless `options.projections` names another one.
        pipe: the base.
        images: `[K, 3, R, R]` in [−1, 1].
        options: a complete `ProjectionOptions`.
        seed: of the search.
        dry: search and write nothing: the mean w stands for every image.

    Returns:
        w `[K, D]`, or w+ `[K, L, D]` with space "w+".

    Raises:
        ValueError: the file that the user named holds projections of something else.
    """
    generator, path = pipe.generator.to(images.device), Path(user_path(options.projections or path))
    if dry:
        mean = latent_statistics(generator)[0].cpu().expand(len(images), -1)
        return mean[:, None].repeat(1, generator.num_ws, 1) if options.space == "w+" else mean.clone()
    made_of = {
        "images": hash_tensor(images),
        "base": pipe.bank.fingerprint(),
        "inversion": VERSION,
        **{name: str(value) for name, value in recorded(options).items()},
        "seed": str(seed),
    }
    if lpips_network(str(images.device)) is not None:  # another distance finds other latents
        made_of["perceptual"] = "lpips"
    if path.is_file():
        if read_header(path).metadata.get("made_of") == json.dumps(made_of):
            return check_latents(read_tensors(path)["codes"], name=f"codes of {path}")
        if options.projections:
            raise ValueError(
                f"{path} holds projections of other images, another base or other settings; name another file to make, "
                "or delete this one"
            )
    inversion = invert(
        generator,
        images,
        space=options.space,
        steps=options.projection_steps,
        prior_weight=options.projection_prior,
        seed=seed,
    )
    codes = (inversion.latents if options.space == "w+" else inversion.latents[:, 0]).contiguous()
    psnr = " ".join(f"{value:.1f}" for value in inversion.psnr)
    print(f"projected {len(codes)} images: {psnr} dB")
    metadata = {"made_of": json.dumps(made_of), "psnr": psnr}
    tensors = {"codes": codes, "reconstructions": to_bytes(inversion.images)}
    replace_file(path, lambda temp: save_file(tensors, temp, metadata))
    return codes
