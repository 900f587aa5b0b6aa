"""Domain vectors: where they act, how many numbers they have, and what they scale."""

import pytest
import torch
from helpers.adapter_kinds import latents, specs_of, unbound
from torch.nn import functional as F

from fewshot_gan.adapters import AdapterBank, DomainVectorAdapter
from fewshot_gan.models import StyleGAN2Generator
from fewshot_gan.models.layers import adaptable_layers
from fewshot_gan.ops import bias_act, modulated_conv2d


def pre_noise(generator, path, adapter=None):
    """Output of the convolution at `path`, noise and bias removed, under the same input."""
    layer = generator.get_submodule(path)
    bank = AdapterBank(generator)
    if adapter is not None:
        bank.add("a", adapter)
        bank.activate({"a": 1.0})
    x = torch.randn(2, 12, 8, 8, generator=torch.Generator().manual_seed(3))
    w = latents(2, 4)
    saved = layer.bias.clone()
    with torch.no_grad():
        layer.bias.zero_()
        out = layer(x, w, noise_mode="none")
        layer.bias.copy_(saved)
    bank.activate({})
    return out


@pytest.mark.parametrize("path", ["synthesis.b8.conv1", "synthesis.b16.conv0"])  # plain and up-sampling
def test_a_constant_delta_doubles_after_demodulation_and_vanishes_before_it(stylegan2, path):
    outs = {}
    source = pre_noise(stylegan2, path)
    for placement in ("post_demod", "pre_demod"):
        adapter = DomainVectorAdapter.for_model(stylegan2, placement=placement)
        with torch.no_grad():
            adapter.factors()[path].delta.fill_(1.0)
        # the fingerprint is that of the weights with their biases
        outs[placement] = pre_noise(stylegan2, path, unbound(adapter))
    # leaky ReLU is positively homogeneous, so doubling survives it
    torch.testing.assert_close(outs["post_demod"], 2 * source, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(outs["pre_demod"], source, rtol=1e-4, atol=1e-5)  # up to the 1e-8 under the root


def test_post_demod_scales_the_input_and_pre_demod_does_not(stylegan2):
    path = "synthesis.b8.conv1"
    layer = stylegan2.get_submodule(path)
    delta = torch.randn(12, generator=torch.Generator().manual_seed(5)) * 0.5
    x = torch.randn(2, 12, 8, 8, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        want = layer(x * (1 + delta)[None, :, None, None], latents(2, 4))
        got = {}
        for placement in ("post_demod", "pre_demod"):
            adapter = DomainVectorAdapter.for_model(stylegan2, placement=placement)
            adapter.factors()[path].delta.copy_(delta)
            bank = AdapterBank(stylegan2)
            bank.add("a", adapter)
            with bank.using({"a": 1.0}):
                got[placement] = layer(x, latents(2, 4))
    torch.testing.assert_close(got["post_demod"], want, rtol=1e-5, atol=1e-5)
    assert (got["pre_demod"] - want).abs().max() > 0.05


def test_pre_demod_keeps_the_norm_of_folded_filters(mobile, perturbed):
    adapter = perturbed(DomainVectorAdapter.for_model(mobile, placement="pre_demod"), std=0.5)
    layers = dict(adaptable_layers(mobile))
    for path, factors in adapter.factors().items():
        weight = layers[path].weight.detach()
        scaled = factors(weight, None).weight.detach()
        torch.testing.assert_close(scaled.flatten(1).norm(dim=1), weight.flatten(1).norm(dim=1))
        explicit = weight * (1 + factors.delta.detach())[:, None, None]
        torch.testing.assert_close(F.normalize(scaled.flatten(1)), F.normalize(explicit.flatten(1)))


def test_domain_vectors_touch_the_styled_convolutions_alone(make_generator):
    generator = make_generator()
    roles = dict((p, layer.role) for p, layer in adaptable_layers(generator))
    paths = DomainVectorAdapter.for_model(generator).config.target_modules
    assert set(paths) == {p for p, role in roles.items() if role == "conv"} and paths


def test_domain_vector_counts_of_all_parametrisations():
    with torch.device("meta"):
        model = StyleGAN2Generator(1024)
    for parametrization, numbers in (("input", 6048), ("output", 5568), ("separable", 11616), ("full", 2_620_416)):
        adapter = DomainVectorAdapter(target_modules=specs_of(model, ("conv",)), parametrization=parametrization)
        assert adapter.num_values() == numbers  # HyperDomainNet's table


def test_parametrisations_are_scalings_after_demodulation(stylegan2):
    """Explicitly: W₂ of the demodulated convolution, times 1 + δ_out, 1 + δ_in + δ_out, or 1 + Δ."""
    path, w = "synthesis.b16.conv0", latents(2, 4)
    layer = stylegan2.get_submodule(path)
    x = torch.randn(2, 12, 8, 8, generator=torch.Generator().manual_seed(3))
    g = torch.Generator().manual_seed(9)
    with torch.no_grad():
        styles = layer.affine(w)
        w1 = layer.weight * styles[:, None, :, None, None]
        w2 = w1 * (w1.square().sum((2, 3, 4), keepdim=True) + 1e-8).rsqrt()
        for parametrization in ("input", "output", "separable", "full"):
            adapter = DomainVectorAdapter.for_model(stylegan2, parametrization=parametrization)
            for p in adapter.parameters():
                p.copy_(torch.randn(p.shape, generator=g) * 0.4)
            w3 = w2 * adapter.factors()[path].gain()
            bank = AdapterBank(stylegan2)
            bank.add("a", adapter)
            bank.activate({"a": 1.0})
            got = layer(x, w, noise_mode="none")
            bank.activate({})
            for b in range(2):
                fir = {"up": 2, "resample_filter": layer.resample_filter, "demodulate": False}
                want = modulated_conv2d(x[b : b + 1], w3[b], **fir)
                want = bias_act(want, layer.bias, activation="lrelu")
                torch.testing.assert_close(got[b : b + 1], want, rtol=1e-4, atol=1e-5)


def test_a_domain_vector_that_would_do_nothing_or_cannot_be(mobile):
    with pytest.raises(ValueError, match="before demodulation does nothing"):
        DomainVectorAdapter.for_model(mobile, parametrization="output", placement="pre_demod")
    with pytest.raises(ValueError, match="unknown parametrization 'x'; known: input, output"):
        DomainVectorAdapter.for_model(mobile, parametrization="x")
    with pytest.raises(ValueError, match="act on dense convolutions; mapping.fc0 is of role 'mapping'"):
        DomainVectorAdapter.for_model(mobile, roles=("mapping",))
