"""The base class of HyperDomainNet's two objectives: embeddings of domains, and the losses that both use."""

import json
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, fields, replace

import torch
import torch.nn.functional as F
from torch import nn

from ..data.images import reduced
from ..features import FeatureNetwork
from ..features.encoders import Encoder, templated
from ..inversion import PerceptualDistance, lpips_network
from ..metrics import native_crops
from ..utils.frozen import Frozen
from ..utils.hashing import hash_tensor, hash_text
from ..utils.random import seeded
from ..utils.ranges import SHARE, Range, check_numbers
from .checks import check_terms, required
from .directional import draw_each, offsets_l1, offsets_l2, reference_loss
from .losses import total
from .objective import StepHooks
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
from .views import VIEW_RANGES, check_views, draw_corners, num_crops

SOURCE_SAMPLES = 32  # pictures whose mean embedding is the source domain if references have no latents
RECONSTRUCTION_SIZE = 256  # largest side in pixels of the pictures that l2 and perceptual terms compare
SET_LEVELS = MOMENT_LEVELS[:-1]  # without the level whose receptive field covers a whole face
LOOK = {  # weights that taught domain vectors photo filters from ten pictures (training/RESULTS.md, HyperDomainNet)
    "statistics_weight": 1.0,
    "wasserstein_weight": 1.0,
    "colour_weight": 2.0,
    "content_weight": 20.0,
    "structure_weight": 1.0,
    "view_size": 256,
    "crops": 1,
}


@dataclass(frozen=True)
class HyperDomainConfig:
    """Weights of the terms; 0 switches a term off.

    As published, losses on embeddings are summed over encoders, except `clip_ref`, which is averaged. Settings marked
    (many) are for hypernetworks of many domains.

    Attributes:
        direction_weight, indomain_weight, global_weight: weights of `direction_loss`, `indomain_loss`, `global_loss`.
        tt_direction_weight: weight of `tt_direction_loss` (many).
        clip_within_weight, clip_ref_weight: weights of `within_loss` and `reference_loss`, for domains shown by
            pictures with latents.
        l2_weight, perceptual_weight: weights of the distances between the adapted pictures of these latents and the
            reference pictures.
        offsets_l2_weight, offsets_l1_weight: weights of the size of the domain vector.
        style_mixing: probability of style mixing of randomly sampled latents.
        convex_hull: whether to train on domains between the given ones too (many).
        standardise: whether the hypernetwork standardises its input embeddings; not in the paper (many).
        resample: smallest cosine between a given domain and the perturbed one that is trained; 1 perturbs none (many,
            one encoder).
        crop: side of the random square that the encoder sees, as a share of the picture's; 1 crops nothing (many).
        statistics_weight, wasserstein_weight, colour_weight: weights of the distances of feature moments, sliced
            feature distributions and colours from the set of reference pictures; not in the paper.
        content_weight, structure_weight: weights of the distances of layout, and of edges and brightness, from the
            source; not in the paper.
        view_size, crops, crop_weight: as of `ObjectiveConfig`, for the last five terms. Encoders and the other terms
            see whole pictures.
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
    view_size: int = 0
    crops: int = 0
    crop_weight: float = 1.0

    def __post_init__(self):
        check_numbers(self, {"style_mixing": SHARE, "resample": SHARE, "crop": Range(0, 1, above=True), **VIEW_RANGES})
        check_views(self)

    @property
    def needs_latents(self) -> bool:
        """Whether a term uses latents of the reference pictures."""
        return any(getattr(self, name) for name in NEED_LATENTS)

    @property
    def needs_features(self) -> bool:
        """Whether a term uses the feature network; for `perceptual_weight`, LPIPS replaces it if installed."""
        return any(getattr(self, name) for name in (*NEED_FEATURES, "perceptual_weight"))

    @classmethod
    def text(cls) -> "HyperDomainConfig":
        """Return the published weights for one domain named by words, on FFHQ.

        The paper uses indomain_weight=1.5 for cars and offsets_l2_weight=0.5 for cats.
        """
        return cls()

    @classmethod
    def image(cls) -> "HyperDomainConfig":
        """Return the published weights for one domain shown by pictures with latents."""
        return cls(clip_within_weight=0.5, clip_ref_weight=30.0, l2_weight=10.0, perceptual_weight=10.0)

    @classmethod
    def few_images(cls) -> "HyperDomainConfig":
        """Return weights for one domain shown by about ten pictures of different things, without latents.

        The direction loss and the comparison with the pictures as a set are used.
        """
        return replace(cls(style_mixing=0.0), **LOOK)

    @classmethod
    def hypernetwork(cls) -> "HyperDomainConfig":
        """Return weights for many domains named by words."""
        return cls(tt_direction_weight=0.4, convex_hull=True, resample=0.95, crop=0.8)

    @classmethod
    def hypernetwork_images(cls) -> "HyperDomainConfig":
        """Return weights for many domains shown by pictures with latents."""
        return cls(
            tt_direction_weight=1.0, clip_ref_weight=2.0, l2_weight=1.0, perceptual_weight=1.0, offsets_l2_weight=2.0
        )

    @classmethod
    def hypernetwork_few_images(cls) -> "HyperDomainConfig":
        """Return weights for many domains shown by about ten pictures each, without latents."""
        return replace(cls(tt_direction_weight=0.4, style_mixing=0.0, standardise=True), **LOOK)


SINGLE_ONLY = ("indomain_weight", "clip_within_weight")
MANY_ONLY = ("tt_direction_weight", "convex_hull", "standardise", "resample", "crop")
NEED_LATENTS = ("clip_within_weight", "clip_ref_weight", "l2_weight", "perceptual_weight")
NEED_PICTURES = ("statistics_weight", "wasserstein_weight", "colour_weight")
NEED_FEATURES = ("statistics_weight", "wasserstein_weight", "content_weight")


class Domains(StepHooks):
    """Embeddings of N domains, and losses on them.

    Args:
        config: weights of the terms.
        encoders: one or more encoders.
        targets: domains in words, or None.
        origins: source domains in words, N or 1; used with `targets`.
        references: pictures `[R_n, 3, H, W]` of each domain, or None; instead of `targets`.
        latents: w+ `[R_n, num_ws, w_dim]` of the pictures of each domain, or None.
        features: frozen feature network, or None.
        templates: prompts with {} for the words.

    Attributes:
        targets: target embeddings T per encoder, `[N, K, D]`; K is 1 for pictures.
        origins: source embeddings S per encoder, `[N or 1, K, D]`; None until the first step embeds source pictures.
        pictures: per encoder and domain, embeddings `[R_n, D]` of the references; None for words.
        projected: the same for the source's pictures of `latents`; None until the first step, and without latents.

    Raises:
        ValueError: not exactly one of `targets` and `references` is given, or a term misses its inputs.
    """

    uses_images = compares_views = needs_source = False  # each step draws its own images, see `regularisers`

    def __init__(
        self,
        config: HyperDomainConfig,
        encoders: Encoder | Sequence[Encoder],
        targets: Sequence[str] | None,
        origins: Sequence[str],
        references: Sequence[torch.Tensor] | None,
        latents: Sequence[torch.Tensor] | None,
        features: FeatureNetwork | None,
        templates: Sequence[str],
    ):
        super().__init__()
        self.config = c = config
        self.encoders = encoders = [encoders] if isinstance(encoders, Encoder) else list(encoders)  # no submodules
        self._features: Frozen[FeatureNetwork | None] = Frozen(features)
        self._lpips: Frozen[nn.Module | None] = Frozen(None)
        if (targets is None) == (references is None):
            raise ValueError("a domain is named by words or shown by pictures; give target or references, not both")
        if latents is None:
            self._refuse(
                NEED_LATENTS, "compares with the latents of reference pictures; give reference_latents, see inversion"
            )
        if references is None:
            self._refuse(
                NEED_PICTURES, "compares with reference pictures, and this domain is named by words; set it to 0"
            )
        if features is None:
            self._refuse(NEED_FEATURES, "compares features; pass features=load_features()")
        check_terms(c, ("crop_weight",), "direction_weight=1")
        self.references, self.latents = references, latents
        if latents is not None and [len(w) for w in latents] != [len(x) for x in references or []]:
            raise ValueError("reference_latents are not one w+ for each reference picture; see inversion.invert")
        if c.perceptual_weight and references is not None:
            self._lpips = Frozen(lpips_network(str(references[0].device)))
            if self._lpips.value is None and features is None:
                raise ValueError("perceptual_weight needs the package lpips, or features=load_features()")
        self.pictures: list[list[torch.Tensor]] | None = None
        self.projected: list[list[torch.Tensor]] | None = None
        self.origins: list[torch.Tensor] | None = None
        with torch.no_grad():
            if targets is not None:
                self.targets = [templated(encoder, targets, templates) for encoder in encoders]
                self.origins = [templated(encoder, origins, templates) for encoder in encoders]
            if references is not None:
                self.pictures = [[embed_references(encoder, x) for x in references] for encoder in encoders]
                self.targets = [centres(embeddings) for embeddings in self.pictures]
        words = [] if targets is None else [*map(list, (targets, origins, templates))]
        hashes = [hash_tensor(x) for tensors in (references, latents) for x in tensors or ()]
        self._domains = {"domains": hash_text(json.dumps([words, hashes]))}
        if targets is not None and len(targets) == 1:
            self._domains |= {"target": targets[0], "origin": origins[0]}

    def _required_pictures(self) -> list[list[torch.Tensor]]:
        return required(self.pictures, "these domains are named by words, so they have no pictures; give references")

    def _required_references(self) -> Sequence[torch.Tensor]:
        return required(self.references, "these domains are named by words, so they have no pictures; give references")

    def _required_latents(self) -> Sequence[torch.Tensor]:
        return required(self.latents, "these domains have no latents; give reference_latents, see inversion")

    def settings(self) -> dict:
        """See `Objective.settings`."""
        return {**asdict(self.config), **self._domains, "encoders": [encoder.identity for encoder in self.encoders]}

    def _refuse(self, names: Sequence[str], reason: str) -> None:
        """Raise an error if a setting of these names differs from its default."""
        for field in fields(self.config):
            value = getattr(self.config, field.name)
            if field.name in names and value != field.default:
                raise ValueError(f"{field.name}={value} {reason}")

    @torch.no_grad()
    def _embedded_origins(self, pair: Pair) -> list[torch.Tensor]:
        """Return `origins`, in the first step for pictures computed from pictures of the source.

        These are the pictures of the references' latents, or of 32 random latents.
        """
        if self.origins is not None:
            return self.origins
        if self.latents is None:
            random = seeded(0)
            z = torch.randn(SOURCE_SAMPLES, pair.generator.z_dim, generator=random, dtype=torch.float32, device="cpu")
            images = torch.cat([pair.source(Latents(part)).images for part in z.split(4)])
            self.origins = [centres([embed_references(encoder, images)]) for encoder in self.encoders]
            return self.origins
        drawn = [torch.cat([pair.source(Latents(w=part)).images for part in w.split(4)]) for w in self.latents]
        self.projected = [[embed_references(encoder, x) for x in drawn] for encoder in self.encoders]
        self.origins = [centres(embeddings) for embeddings in self.projected]
        return self.origins

    def _observe(self, images: torch.Tensor, levels: Sequence[int]) -> dict[int, torch.Tensor]:
        """Return level → feature map of `images` `[B, 3, H, W]`."""
        features = required(self._features.value, "this objective compares features: pass features=load_features()")
        return dict(zip(levels, features(images, levels), strict=True))

    @property
    def features(self) -> FeatureNetwork | None:
        """See `Objective.features`."""
        return self._features.value

    @property
    def levels(self) -> tuple[int, ...]:
        """See `Objective.levels`."""
        return SET_LEVELS

    def cropped(self, resolution: int) -> int:
        """See `Objective.cropped`."""
        return num_crops(self.config, resolution)

    def images_of_regularisers(self, batch: int) -> int:
        """See `Objective.images_of_regularisers`; the images of a step are counted elsewhere."""
        return 0

    def _set_losses(
        self, adapted: torch.Tensor, source: torch.Tensor, domains: Sequence[int], random: torch.Generator
    ) -> dict[str, torch.Tensor]:
        """Return the weighted losses of `methods.statistics`, on whole pictures and on native crops.

        Args:
            adapted: adapted pictures `[B, 3, R, R]`; those of one domain are compared with its references as a set.
            source: the source's pictures of the same latents.
            domains: index of the domain of each picture, `[B]`.
            random: CPU generator.
        """
        c, resolution = self.config, adapted.shape[-1]
        small = reduced(adapted, c.view_size), reduced(source, c.view_size)
        losses = self._view_losses(*small, domains, random, None)
        if crops := self.cropped(resolution):
            corners = draw_corners(len(adapted), crops, resolution, c.view_size, random)
            native = native_crops(adapted, corners, c.view_size), native_crops(source, corners, c.view_size)
            of_crops = [domain for domain in domains for _ in range(crops)]
            seen = self._view_losses(*native, of_crops, random, corners.flatten(0, 1))
            losses |= {f"{name}_crops": c.crop_weight * loss for name, loss in seen.items()}
        return losses

    def _view_losses(
        self,
        adapted: torch.Tensor,
        source: torch.Tensor,
        domains: Sequence[int],
        random: torch.Generator,
        corners: torch.Tensor | None,
    ) -> dict[str, torch.Tensor]:
        """Return the losses of `_set_losses` on what is seen of the pictures.

        Args:
            adapted, source: whole pictures, reduced, or crops, `[N, 3, H, W]`.
            domains: index of the domain of each, `[N]`.
            random: CPU generator.
            corners: places of the crops, `[N, 2]`, at which references are cropped too; None: whole pictures.
        """
        c, losses = self.config, {}

        def view(references: torch.Tensor, rows: Sequence[int]) -> torch.Tensor:
            """Show references as the generated pictures of `rows`."""
            if corners is None:
                return reduced(references, c.view_size)
            places = corners[[rows[i % len(rows)] for i in range(len(references))]]
            return native_crops(references, places[:, None], c.view_size)

        maps: dict[int, torch.Tensor] = {}
        real_maps: list[Sequence[torch.Tensor]] = []  # per level, then per domain
        compares_features = c.statistics_weight or c.wasserstein_weight
        levels = SET_LEVELS if compares_features else CONTENT_LEVELS
        if any(getattr(c, name) for name in NEED_FEATURES):
            maps = self._observe(adapted, levels)
        if any(getattr(c, name) for name in NEED_PICTURES):
            references, sums = self._required_references(), defaultdict(list)
            rows_of_domain = {n: [row for row, domain in enumerate(domains) if domain == n] for n in domains}
            chosen = []
            for n, rows in rows_of_domain.items():
                picks = draw_each(len(references[n]), max(2, len(rows)), random)
                chosen.append(view(references[n][picks], rows))
            if compares_features:
                with torch.no_grad():
                    sizes = [len(real) for real in chosen]
                    real_maps = [m.split(sizes) for m in self._observe(torch.cat(chosen), levels).values()]
            for i, (rows, real) in enumerate(zip(rows_of_domain.values(), chosen, strict=True)):
                pairs = [(m[rows], r[i]) for m, r in zip(maps.values(), real_maps, strict=False)]
                if c.statistics_weight:
                    sums["statistics"].append(total(moment_distance(a, b) for a, b in pairs))
                if c.wasserstein_weight:
                    pixels = adapted[rows], real
                    distances = [sliced_wasserstein(a, b, random) for a, b in [*pairs, pixels]]
                    sums["wasserstein"].append(total(distances))
                if c.colour_weight:
                    sums["colour"].append(colour_distance(adapted[rows], real))
            num = len(rows_of_domain)
            losses = {name: getattr(c, f"{name}_weight") * total(terms) / num for name, terms in sums.items()}
        if c.content_weight:
            with torch.no_grad():
                source_maps = self._observe(source, CONTENT_LEVELS)
            losses["content"] = c.content_weight * content_loss(maps, source_maps)
        if c.structure_weight:
            losses["structure"] = c.structure_weight * structure_distance(adapted, source)
        return losses

    def _reference_losses(
        self, drawn: torch.Tensor, domains: Sequence[int], picks: Sequence[int]
    ) -> dict[str, torch.Tensor]:
        """Return the weighted losses between reference pictures and the adapted pictures of their latents.

        Args:
            drawn: adapted pictures `[P, 3, H, W]`.
            domains: index of the domain of each, `[P]`.
            picks: index of the reference in this domain, `[P]`.
        """
        c, losses, chosen = self.config, {}, list(zip(domains, picks, strict=True))
        if c.clip_ref_weight:
            per_encoder = [
                reference_loss(encoder.image(drawn), torch.stack([embeddings[n][k] for n, k in chosen]))
                for encoder, embeddings in zip(self.encoders, self._required_pictures(), strict=True)
            ]
            losses["clip_ref"] = c.clip_ref_weight * total(per_encoder) / len(per_encoder)
        references = self._required_references()
        real = torch.stack([references[n][k] for n, k in chosen])
        small, real = at_most(drawn, RECONSTRUCTION_SIZE), at_most(real, RECONSTRUCTION_SIZE)
        if c.l2_weight:
            losses["l2"] = c.l2_weight * F.mse_loss(small, real)
        if c.perceptual_weight:
            if self._lpips.value is not None:
                distance = self._lpips.value(small, real)
            else:
                distance = PerceptualDistance(self._features.value, real)(small)
            losses["perceptual"] = c.perceptual_weight * distance.mean()
        return losses

    def _offset_losses(self, deltas: Iterable[torch.Tensor]) -> dict[str, torch.Tensor]:
        """Return the weighted losses on the size of the offsets δ of a domain vector.

        Raises:
            ValueError: a weight is set, but there is no offset.
        """
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
    """Return the embeddings `[R, D]` of `[R, 3, H, W]`, computed in batches of 8."""
    return torch.cat([encoder.image(part) for part in images.split(8)])


def centres(sets: Sequence[torch.Tensor]) -> torch.Tensor:
    """Return the mean of each of N sets `[R_n, D]`, scaled to unit length, `[N, 1, D]`."""
    return torch.stack([F.normalize(x.mean(0, keepdim=True), dim=1) for x in sets])


def at_most(x: torch.Tensor, side: int) -> torch.Tensor:
    """Return images `[B, 3, H, W]` resized to `side` × `side` if they are larger."""
    if max(x.shape[-2:]) <= side:
        return x
    return F.interpolate(x, size=(side, side), mode="bicubic", align_corners=False, antialias=True)
