"""What HyperDomainNet's two objectives have in common: domains, their embeddings, and the terms on them."""

import json
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from types import SimpleNamespace

import torch
import torch.nn.functional as F
from torch import nn

from ..features.encoders import Encoder, templated
from ..inversion import PerceptualDistance, lpips_network
from ..utils.hashing import hash_tensor, hash_text
from ..utils.random import seeded
from ..utils.ranges import SHARE, Range, check_numbers
from .directional import draw_each, offsets_l1, offsets_l2, reference_loss
from .pair import Latents, Pair
from .statistics import (
    CONTENT_LEVELS,
    MOMENT_LEVELS,
    colour_distance,
    content_loss,
    moment_distance,
    sliced_wasserstein,
    structure_distance,
)

SOURCE_SAMPLES = 32  # whose mean embedding stands for the source where references have no latents
RECONSTRUCTION_SIZE = 256  # pixels a side at most, of l2 and perceptual terms
SET_LEVELS = MOMENT_LEVELS[:-1]  # not whole faces
LOOK = {  # weights that taught a domain vector filters from ten pictures (training/RESULTS.md, HyperDomainNet)
    "statistics_weight": 1.0,
    "wasserstein_weight": 1.0,
    "colour_weight": 2.0,
    "content_weight": 20.0,
    "structure_weight": 1.0,
}


@dataclass(frozen=True)
class HyperDomainConfig:
    """Weights of the terms, 0 = off. CLIP terms are summed over encoders, `clip_ref` is averaged, as published.

    Attributes:
        direction_weight, indomain_weight, tt_direction_weight, global_weight: see the losses; tt of many domains.
        clip_within_weight, clip_ref_weight: of domains given by pictures whose latents are known.
        l2_weight, perceptual_weight: of the adapted pictures of these latents against the pictures themselves.
        offsets_l2_weight, offsets_l1_weight: size of the domain vector.
        style_mixing: probability that free latents are mixed of two.
        convex_hull: train between the domains too (many domains).
        standardise: the hypernetwork sees how embeddings differ from their mean; not of the paper (many domains).
        resample: smallest cosine of domains drawn around the given ones; 1 = none (many domains, one encoder).
        crop: side of the random square that embeddings see, as a share of the picture's; 1 = all (many domains).
        statistics_weight, wasserstein_weight, colour_weight: feature moments, sliced feature distributions and colours
            against the reference pictures as a set; not of the paper.
        content_weight, structure_weight: layout, lines and light against the source; not of the paper.
    """

    direction_weight: float = 1.0
    indomain_weight: float = 0.0
    tt_direction_weight: float = 0.0
    global_weight: float = 0.0
    clip_within_weight: float = 0.0
    clip_ref_weight: float = 0.0
    l2_weight: float = 0.0
    perceptual_weight: float = 0.0
    offsets_l2_weight: float = 0.0
    offsets_l1_weight: float = 0.0
    style_mixing: float = 0.9
    convex_hull: bool = False
    standardise: bool = False
    resample: float = 1.0
    crop: float = 1.0
    statistics_weight: float = 0.0
    wasserstein_weight: float = 0.0
    colour_weight: float = 0.0
    content_weight: float = 0.0
    structure_weight: float = 0.0

    def __post_init__(self):
        check_numbers(self, {"style_mixing": SHARE, "resample": SHARE, "crop": Range(0, 1, above=True)})

    @property
    def needs_latents(self) -> bool:
        """A term compares with latents of the reference pictures."""
        return any(getattr(self, name) for name in OF_LATENTS)

    @property
    def needs_features(self) -> bool:
        """A term compares features; with LPIPS installed `perceptual_weight` would do without."""
        return any(getattr(self, name) for name in (*OF_FEATURES, "perceptual_weight"))

    @classmethod
    def text(cls) -> "HyperDomainConfig":
        """One domain from words, as published for FFHQ; cars took indomain_weight=1.5, cats offsets_l2_weight=0.5."""
        return cls()

    @classmethod
    def image(cls) -> "HyperDomainConfig":
        """One domain from pictures with latents."""
        return cls(clip_within_weight=0.5, clip_ref_weight=30.0, l2_weight=10.0, perceptual_weight=10.0)

    @classmethod
    def few_images(cls) -> "HyperDomainConfig":
        """One domain from about ten pictures of different things, without latents: direction and set-level signals."""
        return cls(style_mixing=0.0, **LOOK)

    @classmethod
    def hypernetwork(cls) -> "HyperDomainConfig":
        """Many domains from words."""
        return cls(tt_direction_weight=0.4, convex_hull=True, resample=0.95, crop=0.8)

    @classmethod
    def hypernetwork_images(cls) -> "HyperDomainConfig":
        """Many domains from pictures with latents."""
        return cls(
            tt_direction_weight=1.0, clip_ref_weight=2.0, l2_weight=1.0, perceptual_weight=1.0, offsets_l2_weight=2.0
        )

    @classmethod
    def hypernetwork_few_images(cls) -> "HyperDomainConfig":
        """Many domains from about ten pictures each."""
        return cls(tt_direction_weight=0.4, style_mixing=0.0, standardise=True, **LOOK)


SINGLE_ONLY = ("indomain_weight", "clip_within_weight")
MANY_ONLY = ("tt_direction_weight", "convex_hull", "standardise", "resample", "crop")
OF_LATENTS = ("clip_within_weight", "clip_ref_weight", "l2_weight", "perceptual_weight")
OF_PICTURES = ("statistics_weight", "wasserstein_weight", "colour_weight")
OF_FEATURES = ("statistics_weight", "wasserstein_weight", "content_weight")


class Domains(nn.Module):
    """What both objectives share: N domains as embeddings T, S per encoder, and the pictures that show them.

    Domain n is `targets[n]`, or the pictures `references[n]` `[R_n, 3, H, W]`.
    """

    uses_images = compares_views = needs_source = False  # no batch of real pictures: each step draws its own

    def __init__(self, config, encoders, targets, origins, references, latents, features, templates):
        super().__init__()
        self.config = c = config
        encoders = [encoders] if isinstance(encoders, Encoder) else list(encoders)
        # no modules of this one: neither saved nor trained with it
        self._apart = SimpleNamespace(encoders=encoders, features=features, lpips=None, hypernetwork=None)
        if (targets is None) == (references is None):
            raise ValueError("a domain is named by words or shown by pictures; give target or references, not both")
        if latents is None:
            self._refuse(
                OF_LATENTS, "compares with the latents of reference pictures; give reference_latents, see inversion"
            )
        if references is None:
            self._refuse(
                OF_PICTURES, "compares with reference pictures, and this domain is named by words; set it to 0"
            )
        if features is None:
            self._refuse(OF_FEATURES, "compares features; pass features=load_features()")
        if not any(value for name, value in vars(c).items() if name.endswith("_weight")):
            raise ValueError("every weight is 0, so there is nothing to learn; for example direction_weight=1")
        self.references, self.latents = references, latents
        if latents is not None and [len(w) for w in latents] != [len(x) for x in references or []]:
            raise ValueError("reference_latents are not one w+ for each reference picture; see inversion.invert")
        if c.perceptual_weight:
            self._apart.lpips = lpips_network(str(references[0].device))
            if self._apart.lpips is None and features is None:
                raise ValueError("perceptual_weight needs the package lpips, or features=load_features()")
        self.pictures = None  # per encoder and domain: embeddings of the references [R_n, D]
        with torch.no_grad():
            if references is None:
                self.targets = [templated(encoder, targets, templates) for encoder in encoders]  # [N, K, D] each
                self.origins = [templated(encoder, origins, templates) for encoder in encoders]  # [N or 1, K, D]
            else:
                self.pictures = [[embed_references(encoder, x) for x in references] for encoder in encoders]
                self.targets = [centres(of) for of in self.pictures]  # [N, 1, D] each
                self.origins = None  # seen by the first step, which brings the generator
        self.projected = None  # as `pictures`, of the source's pictures of the references' latents
        words = [] if targets is None else [*map(list, (targets, origins, templates))]
        shown = [hash_tensor(x) for of in (references, latents) for x in of or ()]
        self._domains = {"domains": hash_text(json.dumps([words, shown]))}
        if words and len(targets) == 1:
            self._domains |= {"target": targets[0], "origin": origins[0]}

    def settings(self) -> dict:
        """See `Objective.settings`."""
        return {**asdict(self.config), **self._domains, "encoders": [encoder.identity for encoder in self.encoders]}

    def looks(self, bank, name: str) -> list:
        """See `Objective.looks`."""
        return [bank.using({name: 1.0})]

    def prepare(self, adapter, step: int) -> None:
        """See `Objective.prepare`."""

    @property
    def encoders(self) -> list[Encoder]:
        return self._apart.encoders

    def _refuse(self, names: Sequence[str], reason: str) -> None:
        for field in fields(self.config):
            value = getattr(self.config, field.name)
            if field.name in names and value != field.default:
                raise ValueError(f"{field.name}={value} {reason}")

    @torch.no_grad()
    def _look_at_source(self, pair: Pair) -> None:
        """S of domains shown by pictures: the mean embedding of their latents' source pictures, or of 32 free ones."""
        if self.origins is not None:
            return
        if self.latents is None:
            random = seeded(0)
            z = torch.randn(SOURCE_SAMPLES, pair.generator.z_dim, generator=random, dtype=torch.float32, device="cpu")
            images = torch.cat([pair.source(Latents(part)).images for part in z.split(4)])
            self.origins = [centres([embed_references(encoder, images)]) for encoder in self.encoders]
            return
        drawn = [torch.cat([pair.source(Latents(w=part)).images for part in w.split(4)]) for w in self.latents]
        self.projected = [[embed_references(encoder, x) for x in drawn] for encoder in self.encoders]
        self.origins = [centres(of) for of in self.projected]

    def _set_losses(self, adapted, source, domains: Sequence[int], random) -> dict[str, torch.Tensor]:
        """Signals of `methods.statistics`: adapted pictures `[B, 3, H, W]` against references and source.

        The rows of one domain are compared with its pictures as a set; `domains` `[B]` says which is whose.
        """
        c, losses, maps, real_maps = self.config, defaultdict(float), {}, []
        features, of_maps = self._apart.features, c.statistics_weight or c.wasserstein_weight
        levels = SET_LEVELS if of_maps else CONTENT_LEVELS
        if any(getattr(c, name) for name in OF_FEATURES):
            maps = dict(zip(levels, features(adapted, levels), strict=True))
        if any(getattr(c, name) for name in OF_PICTURES):
            groups = {n: [row for row, of in enumerate(domains) if of == n] for n in domains}
            chosen = []
            for n, rows in groups.items():
                picks = draw_each(len(self.references[n]), max(2, len(rows)), random)
                chosen.append(self.references[n][picks])
            if of_maps:
                with torch.no_grad():
                    sizes = [len(real) for real in chosen]
                    real_maps = [m.split(sizes) for m in features(torch.cat(chosen), levels)]
            for i, (rows, real) in enumerate(zip(groups.values(), chosen, strict=True)):
                pairs = [(m[rows], r[i]) for m, r in zip(maps.values(), real_maps, strict=False)]
                if c.statistics_weight:
                    losses["statistics"] += sum(moment_distance(a, b) for a, b in pairs)
                if c.wasserstein_weight:
                    pixels = adapted[rows], real
                    losses["wasserstein"] += sum(sliced_wasserstein(a, b, random) for a, b in [*pairs, pixels])
                if c.colour_weight:
                    losses["colour"] += colour_distance(adapted[rows], real)
            losses = {name: getattr(c, f"{name}_weight") * loss / len(groups) for name, loss in losses.items()}
        if c.content_weight:
            with torch.no_grad():
                kept = dict(zip(CONTENT_LEVELS, features(source, CONTENT_LEVELS), strict=True))
            losses["content"] = c.content_weight * content_loss(maps, kept)
        if c.structure_weight:
            losses["structure"] = c.structure_weight * structure_distance(adapted, source)
        return losses

    def _reference_losses(self, drawn, domains: Sequence[int], picks: Sequence[int]) -> dict[str, torch.Tensor]:
        """Adapted pictures `[P, 3, H, W]` of the latents of references `picks[p]` of `domains[p]` against these."""
        c, losses, chosen = self.config, {}, list(zip(domains, picks, strict=True))
        if c.clip_ref_weight:
            each = [
                reference_loss(encoder.image(drawn), torch.stack([of[n][k] for n, k in chosen]))
                for encoder, of in zip(self.encoders, self.pictures, strict=True)
            ]
            losses["clip_ref"] = c.clip_ref_weight * sum(each) / len(each)
        real = torch.stack([self.references[n][k] for n, k in chosen])
        small, real = at_most(drawn, RECONSTRUCTION_SIZE), at_most(real, RECONSTRUCTION_SIZE)
        if c.l2_weight:
            losses["l2"] = c.l2_weight * F.mse_loss(small, real)
        if c.perceptual_weight:
            if self._apart.lpips is not None:
                distance = self._apart.lpips(small, real)
            else:
                distance = PerceptualDistance(self._apart.features, real)(small)
            losses["perceptual"] = c.perceptual_weight * distance.mean()
        return losses

    def _offset_losses(self, deltas) -> dict[str, torch.Tensor]:
        c, losses, deltas = self.config, {}, list(deltas)
        if (c.offsets_l2_weight or c.offsets_l1_weight) and not deltas:
            raise ValueError(
                "offsets_l2_weight and offsets_l1_weight are of domain vectors, and none acts; set them to 0"
            )
        if c.offsets_l2_weight:
            losses["offsets_l2"] = c.offsets_l2_weight * offsets_l2(deltas)
        if c.offsets_l1_weight:
            losses["offsets_l1"] = c.offsets_l1_weight * offsets_l1(deltas)
        return losses


def embed_references(encoder: Encoder, images: torch.Tensor) -> torch.Tensor:
    return torch.cat([encoder.image(part) for part in images.split(8)])


def centres(sets: Sequence[torch.Tensor]) -> torch.Tensor:
    """Unit mean of each of N sets `[R_n, D]`, `[N, 1, D]`."""
    return torch.stack([F.normalize(x.mean(0, keepdim=True), dim=1) for x in sets])


def at_most(x: torch.Tensor, side: int) -> torch.Tensor:
    if max(x.shape[-2:]) <= side:
        return x
    return F.interpolate(x, size=(side, side), mode="bicubic", align_corners=False, antialias=True)
