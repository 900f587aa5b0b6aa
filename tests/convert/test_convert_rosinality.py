"""StyleGAN2 of the PyTorch port, in every wrapper it is published in: the layout's own function, or one sentence.

The function is that of `helpers.stylegan2_checkpoints`, which runs a checkpoint's tensors directly and shares no
code with the package.
"""

import argparse

import pytest
import torch
from helpers.stylegan2_checkpoints import (
    RESOLUTIONS,
    WIDTHS,
    R,
    W,
    Z,
    prefixed,
    pt_discriminator,
    pt_functions,
    pt_generator,
)
from helpers.tensors import normal_source

from fewshot_gan.convert import ConversionError, convert_checkpoint, networks

L = 2 * len(RESOLUTIONS)
# float32 against float32 in another order of summation, at most 13 layers deep; pictures and logits reach 20
LIMIT = 1e-4


def without_noises(tensors):
    return {name: value for name, value in tensors.items() if not name.startswith("noises.")}


def encoder(prefix=""):
    """A few tensors of what stands beside the decoder in pSp and e4e."""
    names = ("input_layer.0.weight", "body.0.res_layer.1.weight", "styles.0.convs.0.weight", "styles.0.linear.weight")
    return {f"{prefix}encoder.{name}": torch.ones(2, 2, 3, 3) for name in names}


def basicsr(tensors):
    """The port's names → BasicSR's, whose filters are no buffers."""
    renamed = {}
    for name, value in tensors.items():
        first, _, rest = name.partition(".")
        if first == "noises":
            rest = rest.replace("_", "")
        elif first == "style":
            first = "style_mlp"
        elif first == "input":
            first, rest = "constant_input", "weight"
        elif first in ("conv1", "convs"):
            first, rest = f"style_{first}", rest.replace("noise.weight", "weight").replace("conv.", "modulated_conv.")
        else:
            rest = rest.replace("conv.", "modulated_conv.")
        if not name.endswith("kernel"):
            renamed[f"{first}.{rest}"] = value
    return renamed


def basicsr_discriminator(tensors):
    kept = {name: value for name, value in tensors.items() if not name.endswith("kernel")}
    return {("conv_body" + name[5:] if name.startswith("convs.") else name): value for name, value in kept.items()}


def wrappers(g, d, w_avg):
    """Variant → what the file holds."""
    rows = w_avg.expand(L, W).clone()
    mean, opts = {"latent_avg": w_avg}, {"opts": argparse.Namespace(output_size=R, lr=1e-4)}
    decoder = prefixed("decoder.", g)
    e4e = {
        "discriminator_state_dict": {"mlp.0.weight": torch.ones(3, 3), "mlp.0.bias": torch.ones(3)},
        "discriminator_optimizer_state_dict": {"state": {0: {"exp_avg": torch.ones(3, 3)}}, "param_groups": []},
    }
    return {
        "as trained": {"g_ema": g, "g": pt_generator(9), "d": d, **mean},
        "module.": {"g_ema": prefixed("module.", g), "d": prefixed("module.", d), **mean},
        "module.module.": {"g_ema": prefixed("module.module.", g), "d": d, **mean},
        "_orig_mod.": {"g_ema": prefixed("_orig_mod.", g), "d": d, **mean},
        "bare": g,
        "bare, module.": prefixed("module.", g),
        "state_dict": {"state_dict": g, **mean},
        "params_ema": {"params_ema": g, "params": pt_generator(9), **mean},
        "params_ema, BasicSR's names": {"params_ema": basicsr(g), "params": basicsr(pt_generator(9))},
        "BasicSR's G and D": {"g": {"params_ema": basicsr(g)}, "d": {"params": basicsr_discriminator(d)}},
        "pSp, latent_avg [L, D]": {"state_dict": encoder() | decoder, "latent_avg": rows, **opts},
        "pSp, latent_avg [D]": {"state_dict": encoder() | decoder, **mean, "opts": vars(opts["opts"])},
        "pSp, module., latent_avg a buffer": {
            "state_dict": prefixed("module.", encoder() | decoder | {"latent_avg": rows}),
            **opts,
        },
        "e4e": {"state_dict": encoder() | decoder, "latent_avg": rows, **opts, **e4e},
    }


VARIANTS = list(wrappers({}, {}, torch.zeros(W)))


def largest_difference(found, functions, with_discriminator):
    """Over pictures of z with ψ, pictures of a w+ with a style per layer, and logits."""
    to_w, to_picture, to_logit = functions
    g, z = found["generator"], normal_source(100)(3, Z)
    w, w_avg = to_w(z), g.mapping.w_avg
    truncated = (w_avg + 0.7 * (w - w_avg))[:, None].expand(-1, L, -1)
    ws = normal_source(101)(3, L, W)
    with torch.no_grad():
        differences = [g(z, truncation_psi=0.7) - to_picture(truncated), g(ws, latent_space="w+") - to_picture(ws)]
        if with_discriminator:
            images = normal_source(102)(4, 3, R, R) + 2 * normal_source(103)(4, 3, 1, 1)  # samples of different colour
            assert to_logit(images).std() > 1e-2  # far above the limit: something is compared
            differences.append(found["discriminator"](images) - to_logit(images))
    return max(float(difference.abs().max()) for difference in differences)


def noises_of(generator):
    """The fixed noise images of a converted generator under the port's names."""
    consts = [v for name, v in generator.state_dict().items() if name.endswith("noise.const")]
    return {f"noises.noise_{i}": const[None, None] for i, const in enumerate(consts)}


@pytest.mark.parametrize("noises", [True, False], ids=["noises", "no noises"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_every_wrapper_equals_its_own_function(tmp_path, caplog, variant, noises):
    g, d, w_avg = pt_generator(1), pt_discriminator(2), normal_source(3)(W)
    data = wrappers(g if noises else without_noises(g), d, w_avg)[variant]
    torch.save(data, tmp_path / "x.pt")
    found = convert_checkpoint(tmp_path / "x.pt")
    assert ("discriminator" in found) == ("d" in data)
    assert ("generator_raw" in found) == ({"g", "g_ema"} <= data.keys() or {"params", "params_ema"} <= data.keys())
    if "latent_avg" in str(data.keys()) or "buffer" in variant:
        assert torch.equal(found["generator"].mapping.w_avg, w_avg)
    else:
        assert "mean of 10000 mapped samples" in caplog.text
    assert ("drawn from seed 0" in caplog.text) == (not noises)
    g = g if noises else g | noises_of(found["generator"])
    difference = largest_difference(found, pt_functions(g, d), "d" in data)
    print(f"rosinality | {variant} | {'with' if noises else 'without'} noises | {difference:.1e}")
    assert difference < LIMIT


def test_what_stands_beside_the_generator_is_named(tmp_path, caplog):
    data = wrappers(pt_generator(1), {}, normal_source(3)(W))
    torch.save(data["e4e"], tmp_path / "x.pt")
    convert_checkpoint(tmp_path / "x.pt")
    assert "left out, because it is of no known network: " in caplog.text
    assert "discriminator_state_dict.mlp (1 weights)" in caplog.text
    assert "state_dict.encoder (4 weights)" in caplog.text and "optim" not in caplog.text


def test_drawn_noises_are_the_same_each_time_and_leave_other_draws_alone(tmp_path):
    g = without_noises(pt_generator(1))
    torch.save({"g_ema": g, "g": g, "latent_avg": normal_source(3)(W)}, tmp_path / "x.pt")
    torch.manual_seed(1)
    expected_draw = torch.randn(4)
    drawn = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        found = convert_checkpoint(tmp_path / "x.pt")
        drawn += [noises_of(network) for network in found.values()]
    for other in drawn[1:]:
        assert all(torch.equal(value, other[name]) for name, value in drawn[0].items())
    values = torch.cat([value.flatten() for value in drawn[0].values()])
    # 2,736 numbers of N(0, 1): the standard errors are 0.019 and 0.014
    assert abs(values.mean()) < 0.1 and abs(values.std() - 1) < 0.1
    assert len(values.unique()) > 2700  # no layer has another's
    torch.manual_seed(1)
    assert torch.equal(torch.randn(4), expected_draw)


def test_some_noises_missing_is_damage(tmp_path):
    g = pt_generator(1)
    del g["noises.noise_3"]
    torch.save({"g_ema": g}, tmp_path / "x.pt")
    with pytest.raises(ConversionError, match="missing: noises.noise_3"):
        convert_checkpoint(tmp_path / "x.pt")


def test_a_mean_w_that_differs_from_layer_to_layer_is_averaged(tmp_path, caplog):
    rows = normal_source(3)(L, W)
    torch.save({"g_ema": pt_generator(1), "latent_avg": rows}, tmp_path / "x.pt")
    w_avg = convert_checkpoint(tmp_path / "x.pt")["generator"].mapping.w_avg
    torch.testing.assert_close(w_avg, rows.mean(0))
    assert f"latent_avg differs from layer to layer: w_avg is the mean of its {L} rows" in caplog.text


def test_a_mean_w_of_another_module_of_numpy():
    found = networks.find({"g_ema": pt_generator(1), "latent_avg": normal_source(3)(W).numpy()})
    assert torch.equal(networks.convert(found, "x.pt")["generator"].mapping.w_avg, normal_source(3)(W))


@pytest.mark.parametrize("shape", [(W + 1,), (L, W + 1), (L - 1, W), (2, L, W), ()])
def test_a_mean_w_of_another_shape_is_refused(tmp_path, shape):
    torch.save({"g_ema": pt_generator(1), "latent_avg": torch.zeros(shape)}, tmp_path / "x.pt")
    with pytest.raises(ConversionError, match=rf"latent_avg has the shape .* instead of \({W},\), or \({L}, {W}\)"):
        convert_checkpoint(tmp_path / "x.pt")


# ---------------------------------------------------------------------------------------------------- what is refused


def of_8_px(tensors):
    return {
        name: value
        for name, value in tensors.items()
        if not name.startswith(("convs.2", "convs.3", "convs.4", "convs.5", "to_rgbs.1", "to_rgbs.2"))
        and name not in {f"noises.noise_{i}" for i in range(3, 7)}
    }


def discriminator_of_8_px(tensors):
    return {name: value for name, value in tensors.items() if not name.startswith(("convs.2", "convs.3"))}


def swagan(tensors):
    haar = {f"iwt.{name}": torch.ones(2, 2) / 2 for name in ("ll", "lh", "hl", "hh")}
    return tensors | haar | {"to_rgb1.conv.weight": torch.ones(1, 12, WIDTHS[4], 1, 1)}


def swagan_discriminator(tensors):
    kept = {name: value for name, value in tensors.items() if not name.startswith("convs.0")}
    return kept | {"dwt.ll": torch.ones(2, 2) / 2, "from_rgbs.0.conv.0.weight": torch.ones(WIDTHS[R], 12, 3, 3)}


UNSUPPORTED = {
    "no noise layers": (
        lambda: {"g_ema": {n: v for n, v in pt_generator(1).items() if "noise" not in n}},
        "this StyleGAN2 was trained without noise layers (it has no noise.weight), which all that convert have",
    ),
    "8 px": (
        lambda: {"g_ema": of_8_px(pt_generator(1))},
        "this StyleGAN2 is of 8 × 8 pixels; those of 16 to 1024 convert",
    ),
    "8 px discriminator": (
        lambda: {"g_ema": pt_generator(1), "d": discriminator_of_8_px(pt_discriminator(2))},
        "this StyleGAN2 is of 8 × 8 pixels; those of 16 to 1024 convert",
    ),
    "SWAGAN": (
        lambda: {"g_ema": swagan(pt_generator(1))},
        "this is SWAGAN (arXiv 2102.06108), which draws wavelet coefficients; only StyleGAN2 converts",
    ),
    "SWAGAN discriminator": (
        lambda: {"g_ema": pt_generator(1), "d": swagan_discriminator(pt_discriminator(2))},
        "this is SWAGAN (arXiv 2102.06108), which draws wavelet coefficients; only StyleGAN2 converts",
    ),
    "StyleGAN3": (
        lambda: {"G_ema": {"synthesis.input.freqs": torch.ones(4, 2), "synthesis.input.phases": torch.ones(4)}},
        "this is a StyleGAN3 generator; only StyleGAN2 converts",
    ),
    "state dict of NVIDIA's generator": (
        lambda: {"synthesis.b4.const": torch.ones(4, 4, 4), "synthesis.b8.conv0.weight": torch.ones(4, 4, 3, 3)},
        "a bare state dict of NVIDIA's StyleGAN2 does not say its clamp and mapping gain; convert the .pkl it came "
        "from",
    ),
    "state dict of NVIDIA's discriminator": (
        lambda: {name: torch.ones(4, 4) for name in ("b4.fc.weight", "b4.out.weight", "b8.conv0.weight")},
        "a bare state dict of NVIDIA's StyleGAN2 does not say its clamp and mapping gain; convert the .pkl it came "
        "from",
    ),
    "BasicSR's clean networks": (
        lambda: {"params_ema": {"style_conv1.bias": torch.ones(1, WIDTHS[4], 1, 1)} | basicsr(pt_generator(1))},
        'this is BasicSR\'s "clean" StyleGAN2, whose weights are scaled otherwise; convert the original that it '
        "came from",
    ),
    "nothing known": (
        lambda: {"model": {"features.0.weight": torch.ones(2, 2)}, "epoch": 3},
        "x.pt holds no generator of a known layout, but ['model', 'epoch']",
    ),
    "a list": (lambda: [torch.ones(2)], "x.pt holds no generator of a known layout, but a list"),
    "a discriminator alone": (
        lambda: {"d": pt_discriminator(2)},
        "x.pt holds no generator, only a StyleGAN2 discriminator (d)",
    ),
    "a damaged discriminator": (
        lambda: {"g_ema": pt_generator(1), "d": {n: v for n, v in pt_discriminator(2).items() if n[:9] != "convs.0.0"}},
        "d looks like the StyleGAN2 discriminator but has no tensor 'convs.0.0.weight'; it is damaged",
    ),
    "two averages": (
        lambda: {"g_ema": pt_generator(1), "params_ema": pt_generator(1)},
        "both g_ema and params_ema are a moving average of a generator; give the file or folder of one",
    ),
}


@pytest.mark.parametrize("prefix", ["", "module."])
@pytest.mark.parametrize("what", UNSUPPORTED)
def test_what_does_not_convert_says_so_in_one_sentence(tmp_path, what, prefix):
    make, sentence = UNSUPPORTED[what]
    data = make()
    if prefix and isinstance(data, dict):
        data = {k: prefixed(prefix, v) if isinstance(v, dict) else v for k, v in data.items()}
        if what == "a damaged discriminator":
            sentence = sentence.replace("'convs", "'module.convs")
    torch.save(data, tmp_path / "x.pt")
    with pytest.raises(ConversionError) as error:
        convert_checkpoint(tmp_path / "x.pt")
    assert str(error.value) == sentence
