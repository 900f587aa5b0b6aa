"""The pipeline: one seed gives one picture, adapters come and go, files round-trip, bad input ends in one sentence."""

import json
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from fewshot_gan import FewShotGAN
from fewshot_gan.adapters import DomainVectorAdapter, LeFTAdapter
from fewshot_gan.hub.cards import write_adapter_card
from fewshot_gan.models import SNGANGenerator

TOLERANCE = {"rtol": 0, "atol": 1e-4}  # the published promise; rounding differs with the batch size


@pytest.fixture
def pipe(make_generator):
    return FewShotGAN(make_generator())


@pytest.fixture
def looks(pipe, perturbed):
    """The pipeline with two adapters loaded, `a` (LeFT) and `b` (domain vector)."""
    torch.manual_seed(0)
    pipe.load_adapter(perturbed(LeFTAdapter.for_model(pipe.generator), 1), "a")
    pipe.load_adapter(perturbed(DomainVectorAdapter.for_model(pipe.generator), 2, std=0.5), "b")
    return pipe


def images(pipe, n=4, **kwargs):
    return pipe(n, **{"seed": 0, "output_type": "pt", **kwargs}).images


# ---------------------------------------------------------------------------------------------------------- generating


def test_output_types_are_the_same_pictures(pipe):
    pt = pipe(3, seed=0, output_type="pt")
    assert pt.images.shape == (3, 3, 32, 32) and pt.images.dtype == torch.float32
    assert pt.images.min() >= 0 and pt.images.max() <= 1 and pt.images.std() > 0.05
    assert pt.latents.shape == (3, 16)
    array = pipe(3, seed=0, output_type="np").images
    assert isinstance(array, np.ndarray) and np.array_equal(array, pt.images.permute(0, 2, 3, 1).numpy())
    pil = pipe(3, seed=0).images
    assert [(type(i), i.size, i.mode) for i in pil] == [(Image.Image, (32, 32), "RGB")] * 3
    assert np.array_equal(np.stack([np.asarray(i) for i in pil]), (array * 255).round().astype(np.uint8))
    pair = pipe(3, seed=0, output_type="pt", return_dict=False)
    assert torch.equal(pair[0], pt.images) and torch.equal(pair[1], pt.latents)


def test_the_seed_decides(pipe):
    assert [i.tobytes() for i in pipe(2, seed=5).images] == [i.tobytes() for i in pipe(2, seed=5).images]
    assert torch.equal(images(pipe, seed=5), images(pipe, seed=None, generator=torch.Generator().manual_seed(5)))
    assert (images(pipe, seed=5) - images(pipe, seed=6)).abs().max() > 0.05
    torch.manual_seed(3)
    before = torch.get_rng_state()
    images(pipe, noise_mode="random")
    assert torch.equal(torch.get_rng_state(), before)  # a seeded call leaves torch's generator alone


@pytest.mark.parametrize("noise_mode", ["const", "random", "none"])
def test_a_picture_does_not_depend_on_its_batch(pipe, noise_mode):
    want = images(pipe, 5, noise_mode=noise_mode, batch_size=4)
    for batch_size in (1, 2, 8):
        torch.testing.assert_close(images(pipe, 5, noise_mode=noise_mode, batch_size=batch_size), want, **TOLERANCE)
    for n in (1, 3):
        torch.testing.assert_close(images(pipe, n, noise_mode=noise_mode), want[:n], **TOLERANCE)
    z = pipe(5, seed=0).latents
    if noise_mode != "random":  # random noise comes after the latents, so passing them shifts it
        torch.testing.assert_close(images(pipe, latents=z, noise_mode=noise_mode), want, **TOLERANCE)


def test_noise_modes_differ(pipe):
    const, random, other, none = (
        images(pipe, noise_mode=m, latents=torch.ones(2, 16), seed=s)
        for m, s in (("const", 0), ("random", 0), ("random", 1), ("none", 0))
    )
    for a, b in ((const, random), (random, other), (const, none), (random, none)):
        assert (a - b).abs().max() > 0.02
    assert torch.equal(none[0], none[1]) and not torch.equal(random[0], random[1])


def test_latents_in_z_w_and_w_plus(pipe):
    g = pipe.generator
    z = torch.randn(3, 16, generator=torch.Generator().manual_seed(1))
    want = images(pipe, latents=z)
    with torch.no_grad():
        ws = g.mapping(z)
    psi = {"truncation_psi": pipe.config.truncation_psi}  # w and w+ are drawn as given unless asked otherwise
    torch.testing.assert_close(images(pipe, latents=ws[:, 0], latent_space="w", **psi), want, **TOLERANCE)
    torch.testing.assert_close(images(pipe, latents=ws, **psi), want, **TOLERANCE)
    torch.testing.assert_close(images(pipe, latents=ws), images(pipe, latents=z, truncation_psi=1.0), **TOLERANCE)
    with torch.no_grad():
        truth = ((g(z, truncation_psi=0.3, truncation_cutoff=2) + 1) / 2).clamp(0, 1)
    got = pipe(latents=z, truncation_psi=0.3, truncation_cutoff=2, output_type="pt")
    torch.testing.assert_close(got.images, truth, **TOLERANCE)
    assert torch.equal(got.latents, z)
    mean = pipe(latents=z, truncation_psi=0.0, output_type="pt").images
    torch.testing.assert_close(mean[0], mean[1], **TOLERANCE)


def test_the_pipelines_own_psi_is_the_default(make_generator):
    a, b = FewShotGAN(make_generator(), truncation_psi=0.5), FewShotGAN(make_generator(), truncation_psi=1.0)
    assert torch.equal(images(a), images(b, truncation_psi=0.5))
    assert not torch.allclose(images(a), images(b))


def test_progress_bar_on_long_runs_alone(pipe, capfd):
    images(pipe, 3, batch_size=1)
    assert capfd.readouterr().err == ""
    images(pipe, 5, batch_size=1)
    assert "5/5" in capfd.readouterr().err
    pipe.set_progress_bar_config(disable=True)
    images(pipe, 5, batch_size=1)
    assert capfd.readouterr().err == ""


# ------------------------------------------------------------------------------------------------------------ adapters


def test_one_adapter_per_image_equals_solo_runs(looks):
    solo = {name: images(looks, 5, adapter_names=name) for name in ("a", "b", "__base__")}
    active = images(looks, 5)
    assert torch.equal(active, solo["b"])  # the one loaded last acts
    names = ["b", "__base__", "a", None, "a"]
    for batch_size in (1, 8):
        mixed = images(looks, 5, adapter_names=names, batch_size=batch_size)
        for i, name in enumerate(names):
            torch.testing.assert_close(mixed[i], (solo[name] if name else active)[i], **TOLERANCE)
    assert (solo["a"] - solo["b"]).abs().max() > 0.05 and (solo["a"] - solo["__base__"]).abs().max() > 0.05
    assert torch.equal(images(looks, 5), active)  # nothing is left behind


def test_set_disable_enable_delete(looks):
    base, a, b = (images(looks, adapter_names=n) for n in ("__base__", "a", "b"))
    assert looks.loaded_adapters() == ["a", "b"] and looks.active_adapters() == ["b"]
    looks.set_adapters("a")
    assert looks.active_adapters() == ["a"] and torch.equal(images(looks), a)
    looks.set_adapters("a", 0.0)
    assert torch.equal(images(looks), base)
    looks.set_adapters(["a", "b"], [1.0, 0.0])
    torch.testing.assert_close(images(looks), a, **TOLERANCE)
    looks.set_adapters(["a", "b"], [0.5, 0.5])
    for one in (base, a, b):
        assert not torch.allclose(images(looks), one, atol=1e-3)
    half = images(looks)
    looks.disable_adapters()
    assert looks.active_adapters() == [] and torch.equal(images(looks), base)
    looks.enable_adapters()
    assert torch.equal(images(looks), half)
    looks.delete_adapters("a")
    assert looks.loaded_adapters() == ["b"] == looks.active_adapters()
    looks.delete_adapters(["b"])
    assert torch.equal(images(looks), base)
    with pytest.raises(ValueError, match="'b' is not loaded; loaded: none"):
        looks.delete_adapters("b")


def test_weights_of_set_adapters(looks):
    with pytest.raises(ValueError, match="2 adapters but 1 weights"):
        looks.set_adapters(["a", "b"], [0.5])
    with pytest.raises(ValueError, match="'c' is not loaded; loaded: 'a', 'b'"):
        looks.set_adapters("c")
    looks.set_adapters(["a", "b"], 0.25)
    assert looks.bank.active == {"a": 0.25, "b": 0.25}


def test_save_and_load_an_adapter(looks, make_generator, tmp_path):
    want = images(looks, adapter_names="a")
    looks.save_adapter(tmp_path / "sketch", "a")
    fresh = FewShotGAN(make_generator())
    assert fresh.load_adapter(tmp_path / "sketch") is fresh
    assert fresh.active_adapters() == ["sketch"] and torch.equal(images(fresh), want)
    fresh.save_adapter(tmp_path / "again")
    files = ("adapter_config.json", "adapter_model.safetensors")
    assert all((tmp_path / "again" / f).read_bytes() == (tmp_path / "sketch" / f).read_bytes() for f in files)
    looks.set_adapters(["a", "b"])
    with pytest.raises(ValueError, match="2 adapters are active; say which"):
        looks.save_adapter(tmp_path / "none")
    assert not (tmp_path / "none").exists()


# --------------------------------------------------------------------------------------------------------------- files


def test_the_base_round_trips(make_generator, discriminator, tmp_path):
    pipe = FewShotGAN(make_generator(), discriminator, truncation_psi=0.6)
    pipe.save_pretrained(tmp_path)
    index = json.loads((tmp_path / "model_index.json").read_text(encoding="utf-8"))
    assert index["generator"] == ["fewshot_gan", type(pipe.generator).__name__]
    assert index["discriminator"] == ["fewshot_gan", "StyleGAN2Discriminator"]
    loaded = FewShotGAN.from_pretrained(tmp_path)
    assert loaded.base_name == str(tmp_path) and loaded.config.truncation_psi == 0.6
    assert torch.equal(images(loaded, noise_mode="random"), images(pipe, noise_mode="random"))
    x = images(pipe) * 2 - 1
    assert torch.equal(loaded.discriminator(x), discriminator(x))
    assert FewShotGAN.from_pretrained(tmp_path, discriminator=None).discriminator is None


def test_the_discriminator_is_optional(mobile, tmp_path):
    FewShotGAN(mobile).save_pretrained(tmp_path)
    assert not (tmp_path / "discriminator").exists()
    assert FewShotGAN.from_pretrained(tmp_path).discriminator is None


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(base_folder, dtype):
    want = images(FewShotGAN.from_pretrained(base_folder), noise_mode="random")
    half = FewShotGAN.from_pretrained(base_folder, dtype=dtype)
    assert half.generator.dtype == dtype
    # pictures in [0, 1]; three or ten bits of mantissa fewer than a picture needs show in a few pixels
    assert (images(half, noise_mode="random") - want).abs().mean() < (0.002 if dtype == torch.float16 else 0.02)


def test_to_keeps_adapters_in_full_precision(looks):
    assert looks.to(torch.bfloat16) is looks
    assert looks.generator.dtype == torch.bfloat16 and looks.bank.adapters["a"].dtype == torch.float32
    assert torch.isfinite(images(looks, adapter_names=["a", "b", "a", "b"])).all()


@pytest.mark.parametrize("with_grid", [True, False])
def test_card_of_an_adapter(mobile, tmp_path, with_grid):
    from huggingface_hub import ModelCard

    training = {"max_train_steps": 3, "seed": 7}
    options = {"base_model_name_or_path": "ffhq", "method": "lfs_gan", "training": training}
    for base in ("ffhq", "me/faces", str(tmp_path)):
        folder = tmp_path / "pencil"
        adapter = LeFTAdapter.for_model(mobile, **{**options, "base_model_name_or_path": base})
        adapter.save_pretrained(folder)
        for step in (1, 20):
            (tmp_path / "samples").mkdir(exist_ok=True)
            Image.new("RGB", (8, 8), (step, 0, 0)).save(tmp_path / "samples" / f"step-{step:06d}.png")
        write_adapter_card(adapter, folder, "pencil", grid=tmp_path / "samples" if with_grid else None)
        card = ModelCard.load(folder / "README.md")
        data = card.data.to_dict()
        assert data["library_name"] == "fewshot_gan"
        assert data["pipeline_tag"] == "unconditional-image-generation"
        repo = {"me/faces": "me/faces", "ffhq": "fewshot-gan/ffhq"}.get(base)  # where the embedded one is published
        assert (data.get("base_model"), data.get("base_model_relation")) == (repo, "adapter" if repo else None)
        assert (data.get("license") == "other") == ("non-commercial" in card.text) == (base == "ffhq")
        assert str(tmp_path) not in str(card)
        assert f"{adapter.num_values():,} numbers" in card.text and "| seed | 7 |" in card.text
        assert f"{(folder / 'adapter_model.safetensors').stat().st_size:,} bytes" in card.text
        assert 'load_adapter("pencil")' in card.text and "2308.11917" in card.text
        if with_grid:
            assert Image.open(folder / "images" / "grid.png").getpixel((0, 0)) == (20, 0, 0)
        assert ("images/grid.png" in card.text) == ("widget" in data) == with_grid == (folder / "images").exists()
        assert not [p for p in folder.rglob("*") if p.name.startswith(".")]


# ----------------------------------------------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    "kwargs, message",
    [
        ({"num_images": 0}, "num_images=0: give a whole number, 1 or more"),
        ({"num_images": -2}, "num_images=-2"),
        ({"batch_size": 0}, "batch_size=0"),
        ({"output_type": "jpg"}, "unknown output_type 'jpg'; known: pil, np, pt"),
        ({"seed": 1, "generator": torch.Generator()}, "seed or generator, not both"),
        ({"noise_mode": "loud"}, "unknown noise_mode 'loud'; known: const, random, none"),
        ({"adapter_names": "sketch"}, "'sketch' is not loaded; loaded: 'a', 'b'; load it with load_adapter"),
        ({"num_images": 3, "adapter_names": ["a", "b"]}, "2 entries for 3 images"),
        ({"latents": torch.zeros(0, 16)}, "num_images=0"),
        ({"latents": torch.zeros(2, 7)}, r"\(2, 7\) are not z \[N, 16\]"),
        ({"latents": torch.zeros(2, 7), "latent_space": "w"}, r"fit neither w"),
        ({"latents": torch.zeros(2, 16), "latent_space": "q"}, "unknown latent_space 'q'; known: z, w, w+"),
    ],
)
def test_bad_calls(looks, kwargs, message):
    with pytest.raises(ValueError, match=message):
        looks(**kwargs)


def test_unknown_names(pipe):
    with pytest.raises(FileNotFoundError, match="no base 'no-such'; embedded bases: .*local folder or a Hub repo"):
        FewShotGAN.from_pretrained("no-such")
    with pytest.raises(FileNotFoundError, match="no adapter 'no-such'; embedded adapters: .*local folder or a Hub"):
        pipe.load_adapter("no-such")
    with pytest.raises(ValueError, match="'__base__' names the unadapted generator"):
        pipe.load_adapter(LeFTAdapter.for_model(pipe.generator), "__base__")
    assert pipe.loaded_adapters() == []


def test_embedded_names_are_listed(pipe, monkeypatch, tmp_path, base_folder):
    monkeypatch.setattr("fewshot_gan.hub.names.ASSETS", tmp_path)
    shutil.copytree(base_folder, tmp_path / "bases" / "tiny")
    look = LeFTAdapter.for_model(FewShotGAN.from_pretrained("tiny").generator, base_model_name_or_path="tiny")
    look.save_pretrained(tmp_path / "adapters" / "tiny" / "ink")
    assert FewShotGAN.list_embedded() == {"tiny": ["ink"]}
    loaded = FewShotGAN.from_pretrained("tiny").load_adapter("ink")
    assert loaded.active_adapters() == ["ink"] and loaded.base_name == "tiny"
    with pytest.raises(FileNotFoundError, match="embedded bases: tiny;"):
        FewShotGAN.from_pretrained("tyni")
    with pytest.raises(FileNotFoundError, match="embedded adapters: ink;"):
        loaded.load_adapter("inc")


def test_an_adapter_of_another_base(pipe, make_generator):
    for base, way_out in (
        ("me/cats", "trained on 'me/cats'.*load its base with FewShotGAN.from_pretrained.'me/cats'"),
        ("ffhq", "load its base with FewShotGAN.from_pretrained.'ffhq'"),
        ("afhq-cat", "trained on 'afhq-cat'.*its base 'afhq-cat' is not on this machine; get it from whoever"),
        ("/home/me/cats", "its base '/home/me/cats' is not on this machine"),
        (None, "load the base it was made for"),
    ):
        stranger = LeFTAdapter.for_model(make_generator(7), base_model_name_or_path=base)
        with pytest.raises(ValueError, match=way_out):
            pipe.load_adapter(stranger, "cat")
    assert pipe.loaded_adapters() == [] == pipe.active_adapters()


def copy_of(base_folder, tmp_path):
    return shutil.copytree(base_folder, tmp_path / "base")


@pytest.mark.parametrize("keep", [0, 100, -5])
def test_truncated_base(base_folder, tmp_path, keep):
    folder = copy_of(base_folder, tmp_path)
    (weights,) = (folder / "generator").glob("*.safetensors")
    weights.write_bytes(weights.read_bytes()[:keep])
    with pytest.raises(ValueError, match="could not load the base in"):
        FewShotGAN.from_pretrained(folder)


def test_base_that_lacks_a_tensor(base_folder, tmp_path):
    from safetensors.torch import load_file, save_file

    folder = copy_of(base_folder, tmp_path)
    (weights,) = (folder / "generator").glob("*.safetensors")
    tensors = load_file(weights)
    bias = tensors.pop("synthesis.b8.conv0.bias")
    save_file(tensors, weights, metadata={"format": "pt"})
    with pytest.raises(ValueError, match="generator in .* lacks weights: synthesis.b8.conv0.bias"):
        FewShotGAN.from_pretrained(folder)
    save_file(tensors | {"synthesis.b8.conv0.bias": bias, "extra": bias.clone()}, weights, metadata={"format": "pt"})
    with pytest.raises(ValueError, match="has weights that it does not know: extra"):
        FewShotGAN.from_pretrained(folder)


def test_folder_that_is_no_base(tmp_path):
    with pytest.raises(FileNotFoundError, match="is not a base: it has no model_index.json"):
        FewShotGAN.from_pretrained(tmp_path)


def run_python(code, tmp_path, **env):
    env = {**os.environ, "HF_HOME": str(tmp_path), "PYTHONPATH": os.pathsep.join(sys.path), **env}
    return subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, timeout=120)


@pytest.mark.parametrize("env", [{"HF_HUB_OFFLINE": "1"}, {"HF_HUB_OFFLINE": "0", "HF_ENDPOINT": "http://127.0.0.1:9"}])
def test_no_network(tmp_path, env):
    code = """
from fewshot_gan.hub import resolve_folder
for kind in ("base", "adapter"):
    try:
        resolve_folder("nobody/nothing", kind=kind)
    except FileNotFoundError as error:
        print(error)
"""
    done = run_python(code, tmp_path, **env)
    lines = done.stdout.splitlines()
    assert done.returncode == 0 and len(lines) == 2, done.stderr
    for kind, line in zip(("base", "adapter"), lines, strict=True):
        assert line.startswith(f"could not fetch {kind} 'nobody/nothing'") and "no network" in line
        assert f"embedded {kind}s:" in line and "give its folder" in line


def test_import_is_light(tmp_path):
    code = "import sys, fewshot_gan; print([m for m in ('torch', 'diffusers', 'numpy', 'PIL') if m in sys.modules])"
    done = run_python(code, tmp_path)
    assert done.stdout.strip() == "[]", done.stderr


def test_every_export_resolves():
    import fewshot_gan

    assert all(getattr(fewshot_gan, name) is not None for name in dir(fewshot_gan))
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = fewshot_gan.nothing


# ----------------------------------------------------------------------------------------------- blends, strips, fusing


def test_adapter_names_take_blends(looks):
    looks.set_adapters(["a", "b"], [0.5, -0.25])
    want = images(looks, 3)
    blend = {"a": 0.5, "b": -0.25}
    looks.set_adapters("a")
    mixed = images(looks, 3, adapter_names=["__base__", blend, {"a": 1.0, "__base__": 0.3}])
    torch.testing.assert_close(mixed[1], want[1], **TOLERANCE)
    torch.testing.assert_close(mixed[0], images(looks, 3, adapter_names="__base__")[0], **TOLERANCE)
    torch.testing.assert_close(mixed[2], images(looks, 3, adapter_names="a")[2], **TOLERANCE)
    torch.testing.assert_close(images(looks, 3, adapter_names=blend), want, **TOLERANCE)


def test_a_mixed_batch_is_one_forward(looks):
    forwards = []
    handle = looks.generator.synthesis.register_forward_hook(lambda *_: forwards.append(1))
    images(looks, 6, adapter_names=["a", "b", "__base__", None, "a", {"a": 0.5, "b": 0.5}])
    handle.remove()
    assert len(forwards) == 1


def test_interpolate_is_a_strip_of_blends(looks):
    out = looks.interpolate("a", "b", 5, num_images=2, seed=3, output_type="pt")
    assert out.images.shape[0] == 10 and torch.equal(out.latents[0], out.latents[4])
    assert not torch.equal(out.latents[0], out.latents[5])
    assert torch.equal(out.latents[::5], looks(2, seed=3).latents)
    for k, t in enumerate((0, 0.25, 0.5, 0.75, 1)):
        looks.set_adapters(["a", "b"], [1 - t, t])
        want = looks(latents=out.latents[::5], output_type="pt").images
        torch.testing.assert_close(out.images[k::5], want, **TOLERANCE)
    ends = looks.interpolate("__base__", "a", 2, seed=3, output_type="pt").images
    torch.testing.assert_close(ends[0], images(looks, 1, seed=3, adapter_names="__base__")[0], **TOLERANCE)
    torch.testing.assert_close(ends[1], images(looks, 1, seed=3, adapter_names="a")[0], **TOLERANCE)
    for arguments, message in (
        (("a", "b", 1), "steps=1: a strip has at least its two ends"),
        (("a", "c", 3), "'c' is not loaded; loaded: 'a', 'b'"),
    ):
        with pytest.raises(ValueError, match=message):
            looks.interpolate(*arguments)
    with pytest.raises(ValueError, match="interpolate chooses adapter_names itself"):
        looks.interpolate("a", "b", adapter_names="a")


def test_a_schedule_over_depth(looks):
    base, a = images(looks, adapter_names="__base__"), images(looks, adapter_names="a")
    looks.set_adapters("a", {"coarse": 0.0, "middle": 1.0})
    fine = images(looks)
    looks.set_adapters(["a", "b"], [{"coarse": 1.0, "middle": 0.0}, 0.0])
    coarse = images(looks)
    assert all((x - y).abs().max() > 0.01 for x in (fine, coarse) for y in (base, a))
    looks.set_adapters("a", {0: 1.0})
    assert torch.equal(images(looks), a)


def test_fusing_a_pipeline(pipe, perturbed, tmp_path):
    torch.manual_seed(0)
    pipe.load_adapter(perturbed(LeFTAdapter.for_model(pipe.generator), 1), "a")
    pipe.load_adapter(perturbed(LeFTAdapter.for_model(pipe.generator), 2), "b")
    source = {k: v.clone() for k, v in pipe.generator.state_dict().items()}
    pipe.set_adapters(["a", "b"], [0.5, 0.5])
    want = images(pipe)
    pipe.fuse_adapters(["a", "b"], [0.5, 0.5])
    torch.testing.assert_close(images(pipe), want, rtol=0, atol=1e-5)
    pipe.save_pretrained(tmp_path / "fused")
    for action in (
        pipe.fuse_adapters,
        lambda: pipe.set_adapters("a"),
        lambda: pipe.load_adapter("sketch"),
        lambda: pipe.load_adapters(tmp_path),
        lambda: pipe.delete_adapters("a"),
        pipe.disable_adapters,
        lambda: pipe(1, adapter_names="a"),
        lambda: pipe.interpolate("a", "b"),
    ):
        with pytest.raises(ValueError, match="cannot .* while 'a', 'b' is fused; call unfuse_adapters first"):
            action()
    pipe.unfuse_adapters()
    assert all(torch.equal(v, source[k]) for k, v in pipe.generator.state_dict().items())
    assert torch.equal(images(pipe), want)
    with pytest.raises(ValueError, match="no adapter is fused"):
        pipe.unfuse_adapters()
    standalone = FewShotGAN.from_pretrained(tmp_path / "fused")
    torch.testing.assert_close(images(standalone), want, rtol=0, atol=1e-5)


def test_what_cannot_be_fused_is_not_saved_as_if_it_were(stylegan2, perturbed, tmp_path):
    pipe = FewShotGAN(stylegan2)
    pipe.load_adapter(perturbed(DomainVectorAdapter.for_model(stylegan2), std=0.5), "v")
    want = images(pipe)
    pipe.fuse_adapters()
    torch.testing.assert_close(images(pipe), want, rtol=0, atol=1e-5)
    with pytest.raises(ValueError, match="'v' acts at 7 layers.*save_adapter instead"):
        pipe.save_pretrained(tmp_path / "fused")
    assert not (tmp_path / "fused").exists()


def test_add_weighted_adapter(looks, make_generator, tmp_path):
    looks.set_adapters(["a", "b"], [0.5, 0.5])
    want = images(looks)
    looks.add_weighted_adapter(["a", "b"], [0.5, 0.5], "both")
    assert looks.active_adapters() == ["a", "b"]
    looks.add_weighted_adapter(["both", "a"], [1.0, 0.0], "again")  # a blend of a blend
    for name in ("both", "again"):
        looks.save_adapter(tmp_path / name, name)
    fresh = FewShotGAN(make_generator())
    for name in ("both", "again"):
        fresh.load_adapter(tmp_path / name)
        torch.testing.assert_close(images(fresh), want, **TOLERANCE)
    for arguments, message in (
        ((["a", "c"], 0.5, "x"), "'c' is not loaded"),
        ((["a", "b"], [1.0], "x"), "2 adapters but 1 weights"),
        ((["a", "b"], 0.5, "both"), "an adapter 'both' is already loaded"),
        ((["a", "a"], 0.5, "x"), "each once"),
    ):
        with pytest.raises(ValueError, match=message):
            looks.add_weighted_adapter(*arguments)


# -------------------------------------------------------------------------------------------- names, folders of several


def test_names_are_unique_unless_swapped(looks, tmp_path):
    a, b = (images(looks, adapter_names=n) for n in "ab")
    looks.save_adapter(tmp_path / "x", "b")
    with pytest.raises(ValueError, match="an adapter 'a' is already loaded; give this one another adapter_name"):
        looks.load_adapter(tmp_path / "x", "a")
    with pytest.raises(ValueError, match="hotswap replaces a loaded adapter, but there is no 'x'"):
        looks.load_adapter(tmp_path / "x", hotswap=True)
    looks.set_adapters("a")
    assert torch.equal(images(looks), a)
    looks.load_adapter(tmp_path / "x", "a", hotswap=True)
    assert looks.active_adapters() == ["a"] and torch.equal(images(looks), b)
    with pytest.raises(ValueError, match="adapters named twice"):
        looks.set_adapters(["a", "a"])


def test_a_folder_of_several_adapters(looks, make_generator, tmp_path):
    solo = {n: images(looks, adapter_names=n) for n in "ab"}
    looks.save_adapter(tmp_path, ["a", "b"])
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a", "b"]
    fresh = FewShotGAN(make_generator())
    with pytest.raises(ValueError, match="holds several adapters: a, b; choose one with subfolder='a'"):
        fresh.load_adapter(tmp_path)
    fresh.load_adapter(tmp_path, subfolder="b")
    assert fresh.loaded_adapters() == ["b"] and torch.equal(images(fresh), solo["b"])
    with pytest.raises(ValueError, match="'b' is already loaded"):
        fresh.load_adapters(tmp_path)
    assert fresh.loaded_adapters() == ["b"]  # all or none
    fresh.delete_adapters("b")
    assert fresh.load_adapters(tmp_path) == ["a", "b"] == fresh.loaded_adapters()
    assert fresh.active_adapters() == []
    for name in "ab":
        assert torch.equal(images(fresh, adapter_names=name), solo[name])
    with pytest.raises(FileNotFoundError, match="holds no adapter folders"):
        fresh.load_adapters(tmp_path / "a")
    with pytest.raises(ValueError, match="subfolder='../a' leads out of"):
        fresh.load_adapter(tmp_path, "x", subfolder="../a")
    with pytest.raises(ValueError, match="'c' is not loaded"):
        looks.save_adapter(tmp_path / "new", ["a", "c"])
    assert not (tmp_path / "new").exists()


def test_variants_of_an_adapter(looks, make_generator, tmp_path):
    want = images(looks, adapter_names="a")
    looks.save_adapter(tmp_path / "a", "a", variant="fp32")
    fresh = FewShotGAN(make_generator()).load_adapter(tmp_path / "a", variant="fp32")
    assert torch.equal(images(fresh), want)
    with pytest.raises(FileNotFoundError, match="has no adapter_model.safetensors"):
        fresh.load_adapter(tmp_path / "a", "other")


def test_an_index_that_points_elsewhere(base_folder, tmp_path):
    folder = copy_of(base_folder, tmp_path)
    (weights,) = (folder / "generator").glob("*.safetensors")
    index = folder / "generator" / f"{weights.name}.index.json"
    for shard in ("../../secret.safetensors", "/etc/x.safetensors", "a\\b.safetensors", 3, ".."):
        index.write_text(json.dumps({"metadata": {}, "weight_map": {"w": shard}}), encoding="utf-8")
        with pytest.raises(ValueError, match="names the file .* which is not beside it"):
            FewShotGAN.from_pretrained(folder)
    index.write_text("{", encoding="utf-8")
    with pytest.raises(ValueError, match="index.json is damaged"):
        FewShotGAN.from_pretrained(folder)


def test_a_sharded_base(base_folder, tmp_path):
    want = images(FewShotGAN.from_pretrained(base_folder))
    pipe = FewShotGAN.from_pretrained(base_folder)
    pipe.save_pretrained(tmp_path / "shards", max_shard_size="20KB")
    assert len(list((tmp_path / "shards" / "generator").glob("*.safetensors"))) > 1
    assert torch.equal(images(FewShotGAN.from_pretrained(tmp_path / "shards")), want)


# ------------------------------------------------------------------------------------------------------ careful details


def test_looks_as_mappings_and_what_is_no_list(looks):
    looks.set_adapters({"a": 0.25, "b": {"coarse": 1.0}})
    assert looks.bank.active == {"a": 0.25, "b": {"coarse": 1.0}}
    for bad in ({"a", "b"}, 5, None, [["a"]], [1, 1], iter("ab")):
        with pytest.raises(ValueError, match="give a name, a list of names"):
            looks.set_adapters(bad)
        with pytest.raises(ValueError):
            looks.delete_adapters(bad)
    for bad in ({"a", "b"}, 5, iter("ab"), ["a", ["b"], "a", "a"], ["a", 3, "a", "a"]):
        with pytest.raises(ValueError, match="adapter_names"):
            looks(4, adapter_names=bad)
    with pytest.raises(ValueError, match="2 adapters but 3 weights|no finite number"):
        looks.set_adapters(["a", "b"], "0.5")
    with pytest.raises(ValueError, match="'zz' is not loaded"):
        looks.delete_adapters(["a", "zz"])
    assert looks.loaded_adapters() == ["a", "b"]  # all or none
    with pytest.raises(ValueError, match="empty list"):
        looks.save_adapter("nowhere", [])
    with pytest.raises(ValueError, match="unknown options of load_adapter: bogus"):
        looks.load_adapter("sketch", bogus=1)
    with pytest.raises(ValueError, match="an Adapter is loaded as it is"):
        looks.load_adapter(looks.bank.adapters["a"], "c", subfolder="x")
    looks.delete_adapters(looks.bank.adapters)
    assert looks.loaded_adapters() == []


def test_choosing_ends_disabling(looks):
    looks.disable_adapters()
    looks.set_adapters("a")
    assert looks.active_adapters() == ["a"]
    assert torch.equal(images(looks), images(looks, adapter_names="a"))


@pytest.mark.parametrize(
    "kwargs",
    [
        {"num_images": 2.0},
        {"num_images": "2"},
        {"batch_size": 1.5},
        {"truncation_psi": float("nan")},
        {"truncation_cutoff": -1},
        {"truncation_cutoff": 99},
        {"latents": np.zeros((2, 16))},
        {"latents": torch.zeros(())},
        {"generator": [torch.Generator()], "num_images": 2},
    ],
)
def test_odd_numbers(looks, kwargs):
    with pytest.raises(ValueError):
        looks(**kwargs)


def test_a_generator_per_image(looks):
    def made():
        return [torch.Generator().manual_seed(s) for s in (3, 4, 3)]

    pictures = images(looks, 3, seed=None, generator=made(), noise_mode="random")
    torch.testing.assert_close(pictures[0], pictures[2], **TOLERANCE)
    assert (pictures[0] - pictures[1]).abs().max() > 0.01
    alone = images(looks, 1, seed=None, generator=made()[1:2], noise_mode="random")
    torch.testing.assert_close(alone[0], pictures[1], **TOLERANCE)


def test_a_strip_keeps_its_noise(looks):
    state = torch.get_rng_state()
    options = {"num_images": 2, "seed": 0, "noise_mode": "random", "output_type": "pt"}
    first, again = (looks.interpolate("__base__", "a", 3, **options).images for _ in range(2))
    assert torch.equal(first, again) and torch.equal(torch.get_rng_state(), state)
    base = images(looks, 2, noise_mode="random", adapter_names="__base__")
    torch.testing.assert_close(first[::3], base, **TOLERANCE)
    looks.bank.activate({})
    still = looks.interpolate("__base__", "__base__", 3, **options).images
    torch.testing.assert_close(still[0], still[2], **TOLERANCE)


def test_adapters_of_a_float32_base_fit_it_in_half_precision(tmp_path, perturbed):
    from fewshot_gan.models import MobileStyleGANGenerator

    torch.manual_seed(0)
    size = {"z_dim": 16, "w_dim": 16, "num_mapping_layers": 2}
    pipe = FewShotGAN(MobileStyleGANGenerator((16, 16, 16), **size))  # weights that no half precision holds
    pipe.save_pretrained(tmp_path / "base")
    pipe.load_adapter(perturbed(LeFTAdapter.for_model(pipe.generator)), "a")
    pipe.base_name = str(tmp_path / "base")
    pipe.save_adapter(tmp_path / "a", "a")
    assert str(tmp_path) not in (tmp_path / "a" / "README.md").read_text(encoding="utf-8")  # the card may travel
    for dtype in (torch.float16, torch.bfloat16):
        loaded = FewShotGAN.from_pretrained(tmp_path / "base", dtype=dtype).load_adapter(tmp_path / "a")
        assert torch.isfinite(images(loaded)).all()
        cast = FewShotGAN.from_pretrained(tmp_path / "base").to(dtype).load_adapter(tmp_path / "a")
        assert torch.equal(images(cast), images(loaded))


def test_a_base_in_a_subfolder(base_folder, tmp_path):
    shutil.copytree(base_folder, tmp_path / "all" / "faces")
    assert torch.equal(
        images(FewShotGAN.from_pretrained(tmp_path / "all", subfolder="faces")),
        images(FewShotGAN.from_pretrained(base_folder)),
    )


def test_collections_in_a_variant_and_their_cards(looks, make_generator, tmp_path):
    looks.save_adapter(tmp_path, ["a", "b"], variant="fp32")
    fresh = FewShotGAN(make_generator())
    assert fresh.load_adapters(tmp_path, variant="fp32") == ["a", "b"]
    assert torch.equal(images(fresh, adapter_names="a"), images(looks, adapter_names="a"))
    card = tmp_path / "a" / "README.md"
    assert 'load_adapter("a")' in card.read_text(encoding="utf-8")
    card.write_text("# my own words\n", encoding="utf-8")
    looks.save_adapter(tmp_path / "a", "a")
    assert card.read_text(encoding="utf-8") == "# my own words\n"


def test_a_generator_that_was_replaced(looks, make_generator):
    looks.generator = make_generator(5)
    with pytest.raises(ValueError, match="the generator was replaced.*make a new FewShotGAN"):
        looks(1)


def test_a_second_pipeline_of_the_same_parts(looks):
    want, base = images(looks), images(looks, adapter_names="__base__")
    second = FewShotGAN(**looks.components)
    assert torch.equal(images(second), base) and torch.equal(images(looks), want)
    assert torch.equal(images(second), base)


@pytest.mark.parametrize("kind", ["mobile", "stylegan2"])
def test_a_compiled_pipeline_draws_the_same_and_switches_without_compiling(kind, request, perturbed):
    torch._dynamo.reset()
    generator = request.getfixturevalue(kind)
    pipe = FewShotGAN(generator)
    for i in range(3):
        pipe.bank.add(f"look{i}", perturbed(LeFTAdapter.for_model(generator), i))
    looks = [None, "look0", "look1", {"look2": 0.5, "look0": 0.5}, "__base__"]

    def draw(look):
        return pipe(2, seed=1, adapter_names=look, output_type="pt").images

    graphs, counts = [], []
    want = [draw(look) for look in looks]
    pipe.compile(backend=lambda module, inputs: graphs.append(1) or module.forward)
    for look, plain in zip(looks, want, strict=True):
        torch.testing.assert_close(draw(look), plain, atol=1e-5, rtol=0)  # sums in another order
        counts.append(len(graphs))
    assert 0 < counts[0] < counts[1]  # one without adapters, one with,
    assert counts[2] == counts[1]  # which serves the next of that kind
    assert draw(None).equal(draw("__base__")) and len(graphs) == counts[-1]
    with torch.no_grad():
        next(pipe.bank.adapters["look0"].parameters()).add_(0.5)
    changed = draw("look0")
    pipe._compiled = None
    torch.testing.assert_close(changed, draw("look0"), atol=1e-5, rtol=0)
    assert not torch.allclose(changed, want[1], atol=1e-3)


def test_a_generator_without_styles_is_compiled_too():
    torch._dynamo.reset()
    pipe = FewShotGAN(SNGANGenerator(channels=8))
    want = pipe(2, seed=1, output_type="pt").images
    graphs = []
    pipe.compile(backend=lambda module, inputs: graphs.append(1) or module.forward)
    torch.testing.assert_close(pipe(2, seed=1, output_type="pt").images, want, atol=1e-5, rtol=0)
    assert graphs
