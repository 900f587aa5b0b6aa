"""NVIDIA's StyleGAN2 in all its architectures, with and without classes, and how ours differ from it.

The networks keep the attributes that a file of `stylegan2-ada-pytorch` or `stylegan3` keeps, and compute sample
by sample, in float64, with explicitly modulated weights. They share no code with the package.
"""

from copy import deepcopy

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from fewshot_gan.convert import convert_checkpoint
from helpers.nvidia_pickles import EasyDict, Stored, of_module, write
from helpers.tensors import normal_source

R, Z, W, CLASSES, CMAP = 16, 7, 6, 4, 12
WIDTHS = {4: 12, 8: 12, 16: 8}  # min(128 // r, 12)
ARCHITECTURES = ("orig", "skip", "resnet")
BLUR = torch.outer(torch.tensor([1.0, 3, 3, 1]), torch.tensor([1.0, 3, 3, 1])) / 64
# of float32 against float64, at most a dozen layers deep; values are a few units large
LIMIT = 1e-4


def activated(x, kind, gain=1.0, clamp=None):
    x = torch.where(x > 0, x, x / 5) * 2**0.5 if kind == "lrelu" else x
    x = x * gain
    return x if clamp is None else x.clip(-clamp * gain, clamp * gain)


def filtered(x, pad, gain=1.0):
    """Each channel of `[B, C, H, W]` by itself, padded by `(left, right, top, bottom)` zeros."""
    kernel = (BLUR * gain).to(x.dtype)[None, None]
    return torch.cat([F.conv2d(F.pad(x[:, [c]], pad), kernel) for c in range(x.shape[1])], 1)


def stuffed(x):
    """A zero after every pixel."""
    wide = x.new_zeros(*x.shape[:2], 2 * x.shape[2], 2 * x.shape[3])
    wide[..., ::2, ::2] = x
    return wide


def enlarged(x):
    return filtered(stuffed(x), (2, 1, 2, 1), 4)


def normalised(x):
    return x / (x.square().mean(1, keepdim=True) + 1e-8).sqrt()


class FullyConnectedLayer(nn.Module):
    def __init__(self, r, inn, out, activation="linear", lr=1.0, start=0.0):
        super().__init__()
        self.activation, self.weight_gain, self.bias_gain = activation, lr / np.sqrt(inn), lr
        self.weight, self.bias = nn.Parameter(r(out, inn) / lr), nn.Parameter((start + 0.3 * r(out)) / lr)

    def forward(self, x):
        return activated(x @ (self.weight.T * self.weight_gain) + self.bias * self.bias_gain, self.activation)


class Conv2dLayer(nn.Module):
    def __init__(self, r, inn, out, k, activation="lrelu", bias=True, up=1, down=1, conv_clamp=None, frozen=False):
        super().__init__()
        self.activation, self.up, self.down, self.conv_clamp = activation, up, down, conv_clamp
        self.register_buffer("resample_filter", BLUR.clone())
        # shortcuts are made strong, so that a clamp on them would show
        weight, bias = (r(out, inn, k, k), 0.3 * r(out)) if bias else (2 * r(out, inn, k, k), None)
        if frozen:  # FreezeD keeps weights as buffers
            self.register_buffer("weight", weight)
            self.register_buffer("bias", bias)
        else:
            self.weight, self.bias = nn.Parameter(weight), None if bias is None else nn.Parameter(bias)

    def forward(self, x, gain=1.0):
        weight, pad = self.weight / self.weight[0].numel() ** 0.5, self.weight.shape[-1] // 2
        if self.down == 2:
            x = F.conv2d(filtered(x, (pad + 1,) * 4), weight, stride=2)
        elif self.up == 2:
            x = F.conv2d(enlarged(x), weight)
        else:
            x = F.conv2d(x, weight, padding=pad)
        x = x if self.bias is None else x + self.bias[:, None, None]
        return activated(x, self.activation, gain, self.conv_clamp)


class MappingNetwork(nn.Module):
    def __init__(self, r, z_dim, c_dim, w_dim, layers=2, lr=0.01, embed=None, width=None, mean=True):
        super().__init__()
        self.z_dim, self.c_dim, self.w_dim, self.num_layers = z_dim, c_dim, w_dim, layers
        embed = 0 if not c_dim else embed or w_dim
        if c_dim:
            self.embed = FullyConnectedLayer(r, c_dim, embed)
        sizes = [z_dim + embed, *[width or w_dim] * (layers - 1), w_dim]
        for i in range(layers):
            setattr(self, f"fc{i}", FullyConnectedLayer(r, sizes[i], sizes[i + 1], "lrelu", lr))
        if mean:
            self.register_buffer("w_avg", r(w_dim))

    def forward(self, z, c):  # c: one-hot [B, c_dim]
        parts = ([normalised(z)] if self.z_dim else []) + ([normalised(self.embed(c))] if self.c_dim else [])
        x = torch.cat(parts, 1)
        for i in range(self.num_layers):
            x = getattr(self, f"fc{i}")(x)
        return x


class SynthesisLayer(nn.Module):
    def __init__(self, r, inn, out, resolution, up, conv_clamp, use_noise):
        super().__init__()
        self.resolution, self.up, self.conv_clamp, self.use_noise = resolution, up, conv_clamp, use_noise
        self.activation = "lrelu"
        self.register_buffer("resample_filter", BLUR.clone())
        self.affine = FullyConnectedLayer(r, W, inn, start=1.0)
        self.weight, self.bias = nn.Parameter(r(out, inn, 3, 3)), nn.Parameter(0.3 * r(out))
        if use_noise:
            self.register_buffer("noise_const", r(resolution, resolution))
            self.noise_strength = nn.Parameter(0.3 * r())

    def forward(self, x, w, gain=1.0):
        samples = []
        for sample, style in zip(x, self.affine(w), strict=True):
            weight = self.weight * style[None, :, None, None]
            weight = weight / (weight.square().sum((1, 2, 3), keepdim=True) + 1e-8).sqrt()
            if self.up == 2:  # the published weights are stored as a transposed convolution takes them
                y = F.pad(stuffed(sample[None]), (2, 1, 2, 1))
                samples.append(filtered(F.conv2d(y, weight.flip(2, 3)), (1, 1, 1, 1), 4))
            else:
                samples.append(F.conv2d(sample[None], weight, padding=1))
        y = torch.cat(samples)
        if self.use_noise:
            y = y + self.noise_const * self.noise_strength
        return activated(y + self.bias[:, None, None], "lrelu", gain, self.conv_clamp)


class ToRGBLayer(nn.Module):
    def __init__(self, r, inn, conv_clamp):
        super().__init__()
        self.conv_clamp = conv_clamp
        self.affine = FullyConnectedLayer(r, W, inn, start=1.0)
        self.weight, self.bias = nn.Parameter(r(3, inn, 1, 1)), nn.Parameter(0.3 * r(3))

    def forward(self, x, w):
        styles = self.affine(w) / self.weight.shape[1] ** 0.5
        y = torch.einsum("bi,oi,bihw->bohw", styles, self.weight[..., 0, 0], x)
        return activated(y + self.bias[:, None, None], "linear", clamp=self.conv_clamp)


class SynthesisBlock(nn.Module):
    def __init__(self, r, inn, out, resolution, last, architecture, conv_clamp, use_noise):
        super().__init__()
        self.in_channels, self.architecture, self.is_last = inn, architecture, last
        self.register_buffer("resample_filter", BLUR.clone())
        if inn:
            self.conv0 = SynthesisLayer(r, inn, out, resolution, 2, conv_clamp, use_noise)
        else:
            self.const = nn.Parameter(r(out, resolution, resolution))
        self.conv1 = SynthesisLayer(r, out, out, resolution, 1, conv_clamp, use_noise)
        if last or architecture == "skip":
            self.torgb = ToRGBLayer(r, out, conv_clamp)
        if inn and architecture == "resnet":
            self.skip = Conv2dLayer(r, inn, out, 1, "linear", bias=False, up=2)

    def forward(self, x, image, ws):  # ws: of this block, and the next one's first
        if not self.in_channels:
            x = self.conv1(self.const.expand(len(ws), -1, -1, -1), ws[:, 0])
        elif self.architecture == "resnet":
            x = self.skip(x, 0.5**0.5) + self.conv1(self.conv0(x, ws[:, 0]), ws[:, 1], 0.5**0.5)
        else:
            x = self.conv1(self.conv0(x, ws[:, 0]), ws[:, 1])
        if image is not None:
            image = enlarged(image)
        if hasattr(self, "torgb"):
            rgb = self.torgb(x, ws[:, 2 if self.in_channels else 1])
            image = rgb if image is None else image + rgb
        return x, image


class SynthesisNetwork(nn.Module):
    def __init__(self, r, architecture, conv_clamp, use_noise):
        super().__init__()
        before = 0
        for res, width in WIDTHS.items():
            block = SynthesisBlock(r, before, width, res, res == R, architecture, conv_clamp, use_noise)
            setattr(self, f"b{res}", block)
            before = width

    def forward(self, ws):
        x = image = None
        for i, res in enumerate(WIDTHS):
            x, image = getattr(self, f"b{res}")(x, image, ws[:, max(0, 2 * i - 1) :])
        return image


class Generator(nn.Module):
    def __init__(self, seed=1, c_dim=0, architecture="skip", conv_clamp=None, use_noise=True, z_dim=Z, **mapping):
        super().__init__()
        r = normal_source(seed)
        self.z_dim, self.c_dim, self.w_dim, self.img_resolution, self.img_channels = z_dim, c_dim, W, R, 3
        self.synthesis = SynthesisNetwork(r, architecture, conv_clamp, use_noise)
        self.mapping = MappingNetwork(r, z_dim, c_dim, W, **mapping)

    def forward(self, z, c, psi=1.0):
        w = self.mapping.w_avg + psi * (self.mapping(z, c) - self.mapping.w_avg)
        return self.synthesis(w[:, None].expand(-1, 2 * len(WIDTHS), -1))


class DiscriminatorBlock(nn.Module):
    def __init__(self, r, width, out, first, architecture, conv_clamp, frozen):
        super().__init__()
        self.architecture = architecture
        self.register_buffer("resample_filter", BLUR.clone())
        limited = {"conv_clamp": conv_clamp, "frozen": frozen}
        if first or architecture == "skip":
            self.fromrgb = Conv2dLayer(r, 3, width, 1, **limited)
        self.conv0 = Conv2dLayer(r, width, width, 3, **limited)
        self.conv1 = Conv2dLayer(r, width, out, 3, down=2, **limited)
        if architecture == "resnet":
            self.skip = Conv2dLayer(r, width, out, 1, "linear", bias=False, down=2, frozen=frozen)

    def forward(self, x, image):
        if hasattr(self, "fromrgb"):
            x = self.fromrgb(image) + (0 if x is None else x)
        if self.architecture == "resnet":
            return self.skip(x, 0.5**0.5) + self.conv1(self.conv0(x), 0.5**0.5)
        return self.conv1(self.conv0(x))


class MinibatchStdLayer(nn.Module):
    def __init__(self, group_size, num_channels):
        super().__init__()
        self.group_size, self.num_channels = group_size, num_channels

    def forward(self, x):
        size = len(x) if self.group_size is None else min(self.group_size, len(x))
        extra = []
        for i in range(len(x)):
            members = x[i % (len(x) // size) :: len(x) // size]
            spread = ((members - members.mean(0)).square().mean(0) + 1e-8).sqrt()
            means = [part.mean() for part in spread.chunk(self.num_channels)]
            extra.append(torch.stack(means)[:, None, None].expand(-1, 4, 4))
        return torch.cat([x, torch.stack(extra)], 1)


class DiscriminatorEpilogue(nn.Module):
    def __init__(self, r, cmap_dim, architecture, conv_clamp, group, channels):
        super().__init__()
        self.cmap_dim, self.architecture, width = cmap_dim, architecture, WIDTHS[4]
        if architecture == "skip":
            self.fromrgb = Conv2dLayer(r, 3, width, 1)
        self.mbstd = MinibatchStdLayer(group, channels) if channels else None
        self.conv = Conv2dLayer(r, width + channels, width, 3, conv_clamp=conv_clamp)
        self.fc = FullyConnectedLayer(r, width * 16, width, "lrelu")
        self.out = FullyConnectedLayer(r, width, cmap_dim or 1)
        with torch.no_grad():
            self.fc.weight.mul_(10)  # so that logits of clamped features are apart

    def forward(self, x, image, cmap):
        x = x + self.fromrgb(image) if self.architecture == "skip" else x
        x = x if self.mbstd is None else self.mbstd(x)
        x = self.out(self.fc(self.conv(x).flatten(1)))
        return x if cmap is None else (x * cmap).sum(1, keepdim=True) / self.cmap_dim**0.5


class Discriminator(nn.Module):
    def __init__(
        self, seed=2, c_dim=0, architecture="resnet", conv_clamp=None, group=2, channels=1, cmap_dim=CMAP, frozen=0,
        **mapping,
    ):  # fmt: skip
        super().__init__()
        r = normal_source(seed)
        self.c_dim, self.img_resolution, self.img_channels, self.architecture = c_dim, R, 3, architecture
        for res in (16, 8):
            options = res == R, architecture, conv_clamp, res == R and bool(frozen)
            setattr(self, f"b{res}", DiscriminatorBlock(r, WIDTHS[res], WIDTHS[res // 2], *options))
        if c_dim:
            self.mapping = MappingNetwork(r, 0, c_dim, cmap_dim, mean=False, **mapping)
        self.b4 = DiscriminatorEpilogue(r, cmap_dim if c_dim else 0, architecture, conv_clamp, group, channels)

    def forward(self, image, c):
        x = None
        for res in (16, 8):
            x = getattr(self, f"b{res}")(x, image)
            image = filtered(image, (1, 1, 1, 1))[..., ::2, ::2]
        return self.b4(x, image, self.mapping(None, c) if self.c_dim else None)


LABELS = torch.tensor([0, 3, 1, 1])


def one_hot(network):
    return F.one_hot(LABELS, network.c_dim).double() if network.c_dim else None


def precise(network, *inputs):
    with torch.no_grad():
        return deepcopy(network).double()(*(x.double() if torch.is_tensor(x) else x for x in inputs)).float()


def picture_difference(ours, theirs) -> float:
    """Largest difference of a pixel, with and without truncation."""
    z, labels = normal_source(100)(4, theirs.z_dim), LABELS if theirs.c_dim else None
    with torch.no_grad():
        pairs = [
            (ours(z, class_labels=labels, truncation_psi=psi), precise(theirs, z, one_hot(theirs), psi))
            for psi in (1.0, 0.7)
        ]
    assert all(want.std() > 1000 * LIMIT for _, want in pairs)  # something was compared
    return max(float((got - want).abs().max()) for got, want in pairs)


def logit_difference(ours, theirs) -> float:
    images, labels = (
        normal_source(101)(4, 3, R, R) + 2 * normal_source(102)(4, 3, 1, 1),
        LABELS if theirs.c_dim else None,
    )
    with torch.no_grad():
        got = ours(images, class_labels=labels)
    want = precise(theirs, images, one_hot(theirs))
    assert want.std() > 100 * LIMIT, want.std()
    return float((got - want).abs().max())


def stored_generator(network, repository="ada", clamp="said", **kwargs) -> Stored:
    """As one of the two repositories has its arguments: those of the synthesis network in a group, or flat."""
    own = {} if clamp == "default" else {"conv_clamp": network.synthesis.b4.conv1.conv_clamp}
    own = {"synthesis_kwargs": EasyDict(own)} if repository == "ada" else own
    return of_module(network, {"z_dim": network.z_dim, "c_dim": network.c_dim, "w_dim": W, **own, **kwargs})


def converted(path, g=None, d=None, repository="ada", **options):
    data = {"G": None, "G_ema": stored_generator(g or Generator(), repository, **options)}
    data["D"] = None if d is None else of_module(d, {"c_dim": d.c_dim, "img_resolution": R})
    return convert_checkpoint(write(path / "x.pkl", data))


def rounded(network):
    """Weights that float16 holds, so that fingerprints survive casts."""
    with torch.no_grad():
        for tensor in network.state_dict().values():
            tensor.copy_(tensor.half().float())
    return network


def drawn(pipe, num=4, **options):
    return pipe(num, output_type="pt", **{"seed": 3, "class_labels": LABELS[:num].tolist(), **options}).images
