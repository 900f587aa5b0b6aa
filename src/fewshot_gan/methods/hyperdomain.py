"""HyperDomainNet (arXiv 2210.08884): a domain named by words or pictures becomes a domain vector.

The generator is led by directions between embeddings; there is no discriminator. Source and adapted pictures share
latents, mixing and noise. Shape legend: see `directional`.
"""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

import torch
import torch.nn.functional as F

from ..adapters.domain_vector import DomainVectorFactors
from ..adapters.hypernetwork import DomainHyperNetwork
from ..features.encoders import CLIP_DEFAULT, TEMPLATES, Encoder, load_encoder
from ..hub import portable_name
from .directional import (
    convex_hull,
    direction_loss,
    dirichlet_alphas,
    draw_each,
    global_loss,
    indomain_loss,
    random_crops,
    resample,
    tt_direction_loss,
    within_loss,
)
from .domains import MANY_ONLY, OF_PICTURES, SINGLE_ONLY, Domains, HyperDomainConfig
from .method import Method, Run
from .pair import Latents, Pair
from .projections import ProjectionOptions, as_layers, complete, project, recorded


class HyperDomainObjective(Domains):
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


class HyperNetworkObjective(Domains):
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

    def looks(self, bank, name: str) -> list:
        return [bank.using_vectors(deltas) for deltas in self.examples()]

    def _check_base(self, pair: Pair) -> None:
        wanted = self.hypernetwork.config.base_fingerprint
        if wanted is not None and wanted != (have := pair.bank.fingerprint()):  # the bank computes it once
            base = self.hypernetwork.config.base_model_name_or_path
            raise ValueError(
                f"the hypernetwork was made for {base or 'another base'!r} (fingerprint {wanted}), not for this "
                f"generator (fingerprint {have}); make one with DomainHyperNetwork.for_model"
            )


CLIPS = [CLIP_DEFAULT, "openai/clip-vit-base-patch16"]  # whose losses are summed for words, as published
CONSTANT = {"lr_warmup_steps": 0, "lr_final": 1.0, "ema_decay": 0.0, "truncation_psi": 1.0}  # the published runs


@dataclass(frozen=True)
class HyperDomainOptions(ProjectionOptions):
    """Options of HyperDomainNet for one domain.

    Attributes:
        text: the look in words.
        origin: what the base draws, in words.
        encoder: encoders whose losses are summed.
    """

    text: str | None = field(
        default=None, metadata={"help": "the look in words, e.g. 'pencil drawing', instead of --data"}
    )
    origin: str | None = field(
        default=None, metadata={"help": "what the base draws, in words; with --text, default photo"}
    )
    encoder: list[str] | None = field(
        default=None,
        metadata={"help": "features, or CLIP as folders or repo ids; default: features, or two CLIPs"},
    )


class HyperDomainMethod(Method):
    """HyperDomainNet for one domain as a method; a hypernetwork of many is `training.hypernetwork`."""

    name = "hyperdomainnet"
    Config, Objective, Options = HyperDomainConfig, HyperDomainObjective, HyperDomainOptions
    adapter, presets = "domain_vector", ("few_images", "image", "text")
    settings = {"adam_beta1": 0.9, "adam_beta2": 0.999, "augment": "none"}
    published = {
        "text": {"learning_rate": 0.1, "max_train_steps": 300, **CONSTANT},
        "image": {"learning_rate": 0.01, "max_train_steps": 100, **CONSTANT},
    }
    least_images, needs_images = 1, False

    def default_preset(self) -> str:
        return "few_images" if self.options.text is None else "text"

    def complete(self, config: HyperDomainConfig) -> None:
        options = complete(self.options, config)
        encoder = options.encoder or (["features"] if options.text is None else CLIPS)
        origin = options.origin or (None if options.text is None else "photo")
        self.options = replace(options, encoder=encoder, origin=origin)

    def check(self, run) -> None:
        if (run.data is None) == (self.options.text is None):
            raise ValueError("a look is shown by pictures or named by words; give --data or --text")
        if self.options.origin and self.options.text is None:
            raise ValueError(
                f"--origin {self.options.origin!r} belongs to --text; with --data the base's own pictures say it"
            )

    def record(self, run: Run) -> dict:
        words = {} if self.options.text is None else {"origin": self.options.origin}
        latents = recorded(self.options) if run.config.needs_latents else {}
        return {"encoder": [portable_name(name) for name in self.options.encoder], **words, **latents}

    def build_objective(self, run: Run) -> HyperDomainObjective:
        latents, options = None, self.options
        if run.images is not None and run.config.needs_latents:
            path, seed = run.folder / "projections.safetensors", run.training.seed
            with run.main_process_first():
                latents = project(path, run.pipe, run.images, options, seed, run.dry)
            latents = as_layers(latents, run.pipe.generator)
        shown = {"target": options.text, "origin": options.origin} if run.images is None else {"references": run.images}
        features = self.features(run) if run.config.needs_features else None
        encoders = [load_encoder(name, run.device) for name in options.encoder]
        return HyperDomainObjective(run.config, encoders, reference_latents=latents, features=features, **shown)
