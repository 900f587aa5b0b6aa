"""A pipeline of every generator, with its discriminator."""

import torch

from fewshot_gan import FewShotGAN
from helpers.every_network import made

JUDGES = {name: name for name in ("stylegan2", "labelled", "sngan", "biggan", "gp_gan")} | {"mobile": "projected"}
DRAWN = {"seed": 0, "output_type": "pt"}


def piped(name: str, training: bool = False) -> FewShotGAN:
    parts = {"generator": made(f"{name}-G", training=training)}
    if name in JUDGES:
        judge = "projected_discriminator" if JUDGES[name] == "projected" else "discriminator"
        parts[judge] = made(f"{JUDGES[name]}-D", training=training)
    return FewShotGAN(**parts)


def draw(pipe: FewShotGAN, num_images: int = 3, **options) -> torch.Tensor:
    return pipe(num_images, class_labels=pipe.some_labels(num_images), **{**DRAWN, **options}).images


def draw_one(pipe: FewShotGAN, number: int, **options) -> torch.Tensor:
    label = pipe.some_labels(number + 1)
    return pipe(1, class_labels=label and label[-1], **{**DRAWN, **options}).images[0]


def images(pipe, n=4, **kwargs):
    return pipe(n, **{"seed": 0, "output_type": "pt", **kwargs}).images


TOLERANCE = {"rtol": 0, "atol": 1e-4}  # the published promise; rounding differs with the batch size
