"""Videos, mixes, edits and lists of seeds from the command line: the files that they write hold the right pictures."""

import zipfile

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from fewshot_gan import FewShotGAN
from fewshot_gan.adapters import LeFTAdapter
from fewshot_gan.apps.cli.options import parse_numbers, parse_seeds, parse_strengths
from fewshot_gan.apps.cli.sources import read_latents, write_latents
from fewshot_gan.apps.videos import write_video
from fewshot_gan.cli import app


@pytest.fixture
def run(base_folder, perturbed, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)  # a fresh adapter has random factors: the same look whatever ran before
    perturbed(LeFTAdapter.for_model(FewShotGAN.from_pretrained(base_folder).generator), std=0.2).save_pretrained("look")

    def call(*args, ok=True):
        done = CliRunner().invoke(app, [*args, f"--base={base_folder}", "--num-threads=1"])
        assert (done.exit_code == 0) == ok, done.output
        return done.output

    return call


@pytest.fixture
def pipe(base_folder, run):
    pipe = FewShotGAN.from_pretrained(base_folder)
    pipe.load_adapter("look", "look")
    pipe.set_adapters([])
    return pipe


def frames_of(path):
    if path.suffix == ".mp4":
        av = pytest.importorskip("av")
        with av.open(str(path)) as container:
            rate = float(container.streams.video[0].average_rate)
            return [frame.to_image() for frame in container.decode(video=0)], rate
    with Image.open(path) as video:
        found = []
        for i in range(video.n_frames):
            video.seek(i)
            found.append(video.convert("RGB"))
        return found, 1000 / video.info["duration"]


def differing(frame, want) -> float:
    """Mean difference, of 255, of blocks of 8 px: videos of a network that draws noise are lossy."""
    small = [np.asarray(x.convert("L").resize((4, 4), Image.Resampling.BOX), float) for x in (frame, want)]
    return float(np.abs(small[0] - small[1]).mean())


@pytest.mark.parametrize("name", ["walk.mp4", "walk.gif", "walk.webp"])
def test_a_walk_is_a_video_of_its_frames(run, pipe, tmp_path, name):
    said = run("walk", "--seeds=1,5", "--frames=6", "--fps=10", f"--out={name}")
    assert "(6 frames" in said
    frames, rate = frames_of(tmp_path / name)
    assert len(frames) == 6 and rate == pytest.approx(10) and frames[0].size == (32, 32)
    wanted = list(pipe.walk(seeds=[1, 5], frames=6))
    for frame, want in zip(frames, wanted, strict=True):
        assert differing(frame, want) < 6
    assert not list(tmp_path.glob("*.tmp*"))


def test_a_walk_through_looks_and_edits(run, pipe, tmp_path):
    run("walk", "--adapter=look", "--looks", "--frames=4", "--out=looks.webp", "--seeds=3")
    frames, _ = frames_of(tmp_path / "looks.webp")
    for frame, look in zip(frames[::2], ("__base__", "look"), strict=True):
        want = pipe(latents=pipe.latents(seed=3), adapter_names=look, truncation_psi=0.7).images[0]
        assert differing(frame, want) < 6
    write_latents(tmp_path / "keys.npz", pipe.map_latents(pipe.latents(2, seed=8)))
    assert "(5 frames" in run("walk", "--latents=keys.npz", "--frames=5", "--no-loop", "--out=keys.gif", "--size=16")
    assert frames_of(tmp_path / "keys.gif")[0][0].size == (16, 16)


@pytest.mark.parametrize(("seeds", "keys"), [("3", [3]), ("3,4", [3, 4, 3]), ("1-4", [1, 2, 3, 4])])
def test_each_face_and_each_look_is_on_the_way(run, pipe, monkeypatch, seeds, keys):
    given = {}
    monkeypatch.setattr(
        FewShotGAN, "walk", lambda self, latents, **o: given.update(o, latents=latents) or iter(self(2).images)
    )
    run("walk", "--adapter=look", "--adapter=look", "--weight=1", "--weight=0.5", "--looks", f"--seeds={seeds}")
    assert torch.equal(given["latents"], pipe.latents(seeds=keys))
    assert given["looks"] == [{}, {"look": 1.0}, {"look-2": 0.5}, *[{}] * (len(keys) - 3)]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--out=walk.avi"], "is no video; give a name ending in .mp4, .gif, .webp"),
        (["--out=x.gif", "--frames=700"], "--frames 700: a .gif file holds up to 600 here"),
        (["--out=x.gif", "--looks"], "--looks walks through adapters; give --adapter"),
        (["--out=x.gif", "--seeds=1"], "a walk needs two key frames or more"),
        (["--out=x.gif", "--seeds=1-"], "--seeds 1-: give whole numbers and ranges, like 0-35,42"),
        (["--out=x.gif", "--seeds=1", "--latents=x.npz"], "--seeds and --latents both say what is drawn"),
        (["--out=x.gif", "--edit=smile"], "--edit smile: give each direction once, with its strength"),
        (["--out=x.gif", "--edit=smile=1"], "no directions ship with this base"),
        (["--out=x.gif", f"--seeds=0,{2**63}"], f"--seeds 0,{2**63}: give seeds below 2^63"),
    ],
)
def test_walks_that_are_refused(run, tmp_path, options, message):
    assert message in run("walk", *options, ok=False)
    assert not list(tmp_path.glob("x.*")) and not list(tmp_path.glob("walk.*"))


def test_without_pyav(run, monkeypatch):
    monkeypatch.setattr("fewshot_gan.apps.videos.find_spec", lambda name: None)
    assert "PyAV writes .mp4 files: pip install 'fewshot_gan[video]'" in run("walk", ok=False)


def test_a_video_without_frames_leaves_no_file(tmp_path):
    for name in ("a.gif", "a.webp"):
        with pytest.raises(ValueError, match="a video needs a frame or more"):
            write_video(iter(()), tmp_path / name)
    assert not list(tmp_path.iterdir())


def test_mix(run, pipe, tmp_path):
    run("mix", "--rows=1-2", "--cols=10,12,14", "--layers=3", "--adapter=look", "--out=mix.png")
    grid = np.asarray(Image.open(tmp_path / "mix.png").convert("RGB"))
    assert grid.shape == (3 * 36 - 4, 4 * 36 - 4, 3) and (grid[:32, :32] == 255).all()
    pipe.set_adapters("look")
    rows, columns = pipe.latents(seeds=[1, 2]), pipe.latents(seeds=[10, 12, 14])
    wanted = pipe.mix_styles(rows, columns, crossover=3).images
    for r in range(2):
        for c in range(3):
            tile = grid[36 * (r + 1) :, 36 * (c + 1) :][:32, :32].astype(int)
            assert np.abs(tile - np.asarray(wanted[3 * r + c], int)).max() <= 1
    head = np.asarray(pipe(latents=columns, truncation_psi=0.7).images[1], int)
    assert np.abs(grid[:32, 72:104].astype(int) - head).max() <= 1
    most = pipe.generator.num_ws
    message = f"--layers 64: this base has {most} layers; give 0 to {most}"
    assert message in run("mix", "--layers=64", "--out=x.png", ok=False)
    for command in ("mix", "directions"):
        said = run(command, "--out=x.bmp", ok=False)
        assert "--out x.bmp is no picture file; give a name ending in .png" in said and "--separate" not in said
    assert ".webp, or --separate, or --format" in run("generate", "--out=x.bmp", ok=False)


def test_seeds_truncations_and_edits_of_generate(run, pipe, tmp_path):
    run("generate", "--seeds=3,8-9", "--separate", "--out=three")
    for i, seed in enumerate((3, 8, 9)):
        want = np.asarray(pipe(1, seed=seed).images[0], int)
        assert np.abs(np.asarray(Image.open(sorted((tmp_path / "three").glob("*.png"))[i]), int) - want).max() <= 1
    run("generate", "--num-images=2", "--truncations=0,1", "--out=psi.png")
    grid = np.asarray(Image.open(tmp_path / "psi.png"), int)
    assert grid.shape[:2] == (68, 68)
    assert np.abs(grid[:32, :32] - grid[36:, :32]).max() <= 1  # the mean face twice
    assert np.abs(grid[36:, 36:] - np.asarray(pipe(2, seed=0, truncation_psi=1.0).images[1], int)).max() <= 1
    run("directions", "--method=ganspace", "--num=3", "--save=own.safetensors", "--out=own.png")
    assert Image.open(tmp_path / "own.png").size == (5 * 36 - 4, 3 * 36 - 4)
    known = pipe.directions("own.safetensors")
    middle = np.asarray(Image.open(tmp_path / "own.png"), int)[36:68, 72:104]
    assert np.abs(middle - np.asarray(pipe(latents=pipe.edit(pipe.latents(), {}, known)).images[0], int)).max() <= 1
    for options, message in (
        (["--truncations=0,x"], "--truncations 0,x: give numbers joined by commas"),
        (["--truncations=0,1", "--psi=0.5"], "--truncations makes a grid of a look"),
        (["--edit=smile=1", "--edit=smile=2"], "--edit smile=2: give each direction once"),
        (["--seeds=1,2", "--num-images=9"], "--num-images 9: --seeds says how many pictures there are; give one"),
        (["--latents=x.npz", "--num-images=4"], "--num-images 4: --latents says how many pictures there are; give one"),
    ):
        assert message in run("generate", "--out=x.png", *options, ok=False)
    for options in ([], ["--method=own.safetensors"]):
        assert "--num 5: only --method sefa or ganspace" in run("directions", "--num=5", *options, ok=False)
    run("generate", "--num-images=1", "--truncations=0.5", "--adapter=look", "--weight=0", "--out=off.png")
    want = np.asarray(pipe(1, seed=0, truncation_psi=0.5, adapter_names="__base__").images[0], int)
    assert np.abs(np.asarray(Image.open(tmp_path / "off.png"), int) - want).max() <= 1


def test_edits_of_a_base_that_has_directions(run, pipe, tmp_path, monkeypatch):
    pipe.directions("ganspace", num=2).save(tmp_path / "own.safetensors")
    monkeypatch.setattr("fewshot_gan.pipeline_latents.embedded_directions", lambda mark: tmp_path / "own.safetensors")
    run("generate", "--num-images=1", "--edit=0=2", "--edit=1=-1", "--out=edited.png", "--seed=4")
    want = pipe(latents=pipe.edit(pipe.latents(seed=4), {"0": 2, "1": -1})).images[0]
    assert np.abs(np.asarray(Image.open(tmp_path / "edited.png"), int) - np.asarray(want, int)).max() <= 1

    def drawn(*options, side=slice(None)):
        run("generate", "--seeds=4", "--edit=0=1", "--adapter=look", "--out=look.png", *options)
        return np.asarray(Image.open(tmp_path / "look.png"), int)[side]

    latents = pipe.edit(pipe.latents(seed=4), {"0": 1})  # of the base
    base, look = (np.asarray(pipe(latents=latents, adapter_names=name).images[0], int) for name in ("__base__", "look"))
    pipe.set_adapters("look")
    own = np.asarray(pipe(latents=pipe.edit(pipe.latents(seed=4), {"0": 1})).images[0], int)  # of the look
    assert min(np.abs(a - b).max() for a, b in ((base, look), (base, own), (look, own))) > 1
    for found, want in (
        (drawn("--weight=0"), base),
        (drawn(), own),
        (drawn("--compare", side=slice(32)), base),
        (drawn("--compare", side=slice(36, 68)), look),
        (drawn("--interpolate=2")[:, :32], base),
        (drawn("--interpolate=2")[:, 36:], look),
    ):
        assert np.abs(found - want).max() <= 1


# --------------------------------------------------------------------------------------------------------------- inputs


def test_texts_of_options():
    assert parse_seeds("0-3,42") == [0, 1, 2, 3, 42] and parse_seeds(" 7 ") == [7]
    assert parse_seeds(f"{10**18},{2**63 - 2}-{2**63 - 1}") == [10**18, 2**63 - 2, 2**63 - 1]
    for text in ("", "a", "3-1", "1-2-3", "-5", "0-10000", "1,", "٣", str(2**63), f"0-{2**63}", "9" * 5000):
        with pytest.raises(ValueError, match="--seeds"):
            parse_seeds(text)
    assert parse_numbers("0,0.5,-1", "--x", -1, 1) == [0, 0.5, -1]
    for text in ("", "nan", "2"):
        with pytest.raises(ValueError, match="--x"):
            parse_numbers(text, "--x", -1, 1)
    assert parse_strengths(["smile=1.5", "hair length=-2"]) == {"smile": 1.5, "hair length": -2.0}


@pytest.mark.parametrize("name", ["a.safetensors", "a.npz", "a.npy"])
def test_latents_in_files(tmp_path, name):
    w = torch.randn(2, 5, 16, generator=torch.Generator().manual_seed(1))
    write_latents(tmp_path / name, w)
    assert torch.equal(read_latents(tmp_path / name), w)


def test_latents_of_others(tmp_path):
    w = np.random.default_rng(0).normal(size=(1, 14, 512))
    np.savez(tmp_path / "projected_w.npz", w=w)  # as NVIDIA's projector writes it
    torch.testing.assert_close(read_latents(tmp_path / "projected_w.npz"), torch.from_numpy(w).float())
    np.savez(tmp_path / "two.npz", w=w, z=w)
    np.savez(tmp_path / "other.npz", images=w)
    np.save(tmp_path / "objects.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)
    np.save(tmp_path / "flat.npy", np.zeros(512))
    (tmp_path / "broken.npz").write_bytes(b"PK\x03\x04nothing")
    with zipfile.ZipFile(tmp_path / "large.npz", "w", zipfile.ZIP_DEFLATED) as archive:  # a bomb
        with archive.open("w.npy", "w", force_zip64=True) as file:
            for _ in range(1100):
                file.write(bytes(2**20))
    for name, message in (
        ("two.npz", "it holds w, z; give one array named"),
        ("other.npz", "it holds images; give one array named"),
        ("objects.npy", "holds no latents"),
        ("flat.npy", "are a torch tensor: z"),
        ("broken.npz", "holds no latents"),
        ("large.npz", "holds no latents"),
    ):
        with pytest.raises(ValueError, match=message):
            read_latents(tmp_path / name)
    with pytest.raises(FileNotFoundError):
        read_latents(tmp_path / "missing.npz")


def test_the_name_of_an_array_says_its_space(run, pipe, tmp_path):
    w = torch.randn(2, 16, generator=torch.Generator().manual_seed(1))
    for name in ("w", "ws", "z", "latents"):
        np.savez(tmp_path / f"{name}.npz", **{name: w.numpy()})
    for name in ("w", "ws"):
        assert torch.equal(read_latents(tmp_path / f"{name}.npz", 5), w[:, None].expand(-1, 5, -1))
    for name in ("z", "latents"):
        assert torch.equal(read_latents(tmp_path / f"{name}.npz", 5), w)
    with pytest.raises(ValueError, match="holds w, and this base draws from z alone; give z"):
        read_latents(tmp_path / "w.npz")
    np.savez(tmp_path / "z.npz", z=w[None].numpy())
    with pytest.raises(ValueError, match=r"holds z of shape \(1, 2, 16\); give z \[N, z_dim\]"):
        read_latents(tmp_path / "z.npz", 5)
    run("generate", "--latents=w.npz", "--out=w.png", "--psi=0.5")
    grid = np.asarray(Image.open(tmp_path / "w.png"), int)
    for i, want in enumerate(pipe(latents=w, latent_space="w", truncation_psi=0.5).images):
        assert np.abs(grid[:, 36 * i :][:32, :32] - np.asarray(want, int)).max() <= 1
