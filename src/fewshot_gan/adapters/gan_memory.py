"""GAN Memory: normalised weights with a scale and shift per filter (NeurIPS 2020, arXiv 2006.07543 §3.1, §4)."""

from dataclasses import dataclass, field

import torch
from diffusers.configuration_utils import register_to_config
from torch import nn

from ..utils.hashing import fingerprint
from .base import Adapted, Adapter, Factors
from .full import FullFactors
from .spec import LayerSpec

SHARES = {256: 0.95, 512: 0.9, 1024: 0.8}  # least number of outputs of a layer: share of singular values to keep
PENALTY, PENALTY_EVERY = 0.01, 10
MATRICES, PARTS = ("gamma", "beta"), ("left", "right", "scale")


class ModulationFactors(Factors):
    """Ŵ = γ ⊙ (W − μ) / σ + β and b̂ = b + b_t; γ = σ, β = μ and b_t = 0 at first.

    μ and σ (unbiased) are statistics of each filter over its k×k taps (mAdaFM), with γ, β `[O, I, 1, 1]`. Matrices and
    1×1 convolutions have no taps: there they are statistics of each output row (mFiLM), with γ, β `[O, 1]` or
    `[O, 1, 1, 1]`.

    Args:
        spec: of the layer.
        ranks: numbers of components r of γ and β: γ = U diag(s) Vᵀ + Δγ with U `[O, r]`, V `[I, r]` of this and earlier
            tasks, which are not trained. None: γ and β are whole matrices.
        residual: whether low-rank γ and β have Δγ and Δβ.
    """

    gamma: nn.Parameter | None
    beta: nn.Parameter | None

    def __init__(self, spec: LayerSpec, ranks: tuple[int, int] | None = None, residual: bool = True):
        super().__init__()
        self.dims = (2, 3) if len(spec.shape) == 4 and spec.shape[2] > 1 else tuple(range(1, len(spec.shape)))
        self.low_rank, self.shape = ranks is not None, [1 if i in self.dims else n for i, n in enumerate(spec.shape)]
        if self.low_rank and self.dims != (2, 3):
            raise ValueError(f"components need a scale per filter; a weight of shape {spec.shape} has one per row")
        for name, first, rank in zip(MATRICES, (torch.ones, torch.zeros), ranks or (0, 0), strict=True):
            whole = residual or not self.low_rank
            first = torch.zeros if self.low_rank else first
            self.register_parameter(
                name, nn.Parameter(first(self.shape, dtype=torch.float32, device="cpu")) if whole else None
            )
            if self.low_rank:
                self.register_buffer(
                    f"{name}_left", torch.zeros(spec.shape[0], rank, dtype=torch.float32, device="cpu")
                )
                self.register_buffer(
                    f"{name}_right", torch.zeros(spec.shape[1], rank, dtype=torch.float32, device="cpu")
                )
                self.register_parameter(
                    f"{name}_scale", nn.Parameter(torch.zeros(rank, dtype=torch.float32, device="cpu"))
                )
        self.bias_shift = (
            nn.Parameter(torch.zeros(spec.shape[0], dtype=torch.float32, device="cpu")) if spec.bias else None
        )

    @property
    def whole(self) -> int:
        """Number of values of γ without components."""
        return self.shape[0] * self.shape[1]

    def initialise(self, weight, bias):
        if self.gamma is None or self.beta is None:
            raise ValueError("a layer without a residual cannot become the identity; load its components")
        self.beta.copy_(weight.mean(self.dims, keepdim=True))
        self.gamma.copy_(weight.std(self.dims, keepdim=True))

    def matrix(self, name: str) -> torch.Tensor:
        """Return γ or β, by name, in a shape that broadcasts to the weight."""
        residual = getattr(self, name)
        if not self.low_rank:
            return residual
        left, right, scale = self.components(name)
        low_rank = ((left * scale) @ right.T).reshape(self.shape)
        return low_rank if residual is None else low_rank + residual

    def components(self, name: str) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return U `[O, r]`, V `[I, r]`, s `[r]` of γ or β; r = 0 if γ and β are whole."""
        if self.low_rank:
            left, right, scale = (getattr(self, f"{name}_{part}") for part in PARTS)
            return left, right, scale
        whole = getattr(self, name)
        return whole.new_zeros(self.shape[0], 0), whole.new_zeros(self.shape[1], 0), whole.new_zeros(0)

    def forward(self, weight, bias):
        mean, std = weight.mean(self.dims, keepdim=True), weight.std(self.dims, keepdim=True)
        # Differs from the reference: a filter whose taps are all equal has σ = 0 and becomes β, not NaN.
        normalised = (weight - mean) / std.clamp_min(torch.finfo(std.dtype).tiny)
        weight = self.matrix("gamma") * normalised + self.matrix("beta")
        if bias is not None and self.bias_shift is not None:
            bias = bias + self.bias_shift
        return Adapted(weight, bias)


@dataclass(frozen=True)
class GANMemoryOptions:
    """Options of a new GAN Memory adapter.

    Attributes:
        low_rank: pull γ and β towards few components, and store these.
        previous: folder of the run of the task before, whose components this task has too.
    """

    low_rank: bool | None = field(default=None, metadata={"help": "store gan_memory's styles as few components"})
    previous: str | None = field(
        default=None,
        metadata={"help": "run of the task before, whose components a gan_memory adapter has too"},
    )


class GANMemoryAdapter(Adapter):
    """GAN Memory's mAdaFM and mFiLM (arXiv 2006.07543); γ and β of a task are whole matrices or of low rank.

    The paper modulates the fully connected layer and the 3×3 convolutions of a GP-GAN. In style-based networks these
    are the mapping network, the affine layers and all convolutions except those of the image head. Tasks that share
    components (§4) each store a copy of them, so that an adapter can be loaded without those of earlier tasks.

    Args:
        ranks: module path → numbers of components of γ and β, for layers whose γ and β are of low rank.
        residual: whether low-rank layers also have whole matrices Δγ and Δβ, as they do during training.
        low_rank: whether training penalises the singular values of γ and β of wide layers, see `penalty`.
        target_modules, base_model_name_or_path, base_fingerprint, method, training: see `Adapter`.
    """

    adapter_type = "gan_memory"
    Options = GANMemoryOptions
    roles = ("mapping", "affine", "linear", "conv", "depthwise", "bias")

    @register_to_config
    def __init__(
        self,
        target_modules: dict[str, dict],
        ranks: dict[str, list[int]] | None = None,
        residual: bool = True,
        low_rank: bool | None = None,
        base_model_name_or_path: str | None = None,
        base_fingerprint: str | None = None,
        method: str | None = None,
        training: dict | None = None,
    ):
        super().__init__()
        self.ranks, self.residual = ranks or {}, residual
        self._build(target_modules)

    def make_factors(self, spec: LayerSpec, path: str) -> Factors:
        if spec.role == "bias":  # the module owns nothing but a bias: b̂ = b + b_t
            return FullFactors(spec)
        ranks = self.ranks.get(path)
        return ModulationFactors(spec, None if ranks is None else (ranks[0], ranks[1]), self.residual)

    @classmethod
    def fresh(cls, generator, options, **settings) -> "GANMemoryAdapter":
        """See `Trainable.fresh`.

        Raises:
            ValueError: `low_rank` where no convolution is wide enough, or see `after`.
        """
        if options.low_rank is not None:
            settings["low_rank"] = options.low_rank or None
        if options.previous:
            adapter = cls.after(Adapter.from_pretrained(options.previous), generator, **settings)
        else:
            adapter = cls.for_model(generator, **settings)
        if options.low_rank and not adapter.compressible():
            raise ValueError(
                f"--low_rank: no convolution of {settings.get('base_model_name_or_path')} is wide enough to be stored "
                "in components; leave it out"
            )
        return adapter

    def finished(self) -> "GANMemoryAdapter":
        """The components alone, if the training was of low rank."""
        if not self.config.low_rank:
            return self
        adapter = self.compressed()
        adapter.round_to_half()
        return adapter

    def compressible(self) -> dict[str, float]:
        """Return module path → share of the singular values to keep, for layers with enough outputs for `SHARES`."""
        share_by_path = {}
        for path, factors in self.factors().items():
            if isinstance(factors, ModulationFactors) and factors.dims == (2, 3) and factors.shape[1] > 1:
                shares = [share for least, share in sorted(SHARES.items()) if least <= factors.shape[0]]
                share_by_path |= {path: shares[-1]} if shares else {}
        return share_by_path

    @classmethod
    @torch.no_grad()
    def after(cls, previous: Adapter, model: nn.Module, **options) -> "GANMemoryAdapter":
        """Return the adapter of the next task: it starts equal to `previous` and trains s, Δγ and Δβ.

        Args:
            previous: adapter of the task before, usually `compressed`.
            model: the base network.
            options: of the class; the layers are those of `previous`.

        Raises:
            ValueError: `previous` is another kind of adapter or belongs to another base.
        """
        if not isinstance(previous, GANMemoryAdapter):
            raise ValueError(f"an adapter of type {previous.adapter_type!r} has no components; give a gan_memory one")
        if previous.config.base_fingerprint != (mark := fingerprint(model)):
            raise ValueError(f"the task before belongs to base {previous.config.base_fingerprint}, this one is {mark}")
        options = previous.settings() | {"residual": True, "low_rank": None} | options
        new = cls(**options)
        own = new.state_dict()
        new.load_state_dict(own | previous.state_dict())  # only Δγ and Δβ are new, and 0
        return new

    @torch.no_grad()
    def compressed(self) -> "GANMemoryAdapter":
        """Return a new adapter with γ and β as components, without residuals (§4).

        The components are those of the tasks before and the fewest new ones that keep the share of `SHARES`. Narrow
        layers stay whole; a layer whose components would take more values than the matrices is stored whole.
        """
        state, ranks, shares = dict(self.state_dict()), {}, self.compressible()
        for path, factors in self.factors().items():
            if not isinstance(factors, ModulationFactors) or (path not in shares and not factors.low_rank):
                continue
            parts = {name: self._components(factors, name, shares.get(path, 1.0)) for name in MATRICES}
            for name in MATRICES:
                for key in (name, *(f"{name}_{part}" for part in PARTS)):
                    state.pop(f"{path}.{key}", None)
            if sum(x.numel() for values in parts.values() for x in values) >= 2 * factors.whole:
                state |= {f"{path}.{name}": factors.matrix(name) for name in MATRICES}
                continue
            ranks[path] = [len(scale) for *_, scale in parts.values()]
            for name, values in parts.items():
                state |= {f"{path}.{name}_{part}": x for part, x in zip(PARTS, values, strict=True)}
        new = type(self)(**self.settings() | {"ranks": ranks or None, "residual": False, "low_rank": None})
        new.load_state_dict(state)
        return new.eval().requires_grad_(False)

    @staticmethod
    def _components(factors: ModulationFactors, name: str, share: float):
        """Return the components of γ or β, extended by the fewest of Δγ or Δβ that keep a share of all of them."""
        left, right, scale = factors.components(name)
        if (residual := getattr(factors, name)) is None:
            return left, right, scale
        u, s, v = torch.linalg.svd(residual.float().flatten(1), full_matrices=False)
        kept = components_needed(s, share, float(scale.abs().sum()))
        new = u[:, :kept], v[:kept].T, s[:kept]
        return tuple(torch.cat(pair, -1).contiguous() for pair in zip((left, right, scale), new, strict=True))

    def penalty(self, step: int) -> torch.Tensor | None:
        """Return 0.01 Σ_k s_k (0.1 + sigmoid(10 k / K)) over the matrices to be compressed, on every tenth step.

        s_k are the singular values of a matrix in descending order, k = 0 … K − 1.
        """
        if not self.config.low_rank or step % PENALTY_EVERY:
            return None
        factors = self.factors()
        terms: list[torch.Tensor] = []
        for matrix in (getattr(factors[path], name) for path in self.compressible() for name in MATRICES):
            s = torch.linalg.svdvals(matrix.float().flatten(1))
            order = torch.arange(len(s), device=s.device) / len(s)
            terms.append((s * (0.1 + (10 * order).sigmoid())).sum())
        return PENALTY * sum(terms[1:], terms[0]) if terms else None


def components_needed(singular_values: torch.Tensor, share: float, before: float = 0.0) -> int:
    """Return the least number of singular values that keep a share of their sum.

    Args:
        singular_values: `[K]`, descending.
        share: of the sum of `singular_values` and `before`, 0 < share ≤ 1.
        before: sum that earlier components already keep.

    Raises:
        ValueError: a share out of range.
    """
    if not 0 < share <= 1:
        raise ValueError(f"share={share} is not in 0 < share <= 1; 0.9 keeps nine tenths")
    sums = singular_values.double().cumsum(0) + before
    if len(sums) == 0 or before >= share * float(sums[-1]):
        return 0
    return min(len(sums), int((sums < share * sums[-1]).sum()) + 1)
