"""NVIDIA's StyleGAN2 in all its architectures, with and without classes: pictures and logits of an own reference.

The reference networks are those of `helpers.nvidia_networks`, which share no code with the package.
"""

from copy import deepcopy

import numpy as np
import pytest
import torch
from helpers.nvidia_networks import (
    ARCHITECTURES,
    CLASSES,
    LABELS,
    LIMIT,
    Discriminator,
    Generator,
    R,
    W,
    Z,
    converted,
    drawn,
    logit_difference,
    one_hot,
    picture_difference,
    precise,
    rounded,
    stored_generator,
)
from helpers.nvidia_pickles import EasyDict, of_module, write
from helpers.tensors import normal_source
from torch import nn

from fewshot_gan.adapters import (
    AdapterBank,
    DomainVectorAdapter,
    FullAdapter,
    LeFTAdapter,
    fingerprint,
    trainable_types,
)
from fewshot_gan.convert import ConversionError, convert_checkpoint
from fewshot_gan.models.layers import adaptable_layers
from fewshot_gan.models.stylegan2 import StyleGAN2Discriminator, StyleGAN2Generator
from fewshot_gan.pipeline import FewShotGAN

# ------------------------------------------------------------------------------------------------------- the comparison


@pytest.mark.parametrize("clamp", [None, 0.3, 1, 256])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("classes", [0, CLASSES])
def test_every_variant_equals_its_reference(tmp_path, classes, architecture, clamp):
    options = {"c_dim": classes, "architecture": architecture, "conv_clamp": clamp}
    g, d = Generator(**options), Discriminator(**options)
    networks = converted(tmp_path, g, d, "ada" if clamp != 1 else "stylegan3")
    assert isinstance(networks["generator"], StyleGAN2Generator)
    assert isinstance(networks["discriminator"], StyleGAN2Discriminator)
    for name, difference in (
        ("G", picture_difference(networks["generator"], g)),
        ("D", logit_difference(networks["discriminator"], d)),
    ):
        print(f"| nvidia | {name}, {architecture}, {classes or 'no'} classes, clamp {clamp} | {difference:.1e} |")
        assert difference < LIMIT, name
    for network, c in ((networks["generator"], g), (networks["discriminator"], d)):
        assert network.num_classes == (c.c_dim or None)
        assert (network.config.architecture, network.config.conv_clamp) == (architecture, clamp)


@pytest.mark.parametrize(("repository", "clamp"), [("ada", None), ("stylegan3", 256)])
@pytest.mark.parametrize("classes", [0, CLASSES])
def test_defaults_of_the_classes_of_both_repositories(tmp_path, repository, clamp, classes):
    """Eight mapping layers, groups of four, and nothing said: each repository has its own default clamp."""
    g = Generator(c_dim=classes, conv_clamp=clamp, layers=8)
    d = Discriminator(c_dim=classes, conv_clamp=clamp, group=4, **({"layers": 8} if classes else {}))
    networks = converted(tmp_path, g, d, repository, clamp="default")
    found = picture_difference(networks["generator"], g), logit_difference(networks["discriminator"], d)
    print(f"| nvidia | G, defaults of {repository}, {classes or 'no'} classes | {found[0]:.1e} |")
    print(f"| nvidia | D, defaults of {repository}, {classes or 'no'} classes | {found[1]:.1e} |")
    assert max(found) < LIMIT
    assert [networks[x].config.conv_clamp for x in ("generator", "discriminator")] == [clamp, clamp]
    assert networks["generator"].config.num_mapping_layers == 8


@pytest.mark.parametrize(
    ("of_g", "of_d"),
    [
        ({"embed": 3, "width": 5, "layers": 3}, {"embed": 3, "width": 5, "layers": 3, "cmap_dim": 5}),
        ({"layers": 1, "lr": 0.1, "embed": 2}, {"layers": 1, "lr": 0.1, "cmap_dim": 3}),
        ({"c_dim": 10}, {"layers": 0, "c_dim": 10}),  # D of networks that came from TensorFlow
        ({"z_dim": W}, {"group": None, "channels": 2, "frozen": 4}),
        ({"use_noise": False}, {"channels": 0}),
        ({"use_noise": False, "c_dim": 0, "architecture": "resnet"}, {"c_dim": 0, "architecture": "skip"}),
    ],
)
def test_unusual_sizes(tmp_path, of_g, of_d):
    g, d = Generator(**{"c_dim": CLASSES, **of_g}), Discriminator(**{"c_dim": CLASSES, **of_d})
    networks = converted(tmp_path, g, d)
    found = picture_difference(networks["generator"], g), logit_difference(networks["discriminator"], d)
    print(f"| nvidia | G, {of_g} | {found[0]:.1e} |\n| nvidia | D, {of_d} | {found[1]:.1e} |")
    assert max(found) < LIMIT


def test_the_reference_sees_each_rule():
    """Each of these mistakes changes its result by far more than the tolerance."""
    images, z = normal_source(101)(4, 3, R, R), normal_source(100)(4, Z)
    for make, path, inputs in (
        (lambda: Discriminator(architecture="resnet", conv_clamp=1), "b16.skip", (images, None)),
        (lambda: Discriminator(architecture="skip", conv_clamp=1), "b4.fromrgb", (images, None)),
        (lambda: Generator(architecture="resnet", conv_clamp=1), "synthesis.b16.skip", (z, None)),
    ):
        right, wrong = make(), make()
        wrong.get_submodule(path).conv_clamp = 1  # what a network with a clamp everywhere would do
        assert (precise(right, *inputs) - precise(wrong, *inputs)).abs().max() > 10 * LIMIT
    for make, inputs in ((Generator, z), (Discriminator, images)):
        network, labels = make(c_dim=CLASSES), one_hot(make(c_dim=CLASSES))
        others = labels.roll(1, 1)
        assert (precise(network, inputs, labels) - precise(network, inputs, others)).abs().max() > 1000 * LIMIT
        with torch.no_grad():
            few = precise(make(c_dim=CLASSES, conv_clamp=0.3), inputs, labels)
        assert (precise(network, inputs, labels) - few).abs().max() > 1000 * LIMIT


# ------------------------------------------------------------------------------------------- one network, other kinds


def test_a_network_alone(tmp_path):
    g = Generator(c_dim=CLASSES)
    for data in (stored_generator(g), {"G_ema": stored_generator(g)}, {"G": stored_generator(g)}):
        networks = convert_checkpoint(write(tmp_path / "x.pkl", data))
        assert set(networks) == {"generator"}
        difference = picture_difference(networks["generator"], g)
        print(f"| nvidia | G alone in its file | {difference:.1e} |")
        assert difference < LIMIT
    for data in (of_module(Discriminator()), {"D": of_module(Discriminator()), "G": None}):
        with pytest.raises(
            ConversionError, match="x.pkl holds a discriminator alone and no generator .* give the file"
        ):
            convert_checkpoint(write(tmp_path / "x.pkl", data))


class SynthesisInput(nn.Module):
    def __init__(self):
        super().__init__()
        self.size = np.broadcast_to(np.asarray(20), [2])  # arrays are among the attributes of these files
        self.register_buffer("freqs", torch.zeros(8, 2))


class TriPlaneGenerator(Generator):
    pass


def stylegan3():
    network = Generator()
    del network.synthesis
    network.synthesis = nn.ModuleDict({"input": SynthesisInput()})
    return of_module(network)


def changed(network, path, **attributes):
    for name, value in attributes.items():
        setattr(network.get_submodule(path), name, value)
    return network


def without_block(network, *names):
    for name in names:
        delattr(network, name)
    return network


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (stylegan3, "this is a StyleGAN3 generator"),
        (lambda: stored_generator(TriPlaneGenerator()), "class is 'TriPlaneGenerator'; StyleGAN2's is 'Generator'"),
        (lambda: stored_generator(Generator(c_dim=3, z_dim=0)), r"no z \(z_dim=0\): its pictures depend on the class"),
        (lambda: stored_generator(changed(Generator(), "", c_dim=3)), "c_dim=3, but no embedding of the classes"),
        (lambda: stored_generator(changed(Generator(), "", img_channels=1)), "1 image channels; only 3"),
        (
            lambda: stored_generator(changed(Generator(), "synthesis.b8", architecture="resnet")),
            "b8 has architecture 'resnet', but the layers of 'skip'; known: orig, skip, resnet",
        ),
        (
            lambda: stored_generator(changed(Generator(architecture="resnet"), "synthesis.b8.skip", conv_clamp=2)),
            "synthesis.b8.skip has conv_clamp=2; in NVIDIA's StyleGAN2 it has none",
        ),
        (
            lambda: stored_generator(changed(Generator(), "synthesis.b8.conv1", conv_clamp=2)),
            r"different conv_clamp values \(2, None\)",
        ),
        (lambda: stored_generator(Generator(conv_clamp=-1)), "conv_clamp=-1 is no number above 0"),
        (lambda: stored_generator(Generator(conv_clamp=[1])), r"conv_clamp=\[1\] is no number above 0"),
        (
            lambda: stored_generator(changed(Generator(), "mapping.fc0", activation="swish")),
            "mapping.fc0 has activation 'swish'",
        ),
    ],
)
def test_what_stays_unsupported_is_said_in_one_sentence(tmp_path, make, message):
    with pytest.raises(ConversionError, match=message) as caught:
        convert_checkpoint(write(tmp_path / "x.pkl", {"G_ema": make()}))
    assert "missing:" not in str(caught.value) and "left over:" not in str(caught.value)


@pytest.mark.parametrize("size", [4, 8, 2048])
def test_sizes_that_the_model_cannot_have(tmp_path, size):
    """A file of the right kind; only which blocks there are matters."""
    network = without_block(Generator().synthesis, "b16", *(["b8"] if size == 4 else []))
    for res in (2**i for i in range(4, size.bit_length()) if size > 16):
        setattr(network, f"b{res}", network.b8)
    whole = Generator()
    whole.synthesis = network
    with pytest.raises(ConversionError, match=f"of {size}×{size} pictures; 16×16 to 1024×1024 can be converted"):
        convert_checkpoint(write(tmp_path / "x.pkl", {"G_ema": stored_generator(whole)}))


def test_a_file_that_does_not_say_its_clamp_is_refused(tmp_path):
    g = Generator()
    for module in g.modules():
        if hasattr(module, "conv_clamp"):
            del module.conv_clamp
    with pytest.raises(ConversionError, match="does not say whether the convolutions are clamped"):
        convert_checkpoint(write(tmp_path / "x.pkl", {"G_ema": of_module(g, {"c_dim": 0})}))
    for kwargs in ({"conv_clamp": 0.3}, {"synthesis_kwargs": EasyDict(conv_clamp=0.3)}):
        networks = convert_checkpoint(write(tmp_path / "x.pkl", {"G_ema": of_module(g, kwargs)}))
        assert networks["generator"].config.conv_clamp == 0.3


def test_noise_of_strength_zero_is_said(tmp_path, caplog):
    networks = converted(tmp_path, Generator(use_noise=False))
    assert "no noise layers" in caplog.text
    noises = {name: t for name, t in networks["generator"].state_dict().items() if ".noise." in name}
    assert len(noises) == 2 * 5 and all(not t.any() for t in noises.values())
    broken = Generator()
    del broken.synthesis.b8.conv0.noise_strength  # one is missing: damage, not another kind
    with pytest.raises(ConversionError, match="missing: synthesis.b8.conv0.noise_strength"):
        converted(tmp_path, broken)


# ---------------------------------------------------------------------------------------------- the converted networks


@pytest.fixture
def pipe(tmp_path):
    networks = converted(tmp_path, Generator(c_dim=CLASSES, architecture="resnet", conv_clamp=256), Discriminator())
    return FewShotGAN(rounded(networks["generator"]), networks["discriminator"])


def test_the_pipeline_draws_classes(pipe, tmp_path):
    want = drawn(pipe)
    with torch.no_grad():
        z = pipe(4, seed=3, class_labels=LABELS).latents
        direct = pipe.generator(z, class_labels=LABELS, truncation_psi=0.7)
    assert torch.equal(want, ((direct + 1) / 2).clamp(0, 1))
    assert not torch.allclose(drawn(pipe, class_labels=2), want, atol=1e-2)
    assert torch.equal(drawn(pipe, class_labels=2), drawn(pipe, class_labels=[2] * 4))
    # batches of another size use other matrix products: float32 rounding
    assert torch.allclose(drawn(pipe, batch_size=3), want, atol=1e-5)
    parts = [x.images for x in pipe.stream(4, seed=3, class_labels=LABELS.tolist(), batch_size=2, output_type="pt")]
    assert torch.allclose(torch.cat(parts), want, atol=1e-5)
    pipe.save_pretrained(tmp_path / "base")
    again = FewShotGAN.from_pretrained(tmp_path / "base")
    assert torch.equal(drawn(again), want) and fingerprint(again.generator) == fingerprint(pipe.generator)
    assert pipe.some_labels(5) == [0, 1, 2, 3, 0]


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (None, "class-conditional; give class_labels, one from 0 to 3"),
        ([4] * 4, "from 4 to 4: this network has 4 classes, give 0 to 3"),
        ([0, 1], r"whole numbers \[4\], not torch.int64 \(2,\)"),
        ([1.5] * 4, r"whole numbers \[4\], not torch.float32"),
    ],
)
def test_bad_labels_are_refused(pipe, labels, message):
    given = None if labels is None else torch.tensor(labels)
    judge = StyleGAN2Discriminator(16, 128, 12, num_classes=4)
    for call in (
        lambda: drawn(pipe, class_labels=labels),
        lambda: pipe.generator(normal_source(0)(4, Z), class_labels=given),
        lambda: judge(normal_source(0)(4, 3, R, R), class_labels=given),
    ):
        with pytest.raises(ValueError, match=message):
            call()


def test_labels_belong_to_z(pipe):
    with torch.no_grad():
        ws = pipe.generator.map_latents(normal_source(0)(4, Z), class_labels=LABELS)
    want = pipe(latents=normal_source(0)(4, Z), class_labels=LABELS, output_type="pt", truncation_psi=1.0).images
    for latents, space in ((ws, "w+"), (ws, None), (ws[:, 0], "w")):
        given = {"latents": latents, "latent_space": space}
        assert torch.allclose(pipe(**given, output_type="pt").images, want, atol=1e-5)  # w lies otherwise in memory
        with pytest.raises(ValueError, match="given w and w\\+ have their class in them, so leave them out"):
            pipe(**given, class_labels=LABELS)
        strip = pipe.interpolate("__base__", "__base__", 2, **given, output_type="pt").images
        assert torch.allclose(strip[::2], want, atol=1e-5)
    with pytest.raises(ValueError, match="have their class in them"):
        pipe.generator(ws, latent_space="w+", class_labels=LABELS)


def test_networks_without_classes_refuse_labels():
    g = StyleGAN2Generator(16, 128, 12, z_dim=Z, w_dim=W)
    d = StyleGAN2Discriminator(16, 128, 12)
    with torch.no_grad():
        for call in (
            lambda: g(normal_source(0)(4, Z), class_labels=LABELS),
            lambda: d(normal_source(0)(4, 3, R, R), class_labels=LABELS),
            lambda: FewShotGAN(g)(4, class_labels=LABELS),
        ):
            with pytest.raises(ValueError, match="knows no classes; leave class_labels out"):
                call()


def test_a_single_class_need_not_be_named():
    g, d = (x(16, 128, 12, num_classes=1) for x in (StyleGAN2Generator, StyleGAN2Discriminator))
    images = FewShotGAN(g)(2, seed=0, output_type="pt").images
    assert torch.equal(images, FewShotGAN(g)(2, seed=0, class_labels=0, output_type="pt").images)
    with torch.no_grad():
        assert torch.equal(d(images), d(images, class_labels=torch.zeros(2, dtype=torch.long)))


@pytest.mark.parametrize("cls", [StyleGAN2Generator, StyleGAN2Discriminator])
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"architecture": "resnext"}, "unknown architecture 'resnext'; known: orig, skip, resnet"),
        ({"num_classes": 0}, "num_classes=0: give 1 or more, or None"),
        ({"num_classes": 3, "num_mapping_layers": 0, "embed_dim": 5}, "num_mapping_layers=0 maps"),
    ],
)
def test_options_that_make_no_network(cls, options, message):
    with pytest.raises(ValueError, match=message):
        cls(16, 128, 12, **options)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_adapters_reach_every_parameter(architecture):
    for network in (
        StyleGAN2Generator(16, 128, 12, architecture=architecture, num_classes=3, z_dim=Z, w_dim=W),
        StyleGAN2Discriminator(16, 128, 12, architecture=architecture, num_classes=3),
    ):
        layers = dict(adaptable_layers(network))
        owned = [p for layer in layers.values() for p in layer.stored() if p is not None]
        assert {id(p) for p in owned} == {id(p) for p in network.parameters()} and len(owned) == len(
            set(map(id, owned))
        )
        assert layers["mapping.embed"].role == "embedding" and network.layer_resolution("mapping.embed") == 0
        if isinstance(network, StyleGAN2Generator) and architecture == "resnet":
            assert layers["synthesis.b16.skip"].role == "skip"
            assert network.layer_resolution("synthesis.b16.skip") == 16


@pytest.mark.parametrize("kind", sorted(trainable_types()))
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_fresh_adapters_are_the_identity_and_gradients_reach_them(kind, architecture):
    torch.manual_seed(0)
    model = StyleGAN2Generator(16, 128, 12, architecture=architecture, num_classes=4, z_dim=Z, w_dim=W).eval()
    z, bank = normal_source(0)(4, Z), AdapterBank(model.requires_grad_(False))
    want = model(z, class_labels=LABELS)
    adapter = trainable_types()[kind].for_model(model)
    bank.add("fresh", adapter)
    bank.activate({"fresh": 1.0})
    images = model(z, class_labels=LABELS)
    assert torch.allclose(images, want, atol=1e-5)  # factors whose product is 1 to float32 rounding only
    images.square().mean().backward()
    assert any(p.grad is not None and p.grad.any() for p in adapter.parameters())
    bank.activate({})
    assert torch.equal(model(z, class_labels=LABELS), want)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_mixed_batches_equal_single_looks(architecture, perturbed):
    torch.manual_seed(0)
    model = StyleGAN2Generator(16, 128, 12, architecture=architecture, num_classes=4, z_dim=Z, w_dim=W).eval()
    bank, before = AdapterBank(model), fingerprint(model)
    bank.add("left", perturbed(LeFTAdapter.for_model(model), 0))
    bank.add("vector", perturbed(DomainVectorAdapter.for_model(model, parametrization="full"), 1, std=0.5))
    bank.add("full", perturbed(FullAdapter.for_model(model), 2))
    looks, z = [{"left": 1.0}, {"vector": 1.0}, {}, {"full": 0.5, "vector": 0.5}], normal_source(0)(4, Z)
    with torch.no_grad():
        with bank.using_rows(looks):
            mixed = model(z, class_labels=LABELS)
        for i, look in enumerate(looks):
            with bank.using(look):
                alone = model(z[i : i + 1], class_labels=LABELS[i : i + 1])
            assert torch.allclose(mixed[i : i + 1], alone, atol=1e-5)  # other products of matrices
        bank.activate({"left": 1.0})
        want = model(z, class_labels=LABELS)
        bank.fuse()
        assert torch.allclose(model(z, class_labels=LABELS), want, atol=1e-5)
        bank.unfuse()
    assert fingerprint(model) == before


def test_fingerprints_of_older_bases_stay():
    """Options that came later do not count at their defaults, so adapters of bases without them still fit."""
    import hashlib
    import json

    model = rounded(StyleGAN2Generator(16, 128, 12, z_dim=Z, w_dim=W))
    names = ("resolution", "channel_base", "channel_max", "z_dim", "w_dim", "num_mapping_layers")
    config = {name: model.config[name] for name in (*names, "mapping_lr_multiplier", "conv_clamp")}
    digest = hashlib.sha256(json.dumps(config, sort_keys=True).encode())
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(name.encode() + tensor.half().bfloat16().view(torch.int16).numpy().tobytes())
    assert fingerprint(model) == digest.hexdigest()[:16]
    others = [{"architecture": "orig"}, {"num_classes": 2}, {"mapping_dim": 5}]
    marks = {fingerprint(StyleGAN2Generator(16, 128, 12, z_dim=Z, w_dim=W, **other)) for other in others}
    assert len(marks | {fingerprint(model)}) == 4


def test_looks_and_classes_in_one_batch(pipe, perturbed, tmp_path):
    for name, seed in (("one", 0), ("two", 1)):
        pipe.bank.add(name, perturbed(LeFTAdapter.for_model(pipe.generator), seed))
    looks = ["one", "__base__", "two", "one"]
    mixed = drawn(pipe, adapter_names=looks)
    for look in set(looks):
        alone = drawn(pipe, adapter_names=look)
        rows = [i for i, name in enumerate(looks) if name == look]
        assert torch.allclose(mixed[rows], alone[rows], atol=1e-5)  # batches of another size: float32 rounding
    strip = pipe.interpolate("__base__", "one", 3, num_images=2, seed=3, class_labels=[0, 3], output_type="pt").images
    assert torch.allclose(strip[[0, 3]], drawn(pipe, 2, adapter_names="__base__"), atol=1e-5)
    assert torch.allclose(strip[[2, 5]], drawn(pipe, 2, adapter_names="one"), atol=1e-5)


def test_half_precision_draws_classes(pipe):
    want = drawn(pipe)
    pipe.to(dtype=torch.bfloat16)
    assert (drawn(pipe) - want).abs().mean() < 0.05  # eight bits of mantissa, eight layers


def test_an_exported_file_takes_classes(tmp_path):
    for package in ("onnxscript", "onnxruntime", "openvino"):
        pytest.importorskip(package)
    from fewshot_gan.apps.export import export_generator

    torch.manual_seed(0)
    g = StyleGAN2Generator(16, 128, 12, z_dim=Z, w_dim=W, architecture="resnet", num_classes=3).eval()
    assert export_generator(FewShotGAN(g), tmp_path / "net.onnx") < LIMIT  # drawn with the file, in two batch sizes


def test_the_command_line_converts_and_draws(tmp_path, monkeypatch):
    from typer.testing import CliRunner

    from fewshot_gan.cli import app

    g, d = Generator(c_dim=CLASSES), Discriminator(c_dim=CLASSES)
    write(tmp_path / "x.pkl", {"G_ema": stored_generator(g), "D": of_module(d)})
    monkeypatch.chdir(tmp_path)
    assert CliRunner().invoke(app, ["convert", "x.pkl", "base"]).exit_code == 0
    command = ["generate", "--base", "base", "--out", "faces", "--num-images", "2", "--separate"]
    assert CliRunner().invoke(app, [*command, "--class-label", "3"]).exit_code == 0
    assert len(list((tmp_path / "faces").glob("*.png"))) == 2
    loaded = FewShotGAN.from_pretrained("base")
    assert picture_difference(loaded.generator, g) < LIMIT and logit_difference(loaded.discriminator, d) < LIMIT


# ------------------------------------------------------------------------------------------------------------ training

IMAGES = torch.randint(0, 256, (3, 3, R, R), dtype=torch.uint8, generator=torch.Generator().manual_seed(4))


def trainer(folder, g, d, features):
    from accelerate import Accelerator

    from fewshot_gan.methods.lfs_gan import LFSConfig, LFSObjective
    from fewshot_gan.training.engine import Trainer, TrainingConfig

    objective = LFSObjective(LFSConfig.paper(), IMAGES.float() / 127.5 - 1, Z, discriminator=d, features=features)
    config = TrainingConfig(str(folder), max_train_steps=2, train_batch_size=2, sample_steps=0, augment="flip")
    return Trainer(g, LeFTAdapter.for_model(g), objective, IMAGES, config, Accelerator(cpu=True))


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_each_architecture_is_trained(architecture, tmp_path, features):
    sizes = {"resolution": 16, "channel_base": 128, "channel_max": 12, "architecture": architecture}
    g, d = StyleGAN2Generator(**sizes, z_dim=Z, w_dim=W), StyleGAN2Discriminator(**sizes)
    before, judge = fingerprint(g), deepcopy(d.state_dict())
    result = trainer(tmp_path, g, d, features).train()
    assert fingerprint(g) == before and not all(torch.equal(t, judge[name]) for name, t in d.state_dict().items())
    fresh = LeFTAdapter.for_model(g).state_dict()
    moved = [name for name, tensor in result.state_dict().items() if not torch.equal(tensor, fresh[name])]
    assert len(moved) > len(fresh) / 3 and all(torch.isfinite(t).all() for t in result.state_dict().values())


def test_training_and_inversion_want_no_classes(pipe, tmp_path, features, monkeypatch):
    sizes = {"resolution": 16, "channel_base": 128, "channel_max": 12}
    g, d = StyleGAN2Generator(**sizes, z_dim=Z, w_dim=W), StyleGAN2Discriminator(**sizes, num_classes=2)
    with pytest.raises(ValueError, match="few-shot training needs a StyleGAN2 without classes, .*Discriminator has 2;"):
        trainer(tmp_path, g, d, features)
    message = "a StyleGAN2 without classes, and this StyleGAN2Generator has 4; take another base, e.g. 'ffhq'"
    with pytest.raises(ValueError, match=f"few-shot training needs {message}"):
        trainer(tmp_path, pipe.generator, StyleGAN2Discriminator(**sizes), features)
    with pytest.raises(ValueError, match=f"inversion needs {message}"):
        pipe.invert(torch.zeros(1, 3, R, R))

    from PIL import Image

    from fewshot_gan.training import adapt
    from fewshot_gan.training.command_line import parse

    monkeypatch.setattr("fewshot_gan.methods.method.load_features", lambda device="cpu", **kwargs: features)
    pipe.save_pretrained(tmp_path / "base")
    (tmp_path / "data").mkdir()
    for i in range(2):
        Image.new("RGB", (32, 32)).save(tmp_path / "data" / f"{i}.png")  # the least size that training takes
    for method, options in (("finetune", ["--preset=paper"]), ("d3t", []), ("hyperdomainnet", ["--preset=image"])):
        command = [f"--base={tmp_path / 'base'}", f"--data={tmp_path / 'data'}", f"--output_dir={tmp_path / 'run'}"]
        with pytest.raises(ValueError, match=message):
            adapt.run(parse(method, [*command, *options, "--report_to=none", "--num_threads=1"]))
