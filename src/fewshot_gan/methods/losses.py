"""Adversarial losses and gradient penalties used by several methods."""

import torch
import torch.nn.functional as F


def logistic_g_loss(fake_logits: torch.Tensor) -> torch.Tensor:
    """Non-saturating generator loss, mean of softplus(−D(fake)) (arXiv 1406.2661)."""
    return F.softplus(-fake_logits).mean()


def logistic_d_loss(real_logits: torch.Tensor, fake_logits: torch.Tensor) -> torch.Tensor:
    """Logistic discriminator loss, mean of softplus(−D(real)) + softplus(D(fake)) (arXiv 1406.2661)."""
    return F.softplus(-real_logits).mean() + F.softplus(fake_logits).mean()


def hinge_g_loss(fake_logits: torch.Tensor) -> torch.Tensor:
    """Generator side of the hinge loss, mean of −D(fake) (arXiv 1705.02894)."""
    return -fake_logits.mean()


def hinge_d_loss(real_logits: torch.Tensor, fake_logits: torch.Tensor) -> torch.Tensor:
    """Discriminator side of the hinge loss (arXiv 1705.02894)."""
    return F.relu(1 - real_logits).mean() + F.relu(1 + fake_logits).mean()


def r1_penalty(discriminator, real: torch.Tensor, weight: float = 10.0) -> torch.Tensor:
    """R1: weight/2 · mean over the batch of ‖∇ₓ D(x)‖² on real images `[B, 3, H, W]` (arXiv 1801.04406)."""
    real = real.detach().requires_grad_(True)
    (gradient,) = torch.autograd.grad(discriminator(real).sum(), real, create_graph=True)
    return weight / 2 * gradient.square().sum((1, 2, 3)).mean()
