"""A person from photos: the adapter draws them from its own latents, alone and in looks, and leaves the base alone."""

import json
import math

import pytest
import torch
from helpers.networks import tiny_mobile
from PIL import Image

from fewshot_gan import FewShotGAN, LeFTAdapter
from fewshot_gan.adapters import DomainVectorAdapter, FullAdapter
from fewshot_gan.data.grids import GAP
from fewshot_gan.inversion import VERSION
from fewshot_gan.methods.pair import Latents, Pair
from fewshot_gan.methods.pivotal import PivotalConfig, PivotalObjective
from fewshot_gan.metrics import psnr
from fewshot_gan.models import SNGANGenerator
from fewshot_gan.pipeline_person import nearness
from fewshot_gan.training.personalize import personalize

R = 32


@pytest.fixture(autouse=True)
def tiny_features(features, monkeypatch):
    for place in ("features", "training.personalize"):
        monkeypatch.setattr(f"fewshot_gan.{place}.load_features", lambda **options: features)
    monkeypatch.setattr("fewshot_gan.inversion.lpips_network", lambda device="cpu": None)


@pytest.fixture
def photos():
    """Pictures that the base does not draw: other colours and a stripe, uint8 `[3, 3, R, R]`."""
    pictures = FewShotGAN(tiny_mobile()).to("cpu")(3, seed=5, output_type="pt").images
    pictures = 0.6 * pictures + 0.4 * torch.tensor([0.9, 0.5, 0.2])[:, None, None]
    pictures[..., 12:18] = 0.1
    return (255 * pictures).round().to(torch.uint8)


@pytest.fixture
def pipe(perturbed):
    pipe = FewShotGAN(tiny_mobile())
    pipe.bank.add("look", perturbed(LeFTAdapter.for_model(pipe.generator), 0))
    return pipe


QUICK = {"inversion_steps": 20, "steps": 30, "progress": False}


def test_the_photo_comes_out(pipe, photos):
    before = {name: tensor.clone() for name, tensor in pipe.generator.state_dict().items()}
    pictures = pipe(2, seed=0, adapter_names="__base__", output_type="pt").images
    photo = photos[:1]
    found = pipe.invert(photo, steps=QUICK["inversion_steps"], progress=False)
    me = pipe.personalize(photo, **{**QUICK, "steps": 120})
    drawn = pipe(person="me", output_type="pt")
    assert me.latents.shape == (1, pipe.generator.w_dim)
    assert torch.equal(drawn.latents, me.latents[:, None].expand(-1, pipe.generator.num_ws, -1))
    assert torch.equal(pipe(latents=drawn.latents, adapter_names="me", output_type="pt").images, drawn.images)
    assert (me.latents - found.latents[:, 0]).abs().max() < 2e-3 * found.latents.abs().max()  # rounded
    better = psnr(2 * drawn.images - 1, photo / 127.5 - 1) - psnr(found.images, photo / 127.5 - 1)
    assert better > 1
    assert pipe.active_adapters() == [] and set(pipe.bank.adapters) == {"look", "me"}
    assert all(torch.equal(tensor, before[name]) for name, tensor in pipe.generator.state_dict().items())
    assert torch.equal(pipe(2, seed=0, adapter_names="__base__", output_type="pt").images, pictures)
    assert not any(path.startswith("mapping") for path in me.config.target_modules)


def test_it_is_the_same_each_time_and_resumes(pipe, photos, tmp_path, monkeypatch):
    def learn(folder, **options):
        torch.rand(3)  # what was drawn before does not matter
        return pipe.personalize(photos[:2], "", output_dir=tmp_path / folder, **QUICK, **options)

    class Killed(Exception):
        pass

    def kill(trainer, losses):
        if trainer.step == 17:
            raise Killed

    state = torch.get_rng_state()
    learn("whole")
    settings = {"settings": {"checkpointing_steps": 5}}
    with pytest.raises(Killed):
        learn("killed", on_step=kill, **settings)
    learn("killed", **settings)
    pipe.set_adapters("look")  # looks that are active take no part
    learn("again")
    files = [tmp_path / folder / "adapter_model.safetensors" for folder in ("whole", "again", "killed")]
    assert files[0].read_bytes() == files[1].read_bytes() == files[2].read_bytes()
    pipe.fuse_adapters()
    with pytest.raises(ValueError, match="fused"):
        learn("fused")
    pipe.unfuse_adapters()
    assert set(pipe.bank.adapters) == {"look"}
    torch.set_rng_state(state)
    kept = (tmp_path / "whole" / "latents.safetensors").read_bytes()
    monkeypatch.setattr(pipe, "invert", None)  # nobody searches for what is refused
    with pytest.raises(ValueError, match="photos was"):
        pipe.personalize(photos[2:], "", output_dir=tmp_path / "whole", **QUICK)
    with pytest.raises(ValueError, match=r"steps was 20, now 21\)"):
        pipe.personalize(photos[:2], "", output_dir=tmp_path / "whole", **QUICK | {"inversion_steps": 21})
    assert (tmp_path / "whole" / "latents.safetensors").read_bytes() == kept


def test_latents_of_another_search_are_searched_again(pipe, photos, tmp_path, monkeypatch):
    def stop(*arguments):
        raise KeyboardInterrupt

    searched = []
    monkeypatch.setattr("fewshot_gan.training.personalize._train", stop)
    invert = pipe.invert
    monkeypatch.setattr(pipe, "invert", lambda *a, **options: searched.append(1) or invert(*a, **options))
    for version, count in ((VERSION, 1), (VERSION, 1), (VERSION + 1, 2)):
        monkeypatch.setattr("fewshot_gan.training.personalize.VERSION", version)
        with pytest.raises(KeyboardInterrupt):
            pipe.personalize(photos[:1], "", output_dir=tmp_path / "me", **QUICK | {"inversion_steps": 2})
        assert len(searched) == count


def test_the_file_holds_the_person(pipe, photos, tmp_path):
    pipe.personalize(photos, "us", output_dir=tmp_path / "us", **QUICK)
    want = pipe.draw_person("us", output_type="pt").images
    assert want.shape == (3, 3, R, R)
    torch.set_default_device("meta")
    try:
        assert torch.equal(pipe.draw_person("us", output_type="pt").images, want)
    finally:
        torch.set_default_device(None)
    config = json.loads((tmp_path / "us" / "adapter_config.json").read_text(encoding="utf-8"))
    assert config["latents_shape"] == [3, pipe.generator.w_dim] and config["method"] == "pivotal_tuning"
    (skipped,) = pipe.stream(2, skip=2, person="us", adapter_names=["us"] * 2, output_type="pt")
    assert torch.allclose(skipped.images, want[[2, 0]], atol=1e-5)
    other = FewShotGAN(tiny_mobile()).load_adapter(tmp_path / "us")
    assert torch.equal(other.draw_person(output_type="pt").images, want)
    four = other(4, person="us", output_type="pt").images
    assert torch.allclose(four, want[[0, 1, 2, 0]], atol=1e-5)
    card = (tmp_path / "us" / "README.md").read_text(encoding="utf-8")
    assert "pivotal tuning" in card and "agreed" in card
    pipe.add_weighted_adapter(["us", "look"], [1.0, 0.5], "drawing")
    blended = pipe(person="us", adapter_names={"us": 1.0, "look": 0.5}, output_type="pt").images
    assert torch.allclose(pipe(person="drawing", output_type="pt").images, blended, atol=1e-5)


def test_looks_of_a_person(pipe, photos):
    me = pipe.personalize(photos[:1], **QUICK)
    w = {"latents": me.latents, "latent_space": "w", "output_type": "pt"}
    looks = [None, "look", {"me": 0.5, "look": 0.7}, "__base__", "me"]
    shown = pipe(person="me", adapter_names=looks, output_type="pt").images
    sums = [{"me": 1.0}, {"me": 0.7, "look": 1.0}, {"me": 0.5, "look": 0.7}, "__base__", {"me": 1.0}]
    for picture, look in zip(shown, sums, strict=True):
        assert torch.allclose(picture, pipe(**w, adapter_names=look).images[0], atol=1e-5)
    pipe.set_adapters("look", 0.5)
    active = pipe(person="me", output_type="pt").images
    assert torch.allclose(active, pipe(**w, adapter_names={"me": 0.85, "look": 0.5}).images, atol=1e-5)
    strip = pipe.interpolate("__base__", "look", 3, person="me", output_type="pt").images
    halves = [{"me": 1 - 0.3 * t, "look": t} for t in (0.0, 0.5, 1.0)]
    for picture, look in zip(strip, halves, strict=True):
        assert torch.allclose(picture, pipe(**w, adapter_names=look).images[0], atol=1e-5)
    strip = pipe.interpolate("me", "look", 3, person="me", output_type="pt").images
    assert torch.allclose(strip[2], pipe(**w, adapter_names={"me": 0.7, "look": 1.0}).images[0], atol=1e-5)
    assert torch.allclose(strip[0], strip[1] - (strip[1] - strip[0]), atol=1e-5)
    parts = [part.images for part in pipe.stream(5, person="me", adapter_names=looks, batch_size=2, output_type="pt")]
    assert torch.allclose(torch.cat(parts), pipe(person="me", adapter_names=looks, output_type="pt").images, atol=1e-5)


def test_other_faces_stay_as_they_are(pipe, photos):
    """The person's adapter acts near its latents, less and less up to the distance of the mean face, and not beyond."""
    me = pipe.personalize(photos[:1], **{**QUICK, "adapter": "full"})
    w, mean_w = me.latents[0], pipe.generator.mapping.w_avg
    across = torch.randn(w.shape, generator=torch.Generator().manual_seed(0))
    across -= (across @ (w - mean_w)) / (w - mean_w).square().sum() * (w - mean_w)
    across *= (w - mean_w).norm() / across.norm()
    latents = torch.stack([w, w + 0.7 * across, w + 0.875 * across, w + across, w + 3 * across, mean_w])
    want = [1.0, 1.0, 0.5, 0.0, 0.0, 0.0]
    options = {"latents": latents, "latent_space": "w", "output_type": "pt"}
    pipe.set_adapters("me")
    active = pipe(**options).images
    for i, weight in enumerate(want):
        one = {**options, "latents": latents[i : i + 1]}
        with pipe.bank.using({"me": weight}):  # inside, looks are as they were asked for
            alone = pipe(**one).images[0]
        assert torch.allclose(active[i], alone, atol=1e-4), i
        if not weight:
            assert torch.equal(pipe(**one).images, pipe(**one, adapter_names="__base__").images)
    assert torch.allclose(pipe(**options, batch_size=4).images, active, atol=1e-5)
    ended = pipe(**{**options, "latents": latents[:1]}, truncation_psi=0.0).images
    assert torch.equal(
        ended, pipe(**{**options, "latents": latents[:1]}, truncation_psi=0.0, adapter_names="__base__").images
    )
    beside = pipe(**options, adapter_names={"me": {4: 0.0, 16: 0.6}, "look": 1.0}).images
    halved = pipe(**options, adapter_names={"me": {4: 0.0, 16: 0.3}, "look": 1.0}).images
    with pipe.bank.using({"me": {4: 0.0, 16: 0.3}, "look": 1.0}):
        assert torch.allclose(pipe(**options).images[2], beside[2], atol=1e-4)
    assert not torch.allclose(halved[0], beside[0], atol=1e-3)
    assert torch.allclose(beside[3:], pipe(**options, adapter_names="look").images[3:], atol=1e-5)
    pipe.add_weighted_adapter(["me", "look"], [1.0, 1.0], "drawing")  # a blend holds a look: it acts on every face
    assert torch.allclose(
        pipe(**options, adapter_names="drawing").images[:2],
        pipe(**options, adapter_names={"me": 1.0, "look": 1.0}).images[:2],
        atol=1e-4,
    )
    assert not torch.allclose(
        pipe(**options, adapter_names="drawing").images[3:],
        pipe(**options, adapter_names="__base__").images[3:],
        atol=1e-3,
    )


def test_the_nearest_photo_counts():
    mean_w, photos = torch.zeros(4), torch.zeros(2, 3, 4)
    photos[0, :, 0], photos[1, :, 1] = 1.0, 2.0
    assert nearness(photos[1], photos, mean_w) == 1
    ws = photos[0].clone()
    ws[0, 0] += 1.5  # one of three layers: the root of the mean square is 0.866
    assert math.isclose(nearness(ws, photos, mean_w), (1 - 0.75**0.5) / 0.25, rel_tol=1e-5)
    still = torch.zeros(1, 3, 4)  # the mean face itself
    assert nearness(still[0], still, mean_w) == 1 and nearness(photos[0], still, mean_w) == 0


def test_far_pictures_are_held(photos):
    """Locality keeps the pictures of other latents nearer to the base's."""
    changes = []
    for weight in (0.0, 20.0):
        pipe = FewShotGAN(tiny_mobile())
        config = PivotalConfig(locality_weight=weight, locality_every=1)
        pipe.personalize(photos[:1], config=config, inversion_steps=5, steps=40, progress=False)
        w = pipe(64, seed=1, adapter_names="__base__", output_type="pt").images
        changes.append(float((pipe(64, seed=1, adapter_names="me", output_type="pt").images - w).abs().mean()))
    assert changes[1] < 0.8 * changes[0]


def test_a_step_is_on_one_photo_and_its_own_pivot(features, pipe, photos):
    pivots = torch.randn(3, pipe.generator.w_dim)
    objective = PivotalObjective(PivotalConfig(locality_weight=0.0), photos / 127.5 - 1, pivots, features)
    seen = []

    class Seen:
        def adapted(self, latents: Latents):
            seen.append(latents.w)
            return type("Drawn", (), {"images": photos[len(seen) - 1 : len(seen)] / 127.5 - 1})

    for step in range(3):
        (losses,) = objective.regularisers(Seen(), 1, step, torch.Generator())
        assert all(float(loss) < 1e-9 for loss in losses.values())  # the photo itself
    assert torch.equal(torch.cat(seen), pivots)


def test_locality_looks_at_every_photo(features, pipe, photos, monkeypatch):
    """However many there are, not only at those whose turn coincides with that of the term."""
    pivots = torch.randn(2, pipe.generator.w_dim)
    objective = PivotalObjective(PivotalConfig(), photos[:2] / 127.5 - 1, pivots, features)
    seen = []
    monkeypatch.setattr(torch, "lerp", lambda pivot, w, psi: seen.append(pivot[0, 0].clone()) or w)
    pair = Pair(pipe.generator, pipe.bank)
    for step in range(0, 16, 4):
        list(objective.regularisers(pair, 1, step, torch.Generator()))
    assert torch.equal(torch.stack(seen), pivots[[0, 1, 0, 1]])


def test_latents_that_are_given_or_kept(pipe, photos, tmp_path, monkeypatch):
    found = pipe.invert(photos[:1], steps=20, progress=False).latents
    want = pipe.personalize(photos[:1], "", output_dir=tmp_path / "me", **QUICK).state_dict()
    monkeypatch.setattr(FewShotGAN, "invert", None)  # neither of these searches again
    given = pipe.personalize(photos[:1], "", latents=found, **QUICK).state_dict()
    kept = pipe.personalize(photos[:1], "", output_dir=tmp_path / "me", **QUICK).state_dict()
    for name, tensor in want.items():
        assert torch.equal(tensor, given[name]) and torch.equal(tensor, kept[name])
    wide = found + torch.arange(found.shape[1])[:, None]
    for bad in (wide, found[:, 0], found[:, :, :3]):
        with pytest.raises(ValueError, match=r"are not \[1, 8, 16\] with equal rows; give those of pipe.invert"):
            pipe.personalize(photos[:1], latents=bad, **QUICK)
    with pytest.raises(ValueError, match="NaN"):
        pipe.personalize(photos[:1], latents=found * math.nan, **QUICK)
    with torch.inference_mode():
        pipe.personalize(photos[:1].clone(), latents=found, **QUICK)


def test_a_base_in_another_precision(photos):
    pipe = FewShotGAN(tiny_mobile()).to(torch.bfloat16)
    pipe.bank.fingerprint()
    me = pipe.personalize(photos[:1], **QUICK)
    assert me.config.base_fingerprint == pipe.bank.fingerprint() and "me" in pipe.bank.adapters


def test_bad_input_is_refused_before_the_search(pipe, photos, monkeypatch):
    monkeypatch.setattr(FewShotGAN, "invert", None)
    for options, sentence in (
        ({"adapter_name": "a/b"}, "'a/b' cannot be that of a folder"),
        ({"adapter_name": "__base__"}, "names the unadapted generator"),
        ({"settings": {"lr": 1}}, "settings has lr; known: ada_every, "),
        ({"settings": {"seed": 1}}, "settings has seed; known: "),
        ({"settings": {"learning_rate": -1}}, "learning_rate"),
        ({"photos": torch.zeros(1, 3, 8, 8)}, r"photos of shape \[1, 3, 8, 8\] are not \[P, 3, 32, 32\]"),
    ):
        with pytest.raises(ValueError, match=sentence):
            pipe.personalize(**({"photos": photos, **QUICK} | options))


def test_latents_in_a_file_fit_the_base(pipe, photos, tmp_path):
    for shape, sentence in (([1, 7], r"latents of shape \[1, 7\]"), ([21, 16], r"P at most 20")):
        LeFTAdapter.for_model(pipe.generator, latents_shape=shape).save_pretrained(tmp_path / "bad")
        with pytest.raises(ValueError, match=sentence):
            pipe.load_adapter(tmp_path / "bad")
    without_styles = FewShotGAN(SNGANGenerator(channels=8))
    adapter = FullAdapter.for_model(without_styles.generator, latents_shape=[1, 16])
    with pytest.raises(ValueError, match="this SNGANGenerator takes none"):
        without_styles.load_adapter(adapter, "me")


def test_refusals(pipe, photos, perturbed):
    with pytest.raises(ValueError, match="no loaded adapter has any"):
        pipe.draw_person()
    with pytest.raises(ValueError, match="'look' is of a look and has no latents of a person"):
        pipe(person="look")
    with pytest.raises(ValueError, match="'me'"):
        pipe(person="me")
    with pytest.raises(ValueError, match=r"adapter='domain_vector' cannot hold .* give 'left' or 'full'"):
        pipe.personalize(photos, adapter="domain_vector", **QUICK)
    with pytest.raises(ValueError, match="21 photos: give 1 to 20 of one person"):
        pipe.personalize(photos[:1].expand(21, -1, -1, -1), **QUICK)
    with pytest.raises(ValueError, match="an adapter 'look' is already loaded; give this one another adapter_name"):
        pipe.personalize(photos, "look", **QUICK)
    with pytest.raises(ValueError, match="steps=0"):
        pipe.personalize(photos, **{**QUICK, "steps": 0})
    with pytest.raises(ValueError, match="an adapter is of one person"):
        personalize(pipe, [Image.new("RGB", (64, 64))], face="all")
    pipe.personalize(photos[:1], **QUICK)
    with pytest.raises(ValueError, match="brings its own latents"):
        pipe(person="me", latents=torch.zeros(1, pipe.generator.w_dim), latent_space="w")
    vector = DomainVectorAdapter.for_model(pipe.generator)
    assert vector.latents is None and pipe.bank.adapters["look"].latents is None
    for options in ({"num_images": 2.5}, {"num_images": -1}, {"adapter_names": 5}, {"person": ["me"]}):
        with pytest.raises(ValueError):
            pipe(**({"person": "me"} | options))
    with pytest.raises(ValueError, match=r"latents_shape=\[1\]: give"):
        LeFTAdapter.for_model(pipe.generator, latents_shape=[1])


def test_a_card_shows_the_person(pipe, photos, monkeypatch):
    me = pipe.personalize(photos[:2], **QUICK)
    pushed = {}
    monkeypatch.setattr(me, "push_to_hub", lambda repo, **options: pushed.update(options))
    pipe.push_to_hub("somebody/me", adapter_name="me")
    grid = pushed["grid"]
    want = [pipe(2, person="me", adapter_names=[look] * 2).images for look in ("__base__", "me")]
    assert grid.size == (2 * R + GAP, 2 * R + GAP)
    assert grid.crop((0, R + GAP, R, 2 * R + GAP)).tobytes() == want[1][0].tobytes()
    assert grid.crop((0, 0, R, R)).tobytes() == want[0][0].tobytes() != want[1][0].tobytes()
