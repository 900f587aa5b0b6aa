"""MobileStyleGAN as an OpenVINO IR of random weights.

The networks are written operation by operation, with the names and folded gains of the published IR, and share no
code with the package.
"""

import numpy as np
import pytest

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


def write(folder, transpose=True, half=False, **options):
    """The IR of a random generator; gives the two networks as OpenVINO runs them."""
    folder.mkdir(parents=True)
    writer, run = Writer(**options), []
    for name, model in (("Mapping", writer.mapping(transpose)), ("Synthesis", writer.synthesis())):
        openvino.save_model(model, folder / f"{name}Network.xml", compress_to_fp16=half)
        exact = {"INFERENCE_PRECISION_HINT": "f32"}
        run.append(openvino.Core().compile_model(folder / f"{name}Network.xml", "CPU", exact))
    return run
