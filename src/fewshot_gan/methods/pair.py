"""A generator before and after adaptation, drawn from the same latents and noise: what every method compares.

Shape legend: B images, L `ws`, D `w_dim`, R resolution. Generators without styles have z `[B, z_dim]` for `ws`.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch

from ..models.layers import as_ws, mix_styles


@dataclass(frozen=True)
class Latents:
    """One draw, to be mapped by the adapted generator and by its source alike.

    Attributes:
        z: `[B, z_dim]`, or None if `w` is given.
        other, crossover: style mixing; the first `crossover` of the `ws` come from `z`, the rest from `other`.
        w: w `[B, D]` or w+ `[B, L, D]` used as they are, without mapping or truncation.
        origin: `[B]`, the training image that a row of `w` was projected from, −1 = none; None if that has no meaning.
    """

    z: torch.Tensor | None = None
    other: torch.Tensor | None = None
    crossover: int = 0
    w: torch.Tensor | None = None
    origin: torch.Tensor | None = None

    def __len__(self) -> int:
        return len(self.z if self.w is None else self.w)


class Drawn(NamedTuple):
    """What a generator made of `Latents`."""

    ws: torch.Tensor  # [B, L, D]
    images: torch.Tensor  # [B, 3, R, R] float32
    features: dict[str, torch.Tensor]  # {"b4": [B, C, 4, 4], "b8": …}


class Pair:
    """The adapted generator and the source it came from.

    Args:
        generator: network; what acts on it in `bank` is the adaptation.
        bank: its adapter bank.
        truncation_psi: ψ of latents that are mapped.
        half: compute the features in bfloat16.
    """

    def __init__(self, generator, bank, truncation_psi: float = 1.0, half: bool = False):
        self.generator, self.bank, self.psi, self.half = generator, bank, truncation_psi, half

    def draw(self, batch: int, random: torch.Generator, style_mixing: float = 0.0) -> Latents:
        """Free latents; with probability `style_mixing` the whole batch is mixed of two at one crossover."""
        return self.mixed(
            torch.randn(batch, self.generator.z_dim, generator=random, dtype=torch.float32, device="cpu"),
            random,
            style_mixing,
        )

    def mixed(self, z: torch.Tensor, random: torch.Generator, style_mixing: float) -> Latents:
        """`z` `[B, z_dim]`, mixed with other latents with probability `style_mixing`."""
        if (
            not style_mixing
            or float(torch.rand((), generator=random, dtype=torch.float32, device="cpu")) >= style_mixing
        ):
            return Latents(z)
        other = torch.randn(z.shape, generator=random, dtype=torch.float32, device="cpu")
        return Latents(z, other, int(torch.randint(1, self.generator.num_ws, (), generator=random, device="cpu")))

    def ws(self, latents: Latents) -> torch.Tensor:
        """`[B, L, D]` under whatever acts now."""
        network = self.generator
        if not network.has_styles:
            return latents.z.to(network.device)
        if latents.w is not None:
            return as_ws(latents.w.to(network.device), network.num_ws, network.w_dim)
        ws = network.mapping(latents.z.to(network.device), truncation_psi=self.psi)
        if latents.other is None:
            return ws
        other = network.mapping(latents.other.to(network.device), truncation_psi=self.psi)
        return mix_styles(ws, other, latents.crossover)

    def adapted(self, latents: Latents, ws_gradient: bool = False, precise: bool = False) -> Drawn:
        """Draw under what acts now.

        Args:
            latents: of the pictures.
            ws_gradient: make `ws` differentiable though no adapter touches the mapping.
            precise: in float32 whatever `half` says, for penalties of gradients.
        """
        ws = self.ws(latents)
        if ws_gradient and not ws.requires_grad:
            ws = ws.detach().requires_grad_(True)
        return self.drawn(ws, precise)

    def drawn(self, ws: torch.Tensor, precise: bool = False) -> Drawn:
        """Draw styles `[B, L, D]` under what acts now; `precise`: as of `adapted`."""
        ws = ws.bfloat16() if self.half and not precise else ws
        if not self.generator.has_styles:
            return Drawn(ws, self.generator(ws).float(), {})
        images, features = self.generator.synthesis(ws, return_features=True)
        return Drawn(ws, images.float(), features)

    def stem(self, drawn: Drawn) -> torch.Tensor:
        """What AdvAug moves of the generator: styles, or the first map of one without styles."""
        return drawn.ws if self.generator.has_styles else self.generator.stem(drawn.ws)

    def body(self, x: torch.Tensor, drawn: Drawn) -> torch.Tensor:
        """Images of `x`, which lies near the `stem` of `drawn`."""
        return self.drawn(x).images if self.generator.has_styles else self.generator.body(x, drawn.ws).float()

    @torch.no_grad()
    def source(self, latents: Latents) -> Drawn:
        """Draw without any adapter, without gradients."""
        with self.bank.using({}):
            return self.adapted(latents)
