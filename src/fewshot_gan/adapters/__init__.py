"""Adapters: what changes in a generator, and how it is stored. Each is a function on weights."""

from .bank import AdapterBank
from .base import Adapter, LayerSpec, fingerprint, read_adapter
from .domain_vector import DomainVectorAdapter
from .left import LeFTAdapter

__all__ = [
    "Adapter",
    "AdapterBank",
    "DomainVectorAdapter",
    "LayerSpec",
    "LeFTAdapter",
    "fingerprint",
    "read_adapter",
]
