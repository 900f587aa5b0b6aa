"""Inversion: known latents are found again, whatever the batch; photos become latents that adapters can draw."""

import logging
import sys
import time
from types import ModuleType
from urllib.error import URLError

import numpy as np
import pytest
import torch
from PIL import Image

from fewshot_gan import FewShotGAN, inversion
from fewshot_gan.adapters import LeFTAdapter
from fewshot_gan.inversion import LPIPSDistance, PerceptualDistance, WhitenedLatents, invert, latent_statistics
from fewshot_gan.metrics import psnr


@pytest.fixture
def pipe(make_generator):
    generator = make_generator()
    with torch.no_grad():  # pictures well inside [-1, 1]: what is clipped cannot be found again
        for name, p in generator.named_parameters():
            if "to_rgb" in name and "affine" not in name:
                p.mul_(0.2)
    return FewShotGAN(generator)


@pytest.fixture
def known(pipe):
    """Pictures of known w, inside [-1, 1]."""
    mean, _ = latent_statistics(pipe.generator)
    z = torch.randn(3, 16, generator=torch.Generator().manual_seed(5))
    with torch.no_grad():
        w = mean + 0.2 * (pipe.generator.mapping(z)[:, 0] - mean)
        return pipe.generator(w, latent_space="w").clamp(-1, 1)


def quiet(pipe, images, features, **options):
    return pipe.invert(images, **{"perceptual": features, "progress": False, "steps": 80, **options})


@pytest.mark.parametrize("space", ["w", "w+"])
def test_known_pictures_are_found_again(pipe, known, features, space):
    start = pipe.generator(latent_statistics(pipe.generator)[0].expand(3, -1), latent_space="w").detach()
    found = quiet(pipe, known, features, space=space, learning_rate=0.1, noise=0.0)
    assert found.latents.shape == (3, pipe.generator.num_ws, 16) and found.images.shape == known.shape
    for i in range(3):
        assert found.psnr[i] == pytest.approx(psnr(found.images[i : i + 1], known[i : i + 1]))
        assert found.psnr[i] > psnr(start[i : i + 1], known[i : i + 1]) + 3  # half the error of the mean picture
    assert bool((found.latents == found.latents[:, :1]).all()) == (space == "w")
    drawn = pipe(latents=found.latents, output_type="pt").images * 2 - 1
    torch.testing.assert_close(drawn, found.images, rtol=0, atol=1e-4)  # latents are drawn as they are: no truncation


def test_a_seed_decides_and_the_batch_does_not(pipe, known, features):
    first, again, alone = (quiet(pipe, known, features, batch_size=b, steps=10) for b in (3, 3, 1))
    assert torch.equal(first.latents, again.latents)
    torch.testing.assert_close(first.latents, alone.latents, rtol=0, atol=1e-3)  # Adam amplifies rounding
    other = quiet(pipe, known, features, seed=1, steps=10)
    assert (first.latents - other.latents).abs().max() > 1e-3


def test_options_of_the_search(pipe, known, features):
    counts = {"steps": np.int64(2), "batch_size": np.int32(2)}
    want = quiet(pipe, known, features, steps=2, batch_size=2)
    assert torch.equal(quiet(pipe, known, features, **counts).latents, want.latents)
    for name, value in (("pixel_weight", -1), ("prior_weight", float("nan")), ("noise", -0.1), ("learning_rate", 0)):
        with pytest.raises(ValueError, match=f"{name}={value}: give "):
            pipe.invert(known, **{name: value})
    for name, value in (("steps", 0), ("steps", 1.5), ("batch_size", True)):
        with pytest.raises(ValueError, match=f"{name}={value}: give "):
            pipe.invert(known, **{name: value})


def test_the_perceptual_network_learns_nothing(pipe, known, features):
    features.requires_grad_(True)
    quiet(pipe, known, features, steps=2)
    assert all(p.grad is None and p.requires_grad for p in features.parameters())


def test_inference_mode_is_left_for_the_search(pipe, known, features):
    want = quiet(pipe, known, features, steps=5)
    with torch.inference_mode():
        found = quiet(pipe, known.clone(), features, steps=5)
        photo = Image.fromarray(np.full((40, 40, 3), 90, np.uint8))
        assert quiet(pipe, photo, features, steps=2).latents.shape[0] == 1
    assert torch.equal(found.latents, want.latents) and not found.latents.is_inference()
    with torch.inference_mode():
        stuck = FewShotGAN(type(pipe.generator).from_config(pipe.generator.config))
    with pytest.raises(ValueError, match="the base was loaded under torch.inference_mode.*load it outside"):
        quiet(stuck, known, features, steps=2)


def test_adapters_do_not_take_part_and_nothing_is_left_behind(pipe, known, features, perturbed):
    want = quiet(pipe, known, features, steps=5)
    pipe.load_adapter(perturbed(LeFTAdapter.for_model(pipe.generator)), "a")
    source = {k: v.clone() for k, v in pipe.generator.state_dict().items()}
    trainable = [p.requires_grad for p in pipe.generator.parameters()]
    found = quiet(pipe, known, features, steps=5)
    assert torch.equal(found.latents, want.latents) and pipe.active_adapters() == ["a"]
    assert [p.requires_grad for p in pipe.generator.parameters()] == trainable
    assert all(p.grad is None for p in pipe.generator.parameters())
    assert all(torch.equal(v, source[k]) for k, v in pipe.generator.state_dict().items())
    adapted = pipe(latents=found.latents, adapter_names="a", output_type="pt").images
    assert (adapted * 2 - 1 - found.images).abs().max() > 0.01


def test_whoever_watches_can_end_the_search(pipe, known, features):
    seen = []
    found = quiet(pipe, known, features, steps=3, batch_size=2, on_step=lambda *step: seen.append(step))
    assert [(done, len(images)) for done, images in seen] == [(1, 2), (2, 2), (3, 2), (4, 1), (5, 1), (6, 1)]
    assert all(images.shape[1:] == known.shape[1:] and not images.requires_grad for _, images in seen)
    assert torch.equal(found.latents, quiet(pipe, known, features, steps=3, batch_size=2).latents)
    trainable = [p.requires_grad for p in pipe.generator.parameters()]

    def stop(done, images):
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        quiet(pipe, known, features, steps=3, on_step=stop)
    assert [p.requires_grad for p in pipe.generator.parameters()] == trainable and any(trainable)


def test_photos_from_files_and_pil(pipe, features, tmp_path):
    photo = Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 64, 3), dtype=np.uint8))
    photo.save(tmp_path / "photo.png")
    by_path = quiet(pipe, tmp_path / "photo.png", features, steps=2)
    by_image = quiet(pipe, [photo], features, steps=2)
    square = photo.crop((12, 0, 52, 40)).resize((32, 32), Image.Resampling.LANCZOS)
    by_square = quiet(pipe, square, features, steps=2)
    assert torch.equal(by_path.latents, by_image.latents) and torch.equal(by_path.latents, by_square.latents)
    with pytest.raises(FileNotFoundError, match="there is no picture 'nowhere.png'"):
        pipe.invert("nowhere.png")
    (tmp_path / "broken.png").write_bytes(b"no picture")
    with pytest.raises(ValueError, match="broken.png cannot be read as an image"):
        pipe.invert(tmp_path / "broken.png")
    with pytest.raises(ValueError, match="below the limit of 32 px"):
        pipe.invert(photo.resize((20, 20)))
    with pytest.raises(ValueError, match="there is no picture; give at least one"):
        pipe.invert([])


@pytest.mark.parametrize(
    "images, options, message",
    [
        (torch.zeros(1, 3, 16, 16), {}, r"\(1, 3, 16, 16\) are not \[N, 3, 32, 32\]"),
        (torch.zeros(0, 3, 32, 32), {}, "are not"),
        (torch.full((1, 3, 32, 32), 255.0), {}, r"beyond \[-1, 1\]; scale 8-bit"),
        (torch.full((1, 3, 32, 32), float("nan")), {}, "beyond"),
        (torch.zeros(1, 3, 32, 32), {"space": "z"}, "unknown space 'z'; known: w, w\\+"),
        (torch.zeros(1, 3, 32, 32), {"steps": 0}, "steps=0: give 1 or more"),
        (torch.zeros(1, 3, 32, 32), {"batch_size": 1.5}, "batch_size=1.5"),
        (torch.zeros(1, 3, 32, 32), {"perceptual": "vgg"}, "unknown perceptual 'vgg'; known: auto, none"),
    ],
)
def test_bad_input(pipe, images, options, message):
    with pytest.raises(ValueError, match=message):
        pipe.invert(images, **options)


def test_perceptual_distance(features):
    a, b = torch.rand(2, 2, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1
    distance = PerceptualDistance(features, a)
    assert torch.equal(distance(a), torch.zeros(2)) and (distance(b) > 0.01).all()
    alone = PerceptualDistance(features, a[1:])(b[1:])
    torch.testing.assert_close(distance(b)[1:], alone)  # each picture for itself


def test_pixels_alone(pipe, known):
    found = invert(pipe.generator, known, perceptual="none", steps=60, progress=False)
    blurred = psnr(known.mean((2, 3), keepdim=True).expand_as(known), known)
    assert np.mean(found.psnr) > blurred + 3


@pytest.fixture
def lpips(monkeypatch):
    """A small stand-in for the package `lpips`; `made` grows by one for each network made."""
    fake = ModuleType("lpips")
    fake.made, fake.error = [], None

    class LPIPS(torch.nn.Module):
        def __init__(self, net, verbose):
            super().__init__()
            fake.made.append(net)
            if fake.error is not None:
                raise fake.error
            self.weight = torch.nn.Parameter(torch.full((1,), 3.0))

        def forward(self, a, b):
            return self.weight * (a - b).abs().mean((1, 2, 3), keepdim=True)

    fake.LPIPS = LPIPS
    monkeypatch.setitem(sys.modules, "lpips", fake)
    inversion.lpips_network.cache_clear()
    yield fake
    inversion.lpips_network.cache_clear()


def test_lpips_is_preferred_where_it_is_installed(pipe, known, features, lpips, monkeypatch):
    seen = []
    forward = lpips.LPIPS.forward
    monkeypatch.setattr(lpips.LPIPS, "forward", lambda self, a, b: seen.append(len(b)) or forward(self, a, b))
    found = pipe.invert(known, steps=5, batch_size=2, progress=False)
    assert lpips.made == ["vgg"] and seen == [2] * 5 + [1] * 5  # one network for both batches
    other = quiet(pipe, known, features, steps=5, batch_size=2)
    assert (found.latents - other.latents).abs().max() > 1e-3
    assert LPIPSDistance(inversion.lpips_network(), torch.zeros(1, 3, 512, 512)).targets.shape == (1, 3, 256, 256)


def test_lpips_without_its_weights(pipe, known, features, lpips, monkeypatch, caplog):
    """Offline, torchvision cannot fetch them."""
    lpips.error = URLError("no route")
    monkeypatch.setattr("fewshot_gan.features.load_features", lambda **kwargs: features)
    with caplog.at_level(logging.WARNING, "fewshot_gan.inversion"):
        found = pipe.invert(known, steps=5, progress=False)
    assert "cannot fetch its weights" in caplog.text and "no route" in caplog.text
    assert torch.equal(found.latents, quiet(pipe, known, features, steps=5).latents)


def test_inside_no_grad(pipe, known, features):
    with torch.no_grad():
        found = quiet(pipe, known, features, steps=5)
    assert torch.equal(found.latents, quiet(pipe, known, features, steps=5).latents)


@pytest.mark.slow
def test_faces_of_the_embedded_base_are_found_again():
    pipe = FewShotGAN.from_pretrained("ffhq-256")
    w = pipe.generator.mapping(torch.randn(8, 512, generator=torch.Generator().manual_seed(11)), truncation_psi=0.7)
    with torch.no_grad():
        images = pipe.generator(w, latent_space="w+").clamp(-1, 1)
    for space, least in (("w", 25), ("w+", 28)):
        start = time.perf_counter()
        psnr = pipe.invert(images, space=space).psnr
        print(f"{space}: {' '.join(f'{p:.1f}' for p in psnr)} dB, {(time.perf_counter() - start) / 8:.1f} s a picture")
        assert min(psnr) >= least


def test_whitened_latents_are_standard_normal_and_lead_back(make_generator):
    """v of mapped latents has mean 0 and covariance 1, where the network has room; w comes back from its v."""
    generator = make_generator()
    white = WhitenedLatents(generator)
    z = torch.randn(4000, 16, generator=torch.Generator().manual_seed(77))
    with torch.no_grad():
        w = generator.mapping(z)[:, 0]
    u = torch.nn.functional.leaky_relu(w, 5.0)
    v = (u - white.mean) @ white.axes / white.spread
    assert v.mean(0).abs().max() < 0.1  # 4000 samples: standard error 0.016, and mapped latents are not quite normal
    covariance = torch.cov(v.T)
    used = white.spread > 1.01 * white.spread.min()
    assert used.sum() > 4 and (covariance.diagonal()[used] - 1).abs().max() < 0.2
    assert (covariance - covariance.diagonal().diag()).abs().max() < 0.2
    torch.testing.assert_close(white.to_w(v), w, rtol=0, atol=1e-4)
