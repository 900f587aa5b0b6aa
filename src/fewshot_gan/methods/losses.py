"""Adversarial losses and gradient penalties used by several methods."""

from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import nn


def total(terms: Iterable[torch.Tensor]) -> torch.Tensor:
    """Return the sum of one or more losses, the same bits as `sum` gives."""
    terms = iter(terms)
    return sum(terms, 0 + next(terms))


def logistic_g_loss(fake_logits: torch.Tensor) -> torch.Tensor:
    """Return the non-saturating generator loss, mean of softplus(−D(fake)) (arXiv 1406.2661)."""
    return F.softplus(-fake_logits).mean()


def logistic_d_loss(real_logits: torch.Tensor, fake_logits: torch.Tensor) -> torch.Tensor:
    """Return the logistic discriminator loss, mean of softplus(−D(real)) + softplus(D(fake)) (arXiv 1406.2661)."""
    return F.softplus(-real_logits).mean() + F.softplus(fake_logits).mean()


def hinge_g_loss(fake_logits: torch.Tensor) -> torch.Tensor:
    """Return the generator side of the hinge loss, mean of −D(fake) (arXiv 1705.02894)."""
    return -fake_logits.mean()


def hinge_d_loss(real_logits: torch.Tensor, fake_logits: torch.Tensor) -> torch.Tensor:
    """Return the discriminator side of the hinge loss (arXiv 1705.02894)."""
    return F.relu(1 - real_logits).mean() + F.relu(1 + fake_logits).mean()


def r1_penalty(discriminator, real: torch.Tensor, weight: float = 10.0) -> torch.Tensor:
    """Return the R1 penalty weight/2 · mean over the batch of ‖∇ₓ D(x)‖² (arXiv 1801.04406).

    It is computed in float32 even inside autocast, because squared gradients underflow in half precision.

    Args:
        discriminator: function from images to logits.
        real: images `[B, 3, H, W]`.
        weight: γ in the paper.
    """
    with torch.autocast(real.device.type, enabled=False):
        real = (real.float() if torch.finfo(real.dtype).bits < 32 else real).detach().requires_grad_(True)
        (gradient,) = torch.autograd.grad(discriminator(real).sum(), real, create_graph=True)
    return weight / 2 * gradient.square().sum((1, 2, 3)).mean()


class PathLength(nn.Module):
    """Path-length regularisation without its weight (StyleGAN2 §3.2, arXiv 1912.04958).

    Args:
        decay: decay of the running mean of the path length.
    """

    mean: torch.Tensor

    def __init__(self, decay: float = 0.01):
        super().__init__()
        self.decay = decay
        self.register_buffer("mean", torch.zeros([], dtype=torch.float32, device="cpu"))

    def forward(self, images: torch.Tensor, ws: torch.Tensor, generator: torch.Generator | None) -> torch.Tensor:
        """Return the mean squared deviation of ‖Jᵀy‖ from its running mean, and update that mean.

        Args:
            images: `[B, 3, H, W]`, generated from `ws` in float32; half precision is too coarse for gradient lengths.
            ws: `[B, L, D]`.
            generator: CPU generator of the noise y.

        Raises:
            ValueError: `images` or `ws` are not float32 or float64.
        """
        if torch.finfo(images.dtype).bits < 32 or torch.finfo(ws.dtype).bits < 32:
            raise ValueError(f"path lengths of {images.dtype} images of {ws.dtype} styles: draw them in float32")
        noise = torch.randn(images.shape, generator=generator, dtype=torch.float32, device="cpu").to(images.device) / (
            images[0, 0].numel() ** 0.5
        )
        (gradient,) = torch.autograd.grad((images * noise).sum(), ws, create_graph=True)
        lengths = gradient.square().sum(2).mean(1).sqrt()
        with torch.no_grad():
            self.mean.lerp_(lengths.mean(), self.decay)
        return (lengths - self.mean).square().mean()
