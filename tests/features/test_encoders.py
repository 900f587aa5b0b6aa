"""Encoders: CLIP as transformers computes it, features as loops compute them; frozen, differentiable, honest errors."""

import shutil
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from helpers import hostile
from helpers.networks import TinyFeatures
from helpers.saved_models import tiny_clip, without_tensors
from helpers.tensors import random_pictures
from safetensors.torch import load_file

from fewshot_gan.data.images import read_image, square
from fewshot_gan.features.encoders import CLIP_MEAN, CLIP_STD, TEMPLATES, FeatureEncoder, load_encoder, templated
from fewshot_gan.hub import embedded_datasets


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny_clip(tmp_path_factory.mktemp("clip"))


@pytest.fixture(scope="module")
def clip(folder):
    return load_encoder(str(folder))


# ---------------------------------------------------------------------------------------------------------------- CLIP


@torch.no_grad()
def test_clip_is_what_transformers_computes(clip, folder):
    from transformers import AutoTokenizer, CLIPModel

    model = CLIPModel.from_pretrained(folder)
    x = random_pictures(2)
    pixels = ((x + 1) / 2 - torch.tensor(CLIP_MEAN).view(3, 1, 1)) / torch.tensor(CLIP_STD).view(3, 1, 1)
    torch.testing.assert_close(clip.image(x), F.normalize(model.get_image_features(pixels).pooler_output, dim=1))
    texts = ["pencil drawing", "Photo"]
    tokens = AutoTokenizer.from_pretrained(folder)(texts, padding=True, return_tensors="pt")
    torch.testing.assert_close(clip.text(texts), F.normalize(model.get_text_features(**tokens).pooler_output, dim=1))
    assert clip.dim == 24 and clip.has_text and clip.name == str(folder)
    assert clip.image(x)[0] @ clip.image(x)[1] < 0.999 and clip.text(texts)[0] @ clip.text(texts)[1] < 0.999


@torch.no_grad()
def test_pictures_are_resized_cropped_and_never_clamped(clip):
    tall = random_pictures(2, 40, 32)
    small = F.interpolate(tall, size=(20, 16), mode="bicubic", align_corners=False, antialias=True)
    torch.testing.assert_close(clip.image(tall), clip.image(small[:, :, 2:18]))
    wide = tall.transpose(2, 3)
    torch.testing.assert_close(clip.image(wide), clip.image(small.transpose(2, 3)[..., 2:18]), rtol=0, atol=1e-5)
    bright = random_pictures(2) * 3
    assert (clip.image(bright) - clip.image(bright.clamp(-1, 1))).abs().max() > 1e-3


def test_normalisation_is_read_from_the_preprocessor(clip, tmp_path):
    other = load_encoder(str(tiny_clip(tmp_path, preprocessor={"image_mean": [0.5] * 3, "image_std": [0.25] * 3})))
    x = random_pictures(2)
    same = ((x + 1) / 2 - 0.5) / 0.25 * clip.std + clip.mean  # what `clip` would have to be shown
    torch.testing.assert_close(other.image(x), clip.image(same * 2 - 1), rtol=0, atol=1e-5)
    assert other.identity != clip.identity


@torch.no_grad()
def test_a_text_does_not_depend_on_its_neighbours(clip):
    texts = ["ink", "a very long description of it"]
    torch.testing.assert_close(clip.text(texts)[:1], clip.text(texts[:1]))


def test_what_cannot_be_read(clip):
    for texts in ([], [""], ["ink", "  "], [3]):
        with pytest.raises(ValueError, match="nothing to read"):
            clip.text(texts)
    with pytest.raises(ValueError, match=r"has 50 tokens, .* reads 48; shorten it"):
        clip.text(["x" * 48])
    assert clip.text(["x" * 46]).shape == (1, 24)


# ------------------------------------------------------------------------------------------------------------ features


def test_feature_embedding_equals_loops(features, eyes):
    x = random_pictures(3, 32, 32)
    rows = []
    for image in x:
        levels = []
        for m in features(image[None], eyes.BLOCKS):
            flat = [channel.flatten() for channel in m[0]]
            moments = torch.stack([c.mean() for c in flat] + [(c.var() + 1e-4).sqrt() for c in flat])
            levels.append(moments / moments.norm())
        rows.append(torch.cat(levels) / 5**0.5)
    torch.testing.assert_close(eyes.image(x), torch.stack(rows))
    assert eyes.dim == 80 and not eyes.has_text
    with pytest.raises(ValueError, match="encoder 'features' reads no text; use CLIP"):
        eyes.text(["ink"])


@pytest.fixture(scope="module")
def drawings():
    paths = sorted(embedded_datasets()["pencil-256"].glob("*.png"))[:4]
    return torch.stack([square(read_image(path), 128) for path in paths]).float() / 127.5 - 1


def test_a_look_moves_every_picture_the_same_way(drawings):
    """What differs by a look agrees between pictures; what differs by picture does not: on the network that ships."""
    pytest.importorskip("efficientnet_lite_pytorch")
    encoder = load_encoder("features")
    with torch.no_grad():
        source, tinted = encoder.image(drawings), encoder.image(drawings * torch.tensor([0.9, 0.6, 0.2]).view(3, 1, 1))
    looks, others = F.normalize(tinted - source, dim=1), F.normalize(source - source.roll(1, 0), dim=1)
    pairs = torch.triu_indices(4, 4, 1)
    assert (looks @ looks.T)[pairs[0], pairs[1]].min() > 0.7
    assert (looks @ others.T).abs().max() < 0.6
    torch.testing.assert_close(source.norm(dim=1), torch.ones(4))
    assert encoder.dim == 544 and load_encoder("features", "cpu") is encoder


# ---------------------------------------------------------------------------------------------------------------- both


@pytest.mark.parametrize("kind", ["clip", "eyes"])
def test_frozen_fp32_differentiable_and_of_unit_length(kind, request):
    encoder = request.getfixturevalue(kind)
    encoder.train()
    assert not any(module.training for module in encoder.modules())
    assert not any(p.requires_grad for p in encoder.parameters())
    x = random_pictures(2, 32, 32).requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        e = encoder.image(x)
    assert e.dtype == torch.float32 and e.shape == (2, encoder.dim)
    torch.testing.assert_close(e.norm(dim=1), torch.ones(2))
    torch.testing.assert_close(e, encoder.image(x))
    target, step = torch.randn(encoder.dim, generator=torch.Generator().manual_seed(1)), 1e-3
    (gradient,) = torch.autograd.grad((e @ target)[0], x)
    assert gradient[0].abs().max() > 0 and gradient[1].abs().max() == 0
    along = random_pictures(1, 32, 32, seed=2)
    with torch.no_grad():
        up, down = ((encoder.image(x[:1] + s * step * along).double() @ target.double()) for s in (1, -1))
    # a central difference in float32 across some kinks: right to a few percent
    assert ((up - down) / (2 * step)).item() == pytest.approx((gradient[0] * along[0]).sum().item(), rel=0.05, abs=1e-3)


def test_identity_is_of_the_weights(clip, folder, tmp_path):
    copy = tiny_clip(tmp_path / "copy")
    assert load_encoder(str(copy)).identity == clip.identity and len(clip.identity) == 16
    assert load_encoder(str(tiny_clip(tmp_path / "other", seed=1))).identity != clip.identity
    first, second = TinyFeatures(), TinyFeatures()
    second.sha256 = "f" * 64
    assert FeatureEncoder(first).identity != FeatureEncoder(second).identity != clip.identity


@torch.no_grad()
def test_templates(clip):
    assert len(set(TEMPLATES)) == len(TEMPLATES) >= 40 and all(t.count("{}") == 1 for t in TEMPLATES)
    found = templated(clip, ["ink", "oil"], ["{}", "a {} print"])
    assert found.shape == (2, 2, 24)
    torch.testing.assert_close(found[1], clip.text(["oil", "a oil print"]))
    for wrong in ([], ["a photo"], ["{} {}"]):
        with pytest.raises(ValueError, match="each has {} once"):
            templated(clip, ["ink"], wrong)


def test_what_cannot_be_loaded(folder, tmp_path):
    with pytest.raises(FileNotFoundError, match="no encoder 'nowhere': it is no folder and no repo id"):
        load_encoder("nowhere")
    with pytest.raises(
        FileNotFoundError, match="could not fetch the encoder 'nobody/clip' .*'features', which needs no"
    ):
        load_encoder("nobody/clip")
    with pytest.raises(ValueError, match="no CLIP model that can be loaded"):
        load_encoder(str(tmp_path))
    for name, change in {
        "other": lambda f: (f / "config.json").write_text('{"model_type": "bert"}', encoding="utf-8"),
        "cut": lambda f: (f / "model.safetensors").write_bytes((f / "model.safetensors").read_bytes()[:500]),
        "none": lambda f: (f / "model.safetensors").unlink(),
        "lacking": lambda f: without_tensors(f, "visual_projection.weight"),
    }.items():
        damaged = tiny_clip(tmp_path / name)
        change(damaged)
        with pytest.raises(ValueError, match="no CLIP model that can be loaded") as error:
            load_encoder(str(damaged))
        assert "\n" not in str(error.value)
    assert "lacks weights: visual_projection.weight" in str(error.value)


def test_pickled_weights_are_looked_through_first(folder, tmp_path):
    whole, bombs = tiny_clip(tmp_path / "clip"), hostile.bombs()
    tensors = load_file(whole / "model.safetensors")
    (whole / "model.safetensors").unlink()
    torch.save(tensors, whole / "pytorch_model.bin")
    text, name = ["a photo"], str(whole)
    # tensors of the two kinds of file begin elsewhere in memory, where products of matrices round differently
    torch.testing.assert_close(load_encoder(name).text(text), load_encoder(str(folder)).text(text))
    for bomb in ("nested.pt", "expanded.pth", "zip.pt"):  # each ends or fills a process that just loads it
        content, why = bombs[bomb]
        damaged = shutil.copytree(whole, tmp_path / bomb)
        (damaged / "pytorch_model.bin").write_bytes(content)
        with pytest.raises(ValueError, match=f"no CLIP model that can be loaded .*{why}"):
            load_encoder(str(damaged))


def test_importing_loads_no_transformers():
    code = "import sys, fewshot_gan.features.encoders; sys.exit('transformers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
