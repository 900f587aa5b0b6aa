"""Adapters: one table of kinds, and every kind goes through the same tests on every architecture."""

import json
from dataclasses import asdict

import pytest
import torch
from helpers.adapter_kinds import KINDS, NOISY, assert_same, batch_of, latents, specs_of, weights_of
from helpers.networks import tiny_mobile
from safetensors.torch import load_file, save_file
from torch.nn import functional as F

from fewshot_gan.adapters import (
    Adapter,
    AdapterBank,
    DomainVectorAdapter,
    FullAdapter,
    LayerSpec,
    LeFTAdapter,
)
from fewshot_gan.models import MobileStyleGANGenerator, StyleGAN2Generator
from fewshot_gan.models.layers import adaptable_layers

# -------------------------------------------------------------------------------------------- the table: kind × model


@torch.no_grad()
def test_fresh_adapter_is_the_identity(make_generator, make_adapter):
    generator = make_generator()
    want = generator(latents())
    adapter, bank = make_adapter(generator), AdapterBank(generator)
    layers = dict(adaptable_layers(generator))
    for path, factors in adapter.factors().items():
        stored = layers[path].stored()
        weight, bias, *scales = factors(*stored)
        # a sum of r² rounded terms: relative, since the mapping's stored weights are in the hundreds
        torch.testing.assert_close(weight, stored[0], rtol=1e-6, atol=1e-6)
        if bias is not None:
            torch.testing.assert_close(bias, stored[1], rtol=0, atol=0)
        assert all(scale is None or torch.equal(scale, torch.ones_like(scale)) for scale in scales)
    bank.add("a", adapter)
    bank.activate({"a": 1.0})
    # rounded weights, 1e-6, through about ten layers that each add their own
    torch.testing.assert_close(generator(latents()), want, rtol=1e-4, atol=1e-4)


def test_training_moves_every_factor_and_nothing_else(make_generator, make_adapter):
    generator = make_generator().requires_grad_(False)
    if not list(make_adapter(generator).parameters()):
        pytest.skip("the mask of a ticket is chosen, not trained")
    adapter, bank = make_adapter(generator), AdapterBank(generator)
    bank.add("a", adapter)
    bank.activate({"a": 1.0})
    source, before = weights_of(generator), weights_of(adapter)
    optimizer = torch.optim.Adam(adapter.parameters(), lr=1e-2)
    for step in (1, 2):
        image = generator(latents())
        target = torch.randn(image.shape, generator=torch.Generator().manual_seed(step))
        optimizer.zero_grad()
        F.mse_loss(image, target).backward()
        optimizer.step()
        still = {k for k, v in adapter.named_parameters() if torch.equal(v, before[k])}
        if step == 1:  # the partner of a zero factor has no gradient yet; with both zero neither would ever move
            noisy = {k for k in before if k.rsplit(".", 1)[1] in NOISY or (k.endswith("add_in") and before[k].any())}
            assert still == noisy
            still = set()
    assert not still
    assert all(p.grad is not None for p in adapter.parameters())
    assert all(p.grad is None for p in generator.parameters())
    assert_same(weights_of(generator), source)


def test_save_and_load_are_exact(make_generator, make_look, tmp_path):
    generator = make_generator()
    adapter = make_look(generator, 0, base_model_name_or_path="me/base", method="m", training={"steps": 3})
    adapter.save_pretrained(tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["adapter_config.json", "adapter_model.safetensors"]
    loaded = Adapter.from_pretrained(tmp_path)
    assert type(loaded) is type(adapter)
    assert_same(loaded.state_dict(), adapter.state_dict())
    plain = json.loads(json.dumps({k: v for k, v in adapter.config.items() if not k.startswith("_")}, default=list))
    assert {k: v for k, v in loaded.config.items() if not k.startswith("_")} == plain
    assert not any(p.requires_grad for p in loaded.parameters())

    bank = AdapterBank(generator)
    bank.add("trained", adapter)
    bank.add("loaded", loaded)
    with torch.no_grad():
        with bank.using({"trained": 1.0}):
            want = generator(latents())
        with bank.using({"loaded": 1.0}):
            assert torch.equal(generator(latents()), want)
        assert not torch.allclose(generator(latents()), want)


def test_peft_prefix_is_accepted(make_generator, make_adapter, perturbed, tmp_path):
    adapter = perturbed(make_adapter(make_generator()))
    adapter.save_pretrained(tmp_path)
    path = tmp_path / "adapter_model.safetensors"
    save_file({f"base_model.model.{k}": v for k, v in load_file(path).items()}, path, metadata={"format": "pt"})
    assert_same(Adapter.from_pretrained(tmp_path).state_dict(), adapter.state_dict())


def test_blend_formula(make_generator, make_adapter, perturbed):
    generator, bank = make_generator(), None
    first, second = (perturbed(make_adapter(generator), seed) for seed in (1, 2))
    bank = AdapterBank(generator)
    bank.add("a", first)
    bank.add("b", second)
    with torch.no_grad():
        for alphas in ({"a": 0.5, "b": -1.5}, {"a": 2.0}, {"a": 1.0, "b": 1.0}):
            bank.activate(alphas)
            for path, layer in adaptable_layers(generator):
                if path not in first.factors():
                    assert layer.adaptation is None
                    continue
                stored, stored_bias = layer.stored()
                weight, bias, scales = stored, stored_bias, [torch.ones(()) for _ in range(3)]
                for name, alpha in alphas.items():
                    w, b, *new = bank.adapters[name].factors()[path](stored, stored_bias)
                    weight = weight + alpha * (w - stored)
                    bias = bias if bias is None else bias + alpha * (b - stored_bias)
                    scales = [s if n is None else s + alpha * (n - 1) for s, n in zip(scales, new, strict=True)]
                got = layer.effective()
                norm = got.weight if got.norm_weight is None else got.norm_weight
                torch.testing.assert_close(norm, weight)
                torch.testing.assert_close(got.weight, weight * scales[2])
                if bias is not None:
                    torch.testing.assert_close(got.bias, bias)
                for have, want in zip((got.input_scale, got.output_scale), scales, strict=False):
                    torch.testing.assert_close(torch.ones(()) if have is None else have, want)
        bank.activate({"a": 0.0})
        assert all(layer.adaptation is None for _, layer in adaptable_layers(generator))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@torch.no_grad()
def test_half_precision_base(make_generator, make_adapter, perturbed, dtype):
    generator = make_generator()
    adapter = perturbed(make_adapter(generator), std=0.02)
    bank = AdapterBank(generator)
    bank.add("a", adapter)
    bank.activate({"a": 1.0})
    want = generator(latents())
    half = make_generator().to(dtype)
    bank = AdapterBank(half)
    bank.add("a", adapter)
    bank.activate({"a": 1.0})
    got = half(latents().to(dtype))
    assert got.dtype == dtype
    # relative error of a rounding is 2⁻¹¹ or 2⁻⁸, and some ten layers add it up
    share = 0.02 if dtype == torch.float16 else 0.15
    torch.testing.assert_close(got.float(), want, rtol=0, atol=float(want.abs().max()) * share)


def test_rows_of_a_mixed_batch_equal_solo_runs(make_generator, make_look):
    generator, bank, z = make_generator(), None, latents(6)
    bank = AdapterBank(generator)
    for seed, name in enumerate("ab"):
        bank.add(name, make_look(generator, seed))
    looks = [{}, {"a": 1.0}, {"a": 1.0}, {"b": 1.0}, {"a": 0.5, "b": -0.5}, {}]
    mixed = batch_of(bank, generator, z, looks)
    for i, look in enumerate(looks):
        torch.testing.assert_close(mixed[i : i + 1], batch_of(bank, generator, z[i : i + 1], [look]), rtol=0, atol=1e-4)
    base = batch_of(bank, generator, z, [{}])
    assert all((mixed[i] - base[i]).abs().max() > 0.01 for i in (1, 2, 3, 4))
    assert all(layer.adaptation is None for _, layer in adaptable_layers(generator))


def test_every_kind_in_one_batch(make_generator, perturbed):
    generator = make_generator()
    bank = AdapterBank(generator)
    for seed, (name, (cls, options)) in enumerate(KINDS.items()):
        torch.manual_seed(seed)
        bank.add(name, perturbed(cls.for_model(generator, **options), seed))
    looks = [{}, *({name: 1.0} for name in KINDS), {"left-1": 0.5, "domain-post": 2.0, "domain-output": 1.0}]
    order = bank.row_order(looks)
    assert sorted(order) == list(range(len(looks)))
    looks, z = [looks[i] for i in order], latents(len(looks))
    mixed = batch_of(bank, generator, z, looks)
    for i, look in enumerate(looks):
        solo = batch_of(bank, generator, z[i : i + 1], [look])
        torch.testing.assert_close(mixed[i : i + 1], solo, rtol=0, atol=1e-4 * float(solo.abs().max()))


def test_weights_nought_and_one_are_the_base_and_the_adapter(make_generator, make_look):
    generator = make_generator()
    bank = AdapterBank(generator)
    for seed, name in enumerate("ab"):
        bank.add(name, make_look(generator, seed))
    base, a = (batch_of(bank, generator, latents(), [look]) for look in ({}, {"a": 1.0}))
    assert torch.equal(batch_of(bank, generator, latents(), [{"a": 0.0, "b": 0.0}]), base)
    assert torch.equal(batch_of(bank, generator, latents(), [{"a": 1.0, "b": 0.0}]), a)
    half = batch_of(bank, generator, latents(), [{"a": 0.5}])
    assert (half - a).abs().max() > 1e-3 and (half - base).abs().max() > 1e-3


def test_fuse_and_unfuse(make_generator, make_look):
    generator = make_generator()
    bank, source = AdapterBank(generator), None
    source = weights_of(generator)
    for seed, name in enumerate("ab"):
        bank.add(name, make_look(generator, seed))
    bank.activate({"a": 1.0, "b": -0.5})
    with torch.no_grad():
        want = generator(latents())
        bank.fuse()
        torch.testing.assert_close(generator(latents()), want, rtol=0, atol=1e-5 * max(1.0, float(want.abs().max())))
        changed = [k for k, v in generator.state_dict().items() if not torch.equal(v, source[k])]
        assert changed or bank.fused
        for layer in dict(adaptable_layers(generator)).values():
            assert layer.adaptation is None or layer.demodulation == "runtime"
        bank.unfuse()
        assert_same(weights_of(generator), source)
        assert torch.equal(generator(latents()), want)


def test_a_blend_becomes_an_adapter_of_its_own(make_generator, make_look, tmp_path):
    generator = make_generator()
    bank = AdapterBank(generator)
    for seed, name in enumerate("ab"):
        bank.add(name, make_look(generator, seed))
    look = {"a": 0.75, "b": {"coarse": -0.5, 16: 0.25}}
    want = batch_of(bank, generator, latents(), [look])
    bank.add("c", bank.blend(look))
    bank.adapters["c"].save_pretrained(tmp_path)
    bank.add("d", Adapter.from_pretrained(tmp_path))
    for name in "ab":
        bank.remove(name)
    for name in "cd":
        torch.testing.assert_close(batch_of(bank, generator, latents(), [{name: 1.0}]), want, rtol=0, atol=1e-5)
    assert torch.equal(*(batch_of(bank, generator, latents(), [{name: 1.0}]) for name in "cd"))


# ------------------------------------------------------------------------------------------------------------- counts


def test_left_counts():
    for out, inn, k, rank in ((12, 8, 3, 1), (12, 8, 1, 1), (16, 1, 3, 2)):
        spec = asdict(LayerSpec((out, inn, k, k)))
        got = LeFTAdapter(target_modules={"conv": spec}, rank=rank).num_values()
        assert got == rank * 2 * (out + inn) + (rank**2 + 2 * rank) * k * k
        if rank == 1:
            assert got == 2 * out + 2 * inn + 3 * k * k
    linear = LeFTAdapter(target_modules={"fc": asdict(LayerSpec((12, 8), bias=True, role="affine"))}, rank=1)
    assert linear.num_values() == 2 * (12 + 8) + 2 * 12
    full = LeFTAdapter(target_modules={"conv": asdict(LayerSpec((12, 8, 3, 3)))}, rank=None)
    assert full.num_values() == 2 * 12 * 8 * 9


@pytest.mark.parametrize("resolution, numbers", [(1024, 6048), (512, 5952), (256, 5760)])
def test_domain_vector_of_stylegan2_has_the_published_size(resolution, numbers):
    with torch.device("meta"):
        model = StyleGAN2Generator(resolution)
    adapter = DomainVectorAdapter(target_modules=specs_of(model, DomainVectorAdapter.roles))
    assert adapter.num_values() == numbers
    widths = [spec["shape"][1] for spec in adapter.config.target_modules.values()]
    want = [512] * 9 + [c for pair in ((512, 256), (256, 128), (128, 64), (64, 32)) for c in pair]
    assert widths == want[: len(widths)]


@pytest.mark.parametrize("cls, limit", [(LeFTAdapter, 300_000), (DomainVectorAdapter, 40_000)])
def test_files_for_the_256_px_mobile_network_are_small(cls, limit, tmp_path):
    with torch.device("meta"):
        model = MobileStyleGANGenerator()
    adapter = cls(target_modules=specs_of(model, cls.roles))
    adapter.round_to_half()  # as training does
    adapter.save_pretrained(tmp_path)
    assert_same(Adapter.from_pretrained(tmp_path).state_dict(), adapter.state_dict())
    weights = tmp_path / "adapter_model.safetensors"
    assert weights.stat().st_size <= limit
    assert sum(p.stat().st_size for p in tmp_path.iterdir()) <= limit


def test_an_adapter_starts_from_that_of_a_smaller_base(perturbed):
    small, large = tiny_mobile(), tiny_mobile(block_channels=(16, 16, 16, 8))
    start = perturbed(LeFTAdapter.for_model(small), 3)
    adapter = LeFTAdapter.for_model(large)
    copied = adapter.start_from(start)
    shared = [p for p, f in start.factors().items() if shapes(adapter.factors().get(p)) == shapes(f)]
    assert 0 < copied == len(shared) < len(adapter.factors())
    for path, factors in adapter.factors().items():
        fresh = LeFTAdapter.for_model(large).factors()[path]
        same = start.factors()[path] if path in shared else fresh
        for name, tensor in factors.named_tensors().items():
            if path in shared or not any(noisy in name for noisy in (*NOISY, "add_in")):
                assert torch.equal(tensor, same.named_tensors()[name]), (path, name)
    with pytest.raises(ValueError, match="a full adapter cannot start from one of type left"):
        FullAdapter.for_model(large).start_from(start)
    with pytest.raises(ValueError, match="no layer of the adapter to start from has the path and the shapes"):
        LeFTAdapter.for_model(large, rank=2).start_from(start)


def shapes(factors):
    return None if factors is None else {name: t.shape for name, t in factors.named_tensors().items()}
