"""A tiny run on limited data: networks, images and the trainer."""

import torch
from accelerate import Accelerator

from fewshot_gan.models import BigGANDiscriminator, BigGANGenerator, SNGANDiscriminator, SNGANGenerator
from fewshot_gan.training.limited import LimitedConfig, LimitedTrainer

N = 12


def sngan(seed=0):
    torch.manual_seed(seed)
    return SNGANGenerator(8, 6, 16), SNGANDiscriminator(8, 16)


def biggan(seed=0):
    torch.manual_seed(seed)
    small = {"block_channels": (16, 16), "down": (True, True), "attention_after": 1, "num_classes": 3}
    return BigGANGenerator((16, 16, 16), 1, 3, 4, 3), BigGANDiscriminator(**small, resolution=16)


def images(num=N, size=16):
    return torch.randint(0, 256, (num, 3, size, size), dtype=torch.uint8, generator=torch.Generator().manual_seed(5))


def config(folder, **options):
    small = {"max_train_steps": 4, "d_steps": 2, "d_batch_size": 4, "g_batch_size": 4, "sample_steps": 0}
    return LimitedConfig(str(folder), **{**small, "checkpointing_steps": 100, **options})


def trainer(folder, make=sngan, masks=None, teacher=None, **options):
    g, d = make()
    labels = None if g.num_classes is None else torch.arange(N) % 3
    return LimitedTrainer(g, d, images(), config(folder, **options), Accelerator(cpu=True), labels, masks, teacher)
