"""Δw: a shift of w that is a change of biases (WeditGAN), shared by all layers or not."""

import pytest
import torch
from helpers.tensors import seeded_normal
from safetensors.torch import load_file

from fewshot_gan.adapters import Adapter, AdapterBank, DeltaWAdapter
from fewshot_gan.adapters.delta_w import PENALTY, DeltaWOptions


@pytest.fixture(params=[False, True], ids=["layers", "shared"])
def adapter(request, mobile):
    adapter = DeltaWAdapter.fresh(mobile, DeltaWOptions(shared=request.param))
    with torch.no_grad():
        for number, shift in enumerate(adapter.parameters()):
            shift.copy_(seeded_normal(*shift.shape, seed=number) * 0.5)
    return adapter


def test_it_draws_what_shifted_latents_draw(adapter, mobile, tmp_path):
    adapter.save_pretrained(tmp_path)
    (file,) = tmp_path.glob("*.safetensors")
    assert len(load_file(file)) == (1 if adapter.shared else len(adapter.factors()))
    bank, ws = AdapterBank(mobile), mobile.mapping(seeded_normal(2, mobile.z_dim, seed=1)).detach()
    bank.add("look", Adapter.from_pretrained(tmp_path))
    with torch.no_grad():
        plain = mobile(ws, latent_space="w+")
        if adapter.shared:
            wanted = mobile(ws + next(adapter.parameters()), latent_space="w+")
        with bank.using({"look": 1.0}):
            drawn = mobile(ws, latent_space="w+")
        with bank.using({"look": 0.5}):
            half = mobile(ws, latent_space="w+")
    assert (drawn - plain).abs().max() > 0.01
    if adapter.shared:
        torch.testing.assert_close(drawn, wanted, rtol=0, atol=2e-5)
        with torch.no_grad():
            wanted = mobile(ws + next(adapter.parameters()) / 2, latent_space="w+")
        torch.testing.assert_close(half, wanted, rtol=0, atol=2e-5)


def test_the_penalty_is_that_of_the_paper(adapter, mobile):
    z = seeded_normal(4000, mobile.z_dim, seed=7)
    with torch.no_grad():
        w = mobile.mapping(z)[:, 0]
    differences = w[:2000] - w[2000:]
    wanted = sum((differences @ shift).square().mean() for shift in adapter.parameters())
    assert adapter.penalty(0).item() == pytest.approx(PENALTY * wanted.item(), rel=0.15)  # other random latents
    adapter.penalty(0).backward()
    assert all(shift.grad.abs().sum() > 0 for shift in adapter.parameters())


def test_it_shifts_affine_layers_alone(mobile):
    with pytest.raises(ValueError, match="shifts the biases of affine layers; .* is of role 'conv'"):
        DeltaWAdapter.for_model(mobile, roles=["conv"])
