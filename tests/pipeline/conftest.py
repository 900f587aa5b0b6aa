"""Pipelines with adapters."""

import pytest
import torch

from fewshot_gan.adapters import DomainVectorAdapter, LeFTAdapter


@pytest.fixture
def looks(pipe, perturbed):
    """The pipeline with two adapters loaded, `a` (LeFT) and `b` (domain vector)."""
    torch.manual_seed(0)
    pipe.load_adapter(perturbed(LeFTAdapter.for_model(pipe.generator), 1), "a")
    pipe.load_adapter(perturbed(DomainVectorAdapter.for_model(pipe.generator), 2, std=0.5), "b")
    return pipe
