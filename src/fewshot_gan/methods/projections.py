"""Training images projected into the base's latent space, for methods whose terms use these latents, e.g. D3T-GAN."""

import json
from dataclasses import dataclass, field, fields, replace
from pathlib import Path

import torch
from safetensors.torch import save_file

from ..data.images import to_bytes
from ..inversion import SPACES, VERSION, invert, latent_statistics, lpips_network
from ..models.labels import refuse_classes
from ..models.latents import check_latents
from ..models.layers import as_ws
from ..utils.files import replace_file, user_path
from ..utils.hashing import fingerprint, hash_tensor
from ..utils.ranges import COUNT, NOT_NEGATIVE, check_number
from ..utils.safetensors_files import read_header, read_tensors

DEFAULTS = {"space": "w", "projection_steps": 150, "projection_prior": 0.05}  # the options that change the latents


@dataclass(frozen=True)
class ProjectionOptions:
    """Options of the projection of training images; None means the default.

    Attributes:
        space: latent space, one of `inversion.SPACES`.
        projection_steps: optimisation steps per image, 1 or more.
        projection_prior: weight of the distance from the mean w, 0 or more.
        projections: file that the projections are stored in and read from, for several domains the folder of one file
            each; by default in the output folder.
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
        metadata={"help": f"weight of a projection's distance from the mean w; default {DEFAULTS['projection_prior']}"},
    )
    projections: str | None = field(
        default=None,
        metadata={"help": "file of projections to write or read (of a hypernetwork: folder); default: in --output_dir"},
    )

    def __post_init__(self):
        if self.space not in (None, *SPACES):
            raise ValueError(f"space={self.space!r}: choose one of {', '.join(SPACES)}")
        if self.projection_steps is not None:
            check_number("projection_steps", self.projection_steps, COUNT, whole=True)
        if self.projection_prior is not None:
            check_number("projection_prior", self.projection_prior, NOT_NEGATIVE)


def complete(options, config, defaults=DEFAULTS):
    """Return `options` with defaults in place of None.

    Args:
        options: a `ProjectionOptions`, or another dataclass with its fields.
        config: weights of an objective; `needs_latents` says whether a term uses projected images.
        defaults: option → value.

    Raises:
        ValueError: an option was given, but no term uses projected images.
    """
    for option in fields(ProjectionOptions):
        value = getattr(options, option.name)
        if value is not None and not config.needs_latents:
            raise ValueError(f"--{option.name} {value} is of projected images, but no term here uses any; leave it out")
    return replace(options, **{name: value for name, value in defaults.items() if getattr(options, name) is None})


def recorded(options) -> dict:
    """Return the options that change the latents, for the adapter's config."""
    return {name: getattr(options, name) for name in DEFAULTS}


def as_layers(latents: torch.Tensor, generator) -> torch.Tensor:
    """Return w `[K, D]` or w+ `[K, L, D]` as w+, on the generator's device."""
    latents = latents.to(generator.device)
    return as_ws(latents, generator.num_ws, generator.w_dim) if latents.ndim == 2 else latents


def project(path: Path, pipe, images: torch.Tensor, options, seed: int, dry: bool = False) -> torch.Tensor:
    """Project training images into the base's latent space and store the result, or read it from the file.

    Args:
        path: file to store the projections in, unless `options` names another one.
        pipe: the base, a `FewShotGAN`.
        images: `[K, 3, R, R]` in [−1, 1].
        options: a `ProjectionOptions` without None, see `complete`.
        seed: seed of the optimisation.
        dry: return the mean w for every image, without optimisation and without writing.

    Returns:
        w `[K, D]`, or w+ `[K, L, D]` with space "w+".

    Raises:
        ValueError: the file that the user named holds projections of other images, bases or settings; or the base has
            classes.
    """
    refuse_classes(pipe.generator, "inversion")
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
    encoder = pipe.latent_encoder
    if encoder is not None:
        made_of["encoder"] = fingerprint(encoder)
    if lpips_network(str(images.device)) is not None:  # latents depend on the perceptual distance
        made_of["perceptual"] = "lpips"
    if path.is_file():
        if read_header(path).metadata.get("made_of") == json.dumps(made_of):
            return check_latents(read_tensors(path)["codes"], name=f"codes of {path}")
        if options.projections:
            raise ValueError(
                f"{path} holds projections of other images, another base or other settings; name another file to "
                "write, or delete this one"
            )
    inversion = invert(
        generator,
        images,
        space=options.space,
        steps=options.projection_steps,
        prior_weight=options.projection_prior,
        seed=seed,
        start=None if encoder is None else pipe.estimate(images),
    )
    codes = (inversion.latents if options.space == "w+" else inversion.latents[:, 0]).contiguous()
    psnr = " ".join(f"{value:.1f}" for value in inversion.psnr)
    print(f"projected {len(codes)} images: {psnr} dB")
    metadata = {"made_of": json.dumps(made_of), "psnr": psnr}
    tensors = {"codes": codes, "reconstructions": to_bytes(inversion.images)}
    replace_file(path, lambda temp: save_file(tensors, temp, metadata))
    return codes
