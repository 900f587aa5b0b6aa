"""The papers' own adapter files with random weights, and their formulas.

The reference functions run the files' tensors directly and share no code with the package.
"""

import torch
import torch.nn.functional as F

from fewshot_gan import FewShotGAN
from fewshot_gan.convert import convert_checkpoint
from helpers.plain_checkpoints import act
from helpers.stylegan2_checkpoints import RESOLUTIONS, WIDTHS, W, Z, enlarged, filtered, lrelu
from helpers.tensors import normal_source

# float32 against float32 in another order of summation, at most 13 layers deep; pictures are of size 1 to 10
TOLERANCE = {"atol": 1e-4, "rtol": 1e-5}
MAPPING = 8  # layers


def same(got, want, other):
    """`got` is `want`, and both are far from the picture `other` of the base alone."""
    torch.testing.assert_close(got, want, **TOLERANCE)
    assert (want - other).abs().max() > 0.05 and want.std() > 0.05  # far above the tolerance: something was compared


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


def stylegan2_picture(g, ws, change=unchanged, after=lambda k, weight: weight):
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
    r, state = normal_source(5), {}
    for k, (_, inn, out, kernel) in enumerate(layer_names()):
        for leaf in (leaves or FORMULAS[key][0]) if kernel == 3 else ():
            value = (leaf == "gamma") + 0.3 * r(*SHAPES[leaf](inn, out))
            state[f"heads.conv_{k}.{leaf}"] = value * (not zero or leaf not in ZERO)
    sizes = {"img_size": RESOLUTIONS[-1], "latent_size": W, "map_layers": MAPPING, "channel_multiplier": 2}
    sizes |= {"checkpoint_path": "ffhq.pt", "device": "cuda:0"}
    data = {"model_type": "parametrization", "patch_key": key, "state_dict": state, "sg2_params": sizes}
    data |= {"da_type": da_type} | ({"style_latents": normal_source(6)(1, 1, W)} if da_type == "im2im" else {})
    return data | changes


def modulation(rank, adds=True, seed=11):
    """`*.weight_modulation.*`, far from the identity; some inner products are negative."""
    r, state = normal_source(seed), {}

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


def changed(state, **values):
    return {name: values.get(name.replace(".", "__"), value) for name, value in state.items()}


ENDS = [8, 8, 8, 6, 6, 5, 4]  # widths of a source: of the 4×4 start, then of each scale


def gp_gan(scales, blocks, kernel=3, classes=5, size=3, z=6):
    r, widths = normal_source(21), ENDS[-scales - 1 :]
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
    r, state = normal_source(22), {}
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
    r, c = normal_source(23), g[f"resnet_{first_scale}_0.conv_0.weight"].shape[1]
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
