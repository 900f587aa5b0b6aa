"""SNGAN, BigGAN, GP-GAN: published sizes, classes, spectral normalisation, and adapters as on any other base."""

from dataclasses import asdict

import pytest
import torch
from torch.nn.utils import parametrizations

from fewshot_gan.adapters import (
    AdaFMAdapter,
    AdapterBank,
    DomainVectorAdapter,
    FullAdapter,
    GANMemoryAdapter,
    LayerSpec,
    LeFTAdapter,
    TicketAdapter,
    fingerprint,
)
from fewshot_gan.hub.cards import write_base_card
from fewshot_gan.methods.adafm import split_generator
from fewshot_gan.models import (
    BigGANDiscriminator,
    BigGANGenerator,
    GPGANDiscriminator,
    GPGANGenerator,
    SNGANDiscriminator,
    SNGANGenerator,
    TailoredGenerator,
)
from fewshot_gan.models.biggan import biggan_config
from fewshot_gan.models.gp_gan import gp_gan_config
from fewshot_gan.models.layers import adaptable_layers
from fewshot_gan.models.plain import Conv2d, Layer
from fewshot_gan.models.spectral import spectral_norm
from fewshot_gan.models.tailored import AdaIN, ScaleMatcher
from fewshot_gan.pipeline import FewShotGAN


def tiny(name):
    """Networks of 16 px (GP-GAN: 8) and few channels, with parameters away from their starting values."""
    torch.manual_seed(0)
    small = {"block_channels": (16, 8), "attention_after": 1, "num_classes": 3}
    model = {
        "SNGANGenerator": lambda: SNGANGenerator(8, 6, 16),
        "SNGANDiscriminator": lambda: SNGANDiscriminator(8, 16),
        "BigGANGenerator": lambda: BigGANGenerator((16, 16, 8), 1, chunk_dim=3, shared_dim=4, num_classes=3),
        "BigGANDiscriminator": lambda: BigGANDiscriminator(**small, down=(True, False), resolution=16),
        "TailoredGenerator": lambda: TailoredGenerator((8, 4), 1, 3, 1, 6, 5, 2, gain=3.0),
        "GPGANGenerator": lambda: GPGANGenerator((8, 8, 4), num_classes=3, z_dim=6, embedding_dim=4),
        "GPGANDiscriminator": lambda: GPGANDiscriminator((8, 8, 4), num_classes=3),
    }[name]()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape) * 0.1)
        for module in model.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.running_mean.normal_(0, 0.1)
                module.running_var.uniform_(0.5, 1.5)
    return model.eval()


GENERATORS = ("SNGANGenerator", "BigGANGenerator", "GPGANGenerator", "TailoredGenerator")
DISCRIMINATORS = ("SNGANDiscriminator", "BigGANDiscriminator", "GPGANDiscriminator")


def given(model, batch=4):
    g = torch.Generator().manual_seed(1)
    labels = None if model.num_classes is None else torch.arange(batch) % model.num_classes
    if hasattr(model, "z_dim"):
        return torch.randn(batch, model.z_dim, generator=g), labels
    return torch.randn(batch, 3, model.resolution, model.resolution, generator=g), labels


def count(model):
    return sum(p.numel() for p in model.parameters())


# lottery.md §4 and §6, adafm.md §1; BigGAN 128 as its own repository prints it
SIZES = [
    (SNGANGenerator, {}, 4_276_739, 3_742_464),
    (SNGANDiscriminator, {}, 1_053_824, 1_052_416),
    (BigGANGenerator, biggan_config(32, "generator"), 9_416_196, 8_599_680),
    (BigGANDiscriminator, biggan_config(32, "discriminator"), 2_415_170, 2_411_136),
    (BigGANGenerator, biggan_config(64, "generator"), 49_067_844, 46_852_320),
    (BigGANDiscriminator, biggan_config(64, "discriminator"), 60_131_042, 59_864_000),
    (BigGANGenerator, biggan_config(128, "generator"), 70_433_988, None),
    (BigGANDiscriminator, biggan_config(128, "discriminator"), 87_982_370, None),
    (GPGANGenerator, gp_gan_config(128, "generator"), 100_535_747, None),
    (GPGANDiscriminator, gp_gan_config(128, "discriminator"), 108_260_776, None),
    (GPGANGenerator, gp_gan_config(256, "generator"), 52_161_732, None),
]


@pytest.mark.parametrize(("cls", "config", "total", "convolutions"), SIZES)
def test_published_sizes(cls, config, total, convolutions):
    with torch.device("meta"):
        model = cls(**config)
    layers = [layer.stored() for _, layer in adaptable_layers(model)]
    assert count(model) == total
    assert sum(p.numel() for stored in layers for p in stored if p is not None) == total  # each has its one layer
    if convolutions is not None:
        assert sum(weight.numel() for weight, _ in layers if weight.ndim == 4) == convolutions


def test_sizes_of_what_is_modulated():
    def adapter_of(kind, model, paths):
        layers = dict(adaptable_layers(model))
        return kind(target_modules={path: asdict(LayerSpec.of(layers[path])) for path in paths}).num_values()

    with torch.device("meta"):  # nothing is allocated
        imagenet, celeba = (GPGANGenerator(**gp_gan_config(size, "generator")) for size in (128, 256))
        modulated, specific = split_generator(imagenet, 4)
        assert len(modulated) == 12 and adapter_of(AdaFMAdapter, imagenet, modulated) == 860_160
        layers = dict(adaptable_layers(imagenet))
        kept = [p for path in layers if path not in specific for p in layers[path].stored() if p is not None]
        assert sum(p.numel() for p in kept) == 4_046_275
        roles = [path for path, layer in adaptable_layers(celeba) if layer.role in GANMemoryAdapter.roles]
        assert adapter_of(GANMemoryAdapter, celeba, roles) == 10_549_248


def test_tailored_sizes():
    with torch.device("meta"):
        model = TailoredGenerator()
        frozen = [n for n in split_generator(model, 4)[0] if model.is_kept(n)]
        layers = dict(adaptable_layers(model))
        modulation = AdaFMAdapter(target_modules={n: asdict(LayerSpec.of(layers[n])) for n in frozen}).num_values()
    kept = sum(p.numel() for n, p in model.named_parameters() if model.is_kept(n))
    assert (kept, count(model) - kept, modulation) == (4_046_275, 25_185_792, 860_160)  # theirs: one dead number more
    # each parameter has its one layer
    assert sum(p.numel() for _, x in adaptable_layers(model) for p in x.stored() if p is not None) == count(model)


def test_tailored_keeps_the_sources_last_groups():
    torch.manual_seed(0)
    source = GPGANGenerator((8, 8, 8, 6, 4), num_classes=3, z_dim=6, embedding_dim=4)  # 4 to 32 px
    for kept, blocks in ((2, 2), (3, 1)):
        new = TailoredGenerator.from_source(source, kept, style_dim=5, mapping_layers=2)
        theirs, own = source.state_dict(), new.state_dict()
        same = [n for n in own if new.is_kept(n)]
        assert same and all(torch.equal(own[n], theirs[n]) for n in same)
        assert len({n.partition(".")[0] for n in same}) == kept and len(new.style_resolutions) == blocks
        assert new(torch.randn(2, 6)).shape == (2, 3, 32, 32)
    for kept in (1, 4):
        with pytest.raises(ValueError, match=f"G{kept} of a network with 4 scales: give G2 to G3"):
            TailoredGenerator.from_source(source, kept)


def test_gradients_of_style_and_matcher():  # adafm.md, test h
    torch.manual_seed(0)
    adain, style = AdaIN(4, 3), torch.randn(2, 3)
    x, over = torch.randn(2, 4, 8, 8), torch.randn(2, 4, 8, 8)

    def gradient(gamma):
        with torch.no_grad():
            adain.affine.weight.zero_()
            adain.affine.bias[:4] = gamma
        leaf = x.clone().requires_grad_()
        out = adain(leaf, style)
        adain.affine.bias.grad = None
        (out * over).sum().backward()
        return out.detach(), leaf.grad, adain.affine.bias.grad[:4].clone()

    one, five = gradient(1.0), gradient(5.0)
    assert torch.allclose(five[0], 5 * one[0], atol=1e-5)  # the value is γ n + β
    assert torch.allclose(five[1], one[1], atol=1e-6)  # γ counts as at most 1 in what goes on
    assert torch.allclose(five[2], one[2], atol=1e-4)  # γ itself learns from n
    matcher, leaf = ScaleMatcher(4, 8, 1000.0), x.clone().requires_grad_()
    (matcher(leaf) * over).sum().backward()
    again = x.clone().requires_grad_()
    (0.01 * torch.nn.functional.layer_norm(again, (8, 8)) * over).sum().backward()
    assert torch.allclose(leaf.grad, again.grad, atol=1e-6)
    with torch.no_grad():
        normal = torch.nn.functional.layer_norm(x, (8, 8))
        want = normal * (0.01 + matcher.weight[:, None, None]) + matcher.bias[:, None, None]
        assert torch.allclose(matcher(x), want, rtol=1e-5)


def test_noise_is_drawn_in_training_and_fixed_afterwards():
    model = tiny("TailoredGenerator")
    z, _ = given(model)
    with torch.no_grad():
        assert torch.equal(model(z), model(z))
        model.train()
        assert not torch.equal(model(z), model(z))


@pytest.mark.parametrize("name", GENERATORS)
def test_pictures(name):
    model = tiny(name)
    z, labels = given(model)
    images = model(z, labels)
    assert images.shape == (4, 3, model.resolution, model.resolution) and images.abs().max() <= 1
    apart = torch.cat([model(z[i : i + 1], None if labels is None else labels[i : i + 1]) for i in range(4)])
    assert torch.allclose(images, apart, atol=1e-5)  # other convolution kernels: float32 rounding
    split = model.body(model.stem(z, labels), z, labels)
    assert torch.equal(split, images)
    model.train()(z, labels).square().mean().backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in model.parameters())


@pytest.mark.parametrize("name", DISCRIMINATORS)
def test_logits(name):
    model = tiny(name)
    images, labels = given(model)
    logits = model(images, labels)
    assert logits.shape == (4, 1)
    assert torch.equal(logits, model.head(model.trunk(images), labels))
    # labels that no picture has get no gradient in GP-GAN's row of logits, so each class is there
    model.train()(images, labels).sum().backward()
    assert all(p.grad is not None for p in model.parameters())
    with pytest.raises(ValueError, match="resize them"):
        model(images[..., :-1], labels)


@pytest.mark.parametrize(
    "name", [f"{family}{part}" for family in ("BigGAN", "GPGAN") for part in ("Generator", "Discriminator")]
)
def test_classes_matter_and_bad_ones_are_refused(name):
    model = tiny(name)
    x, labels = given(model)
    assert not torch.allclose(model(x, labels), model(x, (labels + 1) % 3))
    assert torch.equal(model(x, labels), model(x, labels.to(torch.uint8)))
    for bad, message in (
        (None, "class-conditional; give class_labels, one from 0 to 2"),
        (labels[:3], r"whole numbers \[4\]"),
        (labels.float(), r"whole numbers \[4\], not torch.float32"),
        (labels > 0, "not torch.bool"),
        (labels + 1, "from 1 to 3: this network has 3 classes, give 0 to 2"),
        (labels - 1, "from -1 to 1"),
    ):
        with pytest.raises(ValueError, match=message):
            model(x, bad)


def test_a_network_without_classes_refuses_labels():
    model = tiny("SNGANGenerator")
    z, _ = given(model)
    with pytest.raises(ValueError, match="knows no classes"):
        model(z, torch.zeros(4, dtype=torch.long))
    with pytest.raises(ValueError, match=r"not z \[B, 6\]"):
        model(z[:, 1:])


@pytest.mark.parametrize("name", (*GENERATORS, *DISCRIMINATORS))
def test_saved_and_loaded(name, tmp_path):
    model = tiny(name)
    model.save_pretrained(tmp_path)
    again = type(model).from_pretrained(tmp_path).eval()
    assert torch.equal(again(*given(model)), model(*given(model)))
    assert fingerprint(again) == fingerprint(model)


@pytest.mark.parametrize("name", ("SNGANDiscriminator", "BigGANGenerator", "BigGANDiscriminator"))
def test_spectral_norm_is_one(name):
    model = tiny(name).train()
    with torch.no_grad():
        for _ in range(300):  # one power iteration each
            normalised = {path: x.weight for path, x in model.named_modules() if isinstance(x, Layer)}
    spectral = {path for path, x in model.named_modules() if getattr(x, "demodulation", "") == "spectral"}
    assert spectral and spectral >= {path for path, x in model.named_modules() if isinstance(x, Conv2d)}
    for path in spectral:
        assert torch.linalg.matrix_norm(normalised[path].flatten(1), 2) == pytest.approx(1, abs=1e-3)


def test_spectral_norm_is_torchs_and_costs_nothing_to_load(monkeypatch, tmp_path):
    torch.manual_seed(0)
    theirs = parametrizations.spectral_norm(torch.nn.Conv2d(3, 5, 3))
    torch.manual_seed(0)
    ours = spectral_norm(torch.nn.Conv2d(3, 5, 3))
    for _ in range(2):  # each use in training is one more power iteration
        assert torch.equal(ours.weight, theirs.weight)
        for key, value in theirs.state_dict().items():
            assert torch.equal(ours.state_dict()[key], value), key
    tiny("SNGANDiscriminator").save_pretrained(tmp_path)
    iterations = []
    monkeypatch.setattr(parametrizations._SpectralNorm, "_power_method", lambda *given: iterations.append(given))
    SNGANDiscriminator.from_pretrained(tmp_path)
    assert not iterations  # they took most of the time of loading, and were overwritten
    tiny("SNGANDiscriminator")
    assert iterations


@pytest.mark.parametrize("name", GENERATORS)
@pytest.mark.parametrize("kind", (FullAdapter, LeFTAdapter, TicketAdapter, DomainVectorAdapter, GANMemoryAdapter))
def test_fresh_adapters_are_the_identity(name, kind, perturbed):
    model = tiny(name)
    x = given(model)
    with torch.no_grad():
        want = model(*x)
        bank = AdapterBank(model)
        bank.add("fresh", kind.for_model(model))
        bank.add("other", perturbed(LeFTAdapter.for_model(model)))
        bank.activate({"fresh": 1.0})
        # a spectral norm taken anew, and factors whose product is 1 to float32 rounding only
        assert torch.allclose(model(*x), want, atol=1e-4)
        bank.activate({"other": 1.0})
        assert not torch.allclose(model(*x), want, atol=1e-2)
        bank.activate({})
        assert torch.equal(model(*x), want)


@pytest.mark.parametrize("name", GENERATORS)
def test_mixed_batches_equal_single_looks(name, perturbed):
    model = tiny(name)
    z, labels = given(model)
    bank = AdapterBank(model)
    bank.add("left", perturbed(LeFTAdapter.for_model(model), 0))
    bank.add("vector", perturbed(DomainVectorAdapter.for_model(model, parametrization="full"), 1, std=0.5))
    bank.add("full", perturbed(FullAdapter.for_model(model), 2))
    looks = [{"left": 1.0}, {"vector": 1.0}, {}, {"full": 0.5, "vector": 0.5}]
    with torch.no_grad():
        with bank.using_rows(looks):
            mixed = model(z, labels)
        for i, look in enumerate(looks):
            with bank.using(look):
                alone = model(z[i : i + 1], None if labels is None else labels[i : i + 1])
            assert torch.allclose(mixed[i : i + 1], alone, atol=1e-5)


@pytest.mark.parametrize("name", GENERATORS)
def test_fused_adapters_draw_the_same_and_go_without_trace(name, perturbed):
    model = tiny(name)
    x, before = given(model), fingerprint(model)
    bank = AdapterBank(model)
    bank.add("a", perturbed(LeFTAdapter.for_model(model)))
    bank.activate({"a": 1.0})
    with torch.no_grad():
        want = model(*x)
        bank.fuse()
        assert torch.allclose(model(*x), want, atol=1e-6)
        bank.unfuse()
    assert fingerprint(model) == before


def test_the_norm_of_a_masked_weight_is_taken_after_the_mask():
    """lottery.md test 4: σ is that of W ⊙ m, and what is pruned stays zero."""
    model = tiny("BigGANGenerator")
    path, layer = next((p, x) for p, x in adaptable_layers(model) if p.endswith("conv1"))
    with torch.no_grad():
        for _ in range(300):  # the base knows its own norm well, as after training
            layer.train().weight  # noqa: B018
    layer.eval()
    mask = torch.rand(layer.stored()[0].shape, generator=torch.Generator().manual_seed(0)) < 0.3
    bank = AdapterBank(model)
    bank.add("ticket", TicketAdapter.for_model(model, masks={path: mask}))
    bank.activate({"ticket": 1.0})
    with torch.no_grad():
        used = layer.normalised().weight
        masked = layer.stored()[0] * mask
    assert used[~mask].abs().max() == 0
    assert torch.linalg.matrix_norm(used.flatten(1), 2) == pytest.approx(1, abs=1e-3)
    assert torch.allclose(used, masked / torch.linalg.matrix_norm(masked.flatten(1), 2), atol=1e-3)


# ------------------------------------------------------------------------------------------------------ in a pipeline


@pytest.fixture(params=GENERATORS)
def pipe(request, perturbed):
    model = tiny(request.param)
    judge = request.param.replace("Tailored", "SNGAN").replace("Generator", "Discriminator")
    pipe = FewShotGAN(model, tiny(judge))
    pipe.bank.add("look", perturbed(LeFTAdapter.for_model(model)))
    return pipe


def drawn(pipe, num=4, **options):
    return pipe(num, class_labels=pipe.some_labels(num), output_type="pt", **options).images


def test_pipeline_draws_what_the_generator_draws(pipe):
    out = pipe(4, seed=3, class_labels=pipe.some_labels(4), output_type="pt")
    labels = pipe.some_labels(4)
    with torch.no_grad():
        want = pipe.generator(out.latents, None if labels is None else torch.tensor(labels))
    assert torch.allclose(out.images, (want + 1) / 2, atol=1e-6)
    assert torch.allclose(drawn(pipe, seed=3, batch_size=3), out.images, atol=1e-5)
    assert pipe.config.truncation_psi == 1.0


def test_pipeline_round_trip_with_adapter(pipe, tmp_path):
    look = drawn(pipe, seed=0, adapter_names="look")
    assert not torch.allclose(look, drawn(pipe, seed=0), atol=1e-2)
    pipe.save_pretrained(tmp_path / "base")
    pipe.save_adapter(tmp_path / "look", "look")
    again = FewShotGAN.from_pretrained(tmp_path / "base").load_adapter(tmp_path / "look", "look")
    assert torch.equal(drawn(again, seed=0, adapter_names="look"), look)
    images, labels = given(pipe.discriminator)
    with torch.no_grad():
        assert torch.equal(again.discriminator(images, labels), pipe.discriminator(images, labels))
    pipe.set_adapters("look")
    strip = pipe.interpolate("__base__", "look", 3, num_images=2, seed=0, class_labels=pipe.some_labels(2))
    assert len(strip.images) == 6


def test_card_of_a_base_draws_its_classes(pipe, tmp_path):
    card = write_base_card(pipe, tmp_path, "tiny").read_text(encoding="utf-8")
    assert (tmp_path / "images" / "grid.jpg").is_file()
    assert (card.count("class_labels=[0, 1, 2, 0") == 2) == (pipe.generator.num_classes is not None)


def test_truncated_z(pipe):
    z = pipe(64, seed=0, truncation_psi=0.5, class_labels=pipe.some_labels(64)).latents
    assert z.abs().max() <= 1 and 0.3 < z.std() < 0.5  # a normal cut at ±2 has standard deviation 0.88


def test_one_label_for_all_and_bad_ones():
    pipe = FewShotGAN(tiny("BigGANGenerator"))
    one, many = (pipe(3, seed=0, class_labels=labels, output_type="pt").images for labels in (2, [2, 2, 2]))
    assert torch.equal(one, many)
    assert not torch.equal(one, pipe(3, seed=0, class_labels=1, output_type="pt").images)
    for labels, message in (
        (None, "class-conditional; give class_labels"),
        (3, "has 3 classes"),
        ([0], r"numbers \[3\]"),
    ):
        with pytest.raises(ValueError, match=message):
            pipe(3, class_labels=labels)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"latent_space": "w"}, "latent_space: a SNGANGenerator starts from z alone"),
        ({"noise_mode": "none"}, "noise_mode: a SNGANGenerator"),
        ({"truncation_cutoff": 2}, "truncation_cutoff: a"),
        ({"class_labels": 0}, "knows no classes"),
        ({"latents": torch.zeros(2, 6), "truncation_psi": 0.5}, "truncation_psi of given latents: a SNGAN"),
    ],
)
def test_what_belongs_to_styles_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        FewShotGAN(tiny("SNGANGenerator"))(2, **options)


def test_a_single_class_need_not_be_named():
    torch.manual_seed(0)
    g = GPGANGenerator((8, 8, 4), num_classes=1, z_dim=6, embedding_dim=4).eval()
    z = torch.randn(2, 6)
    assert torch.equal(g(z), g(z, torch.zeros(2, dtype=torch.long)))
    assert len(FewShotGAN(g)(2, seed=0).images) == 2


def test_nothing_to_invert():
    with pytest.raises(ValueError, match="has no w to search"):
        FewShotGAN(tiny("SNGANGenerator")).invert(torch.zeros(1, 3, 16, 16))
