"""HyperDomainNet: a domain named by words or pictures becomes a domain vector (arXiv 2210.08884).

The generator is led by directions between embeddings, StyleGAN-NADA's (arXiv 2108.00946), and for pictures by Mind the
Gap's (arXiv 2110.08398); there is no discriminator. Source and adapted pictures share latents, mixing and noise.

Shape legend: B images, K templates (1 for pictures), D size of an embedding, N domains, R reference pictures.
"""

import hashlib
import json
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, fields
from types import SimpleNamespace

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from ..adapters.domain_vector import DomainVectorFactors
from ..adapters.hypernetwork import DomainHyperNetwork
from ..features.encoders import TEMPLATES, Encoder, templated
from ..inversion import PerceptualDistance, lpips_network
from ..utils.random import seeded
from ..utils.ranges import SHARE, Range, check_numbers
from .objective import digest
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

SHORTEST = 0.1  # directions between unit vectors below this length weigh less, see `_cosine`
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

# -------------------------------------------------------------------------------------------------------------- losses


def direction_loss(adapted, source, targets, origins) -> torch.Tensor:
    """mean_b 1 − cos(e_t − e_s, mean_k(T − S)): every picture moves as the domain's name does.

    Args:
        adapted, source: e_t, e_s `[B, D]` of the pictures of one latent.
        targets, origins: T, S `[B or 1, K, D]`.
    """
    return (1 - _cosine(adapted - source, (targets - origins).mean(1))).mean()


def indomain_loss(adapted, source) -> torch.Tensor:
    """2/(B(B−1)) Σ_{i>j} (⟨e_s^i, e_s^j⟩ − ⟨e_t^i, e_t^j⟩)²: what differed still differs as much. `[B, D]` each."""
    first, second = _pairs(adapted)
    if len(first) == 0:
        return adapted.sum() * 0
    difference = (source[first] * source[second]).sum(1) - (adapted[first] * adapted[second]).sum(1)
    return difference.square().mean()


def tt_direction_loss(adapted, targets) -> torch.Tensor:
    """mean_{i>j} 1 − cos(e_t^i − e_t^j, T^i − T^j): pictures of two domains differ as the domains do.

    Differs from the released code: a pair of equal domains, whose loss would be a constant 1, is left out.

    Args:
        adapted: `[B, D]`.
        targets: `[B, K, D]`, a domain each.
    """
    targets, (first, second) = targets.mean(1), _pairs(adapted)
    wanted = targets[first] - targets[second]
    apart = wanted.norm(dim=1) > 1e-6
    if not apart.any():
        return adapted.sum() * 0
    return (1 - _cosine((adapted[first] - adapted[second])[apart], wanted[apart])).mean()


def global_loss(adapted, targets) -> torch.Tensor:
    """mean_b 1 − cos(e_t, mean_k T), `[B, D]` and `[B or 1, K, D]`."""
    return (1 - F.cosine_similarity(adapted, targets.mean(1), dim=1)).mean()


def within_loss(adapted, source, reference, projected) -> torch.Tensor:
    """mean_b 1 − cos(e_t − e_ref, e_s − e_ref,A): pictures lie around the reference as they did around its projection.

    All `[B or 1, D]`; `projected` is the source's picture of the reference's latent.
    """
    return (1 - _cosine(adapted - reference, source - projected)).mean()


def reference_loss(drawn, reference) -> torch.Tensor:
    """mean 1 − cos of two `[R, D]`: the adapted picture of a reference's latent, and the reference."""
    return (1 - F.cosine_similarity(drawn, reference, dim=1)).mean()


def offsets_l2(deltas: Iterable[torch.Tensor]) -> torch.Tensor:
    """Σ over layers of mean(δ²), of `[C]` or `[B, C]` each."""
    return sum(delta.square().mean() for delta in deltas)


def offsets_l1(deltas: Iterable[torch.Tensor]) -> torch.Tensor:
    """Σ over layers of mean(|δ|)."""
    return sum(delta.abs().mean() for delta in deltas)


def _cosine(x, y) -> torch.Tensor:
    """⟨x, y⟩ / (max(‖x‖, 0.1) ‖y‖) of `[…, D]`.

    A fresh adapter draws the source itself, x = 0, where the gradient of the plain cosine has no bound and would blind
    Adam's second moment for a thousand steps. (The released code never meets this: its pairs do not share their noise.)
    """
    return (x * y).sum(-1) / (x.norm(dim=-1).clamp_min(SHORTEST) * y.norm(dim=-1).clamp_min(1e-8))


def _pairs(x) -> torch.Tensor:
    return torch.triu_indices(len(x), len(x), 1, device=x.device)


# ------------------------------------------------------------------------------------------------ operations on domains


def dirichlet_alphas(batch: int, random: torch.Generator) -> torch.Tensor:
    """`[B, B]`, rows from a Dirichlet distribution of concentration 2/B each: mostly one domain, some of others."""
    seed = int(torch.randint(2**62, (), generator=random, device="cpu"))
    return torch.from_numpy(np.random.default_rng(seed).dirichlet([2 / batch] * batch, batch)).float()


def convex_hull(embeddings: torch.Tensor, alphas: torch.Tensor) -> torch.Tensor:
    """normalise(Σ_j α_ij x_j): `[B, …, D]` of unit length and `[B, B]` → as many domains between them (§4.2)."""
    mixed = torch.einsum("ij,j...->i...", alphas.to(embeddings), F.normalize(embeddings, dim=-1))
    return F.normalize(mixed, dim=-1)


def resample(embeddings: Sequence[torch.Tensor], random: torch.Generator, least: float = 0.95) -> list[torch.Tensor]:
    """cosθ·u + sinθ·u⊥, cosθ from U[least, 1]: domains near the given ones, of unit length (§4.2).

    Differs from the released code, which perturbs every template on its own, so that their mean hardly moves, and
    leaves the hypernetwork's input where it was: one draw per domain, for its templates and for every entry alike.

    Args:
        embeddings: several `[B, K, D]` of one encoder, each with K of its own.
        random: CPU generator.
        least: smallest cosine to where it was.
    """
    batch, _, dim = embeddings[0].shape
    cosine = least + (1 - least) * torch.rand(batch, 1, 1, generator=random, dtype=torch.float32, device="cpu")
    noise = torch.rand(batch, 1, dim, generator=random, dtype=torch.float32, device="cpu") * 2 - 1
    near = []
    for x in embeddings:
        u, r, c = F.normalize(x, dim=-1), noise.to(x), cosine.to(x)
        across = F.normalize(r - (r * u).sum(-1, keepdim=True) * u, dim=-1)
        near.append(c * u + (1 - c.square()).sqrt() * across)
    return near


def draw_each(num: int, batch: int, random: torch.Generator) -> torch.Tensor:
    """`[batch]` indices below `num`, none twice before all were there (differs from the released code)."""
    rounds = [torch.randperm(num, generator=random, device="cpu") for _ in range(-(-batch // num))]
    return torch.cat(rounds)[:batch]


# ---------------------------------------------------------------------------------------------------------- objectives


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


class _Domains(nn.Module):
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
                self.pictures = [[_embedded(encoder, x) for x in references] for encoder in encoders]
                self.targets = [_centres(of) for of in self.pictures]  # [N, 1, D] each
                self.origins = None  # seen by the first step, which brings the generator
        self.projected = None  # as `pictures`, of the source's pictures of the references' latents
        words = [] if targets is None else [*map(list, (targets, origins, templates))]
        shown = [digest(x) for of in (references, latents) for x in of or ()]
        self._domains = {"domains": hashlib.sha256(json.dumps([words, shown]).encode()).hexdigest()[:16]}
        if words and len(targets) == 1:
            self._domains |= {"target": targets[0], "origin": origins[0]}

    def settings(self) -> dict:
        """See `Objective.settings`."""
        return {**asdict(self.config), **self._domains, "encoders": [encoder.identity for encoder in self.encoders]}

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
            self.origins = [_centres([_embedded(encoder, images)]) for encoder in self.encoders]
            return
        drawn = [torch.cat([pair.source(Latents(w=part)).images for part in w.split(4)]) for w in self.latents]
        self.projected = [[_embedded(encoder, x) for x in drawn] for encoder in self.encoders]
        self.origins = [_centres(of) for of in self.projected]

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
        small, real = _at_most(drawn, RECONSTRUCTION_SIZE), _at_most(real, RECONSTRUCTION_SIZE)
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


class HyperDomainObjective(_Domains):
    """Losses of one domain, named by words or shown by pictures; any adapter may learn it.

    Args:
        config: weights.
        encoders: one, or several whose losses add up; on the generator's device.
        target: the domain in words, e.g. "pencil drawing".
        origin: what the base draws, in words.
        references: `[R, 3, H, W]` in [−1, 1] instead of `target`, on the generator's device; H, W as the generator
            draws for `l2`, `perceptual`, and the set-level terms.
        reference_latents: their latents w+ `[R, num_ws, w_dim]`, see `inversion.invert`. None: free pictures of the
            source stand for them, as StyleGAN-NADA has it, and the terms that need them are refused.
        features: frozen feature network, for terms that compare features, and for `perceptual` without LPIPS.
        templates: prompts with {} for the words.

    Raises:
        ValueError: not exactly one of words and pictures, or a term without what it compares with.
    """

    def __init__(
        self,
        config: HyperDomainConfig,
        encoders: Encoder | Sequence[Encoder],
        *,
        target: str | None = None,
        origin: str = "photo",
        references: torch.Tensor | None = None,
        reference_latents: torch.Tensor | None = None,
        features=None,
        templates: Sequence[str] = TEMPLATES,
    ):
        words = None if target is None else [target]
        pictures, latents = (None if x is None else [x] for x in (references, reference_latents))
        super().__init__(config, encoders, words, [origin], pictures, latents, features, templates)
        self._refuse(MANY_ONLY, "is about several domains, and here is one; use HyperNetworkObjective")

    def regularisers(self, pair: Pair, batch: int, step: int, random: torch.Generator) -> Iterator[dict]:
        """Weighted losses of one step; each dict yielded may be differentiated at once."""
        c = self.config
        self._look_at_source(pair)
        latents = pair.draw(batch, random, c.style_mixing)
        adapted, source = pair.adapted(latents).images, pair.source(latents).images
        picks = [] if self.latents is None else draw_each(len(self.latents[0]), batch, random).tolist()
        losses = defaultdict(float)
        for i, encoder in enumerate(self.encoders):
            e, targets, origins = encoder.image(adapted), self.targets[i], self.origins[i]
            with torch.no_grad():
                e_source = encoder.image(source)
            if c.direction_weight:
                losses["direction"] += c.direction_weight * direction_loss(e, e_source, targets, origins)
            if c.indomain_weight:
                losses["indomain"] += c.indomain_weight * indomain_loss(e, e_source)
            if c.global_weight:
                losses["global"] += c.global_weight * global_loss(e, targets)
            if c.clip_within_weight:
                around = self.pictures[i][0][picks], self.projected[i][0][picks]
                losses["clip_within"] += c.clip_within_weight * within_loss(e, e_source, *around)
        losses |= self._set_losses(adapted, source, [0] * batch, random)
        acting = [pair.bank.adapters[name].factors().values() for name in pair.bank.current()]
        vectors = [f for factors in acting for f in factors if isinstance(f, DomainVectorFactors)]
        losses |= self._offset_losses(delta for f in vectors for delta in f.parameters())
        yield losses
        if c.clip_ref_weight or c.l2_weight or c.perceptual_weight:
            picks = picks[: len(self.latents[0])]
            drawn = pair.adapted(Latents(w=self.latents[0][picks])).images
            yield self._reference_losses(drawn, [0] * len(picks), picks)


class HyperNetworkObjective(_Domains):
    """Losses of a hypernetwork that learns many domains at once, in each step a batch of different ones.

    Args:
        config: weights.
        hypernetwork: trained by whoever calls `regularisers`; not a part of this module's parameters.
        encoders: the first one's embeddings are what the hypernetwork reads.
        targets: N domains in words, e.g. "pencil drawing".
        origins: what the base draws, one for all or one per target.
        references: N sets of pictures `[R_n, 3, H, W]` instead of `targets`.
        reference_latents: their latents w+, N sets; see `HyperDomainObjective`.
        features, templates: see `HyperDomainObjective`.

    Raises:
        ValueError: as `HyperDomainObjective`; fewer than two domains; or not the hypernetwork's encoder.
    """

    def __init__(
        self,
        config: HyperDomainConfig,
        hypernetwork: DomainHyperNetwork,
        encoders: Encoder | Sequence[Encoder],
        *,
        targets: Sequence[str] | None = None,
        origins: str | Sequence[str] = "photo",
        references: Sequence[torch.Tensor] | None = None,
        reference_latents: Sequence[torch.Tensor] | None = None,
        features=None,
        templates: Sequence[str] = TEMPLATES,
    ):
        num = len((references if targets is None else targets) or ())
        if num < 2:
            raise ValueError(f"{num} domains for a hypernetwork; give 2 or more, or use HyperDomainObjective for one")
        origins = [origins] if isinstance(origins, str) else list(origins)
        if len(origins) not in (1, num):
            raise ValueError(f"{len(origins)} origins for {num} targets; give one for all, or one each")
        super().__init__(config, encoders, targets, origins, references, reference_latents, features, templates)
        self._refuse(SINGLE_ONLY, "is about one domain; set it to 0")
        if config.convex_hull or config.resample < 1:
            reason = "compares with pictures, which domains in between have not; use convex_hull=False and resample=1"
            self._refuse(OF_PICTURES, reason)
        if config.resample < 1 and len(self.encoders) > 1:
            raise ValueError("resample draws domains that exist for one encoder only; give one, or resample=1")
        hypernetwork.check_encoder(self.encoders[0])
        self._apart.hypernetwork = hypernetwork
        with torch.no_grad():
            known = self.targets[0][:, 0] if targets is None else self.encoders[0].text(list(targets))
        self.inputs = F.normalize(known, dim=1)  # [N, D]: the bare words, or all pictures
        if config.standardise:
            hypernetwork.standardise(self.inputs if self.pictures is None else torch.cat(self.pictures[0]))

    @property
    def hypernetwork(self) -> DomainHyperNetwork:
        return self._apart.hypernetwork

    def regularisers(self, pair: Pair, batch: int, step: int, random: torch.Generator) -> Iterator[dict]:
        """Weighted losses of one step; each dict yielded may be differentiated at once.

        Raises:
            ValueError: the hypernetwork is of another base, or `batch` is 1.
        """
        c = self.config
        self._check_base(pair)
        self._look_at_source(pair)
        domains = draw_each(len(self.inputs), batch, random).to(self.inputs.device)
        inputs = self._shown(domains, random)[:, None]  # [B, 1, D]
        targets = [t[domains] for t in self.targets]
        origins = [s[domains] if len(s) > 1 else s for s in self.origins]
        if c.convex_hull:
            alphas = dirichlet_alphas(batch, random)
            inputs, *targets = (convex_hull(x, alphas) for x in (inputs, *targets))
            origins = [convex_hull(s, alphas) if len(s) > 1 else s for s in origins]
        if c.resample < 1:
            inputs, targets[0] = resample([inputs, targets[0]], random, c.resample)
        deltas = self.hypernetwork(inputs[:, 0])
        latents = pair.draw(batch, random, c.style_mixing)
        with pair.bank.using_vectors(deltas):
            adapted = pair.adapted(latents).images
        source = pair.source(latents).images
        seen, seen_source = random_crops((adapted, source), c.crop, random)
        losses = defaultdict(float)
        for i, encoder in enumerate(self.encoders):
            e = encoder.image(seen)
            if c.direction_weight:
                with torch.no_grad():
                    e_source = encoder.image(seen_source)
                losses["direction"] += c.direction_weight * direction_loss(e, e_source, targets[i], origins[i])
            if c.tt_direction_weight:
                losses["tt_direction"] += c.tt_direction_weight * tt_direction_loss(e, targets[i])
            if c.global_weight:
                losses["global"] += c.global_weight * global_loss(e, targets[i])
        of_rows = domains.tolist()
        yield losses | self._set_losses(adapted, source, of_rows, random) | self._offset_losses(deltas.values())
        if c.clip_ref_weight or c.l2_weight or c.perceptual_weight:
            picks = [int(torch.randint(len(self.latents[n]), (), generator=random, device="cpu")) for n in of_rows]
            w = torch.stack([self.latents[n][k] for n, k in zip(of_rows, picks, strict=True)])
            with pair.bank.using_vectors(self.hypernetwork(self.inputs[domains])):
                drawn = pair.adapted(Latents(w=w)).images
            yield self._reference_losses(drawn, of_rows, picks)

    def _shown(self, domains: torch.Tensor, random: torch.Generator) -> torch.Tensor:
        """What the hypernetwork reads, `[B, D]`: the bare words, or the mean embedding of a few of a domain's pictures.

        How many changes from step to step, one the most often: it has to know a domain from whatever its users show.
        """
        if self.pictures is None:
            return self.inputs[domains]
        means = []
        for of in (self.pictures[0][n] for n in domains.tolist()):
            count = int(len(of) ** torch.rand((), generator=random, dtype=torch.float32, device="cpu").item())
            means.append(of[torch.randperm(len(of), generator=random, device="cpu")[:count]].mean(0))
        return F.normalize(torch.stack(means), dim=1)

    @torch.no_grad()
    def examples(self, num: int = 4) -> list[dict[str, torch.Tensor]]:
        """δ `[1, C]` of the first `num` domains as the hypernetwork would give them to users: for sample grids."""
        network, was_training = self.hypernetwork, self.hypernetwork.training
        try:
            deltas = network.eval()(self.inputs[:num])
        finally:
            network.train(was_training)
        return [{path: delta[i : i + 1] for path, delta in deltas.items()} for i in range(len(self.inputs[:num]))]

    def _check_base(self, pair: Pair) -> None:
        wanted = self.hypernetwork.config.base_fingerprint
        if wanted is not None and wanted != (have := pair.bank.fingerprint()):  # the bank computes it once
            base = self.hypernetwork.config.base_model_name_or_path
            raise ValueError(
                f"the hypernetwork was made for {base or 'another base'!r} (fingerprint {wanted}), not for this "
                f"generator (fingerprint {have}); make one with DomainHyperNetwork.for_model"
            )


def _embedded(encoder: Encoder, images: torch.Tensor) -> torch.Tensor:
    return torch.cat([encoder.image(part) for part in images.split(8)])


def _centres(sets: Sequence[torch.Tensor]) -> torch.Tensor:
    """Unit mean of each of N sets `[R_n, D]`, `[N, 1, D]`."""
    return torch.stack([F.normalize(x.mean(0, keepdim=True), dim=1) for x in sets])


def random_crops(images: Sequence[torch.Tensor], share: float, random: torch.Generator) -> list[torch.Tensor]:
    """Squares of `share` of the side at random places, row b of every `[B, 3, H, H]` at the same one."""
    side = images[0].shape[-1]
    size = max(1, round(side * share))
    if size >= side:
        return list(images)
    corners = torch.randint(side - size + 1, (len(images[0]), 2), generator=random, device="cpu").tolist()
    return [torch.stack([x[b, :, i : i + size, j : j + size] for b, (i, j) in enumerate(corners)]) for x in images]


def _at_most(x: torch.Tensor, side: int) -> torch.Tensor:
    if max(x.shape[-2:]) <= side:
        return x
    return F.interpolate(x, size=(side, side), mode="bicubic", align_corners=False, antialias=True)
