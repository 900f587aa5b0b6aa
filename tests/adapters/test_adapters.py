"""Adapters: one table of kinds, and every kind goes through the same tests on every architecture."""

import json
from dataclasses import asdict

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.nn import functional as F

from fewshot_gan.adapters import (
    AdaFMAdapter,
    Adapter,
    AdapterBank,
    DomainVectorAdapter,
    FullAdapter,
    GANMemoryAdapter,
    LayerSpec,
    LeFTAdapter,
    TicketAdapter,
    fingerprint,
    magnitude_masks,
)
from fewshot_gan.adapters.bank import LayerBlend
from fewshot_gan.models import MobileStyleGANGenerator, StyleGAN2Generator
from fewshot_gan.models.layers import adaptable_layers
from fewshot_gan.ops import bias_act, modulated_conv2d, pack_bits, unpack_bits

KINDS = {
    "left-1": (LeFTAdapter, {"rank": 1}),
    "left-2": (LeFTAdapter, {"rank": 2}),
    "left-4": (LeFTAdapter, {"rank": 4}),
    "left-full": (LeFTAdapter, {"rank": None}),
    "domain-post": (DomainVectorAdapter, {"placement": "post_demod"}),
    "domain-pre": (DomainVectorAdapter, {"placement": "pre_demod"}),
    "domain-output": (DomainVectorAdapter, {"parametrization": "output"}),
    "domain-separable": (DomainVectorAdapter, {"parametrization": "separable"}),
    "domain-full": (DomainVectorAdapter, {"parametrization": "full"}),
    "domain-full-pre": (DomainVectorAdapter, {"parametrization": "full", "placement": "pre_demod"}),
    "adafm": (AdaFMAdapter, {}),
    "adafm-specific": (AdaFMAdapter, {"target_modules": ["synthesis.b16.*"], "modules_to_save": ["synthesis.b8"]}),
    "gan-memory": (GANMemoryAdapter, {}),
    "ticket": (TicketAdapter, {}),
    "ticket-values": (TicketAdapter, {"keep_values": True}),
    "full": (FullAdapter, {}),
}
NOISY = ("add_core", "add_kernel")  # of convolutions; of linear layers it is add_in


@pytest.fixture(params=sorted(KINDS))
def make_adapter(request):
    """The factory of one kind: `make_adapter(generator)`."""
    cls, options = KINDS[request.param]

    def make(generator, **more):
        torch.manual_seed(0)
        return cls.for_model(generator, **options, **more)

    return make


def half_masks(generator, seed):
    g = torch.Generator().manual_seed(seed)
    layers = [(p, m) for p, m in adaptable_layers(generator) if m.role in TicketAdapter.roles]
    return {path: torch.rand(layer.weight.shape, generator=g) < 0.7 for path, layer in layers}


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


def latents(n=2, seed=1, dim=16):
    return torch.randn(n, dim, generator=torch.Generator().manual_seed(seed))


def weights_of(model):
    return {k: v.clone() for k, v in model.state_dict().items()}


def assert_same(a, b):
    assert a.keys() == b.keys()
    assert all(torch.equal(a[k], b[k]) for k in a)


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
        return  # the mask of a ticket is chosen, not trained
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


def batch_of(bank, generator, z, looks):
    with torch.no_grad(), bank.using_rows(looks):
        return generator(z)


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


def specs_of(model, roles):
    return {p: asdict(LayerSpec.of(layer)) for p, layer in adaptable_layers(model) if layer.role in roles}


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


# ------------------------------------------------------------------------------------- domain vectors: where they act


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
        outs[placement] = pre_noise(stylegan2, path, _unbound(adapter))
    # leaky ReLU is positively homogeneous, so doubling survives it
    torch.testing.assert_close(outs["post_demod"], 2 * source, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(outs["pre_demod"], source, rtol=1e-4, atol=1e-5)  # up to the 1e-8 under the root


def _unbound(adapter):
    adapter.register_to_config(base_fingerprint=None)
    return adapter


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


# ----------------------------------------------------------------------------------------------------------- the bank


@torch.no_grad()
def test_bank_add_remove_disable_using(make_generator, perturbed):
    generator = make_generator()
    bank = AdapterBank(generator)
    for seed, name in enumerate("ab"):
        torch.manual_seed(0)
        bank.add(name, perturbed(LeFTAdapter.for_model(generator), seed))
    base = generator(latents())
    bank.activate({"a": 1.0})
    a = generator(latents())
    bank.activate({"b": 1.0})
    b = generator(latents())
    assert not torch.allclose(a, base) and not torch.allclose(b, base) and not torch.allclose(a, b)
    with bank.using({"a": 1.0}):
        assert torch.equal(generator(latents()), a)
    assert torch.equal(generator(latents()), b)
    bank.enable(False)
    assert torch.equal(generator(latents()), base)
    with bank.using({"a": 1.0}):  # an explicit wish beats the switch
        assert torch.equal(generator(latents()), a)
    assert torch.equal(generator(latents()), base)
    bank.enable()
    assert torch.equal(generator(latents()), b)
    with pytest.raises(ZeroDivisionError), bank.using({}):
        raise ZeroDivisionError
    assert torch.equal(generator(latents()), b)
    with pytest.warns(UserWarning, match="'b' was active and is deleted; 'a' is active now"):
        bank.remove("b")
    assert torch.equal(generator(latents()), a) and list(bank.adapters) == ["a"] == list(bank.active)
    for action in (lambda: bank.remove("b"), lambda: bank.activate({"b": 1})):
        with pytest.raises(ValueError, match="'b' is not loaded; loaded: 'a'"):
            action()


def test_another_architecture_is_refused(mobile, stylegan2):
    adapter = LeFTAdapter.for_model(mobile, base_model_name_or_path="me/faces")
    bank = AdapterBank(stylegan2)
    with pytest.raises(ValueError, match="does not fit this StyleGAN2Generator.*from_pretrained.'me/faces'"):
        bank.add("look", adapter)
    assert not bank.adapters


def test_other_weights_are_refused(make_generator):
    adapter = LeFTAdapter.for_model(make_generator(0), base_model_name_or_path="me/faces")
    wanted = adapter.config.base_fingerprint
    with pytest.raises(ValueError, match=f"'look' was trained on 'me/faces' .fingerprint {wanted}.* load its base"):
        AdapterBank(make_generator(1)).add("look", adapter)


def test_fingerprint_survives_precision_and_sees_one_weight(make_generator, tmp_path):
    generator = make_generator()
    want = fingerprint(generator)
    assert want == fingerprint(make_generator()) and len(want) == 16
    for dtype in (torch.float16, torch.bfloat16):
        assert fingerprint(make_generator().to(dtype)) == want
    generator.save_pretrained(tmp_path)
    assert fingerprint(type(generator).from_pretrained(tmp_path)) == want
    for name, tensor in generator.state_dict().items():
        if name in ("mapping.fc0.weight", "mapping.w_avg", "synthesis.b8.conv0.noise.const"):
            flat = tensor.view(-1)
            kept = flat[3].clone()
            flat[3] += 0.5
            assert fingerprint(generator) != want, name
            flat[3] = kept
    assert fingerprint(generator) == want


# ------------------------------------------------------------------------------------------------- damaged and foreign


@pytest.fixture
def saved(mobile, tmp_path):
    LeFTAdapter.for_model(mobile).save_pretrained(tmp_path)
    return tmp_path


def edit_config(folder, **changes):
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text(encoding="utf-8")) | changes), encoding="utf-8")


def edit_weights(folder, change):
    path = folder / "adapter_model.safetensors"
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path, metadata={"format": "pt"})


def refuses(folder, message, error=ValueError):
    with pytest.raises(error, match=message):
        Adapter.from_pretrained(folder)


def test_missing_files(saved, tmp_path):
    (saved / "adapter_model.safetensors").unlink()
    refuses(saved, "not an adapter folder: it has no adapter_model.safetensors", FileNotFoundError)
    refuses(tmp_path / "nowhere", "no adapter .*embedded adapters.*local folder", FileNotFoundError)


@pytest.mark.parametrize("keep", [0, 4, 100, -7])
def test_truncated_weights(saved, keep):
    path = saved / "adapter_model.safetensors"
    path.write_bytes(path.read_bytes()[:keep])
    refuses(saved, "damaged or cut short.*fetch the file again")


def test_corrupt_weights(saved):
    (saved / "adapter_model.safetensors").write_bytes(b"\xff" * 500)
    refuses(saved, "damaged or cut short")


@pytest.mark.parametrize("text", ["{", "[]", "{}", '"x"'])
def test_corrupt_config(saved, text):
    (saved / "adapter_config.json").write_text(text, encoding="utf-8")
    refuses(saved, "adapter_config.json is damaged")


def test_unknown_type_newer_format_and_unknown_setting(saved):
    edit_config(saved, adapter_type="lora")
    refuses(saved, "type 'lora'; known types: adafm, blend, domain_vector, full")
    edit_config(saved, adapter_type="left", format_version=99)
    refuses(saved, "adapter format 99.*reads up to 1; upgrade")
    edit_config(saved, format_version=1, flavour="x", rank="2", **{"odd\x1b[31m": 1})
    refuses(saved, "adapter_config.json: rank is '2', not of type int | None")
    edit_config(saved, rank=1)
    with pytest.warns(UserWarning, match="settings that .*'left'.* ignored: 'flavour', 'odd.x1b.31m'; a newer version"):
        adapter = Adapter.from_pretrained(saved)
    assert "flavour" not in adapter.config


def test_bad_settings_in_a_config(saved):
    edit_config(saved, rank=0)
    refuses(saved, "rank=0")
    edit_config(saved, rank=1, target_modules={})
    refuses(saved, "target_modules is empty")
    edit_config(saved, target_modules={"a": {"shape": [2, 2], "colour": "red"}})
    with pytest.warns(UserWarning, match="ignored: 'target_modules.*.colour'"):
        refuses(saved, "does not fit")
    for settings, wrong in (
        ({"target_modules": None}, "target_modules is None, not of type dict"),
        ({"target_modules": {"a": [2, 2]}}, "target_modules is .*, not of type dict"),
        ({"target_modules": {"a": {"shape": "22"}}}, "target_modules.a: shape is '22', not of type tuple"),
        ({"target_modules": {"a": {"shape": [2, 2], "bias": 1}}}, "target_modules.a: bias is 1, not of type bool"),
        ({"training": ["x"]}, "training is .*, not of type dict"),
        ({"base_model_name_or_path": 5}, "base_model_name_or_path is 5, not of type str"),
        ({"rank": True}, "rank is True, not of type int"),
    ):
        before = (saved / "adapter_config.json").read_bytes()
        edit_config(saved, **settings)
        refuses(saved, wrong)
        (saved / "adapter_config.json").write_bytes(before)


def test_missing_unexpected_and_misshapen_keys(saved):
    key = "mapping.fc0.mul_out"
    edit_weights(saved, lambda t: t.update(extra=t.pop(key)))
    refuses(saved, f"does not fit its config: missing {key}; unexpected extra")
    edit_weights(saved, lambda t: t.update({key: t.pop("extra")[:-1]}))
    refuses(saved, rf"{key} is \(15, 1\) instead of \(16, 1\)")


def test_bad_options():
    spec = {"conv": asdict(LayerSpec((4, 4, 3, 3)))}
    with pytest.raises(ValueError, match="rank=-1"):
        LeFTAdapter(target_modules=spec, rank=-1)
    with pytest.raises(ValueError, match="unknown placement 'mid'; known: post_demod, pre_demod"):
        DomainVectorAdapter(target_modules=spec, placement="mid")


def test_saving_leaves_no_trace_of_a_failure(saved, mobile, monkeypatch):
    before = {p.name: p.read_bytes() for p in saved.iterdir()}

    def fail(*args, **kwargs):
        raise OSError("disk full")

    monkeypatch.setattr("fewshot_gan.adapters.io.save_file", fail)
    with pytest.raises(OSError, match="disk full"):
        LeFTAdapter.for_model(mobile, rank=2).save_pretrained(saved)
    assert {p.name: p.read_bytes() for p in saved.iterdir()} == before


# ------------------------------------------------------------------------------------------- kinds: what makes each one


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


def test_every_parameter_belongs_to_one_adaptable_layer(make_generator):
    generator = make_generator()
    owned = [p for _, layer in adaptable_layers(generator) for p in layer.stored() if p is not None]
    assert len({id(p) for p in owned}) == len(owned)
    assert {id(p) for p in owned} == {id(p) for p in generator.parameters()}


# -------------------------------------------------------------------- the bank: rows, cache, fusing, names, schedules


def convolutions(generator, run):
    """How often a convolution runs during `run()`."""
    calls = []
    real = F.conv2d, F.conv_transpose2d, F.unfold  # the last of maps so small that a product does it
    wrap = [lambda x, w, *a, f=f, **k: (calls.append(1), f(x, w, *a, **k))[1] for f in real]
    F.conv2d, F.conv_transpose2d, F.unfold = wrap
    try:
        run()
    finally:
        F.conv2d, F.conv_transpose2d, F.unfold = real
    return len(calls)


def test_domain_vectors_cost_no_convolution_and_weights_one_per_look(make_generator, perturbed):
    generator = make_generator()
    bank, z = AdapterBank(generator), latents(8)
    for seed, name in enumerate(("v1", "v2", "v3")):
        options = {"parametrization": "output"} if name == "v3" else {}
        bank.add(name, perturbed(DomainVectorAdapter.for_model(generator, **options), seed))
    for seed, name in enumerate(("w1", "w2")):
        bank.add(name, perturbed(LeFTAdapter.for_model(generator, roles=("conv",)), seed))
    layers = sum(layer.role in ("conv",) for _, layer in adaptable_layers(generator))

    def count(names):
        looks = [{} if n is None else {n: 1.0} for n in names]
        looks = [looks[i] for i in bank.row_order(looks)]
        return convolutions(generator, lambda: batch_of(bank, generator, z, looks))

    one = count([None] * 8)
    assert count(["v1", None, "v2", "v1", "v3", None, "v2", "v3"]) == one
    # scattered rows of two weight adapters and the base: two more convolutions per adapted layer, not eight
    assert count(["w1", None, "w2", "w1", "v1", "w2", "w1", "v2"]) == one + 2 * layers


@torch.no_grad()
def test_effective_weights_are_kept_bounded_and_freed(make_generator, perturbed, monkeypatch):
    generator = make_generator()
    bank = AdapterBank(generator)
    for seed in range(6):
        bank.add(f"a{seed}", perturbed(LeFTAdapter.for_model(generator), seed))
    computed = []
    real = LayerBlend._compute
    monkeypatch.setattr(LayerBlend, "_compute", lambda self, w, b: (computed.append(1), real(self, w, b))[1])
    layers = len(bank.adapters["a0"].config.target_modules)

    def runs(name):
        computed.clear()
        bank.activate({name: 1.0})
        generator(latents())
        return len(computed)

    for name in bank.adapters:  # as load_adapter does: active once, before anything is drawn
        bank.activate({name: 1.0})
    assert runs("a0") == layers and runs("a1") == layers
    assert runs("a0") == 0 == runs("a1")  # switching back computes nothing
    one = bank.cached_bytes() / 2
    numbers = sum(p.numel() for p in generator.parameters())
    energies = sum(m.weight[:, :, 0, 0].numel() for _, m in adaptable_layers(generator) if m.demodulation == "runtime")
    assert 0 < one <= 4 * (numbers + energies)
    for limit in (2.5, 0.0):
        bank.cache_bytes = limit * one
        for _ in range(2):
            for name in bank.adapters:
                runs(name)
                assert bank.cached_bytes() <= (limit + 1.01) * one  # the limit, and the acting one
        assert runs("a0") == layers  # pushed out meanwhile
    mixed = [{name: 1.0} for name in bank.adapters]
    batch_of(bank, generator, latents(len(mixed)), mixed)
    assert bank.cached_bytes() <= 1.01 * one  # the rest went when the batch was done
    bank.cache_bytes = 100 * one
    for name in bank.adapters:
        runs(name)
    before = bank.cached_bytes()
    bank.activate({})
    bank.remove("a0")
    assert bank.cached_bytes() == pytest.approx(before - one)
    for name in list(bank.adapters):
        bank.remove(name)
    assert bank.cached_bytes() == 0 == len(bank._cache)


@torch.no_grad()
def test_looks_share_the_layers_in_which_they_agree(make_generator, perturbed, monkeypatch):
    generator = make_generator()
    bank = AdapterBank(generator)
    bank.add("a", perturbed(LeFTAdapter.for_model(generator), 1))
    bank.add("d", perturbed(DomainVectorAdapter.for_model(generator), 2))
    bank.activate({"a": 1.0})
    generator(latents())
    alone = bank.cached_bytes()
    for step in range(5):  # a slider of the domain vector beside a fixed LeFT
        bank.activate({"a": 1.0, "d": step / 4 + 0.1})
        generator(latents())
    linear = sum(layer.role in ("mapping", "affine") for _, layer in adaptable_layers(generator))
    blends = {id(generator.get_submodule(path).adaptation) for path in bank.adapters["a"].config.target_modules}
    bank.activate({"a": 1.0})
    shared = blends & {
        id(generator.get_submodule(path).adaptation) for path in bank.adapters["a"].config.target_modules
    }
    assert len(shared) >= linear and bank.cached_bytes() < 6 * alone
    monkeypatch.setattr("fewshot_gan.adapters.bank.CACHE_LAYERS", 1000)
    for step in range(300):  # no list of looks that grows for ever
        bank.activate({"a": step / 100})
    assert 900 < len(bank._cache) <= 1000 < 300 * len(bank.adapters["a"].config.target_modules)


@torch.no_grad()
def test_what_is_kept_notices_every_change(make_generator, perturbed):
    generator = make_generator()
    bank, adapter = AdapterBank(generator), perturbed(LeFTAdapter.for_model(generator))
    bank.add("a", adapter)
    bank.activate({"a": 1.0})
    seen = [generator(latents())]
    next(adapter.parameters()).add_(0.5)  # the adapter
    seen.append(generator(latents()))
    generator.mapping.fc0.weight.mul_(1.5)  # the base
    seen.append(generator(latents()))
    generator.load_state_dict({k: v * 1.01 if v.ndim else v for k, v in generator.state_dict().items()})
    seen.append(generator(latents()))
    fresh = AdapterBank(generator)
    fresh.add("a", _unbound(adapter))
    fresh.activate({"a": 1.0})
    assert torch.equal(generator(latents()), seen[-1])
    assert all(not torch.allclose(a, b, atol=1e-4) for a, b in zip(seen, seen[1:], strict=False))
    assert generator.half()(latents().half()).dtype == torch.float16


def test_kept_weights_do_not_cut_gradients(make_generator, perturbed):
    generator = make_generator()
    bank = AdapterBank(generator)
    bank.add("a", perturbed(LeFTAdapter.for_model(generator)).requires_grad_(False))
    bank.activate({"a": 1.0})
    with torch.no_grad():
        generator(latents())
    for _ in range(2):  # the base is trainable: nothing kept may stand between it and the loss
        generator.zero_grad()
        generator(latents()).square().mean().backward()
        assert generator.synthesis.b8.conv0.affine.weight.grad.abs().sum() > 0
    generator.requires_grad_(False)
    with torch.inference_mode():
        generator(latents())
    z = latents().requires_grad_(True)
    generator(z).square().mean().backward()
    assert z.grad.abs().sum() > 0


def test_fusing_refuses_what_would_need_the_originals(make_generator, perturbed):
    generator = make_generator()
    bank = AdapterBank(generator)
    with pytest.raises(ValueError, match="no adapter is active, so there is nothing to fuse"):
        bank.fuse()
    with pytest.raises(ValueError, match="no adapter is fused; fuse_adapters comes first"):
        bank.unfuse()
    bank.add("a", perturbed(LeFTAdapter.for_model(generator)))
    bank.activate({"a": 1.0})
    bank.fuse()
    other = LeFTAdapter(target_modules=bank.adapters["a"].config.target_modules)
    for action in (
        bank.fuse,
        lambda: bank.activate({}),
        lambda: bank.enable(False),
        lambda: bank.remove("a"),
        lambda: bank.add("b", other),
        lambda: bank.using({}).__enter__(),
    ):
        with pytest.raises(ValueError, match="cannot .* while 'a' is fused; call unfuse_adapters first"):
            action()
    bank.unfuse()
    bank.activate({})


def test_schedules_follow_the_resolution(make_generator, perturbed):
    generator = make_generator()
    bank = AdapterBank(generator)
    bank.add("a", perturbed(LeFTAdapter.for_model(generator)))
    paths = bank.adapters["a"].config.target_modules
    sizes = {path: generator.layer_resolution(path) for path in paths}
    assert {0, 4, 8, 16} <= set(sizes.values()) <= {0, 4, 8, 16, 32}
    bank.activate({"a": {"coarse": 0.0, 16: 1.0}})
    for path, layer in adaptable_layers(generator):
        assert (layer.adaptation is not None) == (path in sizes and sizes[path] >= 16)
    bank.activate({"a": {0: 0.25, 4: 0.5, "middle": 2.0}})
    for path, size in sizes.items():
        ((_, alpha),) = generator.get_submodule(path).adaptation.parts
        assert alpha == (0.25 if size == 0 else 0.5 if size < 16 else 2.0)
    bank.activate({"a": {8: 0.5, 32: 1.0}})  # below the lowest entry: as there
    assert generator.mapping.fc0.adaptation.parts[0][1] == 0.5
    for bad, message in (
        ({"huge": 1.0}, "'huge' in the weights of adapter 'a' is no resolution"),
        ({-4: 1.0}, "-4 in the weights"),
        ({}, "schedule of adapter 'a' is empty"),
        ({4: float("nan")}, "weight nan of adapter 'a' is no finite number"),
        ("0.5", "weight '0.5' of adapter 'a' is no finite number"),
        (True, "weight True"),
    ):
        with pytest.raises(ValueError, match=message):
            bank.activate({"a": bad})


def test_names_and_numbers_that_are_refused(mobile):
    bank = AdapterBank(mobile)
    adapter = LeFTAdapter.for_model(mobile)
    for name in ("", "../x", "a/b", ".hidden", "__base__"):
        with pytest.raises(ValueError, match="cannot be that of a folder|names the unadapted"):
            bank.add(name, adapter)
    bank.add("a", adapter)
    with pytest.raises(ValueError, match="an adapter 'a' is already loaded; give this one another adapter_name"):
        bank.add("a", LeFTAdapter.for_model(mobile))
    bad = LeFTAdapter.for_model(mobile)
    with torch.no_grad():
        bad.mapping.fc0.mul_out[0] = float("nan")
    with pytest.raises(ValueError, match="adapter 'b': mapping.fc0.mul_out has NaN or infinite numbers"):
        bank.add("b", bad)
    assert list(bank.adapters) == ["a"]


def test_nan_in_a_file(saved):
    edit_weights(saved, lambda t: t["mapping.fc0.mul_out"].fill_(float("inf")))
    refuses(saved, "mapping.fc0.mul_out has NaN or infinite numbers.*train again with a lower learning rate")


def test_a_damaged_ticket(mobile, tmp_path):
    TicketAdapter.for_model(mobile, masks=half_masks(mobile, 0), keep_values=True).save_pretrained(tmp_path)
    path = next(iter(half_masks(mobile, 0)))
    edit_weights(tmp_path, lambda t: t[f"{path}.mask"].fill_(255))
    refuses(tmp_path, f"the mask of {path} keeps 2304 weights but .* values are stored")


def test_variants_and_collections(mobile, perturbed, tmp_path):
    adapter = perturbed(LeFTAdapter.for_model(mobile))
    adapter.save_pretrained(tmp_path / "a", variant="half")
    assert sorted(p.name for p in (tmp_path / "a").iterdir()) == [
        "adapter_config.json",
        "adapter_model.half.safetensors",
    ]
    refuses(tmp_path / "a", "has no adapter_model.safetensors", FileNotFoundError)
    assert_same(Adapter.from_pretrained(tmp_path / "a", variant="half").state_dict(), adapter.state_dict())
    with pytest.raises(ValueError, match="variant='../x' is no plain word"):
        adapter.save_pretrained(tmp_path / "a", variant="../x")
    adapter.save_pretrained(tmp_path / "b")
    refuses(tmp_path, "holds several adapters: a, b; choose one with subfolder='a', or load them all")
    assert_same(Adapter.from_pretrained(tmp_path, subfolder="b").state_dict(), adapter.state_dict())


@torch.no_grad()
def test_an_interrupted_fuse_can_be_undone(make_generator, perturbed, monkeypatch):
    generator = make_generator()
    bank, source = AdapterBank(generator), weights_of(generator)
    bank.add("a", perturbed(LeFTAdapter.for_model(generator)))
    bank.activate({"a": 1.0})
    want, calls = generator(latents()), []
    real = torch.Tensor.copy_

    def interrupted(self, other, *args):
        calls.append(1)
        if len(calls) == 9:
            raise KeyboardInterrupt
        return real(self, other, *args)

    monkeypatch.setattr(torch.Tensor, "copy_", interrupted)
    with pytest.raises(KeyboardInterrupt):
        bank.fuse()
    monkeypatch.undo()
    assert any(not torch.equal(v, source[k]) for k, v in generator.state_dict().items())
    bank.unfuse()
    assert_same(weights_of(generator), source)
    assert torch.equal(generator(latents()), want)
    bank.fuse()
    generator.load_state_dict({k: v + 1 for k, v in generator.state_dict().items()})
    with pytest.raises(ValueError, match="written to while adapters were fused.*load the base again"):
        bank.unfuse()


@torch.no_grad()
def test_autocast_leaves_nothing_behind(make_generator, perturbed):
    generator = make_generator()
    bank = AdapterBank(generator)
    bank.add("a", perturbed(LeFTAdapter.for_model(generator)))
    bank.activate({"a": 1.0})
    with torch.autocast("cpu", torch.bfloat16):
        generator(latents())
    fresh = AdapterBank(make_generator())
    fresh.add("a", bank.adapters["a"])
    fresh.activate({"a": 1.0})
    assert torch.equal(generator(latents()), fresh.model(latents()))


@torch.no_grad()
def test_two_banks_of_one_generator_do_not_mix(make_generator, perturbed):
    generator = make_generator()
    first, want = AdapterBank(generator), None
    base = generator(latents())
    first.add("a", perturbed(LeFTAdapter.for_model(generator)))
    first.activate({"a": 1.0})
    want = generator(latents())
    second = AdapterBank(generator)
    assert torch.equal(generator(latents()), base)  # the second one took over, with nothing active
    with first.using({"a": 1.0}):  # as each call of a pipeline does
        assert torch.equal(generator(latents()), want)
    assert torch.equal(generator(latents()), base)
    second.activate({})
    assert torch.equal(generator(latents()), base)
    with first.using({"a": 1.0}):
        with first.using({}):
            assert torch.equal(generator(latents()), base)
        assert torch.equal(generator(latents()), want)
        first.activate({})  # holds after the block
        assert torch.equal(generator(latents()), want)
    assert torch.equal(generator(latents()), base)


def test_fingerprint_of_weights_that_no_half_holds():
    torch.manual_seed(0)
    size = {"z_dim": 16, "w_dim": 16, "num_mapping_layers": 2}
    generator = MobileStyleGANGenerator((16, 16, 16), **size)
    want = fingerprint(generator)
    assert want == fingerprint(MobileStyleGANGenerator((16, 16, 16), **size), generator.state_dict())
    assert fingerprint(generator.half()) == want


def test_adapters_of_a_discriminator(discriminator, perturbed):
    bank, pictures = AdapterBank(discriminator), torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        base = discriminator(pictures)
        for seed, cls in enumerate((LeFTAdapter, AdaFMAdapter, DomainVectorAdapter, FullAdapter, GANMemoryAdapter)):
            bank.add(cls.__name__, perturbed(cls.for_model(discriminator), seed))
            bank.activate({cls.__name__: {"coarse": 0.5, 16: 1.0}})
            assert (discriminator(pictures) - base).abs().max() > 1e-4
        bank.activate({})
        assert torch.equal(discriminator(pictures), base)


def damage(folder, **changes):
    """Refusals name the file and end in one line."""
    before = (folder / "adapter_config.json").read_text(encoding="utf-8")
    config = json.loads(before)
    for key, value in changes.items():
        config[key] = value(config.get(key)) if callable(value) else value
    (folder / "adapter_config.json").write_text(json.dumps(config), encoding="utf-8")
    with pytest.raises(ValueError) as error:
        Adapter.from_pretrained(folder)
    (folder / "adapter_config.json").write_text(before, encoding="utf-8")
    assert "adapter_config.json" in str(error.value) or "holds an adapter of type" in str(error.value)
    assert len(str(error.value).splitlines()) == 1
    return str(error.value)


def test_damaged_configs_name_their_file(saved, mobile, tmp_path):
    for version in (True, -3, 1.5, "1", None):
        assert "format_version is" in damage(saved, format_version=version)
    damage(saved, adapter_type=["left"])
    damage(saved, rank=0)
    damage(saved, rank=1.5)
    damage(saved, target_modules={})
    for shape in ([1e30, 2], [10**30, 2], "x", [-1, 2], [2]):
        damage(saved, target_modules={"mapping.fc0": {"shape": shape, "bias": True, "role": "mapping"}})
    (saved / "adapter_config.json").write_text("[" * 100_000, encoding="utf-8")
    with pytest.raises(ValueError, match="adapter_config.json is damaged"):
        Adapter.from_pretrained(saved)


def test_a_huge_shape_allocates_nothing(saved):
    damage_free = {"mapping.fc0": {"shape": [1_000_000, 1_000_000], "bias": True, "role": "mapping"}}
    edit_config(saved, target_modules=damage_free, rank=None)
    refuses(saved, "does not fit its config: .*missing mapping.fc0.beta")  # 8 TB had it been built


def test_damaged_blends(mobile, perturbed, tmp_path):
    bank = AdapterBank(mobile)
    for seed, name in enumerate("ab"):
        bank.add(name, perturbed(LeFTAdapter.for_model(mobile, target_modules=["mapping.*"]), seed))
    bank.blend({"a": 0.5, "b": 0.5}).save_pretrained(tmp_path)
    assert Adapter.from_pretrained(tmp_path).config.base_fingerprint == fingerprint(mobile)

    def first(changed):
        return lambda weights: [dict.fromkeys(weights[0], changed), weights[1]]

    assert "is no finite number" in damage(tmp_path, weights=first(float("nan")))
    for changed in (None, "x", [1], True):
        assert "not of type list[dict[str, float]]" in damage(tmp_path, weights=first(changed))
    assert "name other layers" in damage(tmp_path, weights=lambda w: [{}, w[1]])
    assert "one set of weights per part" in damage(tmp_path, weights=lambda w: w[:1])
    assert "a part is of type 'lora'" in damage(tmp_path, parts=lambda p: [{**p[0], "adapter_type": "lora"}, p[1]])
    damage(tmp_path, parts=["left", "left"])
    outer = {"mapping.fc0": {"shape": [16, 16], "bias": True, "role": "mapping", "demodulation": "none"}}
    assert "are not those of its parts" in damage(tmp_path, target_modules=outer)


def test_a_blend_keeps_the_first_known_base(mobile):
    bank = AdapterBank(mobile)
    bank.add("a", _unbound(LeFTAdapter.for_model(mobile)))
    bank.add("b", LeFTAdapter.for_model(mobile, base_model_name_or_path="me/faces"))
    config = bank.blend({"a": 1.0, "b": 1.0}).config
    assert config.base_fingerprint == fingerprint(mobile) and config.base_model_name_or_path == "me/faces"


def test_specs_must_match_the_layers(mobile):
    adapter = _unbound(FullAdapter.for_model(mobile))
    path, spec = next((p, s) for p, s in adapter.config.target_modules.items() if s["role"] == "conv")
    for change in ({"bias": True}, {"demodulation": "none"}, {"role": "depthwise"}):
        with pytest.raises(ValueError, match=f"it adapts {path} of shape .*, here conv with bias False"):
            AdapterBank(mobile).add("x", FullAdapter(target_modules={path: {**spec, **change}}))


def test_stored_types_must_match(saved):
    key = "mapping.fc0.mul_out"
    edit_weights(saved, lambda t: t.update({key: t[key].long()}))
    refuses(saved, f"{key} is of torch.int64 instead of torch.float32")
    edit_weights(saved, lambda t: t.update({key: t[key].float(), f"base_model.model.{key}": t[key].float()}))
    refuses(saved, f"{key} twice")


def test_options_that_are_no_lists(mobile):
    with pytest.raises(ValueError, match=r"roles='conv': give a list"):
        LeFTAdapter.for_model(mobile, roles="conv")
    with pytest.raises(ValueError, match=r"target_modules='synthesis.\*': give a list"):
        LeFTAdapter.for_model(mobile, target_modules="synthesis.*")
    with pytest.raises(ValueError, match=r"modules_to_save='synthesis.b8': give a list"):
        AdaFMAdapter.for_model(mobile, modules_to_save="synthesis.b8")
    with pytest.raises(ValueError, match="rank=True"):
        LeFTAdapter.for_model(mobile, rank=True)


def test_weights_of_every_number_type(mobile, perturbed):
    import numpy as np

    bank = AdapterBank(mobile)
    bank.add("a", perturbed(LeFTAdapter.for_model(mobile)))
    for look in ({"a": np.float32(0.5)}, {"a": {"4": np.int64(1), np.int64(16): 0.5}}):
        bank.activate(look)
    ((_, alpha),) = mobile.get_submodule("synthesis.b16.conv0.conv").adaptation.parts
    assert alpha == 0.5
    for look in ({"a": 10**400}, {"a": {64: 0.0, "fine": 1.0}}, {"a": {4: 0.0, "4": 1.0}}, {5: 1.0}, {"__base__": 1.0}):
        with pytest.raises(ValueError, match="no finite number|twice|is not loaded|is the generator without"):
            bank.activate(look)
