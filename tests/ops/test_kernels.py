"""The Triton kernels against the plain torch of `ops` and the adapters: values, gradients, second derivatives.

Without a GPU Triton's interpreter runs them (see conftest.py), so shapes are tiny; with one, `pytest -m gpu`.
"""

import os
import random
import subprocess
import sys
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from helpers.networks import tiny_mobile
from torch.autograd import gradcheck, gradgradcheck

from fewshot_gan import StyleGAN2Generator, ops
from fewshot_gan.adapters import AdaFMAdapter, AdapterBank, DomainVectorAdapter, LeFTAdapter, TicketAdapter
from fewshot_gan.adapters.ticket import magnitude_masks
from fewshot_gan.models.layers import adaptable_layers
from fewshot_gan.ops.dispatch import BUNDLED

pytest.importorskip("triton")
kernels = pytest.importorskip("kernels")

LAYOUTS = ("contiguous", "channels_last", "sliced", "transposed")
ACTIVATIONS = ("linear", "lrelu", "relu")
# A kernel rounds once at its end; Triton's interpreter cuts bfloat16 off instead of rounding it: one unit, not half.
ROUNDING = {torch.float32: 2e-6, torch.bfloat16: 2**-7, torch.float16: 2**-10}


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request):
    if (request.param == "cuda") != torch.cuda.is_available():
        pytest.skip("the kernels run on a GPU where there is one, else interpreted")
    return request.param


@pytest.fixture
def package():
    """The bundled package, `launch` with it; a test in which a kernel quietly gave way to plain torch fails."""
    module = kernels.get_local_kernel(BUNDLED)
    yield SimpleNamespace(ops=module, launch=import_module(f"{module.__name__}.launch"))
    assert module.failures == {}


@pytest.fixture
def chosen(monkeypatch):
    """`chosen("local")` for the duration of a test."""
    monkeypatch.setattr(ops.dispatch, "_selection", None)
    return ops.set_kernels


@pytest.fixture
def large_blocks(package, monkeypatch):
    """The interpreter takes its time per block."""
    monkeypatch.setattr(package.launch, "FIXED", package.launch.FIXED | {"BLOCK": 2**14})
    monkeypatch.setattr(package.launch, "BLOCK", 2**14)


class Case:
    """A reproducible random case: `Case(7)` is the same on every machine."""

    def __init__(self, seed, device="cpu"):
        self.random, self.device = random.Random(seed), device
        self.generator = torch.Generator().manual_seed(seed)
        self.dtype = self.random.choice(list(ROUNDING))

    def rand(self, *shape, dtype=torch.float32, grad=False):
        return torch.randn(shape, generator=self.generator).to(self.device, dtype).requires_grad_(grad)

    def features(self, channels=None, least=1, dtype=None, grad=False):
        """`[B, C, H, W]` in one of several memory layouts."""
        shape = [self.random.randint(1, 3), channels or self.random.randint(1, 5)]
        shape += [self.random.randint(least, 9), self.random.randint(least, 9)]
        layout, dtype = self.random.choice(LAYOUTS), dtype or self.dtype
        if layout == "transposed":
            x = self.rand(shape[1], shape[3], shape[0], shape[2], dtype=dtype).permute(2, 0, 3, 1)
        elif layout == "sliced":
            x = self.rand(shape[0], shape[1], shape[2] + 1, 2 * shape[3], dtype=dtype)[:, :, 1:, ::2]
        else:
            x = self.rand(*shape, dtype=dtype)
            x = x.to(memory_format=torch.channels_last) if layout == "channels_last" else x
        return x.requires_grad_(grad)

    def act(self, shape, grad=False):
        """Arguments of `bias_act` for features of `shape`, each operand there or not."""
        b, c, h, w = shape
        bias = self.random.choice([None, (c,), (b, c)])
        noise = self.random.choice([None, (h, w), (1, 1, h, w), (b, 1, h, w)])
        made = {"bias": bias and self.rand(*bias, grad=grad), "noise": noise and self.rand(*noise, grad=grad)}
        if noise:
            made["noise_strength"] = self.rand(*self.random.choice([(), (b,)]), grad=grad)
        made |= {"activation": self.random.choice(ACTIVATIONS), "gain": self.random.choice([None, 0.7])}
        return made | {"clamp": self.random.choice([None, 0.75])}  # a limit that every dtype has


def close(got, want, dtype, scale=1.0):
    """Equal but for the rounding of `dtype`; `want` is computed in float32."""
    assert got.dtype == dtype and got.shape == want.shape
    torch.testing.assert_close(got.float(), want.float(), rtol=ROUNDING[dtype], atol=ROUNDING[dtype] * scale)


def gradients(function, inputs):
    """First derivatives of Σ y³ and those of their squares' sum: every second derivative takes part."""
    y = function()
    first = torch.autograd.grad(y.pow(3).sum(), inputs, create_graph=True)
    second = torch.autograd.grad(sum(g.square().sum() for g in first), inputs, allow_unused=True)
    return [y, *first, *(g for g in second if g is not None)]


def all_close(got, want):
    """Float32 sums of up to 3·81·25 products, taken in another order, in units of the largest number."""
    assert len(got) == len(want)
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=3e-6 * float(b.detach().abs().max()) + 1e-6)


@pytest.mark.parametrize("seed", range(20))
def test_bias_act(package, device, seed):
    case = Case(seed, device)
    x = case.features()
    how = case.act(x.shape)
    got = package.ops.bias_act(x, **how)
    close(got, ops.bias_act(x.float(), **how), case.dtype, 8)
    if x.is_contiguous(memory_format=torch.channels_last):
        assert got.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("shape", [(3, 5), (2, 3, 7), (2, 3, 2, 3, 2)])
def test_bias_act_takes_any_number_of_dimensions(package, device, shape):
    case = Case(1, device)
    x, bias = case.rand(*shape), case.rand(shape[1])
    got = package.ops.bias_act(x, bias, activation="lrelu")
    close(got, ops.bias_act(x, bias, activation="lrelu"), torch.float32)


def test_large_inputs_take_several_blocks_and_keep_nan(package, device):
    case = Case(2, device)
    x = case.rand(1, 3, 23, 25)  # 1725 numbers, blocks of 512
    x[0, 1, 2, 3] = float("nan")
    for activation in ACTIVATIONS:
        got = package.ops.bias_act(x, activation=activation, clamp=1.0)
        want = ops.bias_act(x, activation=activation, clamp=1.0)
        torch.testing.assert_close(got, want, equal_nan=True, rtol=0, atol=1e-6)


def test_64_bit_offsets_compute_the_same(package, device, monkeypatch):
    case = Case(3, device)
    x, f = case.rand(2, 8, 5, 3), case.rand(3, 4)

    def results():
        y = package.ops.upfirdn2d(x, f, up=2, padding=2), package.ops.inverse_haar(x, x[:, :, 0, 0])
        return *y, package.ops.haar(y[1]), package.ops.bias_act(x, x[0, :, 0, 0], activation="relu")

    narrow = results()
    monkeypatch.setattr(package.launch, "_wide", lambda *tensors: True)
    assert all(torch.equal(a, b) for a, b in zip(narrow, results(), strict=True))


def test_offsets_beyond_32_bits_are_seen(package):
    wide, x = package.launch._wide, torch.empty(1, device="meta")
    assert not wide(x.expand(2**20, 2**20), None)  # strides of zero
    assert wide(torch.empty(2, 2**30, device="meta")) and not wide(torch.empty(2**30, device="meta"))


def random_fir(case, x):
    """A filter and the arguments that fit `x`."""
    f = case.rand(case.random.choice([1, 2, 4, 4, 5]), case.random.choice([1, 3, 4, 4]))
    while True:
        padding = tuple(case.random.randint(-2, 4) for _ in range(4))
        how = {"up": case.random.choice([1, 2]), "down": case.random.choice([1, 2]), "padding": padding}
        height, width = (x.shape[2] * how["up"] + sum(padding[2:]), x.shape[3] * how["up"] + sum(padding[:2]))
        if height >= f.shape[0] and width >= f.shape[1]:
            return f, how | {"flip_filter": case.random.random() < 0.5, "gain": case.random.choice([1.0, 1.7])}


@pytest.mark.parametrize("seed", range(20))
def test_upfirdn2d(package, device, seed):
    case = Case(100 + seed, device)
    x = case.features(least=2)
    f, how = random_fir(case, x)
    want = ops.upfirdn2d(x.float(), f, **how)
    close(package.ops.upfirdn2d(x, f, **how), want, case.dtype, 16)  # sums of up to 20 products
    then = case.act(want.shape)
    got = package.ops.upfirdn2d(x, f, **then | how, act_gain=then["gain"])
    close(got, ops.bias_act(want, **then), case.dtype, 16)


def test_upfirdn2d_with_a_large_filter(package, device):
    case = Case(5, device)
    x, f = case.rand(1, 1, 9, 8), case.rand(8, 8)
    close(package.ops.upfirdn2d(x, f, padding=3), ops.upfirdn2d(x, f, padding=3), torch.float32, 40)
    with pytest.raises(ValueError, match="larger than 8×8"):
        package.ops.upfirdn2d(x, case.rand(9, 9))


@pytest.mark.parametrize("seed", range(8))
def test_inverse_haar(package, device, seed):
    case = Case(200 + seed, device)
    x = case.features(channels=4 * case.random.randint(1, 3))
    style = case.rand(*x.shape[:2]) if seed % 2 else None
    want = ops.inverse_haar(x.float(), style)
    close(package.ops.inverse_haar(x, style), want, case.dtype, 8)
    if style is None:
        close(package.ops.haar(want), x.float(), torch.float32, 8)


@pytest.mark.parametrize("seed", range(4))
def test_derivatives(package, device, seed):
    case = Case(300 + seed, device)
    case.dtype = torch.float32
    x = case.features(channels=8, least=2, grad=True)
    style = case.rand(*x.shape[:2], grad=True)
    then = case.act(x.shape, grad=True)
    f, how = random_fir(case, x)
    leaves = [t for t in then.values() if isinstance(t, torch.Tensor)]

    def through(implementation, act):
        return [
            gradients(lambda: act(x, then), [x, *leaves]),
            gradients(lambda: implementation.upfirdn2d(x, f, **how), [x]),
            gradients(lambda: implementation.inverse_haar(x, style), [x, style]),
        ]

    got = through(package.ops, lambda x, then: package.ops.bias_act(x, **then))
    want = through(ops, lambda x, then: ops.bias_act(x, **then))
    for a, b in zip(got, want, strict=True):
        all_close(a, b)


@pytest.mark.parametrize("seed", range(3))
def test_derivatives_of_the_fused_operation(package, device, seed):
    case = Case(400 + seed, device)
    case.dtype = torch.float32
    x = case.features(least=2, grad=True)
    f = ops.setup_filter([1, 3, 3, 1], device=device)
    shape = (*x.shape[:2], 2 * x.shape[2], 2 * x.shape[3])
    then = case.act(shape, grad=True) | {"activation": "lrelu"}
    leaves = [x, *(t for t in then.values() if isinstance(t, torch.Tensor))]
    how = {"up": 2, "padding": (2, 1, 2, 1)}
    rest = then | {"gain": 4.0, "act_gain": then["gain"]}
    got = gradients(lambda: package.ops.upfirdn2d(x, f, **how, **rest), leaves)
    want = gradients(lambda: ops.bias_act(ops.upfirdn2d(x, f, **how, gain=4.0), **then), leaves)
    all_close(got, want)


def test_derivatives_are_exact(package):  # in float64, which plain torch computes: the same backward functions
    case = Case(6)
    rand = lambda *shape: case.rand(*shape, dtype=torch.float64, grad=True)  # noqa: E731
    x, bias, noise, strength = rand(2, 3, 4, 5), rand(3), rand(2, 1, 4, 5), rand(2)
    f = case.rand(4, 3, dtype=torch.float64)
    for activation in ACTIVATIONS:
        how = {"activation": activation, "clamp": 0.8}
        act = lambda x, b, n, s, how=how: package.ops.bias_act(x, b, noise=n, noise_strength=s, **how)  # noqa: E731
        assert gradcheck(act, (x, bias, noise, strength), fast_mode=True)
        assert gradgradcheck(act, (x, bias, noise, strength), fast_mode=True)
    for up, down, padding in [(1, 1, 0), (2, 1, (2, 1, 2, 1)), (1, 2, 1), (2, 2, (3, 0, 1, 2)), (1, 1, (-1, 2, 1, -1))]:
        fir = lambda x, how=(up, down, padding): package.ops.upfirdn2d(x, f, up=how[0], down=how[1], padding=how[2])  # noqa: E731
        assert gradcheck(fir, x, fast_mode=True) and gradgradcheck(fir, x, fast_mode=True)
    bands, style = rand(2, 8, 3, 2), rand(2, 8)
    assert gradcheck(package.ops.inverse_haar, (bands, style), fast_mode=True)
    assert gradgradcheck(package.ops.inverse_haar, (bands, style), fast_mode=True)


@pytest.mark.parametrize("count", [1, 7, 8, 13, 600])
def test_expand_bits(package, device, count):
    mask = Case(count).rand(count) > 0
    assert torch.equal(package.ops.expand_bits(ops.pack_bits(mask).to(device), count).cpu(), mask)


def smaller_stylegan2():
    torch.manual_seed(0)
    size = {"channel_base": 64, "channel_max": 4, "num_mapping_layers": 1}
    return StyleGAN2Generator(16, z_dim=16, w_dim=4, conv_clamp=256, **size).eval()


def smaller_mobile():
    return tiny_mobile(block_channels=(4, 8), w_dim=4)


def adapters_of(model):
    masks = magnitude_masks(model, 0.5, ("conv", "to_rgb"))
    vectors = {"post_demod": ("full", "separable"), "pre_demod": ("input", "full")}
    return [
        LeFTAdapter.for_model(model, rank=1),
        LeFTAdapter.for_model(model, rank=3, use_activation=False),
        AdaFMAdapter.for_model(model),
        TicketAdapter.for_model(model, masks=masks),
        *(DomainVectorAdapter.for_model(model, placement=p, parametrization=k) for p in vectors for k in vectors[p]),
    ]


@pytest.mark.parametrize("make", [smaller_stylegan2, smaller_mobile])
def test_modulate_weight_equals_the_adapters(package, device, perturbed, make):
    model, found = make(), 0
    stored = {path: layer.stored()[0] for path, layer in adaptable_layers(model)}
    for adapter in adapters_of(model):
        seen = set()
        for path, factors in perturbed(adapter).to(device).factors().items():
            with torch.no_grad():
                weight, change = stored[path].to(device), factors.change()
                if change is None or (kind := (weight.shape[1] == 1, weight.shape[2])) in seen:
                    continue
                seen.add(kind)  # depthwise or dense, 3×3 or 1×1
                adapted = factors(weight, None)
                for dtype in ROUNDING if len(seen) < 2 else [torch.float32]:
                    got, energy = package.ops.modulate_weight(weight, dtype=dtype, **change)
                    gain = 1 if adapted.filter_scale is None else adapted.filter_scale
                    close(got, adapted.weight * gain, dtype, 8)
                    want = adapted.weight.square().sum((2, 3))
                    torch.testing.assert_close(energy, want, rtol=1e-5, atol=1e-6)  # other order of nine squares
                    found += 1
    assert found >= 18


def test_a_weight_that_learns_gets_its_gradient(package, perturbed):
    factors = perturbed(AdaFMAdapter.for_model(smaller_stylegan2())).factors()["synthesis.b16.conv1"].requires_grad_()
    weight, sums = torch.randn(*factors.gamma.shape[:2], 3, 3), []
    for made, energy in (package.ops.modulate_weight(weight, **factors.change()), (factors(weight, None).weight, None)):
        energy = made.square().sum((2, 3)) if energy is None else energy
        sums.append(torch.autograd.grad((made * weight).sum() + energy.sum(), list(factors.parameters())))
    for a, b in zip(*sums, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("make", [smaller_stylegan2, smaller_mobile])
def test_networks_draw_and_learn_the_same(package, device, chosen, large_blocks, monkeypatch, perturbed, make):
    model, launched = make().to(device), set()
    for name in ("act", "act_grad", "upfirdn", "inverse_haar", "haar", "modulate"):
        original = getattr(package.launch, name)
        spy = lambda *args, name=name, original=original: launched.add(name) or original(*args)  # noqa: E731
        monkeypatch.setattr(package.launch, name, spy)
    bank = AdapterBank(model)
    adapter = perturbed(LeFTAdapter.for_model(model, roles=("conv", "to_rgb")))
    z = torch.randn(1, 16, generator=torch.Generator().manual_seed(0)).to(device)
    results = []
    for kernels_ in ("off", "local"):
        chosen(kernels_)
        bank.add("look", adapter, replace=True)  # and forget the effective weights that the other made
        bank.activate({"look": 1.0})
        adapter.requires_grad_(False)
        with torch.no_grad():
            picture = model(z)
        bank.fuse()
        assert bank.fused == []  # measuring a weight does not make it one that cannot be written
        bank.unfuse()
        adapter.requires_grad_(True)
        loss = model(z, noise_mode="random", generator=torch.Generator().manual_seed(1)).square().mean()
        results.append([picture, *torch.autograd.grad(loss, list(adapter.parameters()), allow_unused=True)])
    haar = {"inverse_haar", "haar"} if make is smaller_mobile else {"upfirdn"}
    assert launched == {"act", "act_grad", "modulate"} | haar
    for off, local in zip(*results, strict=True):  # a dozen layers in float32, and cuDNN's TF32 on a GPU
        if off is not None:
            tolerance = 1e-4 if device == "cpu" else 5e-3
            torch.testing.assert_close(local, off, rtol=0, atol=tolerance * max(1.0, float(off.abs().max())))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_uses_the_kernels_unasked_and_does_not_wait_for_them(package, chosen):
    case = Case(7, "cuda")
    x, style, f = case.rand(2, 8, 6, 6), case.rand(2, 8), ops.setup_filter([1, 3, 3, 1], device="cuda")

    def use():
        return ops.upfirdn2d(ops.inverse_haar(x, style), f, up=2, then=ops.Act(activation="lrelu"))

    use()  # compiles
    assert ops.dispatch.kernels_for(x) is package.ops
    torch.cuda.set_sync_debug_mode("error")
    try:
        use()
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_a_kernel_that_fails_gives_way_to_plain_torch(package, device, monkeypatch, caplog):
    def broken(*args):
        raise RuntimeError("no such chip")

    monkeypatch.setattr(package.launch, "act", broken)
    x = Case(8, device).rand(2, 3, 4, 4)
    for _ in range(2):
        assert torch.equal(package.ops.bias_act(x, activation="relu"), ops.bias_act(x, activation="relu"))
    assert [record.getMessage() for record in caplog.records] == [
        "the Triton kernel 'act' failed, plain torch takes its place: RuntimeError('no such chip')"
    ]
    assert list(package.ops.failures) == ["act"]
    package.ops.failures.clear()


def test_the_package_names_what_is_wrong(package):
    x = torch.zeros(2, 4, 3, 3)
    with pytest.raises(ValueError, match="unknown activation 'gelu'"):
        package.ops.bias_act(x, activation="gelu")
    with pytest.raises(ValueError, match=r"a bias of shape \(1, 3, 1, 1\) does not fit"):
        package.ops.bias_act(x, torch.zeros(3))
    with pytest.raises(ValueError, match="leaves nothing for the filter"):
        package.ops.upfirdn2d(x, torch.ones(4, 4))
    with pytest.raises(ValueError, match=r"a style \(2, 3\)"):
        package.ops.inverse_haar(x, torch.zeros(2, 3))
    with pytest.raises(ValueError, match="even height and width"):
        package.ops.haar(x)


@pytest.mark.slow
def test_every_kernel_compiles_for_gpus_that_are_not_here(package):
    script = Path(__file__).parents[1] / "helpers" / "compile_kernels.py"
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    done = subprocess.run([sys.executable, script, BUNDLED], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    kernels_ = {name for name in vars(package.launch) if name.endswith("_kernel")}
    assert kernels_ == {line.split()[0] for line in done.stdout.splitlines()}
