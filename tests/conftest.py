"""Tiny networks for every test: 32 px, at most 16 channels, on the CPU, with noise and biases that matter."""

import os
import sys
from pathlib import Path

import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # no test talks to a server; read when huggingface_hub is imported

if "PYTEST_XDIST_WORKER" in os.environ:  # processes share the cores; tiny networks want no more threads than one
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # read when torch is imported, here and in what tests start

import torch  # noqa: E402
import torch.nn.functional as F  # noqa: E402
from torch import nn  # noqa: E402

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")  # read when triton is imported; a kernel is used where a test asks

from fewshot_gan.features import FeatureNetwork  # noqa: E402
from fewshot_gan.models import MobileStyleGANGenerator, StyleGAN2Discriminator, StyleGAN2Generator  # noqa: E402


def _disturb(model: nn.Module) -> nn.Module:
    """Noise strengths, biases and the mean w away from their zero initialisation, rounded to float16."""
    with torch.no_grad():
        for name, p in model.named_parameters():
            if name.endswith("noise.strength"):
                p.fill_(0.25)
            elif name.endswith("bias") and "affine" not in name:
                p.normal_(0, 0.1)
        if hasattr(model, "mapping"):
            model.mapping.w_avg.normal_(0, 0.1)
        for tensor in model.state_dict().values():
            tensor.copy_(tensor.half().float())  # as published weights are: representable in half precision
    return model.eval()


def tiny_mobile(seed: int = 0, block_channels=(16, 16, 16), w_dim: int = 16) -> MobileStyleGANGenerator:
    torch.manual_seed(seed)
    return _disturb(MobileStyleGANGenerator(block_channels, z_dim=16, w_dim=w_dim, num_mapping_layers=2))


def tiny_stylegan2(seed: int = 0, resolution: int = 32, w_dim: int = 16) -> StyleGAN2Generator:
    torch.manual_seed(seed)
    size = {"channel_base": 128, "channel_max": 12}
    return _disturb(StyleGAN2Generator(resolution, **size, z_dim=16, w_dim=w_dim, num_mapping_layers=2))


def tiny_discriminator(seed: int = 0, resolution: int = 32) -> StyleGAN2Discriminator:
    torch.manual_seed(seed)
    return _disturb(StyleGAN2Discriminator(resolution, channel_base=128, channel_max=12))


def without_tensors(folder, name: str) -> None:
    """Take out of a saved model of transformers the tensors with `name` in theirs."""
    from safetensors.torch import load_file, save_file

    weights = folder / "model.safetensors"
    save_file({k: v for k, v in load_file(weights).items() if name not in k}, weights, metadata={"format": "pt"})


class TinyFeatures(FeatureNetwork):
    """Random frozen convolutions that answer to the block ids the objectives ask for."""

    STRIDES = {0: 2, 2: 2, 4: 2, 7: 1, 10: 1, 14: 2}
    WIDTH = 8

    def __init__(self, seed: int = 0):
        super().__init__()
        g = torch.Generator().manual_seed(seed)
        widths = [3, *[self.WIDTH] * len(self.STRIDES)]
        for block, inn in zip(self.STRIDES, widths, strict=False):
            self.register_buffer(f"w{block}", torch.randn(self.WIDTH, inn, 3, 3, generator=g) / (inn * 4.5) ** 0.5)

    def forward(self, images, blocks=(0, 2, 4, 7, 10, 14), resize=None):
        x, maps = images, {}
        for block, stride in self.STRIDES.items():
            x = maps[block] = F.leaky_relu(F.conv2d(x, getattr(self, f"w{block}"), stride=stride, padding=1), 0.2)
        return [maps[b] for b in blocks]

    @torch.no_grad()
    def pooled(self, images, batch_size=32):
        return self(images, (14,))[0].mean((2, 3))

    def channels(self, blocks):
        return [self.WIDTH for _ in blocks]


@pytest.fixture(autouse=True)
def threads():
    """A training run sets how many threads its process has: the next test has those of the first again."""
    number = torch.get_num_threads()
    yield
    torch.set_num_threads(number)


MODELS = {"mobile": tiny_mobile, "stylegan2": tiny_stylegan2}


@pytest.fixture(params=sorted(MODELS))
def make_generator(request):
    """The factory of one architecture: a test with it runs on each."""
    return MODELS[request.param]


@pytest.fixture
def mobile():
    return tiny_mobile()


@pytest.fixture
def stylegan2():
    return tiny_stylegan2()


@pytest.fixture
def discriminator():
    return tiny_discriminator()


@pytest.fixture
def features():
    return TinyFeatures().to(memory_format=torch.channels_last)  # as the real one is


@pytest.fixture
def perturbed():
    """In-place noise on an adapter's factors, so that it is no longer the identity."""

    def change(adapter, seed=0, std=0.1):
        g = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for p in adapter.parameters():
                p.add_(torch.randn(p.shape, generator=g) * std)
        return adapter

    return change


@pytest.fixture(scope="session")
def base_folder(tmp_path_factory):
    """A saved base with generator and discriminator; read only."""
    from fewshot_gan.pipeline import FewShotGAN

    folder = tmp_path_factory.mktemp("bases") / "tiny"
    FewShotGAN(tiny_mobile(), tiny_discriminator()).save_pretrained(folder)
    return folder


@pytest.fixture
def script(monkeypatch):
    """`script("lifelong")`: a training script as a module, fresh, with its neighbours importable."""
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "training"))

    def load(name):
        sys.modules.pop(name, None)
        return __import__(name)

    return load
