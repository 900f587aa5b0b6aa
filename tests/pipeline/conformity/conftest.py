"""A pipeline of every generator."""

import pytest
from helpers.every_network import GENERATORS
from helpers.every_pipeline import piped

from fewshot_gan.adapters import LeFTAdapter


@pytest.fixture(params=GENERATORS)
def pipe(request):
    return piped(request.param)


@pytest.fixture
def look(pipe, perturbed):
    """An adapter of `pipe`, loaded as "look"."""
    adapter = perturbed(LeFTAdapter.for_model(pipe.generator), std=0.2)
    pipe.load_adapter(adapter, "look")
    return adapter
