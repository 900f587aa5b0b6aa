"""The generator with and without its adapter, for the same latents and noise.

Shape legend: B images, L `num_ws`, D `w_dim`, R resolution. For generators without styles, `ws` is z `[B, z_dim]`.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch

from ..models.bounds import MAX_RESOLUTION
from ..models.layers import as_ws, mix_styles
from ..utils.random import seeded
from .checks import required

LARGEST_AT_ONCE = 256  # px


@dataclass(frozen=True)
class Latents:
    """A batch of latents that the adapted generator and its source both map; either `z` or `w` is given.

    Attributes:
        z: `[B, z_dim]`, or None if `w` is given.
        other, crossover: style mixing; the first `crossover` of the `ws` come from `z`, the rest from `other`.
        w: w `[B, D]` or w+ `[B, L, D]`, used without mapping and truncation.
        origin: `[B]`, index of the training image that each row of `w` was projected from, −1 for a mix of two; None
            for latents that were not projected.
        noise: int64 `[B]`, seed of the noise maps of each picture; None: the maps that the generator stores.
    """

    z: torch.Tensor | None = None
    other: torch.Tensor | None = None
    crossover: int = 0
    w: torch.Tensor | None = None
    origin: torch.Tensor | None = None
    noise: torch.Tensor | None = None

    def require_z(self) -> torch.Tensor:
        """Return z.

        Raises:
            ValueError: the latents are given as w.
        """
        return required(self.z, "these latents have no z, but w alone, which this generator cannot take; give z")

    def __len__(self) -> int:
        return len(self.require_z() if self.w is None else self.w)

    def each(self) -> list["Latents"]:
        """Return the B latents, one by one."""
        given = self.z, self.other, self.w, self.origin, self.noise
        rows = [[None] * len(self) if x is None else x.split(1) for x in given]
        return [Latents(z, other, self.crossover, *rest) for z, other, *rest in zip(*rows, strict=True)]


class Drawn(NamedTuple):
    """Images that a generator drew, with its styles and feature maps."""

    ws: torch.Tensor  # [B, L, D]
    images: torch.Tensor  # [B, 3, R, R] float32
    features: dict[str, torch.Tensor]  # {"b4": [B, C, 4, 4], "b8": …}
    noise: torch.Tensor | None = None  # see `Latents`

    @classmethod
    def joined(cls, parts: Sequence["Drawn"]) -> "Drawn":
        """Return one batch of all images of `parts`."""
        features = {name: torch.cat([part.features[name] for part in parts]) for name in parts[0].features}
        noise = [part.noise for part in parts if part.noise is not None]
        whole = torch.cat([part.ws for part in parts]), torch.cat([part.images for part in parts]), features
        return cls(*whole, torch.cat(noise) if noise else None)

    def small(self, largest: int) -> "Drawn":
        """Return the same images with the feature maps up to the resolution `largest` only."""
        return self._replace(features={name: x for name, x in self.features.items() if int(name[1:]) <= largest})


class Pair:
    """The adapted generator and its source, which is the same network without any adapter.

    Args:
        generator: the network.
        bank: adapter bank of `generator`; its active adapters are the adaptation.
        truncation_psi: truncation ψ of z that is mapped to w.
        half: compute the synthesis network in bfloat16.
        fresh_noise: whether `with_noise` gives each picture noise maps of its own.

    Raises:
        ValueError: fresh noise for a generator without noise maps.
    """

    def __init__(self, generator, bank, truncation_psi: float = 1.0, half: bool = False, fresh_noise: bool = False):
        if fresh_noise and not generator.has_styles:
            raise ValueError(f"noise='random': a {type(generator).__name__} has no noise maps; use noise='const'")
        self.generator, self.bank, self.psi, self.half = generator, bank, truncation_psi, half
        self.fresh_noise = fresh_noise

    def with_noise(self, latents: Latents, random: torch.Generator) -> Latents:
        """Return `latents` with seeds of noise maps, which their source shares; as they are without fresh noise."""
        if not self.fresh_noise:
            return latents
        return replace(latents, noise=torch.randint(2**62, (len(latents),), generator=random, device="cpu"))

    def draw(self, batch: int, random: torch.Generator, style_mixing: float = 0.0) -> Latents:
        """Sample z from a normal distribution; see `mixed` for `style_mixing`.

        Args:
            batch: number of latents B.
            random: CPU generator.
            style_mixing: probability of style mixing.
        """
        return self.mixed(
            torch.randn(batch, self.generator.z_dim, generator=random, dtype=torch.float32, device="cpu"),
            random,
            style_mixing,
        )

    def mixed(self, z: torch.Tensor, random: torch.Generator, style_mixing: float) -> Latents:
        """Return latents of `z` `[B, z_dim]`, with probability `style_mixing` mixed with a second random batch.

        The whole batch is mixed at one random crossover, or not at all.
        """
        if (
            not style_mixing
            or float(torch.rand((), generator=random, dtype=torch.float32, device="cpu")) >= style_mixing
        ):
            return Latents(z)
        other = torch.randn(z.shape, generator=random, dtype=torch.float32, device="cpu")
        return Latents(z, other, int(torch.randint(1, self.generator.num_ws, (), generator=random, device="cpu")))

    def ws(self, latents: Latents) -> torch.Tensor:
        """Return the styles `[B, L, D]` of `latents`, mapped with the active adapters."""
        network = self.generator
        if not network.has_styles:
            return latents.require_z().to(network.device)
        if latents.w is not None:
            return as_ws(latents.w.to(network.device), network.num_ws, network.w_dim)
        ws = network.mapping(latents.require_z().to(network.device), truncation_psi=self.psi)
        if latents.other is None:
            return ws
        other = network.mapping(latents.other.to(network.device), truncation_psi=self.psi)
        return mix_styles(ws, other, latents.crossover)

    def adapted(self, latents: Latents, ws_gradient: bool = False, precise: bool = False) -> Drawn:
        """Draw images with the active adapters.

        Args:
            latents: latents of the images.
            ws_gradient: make `ws` differentiable even if no adapter acts on the mapping network.
            precise: compute in float32 even if `half` is set; gradient penalties need this.
        """
        ws = self.ws(latents)
        if ws_gradient and not ws.requires_grad:
            ws = ws.detach().requires_grad_(True)
        return self.drawn(ws, precise, latents.noise)

    @property
    def draws_at_once(self) -> bool:
        """Whether a batch is drawn at once: on a CPU, large images take less memory one by one, and no more time.

        The styles of a single image scale the weights of a layer instead of its feature maps.
        """
        return self.generator.resolution <= LARGEST_AT_ONCE or self.generator.device.type != "cpu"

    def one_by_one(self, latents: Latents, largest_map: int) -> Drawn:
        """Draw images as `adapted` does, each by itself, with feature maps up to the resolution `largest_map`."""
        return Drawn.joined([self.adapted(latent).small(largest_map) for latent in latents.each()])

    def drawn(self, ws: torch.Tensor, precise: bool = False, noise: torch.Tensor | None = None) -> Drawn:
        """Draw images of styles `[B, L, D]` with the active adapters; see `adapted` and `Latents` for the rest."""
        ws = ws.bfloat16() if self.half and not precise else ws
        if not self.generator.has_styles:
            return Drawn(ws, self.generator(ws).float(), {})
        settings: dict = {"return_features": True}
        if noise is not None:
            settings |= {"noise_mode": "random", "generator": [seeded(seed) for seed in noise.tolist()]}
        images, features = self.generator.synthesis(ws, **settings)
        return Drawn(ws, images.float(), features, noise)

    def stem(self, drawn: Drawn) -> torch.Tensor:
        """Return what AdvAug perturbs in the generator: the styles, or the first feature map if there are no styles."""
        return drawn.ws if self.generator.has_styles else self.generator.stem(drawn.ws)

    def body(self, x: torch.Tensor, drawn: Drawn) -> torch.Tensor:
        """Return images `[B, 3, R, R]` of `x`, a perturbed `stem(drawn)`."""
        return (
            self.drawn(x, noise=drawn.noise).images
            if self.generator.has_styles
            else self.generator.body(x, drawn.ws).float()
        )

    @torch.no_grad()
    def source(self, latents: Latents, largest_map: int = MAX_RESOLUTION) -> Drawn:
        """Draw images without any adapter and without gradients, with feature maps up to `largest_map`."""
        with self.bank.using({}):
            if self.generator.has_styles and not self.draws_at_once:
                return self.one_by_one(latents, largest_map)
            return self.adapted(latents).small(largest_map)
