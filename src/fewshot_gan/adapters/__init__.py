"""Adapters: what changes in a generator, and how it is stored. Each is a function on weights."""

from ..utils.hashing import fingerprint
from .adafm import AdaFMAdapter
from .bank import BASE, AdapterBank
from .base import Adapter
from .blend import BlendAdapter
from .delta_w import DeltaWAdapter
from .domain_vector import DomainVectorAdapter
from .full import FullAdapter
from .gan_memory import GANMemoryAdapter
from .hypernetwork import DomainHyperNetwork, HyperNetwork
from .io import load_adapter, read_adapter
from .left import LeFTAdapter
from .look_hypernetwork import LookHyperNetwork
from .lora import LoRAAdapter
from .registry import trainable_types
from .spec import LayerSpec
from .ticket import TicketAdapter, magnitude_masks

__all__ = [
    "BASE",
    "AdaFMAdapter",
    "Adapter",
    "AdapterBank",
    "BlendAdapter",
    "DeltaWAdapter",
    "DomainHyperNetwork",
    "DomainVectorAdapter",
    "FullAdapter",
    "GANMemoryAdapter",
    "HyperNetwork",
    "LayerSpec",
    "LeFTAdapter",
    "LoRAAdapter",
    "LookHyperNetwork",
    "TicketAdapter",
    "fingerprint",
    "load_adapter",
    "magnitude_masks",
    "read_adapter",
    "trainable_types",
]
