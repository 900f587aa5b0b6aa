"""The papers' own adapter files: the adapted picture equals the one of the papers' formulas, and misfits are refused.

The functions of `helpers.adapter_files` run the files' tensors directly and share no code with the package.
"""

import argparse
import json

import pytest
import torch
import torch.nn.functional as F
from helpers.adapter_files import (
    FORMULAS,
    MAPPING,
    TOLERANCE,
    adafm_tensors,
    domain,
    every_row,
    files,
    gp_gan,
    gp_gan_blocks,
    gp_gan_start,
    held,
    left,
    mapped,
    modulation,
    own_noises,
    same,
    scaled,
    source_of,
    specific_features,
    specific_part,
    stylegan2_picture,
    weaker,
)
from helpers.networks import tiny_mobile, tiny_stylegan2
from helpers.stylegan2_checkpoints import RESOLUTIONS, W, Z, pt_generator
from helpers.tensors import normal_source
from typer.testing import CliRunner

from fewshot_gan import FewShotGAN, adapter_base, import_adapter
from fewshot_gan.adapters import AdaFMAdapter, DomainVectorAdapter, GANMemoryAdapter, LeFTAdapter, fingerprint
from fewshot_gan.cli import app
from fewshot_gan.convert import ConversionError, convert_checkpoint


@pytest.fixture(scope="module")
def converted(tmp_path_factory):
    """A generator in the layout of StyleGAN2's PyTorch port, and our pipeline of it as it was saved."""
    folder, tensors = tmp_path_factory.mktemp("port"), pt_generator(1, MAPPING)
    torch.save({"g_ema": tensors, "latent_avg": normal_source(3)(W)}, folder / "port.pt")
    FewShotGAN(convert_checkpoint(folder / "port.pt")["generator"]).save_pretrained(folder / "base")
    return tensors, folder / "base"


@pytest.fixture
def port(converted):
    tensors, folder = converted
    return tensors, FewShotGAN.from_pretrained(folder)


# ------------------------------------------------------------------------------------------------------ HyperDomainNet


@pytest.mark.parametrize("key", FORMULAS)
def test_a_domain_equals_its_formula(tmp_path, port, key, record_property):
    g, pipe = port
    data = domain(key)
    torch.save(data, tmp_path / "domain.pt")
    adapter = import_adapter(tmp_path / "domain.pt", pipe)
    assert isinstance(adapter, DomainVectorAdapter) and adapter.config.placement == "post_demod"
    assert adapter.config.base_fingerprint == fingerprint(pipe.generator)
    heads = data["state_dict"]

    def after(k, weight):
        own = {leaf: heads[f"heads.conv_{k}.{leaf}"] for leaf in FORMULAS[key][0]}
        return FORMULAS[key][1](weight[None], own)[0]

    ws = normal_source(7)(2, 2 * len(RESOLUTIONS), W)  # every layer its own style
    want = stylegan2_picture(g, ws, after=after)
    pipe.load_adapter(adapter)
    with torch.no_grad():
        got = pipe.generator(ws, latent_space="w+")
    record_property("difference", float((got - want).abs().max()))
    same(got, want, stylegan2_picture(g, ws))


def test_an_image_domain_says_what_is_no_part_of_it(tmp_path, port, caplog):
    g, pipe = port
    data = domain("cin_mult", "im2im")
    torch.save(data, tmp_path / "image.pt")
    adapter = import_adapter(tmp_path / "image.pt", pipe.generator)
    assert "style_latents (1, 1, 6) are no part of the adapter" in caplog.text and "from 7 on" in caplog.text
    assert adapter.config.training["da_type"] == "im2im"
    ws = every_row(mapped(g, normal_source(8)(2, Z))).clone()
    ws[:, 7:] = data["style_latents"]  # as the authors' code does with its 18 rows
    pipe.load_adapter(adapter)
    want = stylegan2_picture(g, ws, after=lambda k, w: w * (1 + data["state_dict"][f"heads.conv_{k}.params_in"][0]))
    with torch.no_grad():
        same(pipe.generator(ws, latent_space="w+"), want, stylegan2_picture(g, ws))


@pytest.mark.parametrize("leaf", ["params_in", "params_out"])
def test_a_domain_without_its_key_is_known_by_its_tensors(tmp_path, port, leaf):
    data = domain("cin_mult" if leaf == "params_in" else "cout_mult")
    del data["patch_key"]
    data["state_dict"] = {f"module.{name}": value for name, value in data["state_dict"].items()}
    torch.save(data, tmp_path / "domain.pt")
    adapter = import_adapter(tmp_path / "domain.pt", port[1])
    assert adapter.parametrization == {"params_in": "input", "params_out": "output"}[leaf]
    (name, first), *_ = adapter.state_dict().items()
    assert torch.equal(first, data["state_dict"][f"module.heads.conv_0.{leaf}"].flatten())


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (domain("aff_cout", zero=False), "heads.conv_0.beta of patch_key='aff_cout' is not zero"),
        (domain("cink_mult", zero=False), "heads.conv_0.params_kernel of patch_key='cink_mult' is not zero"),
        (domain("coutk_mult", zero=False), "one scale for all taps"),
        (domain("csep_delta", leaves=["params_in", "params_out"]), "'csep_delta' adds to demodulated weights"),
        (domain("cfull_delta", leaves=["shift"]), "'cfull_delta' adds to demodulated weights"),
        (domain("svd_s", leaves=["singular_shift"]), "moves singular values"),
        (domain("cin_delta", leaves=["params_in"]), "has no formula"),
        (domain("cin_offset", leaves=["params_in"]), "has no formula"),
        (domain("other", leaves=["params_in"]), "unknown patch_key 'other'"),
        (domain(["cin_mult"], leaves=["params_in"]), "unknown patch_key"),
        (domain(None, leaves=["shift"]), "shift may be factors or addends"),
        (domain("cin_mult", model_type="mapper"), "it is a mapper"),
        (domain("cin_mult", sg2_params={"img_size": 1024}), "img_size 1024, and this one has 32"),
        (domain("cin_mult", sg2_params={"map_layers": 2}), "map_layers 2, and this one has 8"),
        (domain("cout_mult", leaves=["params_in"]), "missing: heads.conv_0.params_out"),
        (domain("cin_mult", leaves=["params_in", "gamma"]), "left over: heads.conv_0.gamma"),
    ],
)
def test_domains_that_are_no_vector_of_this_base(tmp_path, port, data, message):
    torch.save(data, tmp_path / "domain.pt")
    with pytest.raises(ConversionError, match="domain.pt, an adapter of HyperDomainNet") as caught:
        import_adapter(tmp_path / "domain.pt", port[1])
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_a_base_with_fused_looks_is_not_the_one_of_the_file(tmp_path, port):
    torch.save(domain(next(iter(FORMULAS))), tmp_path / "domain.pt")
    pipe = port[1].load_adapter(import_adapter(tmp_path / "domain.pt", port[1]), "look")
    pipe.fuse_adapters()
    for function in (import_adapter, adapter_base):
        with pytest.raises(ValueError, match="cannot import an adapter while 'look' is fused"):
            function(tmp_path / "domain.pt", pipe)


# -------------------------------------------------------------------------------------------------------------- LFS-GAN


@pytest.mark.parametrize("adds", [True, False])
@pytest.mark.parametrize("rank", [1, 2, 4, None])
def test_modulations_equal_their_formula(tmp_path, port, rank, adds, record_property):
    g, pipe = port
    state = modulation(rank, adds)
    torch.save({"g_ema": state}, tmp_path / "Sketches_003000.pt")
    adapter = import_adapter(tmp_path / "Sketches_003000.pt", pipe)
    assert isinstance(adapter, LeFTAdapter) and adapter.rank == rank and adapter.use_activation
    z = normal_source(12)(2, Z)
    change = left(state, rank)
    want = stylegan2_picture(g, every_row(mapped(g, z, change)), change)
    pipe.load_adapter(adapter)
    with torch.no_grad():
        got = pipe.generator(z)
        torch.testing.assert_close(pipe.generator.map_latents(z)[:, 0], mapped(g, z, change), **TOLERANCE)
    record_property("difference", float((got - want).abs().max()))
    same(got, want, stylegan2_picture(g, every_row(mapped(g, z))))


@pytest.mark.parametrize("kind", ["mapping", "affine", "conv", "to_rgb"])
def test_modulations_of_each_kind_of_layer(tmp_path, port, kind):
    g, pipe = port
    state, z = held(modulation(1), kind), normal_source(13)(2, Z)
    torch.save(state, tmp_path / "task.pt")  # the state dict itself
    pipe.load_adapter(import_adapter(tmp_path / "task.pt", pipe))
    change = left(state, 1)
    want = stylegan2_picture(g, every_row(mapped(g, z, change)), change)
    with torch.no_grad():
        same(pipe.generator(z), want, stylegan2_picture(g, every_row(mapped(g, z))))


@pytest.mark.parametrize("relu", [True, False])
@pytest.mark.parametrize("container", [dict, lambda **options: argparse.Namespace(**options)])
def test_modulations_know_their_activation_from_the_file(tmp_path, port, caplog, relu, container):
    g, pipe = port
    state = modulation(2)
    torch.save({"g_ema": state, "args": container(left_use_act=relu, rank=2)}, tmp_path / "task.pt")
    adapter = import_adapter(tmp_path / "task.pt", pipe)
    assert adapter.use_activation is relu and not caplog.text
    z, change = normal_source(14)(2, Z), left(state, 2, relu)
    pipe.load_adapter(adapter)
    with torch.no_grad():
        same(
            pipe.generator(z),
            stylegan2_picture(g, every_row(mapped(g, z, change)), change),
            stylegan2_picture(g, every_row(mapped(g, z, other := left(state, 2, not relu))), other),
        )


def test_an_activation_that_matters_and_is_not_told_is_said(tmp_path, port, caplog):
    torch.save({"g_ema": modulation(1)}, tmp_path / "task.pt")
    import_adapter(tmp_path / "task.pt", port[1])
    assert "--left_use_act): taken for yes" in caplog.text
    caplog.clear()
    torch.save({"g_ema": {name: value.abs() for name, value in modulation(1).items()}}, tmp_path / "positive.pt")
    import_adapter(tmp_path / "positive.pt", port[1])
    assert not caplog.text


def test_a_whole_generator_with_modulations_belongs_to_its_own_base_alone(tmp_path, port, converted):
    g, pipe = port
    state = modulation(1)
    torch.save({"g": g | modulation(1, seed=99), "g_ema": g | state}, tmp_path / "whole.pt")
    adapter = import_adapter(tmp_path / "whole.pt", pipe)  # of two the average counts
    assert torch.equal(
        adapter.get_parameter("synthesis.b4.conv1.mul_in"), state["conv1.conv.weight_modulation.w_mul2_in_channel_wise"]
    )
    other = g | {"conv1.conv.weight": -g["conv1.conv.weight"]}
    torch.save({"g_ema": other | state}, tmp_path / "other.pt")
    with pytest.raises(ConversionError, match="file's conv1.conv.weight is not that of this base"):
        import_adapter(tmp_path / "other.pt", pipe)
    torch.save({"a": state, "b": state}, tmp_path / "two.pt")
    with pytest.raises(ConversionError, match="two.pt holds several adapters: a and b"):
        import_adapter(tmp_path / "two.pt", pipe)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.pop("style.3.weight_modulation.b_mul"), "missing: style.3.weight_modulation.b_mul"),
        (lambda s: s.update({"convs.9.conv.weight_modulation.w_mul": torch.ones(2)}), "left over: convs.9.conv"),
        (
            lambda s: s.update({"conv1.conv.weight_modulation.w_mul2_in_channel_wise": torch.ones(512, 1)}),
            "shape of conv1.conv.weight_modulation.w_mul2_in_channel_wise: (512, 1) instead of (12, 1)",
        ),
        (lambda s: s["to_rgb1.conv.modulation.weight_modulation.b_mul"].fill_(torch.nan), "NaN or infinite"),
        (lambda s: s["style.1.weight_modulation.w_mul_in_dim"].fill_(torch.inf), "NaN or infinite"),
        (lambda s: s.update({"style.1.weight_modulation.b_mul": torch.ones(W, dtype=torch.int64)}), "torch.int64"),
        (lambda s: s.update({"style.1.weight_modulation.w_mul_in_dim": torch.ones(Z, 9**4)}), "rank 6561"),
    ],
)
def test_modulations_that_do_not_fit(tmp_path, port, change, message):
    state = modulation(1)
    change(state)
    torch.save({"g_ema": state}, tmp_path / "task.pt")
    with pytest.raises(ConversionError) as caught:
        import_adapter(tmp_path / "task.pt", port[1])
    assert message in str(caught.value) and "\n" not in str(caught.value)


# --------------------------------------------------------------------------------------------------------------- GP-GAN


@pytest.mark.parametrize("name", ["small_adafm_", "small_style_adain_"])
@pytest.mark.parametrize(("scales", "first"), [(4, 2), (4, 3), (6, 3)])
def test_adafm_with_its_specific_part_equals_its_formula(tmp_path, scales, first, name, record_property):
    g = weaker(gp_gan(scales, 2), 2000)
    pipe = source_of(g, tmp_path)
    kept = range(first, scales)
    frozen = {k: v for k, v in g.items() if k.startswith(("conv_img", *(f"resnet_{i}_" for i in kept)))}
    state = frozen | adafm_tensors(g, kept, name) | specific_part(g, first)
    torch.save(state, tmp_path / "Flowers_Pre_generator")  # the generator itself, as it is saved
    with pytest.raises(ConversionError, match=r"give adapter_base\(file, generator\) instead"):
        import_adapter(tmp_path / "Flowers_Pre_generator", pipe)
    base = adapter_base(tmp_path / "Flowers_Pre_generator", pipe)
    assert fingerprint(base) == fingerprint(adapter_base(tmp_path / "Flowers_Pre_generator", pipe))  # one for all looks
    adapter = import_adapter(tmp_path / "Flowers_Pre_generator", base)
    assert isinstance(adapter, AdaFMAdapter)
    z = normal_source(24)(3, 4)
    tailored = FewShotGAN(base)
    want = gp_gan_blocks(state, specific_features(state, z, own_noises(base)), kept, scaled(state, name))
    plain = gp_gan_blocks(state, specific_features(state, z, own_noises(base)), kept)
    tailored.load_adapter(adapter)
    with torch.no_grad():
        got = tailored.generator(z)
    record_property("difference", float((got - want).abs().max()))
    same(got, want, plain)


@pytest.mark.parametrize(("blocks", "kernel"), [(2, 3), (1, 7)])
def test_adafm_alone_acts_on_the_source(tmp_path, blocks, kernel, record_property):
    g = gp_gan(4, blocks, kernel)
    pipe = source_of(g, tmp_path)
    state = adafm_tensors(g, (2, 3))
    torch.save({"generator_test": state}, tmp_path / "model.pt")
    assert adapter_base(tmp_path / "model.pt", pipe) is pipe.generator
    pipe.load_adapter(import_adapter(tmp_path / "model.pt", pipe))
    z, labels = normal_source(25)(3, 6), torch.tensor([0, 4, 2])
    x = F.linear(gp_gan_start(g, z, labels, blocks == 2), g["fc.weight"], g["fc.bias"]).view(3, -1, 4, 4)
    want = gp_gan_blocks(g, x, range(4), scaled(state))
    with torch.no_grad():
        got = pipe.generator(z, labels)
    record_property("difference", float((got - want).abs().max()))
    same(got, want, gp_gan_blocks(g, x, range(4)))


@pytest.mark.parametrize("blocks", [1, 2])
def test_gan_memory_equals_its_formula(tmp_path, blocks, record_property):
    g, r = gp_gan(4, blocks, 7), normal_source(26)
    pipe = source_of(g, tmp_path)
    out = len(g["fc.bias"])
    state = {"AdaFM_fc.gamma": 0.3 * r(1, out), "AdaFM_fc.beta": 0.3 * r(1, out), "AdaFM_fc_b": r(out)}
    state |= {n.replace("small_", ""): v for n, v in adafm_tensors(g, range(4), "small_AdaFM_").items()}
    state |= {name: value / 4 for name, value in state.items() if name.endswith("style_gama")}  # as large as σ
    for name in [name for name in g if name.endswith(("conv_0.bias", "conv_1.bias"))]:
        state[name.replace("conv_", "AdaFM_b").removesuffix(".bias")] = r(len(g[name]))
    torch.save(state, tmp_path / "Flowers_Pre_generator")
    adapter = import_adapter(tmp_path / "Flowers_Pre_generator", pipe)
    assert isinstance(adapter, GANMemoryAdapter)

    def change(block, layer, weight, bias):
        n = f"{block}.AdaFM_{layer}"
        centred = weight - weight.mean((2, 3), keepdim=True)
        std = (centred.square().sum((2, 3), keepdim=True) / 8).sqrt()  # unbiased, of nine taps
        return centred / std * state[f"{n}.style_gama"] + state[f"{n}.style_beta"], bias + state[
            f"{block}.AdaFM_b{layer}"
        ]

    rows = (g["fc.weight"] - g["fc.weight"].mean(1, keepdim=True)) / g["fc.weight"].std(1, keepdim=True)
    z, labels = normal_source(25)(3, 6), torch.tensor([0, 4, 2])
    start = gp_gan_start(g, z, labels, blocks == 2)
    x = start @ (rows.t() * state["AdaFM_fc.gamma"] + state["AdaFM_fc.beta"]) + g["fc.bias"] + state["AdaFM_fc_b"]
    want = gp_gan_blocks(g, x.view(3, -1, 4, 4), range(4), change)
    plain = F.linear(start, g["fc.weight"], g["fc.bias"]).view(3, -1, 4, 4)
    pipe.load_adapter(adapter)
    with torch.no_grad():
        got = pipe.generator(z, labels)
    record_property("difference", float((got - want).abs().max()))
    same(got, want, gp_gan_blocks(g, plain, range(4)))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.pop("small_H.beta"), "missing: small_H.beta"),
        (lambda s: s.pop("resnet_3_1.small_adafm_0.style_beta"), "missing: resnet_3_1.small_adafm_0.style_beta"),
        (lambda s: s.update(extra=torch.ones(1)), "left over: extra"),
        (lambda s: s["resnet_2_0.conv_1.bias"].add_(5), "resnet_2_0.conv_1.bias is not that of this base"),
        (lambda s: s["small_fc.bias"].fill_(torch.nan), "small_fc.bias has NaN"),
        (lambda s: s.update({"small_style.1.linear.weight": torch.ones(7, 9)}), "needs 9 columns"),
        (lambda s: s.update({"small_style.1.linear.weight": torch.ones(9, 4)}), "needs 9 columns"),
        (
            lambda s: s.update({"resnet_2_0.small_adafm_0.style_gama": torch.ones(6, 9, 1, 1)}),
            "shape of resnet_2_0.small_adafm_0.style_gama: (6, 9, 1, 1) instead of",
        ),
        (
            lambda s: s.update({"resnet_9_0.small_adafm_0.style_gama": torch.ones(1)}),
            "keeps 3 scales behind a network of its own; of the 4 of this base it could keep 2",
        ),
    ],
)
def test_adafm_that_does_not_fit(tmp_path, change, message):
    g = gp_gan(4, 2)
    pipe = source_of(g, tmp_path)
    kept = {k: v.clone() for k, v in g.items() if k.startswith(("conv_img", "resnet_2_", "resnet_3_"))}
    state = kept | adafm_tensors(g, (2, 3)) | specific_part(g, 2)
    change(state)
    torch.save(state, tmp_path / "flowers.pt")
    with pytest.raises(ConversionError) as caught:
        import_adapter(tmp_path / "flowers.pt", adapter_base(tmp_path / "flowers.pt", pipe))
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_adafm_of_scales_that_the_base_lacks(tmp_path):
    g = gp_gan(4, 2)
    torch.save(adafm_tensors(g, (3,)) | {"resnet_9_0.small_adafm_0.style_gama": torch.ones(1)}, tmp_path / "look.pt")
    with pytest.raises(
        ConversionError, match="modulates resnet_9_0, of 2048 px; this base keeps those of 4, 8, 16, 32"
    ):
        import_adapter(tmp_path / "look.pt", source_of(g, tmp_path))


# ------------------------------------------------------------------------------------------- every paper, command line


@pytest.mark.parametrize("paper", ["HyperDomainNet", "LFS-GAN", "AdaFM transfer", "GAN Memory"])
def test_adapters_say_that_they_need_their_base(tmp_path, paper):
    torch.save(files(tmp_path)[paper], tmp_path / "look.pt")
    with pytest.raises(
        ConversionError, match=rf"look.pt is an adapter of {paper} \(arXiv .*\); give --base \(in Python"
    ):
        convert_checkpoint(tmp_path / "look.pt")
    other = tiny_mobile() if paper in ("HyperDomainNet", "LFS-GAN") else tiny_stylegan2()
    with pytest.raises(ConversionError, match=f"not to a {type(other).__name__}"):
        import_adapter(tmp_path / "look.pt", other)


@pytest.mark.parametrize("paper", ["HyperDomainNet", "LFS-GAN"])
def test_a_base_of_another_size_is_refused_by_its_shapes(tmp_path, paper):
    data = files(tmp_path)[paper]
    data.pop("sg2_params", None)
    torch.save(data, tmp_path / "look.pt")
    with pytest.raises(
        ConversionError, match="look.pt, an adapter of .* cannot be bound to this base: .*(shape|missing)"
    ):
        import_adapter(tmp_path / "look.pt", tiny_stylegan2(resolution=64))


def test_what_is_no_adapter(tmp_path, port):
    with pytest.raises(FileNotFoundError, match="there is no"):
        import_adapter(tmp_path / "nothing.pt", port[1])
    with pytest.raises(ConversionError, match="is a folder; give the adapter's file"):
        import_adapter(tmp_path, port[1])
    torch.save({"g_ema": port[0]}, tmp_path / "whole.pt")
    with pytest.raises(ConversionError, match="whole.pt is no adapter of HyperDomainNet .* converts without a base"):
        import_adapter(tmp_path / "whole.pt", port[1])
    torch.save(argparse.Namespace(model=torch.nn.Linear(2, 2)), tmp_path / "code.pt")
    with pytest.raises(ConversionError, match="code.pt"):
        import_adapter(tmp_path / "code.pt", port[1])


def test_adapters_of_classes_and_other_architectures_are_refused(tmp_path):
    from fewshot_gan.models import StyleGAN2Generator

    torch.save(domain("cin_mult"), tmp_path / "look.pt")
    size = {"resolution": 32, "channel_base": 128, "channel_max": 12, "z_dim": Z, "w_dim": W}
    for options in ({"architecture": "resnet"}, {"num_classes": 3}):
        with pytest.raises(ConversionError, match="with output skips and without classes"):
            import_adapter(tmp_path / "look.pt", StyleGAN2Generator(**size, **options))


def test_the_command_writes_an_adapter_that_its_base_loads(tmp_path, converted, port):
    state = modulation(1)
    torch.save({"g_ema": state}, tmp_path / "task.pt")
    runner = CliRunner()
    result = runner.invoke(app, ["convert", str(tmp_path / "task.pt"), str(tmp_path / "sketch")])
    assert "is an adapter of LFS-GAN" in result.stderr and "give --base" in result.stderr
    assert result.exit_code and not (tmp_path / "sketch").exists()
    result = runner.invoke(
        app, ["convert", str(tmp_path / "task.pt"), str(tmp_path / "sketch"), "--base", str(converted[1])]
    )
    assert result.exit_code == 0, result.output
    assert sorted(path.name for path in (tmp_path / "sketch").iterdir()) == [
        "README.md",
        "adapter_config.json",
        "adapter_model.safetensors",
    ]
    config = json.loads((tmp_path / "sketch" / "adapter_config.json").read_text(encoding="utf-8"))
    assert config["base_model_name_or_path"] == str(converted[1]) and config["training"]["imported_from"] == "task.pt"
    assert "LFS-GAN" in (tmp_path / "sketch" / "README.md").read_text(encoding="utf-8")
    g, pipe = port
    z, change = normal_source(31)(2, Z), left(state, 1)
    pipe.load_adapter(tmp_path / "sketch")
    with torch.no_grad():
        torch.testing.assert_close(
            pipe.generator(z), stylegan2_picture(g, every_row(mapped(g, z, change)), change), **TOLERANCE
        )


def test_the_command_writes_adafm_with_the_base_it_needs(tmp_path):
    g = weaker(gp_gan(4, 2), 2000)
    source_of(g, tmp_path).save_pretrained(tmp_path / "gp_gan")
    kept = {k: v for k, v in g.items() if k.startswith(("conv_img", "resnet_2_", "resnet_3_"))}
    state = kept | adafm_tensors(g, (2, 3)) | specific_part(g, 2)
    torch.save(state, tmp_path / "flowers.pt")
    out = tmp_path / "flowers"
    result = CliRunner().invoke(
        app, ["convert", str(tmp_path / "flowers.pt"), str(out), "--base", str(tmp_path / "gp_gan")]
    )
    assert result.exit_code == 0, result.output
    config = json.loads((out / "adapter_config.json").read_text(encoding="utf-8"))
    assert config["base_model_name_or_path"] == str(out / "base") and config["training"]["source"]
    pipe = FewShotGAN.from_pretrained(out / "base").load_adapter(out)
    z = normal_source(24)(3, 4)
    want = gp_gan_blocks(state, specific_features(state, z, own_noises(pipe.generator)), (2, 3), scaled(state))
    with torch.no_grad():
        torch.testing.assert_close(pipe.generator(z), want, **TOLERANCE)


def test_a_pipeline_in_half_precision_knows_its_stored_weights(tmp_path, converted):
    torch.save(domain("cin_mult"), tmp_path / "look.pt")
    pipe = FewShotGAN.from_pretrained(converted[1], dtype=torch.bfloat16)
    adapter = import_adapter(tmp_path / "look.pt", pipe)
    assert adapter.config.base_fingerprint != fingerprint(pipe.generator)  # of weights that were rounded
    assert adapter.config.base_model_name_or_path == str(converted[1])
    for loaded in (pipe, FewShotGAN.from_pretrained(converted[1])):
        assert "default" in loaded.load_adapter(adapter).bank.adapters  # neither refuses it


@pytest.mark.parametrize("value", [torch.eye(3).to_sparse(), torch.ones(2, dtype=torch.complex64), torch.ones(())])
@pytest.mark.parametrize("paper", ["HyperDomainNet", "LFS-GAN", "AdaFM transfer", "GAN Memory"])
def test_tensors_that_nobody_writes_end_in_one_sentence(tmp_path, port, paper, value):
    data = files(tmp_path)[paper]
    tensors = data.get("g_ema", data.get("state_dict", data))
    for name in sorted(tensors)[:2]:
        tensors[name] = value
    torch.save(data, tmp_path / "look.pt")
    pipe = port[1] if paper in ("HyperDomainNet", "LFS-GAN") else source_of(gp_gan(4, 2), tmp_path)
    plain = value.layout == torch.strided and not value.is_complex()
    why = ", an adapter of .* cannot be bound to this base: " if plain else " was refused: .*(sparse|complex numbers)"
    with pytest.raises(ConversionError, match=f"look.pt{why}") as caught:
        import_adapter(tmp_path / "look.pt", pipe)
    assert "\n" not in str(caught.value)


def test_a_home_folder_is_understood(tmp_path, port, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    torch.save(domain("cin_mult"), tmp_path / "look.pt")
    assert import_adapter("~/look.pt", port[1]).config.training["imported_from"] == "look.pt"


def test_a_failed_import_writes_nothing(tmp_path, converted):
    state = modulation(1)
    state.pop("style.1.weight_modulation.b_add")
    torch.save({"g_ema": state}, tmp_path / "task.pt")
    before = sorted(path.name for path in tmp_path.iterdir())
    result = CliRunner().invoke(
        app, ["convert", str(tmp_path / "task.pt"), str(tmp_path / "out"), "--base", str(converted[1])]
    )
    assert result.exit_code and sorted(path.name for path in tmp_path.iterdir()) == before
