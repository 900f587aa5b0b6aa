"""What makes each kind of adapter: AdaFM, GAN Memory, tickets and full differences."""

from dataclasses import asdict

import pytest
import torch
from helpers.adapter_kinds import half_masks, latents
from safetensors.torch import load_file

from fewshot_gan.adapters import (
    AdaFMAdapter,
    AdapterBank,
    FullAdapter,
    GANMemoryAdapter,
    LayerSpec,
    TicketAdapter,
    magnitude_masks,
)
from fewshot_gan.models import StyleGAN2Generator
from fewshot_gan.models.layers import adaptable_layers
from fewshot_gan.ops import pack_bits, unpack_bits


def test_adafm_scales_and_shifts_filters():  # spec tests b and c
    factors = AdaFMAdapter(target_modules={"c": asdict(LayerSpec((1, 1, 3, 3)))}).factors()["c"]
    with torch.no_grad():
        factors.gamma.fill_(2.0)
        factors.beta.fill_(-1.0)
    weight = torch.arange(9.0).reshape(1, 1, 3, 3)
    assert factors(weight, None).weight.sum() == 63
    factors(weight, None).weight.square().sum().backward()  # ∂γ = Σ ∂Ŵ·W, ∂β = Σ ∂Ŵ
    upstream = 2 * (2 * weight - 1)
    assert factors.gamma.grad.item() == (upstream * weight).sum() and factors.beta.grad.item() == upstream.sum()


def test_adafm_touches_the_last_three_resolutions_and_the_specific_part(make_generator):
    generator = make_generator()
    adapter = AdaFMAdapter.for_model(generator, modules_to_save=["synthesis.b8.conv0", "mapping.fc1"])
    retrained = {path for path, f in adapter.factors().items() if type(f).__name__ == "FullFactors"}
    modulated = adapter.factors().keys() - retrained
    sizes = {generator.layer_resolution(path) for path in modulated}
    assert sizes == ({8, 16, 32} if isinstance(generator, StyleGAN2Generator) else {4, 8, 16, 32})
    roles = {path: layer.role for path, layer in adaptable_layers(generator)}
    assert {roles[path] for path in modulated} <= {"conv", "depthwise", "to_rgb"}
    below = {p for p in roles if p == "mapping.fc1" or p.startswith("synthesis.b8.conv0")}
    assert retrained == below and {"noise", "affine"} <= {roles[p] for p in retrained}
    for path in modulated:
        shape = adapter.config.target_modules[path]["shape"]
        assert adapter.factors()[path].gamma.shape == (*shape[:2], 1, 1)
    with pytest.raises(ValueError, match="modules_to_save: .* has no parameters at 'synthesis.b7'"):
        AdaFMAdapter.for_model(generator, modules_to_save=["synthesis.b7"])
    with pytest.raises(ValueError, match="matches 'synthesis.b7.*'; there are for example"):
        AdaFMAdapter.for_model(generator, target_modules=["synthesis.b7.*"])


def test_demodulation_undoes_a_gamma_that_is_constant_along_a_filter(stylegan2):  # spec §8
    adapter = AdaFMAdapter.for_model(stylegan2, roles=("conv",))
    bank, want = AdapterBank(stylegan2), None
    with torch.no_grad():
        want = stylegan2(latents())
        for factors in adapter.factors().values():
            factors.gamma.mul_(torch.rand(factors.gamma.shape[0], 1, 1, 1) + 0.5)
        bank.add("rows", adapter)
        with bank.using({"rows": 1.0}):
            torch.testing.assert_close(stylegan2(latents()), want, rtol=0, atol=1e-5)
            for factors in adapter.factors().values():
                factors.gamma.mul_(torch.rand(1, factors.gamma.shape[1], 1, 1) + 0.5)
            assert (stylegan2(latents()) - want).abs().max() > 0.05


def test_gan_memory_normalises_filters_and_rows():
    for shape, dims in (((5, 3, 3, 3), (2, 3)), ((5, 4, 1, 1), (1, 2, 3)), ((5, 4), (1,))):
        spec = asdict(LayerSpec(shape, bias=True))
        factors = GANMemoryAdapter(target_modules={"c": spec}).factors()["c"]
        weight = torch.randn(shape, generator=torch.Generator().manual_seed(0)) * 3 + 1
        with torch.no_grad():
            factors.gamma.fill_(2.0)
            factors.beta.fill_(0.5)
            factors.bias_shift.fill_(1.0)
            out, bias, *_ = factors(weight, torch.zeros(5))
        torch.testing.assert_close(out.mean(dims), torch.full_like(out.mean(dims), 0.5))
        torch.testing.assert_close(out.std(dims), torch.full_like(out.std(dims), 2.0))
        assert bool((bias == 1).all())
        assert factors.gamma.numel() == (15 if shape[-1] == 3 else 5)
    flat = torch.full((1, 1, 3, 3), 0.7)  # no spread: no NaN
    factors = GANMemoryAdapter(target_modules={"c": asdict(LayerSpec((1, 1, 3, 3)))}).factors()["c"]
    with torch.no_grad():
        factors.initialise(flat, None)
        assert torch.equal(factors(flat, None).weight, flat)


def test_bits_are_packed_lowest_first():
    mask = torch.zeros(2, 5, dtype=torch.bool)
    mask.view(-1)[[0, 3, 9]] = True
    packed = pack_bits(mask)
    assert packed.tolist() == [0b00001001, 0b00000010]
    assert torch.equal(unpack_bits(packed, (2, 5)), mask)
    for n in (1, 8, 13, 64):
        mask = torch.rand(n, generator=torch.Generator().manual_seed(n)) < 0.5
        assert torch.equal(unpack_bits(pack_bits(mask), (n,)), mask) and pack_bits(mask).numel() == -(-n // 8)


def test_magnitude_masks_rank_the_whole_network(make_generator):
    generator = make_generator()
    masks = magnitude_masks(generator, 0.67)
    layers = dict(adaptable_layers(generator))
    kept = torch.cat([layers[p].weight.detach().abs()[m] for p, m in masks.items()])
    gone = torch.cat([layers[p].weight.detach().abs()[~m] for p, m in masks.items()])
    n = kept.numel() + gone.numel()
    assert gone.numel() == round(0.67 * n) and kept.min() >= gone.max()
    shares = {round(float(m.float().mean()), 2) for m in masks.values()}
    assert len(shares) > 1  # one ranking, not one per layer
    for sparsity in (-0.1, 1.0):
        with pytest.raises(ValueError, match="is not in 0 ≤ sparsity < 1"):
            magnitude_masks(generator, sparsity)


def test_a_ticket_zeroes_what_it_prunes_and_takes_one_bit_per_weight(make_generator, tmp_path):
    generator = make_generator()
    masks = magnitude_masks(generator, 0.67)
    ticket = TicketAdapter.for_model(generator, masks=masks)
    assert abs(ticket.sparsity() - 0.67) < 1e-3
    assert all(torch.equal(m, masks[p]) for p, m in ticket.masks().items())
    layers = dict(adaptable_layers(generator))
    for path, factors in ticket.factors().items():
        assert torch.equal(factors(layers[path].weight, None).weight, layers[path].weight * masks[path])
    ticket.save_pretrained(tmp_path)
    stored = load_file(tmp_path / "adapter_model.safetensors")
    assert all(t.dtype == torch.uint8 for t in stored.values())
    assert sum(t.numel() for t in stored.values()) == sum(-(-m.numel() // 8) for m in masks.values())


def test_a_ticket_with_values_is_the_trained_sparse_network(make_generator):
    generator = make_generator()
    ticket = TicketAdapter.for_model(generator, masks=half_masks(generator, 3), keep_values=True)
    masks, layers = ticket.masks(), dict(adaptable_layers(generator))
    for path, factors in ticket.factors().items():
        with torch.no_grad():
            factors.values.mul_(-2)
            weight = factors(layers[path].weight, None).weight
        assert torch.equal(weight, -2 * layers[path].weight * masks[path])


def test_masks_of_other_shapes(mobile, stylegan2):
    masks = half_masks(mobile, 0)
    with pytest.raises(ValueError, match="the mask of .* has shape .* a ticket fits the architecture"):
        TicketAdapter.for_model(stylegan2, masks=masks)
    path = next(iter(masks))
    with pytest.raises(ValueError, match=rf"the mask of {path} has shape \(2,\), but the weight is \(16, 16, 3, 3\)"):
        TicketAdapter.for_model(mobile, masks={path: torch.ones(2, dtype=torch.bool)})


def test_full_difference_reproduces_a_fine_tuned_network(make_generator):
    base, tuned = make_generator(), make_generator()
    with torch.no_grad():
        for p in tuned.parameters():  # multiples of 2⁻⁸: exact in float16 and in the sum
            p.add_(torch.randint(-8, 9, p.shape, generator=torch.Generator().manual_seed(1)) / 256)
    adapter = FullAdapter.difference(base, tuned)
    covered = sum(p.numel() for p in adapter.parameters())
    assert covered == sum(p.numel() for p in base.parameters())  # nothing is out of reach
    bank = AdapterBank(base)
    bank.add("tuned", adapter)
    with torch.no_grad(), bank.using({"tuned": 1.0}):
        torch.testing.assert_close(base(latents()), tuned(latents()), rtol=1e-4, atol=1e-4)
    with pytest.raises(ValueError, match="are the same"):
        FullAdapter.difference(base, make_generator())
    with torch.no_grad():
        tuned.mapping.w_avg.add_(1.0)
    with pytest.raises(ValueError, match="mapping.w_avg changed too"):
        FullAdapter.difference(base, tuned)


def test_full_difference_leaves_out_what_did_not_change(make_generator):
    base, tuned = make_generator(), make_generator()
    with torch.no_grad():
        tuned.mapping.fc0.bias.add_(0.5)
    assert list(FullAdapter.difference(base, tuned).config.target_modules) == ["mapping.fc0"]


def test_every_parameter_belongs_to_one_adaptable_layer(make_generator):
    generator = make_generator()
    owned = [p for _, layer in adaptable_layers(generator) for p in layer.stored() if p is not None]
    assert len({id(p) for p in owned}) == len(owned)
    assert {id(p) for p in owned} == {id(p) for p in generator.parameters()}
