"""Lottery ticket: a mask with one bit per weight says which weights are kept (arXiv 2103.00397 §3).

A ticket may also hold new values for the kept weights. Bits are packed by `ops.pack_bits`. The fingerprint of the base
is that of θ₀, the weights that the ticket was drawn from.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import cast

import torch
from diffusers.configuration_utils import register_to_config
from torch import nn

from ..ops import pack_bits, unpack_bits
from ..utils.hashing import fingerprint
from .base import Adapted, Adapter, Factors, select_layers
from .spec import LayerSpec, stored


class TicketFactors(Factors):
    """Ŵ = W ⊙ m; or, with values, the value where m = 1 and zero elsewhere.

    Args:
        spec: of the layer.
        kept: number of values; None: there are none.
    """

    mask: torch.Tensor

    def __init__(self, spec: LayerSpec, kept: int | None):
        super().__init__()
        self.shape = tuple(spec.shape)
        num_weights = torch.Size(self.shape).numel()
        self.register_buffer("mask", pack_bits(torch.ones(num_weights, dtype=torch.bool, device="cpu")))
        self.values = None if kept is None else nn.Parameter(torch.zeros(kept, dtype=torch.float32, device="cpu"))

    def initialise(self, weight, bias):
        if self.values is not None:
            self.values.copy_(weight[unpack_bits(self.mask, self.shape)])

    def change(self) -> dict[str, torch.Tensor] | None:
        return {"mask": self.mask} if self.values is None else None

    def forward(self, weight, bias):
        mask = unpack_bits(self.mask, self.shape)
        if self.values is None:
            return Adapted(weight * mask, bias)
        return Adapted(torch.zeros_like(weight).masked_scatter(mask, self.values.to(weight.dtype)), bias)


class TicketAdapter(Adapter):
    """A sparse mask over convolution weights (arXiv 2103.00397), one bit each, with or without values for kept weights.

    Args:
        kept_values: module path → number of kept values, for a ticket that holds its trained weights; None: the mask
            alone, over the weights of the base.
        target_modules, base_model_name_or_path, base_fingerprint, method, training: see `Adapter`.
    """

    adapter_type = "ticket"
    roles = ("conv", "depthwise", "skip", "to_rgb", "from_rgb")
    trainable = False

    @register_to_config
    def __init__(
        self,
        target_modules: dict[str, dict],
        kept_values: dict[str, int] | None = None,
        base_model_name_or_path: str | None = None,
        base_fingerprint: str | None = None,
        method: str | None = None,
        training: dict | None = None,
    ):
        super().__init__()
        self.kept_values = kept_values
        self._build(target_modules)

    def make_factors(self, spec: LayerSpec, path: str) -> Factors:
        return TicketFactors(spec, None if self.kept_values is None else self.kept_values[path])

    @classmethod
    @torch.no_grad()
    def for_model(
        cls,
        model: nn.Module,
        *,
        masks: Mapping[str, torch.Tensor] | None = None,
        keep_values: bool = False,
        roles: Sequence[str] | None = None,
        target_modules: Sequence[str] | None = None,
        **options,
    ) -> "TicketAdapter":
        """Return a ticket of `model`; without masks all weights are kept, which is the identity.

        Args:
            model: the base network.
            masks: module path → bool of the weight's shape, True = kept.
            keep_values: store the kept weights too, so that they can be trained.
            roles, target_modules, options: see `Adapter.for_model`; masks name their layers themselves.

        Raises:
            ValueError: a mask for a layer that does not exist or has another shape.
        """
        layers = select_layers(model, cls.roles if roles is None else roles, target_modules)
        if masks is None:
            masks = {path: torch.ones_like(stored(layer)[0], dtype=torch.bool) for path, layer in layers.items()}
        masks = {path: torch.as_tensor(mask).bool() for path, mask in masks.items()}
        for path, mask in masks.items():
            shape = stored(layers[path])[0].shape if path in layers else None
            if mask.shape != shape:
                reason = "there is no such layer" if shape is None else f"the weight is {tuple(shape)}"
                raise ValueError(
                    f"the mask of {path} has shape {tuple(mask.shape)}, but {reason} in this {type(model).__name__}; "
                    "a ticket fits the architecture it was drawn from alone"
                )
        if not masks:
            raise ValueError("no masks are given; a ticket needs at least one layer")
        adapter = cls(
            target_modules={path: asdict(LayerSpec.of(layers[path])) for path in masks},
            kept_values={path: int(mask.sum()) for path, mask in masks.items()} if keep_values else None,
            base_fingerprint=fingerprint(model),
            **options,
        )
        for path, factors in adapter.ticket_factors().items():
            factors.mask.copy_(pack_bits(masks[path]))
            factors.initialise(*stored(layers[path]))
        return adapter

    def ticket_factors(self) -> dict[str, TicketFactors]:
        """Return module path → factors."""
        return cast(dict[str, TicketFactors], self.factors())

    def masks(self) -> dict[str, torch.Tensor]:
        """Return module path → bool of the weight's shape, True = kept."""
        return {path: unpack_bits(factors.mask, factors.shape) for path, factors in self.ticket_factors().items()}

    def sparsity(self) -> float:
        """Return the share of pruned weights."""
        return sparsity_of(self.masks())

    def check(self) -> None:
        super().check()
        for path, factors in self.ticket_factors().items():
            kept = int(unpack_bits(factors.mask, factors.shape).sum())
            if factors.values is not None and kept != factors.values.numel():
                raise ValueError(
                    f"the mask of {path} keeps {kept} weights but {factors.values.numel()} values are stored; "
                    "fetch the file again"
                )


def prunable(model: nn.Module, roles: Sequence[str] = TicketAdapter.roles) -> dict[str, torch.Tensor]:
    """Return module path → stored weight, before spectral norm, of the layers of some roles."""
    return {path: stored(layer)[0] for path, layer in select_layers(model, roles).items()}


@torch.no_grad()
def magnitude_masks(
    model: nn.Module,
    sparsity: float,
    roles: Sequence[str] = TicketAdapter.roles,
    masks: Mapping[str, torch.Tensor] | None = None,
) -> dict[str, torch.Tensor]:
    """Return masks that keep the largest weights, ranked by |w| over all layers of the network together (§3).

    Args:
        model: the network.
        sparsity: share to prune, 0 ≤ s < 1; round(s · N) of N weights are pruned, ties broken by position.
        roles: of the layers that are ranked.
        masks: earlier masks: only weights that they keep are counted in N, and can be kept; None = all.

    Returns:
        Module path → bool of the weight's shape, True = kept.

    Raises:
        ValueError: a sparsity out of range, or masks of another network.
    """
    check_sparsity(sparsity)
    weights = prunable(model, roles)
    magnitudes = torch.cat([w.detach().float().abs().flatten() for w in weights.values()])
    keep = torch.ones_like(magnitudes, dtype=torch.bool)
    if masks is not None:
        check_masks(masks, weights)
        keep = torch.cat([masks[path].flatten() for path in weights]).to(magnitudes.device, torch.bool)
        magnitudes = magnitudes.masked_fill(~keep, float("inf"))  # pruned weights are not pruned again
    keep[magnitudes.argsort(stable=True)[: round(sparsity * int(keep.sum()))]] = False
    return split_mask(keep, weights)


def sparsity_of(masks: Mapping[str, torch.Tensor]) -> float:
    """Return the share of pruned weights."""
    return 1 - sum(int(m.sum()) for m in masks.values()) / sum(m.numel() for m in masks.values())


def check_sparsity(sparsity: float) -> None:
    """Refuse a sparsity that is out of range.

    Raises:
        ValueError: not a number in 0 ≤ sparsity < 1.
    """
    if not isinstance(sparsity, int | float) or not 0 <= sparsity < 1:
        raise ValueError(f"sparsity={sparsity} is not in 0 ≤ sparsity < 1; 0.67 prunes two thirds")


def check_masks(masks: Mapping[str, torch.Tensor], weights: Mapping[str, torch.Tensor]) -> None:
    """Refuse masks of another network.

    Raises:
        ValueError: `masks` are not one mask of the right shape for each of `weights`.
    """
    differing = sorted(masks.keys() ^ weights.keys())
    differing += sorted(path for path in masks.keys() & weights.keys() if masks[path].shape != weights[path].shape)
    if differing:
        shown = ", ".join(differing[:4]) + (f" and {len(differing) - 4} more" if len(differing) > 4 else "")
        raise ValueError(f"the masks belong to another network, which differs in {shown}; use those of this one")


def split_mask(mask: torch.Tensor, weights: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Split a flat mask over all weights, in their order, into masks of the weights' shapes."""
    parts = mask.split([w.numel() for w in weights.values()])
    return {path: part.reshape(w.shape) for (path, w), part in zip(weights.items(), parts, strict=True)}
