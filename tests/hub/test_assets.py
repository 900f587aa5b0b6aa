"""What ships inside the package: faces of two sizes, looks, their bytes, and the example pictures."""

import json
import os
from pathlib import Path

import pytest
import torch
from PIL import Image

from fewshot_gan import FewShotGAN
from fewshot_gan.faces import LANDMARKS, find_faces
from fewshot_gan.hub import ASSETS, embedded_adapters, embedded_base_of, embedded_bases, embedded_datasets
from fewshot_gan.metrics import lightness_following, luminance, paired_correlations, psnr
from fewshot_gan.utils.safetensors_files import read_tensors


@pytest.fixture(scope="module")
def pipe():
    return FewShotGAN.from_pretrained("ffhq-256").load_adapter("sketch")


@pytest.fixture(scope="module")
def large():
    return FewShotGAN.from_pretrained("ffhq")


def test_sizes_stay_small():
    for base, limit in (("ffhq", 21e6), ("ffhq-256", 20e6)):
        path = ASSETS / "bases" / base / "generator" / "diffusion_pytorch_model.safetensors"
        assert path.stat().st_size <= limit
        assert {t.dtype for t in read_tensors(path).values()} == {torch.float16}
        encoder = ASSETS / "bases" / base / "latent_encoder" / "diffusion_pytorch_model.safetensors"
        assert encoder.stat().st_size <= 3e6 and {t.dtype for t in read_tensors(encoder).values()} == {torch.float16}
    for base in embedded_bases():
        assert set(embedded_adapters(base)) == {"ink", "lorelei", "poster", "sketch", "toon"}
    for folder in (folder for base in embedded_bases() for folder in embedded_adapters(base).values()):
        limit = (
            700e3 if "lora" in (folder / "adapter_config.json").read_text(encoding="utf-8") else 300e3
        )  # LoRA of rank 8, and LeFT
        assert sum(f.stat().st_size for f in folder.glob("adapter_*")) <= limit
        assert sum(f.stat().st_size for f in folder.glob("images/*")) <= 300e3
    assert sum(f.stat().st_size for f in ASSETS.rglob("*") if f.is_file()) <= 54e6


def test_the_recorded_fingerprints_are_those_of_the_weights(pipe, large):
    """By them an adapter finds its base whatever its config calls it."""
    recorded = json.loads((ASSETS / "bases" / "fingerprints.json").read_text(encoding="utf-8"))
    assert recorded == {"ffhq": large.bank.fingerprint(), "ffhq-256": pipe.bank.fingerprint()}
    assert recorded.keys() == set(embedded_bases())
    assert [embedded_base_of(mark) for mark in (*recorded.values(), "0" * 16, None)] == [*recorded, None, None]


def test_both_bases_draw_the_same_people(pipe, large):
    """The 256 px one is a student of the other: of the same latents the pictures are alike, of others they are not."""
    shown = {"num_images": 2, "seed": 0, "output_type": "pt"}
    big = large(**shown, batch_size=1).images
    assert big.shape == (2, 3, 1024, 1024)
    small, reduced = pipe(**shown, adapter_names="__base__").images, torch.nn.functional.avg_pool2d(big, 4)
    alike, others = psnr(2 * small - 1, 2 * reduced - 1), psnr(2 * small - 1, 2 * reduced.flip(0) - 1)
    assert alike > 24 and others < 15  # measured 29.85 and about 10 dB


def test_mean_landmarks_lie_in_a_face(pipe, large):
    """Where each base has them, in px of its own pictures: the same places, since both draw the same people."""
    places = []
    for base in (pipe, large):
        points = torch.tensor([base.config.mean_landmarks[name] for name in LANDMARKS])
        places.append(points / base.generator.resolution)
    assert (places[0] - places[1]).abs().max() < 0.01
    left_outer, left_inner, right_outer, right_inner, nose = places[1]
    assert right_outer[0] < right_inner[0] < nose[0] < left_inner[0] < left_outer[0]  # seen from the front
    assert nose[1] > left_inner[1] + 0.1 and 0.3 < left_outer[1] < 0.6


def test_adapters_of_the_time_when_the_name_was_another(pipe, large, tmp_path):
    """Adapters that call the 256 px base `ffhq`, as it was called, load on it; on today's `ffhq` they name it."""
    old = tmp_path / "old"
    pipe.save_adapter(old, "sketch")
    config = json.loads((old / "adapter_config.json").read_text(encoding="utf-8"))
    config |= {"base_model_name_or_path": "ffhq"}
    (old / "adapter_config.json").write_text(json.dumps(config), encoding="utf-8")
    pipe.load_adapter(old)
    pipe.set_adapters("sketch")
    pipe.delete_adapters("old")
    with pytest.raises(ValueError) as refused:
        large.load_adapter(old)
    for part in (
        "'old' was trained on 'ffhq-256' (fingerprint 73976be2abf34653), which its config calls 'ffhq', not on",
        "load its base with FewShotGAN.from_pretrained('ffhq-256')",
    ):
        assert part in str(refused.value)


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


def test_toon_follows_hair_and_skin(pipe):
    """A white ground, and the lightness of the person's hair and skin (measured over 200 faces: .92 and .93)."""
    pipe.load_adapter("toon")
    pipe.set_adapters("sketch")
    shown = {"num_images": 24, "seed": 5, "output_type": "pt"}
    drawn, source = (pipe(**shown, adapter_names=name).images * 2 - 1 for name in ("toon", "__base__"))
    assert (drawn[:, :, :12, :12] > 0.8).float().mean() > 0.9 > 0.3 > (source[:, :, :12, :12] > 0.8).float().mean()
    follows = lightness_following(source, drawn)
    assert follows["hair_correlation"] > 0.7 and follows["skin_correlation"] > 0.7
    assert follows["hair_spread"] > 0.6 and follows["skin_spread"] > 0.6


@pytest.mark.parametrize(("name", "side"), [("pencil", 1024), ("pencil-256", 256), ("toon", 256)])
def test_example_pictures(name, side):
    folder = embedded_datasets()[name]
    paths = sorted(path for path in folder.iterdir() if path.suffix != ".json")
    assert len(paths) == 10 and all(Image.open(path).size == (side, side) for path in paths)
    assert sum(path.stat().st_size for path in paths) <= 2.5e6
    info = json.loads((folder / "dataset.json").read_text(encoding="utf-8"))
    assert ("MIT" if name == "toon" else "base") in info["licence"]["name"] and info["licence"]["text"]
    assert (info["style"] == "filter:pencil") == (name != "toon")


def test_every_base_has_its_licence_beside_it():
    for base in embedded_bases():
        assert "**non-commercial**" in (ASSETS / "bases" / base / "README.md").read_text(encoding="utf-8")


@pytest.mark.slow
def test_the_base_draws_what_openvino_draws(script, large):
    """Run with FEWSHOT_GAN_WHEEL=random_face-2021.7.21.1-py3-none-any.whl pytest -m slow; needs '.[convert]'."""
    wheel = os.environ.get("FEWSHOT_GAN_WHEEL")
    if not wheel:
        pytest.skip("set FEWSHOT_GAN_WHEEL to the random-face wheel (pip download --no-deps random-face==2021.7.21.1)")
    pytest.importorskip("openvino")
    from fewshot_gan import convert_checkpoint

    measure, z = script("conversion_error"), torch.randn(4, 512, generator=torch.Generator().manual_seed(0))
    exact = convert_checkpoint(Path(wheel))["generator"]
    found = measure.difference(exact, measure.openvino_pictures(Path(wheel), z, 1.0), z, 1.0)
    assert found["largest_difference"] < 5e-4  # 20 convolutions in another order of summation; the colour range is 2
    rounded = measure.difference(large.generator, measure.openvino_pictures(Path(wheel), z, 0.7), z, 0.7)
    assert rounded["psnr_least_db"] > 55  # weights in fp16: 57.5 of sixteen pictures


@pytest.mark.parametrize("base", ["ffhq", "ffhq-256"])
def test_embedded_directions(base):
    pipe = FewShotGAN.from_pretrained(base)
    known = pipe.directions()
    assert set(known) == {"pose", "age", "smile", "hair length", "fair hair", "femininity", "light"}
    assert all(direction.vector.shape == (512,) for direction in known.values())
    assert (ASSETS / "bases" / "directions.safetensors").stat().st_size < 200_000


def test_directions_do_what_they_are_called():
    """On eight faces: hair and teeth become lighter, the nose moves, one cheek gets brighter than the other."""
    pipe = FewShotGAN.from_pretrained("ffhq-256")
    z = pipe.latents(8, seed=5)

    def drawn(name, strength):
        return luminance(pipe(latents=pipe.edit(z, {name: strength}), output_type="pt", batch_size=4).images)

    def change(name, rows, columns, of=lambda box: box.mean((1, 2, 3))):
        low, high = (of(drawn(name, strength)[..., rows, columns]) for strength in (-2, 2))
        return high - low

    assert (change("fair hair", slice(14, 32), slice(100, 156)) > 0.05).all()
    teeth = change("smile", slice(184, 204), slice(108, 148), lambda box: box.flatten(1).quantile(0.9, dim=1))
    assert teeth.mean() > 0.03
    sides = [change("light", slice(150, 180), columns) for columns in (slice(80, 108), slice(148, 176))]
    assert ((sides[0] - sides[1]).abs() > 0.03).sum() >= 6
    faces = [find_faces(image)[0] for s in (-1, 1) for image in pipe(latents=pipe.edit(z[:4], {"pose": s})).images]
    noses = [face.landmarks[4, 0] - face.landmarks[:4, 0].mean() for face in faces]
    assert all(after - before > 4 for before, after in zip(noses[:4], noses[4:], strict=True))
