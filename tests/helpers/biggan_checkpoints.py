"""BigGAN checkpoints of BigGAN-PyTorch and of StudioGAN, 32 to 256 px, and the layouts' own functions.

The functions run a checkpoint's tensors directly, with the published layouts written out, and share no code with the
package. Widths are the published ones with a channel multiplier of 8 (4 at 32 px) instead of 64 to 96.
"""

import torch
import torch.nn.functional as F

from helpers.plain_checkpoints import attended, attention, biggan_conv, biggan_weight, spectral, unit
from helpers.tensors import normal_source

CHUNK, SHARED, CLASSES, LABELS = 3, 4, 5, torch.tensor([0, 4, 2])
PORT = {  # picture size: widths of G from 4 px on, blocks before its attention, then of D, with whether a block halves
    32: ([16, 16, 16, 16], 2, [16, 16, 16, 16], "TTFF", 1),
    64: ([128, 128, 64, 32, 16], 3, [8, 16, 32, 64, 128], "TTTTF", 1),
    128: ([128, 128, 64, 32, 16, 8], 4, [8, 16, 32, 64, 128, 128], "TTTTTF", 1),
    256: ([128, 128, 64, 64, 32, 16, 8], 4, [8, 16, 32, 64, 64, 128, 128], "TTTTTTF", 2),
}
STUDIO = {
    32: ([16, 16, 16, 16], 2, [16, 16, 16, 16], "TTFF", 1),
    64: ([64, 64, 32, 16, 8], 3, [8, 16, 32, 64, 64], "TTTTF", 1),  # the last block of D keeps its width here
    128: ([128, 128, 64, 32, 16, 8], 4, [8, 16, 32, 64, 128, 128], "TTTTTF", 1),
}


def port_generator(size, seed=4):
    t, (widths, attention_after, *_) = normal_source(seed), PORT[size]
    g = {"shared.weight": t(CLASSES, SHARED)} | spectral(t, "linear", 16 * widths[0], CHUNK)
    for i, (inn, out) in enumerate(zip(widths[:-1], widths[1:], strict=True)):
        b = f"blocks.{i}.0"
        g |= spectral(t, f"{b}.conv1", out, inn, 3, 3) | spectral(t, f"{b}.conv2", out, out, 3, 3)
        g |= spectral(t, f"{b}.conv_sc", out, inn, 1, 1)
        for norm, c in (("bn1", inn), ("bn2", out)):
            for part in ("gain", "bias"):
                g |= spectral(t, f"{b}.{norm}.{part}", c, CHUNK + SHARED, bias=False)
            g |= {f"{b}.{norm}.stored_mean": 0.1 * t(c), f"{b}.{norm}.stored_var": 0.5 + t(c).abs()}
        if i + 1 == attention_after:
            g |= attention(t, f"blocks.{i}.1", out)
    c, o = widths[-1], "output_layer.0"
    g |= {f"{o}.gain": 1 + 0.1 * t(c), f"{o}.bias": 0.1 * t(c)}
    g |= {f"{o}.stored_mean": 0.1 * t(c), f"{o}.stored_var": 0.5 + t(c).abs()}
    return g | spectral(t, "output_layer.2", 3, c, 3, 3)


def port_discriminator(size, seed=5):
    t, (*_, widths, down, attention_after) = normal_source(seed), PORT[size]
    d = spectral(t, "linear", 1, widths[-1]) | spectral(t, "embed", CLASSES, widths[-1], bias=False)
    for i, (inn, out) in enumerate(zip([3, *widths[:-1]], widths, strict=True)):
        b = f"blocks.{i}.0"
        d |= spectral(t, f"{b}.conv1", out, inn, 3, 3) | spectral(t, f"{b}.conv2", out, out, 3, 3)
        if inn != out or down[i] == "T":
            d |= spectral(t, f"{b}.conv_sc", out, inn, 1, 1)
        if i + 1 == attention_after:
            d |= attention(t, f"blocks.{i}.1", out)
    return d


def port_pictures(s, size, z, labels):
    widths, attention_after, *_ = PORT[size]
    first, *chunks = z.split(CHUNK, 1)
    x = F.linear(first, biggan_weight(s, "linear"), s["linear.bias"]).view(len(z), widths[0], 4, 4)

    def conditional(name, x, e):
        x = F.batch_norm(x, s[f"{name}.stored_mean"], s[f"{name}.stored_var"], eps=1e-5)
        gain, bias = (F.linear(e, biggan_weight(s, f"{name}.{part}")) for part in ("gain", "bias"))
        return x * (1 + gain)[:, :, None, None] + bias[:, :, None, None]

    for i, chunk in enumerate(chunks):
        b, e = f"blocks.{i}.0", torch.cat([s["shared.weight"][labels], chunk], 1)
        h = F.interpolate(F.relu(conditional(f"{b}.bn1", x, e)), scale_factor=2)
        h = F.relu(conditional(f"{b}.bn2", biggan_conv(s, f"{b}.conv1", h), e))
        x = biggan_conv(s, f"{b}.conv2", h) + biggan_conv(s, f"{b}.conv_sc", F.interpolate(x, scale_factor=2))
        if i + 1 == attention_after:
            x = attended(s, f"blocks.{i}.1", x)
    names = ("stored_mean", "stored_var", "gain", "bias")
    x = F.batch_norm(x, *(s[f"output_layer.0.{n}"] for n in names), eps=1e-5)
    return torch.tanh(biggan_conv(s, "output_layer.2", F.relu(x)))


def port_logits(s, size, x, labels):
    *_, down, attention_after = PORT[size]
    for i, halves in enumerate(down):
        b = f"blocks.{i}.0"
        h = biggan_conv(s, f"{b}.conv2", F.relu(biggan_conv(s, f"{b}.conv1", F.relu(x) if i else x)))
        if i == 0:
            x = biggan_conv(s, f"{b}.conv_sc", F.avg_pool2d(x, 2)) + F.avg_pool2d(h, 2)
        else:
            x = biggan_conv(s, f"{b}.conv_sc", x) if f"{b}.conv_sc.weight" in s else x
            x = F.avg_pool2d(x, 2) + F.avg_pool2d(h, 2) if halves == "T" else x + h
        if i + 1 == attention_after:
            x = attended(s, f"blocks.{i}.1", x)
    h = F.relu(x).sum((2, 3))
    classes = biggan_weight(s, "embed")[labels]
    return F.linear(h, biggan_weight(s, "linear"), s["linear.bias"]) + (classes * h).sum(1, keepdim=True)


def torch_spectral(t, name, *shape, bias=True):
    """Vectors near the singular ones, but not of length 1, as in a moving average of the whole state dict."""
    weight = t(*shape) / 3
    v = unit(t(weight[0].numel()))
    for _ in range(3):
        u = unit(weight.flatten(1) @ v)
        v = unit(weight.flatten(1).T @ u)
    made = {f"{name}.weight_orig": weight, f"{name}.weight_u": 1.1 * u, f"{name}.weight_v": 0.9 * v}
    return made | ({f"{name}.bias": 0.1 * t(shape[0])} if bias else {})


def studio_attention(t, name, c):
    made = {f"{name}.sigma": torch.tensor([0.7])}
    for layer, out, inn in (("theta", c // 8, c), ("phi", c // 8, c), ("g", c // 2, c), ("attn", c, c // 2)):
        made |= torch_spectral(t, f"{name}.conv1x1_{layer}", out, inn, 1, 1, bias=False)
    return made


def statistics(t, name, c):
    counter = {f"{name}.num_batches_tracked": torch.tensor(7)}
    return {f"{name}.running_mean": 0.1 * t(c), f"{name}.running_var": 0.5 + t(c).abs()} | counter


def studio_generator(size, seed=6):
    t, (widths, attention_after, *_) = normal_source(seed), STUDIO[size]
    g = {"shared.weight": t(CLASSES, SHARED)} | torch_spectral(t, "linear0", 16 * widths[0], CHUNK)
    number = 0
    for i, (inn, out) in enumerate(zip(widths[:-1], widths[1:], strict=True)):
        b = f"blocks.{number}.0"
        g |= torch_spectral(t, f"{b}.conv2d0", out, inn, 1, 1)
        g |= torch_spectral(t, f"{b}.conv2d1", out, inn, 3, 3) | torch_spectral(t, f"{b}.conv2d2", out, out, 3, 3)
        for norm, c in (("bn1", inn), ("bn2", out)):
            for part in ("gain", "bias"):
                g |= torch_spectral(t, f"{b}.{norm}.{part}", c, CHUNK + SHARED, bias=False)
            g |= statistics(t, f"{b}.{norm}.bn", c)
        number += 1
        if i + 1 == attention_after:
            g |= studio_attention(t, f"blocks.{number}.0", out)
            number += 1
    c = widths[-1]
    g |= {"bn4.weight": 1 + 0.1 * t(c), "bn4.bias": 0.1 * t(c)} | statistics(t, "bn4", c)
    return g | torch_spectral(t, "conv2d5", 3, c, 3, 3)


def studio_discriminator(size, seed=7):
    t, (*_, widths, down, attention_after) = normal_source(seed), STUDIO[size]
    d, number = {}, 0
    for i, (inn, out) in enumerate(zip([3, *widths[:-1]], widths, strict=True)):
        b = f"blocks.{number}.0"
        d |= torch_spectral(t, f"{b}.conv2d1", out, inn, 3, 3) | torch_spectral(t, f"{b}.conv2d2", out, out, 3, 3)
        if inn != out or down[i] == "T":
            d |= torch_spectral(t, f"{b}.conv2d0", out, inn, 1, 1)
        number += 1
        if i + 1 == attention_after:
            d |= studio_attention(t, f"blocks.{number}.0", out)
            number += 1
    return (
        d
        | torch_spectral(t, "linear1", 1, widths[-1])
        | torch_spectral(t, "embedding", CLASSES, widths[-1], bias=False)
    )


def studio_weight(s, name):
    """As torch's own spectral norm uses it in eval mode."""
    w = s[f"{name}.weight_orig"]
    return w / torch.dot(s[f"{name}.weight_u"], torch.mv(w.flatten(1), s[f"{name}.weight_v"]))


def studio_conv(s, name, x):
    w = studio_weight(s, name)
    return F.conv2d(x, w, s.get(f"{name}.bias"), padding=w.shape[-1] // 2)


def studio_attended(s, name, x):
    b, c, h, w = x.shape
    theta = studio_conv(s, f"{name}.conv1x1_theta", x).flatten(2)
    phi = F.max_pool2d(studio_conv(s, f"{name}.conv1x1_phi", x), 2).flatten(2)
    g = F.max_pool2d(studio_conv(s, f"{name}.conv1x1_g", x), 2).flatten(2)
    seen = torch.einsum("bcn,bmn->bcm", g, torch.einsum("bcm,bcn->bmn", theta, phi).softmax(-1))
    return x + s[f"{name}.sigma"] * studio_conv(s, f"{name}.conv1x1_attn", seen.view(b, c // 2, h, w))


def studio_pictures(s, size, z, labels):
    widths, attention_after, *_ = STUDIO[size]
    first, *chunks = z.split(CHUNK, 1)
    x = F.linear(first, studio_weight(s, "linear0"), s["linear0.bias"]).view(len(z), widths[0], 4, 4)

    def normed(name, x, gain, bias):
        x = F.batch_norm(x, s[f"{name}.running_mean"], s[f"{name}.running_var"], eps=1e-4)
        return torch.relu_(x * gain[:, :, None, None] + bias[:, :, None, None])

    def conditional(name, x, e):
        gain, bias = (F.linear(e, studio_weight(s, f"{name}.{part}")) for part in ("gain", "bias"))
        return normed(f"{name}.bn", x, 1 + gain, bias)

    number = 0
    for i, chunk in enumerate(chunks):
        b, e = f"blocks.{number}.0", torch.cat([s["shared.weight"][labels], chunk], 1)
        h = F.interpolate(conditional(f"{b}.bn1", x, e), scale_factor=2)
        h = studio_conv(s, f"{b}.conv2d2", conditional(f"{b}.bn2", studio_conv(s, f"{b}.conv2d1", h), e))
        x = h + studio_conv(s, f"{b}.conv2d0", F.interpolate(x, scale_factor=2))
        number += 1
        if i + 1 == attention_after:
            x = studio_attended(s, f"blocks.{number}.0", x)
            number += 1
    x = normed("bn4", x, s["bn4.weight"][None], s["bn4.bias"][None])
    return torch.tanh(studio_conv(s, "conv2d5", x))


def studio_logits(s, size, x, labels):
    """The ReLU before a block's first convolution writes into the block's input, which the skip takes after it."""
    *_, down, attention_after = STUDIO[size]
    number = 0
    for i, halves in enumerate(down):
        b, skipped = f"blocks.{number}.0", x
        if i == 0:
            h = F.avg_pool2d(studio_conv(s, f"{b}.conv2d2", torch.relu_(studio_conv(s, f"{b}.conv2d1", x))), 2)
            x = h + studio_conv(s, f"{b}.conv2d0", F.avg_pool2d(skipped, 2))
        else:
            h = studio_conv(s, f"{b}.conv2d1", torch.relu_(x))
            h = studio_conv(s, f"{b}.conv2d2", torch.relu_(h))
            skipped = studio_conv(s, f"{b}.conv2d0", skipped) if f"{b}.conv2d0.bias" in s else skipped
            x = F.avg_pool2d(h, 2) + F.avg_pool2d(skipped, 2) if halves == "T" else h + skipped
        number += 1
        if i + 1 == attention_after:
            x = studio_attended(s, f"blocks.{number}.0", x)
            number += 1
    h = torch.relu_(x).sum((2, 3))
    classes = studio_weight(s, "embedding")[labels]
    return F.linear(h, studio_weight(s, "linear1"), s["linear1.bias"]) + (classes * h).sum(1, keepdim=True)
