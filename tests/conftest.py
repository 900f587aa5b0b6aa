"""Fixtures of every test: tiny networks of `helpers.networks`, a base in a folder, a training script as a module."""

import os
import sys
from pathlib import Path

import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # no test talks to a server; read when huggingface_hub is imported

if "PYTEST_XDIST_WORKER" in os.environ:  # processes share the cores; tiny networks want no more threads than one
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # read when torch is imported, here and in what tests start

import torch  # noqa: E402

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")  # read when triton is imported; a kernel is used where a test asks

from helpers.networks import TinyFeatures, tiny_discriminator, tiny_mobile, tiny_stylegan2  # noqa: E402
from helpers.stylegan2_checkpoints import nvidia_writer  # noqa: E402

_charts: dict = {}  # number and kinds of curves, and scale → SVG


# Coverage doubles the time of Python code. These files take long, and other files run the same lines.
WITHOUT_COVERAGE = """
    test_demo_guard test_diffusers_conformity test_diffusers_pipelines test_docs test_domains test_export test_fuzz
    test_hub_cards test_kernels test_kills test_lottery test_machines test_offloaded_pipelines test_peft_conformity
    test_plain_diffusers test_plugins test_readme
""".split()


def pytest_collection_modifyitems(items):
    for item in items:
        if item.path.stem in WITHOUT_COVERAGE:
            item.add_marker("no_cover")


@pytest.fixture(autouse=True)
def quick_charts(request, monkeypatch):
    """Draw charts of each kind once: matplotlib takes longer than the training of a tiny network.

    tests/training/test_report.py, which looks at the charts, gets all of them drawn.
    """
    if request.module.__name__ == "test_report":
        return
    from fewshot_gan.training import charts

    draw = charts._draw

    def drawn_once(lines, logarithmic):
        key = tuple((line.label, line.kind, line.colour) for line in lines), logarithmic
        if key not in _charts:
            _charts[key] = draw(lines, logarithmic)
        return _charts[key]

    monkeypatch.setattr(charts, "_draw", drawn_once)


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
def eyes(features):
    """An encoder of the tiny features."""
    from fewshot_gan.features.encoders import FeatureEncoder

    return FeatureEncoder(features)


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
def pipe(make_generator):
    """A pipeline of each architecture."""
    from fewshot_gan.pipeline import FewShotGAN

    return FewShotGAN(make_generator())


@pytest.fixture
def poison():
    """Memory that is not written to holds NaN: what reads an offloaded tensor out of its time shows."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture
def nvidia():
    """A writer of pickles in NVIDIA's persistence format, and the dictionary that the training script writes."""
    return nvidia_writer()


@pytest.fixture
def script(monkeypatch):
    """`script("lifelong")`: a training script as a module, fresh, with its neighbours importable."""
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "training"))

    def load(name):
        sys.modules.pop(name, None)
        return __import__(name)

    return load
