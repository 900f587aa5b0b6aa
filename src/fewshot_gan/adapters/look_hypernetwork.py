"""Hypernetwork that predicts a whole look from the embedding of a picture: vectors, shifts of w, colours.

HyperDomainNet (arXiv 2210.08884, §4) predicts domain vectors, which rescale the inputs of convolutions. Those cannot
change colours, so this network also predicts shifts of w (WeditGAN, arXiv 2305.06671), differences of biases, and
differences of the weights of the layers that draw RGB.

Shape legend: B looks, E size of an embedding, I/O inputs and outputs of a layer.
"""

from collections.abc import Mapping
from math import prod
from typing import Any, cast

import torch
from diffusers.configuration_utils import register_to_config
from torch import nn

from ..hub import portable_name
from ..models.layers import AdaptableLayer
from .base import select_layers
from .blend import BlendAdapter
from .delta_w import DeltaWAdapter, DeltaWFactors
from .domain_vector import DomainVectorAdapter, DomainVectorFactors
from .full import FullAdapter, FullFactors
from .hypernetwork import HyperNetwork
from .spec import LayerSpec

PARTS = {"conv": DomainVectorAdapter, "affine": DeltaWAdapter, "to_rgb": FullAdapter, "bias": FullAdapter}  # by role
SLOW = 0.3  # scale of predicted differences of stored weights, which act more strongly than vectors


class Dense(nn.Module):
    """x + Linear(SiLU(Linear(LayerNorm(x)))), all of one width."""

    def __init__(self, width: int):
        super().__init__()
        self.layers = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width))

    def forward(self, x: torch.Tensor) -> torch.Tensor:  # [B, width] -> [B, width]
        return x + self.layers(x)


class LookHyperNetwork(HyperNetwork):
    """Predict looks of one base from embeddings of pictures.

    Args:
        target_modules: module path → `LayerSpec` as a dict (JSON) of the layers that change; `for_model` fills it in.
        embedding_dim: E.
        width: of the hidden layers.
        depth: residual blocks.
        neck: width of the last hidden layer, which decides the size: all numbers of a look are linear in it.
        encoder, encoder_identity: `name` and `identity` of the encoder that it was trained with.
        base_model_name_or_path: alias, folder or repo id of the base.
        base_fingerprint: `fingerprint(generator)` of the base.
        training: settings of the training run, for the record.

    Raises:
        ValueError: a size below 1, or a layer of another role than convolutions, affine layers, RGB layers and biases.
    """

    @register_to_config
    def __init__(
        self,
        target_modules: dict[str, dict],
        embedding_dim: int = 512,
        width: int = 256,
        depth: int = 2,
        neck: int = 128,
        encoder: str | None = None,
        encoder_identity: str | None = None,
        base_model_name_or_path: str | None = None,
        base_fingerprint: str | None = None,
        training: dict | None = None,
    ):
        super().__init__()
        self.check_sizes(embedding_dim=embedding_dim, width=width, depth=depth, neck=neck)
        specs = {path: LayerSpec(**{**spec, "shape": tuple(spec["shape"])}) for path, spec in target_modules.items()}
        if other := sorted({spec.role for spec in specs.values()} - PARTS.keys()):
            raise ValueError(f"a look changes layers of the roles {', '.join(PARTS)}, not of {', '.join(other)}")
        self.shapes = {path: _shape(specs[path]) for path in sorted(specs)}
        self.slow = {path for path, spec in specs.items() if PARTS[spec.role] is FullAdapter}
        self.layers = nn.Sequential(
            nn.Linear(embedding_dim, width),
            *(Dense(width) for _ in range(depth)),
            nn.LayerNorm(width),
            nn.Linear(width, neck),
            nn.SiLU(),
            nn.Linear(neck, self.num_deltas),
        )
        last = cast(nn.Linear, self.layers[-1])
        nn.init.normal_(last.weight, std=1e-3)  # the first looks are nearly the base itself
        nn.init.zeros_(last.bias)
        self.add_scales(embedding_dim, each=True)

    @classmethod
    def target_layers(cls, model: nn.Module) -> dict[str, AdaptableLayer]:
        return select_layers(model, tuple(PARTS))

    predicts = "domain vectors, shifts of w, biases and weights of RGB layers"

    @property
    def num_deltas(self) -> int:
        """Number of values in one look."""
        return sum(map(prod, self.shapes.values()))

    def forward(self, embeddings: torch.Tensor) -> dict[str, torch.Tensor]:
        """Predict looks, in the form that `AdapterBank.using_vectors` takes.

        Args:
            embeddings: `[B, E]` of any norm; they are normalised to unit length.

        Returns:
            Module path → δ `[B, I]` of a convolution, Δw `[B, I]` of an affine layer, or the difference `[B, *shape]`
            of a stored weight.

        Raises:
            ValueError: another shape.
        """
        flat = self.layers(self.scaled(embeddings).clamp(-5, 5))
        parts = flat.split([prod(shape) for shape in self.shapes.values()], 1)
        return {
            path: part.unflatten(1, shape) * (SLOW if path in self.slow else 1)
            for (path, shape), part in zip(self.shapes.items(), parts, strict=True)
        }

    def make_adapter(self, numbers: Mapping[str, torch.Tensor], **training: Any) -> BlendAdapter:
        c, parts = self.config, []
        for cls in dict.fromkeys(PARTS.values()):
            targets = {p: dict(spec) for p, spec in c.target_modules.items() if PARTS[spec["role"]] is cls}
            if not targets:
                continue
            part = cls(target_modules=targets, base_fingerprint=c.base_fingerprint)
            for path, factors in part.factors().items():
                _tensor(factors).copy_(numbers[path][0])
            parts.append(part)
        blend = BlendAdapter.of(parts, [dict.fromkeys(part.config.target_modules, 1.0) for part in parts])
        blend.register_to_config(
            base_model_name_or_path=c.base_model_name_or_path,
            method="hyperdomainnet",
            training={"encoder": portable_name(c.encoder), **training},
        )
        return blend


def _shape(spec: LayerSpec) -> tuple[int, ...]:
    return spec.shape if PARTS[spec.role] is FullAdapter else (spec.shape[1],)


def _tensor(factors: Any) -> torch.Tensor:
    if isinstance(factors, DomainVectorFactors | DeltaWFactors):
        return factors.delta
    return cast(FullFactors, factors).weight_delta
