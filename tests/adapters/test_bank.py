"""The bank: names, rows of a batch, cached weights, fusing, schedules, and bases that do not fit."""

import json

import pytest
import torch
from helpers.adapter_kinds import assert_same, batch_of, convolutions, latents, unbound, weights_of

from fewshot_gan import FewShotGAN
from fewshot_gan.adapters import (
    AdaFMAdapter,
    AdapterBank,
    DomainVectorAdapter,
    FullAdapter,
    GANMemoryAdapter,
    LeFTAdapter,
    fingerprint,
)
from fewshot_gan.adapters.bank import LayerBlend
from fewshot_gan.models import MobileStyleGANGenerator
from fewshot_gan.models.layers import adaptable_layers


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
    fresh.add("a", unbound(adapter))
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


def test_a_blend_keeps_the_first_known_base(mobile):
    bank = AdapterBank(mobile)
    bank.add("a", unbound(LeFTAdapter.for_model(mobile)))
    bank.add("b", LeFTAdapter.for_model(mobile, base_model_name_or_path="me/faces"))
    config = bank.blend({"a": 1.0, "b": 1.0}).config
    assert config.base_fingerprint == fingerprint(mobile) and config.base_model_name_or_path == "me/faces"


@pytest.mark.parametrize("move", ["dtype", "device"])
def test_a_fused_pipeline_may_be_cast_and_unfused(mobile, perturbed, move):
    pipe = FewShotGAN(mobile)
    before = pipe(1, seed=0, output_type="pt").images
    pipe.load_adapter(perturbed(LeFTAdapter.for_model(mobile)), "a")
    pipe.fuse_adapters()
    if move == "dtype":
        pipe.to(torch.float64)
    else:  # as a move to another device: every tensor has another place
        with pipe.bank.moving():
            pipe.generator._apply(lambda tensor: tensor.clone())
    pipe.unfuse_adapters()
    pipe.set_adapters([])
    after = pipe(1, seed=0, output_type="pt").images
    torch.testing.assert_close(after.float(), before, rtol=0, atol=1e-5)
    pipe.set_adapters("a")
    pipe.fuse_adapters()
    with torch.no_grad():
        for parameter in mobile.parameters():
            parameter.mul_(2)
    pipe.to(torch.float32)
    with pytest.raises(ValueError, match="the weights were written to while adapters were fused"):
        pipe.unfuse_adapters()


def test_a_saved_blend_says_that_it_holds_a_person(mobile, tmp_path):
    pipe = FewShotGAN(mobile)
    pipe.load_adapter(LeFTAdapter.for_model(mobile), "a")
    pipe.load_adapter(LeFTAdapter.for_model(mobile, latents_shape=[1, mobile.w_dim]), "me")
    pipe.add_weighted_adapter(["me", "a"], [0.7, 1.0], "both")
    pipe.save_adapter(tmp_path, "both")
    parts = json.loads((tmp_path / "adapter_config.json").read_text(encoding="utf-8"))["parts"]
    assert [bool(part.get("latents_shape")) for part in parts] == [True, False]


def test_a_state_dict_gets_a_name_that_is_free(mobile):
    pipe = FewShotGAN(mobile)
    adapter = LeFTAdapter.for_model(mobile)
    given = adapter.state_dict(), adapter.stored_config()
    for _ in range(3):
        pipe.load_adapter(given)
    pipe.delete_adapters("default_0")
    pipe.load_adapter(given)
    assert list(pipe.bank.adapters) == ["default_1", "default_2", "default_3"]


def cast_pipelines(order):
    """Two pipelines of one generator in bfloat16, cast in one of the ways there are."""
    torch.manual_seed(0)
    pipe = FewShotGAN(MobileStyleGANGenerator((16, 16, 16), z_dim=16, w_dim=16, num_mapping_layers=2))
    adapter = LeFTAdapter.for_model(pipe.generator)  # knows the fingerprint of the float32 weights
    if order == "by from_pipe":
        return adapter, pipe, FewShotGAN.from_pipe(pipe, dtype=torch.bfloat16)
    if order == "before":
        pipe.to(torch.bfloat16)
    other = FewShotGAN.from_pipe(pipe)
    if order == "by one":
        pipe.to(torch.bfloat16)
    if order in ("before", "while fused"):
        pipe.load_adapter(unbound(LeFTAdapter.for_model(pipe.generator)), "fused")
        pipe.fuse_adapters()
        if order == "while fused":
            other.to(torch.bfloat16)
        pipe.unfuse_adapters()
    return adapter, pipe, other


@pytest.mark.parametrize("order", ["by from_pipe", "by one", "before", "while fused"])
def test_pipelines_of_one_generator_know_its_fingerprint_after_a_cast(order):
    adapter, *pipes = cast_pipelines(order)
    for i, pipe in enumerate(pipes):
        assert pipe.dtype == torch.bfloat16
        pipe.load_adapter(adapter, f"look-{i}")


def test_a_schedule_that_is_refused_changes_nothing(mobile, perturbed, monkeypatch):
    pipe = FewShotGAN(mobile)
    pipe.load_adapter(perturbed(LeFTAdapter.for_model(mobile)), "a")
    want = pipe(1, seed=0, output_type="pt").images
    monkeypatch.setattr(type(mobile), "layer_resolution", None)  # a plugin's generator may have no depth
    with pytest.raises(ValueError, match="has no depth to schedule weights over; give one number"):
        pipe.set_adapters("a", {"coarse": 0.0, "fine": 1.0})
    assert pipe.active_adapters() == ["a"] and torch.equal(pipe(1, seed=0, output_type="pt").images, want)


def test_an_adapter_of_another_base_is_named_when_many_are_loaded(mobile, tmp_path):
    adapter = unbound(LeFTAdapter.for_model(mobile))
    adapter.register_to_config(base_model_name_or_path="me/other")
    adapter.save_pretrained(tmp_path / "looks" / "a")
    pipe = FewShotGAN(mobile)
    pipe.save_pretrained(tmp_path / "base")
    pipe = FewShotGAN.from_pretrained(tmp_path / "base")
    with pytest.warns(UserWarning, match="adapter 'a' says that it was made for 'me/other'"):
        pipe.load_adapters(tmp_path / "looks")


def test_weights_of_another_adapter_do_not_stay_as_a_variant(mobile, perturbed, tmp_path):
    pipe = FewShotGAN(mobile)
    pipe.load_adapter(perturbed(LeFTAdapter.for_model(mobile)), "old")
    pipe.save_adapter(tmp_path, "old", variant="fp16")
    pipe.save_adapter(tmp_path, "old")
    assert (tmp_path / "adapter_model.fp16.safetensors").is_file()  # of the same adapter
    pipe.load_adapter(LeFTAdapter.for_model(mobile, rank=2), "new")
    pipe.save_adapter(tmp_path, "new")
    assert [file.name for file in tmp_path.glob("*.safetensors")] == ["adapter_model.safetensors"]
