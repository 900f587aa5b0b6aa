"""The pipeline: one seed gives one picture, adapters come and go, files round-trip, bad input ends in one sentence."""

import copy
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline
from helpers.every_pipeline import TOLERANCE, images
from helpers.networks import tiny_mobile
from PIL import Image

from fewshot_gan import FewShotGAN, faces
from fewshot_gan.adapters import LeFTAdapter
from fewshot_gan.models import SNGANGenerator

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
    for names, weights, want in (
        (["a", "b"], np.array([0.5, 0.25]), {"a": 0.5, "b": 0.25}),
        (["a", "b"], torch.tensor([0.5, 0.25]), {"a": 0.5, "b": 0.25}),
        (["a", "b"], [torch.tensor(0.5), np.float32(0.25)], {"a": 0.5, "b": 0.25}),
        ("a", torch.tensor(0.5), {"a": 0.5}),
        ({"a": np.float64(0.5)}, None, {"a": 0.5}),
        ("a", {np.int64(4): torch.tensor(0.5)}, {"a": {4: 0.5}}),
    ):
        looks.set_adapters(names, weights)
        assert looks.bank.active == want and json.dumps(looks.bank.active)
    looks.set_adapters("a", adapter_weights=np.array([0.5]))
    assert looks.bank.active == {"a": 0.5}
    assert torch.equal(images(looks, adapter_names={"a": torch.tensor(0.5)}), images(looks))
    for weights in (1j, object(), torch.tensor([[0.5]]), "much"):
        with pytest.raises(ValueError, match="weight .* of adapter 'a' is no finite number"):
            looks.set_adapters("a", weights)
    with pytest.raises(ValueError, match="two names of one option"):
        looks.set_adapters("a", np.array([0.5]), adapter_weights=np.array([0.5]))


def test_weights_of_fuse_adapters_belong_to_names(looks):
    looks.set_adapters(["a", "b"])
    with pytest.raises(ValueError, match="weights=0.5 belong to adapter_names; name the adapters, or leave weights"):
        looks.fuse_adapters(weights=0.5)
    assert looks.bank.fused is None and looks.bank.active == {"a": 1.0, "b": 1.0}


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


@pytest.fixture
def two_bases(monkeypatch, tmp_path):
    """Assets with the bases `small` and `large`, which both have an `ink`; only `small` has a `pen`."""
    monkeypatch.setattr("fewshot_gan.hub.names.ASSETS", tmp_path)
    marks, looks = {}, {"small": ("ink", "pen"), "large": ("ink",)}
    for seed, (base, names) in enumerate(looks.items()):
        made = FewShotGAN(tiny_mobile(seed))
        made.save_pretrained(tmp_path / "bases" / base)
        marks[base] = made.bank.fingerprint()
        for name in names:
            look = LeFTAdapter.for_model(made.generator, base_model_name_or_path=base)
            look.save_pretrained(tmp_path / "adapters" / base / name)
    (tmp_path / "bases" / "fingerprints.json").write_text(json.dumps(marks), encoding="utf-8")
    return tmp_path


def test_an_embedded_adapter_is_that_of_the_pipelines_base(two_bases, monkeypatch):
    assert FewShotGAN.list_embedded() == {"large": ["ink"], "small": ["ink", "pen"]}
    for base in ("small", "large"):
        loaded = FewShotGAN.from_pretrained(base).load_adapter("ink").bank.adapters["ink"]
        assert loaded.config.base_model_name_or_path == base
    copied = FewShotGAN.from_pretrained(shutil.copytree(two_bases / "bases" / "large", two_bases / "copy"))
    assert copied.load_adapter("ink").bank.adapters["ink"].config.base_model_name_or_path == "large"
    assert FewShotGAN.from_pretrained("small").load_adapter("pen").active_adapters() == ["pen"]
    message = "embedded adapter 'pen' is of 'small', not of this base; load its base .*from_pretrained.'small'. .--base"
    with pytest.raises(FileNotFoundError, match=message):
        copied.load_adapter("pen")
    with pytest.raises(FileNotFoundError, match="adapter 'ink' is of 'large' and 'small', not of this base"):
        FewShotGAN(tiny_mobile(9)).load_adapter("ink")
    assert LeFTAdapter.from_pretrained("pen").config.base_model_name_or_path == "small"
    with pytest.raises(ValueError, match="bases 'large' and 'small' have an adapter 'ink' each; load that of one base"):
        LeFTAdapter.from_pretrained("ink")
    monkeypatch.chdir(two_bases)  # a folder of one's own beats the adapter of another base
    own = LeFTAdapter.for_model(copied.generator, base_model_name_or_path="mine")
    own.save_pretrained(two_bases / "pen")
    assert copied.load_adapter("pen").bank.adapters["pen"].config.base_model_name_or_path == "mine"
    small = FewShotGAN.from_pretrained("small").load_adapter("pen", "theirs")  # a name; a path is never one
    with pytest.raises(ValueError, match="adapter 'pen'"):
        small.load_adapter(Path("pen"))
    assert LeFTAdapter.from_pretrained(Path("pen")).config.base_model_name_or_path == "mine"


def test_the_fingerprint_of_an_embedded_base_names_it(two_bases, mobile):
    """Whatever the config calls the base: a name may go to another base."""
    large = FewShotGAN.from_pretrained("large")
    small = FewShotGAN.from_pretrained("small").generator
    for called, also in (("large", ", which its config calls 'large'"), ("small", ""), (None, "")):
        with pytest.raises(ValueError, match=rf"'small' \(fingerprint \w+\){also}, not on .*from_pretrained.'small'."):
            large.load_adapter(LeFTAdapter.for_model(small, base_model_name_or_path=called), "look")
    stranger = LeFTAdapter.for_model(tiny_mobile(9), base_model_name_or_path="small")
    with pytest.raises(ValueError, match="was trained on 'small' .fingerprint [0-9a-f]{16}., not on this generator"):
        large.load_adapter(stranger, "look")


LANDMARKS = {name: [float(i), 2.5] for i, name in enumerate(faces.LANDMARKS)}


def test_mean_landmarks_stay_with_the_base(mobile, tmp_path):
    """In `model_index.json`, in no particular order, through saving, loading and sharing, also with plain diffusers."""
    pipe = FewShotGAN(mobile, mean_landmarks=LANDMARKS)
    pipe.save_pretrained(tmp_path)
    for loaded in (
        FewShotGAN.from_pretrained(tmp_path),
        FewShotGAN.from_pipe(pipe),
        DiffusionPipeline.from_pretrained(tmp_path, trust_remote_code=True),
        copy.deepcopy(pipe),
    ):
        assert loaded.config.mean_landmarks == LANDMARKS
    assert FewShotGAN(mobile).config.mean_landmarks is None


@pytest.mark.parametrize(
    "points, message",
    [
        ({**LANDMARKS, "chin": [0, 0]}, "give a point .x, y. in px for each of left_eye_outer, "),
        ({"nose": [1, 2]}, "mean_landmarks has nose; give a point"),
        ([[1, 2]] * 5, "mean_landmarks has list; give a point"),
        ({**LANDMARKS, "nose": [1, 2, 3]}, "mean_landmarks: nose is .1, 2, 3.; give .x, y. in px"),
        ({**LANDMARKS, "nose": [1, float("nan")]}, "mean_landmarks: nose is .1, nan."),
        ({**LANDMARKS, "nose": [1, True]}, "mean_landmarks: nose is .1, True."),
        ({**LANDMARKS, "nose": "12"}, "mean_landmarks: nose is '12'"),
    ],
)
def test_landmarks_that_are_none(mobile, tmp_path, points, message):
    with pytest.raises(ValueError, match=message):
        FewShotGAN(mobile, mean_landmarks=points)
    FewShotGAN(mobile).save_pretrained(tmp_path)
    index = json.loads((tmp_path / "model_index.json").read_text(encoding="utf-8")) | {"mean_landmarks": points}
    (tmp_path / "model_index.json").write_text(json.dumps(index), encoding="utf-8")
    with pytest.raises(ValueError, match="mean_landmarks"):
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


# ------------------------------------------------------------------------------------------------------ careful details


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
        {"truncation_cutoff": 2.5},
        {"truncation_cutoff": "2"},
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


@pytest.mark.parametrize("psi", [float("nan"), float("inf"), "0.3", 5000])
def test_a_psi_that_no_call_could_draw_with_is_refused_at_once(mobile, psi):
    with pytest.raises(ValueError, match="truncation_psi=.*: give a number such as 0.7"):
        FewShotGAN(mobile, truncation_psi=psi)


def test_a_base_in_a_subfolder_has_a_name_that_loads(base_folder, tmp_path):
    shutil.copytree(base_folder, tmp_path / "repo" / "base")
    pipe = FewShotGAN.from_pretrained(tmp_path / "repo", subfolder="base")
    assert pipe.base_name == str(tmp_path / "repo" / "base")
    assert FewShotGAN.from_pretrained(pipe.base_name).bank.fingerprint() == pipe.bank.fingerprint()
