"""An encoder of a base: fitted without data, it estimates w, belongs to the base, and `invert` starts from it."""

import json

import pytest
import torch

from fewshot_gan import FewShotGAN, LatentEncoder
from fewshot_gan.inversion import WhitenedLatents, latent_statistics
from fewshot_gan.models.latent_encoder import describe


@pytest.fixture(autouse=True)
def tiny_features(features, monkeypatch):
    monkeypatch.setattr("fewshot_gan.pipeline_person.load_features", lambda **options: features)


@pytest.fixture
def fit(script, monkeypatch, features, base_folder, tmp_path):
    module = script("latent_encoder")
    monkeypatch.setattr(module, "load_features", lambda: features)

    def run(name, *options):
        return module.main([f"--base={base_folder}", f"--output_dir={tmp_path / name}", "--num_threads=1", *options])

    run.module = module
    return run


@pytest.fixture
def encoder(fit, tmp_path):
    fit("runs", "--num=200", "--held_out=8", "--rank=12", "--ridge", "1")
    return LatentEncoder.from_pretrained(tmp_path / "runs" / "latent_encoder", dtype=torch.float32)


def test_an_encoder_is_fitted_without_data(fit, tmp_path, base_folder):
    report = fit("first", "--num=300", "--held_out=50", "--rank=12")
    assert max(report["explained_by_ridge"].values()) > 0.1
    assert json.loads((tmp_path / "first" / "report.json").read_text(encoding="utf-8"))["num"] == 300
    assert report["fingerprint"] == FewShotGAN.from_pretrained(base_folder).bank.fingerprint()
    torch.rand(3)  # what was drawn before does not matter
    fit("second", "--num=300", "--held_out=50", "--rank=12")
    file = "latent_encoder/diffusion_pytorch_model.safetensors"
    assert (tmp_path / "first" / file).read_bytes() == (tmp_path / "second" / file).read_bytes()
    with pytest.raises(ValueError, match="num=0: give 1 or more"):
        fit("third", "--num=0")
    with pytest.raises(ValueError, match="ridge=0"):
        fit("third", "--ridge", "0")


def test_the_fit_is_ridge_regression(fit):
    """Against the formula on all rows at once, of full rank; and a lower rank explains less of what was fitted."""
    random = torch.Generator().manual_seed(3)
    x = 5 + 2 * torch.randn(200, 10, generator=random)
    v = x[:, :4] @ torch.randn(4, 6, generator=random) + 0.1 * torch.randn(200, 6, generator=random)
    sums = fit.module.Fit()
    for rows in range(0, 200, 50):
        sums.add(x[rows : rows + 50], v[rows : rows + 50])
    found, scores = sums.solve(x, v, [0.5, 2.0], 6)
    z, y = (x - x.mean(0)) / x.std(0, correction=0), v - v.mean(0)
    for ridge, score in scores.items():
        weights = torch.linalg.solve(z.T @ z / 200 + ridge * torch.eye(10), z.T @ y / 200)
        want = float(1 - (y - z @ weights).square().sum() / y.square().sum())
        assert score == pytest.approx(want, abs=1e-4)
        if ridge == max(scores, key=scores.get):
            torch.testing.assert_close(found(x), v.mean(0) + z @ weights, rtol=0, atol=1e-3)
    low, low_scores = sums.solve(x, v, [0.5], 2)
    assert low.weights.shape == (10, 2) and low_scores[0.5] < scores[0.5]


def test_a_network_holds_the_map(fit, encoder, features, base_folder):
    """Descriptions → v by the regression, v → w by the whitening: the network's two layers do the same."""
    pipe = FewShotGAN.from_pretrained(base_folder)
    white, sums = WhitenedLatents(pipe.generator), fit.module.Fit()
    batches = list(fit.module.samples(pipe, features, white, 64, 5))
    sums.add(*fit.module.joined(batches))
    found, _ = sums.solve(*batches[0], [1.0], 12)
    images = pipe(3, seed=1, output_type="pt").images * 2 - 1
    want = white.to_w(found(describe(images, features)))
    torch.testing.assert_close(found.encoder(white)(images, features), want, rtol=0, atol=1e-3)


def test_an_estimate_is_nearer_than_the_mean(encoder, base_folder, tmp_path):
    pipe = FewShotGAN.from_pretrained(base_folder, latent_encoder=encoder)
    pipe.save_pretrained(tmp_path / "base")  # from now on, part of the base
    pipe = FewShotGAN.from_pretrained(tmp_path / "base")
    assert all(torch.equal(v, pipe.latent_encoder.state_dict()[k]) for k, v in encoder.state_dict().items())
    w = pipe.generator.mapping(torch.randn(20, 16, generator=torch.Generator().manual_seed(9)))[:, 0]
    pictures = pipe(latents=w, latent_space="w", output_type="pt").images * 2 - 1
    estimated, mean = pipe.estimate(pictures), latent_statistics(pipe.generator)[0]
    assert (estimated - w).square().mean() < 0.9 * (mean - w).square().mean()
    found = pipe.invert(pictures[:2], steps=0, perceptual="none", progress=False)
    assert torch.allclose(found.latents[:, 0], estimated[:2], atol=1e-5)
    options = {"steps": 2, "perceptual": "none", "progress": False}
    bare = FewShotGAN.from_pretrained(base_folder).invert(pictures[:2], **options)
    mean = pipe.invert(pictures[:2], start="mean", **options)
    assert torch.equal(mean.latents, bare.latents)
    given = pipe.invert(pictures[:2], start=estimated[:2], **options)
    assert torch.equal(given.latents, pipe.invert(pictures[:2], **options).latents)
    assert not torch.equal(given.latents, bare.latents)


def test_without_the_feature_network_the_search_starts_from_the_mean(encoder, base_folder, monkeypatch):
    def missing(**options):
        raise ImportError("no features")

    monkeypatch.setattr("fewshot_gan.pipeline_person.load_features", missing)
    pipe = FewShotGAN.from_pretrained(base_folder, latent_encoder=encoder)
    pictures, options = torch.zeros(1, 3, 32, 32), {"steps": 1, "perceptual": "none", "progress": False}
    assert pipe.estimate(pictures) is None
    bare = FewShotGAN.from_pretrained(base_folder)
    assert torch.equal(pipe.invert(pictures, **options).latents, bare.invert(pictures, **options).latents)


@pytest.mark.parametrize("shape", [(0, 3, 32, 32), (1, 3, 16, 16), (1, 1, 32, 32), (3, 32, 32)])
def test_pictures_are_checked_before_they_are_estimated(encoder, base_folder, shape):
    pipe = FewShotGAN.from_pretrained(base_folder, latent_encoder=encoder)
    with pytest.raises(ValueError, match=r"are not \[N, 3, 32, 32\]; crop and resize them"):
        pipe.invert(torch.zeros(shape))


@pytest.mark.parametrize(
    "options, sentence",
    [
        ({"start": "zero"}, "unknown start 'zero'; known: auto, mean, or w"),
        ({"start": torch.zeros(2, 16)}, r"start of shape \[2, 16\] is not w \[1, 16\]"),
        ({"start": torch.full((1, 16), float("nan"))}, r"start\[0\] has numbers that are NaN"),
        ({"start": "mean", "steps": 0}, "steps=0: give 1 or more"),
    ],
)
def test_refused_starts(encoder, base_folder, options, sentence):
    pipe = FewShotGAN.from_pretrained(base_folder, latent_encoder=encoder)
    with pytest.raises(ValueError, match=sentence):
        pipe.invert(torch.zeros(1, 3, 32, 32), **options)
