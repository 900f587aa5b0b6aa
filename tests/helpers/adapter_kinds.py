"""Every kind of adapter with its options, and what their tests compare."""

from dataclasses import asdict

import torch
from torch.nn import functional as F

from fewshot_gan.adapters import (
    AdaFMAdapter,
    DeltaWAdapter,
    DomainVectorAdapter,
    FullAdapter,
    GANMemoryAdapter,
    LayerSpec,
    LeFTAdapter,
    LoRAAdapter,
    TicketAdapter,
)
from fewshot_gan.models.layers import adaptable_layers

KINDS = {
    "left-1": (LeFTAdapter, {"rank": 1}),
    "left-2": (LeFTAdapter, {"rank": 2}),
    "left-4": (LeFTAdapter, {"rank": 4}),
    "left-full": (LeFTAdapter, {"rank": None}),
    "domain-post": (DomainVectorAdapter, {"placement": "post_demod"}),
    "domain-pre": (DomainVectorAdapter, {"placement": "pre_demod"}),
    "domain-output": (DomainVectorAdapter, {"parametrization": "output"}),
    "domain-separable": (DomainVectorAdapter, {"parametrization": "separable"}),
    "domain-full": (DomainVectorAdapter, {"parametrization": "full"}),
    "domain-full-pre": (DomainVectorAdapter, {"parametrization": "full", "placement": "pre_demod"}),
    "adafm": (AdaFMAdapter, {}),
    "adafm-specific": (AdaFMAdapter, {"target_modules": ["synthesis.b16.*"], "modules_to_save": ["synthesis.b8"]}),
    "delta-w": (DeltaWAdapter, {}),
    "delta-w-shared": (DeltaWAdapter, {"shared": True}),
    "gan-memory": (GANMemoryAdapter, {}),
    "ticket": (TicketAdapter, {}),
    "ticket-values": (TicketAdapter, {"keep_values": True}),
    "full": (FullAdapter, {}),
    "lora": (LoRAAdapter, {"rank": 2}),
    "lora-alpha": (LoRAAdapter, {"rank": 1, "lora_alpha": 0.5}),
}
NOISY = ("add_core", "add_kernel", "lora_A")  # of convolutions; of linear layers of LeFT it is add_in


def half_masks(generator, seed):
    g = torch.Generator().manual_seed(seed)
    layers = [(p, m) for p, m in adaptable_layers(generator) if m.role in TicketAdapter.roles]
    return {path: torch.rand(layer.weight.shape, generator=g) < 0.7 for path, layer in layers}


def latents(n=2, seed=1, dim=16):
    return torch.randn(n, dim, generator=torch.Generator().manual_seed(seed))


def weights_of(model):
    return {k: v.clone() for k, v in model.state_dict().items()}


def assert_same(a, b):
    assert a.keys() == b.keys()
    for name in a:
        assert torch.equal(a[name], b[name]), name


def convolutions(generator, run):
    """How often a convolution runs during `run()`."""
    calls = []
    real = F.conv2d, F.conv_transpose2d, F.unfold  # the last of maps so small that a product does it
    wrap = [lambda x, w, *a, f=f, **k: (calls.append(1), f(x, w, *a, **k))[1] for f in real]
    F.conv2d, F.conv_transpose2d, F.unfold = wrap
    try:
        run()
    finally:
        F.conv2d, F.conv_transpose2d, F.unfold = real
    return len(calls)


def batch_of(bank, generator, z, looks):
    with torch.no_grad(), bank.using_rows(looks):
        return generator(z)


def specs_of(model, roles):
    return {p: asdict(LayerSpec.of(layer)) for p, layer in adaptable_layers(model) if layer.role in roles}


def unbound(adapter):
    adapter.register_to_config(base_fingerprint=None)
    return adapter
