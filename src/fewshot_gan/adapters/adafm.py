"""AdaFM: scale and shift of every filter of transferred convolutions (ICML 2020, arXiv 2002.11810 §3.3)."""

from collections.abc import Callable, Sequence
from typing import cast

import torch
from diffusers.configuration_utils import register_to_config
from torch import nn

from ..models.layers import adaptable_layers
from .base import Adapted, Adapter, Factors, select_layers
from .full import FullAdapter, FullFactors
from .spec import LayerSpec

LAST_RESOLUTIONS = 3
WEIGHT_RATE = 0.2  # learning rate of β and retrained weights relative to that of γ: at the same rate they diverge


class AdaFMFactors(Factors):
    """Ŵ[o,i,:,:] = γ[o,i] W[o,i,:,:] + β[o,i]; γ, β `[O, I, 1, 1]` start at 1 and 0."""

    def __init__(self, spec: LayerSpec):
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(*spec.shape[:2], 1, 1, dtype=torch.float32, device="cpu"))
        self.beta = nn.Parameter(torch.zeros(*spec.shape[:2], 1, 1, dtype=torch.float32, device="cpu"))

    def change(self):
        return {"scale": self.gamma[..., 0, 0], "shift": self.beta[..., 0, 0]}

    def forward(self, weight, bias):
        return Adapted(self.gamma * weight + self.beta, bias)


class AdaFMAdapter(Adapter):
    """AdaFM (arXiv 2002.11810) for transferred, frozen convolutions; β is in units of the stored weight.

    Biases stay as they are. On a demodulated convolution, demodulation undoes a γ that is constant along the inputs of
    a filter. On 1×1 convolutions γ and β act per weight.

    Attributes:
        weight_rate: learning rate of retrained layers and of β relative to that of γ.

    Args:
        modules_to_save: paths of layers that are retrained without constraint and stored as a difference: the small
            target-specific part of the paper. `for_model` takes modules, e.g. "synthesis.b8", and fills in the layers
            below them.
        target_modules, base_model_name_or_path, base_fingerprint, method, training: see `Adapter`.

    Raises:
        ValueError: a layer that is no convolution.
    """

    adapter_type = "adafm"
    weight_rate = WEIGHT_RATE
    roles = ("conv", "depthwise", "to_rgb")

    @register_to_config
    def __init__(
        self,
        target_modules: dict[str, dict],
        modules_to_save: list[str] | None = None,
        base_model_name_or_path: str | None = None,
        base_fingerprint: str | None = None,
        method: str | None = None,
        training: dict | None = None,
    ):
        super().__init__()
        self.modules_to_save = list(modules_to_save or [])
        self._build(target_modules)

    def rate_of(self, name: str) -> float:
        return 1.0 if name.endswith(".gamma") else self.weight_rate

    def make_factors(self, spec: LayerSpec, path: str) -> Factors:
        if path in self.modules_to_save:
            return FullFactors(spec)
        if len(spec.shape) != 4:
            raise ValueError(f"AdaFM acts on convolutions; {path} has a weight of shape {spec.shape}")
        return AdaFMFactors(spec)

    @classmethod
    def for_model(
        cls,
        model: nn.Module,
        *,
        target_modules: Sequence[str] | None = None,
        modules_to_save: Sequence[str] = (),
        layers_to_save: Sequence[str] = (),
        **options,
    ) -> "AdaFMAdapter":
        """Return a fresh adapter, the identity.

        Args:
            model: the base network.
            target_modules: patterns of module paths; None: the blocks of the three highest resolutions and the image
                head, since the paper freezes and modulates the blocks next to the picture.
            modules_to_save: modules whose parameters are all retrained, those of submodules included.
            layers_to_save: paths of single layers that are retrained, without the layers below them.
            options: `roles` and the options of the class.

        Raises:
            ValueError: a pattern or module that matches no layer.
        """
        roles = options.pop("roles", cls.roles)
        layers = select_layers(model, roles, _last_blocks(model, roles) if target_modules is None else target_modules)
        if isinstance(modules_to_save, str):
            raise ValueError(f"modules_to_save={modules_to_save!r}: give a list, [{modules_to_save!r}]")
        all_layers = dict(adaptable_layers(model))
        if unknown := [path for path in layers_to_save if path not in all_layers]:
            raise ValueError(f"layers_to_save: {type(model).__name__} has no layer at {unknown[0]!r}")
        saved = {path: all_layers[path] for path in layers_to_save}
        for module in modules_to_save:
            below = {path: layer for path, layer in all_layers.items() if _below(path, module)}
            if not below:
                raise ValueError(f"modules_to_save: {type(model).__name__} has no parameters at {module!r}")
            saved |= below
        layers |= saved
        options["modules_to_save"] = list(saved)
        return super().for_model(model, roles=FullAdapter.roles, target_modules=list(layers), **options)


def _below(path: str, module: str) -> bool:
    return path == module or path.startswith(f"{module}.")


def _last_blocks(model: nn.Module, roles: Sequence[str]) -> list[str]:
    """Return the paths of the layers in the blocks of the highest resolutions, and of the image head."""
    layers = select_layers(model, roles)
    layer_resolution = cast(Callable[[str], int], model.layer_resolution)
    sizes = {path: layer_resolution(path) for path in layers}
    lowest = sorted({size for path, size in sizes.items() if layers[path].role != "to_rgb"})[-LAST_RESOLUTIONS:][0]
    return [path for path, size in sizes.items() if size >= lowest]
