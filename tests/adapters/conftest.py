"""An adapter of every kind: tests with these fixtures run once for each."""

import pytest
import torch
from helpers.adapter_kinds import KINDS, half_masks

from fewshot_gan.adapters import TicketAdapter


@pytest.fixture(params=sorted(KINDS))
def make_adapter(request):
    """The factory of one kind: `make_adapter(generator)`."""
    cls, options = KINDS[request.param]

    def make(generator, **more):
        torch.manual_seed(0)
        return cls.for_model(generator, **options, **more)

    return make


@pytest.fixture
def make_look(make_adapter, perturbed):
    """`make_look(generator, seed)`: an adapter of the kind that visibly changes the picture."""

    def make(generator, seed, **more):
        adapter = make_adapter(generator, **more)
        if isinstance(adapter, TicketAdapter):  # other noise is no other mask
            more["keep_values"] = adapter.kept_values is not None
            adapter = TicketAdapter.for_model(generator, masks=half_masks(generator, seed), **more)
        return perturbed(adapter, seed)

    return make
