"""The application with all its commands, in the order of `fewshot-gan --help`; light to import."""

# isort: off
from .root import app
from . import generate, walk, export, evaluate, invert, restyle, adapt, reproduce, demo, convert, push, info  # noqa: F401  each adds its commands

__all__ = ["app"]
