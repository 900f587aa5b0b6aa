"""The three operations against definitions written out by hand, and their first and second derivatives."""

import itertools
import weakref
from unittest import mock

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.autograd import gradcheck, gradgradcheck

from fewshot_gan.ops import (
    RowWeights,
    bias_act,
    conv,
    conv2d,
    downsample2d,
    haar,
    inverse_haar,
    modulated_conv,
    modulated_conv2d,
    setup_filter,
    upfirdn2d,
    upsample2d,
    weight_cache,
    winograd,
)

FIR = setup_filter([1, 3, 3, 1])
MODES = {"plain": {}, "up": {"up": 2}, "down": {"down": 2}}


def double_normal(*shape, seed=0, grad=False):
    x = torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    return x.requires_grad_(grad)


def zero_stuffed(x):
    y = x.new_zeros(*x.shape[:2], 2 * x.shape[2], 2 * x.shape[3])
    y[:, :, ::2, ::2] = x
    return y


def blurred(x, pad, gain=1.0):
    """Each channel by itself; the filter is symmetric, so convolution and correlation agree."""
    kernel = FIR.to(x.dtype)[None, None] * gain
    return torch.cat([F.conv2d(F.pad(x[:, c : c + 1], pad), kernel) for c in range(x.shape[1])], 1)


def explicit_conv(x, weight, mode):
    """One sample `[1, I, H, W]` with its own weight `[O, I, k, k]`, by zero stuffing, not transposed convolution."""
    k = weight.shape[-1]
    if mode == "up":
        full = F.conv2d(F.pad(zero_stuffed(x), (k - 1, k - 2, k - 1, k - 2)), weight.flip(2, 3))
        return blurred(full, (1, 1, 1, 1), 4)
    if mode == "down":
        side = (k + 1) // 2
        return F.conv2d(blurred(x, (side,) * 4), weight, stride=2)
    return F.conv2d(x, weight, padding=k // 2)


def explicit_modulated(x, weight, styles, scale, demodulate, mode, scale_first=False):
    out = []
    for b in range(x.shape[0]):
        w = (weight[b] if weight.ndim == 5 else weight) * styles[b][None, :, None, None]
        d = 1.0 if scale is None else (scale[b] if scale.ndim == 2 else scale)[None, :, None, None]
        if scale_first:
            w = w * d
        if demodulate:
            w = w / (w.square().sum((1, 2, 3), keepdim=True) + 1e-8).sqrt()
        if not scale_first:
            w = w * d
        out.append(explicit_conv(x[b : b + 1], w, mode))
    return torch.cat(out)


CASES = list(itertools.product(MODES, ["shared", "per_sample"], [True, False], [None, "layer", "sample"]))


def as_rows(weight):
    """`[B, O, I, k, k]` → the first row with a weight of its own, the others in runs of one."""
    return RowWeights(tuple(weight), (1,) * len(weight)) if weight.ndim == 5 else weight


def make_case(weights, scales, dtype=torch.float64, b=3, i=4, o=5, size=6, grad=False):
    x = double_normal(b, i, size, size, seed=1)
    weight = double_normal(*([b] if weights == "per_sample" else []), o, i, 3, 3, seed=2)
    styles = double_normal(b, i, seed=3) + 1
    scale = {None: None, "layer": 1 + 0.5 * double_normal(i, seed=4), "sample": 1 + 0.5 * double_normal(b, i, seed=4)}[
        scales
    ]
    return [t if t is None else t.to(dtype).requires_grad_(grad) for t in (x, weight, styles, scale)]


@pytest.mark.parametrize("mode,weights,demodulate,scales", CASES)
def test_modulated_conv_equals_explicit_weights(mode, weights, demodulate, scales):
    x, weight, styles, scale = make_case(weights, scales)
    got = modulated_conv2d(
        x, as_rows(weight), styles, input_scale=scale, demodulate=demodulate, resample_filter=FIR, **MODES[mode]
    )
    want = explicit_modulated(x, weight, styles, scale, demodulate, mode)
    torch.testing.assert_close(got, want, atol=1e-11, rtol=1e-11)  # float64, sums of < 200 terms


@pytest.mark.parametrize("mode,weights,demodulate,scales", CASES)
def test_modulated_conv_derivatives(mode, weights, demodulate, scales):
    inputs = make_case(weights, scales, b=2, i=2, o=2, size=4, grad=True)
    given = [t for t in inputs if t is not None]

    def f(x, weight, styles, scale=None):
        return modulated_conv2d(
            x, as_rows(weight), styles, input_scale=scale, demodulate=demodulate, resample_filter=FIR, **MODES[mode]
        )

    assert gradcheck(f, given, fast_mode=True)
    assert gradgradcheck(f, given, fast_mode=True)


@pytest.mark.parametrize("mode", MODES)
def test_output_scale_and_the_weight_of_the_norm(mode):
    x, weight, styles, _ = make_case("shared", None, b=4)
    gain, scale = 1 + 0.5 * double_normal(5, 4, 1, 1, seed=5), 1 + 0.5 * double_normal(4, 5, seed=6)
    kwargs = {"resample_filter": FIR, **MODES[mode]}
    modulated = weight * styles[:, None, :, None, None]  # [B, O, I, k, k]
    norm = (modulated.square().sum((2, 3, 4), keepdim=True) + 1e-8).sqrt()
    explicit = modulated * gain / norm * scale[:, :, None, None, None]
    want = torch.cat([explicit_conv(x[b : b + 1], explicit[b], mode) for b in range(4)])
    got = modulated_conv2d(x, weight * gain, styles, output_scale=scale, norm_weight=weight, **kwargs)
    torch.testing.assert_close(got, want, atol=1e-11, rtol=1e-11)
    # the same in runs: rows 0–1 with the gain, rows 2–3 without
    runs = RowWeights((weight * gain, weight), (2, 2))
    mixed = modulated_conv2d(
        x, runs, styles, output_scale=scale, norm_weight=RowWeights((weight, None), (2, 2)), **kwargs
    )
    torch.testing.assert_close(mixed[:2], want[:2], atol=1e-11, rtol=1e-11)
    plain = modulated_conv2d(x, weight, styles, output_scale=scale, **kwargs)
    torch.testing.assert_close(mixed[2:], plain[2:], atol=1e-11, rtol=1e-11)
    assert (plain[:2] - want[:2]).abs().max() > 0.1


def test_rows_must_fill_the_batch():
    x, weight, styles, _ = make_case("shared", None)
    with pytest.raises(ValueError, match="weights for 4 rows do not fit a batch of 3"):
        modulated_conv2d(x, RowWeights((weight, weight), (2, 2)), styles)


@pytest.mark.parametrize("mode", MODES)
def test_unmodulated_conv_is_a_convolution(mode):
    x, weight, *_ = make_case("shared", None)
    got = modulated_conv2d(x, weight, demodulate=False, resample_filter=FIR, **MODES[mode])
    torch.testing.assert_close(got, torch.cat([explicit_conv(s[None], weight, mode) for s in x]), atol=1e-11, rtol=0)


def test_pointwise_down_filters_before_striding():
    x, weight = double_normal(2, 3, 8, 8), double_normal(4, 3, 1, 1, seed=1)
    got = modulated_conv2d(x, weight, demodulate=False, down=2, resample_filter=FIR)
    torch.testing.assert_close(got, F.conv2d(blurred(x, (1, 1, 1, 1)), weight, stride=2), atol=1e-12, rtol=0)


@pytest.mark.parametrize("mode", ["plain", "up"])
def test_input_scale_acts_after_demodulation(mode):  # HyperDomainNet §3
    x, weight, styles, d = make_case("shared", "sample", torch.float32)
    kwargs = {"resample_filter": FIR, **MODES[mode]}
    got = modulated_conv2d(x, weight, styles, input_scale=d, **kwargs)
    torch.testing.assert_close(
        got, modulated_conv2d(x * d[:, :, None, None], weight, styles, **kwargs), atol=1e-5, rtol=0
    )
    after = explicit_modulated(x, weight, styles, d, True, mode)
    before = explicit_modulated(x, weight, styles, d, True, mode, scale_first=True)
    torch.testing.assert_close(got, after, atol=1e-5, rtol=0)
    assert (got - before).abs().max() > 0.1  # the two placements are different functions


@pytest.mark.parametrize("mode", ["plain", "up"])
def test_a_constant_scale_of_two_doubles_the_output(mode):
    x, weight, styles, _ = make_case("shared", None, torch.float32)
    kwargs = {"resample_filter": FIR, **MODES[mode]}
    two = torch.full((4,), 2.0)
    base = modulated_conv2d(x, weight, styles, **kwargs)
    torch.testing.assert_close(modulated_conv2d(x, weight, styles, input_scale=two, **kwargs), 2 * base)
    # had it been part of the norm, demodulation would have undone it
    torch.testing.assert_close(modulated_conv2d(x, weight, styles * 2, **kwargs), base)


def test_demodulation_survives_half_precision():
    x, weight, styles, _ = make_case("shared", None, torch.float32)
    got = modulated_conv2d((x * 0.1).half(), weight.half(), (styles * 300).half())
    want = modulated_conv2d(x * 0.1, weight, styles * 300)
    assert got.isfinite().all()
    # fp16 rounds inputs, products and sum to 2^-11 of values below ~300 that the norm shrinks again to ~1
    torch.testing.assert_close(got.float(), want, atol=5e-3, rtol=5e-3)


@pytest.mark.parametrize("bad", [(2, 4, 3, 3), (2, 5, 4, 3, 3)])
def test_modulated_conv_refuses_weights_that_do_not_fit(bad):
    with pytest.raises(ValueError, match="does not fit"):
        modulated_conv2d(torch.zeros(3, 5 if len(bad) == 4 else 4, 4, 4), torch.zeros(bad))


def test_resampling_needs_a_filter():
    with pytest.raises(ValueError, match="resample_filter"):
        modulated_conv2d(torch.zeros(1, 1, 4, 4), torch.zeros(1, 1, 3, 3), up=2)


UPFIRDN = [
    (1, 1, 0),
    (2, 1, (2, 1, 2, 1)),
    (1, 2, (1, 1, 1, 1)),
    (2, 2, (3, 0, 1, 2)),
    (1, 1, (-1, 2, 0, -1)),
    (3, 2, 2),
    (2, 1, (-9, 9, 3, 3)),
]


@pytest.mark.parametrize("up,down,padding", UPFIRDN)
@pytest.mark.parametrize("flip", [False, True])
def test_upfirdn2d_equals_its_definition(up, down, padding, flip):
    x, f = double_normal(2, 3, 6, 5), double_normal(4, 3, seed=1)
    got = upfirdn2d(x, f, up=up, down=down, padding=padding, flip_filter=flip, gain=1.5)
    left, right, top, bottom = (padding,) * 4 if isinstance(padding, int) else padding
    height, width = 6 * up + top + bottom, 5 * up + left + right
    padded = x.new_zeros(2, 3, height, width)
    for i, j in itertools.product(range(6), range(5)):
        row, column = i * up + top, j * up + left
        if 0 <= row < height and 0 <= column < width:
            padded[:, :, row, column] = x[:, :, i, j]
    kernel = f if flip else f.flip(0, 1)
    want = torch.stack(
        [
            torch.stack(
                [(padded[:, :, r : r + 4, c : c + 3] * kernel).sum((2, 3)) * 1.5 for c in range(0, width - 2, down)], -1
            )
            for r in range(0, height - 3, down)
        ],
        -2,
    )
    torch.testing.assert_close(got, want, atol=1e-12, rtol=0)


@pytest.mark.parametrize("up,down,padding", UPFIRDN)
def test_upfirdn2d_derivatives(up, down, padding):
    x, f = double_normal(1, 2, 4, 4, grad=True), double_normal(3, 3, seed=1)
    assert gradcheck(lambda t: upfirdn2d(t, f, up=up, down=down, padding=padding), x)
    assert gradgradcheck(lambda t: upfirdn2d(t, f, up=up, down=down, padding=padding), x)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_upsampling_in_lower_precision(dtype, layout):
    x = double_normal(2, 3, 6, 5).to(dtype).contiguous(memory_format=layout)
    got = upsample2d(x, FIR)
    assert got.dtype == dtype and got.is_contiguous(memory_format=layout)
    want = blurred(zero_stuffed(x.double()), (2, 1, 2, 1), 4)
    torch.testing.assert_close(got.double(), want, atol=1e-6, rtol=torch.finfo(dtype).eps)


def test_resampling_keeps_a_constant():
    x = torch.full((1, 2, 8, 8), 0.7)
    torch.testing.assert_close(upsample2d(x, FIR)[..., 2:-2, 2:-2], torch.full((1, 2, 12, 12), 0.7))
    torch.testing.assert_close(downsample2d(x, FIR)[..., 1:-1, 1:-1], torch.full((1, 2, 2, 2), 0.7))
    assert upsample2d(x, FIR).shape[-1] == 16 and downsample2d(x, FIR).shape[-1] == 4


def test_filter_is_normalised_and_exact_in_half_precision():
    assert FIR.dtype == torch.float32 and FIR.sum() == 1
    for dtype in (torch.float16, torch.bfloat16):
        assert torch.equal(FIR.to(dtype).float(), FIR)
    assert setup_filter([1, 2], device="meta").is_meta
    with pytest.raises(ValueError, match="sum to zero"):
        setup_filter([1, -1])


@pytest.mark.parametrize("activation", ["linear", "lrelu", "relu"])
@pytest.mark.parametrize("clamp", [None, 0.8])
def test_bias_act_value_and_derivatives(activation, clamp):
    x, bias = double_normal(2, 3, 4, grad=True), double_normal(3, seed=1, grad=True)
    got = bias_act(x, bias, activation=activation, clamp=clamp)
    y = x + bias[None, :, None]
    slope = {"linear": 1.0, "lrelu": 0.2, "relu": 0.0}[activation]
    y = torch.where(y > 0, y, y * slope) * (1 if activation == "linear" else 2**0.5)
    y = y if clamp is None else y.clip(-clamp, clamp)
    torch.testing.assert_close(got, y, atol=1e-14, rtol=0)
    f = lambda x, b: bias_act(x, b, activation=activation, clamp=clamp, gain=1.3)  # noqa: E731
    assert gradcheck(f, (x, bias))
    assert gradgradcheck(f, (x, bias))


@pytest.mark.parametrize("activation", ["linear", "lrelu", "relu"])
@pytest.mark.parametrize("per_sample", [False, True])
@pytest.mark.parametrize("scaled", [None, (3,), (2, 3)])
def test_bias_act_scales_adds_noise_and_may_write_into_what_it_is_given(activation, per_sample, scaled):
    x, bias = double_normal(2, 3, 4, 4, grad=True), double_normal(3, seed=1, grad=True)
    noise = double_normal(*((2, 1) if per_sample else ()), 4, 4, seed=2, grad=True)
    strength = double_normal(*((2,) if per_sample else ()), seed=3, grad=True)
    options = {"activation": activation, "gain": 1.3, "clamp": 1.5}
    scale = double_normal(*(scaled or (1, 3)), seed=4, grad=True)
    want = x * scale[..., None, None] if scaled else x
    want = bias_act(want + strength.reshape(-1, 1, 1, 1) * noise + bias[:, None, None], **options)

    def reusing(x, *rest):  # a copy: leaves cannot be written into
        return bias_act(x * 1, *rest[:3], scale=rest[3] if scaled else None, reuse=True, **options)

    given = (x, bias, noise, strength, *([scale] if scaled else []))
    torch.testing.assert_close(reusing(*given), want, atol=1e-14, rtol=0)
    assert gradcheck(reusing, given)
    assert gradgradcheck(reusing, given)
    with torch.no_grad():
        kept, mine = x.clone(), x.clone()
        options["scale"] = scale if scaled else None
        got = bias_act(kept, *given[1:4], **options)
        torch.testing.assert_close(got, want, atol=1e-14, rtol=0)
        assert torch.equal(kept, x)
        got = bias_act(mine, *given[1:4], reuse=True, **options)
        torch.testing.assert_close(got, want, atol=1e-14, rtol=0)
        assert got.data_ptr() == mine.data_ptr()


def test_bias_act_alone_gives_back_what_it_was_given():
    x = double_normal(2, 3)
    assert bias_act(x) is x  # nothing to do: no copy either
    assert torch.equal(bias_act(x, clamp=0.1), x.clip(-0.1, 0.1)) and x.abs().max() > 0.1


@pytest.mark.parametrize("size, padding", [((4, 4), 1), ((2, 3), 2), ((3, 3), 0), ((5, 4), 1), ((6, 6), 0)])
def test_convolution_of_small_maps(size, padding):
    x, weight = double_normal(2, 3, *size, grad=True), double_normal(5, 3, 3, 3, seed=1, grad=True)
    want = F.conv2d(x, weight, padding=padding)  # products of small maps, the library's own convolution of larger ones
    torch.testing.assert_close(conv2d(x, weight, padding), want, atol=1e-13, rtol=0)
    assert gradcheck(lambda x, w: conv2d(x, w, padding), (x, weight))
    assert gradgradcheck(lambda x, w: conv2d(x, w, padding), (x, weight))
    traced = torch.jit.trace(lambda x, w: conv2d(x, w, padding), (x.detach(), weight.detach()))
    torch.testing.assert_close(traced(x, weight), want, atol=1e-13, rtol=0)
    with pytest.raises(RuntimeError, match="channels"):
        conv2d(x[:, :2], weight, padding)
    grouped = conv2d(x, weight[:3, :1], padding, groups=3)
    torch.testing.assert_close(grouped, F.conv2d(x, weight[:3, :1], padding=padding, groups=3), atol=1e-13, rtol=0)


def test_convolution_of_small_maps_in_half_precision():
    x, weight = double_normal(3, 8, 4, 4).bfloat16(), double_normal(5, 8, 3, 3, seed=1).bfloat16()
    want = F.conv2d(x.double(), weight.double(), padding=1)
    torch.testing.assert_close(conv2d(x, weight, 1).double(), want, atol=0.01, rtol=2**-8)


WINOGRAD = [  # dtype, batch, input and output channels, size, error relative to the largest value
    (torch.float32, 1, 64, 64, (16, 16), 2e-5),
    (torch.float32, 3, 128, 160, (20, 36), 2e-5),
    (torch.float32, 2, 300, 128, (12, 28), 2e-5),
    (torch.bfloat16, 1, 256, 256, (16, 16), 0.02),
    (torch.bfloat16, 2, 300, 260, (14, 22), 0.02),
]


@pytest.fixture
def vectors(monkeypatch):
    monkeypatch.setattr(winograd, "_has_bf16_vectors", lambda: True)


@pytest.mark.parametrize("dtype, batch, inputs, outputs, size, error", WINOGRAD)
def test_winograd_is_the_convolution(vectors, dtype, batch, inputs, outputs, size, error):
    x = double_normal(batch, inputs, *size).to(dtype)
    weight = nn.Parameter(double_normal(outputs, inputs, 3, 3, seed=1).to(dtype) / 30, requires_grad=False)
    scale = double_normal(batch, inputs, seed=2).to(dtype)
    want = F.conv2d((x * scale[..., None, None]).double(), weight.double(), padding=1)
    with mock.patch.object(conv, "winograd_conv2d", side_effect=winograd.winograd_conv2d) as used:
        got = conv2d(x, weight, 1, scale=scale)
    assert used.call_count == 1 and got.dtype == dtype
    torch.testing.assert_close(got.double(), want, atol=error * float(want.abs().max()), rtol=0)  # seen: half of it
    assert got.is_contiguous(memory_format=torch.channels_last)
    alone = torch.cat([conv2d(x[i : i + 1], weight, 1, scale=scale[i : i + 1]) for i in range(batch)])
    assert alone.equal(got)  # a picture does not depend on its batch


def frozen(*shape, seed=0):
    return nn.Parameter(double_normal(*shape, seed=seed).float(), requires_grad=False)


KEEPS = [  # what convolves with a weight [128, 128, 3, 3], and what it keeps of the weight
    (lambda x, weight: conv2d(x, weight, 1), winograd._transform),
    (
        lambda x, weight: modulated_conv2d(x, weight, demodulate=False, up=2, resample_filter=FIR),
        modulated_conv._swapped,
    ),
]


@pytest.mark.parametrize("convolve, make", KEEPS)
def test_what_is_made_of_a_parameter_is_kept_until_it_changes(convolve, make):
    x, parameter = double_normal(1, 128, 32, 32).float(), frozen(128, 128, 3, 3, seed=1)
    first = convolve(x, parameter)
    made = weight_cache._derived[parameter][1][make]
    assert convolve(x, parameter).equal(first) and weight_cache._derived[parameter][1][make] is made
    parameter.mul_(2)
    assert convolve(x, parameter).equal(2 * first)
    parameter.data = parameter.data / 2  # other memory, the version goes on
    assert convolve(x, parameter).equal(first)


@pytest.mark.parametrize("convolve, make", KEEPS)
def test_what_was_made_of_a_weight_goes_with_it(convolve, make):
    parameter = frozen(128, 128, 3, 3)
    convolve(double_normal(1, 128, 16, 16).float(), parameter)
    made = weakref.ref(weight_cache._derived[parameter][1][make])
    del parameter
    assert made() is None


@pytest.mark.parametrize("convolve, make", KEEPS)
def test_what_inference_mode_made_is_not_followed_by_autograd(convolve, make):
    x, parameter = double_normal(1, 128, 16, 16).float(), frozen(128, 128, 3, 3, seed=1)
    with torch.inference_mode():
        want = convolve(x, parameter)
    got = convolve(x.requires_grad_(), parameter)
    got.sum().backward()  # it saves the weight
    torch.testing.assert_close(got.detach(), want.clone(), atol=1e-3, rtol=1e-4)


def test_an_empty_batch_and_another_default_device():
    x, weight = double_normal(2, 128, 16, 16).float(), frozen(128, 128, 3, 3, seed=1)
    assert conv2d(x[:0, :, :4, :4].bfloat16(), weight.bfloat16(), 1).shape == (0, 128, 4, 4)
    assert conv2d(x[:0], weight, 1).shape == (0, 128, 16, 16)
    with torch.device("meta"):
        got = conv2d(x, weight, 1)
    torch.testing.assert_close(got, F.conv2d(x, weight, padding=1), atol=1e-3, rtol=1e-4)


@pytest.mark.parametrize("convolve, make", KEEPS)
def test_nothing_is_kept_of_a_weight_in_training(convolve, make):
    parameter = frozen(128, 128, 3, 3).requires_grad_()
    convolve(double_normal(1, 128, 16, 16).float(), parameter).sum().backward()
    assert parameter not in weight_cache._derived


@pytest.mark.parametrize(
    "case",
    [
        "followed",
        "scale followed",
        "double",
        "half",
        "matrix tiles",
        "no vectors",
        "narrow",
        "small",
        "odd",
        "5x5",
        "no padding",
        "grouped",
        "traced",
    ],
)
def test_winograd_is_left_out(case, monkeypatch, request):
    x, weight, options = (
        double_normal(4, 128, 16, 16).float(),
        double_normal(128, 128, 3, 3, seed=1).float(),
        {"padding": 1},
    )
    if case == "followed":
        weight.requires_grad_()
    elif case in ("double", "half"):
        x, weight = (t.to(getattr(torch, case)) for t in (x, weight))
    elif case == "scale followed":
        options["scale"] = torch.ones(128, requires_grad=True)
    elif case in ("matrix tiles", "no vectors"):
        x, weight = double_normal(4, 256, 16, 16).bfloat16(), double_normal(256, 256, 3, 3, seed=1).bfloat16()
        monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: case == "matrix tiles")
        monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: case == "matrix tiles")
        winograd._has_bf16_vectors.cache_clear()
        request.addfinalizer(winograd._has_bf16_vectors.cache_clear)
    elif case == "narrow":
        weight = weight[:63]
    elif case == "small":
        x = x[..., :8, :8]
    elif case == "odd":
        x = x[..., :15]
    elif case == "5x5":
        weight, options = double_normal(128, 128, 5, 5).float(), {"padding": 2}
    elif case == "no padding":
        options = {"padding": 0}
    elif case == "grouped":
        weight, options = weight[:, :64], {"padding": 1, "groups": 2}
    want = F.conv2d(x, weight, **{k: v for k, v in options.items() if k != "scale"})  # which is 1
    with mock.patch.object(conv, "winograd_conv2d", side_effect=AssertionError):
        if case == "traced":
            got = torch.jit.trace(lambda x: conv2d(x, weight, **options), x, check_trace=False)(x)
        else:
            got = conv2d(x, weight, **options)
    assert got.equal(want)


def test_modulated_convolution_of_several_looks_by_winograd():
    x, styles = double_normal(3, 128, 16, 16).float(), double_normal(3, 128, seed=1).float()
    weights = [nn.Parameter(double_normal(128, 128, 3, 3, seed=s).float(), requires_grad=False) for s in (2, 3)]
    with mock.patch.object(conv, "winograd_conv2d", side_effect=winograd.winograd_conv2d) as used:
        got = modulated_conv2d(x, RowWeights(tuple(weights), (1, 2)), styles)
    assert used.call_count == 2
    for i, weight in enumerate((weights[0], weights[1], weights[1])):
        want = modulated_conv2d(x[i : i + 1].double(), weight.double(), styles[i : i + 1].double())
        torch.testing.assert_close(got[i : i + 1].double(), want, atol=2e-5 * float(want.abs().max()), rtol=0)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_scale_of_a_pointwise_convolution_is_on_its_weight(layout):
    x, weight = (
        double_normal(2, 6, 5, 3).contiguous(memory_format=layout).requires_grad_(),
        double_normal(3, 6, 1, 1, seed=1, grad=True),
    )
    styles = double_normal(2, 6, seed=2, grad=True)
    want = F.conv2d(x * styles[..., None, None], weight)
    got = modulated_conv2d(x, weight, styles, demodulate=False)
    torch.testing.assert_close(got, want, atol=1e-13, rtol=0)
    assert got.is_contiguous(memory_format=layout)
    inputs = (x, weight, styles)
    assert gradcheck(lambda x, w, s: modulated_conv2d(x, w, s, demodulate=False), inputs)


def test_bias_act_names_what_is_wrong():
    with pytest.raises(ValueError, match="unknown activation 'gelu'"):
        bias_act(torch.zeros(1, 2), activation="gelu")
    with pytest.raises(ValueError, match="fits neither"):
        bias_act(torch.zeros(1, 2), torch.zeros(3))
    with pytest.raises(ValueError, match="gain=0: give a number above 0"):
        bias_act(torch.zeros(1, 2), gain=0)


@pytest.mark.parametrize("scaled", [False, True])
def test_inverse_haar_is_the_transposed_orthonormal_transform(scaled):
    c, x = 2, double_normal(2, 8, 3, 5, grad=True)
    scale = double_normal(2, 8, seed=1, grad=True) if scaled else None
    y = x * scale[:, :, None, None] if scaled else x
    want = torch.zeros(2, c, 6, 10, dtype=torch.float64)
    for i in range(c):
        ll, (lh, hl, hh) = y[:, i], (y[:, c + 3 * i + j] for j in range(3))
        for row, column in itertools.product((0, 1), (0, 1)):  # lh changes sign with the row, hl with the column
            a, b = (-1) ** row, (-1) ** column
            want[:, i, row::2, column::2] = (ll + a * lh + b * hl + a * b * hh) / 2
    got = inverse_haar(x, scale)
    torch.testing.assert_close(got, want, atol=1e-14, rtol=0)
    assert got.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(haar(got), y, atol=1e-14, rtol=0)
    if not scaled:  # orthonormal: lengths stay
        torch.testing.assert_close(got.norm(), x.norm())
    given = (x, scale) if scaled else (x,)
    assert gradcheck(inverse_haar, given) and gradgradcheck(inverse_haar, given)
    traced = torch.jit.trace(inverse_haar, tuple(t.detach() for t in given))  # takes a path of its own
    torch.testing.assert_close(traced(*given), want, atol=1e-14, rtol=0)
    for layout in (torch.contiguous_format, torch.channels_last):
        with torch.no_grad():  # written in place there
            torch.testing.assert_close(
                inverse_haar(x.contiguous(memory_format=layout), scale), want, atol=1e-14, rtol=0
            )


def test_inverse_haar_names_what_is_wrong():
    with pytest.raises(ValueError, match=r"bands are \[B, 4C, H, W\]"):
        inverse_haar(torch.zeros(1, 6, 2, 2))
    with pytest.raises(ValueError, match=r"got \(2, 4, 2, 2\) and a style \(1, 4\)"):
        inverse_haar(torch.zeros(2, 4, 2, 2), torch.zeros(1, 4))
    with pytest.raises(ValueError, match="pad to even sizes"):
        haar(torch.zeros(1, 1, 3, 2))
