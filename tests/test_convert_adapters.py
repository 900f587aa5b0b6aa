"""The papers' own adapter files: the adapted picture equals the one of the papers' formulas, and misfits are refused.

The reference functions below run the files' tensors directly and share no code with the package.
"""

import argparse
import json

import pytest
import torch
import torch.nn.functional as F
from conftest import tiny_mobile, tiny_stylegan2
from test_convert import RESOLUTIONS, WIDTHS, W, Z, enlarged, filtered, lrelu, pt_generator, rand
from typer.testing import CliRunner

from fewshot_gan import FewShotGAN, adapter_base, import_adapter
from fewshot_gan.adapters import AdaFMAdapter, DomainVectorAdapter, GANMemoryAdapter, LeFTAdapter, fingerprint
from fewshot_gan.cli import app
from fewshot_gan.convert import ConversionError, convert_checkpoint

# float32 against float32 in another order of summation, at most 13 layers deep; pictures are of size 1 to 10
TOLERANCE = {"atol": 1e-4, "rtol": 1e-5}
MAPPING = 8  # layers


def same(got, want, other):
    """`got` is `want`, and both are far from the picture `other` of the base alone."""
    torch.testing.assert_close(got, want, **TOLERANCE)
    assert (want - other).abs().max() > 0.05 and want.std() > 0.05  # far above the tolerance: something was compared


@pytest.fixture(scope="module")
def converted(tmp_path_factory):
    """A generator in the layout of StyleGAN2's PyTorch port, and our pipeline of it as it was saved."""
    folder, tensors = tmp_path_factory.mktemp("port"), pt_generator(1, MAPPING)
    torch.save({"g_ema": tensors, "latent_avg": rand(3)(W)}, folder / "port.pt")
    FewShotGAN(convert_checkpoint(folder / "port.pt")["generator"]).save_pretrained(folder / "base")
    return tensors, folder / "base"


@pytest.fixture
def port(converted):
    tensors, folder = converted
    return tensors, FewShotGAN.from_pretrained(folder)


def layer_names():
    """(name, I, O, kernel) of every modulated convolution, styled ones first and in their order."""
    styled = [("conv1", WIDTHS[4], WIDTHS[4], 3)]
    rgb = [("to_rgb1", WIDTHS[4], 3, 1)]
    for i, res in enumerate(RESOLUTIONS[1:]):
        styled += [(f"convs.{2 * i}", WIDTHS[res // 2], WIDTHS[res], 3), (f"convs.{2 * i + 1}", *[WIDTHS[res]] * 2, 3)]
        rgb += [(f"to_rgbs.{i}", WIDTHS[res], 3, 1)]
    return styled + rgb


def unchanged(name, weight, bias=None):
    return weight if bias is None else (weight, bias)


def mapped(g, z, change=unchanged):
    x = z / (z.square().mean(1, keepdim=True) + 1e-8).sqrt()
    for i in range(1, MAPPING + 1):
        weight, bias = change(f"style.{i}", g[f"style.{i}.weight"], g[f"style.{i}.bias"])
        x = lrelu(x @ (weight * 0.01 / weight.shape[1] ** 0.5).t() + bias * 0.01)
    return x


def picture(g, ws, change=unchanged, after=lambda k, weight: weight):
    """Pictures of `ws` `[B, L, D]`: `change` acts on stored weights, `after` on demodulated ones."""
    pictures = []
    for w in ws:

        def conv(name, x, style, k=None, up=False):
            a, b = change(f"{name}.conv.modulation", *(g[f"{name}.conv.modulation.{x}"] for x in ("weight", "bias")))
            weight = change(f"{name}.conv", g[f"{name}.conv.weight"][0])
            weight = weight / weight[0].numel() ** 0.5 * (a @ style / a.shape[1] ** 0.5 + b)[None, :, None, None]
            if k is None:
                return F.conv2d(x[None], weight)[0] + g[f"{name}.bias"][0]
            weight = after(k, weight * (weight.square().sum((1, 2, 3), keepdim=True) + 1e-8).rsqrt())
            if up:
                y = filtered(F.conv_transpose2d(x[None], weight.transpose(0, 1), stride=2)[0], (1, 1, 1, 1), 4)
            else:
                y = F.conv2d(x[None], weight, padding=1)[0]
            y = y + g[f"noises.noise_{k}"][0] * g[f"{name}.noise.weight"]
            return lrelu(y + g[f"{name}.activate.bias"][:, None, None])

        x = conv("conv1", g["input.input"][0], w[0], 0)
        image = conv("to_rgb1", x, w[1])
        for i in range(len(RESOLUTIONS) - 1):
            x = conv(f"convs.{2 * i}", x, w[2 * i + 1], 2 * i + 1, up=True)
            x = conv(f"convs.{2 * i + 1}", x, w[2 * i + 2], 2 * i + 2)
            image = enlarged(image) + conv(f"to_rgbs.{i}", x, w[2 * i + 3])
        pictures.append(image)
    return torch.stack(pictures)


def every_row(w):
    return w[:, None].expand(-1, 2 * len(RESOLUTIONS), -1)


# ------------------------------------------------------------------------------------------------------ HyperDomainNet

SHAPES = {  # of the heads' tensors, of I inputs and O outputs
    "params_in": lambda i, o: (1, 1, i, 1, 1),
    "params_out": lambda i, o: (1, o, 1, 1, 1),
    "shift": lambda i, o: (1, o, i, 1, 1),
    "gamma": lambda i, o: (1, o, 1, 1, 1),
    "beta": lambda i, o: (1, o, 1, 1, 1),
    "params_kernel": lambda i, o: (1, 1, 1, 3, 3),
    "singular_shift": lambda i, o: (o,),
}
FORMULAS = {  # patch_key: tensors of its heads, what they make of the demodulated weight [1, O, I, 3, 3]
    "cin_mult": (["params_in"], lambda w, h: w * (1 + h["params_in"])),
    "cout_mult": (["params_out"], lambda w, h: w * (1 + h["params_out"])),
    "csep_mult": (["params_in", "params_out"], lambda w, h: w * (1 + h["params_in"] + h["params_out"])),
    "cfull_mult": (["shift"], lambda w, h: w * (1 + h["shift"])),
    "aff_cout_no_beta": (["gamma"], lambda w, h: w * h["gamma"]),
    "aff_cout": (["gamma", "beta"], lambda w, h: w * h["gamma"] + h["beta"]),
    "cink_mult": (["params_in", "params_kernel"], lambda w, h: w * (1 + h["params_in"] + h["params_kernel"])),
    "coutk_mult": (["params_out", "params_kernel"], lambda w, h: w * (1 + h["params_out"] + h["params_kernel"])),
}
ZERO = ("beta", "params_kernel")  # in files that are domain vectors


def domain(key, da_type="td", leaves=None, zero=True, **changes):
    """A file of one domain."""
    r, state = rand(5), {}
    for k, (_, inn, out, kernel) in enumerate(layer_names()):
        for leaf in (leaves or FORMULAS[key][0]) if kernel == 3 else ():
            value = (leaf == "gamma") + 0.3 * r(*SHAPES[leaf](inn, out))
            state[f"heads.conv_{k}.{leaf}"] = value * (not zero or leaf not in ZERO)
    sizes = {"img_size": RESOLUTIONS[-1], "latent_size": W, "map_layers": MAPPING, "channel_multiplier": 2}
    sizes |= {"checkpoint_path": "ffhq.pt", "device": "cuda:0"}
    data = {"model_type": "parametrization", "patch_key": key, "state_dict": state, "sg2_params": sizes}
    data |= {"da_type": da_type} | ({"style_latents": rand(6)(1, 1, W)} if da_type == "im2im" else {})
    return data | changes


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

    ws = rand(7)(2, 2 * len(RESOLUTIONS), W)  # every layer its own style
    want = picture(g, ws, after=after)
    pipe.load_adapter(adapter)
    with torch.no_grad():
        got = pipe.generator(ws, latent_space="w+")
    record_property("difference", float((got - want).abs().max()))
    same(got, want, picture(g, ws))


def test_an_image_domain_says_what_is_no_part_of_it(tmp_path, port, caplog):
    g, pipe = port
    data = domain("cin_mult", "im2im")
    torch.save(data, tmp_path / "image.pt")
    adapter = import_adapter(tmp_path / "image.pt", pipe.generator)
    assert "style_latents (1, 1, 6) are no part of the adapter" in caplog.text and "from 7 on" in caplog.text
    assert adapter.config.training["da_type"] == "im2im"
    ws = every_row(mapped(g, rand(8)(2, Z))).clone()
    ws[:, 7:] = data["style_latents"]  # as the authors' code does with its 18 rows
    pipe.load_adapter(adapter)
    want = picture(g, ws, after=lambda k, w: w * (1 + data["state_dict"][f"heads.conv_{k}.params_in"][0]))
    with torch.no_grad():
        same(pipe.generator(ws, latent_space="w+"), want, picture(g, ws))


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


# -------------------------------------------------------------------------------------------------------------- LFS-GAN


def modulation(rank, adds=True, seed=11):
    """`*.weight_modulation.*`, far from the identity; some inner products are negative."""
    r, state = rand(seed), {}

    def near(start, *shape, std=0.3):
        return start + std * r(*shape)

    def linear(name, inn, out):
        n = f"{name}.weight_modulation"
        if rank is None:
            state.update({f"{n}.w_mul": near(1, out, inn), f"{n}.b_mul": near(1, out)})
            state.update({f"{n}.w_add": near(0, out, inn), f"{n}.b_add": near(0, out)} if adds else {})
            return
        for x, size in (("in", inn), ("out", out)):
            state[f"{n}.w_mul_{x}_dim"] = near(rank**-0.5, size, rank)
            state.update({f"{n}.w_add_{x}_dim": near(0, size, rank)} if adds else {})
        state[f"{n}.b_mul"] = near(1, out)
        state.update({f"{n}.b_add": near(0, out)} if adds else {})

    for i in range(MAPPING):
        linear(f"style.{i + 1}", W if i else Z, W)
    for name, inn, out, k in layer_names():
        linear(f"{name}.conv.modulation", W, inn)
        n = f"{name}.conv.weight_modulation"
        if rank is None:
            state[f"{n}.w_mul"] = near(1, out, inn, k, k)
            state.update({f"{n}.w_add": near(0, out, inn, k, k)} if adds else {})
            continue
        start = rank ** (-2 / 3)
        state[f"{n}.w_mul1_out_channel_wise"] = near(start, out, rank, std=0.8)
        state[f"{n}.w_mul1_instance_wise"] = near(start, rank, rank, k * k)
        state[f"{n}.w_mul2_in_channel_wise"] = near(start, inn, rank)
        if adds:
            state[f"{n}.w_add1_out_channel_bias"] = near(0, out, rank, std=0.8)
            state[f"{n}.w_add1_instance_bias"] = near(0, k * k, rank, std=0.8)
            state[f"{n}.w_add2_in_channel_bias"] = near(0, inn, rank)
            state[f"{n}.w_add2_instance_bias"] = near(0, k * k, rank)
    return state


def left(state, rank, relu=True):
    """What LFS-GAN makes of a stored weight (and bias), sum by sum."""

    def change(name, weight, bias=None):
        n = f"{name}.weight_modulation."
        m = {key.removeprefix(n): value for key, value in state.items() if key.startswith(n)}
        if rank is None:
            scale, shift = m["w_mul"], m.get("w_add", 0)
        elif bias is not None:
            scale, shift = torch.zeros_like(weight), torch.zeros_like(weight)
            for t in range(rank):
                scale += torch.outer(m["w_mul_out_dim"][:, t], m["w_mul_in_dim"][:, t])
                if "w_add_in_dim" in m:
                    shift += torch.outer(m["w_add_out_dim"][:, t], m["w_add_in_dim"][:, t])
        else:
            out, inn, k, _ = weight.shape
            scale, shift = torch.zeros(out, inn, k * k), torch.zeros(inn, k * k)
            for s in range(rank):
                inner = torch.zeros(out, k * k)
                for t in range(rank):
                    inner += torch.outer(m["w_mul1_out_channel_wise"][:, t], m["w_mul1_instance_wise"][s, t])
                    if "w_add1_instance_bias" in m:
                        inner += torch.outer(m["w_add1_out_channel_bias"][:, t], m["w_add1_instance_bias"][:, t])
                inner = inner.clip(min=0) if relu else inner
                scale += inner[:, None] * m["w_mul2_in_channel_wise"][None, :, s, None]
                if "w_add2_instance_bias" in m:
                    shift += torch.outer(m["w_add2_in_channel_bias"][:, s], m["w_add2_instance_bias"][:, s])
            scale, shift = scale.view(weight.shape), shift.view(weight.shape[1:])
        new = weight * scale + shift
        return new if bias is None else (new, bias * m["b_mul"] + m.get("b_add", 0))

    return change


@pytest.mark.parametrize("adds", [True, False])
@pytest.mark.parametrize("rank", [1, 2, 4, None])
def test_modulations_equal_their_formula(tmp_path, port, rank, adds, record_property):
    g, pipe = port
    state = modulation(rank, adds)
    torch.save({"g_ema": state}, tmp_path / "Sketches_003000.pt")
    adapter = import_adapter(tmp_path / "Sketches_003000.pt", pipe)
    assert isinstance(adapter, LeFTAdapter) and adapter.rank == rank and adapter.use_activation
    z = rand(12)(2, Z)
    change = left(state, rank)
    want = picture(g, every_row(mapped(g, z, change)), change)
    pipe.load_adapter(adapter)
    with torch.no_grad():
        got = pipe.generator(z)
        torch.testing.assert_close(pipe.generator.map_latents(z)[:, 0], mapped(g, z, change), **TOLERANCE)
    record_property("difference", float((got - want).abs().max()))
    same(got, want, picture(g, every_row(mapped(g, z))))


def held(state, kind):
    """Everything of a module of LFS-GAN at its start but the kind of layer that is looked at."""
    kinds = {"mapping": "style.", "affine": ".conv.modulation.", "conv": "conv", "to_rgb": "to_rgb"}

    def is_of(name):
        affine = kinds["affine"] in name
        return affine if kind == "affine" else not affine and name.startswith(kinds[kind])

    starts = {"w_mul": 1.0, "b_mul": 1.0}  # of rank 1
    return {
        n: v if is_of(n) else torch.full_like(v, next((x for k, x in starts.items() if k in n), 0.0))
        for n, v in state.items()
    }


@pytest.mark.parametrize("kind", ["mapping", "affine", "conv", "to_rgb"])
def test_modulations_of_each_kind_of_layer(tmp_path, port, kind):
    g, pipe = port
    state, z = held(modulation(1), kind), rand(13)(2, Z)
    torch.save(state, tmp_path / "task.pt")  # the state dict itself
    pipe.load_adapter(import_adapter(tmp_path / "task.pt", pipe))
    change = left(state, 1)
    want = picture(g, every_row(mapped(g, z, change)), change)
    with torch.no_grad():
        same(pipe.generator(z), want, picture(g, every_row(mapped(g, z))))


@pytest.mark.parametrize("relu", [True, False])
@pytest.mark.parametrize("container", [dict, lambda **options: argparse.Namespace(**options)])
def test_modulations_know_their_activation_from_the_file(tmp_path, port, caplog, relu, container):
    g, pipe = port
    state = modulation(2)
    torch.save({"g_ema": state, "args": container(left_use_act=relu, rank=2)}, tmp_path / "task.pt")
    adapter = import_adapter(tmp_path / "task.pt", pipe)
    assert adapter.use_activation is relu and not caplog.text
    z, change = rand(14)(2, Z), left(state, 2, relu)
    pipe.load_adapter(adapter)
    with torch.no_grad():
        same(
            pipe.generator(z),
            picture(g, every_row(mapped(g, z, change)), change),
            picture(g, every_row(mapped(g, z, other := left(state, 2, not relu))), other),
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


def changed(state, **values):
    return {name: values.get(name.replace(".", "__"), value) for name, value in state.items()}


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

ENDS = [8, 8, 8, 6, 6, 5, 4]  # widths of a source: of the 4×4 start, then of each scale


def act(x):
    return F.leaky_relu(x, 0.2)


def gp_gan(scales, blocks, kernel=3, classes=5, size=3, z=6):
    r, widths = rand(21), ENDS[-scales - 1 :]
    g = {
        "embedding.weight": r(classes, size),
        "fc.weight": r(widths[0] * 16, z + size) / 3,
        "fc.bias": r(widths[0] * 16),
    }
    g |= {"conv_img.weight": r(3, widths[-1], kernel, kernel) / 8, "conv_img.bias": r(3) / 8}
    for i in range(scales):
        for j in range(blocks):
            inn, out = widths[i + (j > 0)], widths[i + 1]
            name, inner = f"resnet_{i}_{j}", min(inn, out)
            g |= {f"{name}.conv_0.weight": r(inner, inn, 3, 3) / 4, f"{name}.conv_0.bias": r(inner)}
            g |= {f"{name}.conv_1.weight": r(out, inner, 3, 3) / 4, f"{name}.conv_1.bias": r(out)}
            g |= {f"{name}.conv_s.weight": r(out, inn, 1, 1) / 2} if inn != out else {}
    return g


def source_of(g, folder):
    torch.save({"generator": g}, folder / "source.pt")
    return FewShotGAN(convert_checkpoint(folder / "source.pt")["generator"])


def gp_gan_blocks(s, x, scales, change=lambda n, layer, weight, bias: (weight, bias)):
    """The scales `scales` of the state dict `s`, each enlarged before but 4×4."""
    for i in scales:
        x = F.interpolate(x, scale_factor=2) if i else x
        for n in sorted({name.split(".")[0] for name in s if name.startswith(f"resnet_{i}_")}):
            y = x
            for layer in "01":
                weight, bias = change(n, layer, s[f"{n}.conv_{layer}.weight"], s[f"{n}.conv_{layer}.bias"])
                y = F.conv2d(act(y), weight, bias, padding=1)
            x = (F.conv2d(x, s[f"{n}.conv_s.weight"]) if f"{n}.conv_s.weight" in s else x) + 0.1 * y
    return torch.tanh(
        F.conv2d(act(x), s["conv_img.weight"], s["conv_img.bias"], padding=s["conv_img.weight"].shape[-1] // 2)
    )


def gp_gan_start(g, z, labels, normalise):
    e = g["embedding.weight"][labels]
    e = e / e.norm(dim=1, keepdim=True) if normalise else e
    return torch.cat([z, e], 1)


def adafm_tensors(g, scales, name="small_adafm_", std=0.5):
    r, state = rand(22), {}
    for key in [key for key in g if key.split("_")[1:2] and key.endswith("weight") and ".conv_" in key]:
        block, _, layer = key.removesuffix(".weight").rpartition(".conv_")
        if layer in "01" and int(block.split("_")[1]) in scales:
            shape = (*g[key].shape[:2], 1, 1)
            state[f"{block}.{name}{layer}.style_gama"] = 1 + std * r(*shape)
            state[f"{block}.{name}{layer}.style_beta"] = 0.1 * r(*shape)
    return state


def scaled(state, name="small_adafm_"):
    def change(block, layer, weight, bias):
        n = f"{block}.{name}{layer}"
        if f"{n}.style_gama" not in state:
            return weight, bias
        out, inn, *_ = weight.shape
        new = weight.clone()
        for o in range(out):
            for i in range(inn):
                new[o, i] = state[f"{n}.style_gama"][o, i, 0, 0] * weight[o, i] + state[f"{n}.style_beta"][o, i, 0, 0]
        return new, bias

    return change


def specific_part(g, first_scale, z=4, style=7, layers=8, gain=1000.0):
    """The part in front of scale `first_scale`: style blocks up to the size before it."""
    r, c = rand(23), g[f"resnet_{first_scale}_0.conv_0.weight"].shape[1]
    s = {"small_embedding.weight": r(1, 3), "small_fc.weight": r(c * 16, z), "small_fc.bias": r(c * 16)}
    for i in range(layers):
        n = f"small_style.{2 * i + 1}.linear"
        s |= {f"{n}.weight": r(style, style if i else z) / 2, f"{n}.bias": r(style)}
    for b in range(2, first_scale + 1):
        n = f"small_net_{b}"
        s |= {
            f"{n}.conv_0.weight": r(c, c, 4, 4) / 8,
            f"{n}.conv_0.bias": r(c),
            f"{n}.conv_s.weight": r(c, c, 4, 4) / 8,
        }
        s |= {f"{n}.conv_1.conv.weight": r(c, c, 3, 3) / 8, f"{n}.conv_1.conv.bias": r(c)}
        for j in range(2):
            s |= {f"{n}.noise_{j}.weight": r(1, c, 1, 1)}
            s |= {f"{n}.adain_{j}.style.linear.weight": r(2 * c, style), f"{n}.adain_{j}.style.linear.bias": r(2 * c)}
    size = 4 << (first_scale - 1)
    s |= {"small_H.norm.weight": r(size, size), "small_H.norm.bias": r(size, size)}
    return s | {"small_H.weight": gain + r(1, c, 1, 1), "small_H.beta": r(1, c, 1, 1)}


def specific_features(s, z, noises):
    """`[B, C, H, W]` of the specific part; `noises`: (block, 0 or 1) → `[1, 1, H, W]`."""
    style, i = z / (z.square().mean(1, keepdim=True) + 1e-8).sqrt(), 1
    while f"small_style.{i}.linear.weight" in s:
        style = act(F.linear(style, s[f"small_style.{i}.linear.weight"], s[f"small_style.{i}.linear.bias"]))
        i += 2
    x = F.linear(z, s["small_fc.weight"], s["small_fc.bias"]).view(len(z), -1, 4, 4)
    b = 2
    while (n := f"small_net_{b}") + ".conv_0.weight" in s:
        y = x
        for j in range(2):
            if j:
                y = F.conv2d(act(y), s[f"{n}.conv_1.conv.weight"], s[f"{n}.conv_1.conv.bias"], padding=1)
            else:
                y = F.conv_transpose2d(act(y), s[f"{n}.conv_0.weight"], s[f"{n}.conv_0.bias"], 2, 1)
            y = y + s[f"{n}.noise_{j}.weight"] * noises[b, j]
            centred = y - y.mean((2, 3), keepdim=True)
            y = centred / (centred.square().mean((2, 3), keepdim=True) + 1e-5).sqrt()
            affine = F.linear(style, s[f"{n}.adain_{j}.style.linear.weight"], s[f"{n}.adain_{j}.style.linear.bias"])
            gamma, beta = affine[..., None, None].split(y.shape[1], 1)
            y = gamma * y + beta
        x = F.conv_transpose2d(x, s[f"{n}.conv_s.weight"], None, 2, 1) + 0.1 * y
        b += 1
    centred = x - x.mean((2, 3), keepdim=True)
    normed = centred / (centred.square().mean((2, 3), keepdim=True) + 1e-5).sqrt()
    normed = normed * s["small_H.norm.weight"] + s["small_H.norm.bias"]
    return 0.01 * normed + normed * s["small_H.weight"] + s["small_H.beta"]


def own_noises(generator):
    sizes = {b: getattr(generator, f"b{8 << i}") for i, b in enumerate(range(2, 2 + len(generator.style_resolutions)))}
    return {(b, j): getattr(block, f"noise{j}").const for b, block in sizes.items() for j in range(2)}


def weaker(g, gain):
    """A source whose pictures are of size 1 behind features of `gain`."""
    return g | {"conv_img.weight": g["conv_img.weight"] / gain}


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
    z = rand(24)(3, 4)
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
    z, labels = rand(25)(3, 6), torch.tensor([0, 4, 2])
    x = F.linear(gp_gan_start(g, z, labels, blocks == 2), g["fc.weight"], g["fc.bias"]).view(3, -1, 4, 4)
    want = gp_gan_blocks(g, x, range(4), scaled(state))
    with torch.no_grad():
        got = pipe.generator(z, labels)
    record_property("difference", float((got - want).abs().max()))
    same(got, want, gp_gan_blocks(g, x, range(4)))


@pytest.mark.parametrize("blocks", [1, 2])
def test_gan_memory_equals_its_formula(tmp_path, blocks, record_property):
    g, r = gp_gan(4, blocks, 7), rand(26)
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
    z, labels = rand(25)(3, 6), torch.tensor([0, 4, 2])
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


def files(folder):
    """A file of each paper: name → what is in it."""
    g = gp_gan(4, 2)
    memory = {"AdaFM_fc.gamma": torch.ones(1, 8), "AdaFM_fc.beta": torch.ones(1, 8)}
    return {
        "HyperDomainNet": domain("cin_mult"),
        "LFS-GAN": {"g_ema": modulation(1)},
        "AdaFM transfer": g | adafm_tensors(g, (2, 3)),
        "GAN Memory": memory,
    }


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
    z, change = rand(31)(2, Z), left(state, 1)
    pipe.load_adapter(tmp_path / "sketch")
    with torch.no_grad():
        torch.testing.assert_close(pipe.generator(z), picture(g, every_row(mapped(g, z, change)), change), **TOLERANCE)


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
    z = rand(24)(3, 4)
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
