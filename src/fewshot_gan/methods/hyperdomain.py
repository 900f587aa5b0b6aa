"""HyperDomainNet (arXiv 2210.08884): learn a domain vector for a domain that is named by words or shown by pictures.

The losses are directions between embeddings; there is no discriminator. The source and the adapted picture of a pair
have the same latents, style mixing and noise. Shape legend: see `directional`.
"""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
import torch.nn.functional as F

from ..adapters.domain_vector import DomainVectorFactors
from ..adapters.hypernetwork import DomainHyperNetwork
from ..features import FeatureNetwork
from ..features.encoders import CLIP_DEFAULT, TEMPLATES, Encoder, load_encoder
from ..hub import portable_name
from ..utils.frozen import Frozen
from .checks import required
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
from .domains import MANY_ONLY, NEED_PICTURES, SINGLE_ONLY, Domains, HyperDomainConfig
from .losses import total
from .method import Method, Run
from .pair import Latents, Pair
from .projections import ProjectionOptions, as_layers, complete, project, recorded


class HyperDomainObjective(Domains):
    """Losses of one domain, named by words or shown by pictures; they train any kind of adapter.

    Args:
        config: weights of the terms.
        encoders: one or more encoders on the generator's device; their losses are summed.
        target: the domain in words, e.g. "pencil drawing".
        origin: what the base draws, in words.
        references: pictures `[R, 3, H, W]` in [−1, 1] on the generator's device, instead of `target`. `l2`,
            `perceptual` and the comparison as a set need pictures of the generator's size.
        reference_latents: their latents w+ `[R, num_ws, w_dim]`, see `inversion.invert`. None: random pictures of the
            source represent the source domain, as in StyleGAN-NADA, and terms that need the latents are refused.
        features: frozen feature network, for terms that compare features, and for `perceptual` without LPIPS.
        templates: prompts with {} for the words.

    Raises:
        ValueError: not exactly one of words and pictures is given, or a term misses its inputs.
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
        features: FeatureNetwork | None = None,
        templates: Sequence[str] = TEMPLATES,
    ):
        words = None if target is None else [target]
        pictures, latents = (None if x is None else [x] for x in (references, reference_latents))
        super().__init__(config, encoders, words, [origin], pictures, latents, features, templates)
        self._refuse(MANY_ONLY, "is about several domains, and here is one; use HyperNetworkObjective")

    def regularisers(self, pair: Pair, batch: int, step: int, random: torch.Generator) -> Iterator[dict]:
        """See `Objective.regularisers`; these are all losses of a step."""
        c = self.config
        all_origins = self._embedded_origins(pair)
        latents = pair.with_noise(pair.draw(batch, random, c.style_mixing), random)
        adapted = (pair.adapted(latents) if pair.draws_at_once else pair.one_by_one(latents, 0)).images
        source = pair.source(latents, 0).images
        picks = [] if self.latents is None else draw_each(len(self.latents[0]), batch, random).tolist()
        sums = defaultdict(list)  # per term, the loss of each encoder
        for i, encoder in enumerate(self.encoders):
            e, targets, origins = encoder.image(adapted), self.targets[i], all_origins[i]
            with torch.no_grad():
                e_source = encoder.image(source)
            if c.direction_weight:
                sums["direction"].append(c.direction_weight * direction_loss(e, e_source, targets, origins))
            if c.indomain_weight:
                sums["indomain"].append(c.indomain_weight * indomain_loss(e, e_source))
            if c.global_weight:
                sums["global"].append(c.global_weight * global_loss(e, targets))
            if c.clip_within_weight:
                projected = required(self.projected, "clip_within_weight needs reference_latents, see inversion")
                reference = self._required_pictures()[i][0][picks]
                loss = within_loss(e, e_source, reference, projected[i][0][picks])
                sums["clip_within"].append(c.clip_within_weight * loss)
        losses = {name: total(terms) for name, terms in sums.items()}
        losses |= self._set_losses(adapted, source, [0] * batch, random)
        active = [pair.bank.adapters[name].factors().values() for name in pair.bank.current()]
        vectors = [f for factors in active for f in factors if isinstance(f, DomainVectorFactors)]
        losses |= self._offset_losses(delta for f in vectors for delta in f.parameters())
        yield losses
        if c.clip_ref_weight or c.l2_weight or c.perceptual_weight:
            reference_latents = self._required_latents()[0]
            picks = picks[: len(reference_latents)]
            drawn = pair.adapted(Latents(w=reference_latents[picks])).images
            yield self._reference_losses(drawn, [0] * len(picks), picks)


class HyperNetworkObjective(Domains):
    """Losses of a hypernetwork that learns many domains at once; each step trains a batch of different domains.

    Args:
        config: weights of the terms.
        hypernetwork: the network to train; its parameters are not parameters of this module.
        encoders: one or more encoders; the hypernetwork reads embeddings of the first.
        targets: N domains in words, e.g. "pencil drawing".
        origins: what the base draws, in words: one for all domains or one per domain.
        references: N sets of pictures `[R_n, 3, H, W]`, instead of `targets`.
        reference_latents: their latents w+, N sets; see `HyperDomainObjective`.
        features, templates: see `HyperDomainObjective`.

    Raises:
        ValueError: see `HyperDomainObjective`; also if there are fewer than two domains, or the first encoder is not
            the one that the hypernetwork was made for.
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
        features: FeatureNetwork | None = None,
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
            reason = (
                "compares with pictures, which domains in between do not have; use convex_hull=False and resample=1"
            )
            self._refuse(NEED_PICTURES, reason)
        if config.resample < 1 and len(self.encoders) > 1:
            raise ValueError("resample draws domains that exist for one encoder only; give one, or resample=1")
        hypernetwork.check_encoder(self.encoders[0])
        self._hypernetwork = Frozen(hypernetwork)
        with torch.no_grad():
            embeddings = self.targets[0][:, 0] if targets is None else self.encoders[0].text(list(targets))
        self.inputs = F.normalize(embeddings, dim=1)  # [N, D]: words without templates, or the mean of all pictures
        if config.standardise:
            hypernetwork.standardise(self.inputs if self.pictures is None else torch.cat(self.pictures[0]))

    @property
    def hypernetwork(self) -> DomainHyperNetwork:
        """The network to train."""
        return self._hypernetwork.value

    def regularisers(self, pair: Pair, batch: int, step: int, random: torch.Generator) -> Iterator[dict]:
        """See `Objective.regularisers`; these are all losses of a step.

        Raises:
            ValueError: the hypernetwork was made for another base, or `batch` is 1.
        """
        c = self.config
        self._check_base(pair)
        all_origins = self._embedded_origins(pair)
        domains = draw_each(len(self.inputs), batch, random).to(self.inputs.device)
        inputs = self._sample_inputs(domains, random)[:, None]  # [B, 1, D]
        targets = [t[domains] for t in self.targets]
        origins = [s[domains] if len(s) > 1 else s for s in all_origins]
        if c.convex_hull:
            alphas = dirichlet_alphas(batch, random)
            inputs, *targets = (convex_hull(x, alphas) for x in (inputs, *targets))
            origins = [convex_hull(s, alphas) if len(s) > 1 else s for s in origins]
        if c.resample < 1:
            inputs, targets[0] = resample([inputs, targets[0]], random, c.resample)
        deltas = self.hypernetwork(inputs[:, 0])
        latents = pair.with_noise(pair.draw(batch, random, c.style_mixing), random)
        with pair.bank.using_vectors(deltas):
            adapted = pair.adapted(latents).images
        source = pair.source(latents).images
        cropped, cropped_source = random_crops((adapted, source), c.crop, random)
        sums = defaultdict(list)  # per term, the loss of each encoder
        for i, encoder in enumerate(self.encoders):
            e = encoder.image(cropped)
            if c.direction_weight:
                with torch.no_grad():
                    e_source = encoder.image(cropped_source)
                sums["direction"].append(c.direction_weight * direction_loss(e, e_source, targets[i], origins[i]))
            if c.tt_direction_weight:
                sums["tt_direction"].append(c.tt_direction_weight * tt_direction_loss(e, targets[i]))
            if c.global_weight:
                sums["global"].append(c.global_weight * global_loss(e, targets[i]))
        losses = {name: total(terms) for name, terms in sums.items()}
        row_domains = domains.tolist()
        yield losses | self._set_losses(adapted, source, row_domains, random) | self._offset_losses(deltas.values())
        if c.clip_ref_weight or c.l2_weight or c.perceptual_weight:
            latents = self._required_latents()
            picks = [int(torch.randint(len(latents[n]), (), generator=random, device="cpu")) for n in row_domains]
            w = torch.stack([latents[n][k] for n, k in zip(row_domains, picks, strict=True)])
            with pair.bank.using_vectors(self.hypernetwork(self.inputs[domains])):
                drawn = pair.adapted(Latents(w=w)).images
            yield self._reference_losses(drawn, row_domains, picks)

    def _sample_inputs(self, domains: torch.Tensor, random: torch.Generator) -> torch.Tensor:
        """Return the input embeddings `[B, D]` of the hypernetwork.

        For domains named by words, they are the embeddings of the words without templates. For domains shown by
        pictures, each is the mean of a random number of the domain's pictures, most often of one, because users may
        show any number of pictures.

        Args:
            domains: index of the domain of each row, `[B]`.
            random: CPU generator.
        """
        if self.pictures is None:
            return self.inputs[domains]
        means = []
        for embeddings in (self.pictures[0][n] for n in domains.tolist()):
            num = len(embeddings)
            count = int(num ** torch.rand((), generator=random, dtype=torch.float32, device="cpu").item())
            means.append(embeddings[torch.randperm(num, generator=random, device="cpu")[:count]].mean(0))
        return F.normalize(torch.stack(means), dim=1)

    @torch.no_grad()
    def examples(self, num: int = 4) -> list[dict[str, torch.Tensor]]:
        """Return the domain vectors of the first `num` domains in evaluation mode, for sample grids.

        Each is layer path → δ `[1, C]`.
        """
        network, was_training = self.hypernetwork, self.hypernetwork.training
        try:
            deltas = network.eval()(self.inputs[:num])
        finally:
            network.train(was_training)
        return [{path: delta[i : i + 1] for path, delta in deltas.items()} for i in range(len(self.inputs[:num]))]

    def looks(self, bank, name: str) -> list:
        """See `Objective.looks`; one row per domain of `examples`."""
        return [bank.using_vectors(deltas) for deltas in self.examples()]

    def _check_base(self, pair: Pair) -> None:
        expected = self.hypernetwork.config.base_fingerprint
        if expected is not None and expected != (actual := pair.bank.fingerprint()):  # the bank caches it
            base = self.hypernetwork.config.base_model_name_or_path
            raise ValueError(
                f"the hypernetwork was made for {base or 'another base'!r} (fingerprint {expected}), not for this "
                f"generator (fingerprint {actual}); make one with DomainHyperNetwork.for_model"
            )


CLIPS = [CLIP_DEFAULT, "openai/clip-vit-base-patch16"]  # published for words; their losses are summed
CONSTANT = {"lr_warmup_steps": 0, "lr_final": 1.0, "ema_decay": 0.0, "truncation_psi": 1.0}  # of the published runs


@dataclass(frozen=True)
class HyperDomainOptions(ProjectionOptions):
    """Options of HyperDomainNet for one domain.

    Attributes:
        text: the domain in words, or None if it is shown by pictures.
        origin: what the base draws, in words; used with `text`.
        encoder: names of encoders, whose losses are summed.
    """

    text: str | None = field(
        default=None, metadata={"help": "the look in words, e.g. 'pencil drawing', instead of --data"}
    )
    origin: str | None = field(
        default=None, metadata={"help": "what the base draws, in words; with --text, default photo"}
    )
    encoder: list[str] | None = field(
        default=None,
        metadata={
            "help": "encoders: 'features', or folders or repo ids of CLIP; default: features, with --text two CLIPs"
        },
    )


class HyperDomainMethod(Method):
    """HyperDomainNet for one domain (arXiv 2210.08884); `training.hypernetwork` trains one of many domains."""

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
                f"--origin {self.options.origin!r} belongs to --text; with --data, pictures of the base replace it; "
                "leave it out"
            )

    def record(self, run: Run) -> dict:
        words = {} if self.options.text is None else {"origin": self.options.origin}
        latents = recorded(self.options) if run.config.needs_latents else {}
        return {"encoder": [portable_name(name) for name in self.options.encoder], **words, **latents}

    # `Domains` has those parts of `Objective` that the trainer uses if `uses_images` is False
    def build_objective(self, run: Run) -> HyperDomainObjective:  # pyright: ignore[reportIncompatibleMethodOverride]
        latents, options = None, self.options
        if run.images is not None and run.config.needs_latents:
            path, seed = run.folder / "projections.safetensors", run.training.seed
            with run.main_process_first():
                latents = project(path, run.pipe, run.images, options, seed, run.dry)
            latents = as_layers(latents, run.pipe.generator)
        domain: dict[str, Any] = {"references": run.images}
        if run.images is None:
            domain = {"target": options.text, "origin": options.origin}
        features = self.features(run) if run.config.needs_features else None
        encoders = [load_encoder(name, run.device) for name in options.encoder]
        return HyperDomainObjective(run.config, encoders, reference_latents=latents, features=features, **domain)
