"""Published StyleGAN2 checkpoints of random weights, and the layouts' own functions.

The reference functions run a checkpoint's tensors directly, sample by sample with explicitly modulated weights, and
share no code with the package.
"""

import types

import numpy as np
import torch
import torch.nn.functional as F

from helpers.nvidia_pickles import EasyDict, tree, write
from helpers.tensors import normal_source

R, Z, W = 32, 7, 6
WIDTHS = {4: 12, 8: 12, 16: 8, 32: 4}  # min(128 // r, 12)
RESOLUTIONS = list(WIDTHS)
BLUR = torch.outer(torch.tensor([1.0, 3, 3, 1]), torch.tensor([1.0, 3, 3, 1])) / 64


def lrelu(x):
    return torch.where(x > 0, x, 0.2 * x) * 2**0.5


def filtered(x, pad, gain):
    """`[C, H, W]`, zero padding `(left, right, top, bottom)`."""
    return F.conv2d(F.pad(x, pad)[:, None], BLUR[None, None] * gain)[:, 0]


def enlarged(image):
    """`[3, H, W]` → `[3, 2H, 2W]`: zeros between the pixels, then the filter."""
    stuffed = torch.zeros(3, 2 * image.shape[1], 2 * image.shape[2])
    stuffed[:, ::2, ::2] = image
    return filtered(stuffed, (2, 1, 2, 1), 4)


def modulated(x, weight, style, demodulate=True, up=False):
    """One sample `[I, H, W]`."""
    weight = weight * style[None, :, None, None]
    if demodulate:
        weight = weight / weight.flatten(1).norm(dim=1)[:, None, None, None]
    if up:
        y = F.conv_transpose2d(x[None], weight.transpose(0, 1), stride=2)[0]
        return filtered(y, (1, 1, 1, 1), 4)
    return F.conv2d(x[None], weight, padding=weight.shape[-1] // 2)[0]


def clip(x, limit):
    return x if limit is None else x.clip(-limit, limit)


def synthesis(ws, const, layer, rgb, limit=None):
    """`layer(res, n)`, `rgb(res)`: (weight, style weight, style bias, bias, noise, noise strength) of a layer."""
    images = []
    for w in ws:  # [L, D]

        def run(x, parts, style, up):
            weight, affine, affine_bias, bias, noise, strength = parts
            s = affine @ style / affine.shape[1] ** 0.5 + affine_bias
            y = modulated(x, weight, s, up=up) + noise * strength + bias[:, None, None]
            return clip(lrelu(y), limit)

        x, image = const, None
        for level, res in enumerate(RESOLUTIONS):
            if level:
                x = run(x, layer(res, 0), w[2 * level - 1], True)
            x = run(x, layer(res, 1), w[2 * level], False)
            weight, affine, affine_bias, bias, *_ = rgb(res)
            s = affine @ w[2 * level + 1] / affine.shape[1] ** 0.5 + affine_bias
            y = modulated(x, weight / weight.shape[1] ** 0.5, s, demodulate=False) + bias[:, None, None]
            image = clip(y, limit) if image is None else enlarged(image) + clip(y, limit)
        images.append(image)
    return torch.stack(images)


def mapped(z, layers, lr=0.01):
    x = z / (z.square().mean(1, keepdim=True) + 1e-8).sqrt()
    for weight, bias in layers:
        x = lrelu(x @ (weight * lr / weight.shape[1] ** 0.5).t() + bias * lr)
    return x


def judged(images, part, group, limit=None):
    """`part(block, layer)` gives (weight, bias); bias None for the skip."""

    def shrunk(x, pad):
        return torch.stack([filtered(sample, (pad,) * 4, 1) for sample in x])

    x = equalised(images, *part(R, "rgb"), True, 0, limit=limit)
    for res in RESOLUTIONS[:0:-1]:
        skip = equalised(shrunk(x, 1), *part(res, "skip"), False, 0, 2)  # the only layer without a limit
        x = equalised(x, *part(res, "conv0"), True, 1, limit=limit)
        x = equalised(shrunk(x, 2), *part(res, "conv1"), True, 0, 2, limit)
        x = (x + skip) / 2**0.5
    n = len(x)
    group = min(group, n)
    extra = torch.zeros(n, 1, 4, 4)
    for i in range(n):
        members = x[[j for j in range(n) if j % (n // group) == i % (n // group)]]
        extra[i] = (members.var(0, unbiased=False) + 1e-8).sqrt().mean()
    x = equalised(torch.cat([x, extra], 1), *part(4, "conv"), True, 1, limit=limit).flatten(1)
    for name in ("fc", "out"):
        weight, bias = part(4, name)
        x = x @ weight.t() / weight.shape[1] ** 0.5 + bias
        x = lrelu(x) if name == "fc" else x
    return x


def pt_generator(seed, mapping=8):
    r, g = normal_source(seed), {}
    for i in range(mapping):
        g[f"style.{i + 1}.weight"], g[f"style.{i + 1}.bias"] = r(W, Z if i == 0 else W) * 100, r(W) * 10
    g["input.input"] = r(1, WIDTHS[4], 4, 4)

    def conv(name, inn, out, k):
        g[f"{name}.conv.weight"] = r(1, out, inn, k, k)
        g[f"{name}.conv.modulation.weight"], g[f"{name}.conv.modulation.bias"] = r(inn, W), 1 + 0.1 * r(inn)
        if k == 3:
            g[f"{name}.noise.weight"], g[f"{name}.activate.bias"] = 0.3 * r(1), r(out)
        else:
            g[f"{name}.bias"] = r(1, 3, 1, 1)

    conv("conv1", WIDTHS[4], WIDTHS[4], 3)
    conv("to_rgb1", WIDTHS[4], 3, 1)
    g["noises.noise_0"] = r(1, 1, 4, 4)
    for i, res in enumerate(RESOLUTIONS[1:]):
        conv(f"convs.{2 * i}", WIDTHS[res // 2], WIDTHS[res], 3)
        g[f"convs.{2 * i}.conv.blur.kernel"] = BLUR * 4
        conv(f"convs.{2 * i + 1}", WIDTHS[res], WIDTHS[res], 3)
        conv(f"to_rgbs.{i}", WIDTHS[res], 3, 1)
        g[f"to_rgbs.{i}.upsample.kernel"] = BLUR * 4
        g[f"noises.noise_{2 * i + 1}"], g[f"noises.noise_{2 * i + 2}"] = r(1, 1, res, res), r(1, 1, res, res)
    return g


def pt_discriminator(seed):
    r = normal_source(seed)
    d = {"convs.0.0.weight": r(WIDTHS[R], 3, 1, 1), "convs.0.1.bias": r(WIDTHS[R])}
    for i, res in enumerate(RESOLUTIONS[:0:-1]):
        inn, out, name = WIDTHS[res], WIDTHS[res // 2], f"convs.{i + 1}"
        d |= {f"{name}.conv1.0.weight": r(inn, inn, 3, 3), f"{name}.conv1.1.bias": r(inn)}
        d |= {f"{name}.conv2.1.weight": r(out, inn, 3, 3), f"{name}.conv2.2.bias": r(out)}
        d |= {f"{name}.skip.1.weight": r(out, inn, 1, 1)}
        d |= {f"{name}.conv2.0.kernel": BLUR, f"{name}.skip.0.kernel": BLUR}
    c = WIDTHS[4]
    d |= {"final_conv.0.weight": r(c, c + 1, 3, 3), "final_conv.1.bias": r(c)}
    d |= {"final_linear.0.weight": r(c, c * 16), "final_linear.0.bias": r(c)}
    return d | {"final_linear.1.weight": r(1, c), "final_linear.1.bias": r(1)}


def pt_functions(g, d):
    def layer(res, n):
        i = RESOLUTIONS.index(res)
        name, noise = ("conv1", 0) if res == 4 else (f"convs.{2 * (i - 1) + n}", 2 * i - 1 + n)
        return (
            g[f"{name}.conv.weight"][0],
            g[f"{name}.conv.modulation.weight"],
            g[f"{name}.conv.modulation.bias"],
            g[f"{name}.activate.bias"],
            g[f"noises.noise_{noise}"][0, 0],
            g[f"{name}.noise.weight"],
        )

    def rgb(res):
        name = "to_rgb1" if res == 4 else f"to_rgbs.{RESOLUTIONS.index(res) - 1}"
        modulation = g[f"{name}.conv.modulation.weight"], g[f"{name}.conv.modulation.bias"]
        return g[f"{name}.conv.weight"][0], *modulation, g[f"{name}.bias"].flatten()

    def part(res, what):
        block = f"convs.{1 + RESOLUTIONS[:0:-1].index(res)}" if res > 4 else ""
        names = {
            "rgb": ("convs.0.0.weight", "convs.0.1.bias"),
            "skip": (f"{block}.skip.1.weight", None),
            "conv0": (f"{block}.conv1.0.weight", f"{block}.conv1.1.bias"),
            "conv1": (f"{block}.conv2.1.weight", f"{block}.conv2.2.bias"),
            "conv": ("final_conv.0.weight", "final_conv.1.bias"),
            "fc": ("final_linear.0.weight", "final_linear.0.bias"),
            "out": ("final_linear.1.weight", "final_linear.1.bias"),
        }[what]
        return d[names[0]], names[1] and d[names[1]]

    layers = [(g[f"style.{i}.weight"], g[f"style.{i}.bias"]) for i in range(1, 9)]
    return (
        lambda z: mapped(z, layers),
        lambda ws: synthesis(ws, g["input.input"][0], layer, rgb),
        lambda x: judged(x, part, 4),
    )


def pkl_generator(seed, mapping=2):
    r, g = normal_source(seed), {}
    for i in range(mapping):
        g[f"mapping.fc{i}.weight"], g[f"mapping.fc{i}.bias"] = r(W, Z if i == 0 else W) * 100, r(W) * 10
    g["mapping.w_avg"], g["synthesis.b4.const"] = r(W), r(WIDTHS[4], 4, 4)
    for res in RESOLUTIONS:
        block = f"synthesis.b{res}"
        g[f"{block}.resample_filter"] = BLUR
        for name, inn, out, k in [
            ("conv0", WIDTHS.get(res // 2), WIDTHS[res], 3),
            ("conv1", WIDTHS[res], WIDTHS[res], 3),
            ("torgb", WIDTHS[res], 3, 1),
        ]:
            if inn is None:
                continue
            g[f"{block}.{name}.weight"], g[f"{block}.{name}.bias"] = r(out, inn, k, k), r(out)
            g[f"{block}.{name}.affine.weight"], g[f"{block}.{name}.affine.bias"] = r(inn, W), 1 + 0.1 * r(inn)
            if k == 3:
                g[f"{block}.{name}.noise_const"], g[f"{block}.{name}.noise_strength"] = r(res, res), 0.3 * r()
                g[f"{block}.{name}.resample_filter"] = BLUR
    return g


def pkl_discriminator(seed):
    r, d = normal_source(seed), {}
    d[f"b{R}.fromrgb.weight"], d[f"b{R}.fromrgb.bias"] = r(WIDTHS[R], 3, 1, 1), r(WIDTHS[R])
    for res in RESOLUTIONS[:0:-1]:
        inn, out = WIDTHS[res], WIDTHS[res // 2]
        d |= {f"b{res}.conv0.weight": r(inn, inn, 3, 3), f"b{res}.conv0.bias": r(inn)}
        d |= {f"b{res}.conv1.weight": r(out, inn, 3, 3), f"b{res}.conv1.bias": r(out)}
        d |= {f"b{res}.skip.weight": r(out, inn, 1, 1), f"b{res}.resample_filter": BLUR}
        d |= {f"b{res}.{name}.resample_filter": BLUR for name in ("conv0", "conv1", "skip")}
    c = WIDTHS[4]
    d |= {"b4.conv.weight": r(c, c + 1, 3, 3), "b4.conv.bias": r(c), "b4.conv.resample_filter": BLUR}
    return d | {"b4.fc.weight": r(c, c * 16), "b4.fc.bias": r(c), "b4.out.weight": r(1, c), "b4.out.bias": r(1)}


def pkl_functions(g, d, limit, group, lr):
    def layer(res, n):
        name = f"synthesis.b{res}.conv{n}"
        keys = ("weight", "affine.weight", "affine.bias", "bias", "noise_const", "noise_strength")
        return [g[f"{name}.{key}"] for key in keys]

    def rgb(res):
        return [g[f"synthesis.b{res}.torgb.{key}"] for key in ("weight", "affine.weight", "affine.bias", "bias")]

    def part(res, what):
        name = f"b{res}.{'fromrgb' if what == 'rgb' else what}"
        return d[f"{name}.weight"], d.get(f"{name}.bias")

    layers = [(g[f"mapping.fc{i}.weight"], g[f"mapping.fc{i}.bias"]) for i in range(2)]
    return (
        lambda z: mapped(z, layers, lr),
        lambda ws: synthesis(ws, g["synthesis.b4.const"], layer, rgb, limit),
        lambda x: judged(x, part, group, limit),
    )


def equalised(x, weight, bias, act, pad, stride=1, limit=None):
    y = F.conv2d(x, weight / weight[0].numel() ** 0.5, stride=stride, padding=pad)
    y = y if bias is None else y + bias[:, None, None]
    return clip(lrelu(y) if act else y, limit)


def nvidia_writer() -> types.SimpleNamespace:
    """A writer of pickles in the persistence format, and the dictionary that the training script writes."""

    def networks(
        g=None, d=None, clamp=1.5, group=2, lr=0.02, source="import os", g_init=None, d_init=None, attributes=True
    ):
        g, d = g or pkl_generator(1), d or pkl_discriminator(2)
        g_attributes = {
            "": {"z_dim": Z, "c_dim": 0, "w_dim": W, "img_resolution": R, "img_channels": 3},
            "mapping.fc0": {"bias_gain": lr, "activation": "lrelu"},
        }
        g_attributes |= {
            f"synthesis.b{r}.{n}": {"conv_clamp": clamp}
            for r in RESOLUTIONS
            for n in ("conv0", "conv1", "torgb")
            if f"synthesis.b{r}.{n}.weight" in g
        }
        d_attributes = {"b4.mbstd": {"group_size": group, "num_channels": 1}}
        d_attributes |= {f"b{r}": {"architecture": "resnet"} for r in RESOLUTIONS}
        limited = ("fromrgb", "conv0", "conv1", "conv")
        d_attributes |= {
            f"b{r}.{n}": {"conv_clamp": clamp if n in limited else None}
            for r in RESOLUTIONS
            for n in (*limited, "skip")
            if f"b{r}.{n}.weight" in d
        }
        g_kwargs = {"c_dim": 0, "mapping_kwargs": EasyDict(num_layers=2, lr_multiplier=lr)}
        g_kwargs |= {"synthesis_kwargs": EasyDict(conv_clamp=clamp)}
        d_kwargs = {"c_dim": 0, "conv_clamp": clamp, "epilogue_kwargs": EasyDict(mbstd_group_size=group)}
        return {
            "G": None,
            "G_ema": tree("Generator", g, g_attributes if attributes else {}, source, g_kwargs | (g_init or {})),
            "D": tree("Discriminator", d, d_attributes if attributes else {}, source, d_kwargs | (d_init or {})),
            "training_set_kwargs": EasyDict(path="faces.zip", max_size=np.int64(5), resolution=R),
            "augment_pipe": tree("AugmentPipe", {"p": torch.zeros([])}, {}, source, {}),
        }

    return types.SimpleNamespace(write=write, networks=networks, tree=tree)


def prefixed(prefix, tensors):
    return {prefix + name: value for name, value in tensors.items()}
