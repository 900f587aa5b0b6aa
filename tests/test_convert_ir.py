"""MobileStyleGAN as an OpenVINO IR: the converted generator draws what OpenVINO draws of the same file.

The networks are written operation by operation, with the names and folded gains of the published IR, and share no
code with the package.
"""

import shutil
import sys

import numpy as np
import pytest
import torch

from fewshot_gan.convert import ConversionError, convert_checkpoint

openvino = pytest.importorskip("openvino")
ops = openvino.opset13

Z, W, WIDTHS, LAYERS = 5, 6, (8, 12, 4), 2  # 32 px: two blocks
HAAR = np.array([[[1, 1], [1, 1]], [[1, 1], [-1, -1]], [[1, -1], [1, -1]], [[1, -1], [-1, 1]]], np.float32) / 2


class Writer:
    """A graph of random constants; `gain` is a scalar behind every style, as some exports have one."""

    def __init__(self, seed=0, gain=None):
        self.random, self.gain = np.random.default_rng(seed), gain

    def constant(self, value, name=None):
        node = ops.constant(np.asarray(value, np.float32))
        if name:
            node.set_friendly_name(name)
        return node

    def normal(self, *shape, scale=1.0):
        return (self.random.normal(size=shape) * scale).astype(np.float32)

    def leaky(self, x):
        return ops.prelu(x, self.constant([0.2]))

    def style(self, w, name, channels):
        weight = self.constant(self.normal(channels, W, scale=0.3), f"m.{name}.modulation.weight")
        bias = self.constant(1 + self.normal(1, channels, scale=0.1), f"m.{name}.modulation.bias")
        style = ops.add(ops.matmul(w, weight, False, True), bias)
        style = ops.reshape(style, ops.constant(np.array([1, channels, 1, 1])), False)
        return style if self.gain is None else ops.multiply(style, self.constant(self.gain))

    def convolve(self, x, shape):
        pad, weight = [shape[-1] // 2] * 2, self.constant(self.normal(*shape, scale=shape[1] ** -0.5 / shape[-1]))
        return ops.convolution(x, weight, [1, 1], pad, pad, [1, 1])

    def styled(self, x, w, name, inn, out, size, separable=True):
        x = ops.multiply(x, self.style(w, f"{name}.conv", inn))
        if separable:
            kernel = self.constant(self.normal(inn, 1, 1, 3, 3, scale=0.4), f"m.{name}.conv.weight_dw")
            x = ops.group_convolution(x, kernel, [1, 1], [1, 1], [1, 1], [1, 1])
        x = self.convolve(x, (out, inn, 1, 1) if separable else (out, inn, 3, 3))
        noise = self.normal(1, 1, size, size, scale=0.3)
        x = ops.add(x, self.constant(noise))
        return self.leaky(ops.add(x, self.constant(self.normal(1, out, 1, 1), f"m.{name}.bias")))

    def larger(self, x, channels):
        kernel = np.zeros((channels, channels // 4, 2, 2), np.float32)
        for c in range(channels // 4):  # low-pass bands first, then three of each channel
            kernel[c, c] = HAAR[0]
            kernel[channels // 4 + 3 * c :][:3, c] = HAAR[1:]
        return ops.convolution_backprop_data(x, self.constant(kernel), [2, 2])

    def mapping(self, transpose):
        z = ops.parameter([1, Z], np.float32)
        mean = ops.reduce_mean(ops.multiply(z, z), ops.constant(np.array([1])), True)
        x = ops.divide(z, ops.sqrt(ops.add(mean, self.constant(1e-8))))
        for i in range(LAYERS):
            weight = self.normal(W, Z if i == 0 else W, scale=0.5)
            x = ops.matmul(x, self.constant(weight if transpose else weight.T), False, transpose)
            x = self.leaky(ops.add(x, self.constant(self.normal(1, W, scale=0.1))))
            x = ops.multiply(x, self.constant(2**0.5))
        return openvino.Model([x], [z], "mapping")

    def synthesis(self):
        w = ops.parameter([1, W], np.float32)
        x = self.constant(self.normal(1, WIDTHS[0], 4, 4), "m.input.input")
        x = self.styled(x, w, "conv1", WIDTHS[0], WIDTHS[0], 4, separable=False)
        for i, (inn, out) in enumerate(zip(WIDTHS, WIDTHS[1:], strict=False)):
            name, size = f"layers.{i}", 8 << i
            x = self.larger(ops.multiply(x, self.style(w, f"{name}.up", inn)), inn)
            x = self.styled(x, w, f"{name}.conv1", inn // 4, out, size)
            x = self.styled(x, w, f"{name}.conv2", out, out, size)
        head = f"layers.{len(WIDTHS) - 2}.to_img"
        x = ops.multiply(x, self.style(w, f"{head}.conv", WIDTHS[-1]))
        kernel = self.constant(self.normal(12, WIDTHS[-1], 1, 1), f"m.{head}.conv.weight")
        x = ops.convolution(x, kernel, [1, 1], [0, 0], [0, 0], [1, 1])
        x = ops.add(x, self.constant(self.normal(1, 12, 1, 1), f"m.{head}.bias"))
        return openvino.Model([self.larger(x, 12)], [w], "synthesis")


def write(folder, transpose=True, **options):
    """The IR of a random generator; gives the two networks as OpenVINO runs them."""
    folder.mkdir(parents=True)
    writer, run = Writer(**options), []
    for name, model in (("Mapping", writer.mapping(transpose)), ("Synthesis", writer.synthesis())):
        openvino.save_model(model, folder / f"{name}Network.xml", compress_to_fp16=False)
        exact = {"INFERENCE_PRECISION_HINT": "f32"}
        run.append(openvino.Core().compile_model(folder / f"{name}Network.xml", "CPU", exact))
    return run


@torch.no_grad()
@pytest.mark.parametrize("transpose, gain", [(True, None), (False, 1.5)])
def test_it_draws_what_openvino_draws(tmp_path, transpose, gain):
    mapping, synthesis = write(tmp_path / "wheel" / "data", transpose, gain=gain)
    network = convert_checkpoint(tmp_path / "wheel")["generator"]
    assert (network.resolution, network.z_dim, network.w_dim) == (32, Z, W) and not network.training
    z = torch.randn(3, Z, generator=torch.Generator().manual_seed(1))
    w = torch.cat([torch.from_numpy(mapping(row[None].numpy())[0]) for row in z])
    torch.testing.assert_close(network.map_latents(z)[:, 0], w, rtol=1e-5, atol=1e-5)
    want = torch.cat([torch.from_numpy(synthesis(row[None].numpy())[0]) for row in w])
    torch.testing.assert_close(network(z), want, rtol=1e-4, atol=1e-4)  # float32 in another order of summation
    some = network.map_latents(torch.randn(20_000, Z, generator=torch.Generator().manual_seed(2)))[:, 0]
    assert ((network.mapping.w_avg - some.mean(0)).abs() < 5 * some.std(0) * (1 / 1e5 + 1 / 2e4) ** 0.5).all()


def test_another_network_is_refused(tmp_path, monkeypatch):
    write(tmp_path / "a")
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    xml = tmp_path / "b" / "SynthesisNetwork.xml"
    text = xml.read_text(encoding="utf-8")
    for here, there, message in (
        ("layers.0.up.", "layers.0.other.", r"expected Add at m.layers.0.other.modulation.bias; is this a Mobile"),
        ("layers.0.conv1.conv.weight_dw", "layers.0.conv1.extra", "left over: synthesis.b8.conv0.extra"),
        ("layers.1.conv2.bias", "layers.1.conv2.other", "left over: synthesis.b16.conv0.bias"),
    ):
        assert here in text
        xml.write_text(text.replace(f"m.{here}", f"m.{there}"), encoding="utf-8")
        with pytest.raises(ConversionError, match=message):
            convert_checkpoint(tmp_path / "b")
    monkeypatch.setitem(sys.modules, "openvino", None)  # the standard library reads it
    assert convert_checkpoint(tmp_path / "a")["generator"].resolution == 32
