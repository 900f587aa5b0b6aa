"""SNGAN, BigGAN and GP-GAN checkpoints of random weights, and the layouts' own functions.

The reference functions run a checkpoint's tensors directly and share no code with the package.
"""

import torch
import torch.nn.functional as F

from helpers.tensors import normal_source


def unit(x):
    return x / x.norm()


def batch_norm(t, name, eps=1e-5):
    """Names of the four tensors of torch's own layer."""
    return {
        f"{name}.weight": 1 + 0.1 * t(8),
        f"{name}.bias": 0.1 * t(8),
        f"{name}.running_mean": 0.1 * t(8),
        f"{name}.running_var": 0.5 + t(8).abs(),
        f"{name}.num_batches_tracked": torch.tensor(7),
    }


def normed(s, name, x, eps=1e-5):
    return F.batch_norm(
        x, s[f"{name}.running_mean"], s[f"{name}.running_var"], s[f"{name}.weight"], s[f"{name}.bias"], False, 0, eps
    )


def sngan():
    t = normal_source(1)
    g = {"l1.weight": t(8 * 16, 5), "l1.bias": t(8 * 16), "c5.weight": t(3, 8, 3, 3) / 9, "c5.bias": t(3)}
    g |= batch_norm(t, "b5")
    for i in (2, 3):
        for conv, k in (("c1", 3), ("c2", 3), ("c_sc", 1)):
            g |= {f"block{i}.{conv}.weight": t(8, 8, k, k) / (3 * k), f"block{i}.{conv}.bias": 0.1 * t(8)}
        g |= batch_norm(t, f"block{i}.b1") | batch_norm(t, f"block{i}.b2")
    d = {"l5.weight_orig": t(1, 6)} | vectors(t, "l5", 1, 6)
    for i in (1, 2, 3, 4):
        inn = 3 if i == 1 else 6
        for conv, n, k in (("c1", inn, 3), ("c2", 6, 3), ("c_sc", inn, 1)):
            if conv != "c_sc" or i < 3:
                name = f"block{i}.{conv}"
                d |= {f"{name}.weight_orig": t(6, n, k, k), f"{name}.bias": 0.1 * t(6)}
                d |= vectors(t, name, 6, n * k * k)
    return g, d


def vectors(t, name, rows, columns):
    return {f"{name}.weight_u": unit(t(rows)), f"{name}.weight_v": unit(t(columns))}


def sngan_pictures(s, z):
    x = F.linear(z, s["l1.weight"], s["l1.bias"]).view(len(z), 8, 4, 4)
    for i in (2, 3):
        b = f"block{i}"
        y = F.interpolate(F.relu(normed(s, f"{b}.b1", x)), scale_factor=2)
        y = F.conv2d(y, s[f"{b}.c1.weight"], s[f"{b}.c1.bias"], padding=1)
        y = F.conv2d(F.relu(normed(s, f"{b}.b2", y)), s[f"{b}.c2.weight"], s[f"{b}.c2.bias"], padding=1)
        x = y + F.conv2d(F.interpolate(x, scale_factor=2), s[f"{b}.c_sc.weight"], s[f"{b}.c_sc.bias"])
    return torch.tanh(F.conv2d(F.relu(normed(s, "b5", x)), s["c5.weight"], s["c5.bias"], padding=1))


def sngan_logits(s, x):
    def weight(name):
        w = s[f"{name}.weight_orig"]
        return w / (s[f"{name}.weight_u"] @ w.flatten(1) @ s[f"{name}.weight_v"])

    def conv(name, x):
        return F.conv2d(x, weight(name), s[f"{name}.bias"], padding=weight(name).shape[-1] // 2)

    y = F.avg_pool2d(conv("block1.c2", F.relu(conv("block1.c1", x))), 2)
    x = y + conv("block1.c_sc", F.avg_pool2d(x, 2))
    for i in (2, 3, 4):
        y = conv(f"block{i}.c2", F.relu(conv(f"block{i}.c1", F.relu(x))))
        x = F.avg_pool2d(y, 2) + F.avg_pool2d(conv("block2.c_sc", x), 2) if i == 2 else y + x
    return F.linear(F.relu(x).sum((2, 3)), weight("l5"))


def spectral(t, name, *shape, bias=True):
    made = {f"{name}.weight": t(*shape) / 3, f"{name}.u0": t(1, shape[0]), f"{name}.sv0": torch.ones(1)}
    return made | ({f"{name}.bias": 0.1 * t(shape[0])} if bias else {})


def attention(t, name, c):
    made = {f"{name}.gamma": torch.tensor(0.7)}
    for layer, out, inn in (("theta", c // 8, c), ("phi", c // 8, c), ("g", c // 2, c), ("o", c, c // 2)):
        made |= spectral(t, f"{name}.{layer}", out, inn, 1, 1, bias=False)
    return made


def biggan():
    """16 px: two blocks, attention after the first."""
    t = normal_source(4)
    g = {"shared.weight": t(5, 4)} | spectral(t, "linear", 16 * 16, 3)
    for i, (inn, out) in enumerate([(16, 16), (16, 8)]):
        b = f"blocks.{i}.0"
        g |= spectral(t, f"{b}.conv1", out, inn, 3, 3) | spectral(t, f"{b}.conv2", out, out, 3, 3)
        g |= spectral(t, f"{b}.conv_sc", out, inn, 1, 1)
        for norm, c in (("bn1", inn), ("bn2", out)):
            g |= spectral(t, f"{b}.{norm}.gain", c, 7, bias=False) | spectral(t, f"{b}.{norm}.bias", c, 7, bias=False)
            g |= {f"{b}.{norm}.stored_mean": 0.1 * t(c), f"{b}.{norm}.stored_var": 0.5 + t(c).abs()}
    g |= attention(t, "blocks.0.1", 16)
    g |= {"output_layer.0.gain": 1 + 0.1 * t(8), "output_layer.0.bias": 0.1 * t(8)}
    g |= {"output_layer.0.stored_mean": 0.1 * t(8), "output_layer.0.stored_var": 0.5 + t(8).abs()}
    g |= spectral(t, "output_layer.2", 3, 8, 3, 3)
    d = spectral(t, "linear", 1, 16) | spectral(t, "embed", 5, 16, bias=False) | attention(t, "blocks.0.1", 16)
    for i, inn in enumerate([3, 16, 16]):
        b = f"blocks.{i}.0"
        d |= spectral(t, f"{b}.conv1", 16, inn, 3, 3) | spectral(t, f"{b}.conv2", 16, 16, 3, 3)
        if i < 2:
            d |= spectral(t, f"{b}.conv_sc", 16, inn, 1, 1)
    return g, d


def biggan_weight(s, name):
    """One power iteration from the stored u at each use."""
    w, u = s[f"{name}.weight"], s[f"{name}.u0"]
    v = F.normalize(u @ w.flatten(1))
    u = F.normalize(v @ w.flatten(1).T)
    return w / (v @ w.flatten(1).T @ u.T).squeeze()


def biggan_conv(s, name, x):
    w = biggan_weight(s, name)
    return F.conv2d(x, w, s.get(f"{name}.bias"), padding=w.shape[-1] // 2)


def attended(s, name, x):
    b, c, h, w = x.shape
    theta = biggan_conv(s, f"{name}.theta", x).view(b, c // 8, h * w)
    phi = F.max_pool2d(biggan_conv(s, f"{name}.phi", x), 2).view(b, c // 8, h * w // 4)
    g = F.max_pool2d(biggan_conv(s, f"{name}.g", x), 2).view(b, c // 2, h * w // 4)
    beta = F.softmax(torch.bmm(theta.transpose(1, 2), phi), -1)
    o = biggan_conv(s, f"{name}.o", torch.bmm(g, beta.transpose(1, 2)).view(b, c // 2, h, w))
    return s[f"{name}.gamma"] * o + x


def biggan_pictures(s, z, labels):
    first, *chunks = z.split(3, 1)
    y = s["shared.weight"][labels]
    x = F.linear(first, biggan_weight(s, "linear"), s["linear.bias"]).view(len(z), 16, 4, 4)

    def conditional(name, x, e):
        x = F.batch_norm(x, s[f"{name}.stored_mean"], s[f"{name}.stored_var"], eps=1e-5)
        gain, bias = (F.linear(e, biggan_weight(s, f"{name}.{part}")) for part in ("gain", "bias"))
        return x * (1 + gain)[:, :, None, None] + bias[:, :, None, None]

    for i, chunk in enumerate(chunks):
        b, e = f"blocks.{i}.0", torch.cat([y, chunk], 1)
        h = F.interpolate(F.relu(conditional(f"{b}.bn1", x, e)), scale_factor=2)
        h = F.relu(conditional(f"{b}.bn2", biggan_conv(s, f"{b}.conv1", h), e))
        x = biggan_conv(s, f"{b}.conv2", h) + biggan_conv(s, f"{b}.conv_sc", F.interpolate(x, scale_factor=2))
        x = attended(s, "blocks.0.1", x) if i == 0 else x
    names = ("stored_mean", "stored_var", "gain", "bias")
    x = F.batch_norm(x, *(s[f"output_layer.0.{n}"] for n in names), eps=1e-5)
    return torch.tanh(biggan_conv(s, "output_layer.2", F.relu(x)))


def biggan_logits(s, x, labels):
    h = biggan_conv(s, "blocks.0.0.conv2", F.relu(biggan_conv(s, "blocks.0.0.conv1", x)))
    x = F.avg_pool2d(h, 2) + biggan_conv(s, "blocks.0.0.conv_sc", F.avg_pool2d(x, 2))
    x = attended(s, "blocks.0.1", x)
    h = biggan_conv(s, "blocks.1.0.conv2", F.relu(biggan_conv(s, "blocks.1.0.conv1", F.relu(x))))
    x = F.avg_pool2d(h, 2) + F.avg_pool2d(biggan_conv(s, "blocks.1.0.conv_sc", x), 2)
    x = x + biggan_conv(s, "blocks.2.0.conv2", F.relu(biggan_conv(s, "blocks.2.0.conv1", F.relu(x))))
    h = F.relu(x).sum((2, 3))
    classes = biggan_weight(s, "embed")[labels]
    return F.linear(h, biggan_weight(s, "linear"), s["linear.bias"]) + (classes * h).sum(1, keepdim=True)


def gp_gan(blocks):
    """16 px: three scales."""
    t, widths = normal_source(7), [8, 8, 6, 4]
    g = {"embedding.weight": t(5, 3), "fc.weight": t(8 * 16, 9) / 3, "fc.bias": t(8 * 16)}
    g |= {"conv_img.weight": t(3, 4, 3, 3) / 6, "conv_img.bias": t(3)}
    d = {"fc.weight": t(5, 8 * 16) / 9, "fc.bias": t(5), "conv_img.weight": t(4, 3, 3, 3) / 5, "conv_img.bias": t(4)}
    for state, ends, changes in ((g, widths, 0), (d, widths[::-1], blocks - 1)):
        for i in range(3):
            for j in range(blocks):
                inn = ends[i] if j <= changes else ends[i + 1]
                out = ends[i + 1] if j >= changes else ends[i]
                name, inner = f"resnet_{i}_{j}", min(inn, out)
                state |= {f"{name}.conv_0.weight": t(inner, inn, 3, 3) / 8, f"{name}.conv_0.bias": t(inner)}
                state |= {f"{name}.conv_1.weight": t(out, inner, 3, 3) / 8, f"{name}.conv_1.bias": t(out)}
                state |= {f"{name}.conv_s.weight": t(out, inn, 1, 1) / 3} if inn != out else {}
    return g, d


def act(x):
    return F.leaky_relu(x, 0.2)


def gp_gan_scale(s, i, blocks, x):
    for j in range(blocks):
        n = f"resnet_{i}_{j}"
        y = F.conv2d(act(x), s[f"{n}.conv_0.weight"], s[f"{n}.conv_0.bias"], padding=1)
        y = F.conv2d(act(y), s[f"{n}.conv_1.weight"], s[f"{n}.conv_1.bias"], padding=1)
        x = (F.conv2d(x, s[f"{n}.conv_s.weight"]) if f"{n}.conv_s.weight" in s else x) + 0.1 * y
    return x
