"""Folders of many pictures: those of the pipeline in every format, whatever is killed, and however many draw them."""

import io
import json
import os
import subprocess
import sys
import tarfile
import weakref
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from helpers.networks import tiny_mobile
from PIL import Image
from typer.testing import CliRunner

from fewshot_gan import pipeline
from fewshot_gan.adapters import LeFTAdapter
from fewshot_gan.apps import generation
from fewshot_gan.apps.generation import MANIFEST, usual_batch, write_pictures
from fewshot_gan.cli import app
from fewshot_gan.data import grids
from fewshot_gan.data.grids import shrink
from fewshot_gan.models import BigGANGenerator, SNGANGenerator
from fewshot_gan.pipeline import FewShotGAN

FORMATS = ("png", "webdataset", "parquet")
ENV = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}


@pytest.fixture(scope="module")
def adapter_folder(base_folder, tmp_path_factory):
    folder = tmp_path_factory.mktemp("adapters") / "ink"
    torch.manual_seed(0)
    adapter = LeFTAdapter.for_model(FewShotGAN.from_pretrained(base_folder).generator, rank=2)
    with torch.no_grad():
        for p in adapter.parameters():
            p.add_(torch.randn_like(p) * 0.1)
    adapter.save_pretrained(folder)
    return folder


def settings(file_format):
    """Shards of 4 where there are shards; batches of 2."""
    return {"file_format": file_format, "shard_size": None if file_format == "png" else 4, "batch_size": 2}


def rows(folder):
    """`(name, pixels, facts or None)` of all pictures in a folder of any format, file by file."""
    from pyarrow import parquet

    found = []
    for path in sorted(p for p in folder.iterdir() if p.name != MANIFEST):
        if path.suffix == ".png":
            found.append((path.name, path.read_bytes(), None))
        elif path.suffix == ".tar":
            with tarfile.open(path) as tar:
                files = [(member.name, tar.extractfile(member).read()) for member in tar]
            for (name, png), (other, facts) in zip(files[::2], files[1::2], strict=True):
                assert other == name.replace(".png", ".json")
                found.append((name, png, json.loads(facts)))
        else:
            for row in parquet.read_table(path).to_pylist():
                image = row.pop("image")
                found.append((image["path"], image["bytes"], row))
    return [(name, np.asarray(Image.open(io.BytesIO(png))), facts) for name, png, facts in found]


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def pixels(images):
    return np.array([np.asarray(image) for image in images])


# ------------------------------------------------------------------------------------------------------------- stream


@pytest.mark.parametrize("make", [tiny_mobile, lambda: SNGANGenerator(8, 6, 16).eval()])
def test_a_stream_gives_the_pipelines_pictures(make):
    pipe = FewShotGAN(make())
    options = {"truncation_psi": 0.8}  # without w: two draws per latent
    options |= {"noise_mode": "random"} if hasattr(pipe.generator, "mapping") else {}
    whole = pipe(10, seed=3, batch_size=4, **options)
    source = torch.Generator().manual_seed(3)
    parts = [*pipe.stream(4, generator=source, batch_size=4, **options)]
    parts += pipe.stream(2, skip=2, generator=source, batch_size=4, **options)
    assert torch.equal(torch.cat([p.latents for p in parts]), whole.latents[[0, 1, 2, 3, 6, 7]])
    assert [len(p.images) for p in parts] == [4, 2]
    drawn = pixels(im for p in parts for im in p.images).astype(int)
    # 1: rows of another batch may round to the neighbouring grey level
    assert np.abs(drawn - pixels(whole.images)[[0, 1, 2, 3, 6, 7]]).max() <= 1
    again = [*pipe.stream(10, seed=3, batch_size=4, **options)]
    assert np.array_equal(pixels(im for p in again for im in p.images), pixels(whole.images))  # the same batches


def test_a_stream_takes_an_array_of_classes():
    pipe = FewShotGAN(BigGANGenerator((16, 16, 8), 1, chunk_dim=3, shared_dim=4, num_classes=4).eval())
    parts = [*pipe.stream(4, seed=3, class_labels=np.arange(4), batch_size=2)]
    want = pipe(4, seed=3, class_labels=[0, 1, 2, 3], batch_size=2).images
    assert np.array_equal(pixels(image for part in parts for image in part.images), pixels(want))


def test_a_stream_takes_what_is_given_per_image(pipe):
    latents = torch.randn(5, 16, generator=torch.Generator().manual_seed(1))
    pipe.load_adapter(LeFTAdapter.for_model(pipe.generator, rank=2), "ink")
    options = {"seed": 2, "noise_mode": "random", "batch_size": 3}
    looks = ["__base__", "ink", {"ink": 0.5}, None, "ink"]
    whole = pipe(latents=latents, adapter_names=looks, **options)
    (part,) = pipe.stream(2, skip=3, latents=latents[3:], adapter_names=looks[3:], **options)
    # 1: rows of another batch may round to the neighbouring grey level
    assert np.abs(pixels(part.images).astype(int) - pixels(whole.images)[3:]).max() <= 1
    for bad in ({"num_images": 0}, {"num_images": 2, "skip": -1}, {"num_images": 2, "batch_size": 0.5}):
        with pytest.raises(ValueError, match="give a whole number"):
            next(pipe.stream(**bad))
    with pytest.raises(ValueError, match="5 entries for 2 images"):
        next(pipe.stream(2, latents=latents))
    with pytest.raises(ValueError, match="seed or generator"):
        next(pipe.stream(2, seed=1, generator=torch.Generator()))
    with pytest.raises(ValueError, match="one generator for all"):
        next(pipe.stream(2, generator=[torch.Generator()] * 2))


def test_tiles_and_strips_are_the_pipelines_pictures_reduced(pipe, perturbed):
    pipe.load_adapter(perturbed(LeFTAdapter.for_model(pipe.generator, rank=2)), "ink")
    options = {"seed": 4, "noise_mode": "random", "batch_size": 2}

    def small(images):
        return pixels(shrink(image, 16) for image in images).astype(int)

    tiles = generation.draw_tiles(pipe, 5, 16, **options)
    assert np.array_equal(pixels(tiles), small(pipe(5, **options).images))
    latents = torch.randn(3, 16, generator=torch.Generator().manual_seed(1))
    for given in ({}, {"latents": latents}):
        strips = generation.draw_strips(pipe, "__base__", "ink", 4, 3, 16, **given, **options)
        want = small(pipe.interpolate("__base__", "ink", 4, num_images=3, **given, **options).images)
        # 1: rows of another batch may round to the neighbouring grey level
        assert pixels(strips).shape == (12, 16, 16, 3) and np.abs(pixels(strips) - want).max() <= 1


def test_strips_of_classes():
    pipe = FewShotGAN(BigGANGenerator((16, 16, 8), 1, chunk_dim=3, shared_dim=4, num_classes=3).eval())
    options = {"seed": 4, "class_labels": [2, 0]}
    strips = generation.draw_strips(pipe, "__base__", "__base__", 2, 2, 64, **options)
    want = pixels(pipe.interpolate("__base__", "__base__", 2, num_images=2, **options).images).astype(int)
    assert np.abs(pixels(strips) - want).max() <= 1
    with pytest.raises(ValueError, match="labels"):
        generation.draw_strips(pipe, "__base__", "__base__", 2, 3, 64, **options)


@pytest.mark.parametrize("draw", ["tiles", "strips"])
def test_a_grid_holds_one_batch_at_full_size(pipe, monkeypatch, draw):
    """A thousand pictures of 1024 px are 3 GB; their tiles of 512 px are a quarter of that."""
    full, most, to_pil = [], [], pipeline._as_output_type

    def counted(images, output_type):
        pictures = to_pil(images, output_type)
        full.extend(map(weakref.ref, pictures))
        most.append(sum(picture() is not None for picture in full))
        return pictures

    monkeypatch.setattr(pipeline, "_as_output_type", counted)
    if draw == "tiles":
        generation.draw_tiles(pipe, 12, 16, seed=0, batch_size=2)
        assert max(most) <= 4 and len(most) == 6  # the batch that is reduced, and the next one
    else:
        pipe.load_adapter(LeFTAdapter.for_model(pipe.generator, rank=2), "ink")
        generation.draw_strips(pipe, "__base__", "ink", 3, 5, 16, seed=0)
        assert max(most) <= 6 and len(most) == 5


# ------------------------------------------------------------------------------------------------------------ formats


@pytest.mark.parametrize("file_format", FORMATS)
def test_every_format_holds_the_pipelines_pictures(pipe, tmp_path, file_format):
    want = pipe(10, seed=5, batch_size=2, noise_mode="random").images
    run = {"seed": 5, "noise_mode": "random", **settings(file_format)}
    assert write_pictures(pipe, tmp_path / "out", 10, **run) == 10
    found = rows(tmp_path / "out")
    assert [name for name, _, _ in found] == [f"{i:05d}.png" for i in range(10)]
    assert np.array_equal([image for _, image, _ in found], pixels(want))  # PNG is lossless, the batches are the same
    assert len({image.tobytes() for _, image, _ in found}) == 10
    if file_format != "png":
        of_base = {"look": "{}", "adapter": "", "caption": "base"}
        assert [facts for _, _, facts in found] == [{"index": i, "seed": 5, **of_base} for i in range(10)]
        shards = [f"{i:05d}{found_suffix(file_format)}" for i in range(3)]
        assert sorted(os.listdir(tmp_path / "out")) == [MANIFEST, *shards]
    first = contents(tmp_path / "out")
    assert write_pictures(pipe, tmp_path / "out", 10, **run) == 0 and contents(tmp_path / "out") == first


def found_suffix(file_format):
    return "." + generation.SUFFIX[file_format]


@pytest.mark.parametrize("file_format", FORMATS)
def test_the_datasets_library_reads_them(pipe, tmp_path, file_format):
    from datasets import load_dataset

    want = pixels(pipe(5, seed=5, batch_size=2).images)
    write_pictures(pipe, tmp_path / "out", 5, seed=5, **settings(file_format))
    kind = {"png": "imagefolder"}.get(file_format, file_format)
    place = {"data_dir": str(tmp_path / "out")} if file_format == "png" else {}
    place = place or {"data_files": str(tmp_path / "out" / f"*{found_suffix(file_format)}")}
    for table in (
        load_dataset(kind, split="train", cache_dir=str(tmp_path / "cache"), **place),
        load_dataset(str(tmp_path / "out"), split="train", cache_dir=str(tmp_path / "cache")),
    ):
        column = "png" if file_format == "webdataset" else "image"
        assert np.array_equal(pixels(row[column] for row in table), want)
        if file_format == "parquet":
            assert table["index"][:] == [0, 1, 2, 3, 4] and set(table["seed"]) == {5}
            assert set(table["look"]) == {"{}"} and set(table["adapter"]) == {""} and set(table["caption"]) == {"base"}
            assert table.features["caption"].dtype == "string"
        if file_format == "webdataset":
            assert [row["json"]["index"] for row in table] == [0, 1, 2, 3, 4]
            assert {row["json"]["caption"] for row in table} == {"base"}


def test_numbers_of_numpy_and_torch(pipe, tmp_path):
    pipe.load_adapter(LeFTAdapter.for_model(pipe.generator), "ink")
    half, schedule = np.float32(0.5), {np.int64(4): np.float32(0.25), "fine": torch.tensor(0.5)}
    run = {**settings("webdataset"), "shard_size": np.int64(4), "truncation_psi": np.float32(0.5)}
    write_pictures(pipe, tmp_path / "a", np.int64(2), looks={"a-": {"ink": half}, "b-": {"ink": schedule}}, **run)
    record = json.loads((tmp_path / "a" / MANIFEST).read_text(encoding="utf-8"))
    assert record["looks"] == {"a-": {"ink": 0.5}, "b-": {"ink": {"4": 0.25, "fine": 0.5}}}
    assert (record["truncation_psi"], record["shard_size"]) == (0.5, 4)
    told = [facts["look"] for _, _, facts in rows(tmp_path / "a")]
    assert told == ['{"ink": 0.5}'] * 2 + ['{"ink": {"4": 0.25, "fine": 0.5}}'] * 2
    pipe.bank.activate({"ink": half})
    assert write_pictures(pipe, tmp_path / "b", 1, batch_size=1) == 1


@pytest.mark.parametrize("file_format", ["webdataset", "parquet"])
def test_rows_tell_the_seed_of_their_own_picture(base_folder, tmp_path, file_format):
    def told(out, *more):
        command = ["generate", "--base", base_folder, "--format", file_format, "--out", tmp_path / out, *more]
        result = CliRunner().invoke(app, [str(word) for word in command])
        assert result.exit_code == 0, result.stderr
        return [facts["seed"] for _, _, facts in rows(tmp_path / out)]

    np.save(tmp_path / "z.npy", np.ones((2, 16), np.float32))
    given = ["--latents", tmp_path / "z.npy"]
    assert told("a", "--seeds", "5,9,13") == [5, 9, 13]
    assert told("b", *given, "--seed", 42) == [None, None]
    assert told("b", *given, "--seed", 43) == [None, None]  # it goes on, since it draws the same
    assert told("c", "--num-images", 2, "--seed", 3) == [3, 3]
    changed = CliRunner().invoke(
        app,
        [
            "generate",
            *map(str, ("--base", base_folder, "--seeds", "5,9,14", "--format", file_format, "--out", tmp_path / "a")),
        ],
    )
    assert changed.exit_code == 2 and "latents was" in changed.output


@pytest.mark.parametrize("file_format", ["webdataset", "parquet"])
def test_rows_tell_look_adapter_and_caption(pipe, tmp_path, file_format):
    words = LeFTAdapter.for_model(pipe.generator, training={"text": "pencil drawing"})
    pipe.load_adapter(LeFTAdapter.for_model(pipe.generator), "ink").load_adapter(words, "a-1")
    pipe.base_name = "somewhere/faces"
    looks = {
        "base-": {},
        "ink-": {"ink": 1.0},
        "words-": {"a-1": 0.5},
        "both-": {"ink": 0.25, "a-1": {"coarse": 0.0, 16: 1.0}},
        "off-": {"ink": 0.0},
    }
    write_pictures(pipe, tmp_path / "a", 3, looks=looks, **settings(file_format))
    told = {name.rsplit("-", 1)[0] + "-": facts for name, _, facts in rows(tmp_path / "a")}
    told = {prefix: [facts[key] for key in ("look", "adapter", "caption")] for prefix, facts in told.items()}
    assert told == {
        "base-": ["{}", "", "somewhere/faces"],
        "ink-": ['{"ink": 1.0}', "ink", "ink"],
        "words-": ['{"a-1": 0.5}', "a-1", "pencil drawing 0.5"],
        "both-": ['{"ink": 0.25, "a-1": {"coarse": 0.0, "16": 1.0}}', "ink + a-1", "ink 0.25 + pencil drawing"],
        "off-": ['{"ink": 0.0}', "", "somewhere/faces"],
    }
    assert json.loads(told["ink-"][0]) == looks["ink-"]
    pipe.set_adapters("ink", 0.5)  # the look that acts, without a list of looks
    write_pictures(pipe, tmp_path / "b", 1, **settings(file_format))
    ((_, _, facts),) = rows(tmp_path / "b")
    assert (facts["look"], facts["adapter"], facts["caption"]) == ('{"ink": 0.5}', "ink", "ink 0.5")
    record = json.loads((tmp_path / "b" / MANIFEST).read_text(encoding="utf-8"))
    assert record["columns"] == ["index", "seed", "look", "adapter", "caption"]
    record.pop("columns")  # a folder that an older version began, with other columns
    (tmp_path / "b" / MANIFEST).write_text(json.dumps(record), encoding="utf-8")
    with pytest.raises(ValueError, match="pictures of another run: columns was None, now .'index', 'seed', 'look'"):
        write_pictures(pipe, tmp_path / "b", 1, **settings(file_format))
    write_pictures(pipe, tmp_path / "c", 1, batch_size=2)
    record = json.loads((tmp_path / "c" / MANIFEST).read_text(encoding="utf-8"))
    assert record.pop("columns") is None  # pictures alone have no columns: such a folder goes on
    (tmp_path / "c" / MANIFEST).write_text(json.dumps(record), encoding="utf-8")
    assert write_pictures(pipe, tmp_path / "c", 1, batch_size=2) == 0


def test_classes_psi_and_many_digits(tmp_path, monkeypatch):
    torch.manual_seed(0)
    pipe = FewShotGAN(BigGANGenerator((16, 16, 8), 1, chunk_dim=3, shared_dim=4, num_classes=3).eval())
    labels = [0, 1, 2, 1, 0]
    write_pictures(pipe, tmp_path / "a", 5, class_labels=labels, truncation_psi=0.5, **settings("parquet"))
    want = pipe(5, seed=0, class_labels=labels, truncation_psi=0.5, batch_size=2).images
    found = rows(tmp_path / "a")
    assert np.array_equal([image for _, image, _ in found], pixels(want))
    assert [facts["label"] for _, _, facts in found] == labels
    write_pictures(pipe, tmp_path / "b", 2, class_labels=2, **settings("webdataset"))
    assert [facts["label"] for _, _, facts in rows(tmp_path / "b")] == [2, 2]
    assert json.loads((tmp_path / "b" / MANIFEST).read_text(encoding="utf-8"))["class_labels"] == 2
    with pytest.raises(ValueError, match="class_labels was 2, now 1"):
        write_pictures(pipe, tmp_path / "b", 2, class_labels=1, **settings("webdataset"))

    drawn = []

    def stop(target, write):
        drawn.append(target.name)
        raise OSError("enough")

    monkeypatch.setattr(generation, "replace_file", lambda t, w: stop(t, w) if t.name != MANIFEST else w(t))
    (tmp_path / "c").mkdir()
    with pytest.raises(OSError, match="enough"):
        write_pictures(pipe, tmp_path / "c", 100_001, class_labels=0)
    assert drawn[0] == "000000.png"  # so that names sort as numbers do


# ------------------------------------------------------------------------------------------------------------- resume


@pytest.mark.parametrize("file_format", FORMATS)
def test_a_failed_run_goes_on(pipe, tmp_path, monkeypatch, file_format):
    run = {"seed": 7, **settings(file_format)}
    write_pictures(pipe, tmp_path / "whole", 11, **run)
    stream = FewShotGAN.stream

    def failing(self, *args, **kwargs):
        for i, batch in enumerate(stream(self, *args, **kwargs)):
            if kwargs["skip"] + self.draws > 3 or i > 1:
                raise OSError("disk full")
            self.draws += 1
            yield batch

    pipe.draws = 0
    with monkeypatch.context() as patch:
        patch.setattr(FewShotGAN, "stream", failing)
        with pytest.raises(OSError, match="disk full"):
            write_pictures(pipe, tmp_path / "cut", 11, **run)
    there = {p.name for p in (tmp_path / "cut").iterdir()}
    assert MANIFEST in there and 1 < len(there) < len(contents(tmp_path / "whole"))
    assert there <= contents(tmp_path / "whole").keys()  # nothing half-written
    left = write_pictures(pipe, tmp_path / "cut", 11, **run)
    assert 0 < left < 11 and contents(tmp_path / "cut") == contents(tmp_path / "whole")


KILLED = """
import os, signal, sys, threading
import fewshot_gan.utils.files
from fewshot_gan.cli import app
replace, done, one_by_one = os.replace, [], threading.Lock()  # several threads write pictures
def killing(source, target):
    with one_by_one:
        if len(done) == 3:  # the manifest and two others are there
            os.kill(os.getpid(), signal.SIGKILL)
        replace(source, target)
        done.append(target)
fewshot_gan.utils.files.os.replace = killing
app()
"""


@pytest.mark.parametrize("file_format", ["png", "webdataset"])
def test_a_killed_run_goes_on(base_folder, tmp_path, file_format):
    shards = [] if file_format == "png" else ["--shard-size", "2"]
    command = ["generate", "--base", base_folder, "--num-images", "9", "--format", file_format, *shards]
    command = [*map(str, command), "--batch-size", "2", "--out"]
    assert CliRunner().invoke(app, [*command, str(tmp_path / "whole")]).exit_code == 0
    killed = subprocess.run([sys.executable, "-c", KILLED, *command, str(tmp_path / "cut")], env=ENV)
    assert killed.returncode == -9
    there = {p.name for p in (tmp_path / "cut").iterdir()}
    assert len(there & contents(tmp_path / "whole").keys()) >= 3 and there - contents(tmp_path / "whole").keys()
    (tmp_path / "cut" / sorted(there)[-1]).write_bytes(b"")  # and the machine went down with it
    result = CliRunner().invoke(app, [*command, str(tmp_path / "cut")])
    assert result.exit_code == 0 and "(9 pictures, " in result.stdout
    assert contents(tmp_path / "cut") == contents(tmp_path / "whole")


def test_the_temporary_file_of_a_living_process_stays(pipe, tmp_path):
    write_pictures(pipe, tmp_path, 1)
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    alive = tmp_path / f".{os.getppid()}.0-00000.png"
    left = [tmp_path / f".{pid}.0-00000.png" for pid in (dead.pid, os.getpid())]
    for path in (alive, *left):
        path.write_bytes(b"half")
    assert write_pictures(pipe, tmp_path, 1) == 0
    assert alive.exists() and not any(path.exists() for path in left)


# ---------------------------------------------------------------------------------------------------------- processes


@pytest.mark.parametrize("file_format", ["png", "parquet"])
def test_two_processes_share_the_work(base_folder, adapter_folder, tmp_path, file_format):
    shards = [] if file_format == "png" else ["--shard-size", "2"]
    command = ["generate", "--base", base_folder, "--adapter", adapter_folder, "--num-images", 37, "--seed", 4]
    command = [str(a) for a in (*command, "--format", file_format, *shards, "--batch-size", 2, "--out")]
    assert CliRunner().invoke(app, [*command, str(tmp_path / "one")]).exit_code == 0
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    launch = [*launch, "-m", "fewshot_gan.cli", *command, str(tmp_path / "two")]
    done = subprocess.run(launch, env={**ENV, "ACCELERATE_USE_CPU": "true"}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("(37 pictures, ") == 1 and "19/19" in done.stderr  # the bar of the main process alone
    assert contents(tmp_path / "two") == contents(tmp_path / "one")


def test_several_processes_need_accelerate(base_folder, tmp_path):
    code = """
import os, sys
sys.modules["accelerate"] = None
from fewshot_gan.cli import app
for os.environ["WORLD_SIZE"] in ("2", "1"):
    try:
        app()
    except SystemExit as end:
        wanted = {"2": (2, False), "1": (0, True)}[os.environ["WORLD_SIZE"]]
        assert (end.code or 0, os.path.exists(sys.argv[-1])) == wanted
"""
    command = ["generate", "--base", base_folder, "--num-images", 2, "--format", "png", "--out", tmp_path / "out"]
    done = subprocess.run([sys.executable, "-c", code, *map(str, command)], env=ENV, capture_output=True, text=True)
    assert done.returncode == 0 and len(list((tmp_path / "out").glob("*.png"))) == 2, done.stderr
    assert done.stderr.startswith("error: WORLD_SIZE=2: several processes need the accelerate package")
    assert done.stderr.count("error:") == 1


# -------------------------------------------------------------------------------------------------------- command line


def test_the_command_line_takes_every_option(base_folder, adapter_folder, tmp_path):
    def generate(out, *more):
        command = ["generate", "--base", base_folder, "--batch-size", 2, "--out", tmp_path / out, *more]
        result = CliRunner().invoke(app, [str(a) for a in command], catch_exceptions=False)
        assert result.exit_code == 0, result.stderr
        return rows(tmp_path / out)

    pipe = FewShotGAN.from_pretrained(base_folder).load_adapter(adapter_folder, "ink")
    pipe.set_adapters("ink", {"coarse": 0, 16: 0.5})
    options = ["--psi", 0.4, "--noise-mode", "none", "--seed", 9, "--num-images", 5, "--format", "webdataset"]
    found = generate("a", "--adapter", adapter_folder, "--weight", "coarse:0,16:0.5", *options)
    want = pipe(5, seed=9, truncation_psi=0.4, noise_mode="none", batch_size=2).images
    assert np.array_equal([image for _, image, _ in found], pixels(want))
    record = json.loads((tmp_path / "a" / MANIFEST).read_text(encoding="utf-8"))
    assert record["looks"] == {"": {"ink": {"coarse": 0.0, "16": 0.5}}} and str(tmp_path) not in str(record)
    assert record["base_fingerprint"] == pipe.bank.fingerprint()

    more = ["--adapter", adapter_folder, "--compare", "--num-images", 3]
    found = generate("b", *more, "--format", "parquet")
    assert sorted(p.name for p in (tmp_path / "b").glob("*.parquet")) == ["base-00000.parquet", "ink-00000.parquet"]
    for look, part in (("base", found[:3]), ("ink", found[3:])):
        assert [name for name, _, _ in part] == [f"{look}-{i:05d}.png" for i in range(3)]
        want = pipe(3, seed=0, adapter_names={"base": "__base__"}.get(look, look), batch_size=2).images
        assert np.array_equal([image for _, image, _ in part], pixels(want))
    separate = generate("c", *more, "--separate")
    assert [(n, i.tobytes()) for n, i, _ in separate] == [(n, i.tobytes()) for n, i, _ in found]
    assert MANIFEST not in os.listdir(tmp_path / "c")

    from safetensors.torch import save_file

    latents = torch.randn(3, 16, generator=torch.Generator().manual_seed(1))
    save_file({"latents": latents}, tmp_path / "mine.safetensors")
    found = generate("d", "--latents", tmp_path / "mine.safetensors", "--format", "png")
    pipe.set_adapters([])
    want = pipe(latents=latents, seed=0, batch_size=2).images
    assert np.array_equal([image for _, image, _ in found], pixels(want))


def test_the_command_line_reduces_pictures(base_folder, adapter_folder, tmp_path, monkeypatch):
    def generate(out, *more):
        command = ["generate", "--base", base_folder, "--adapter", adapter_folder, "--out", tmp_path / out, *more]
        result = CliRunner().invoke(app, [str(a) for a in command])
        assert result.exit_code == 0, result.stderr

    pipe = FewShotGAN.from_pretrained(base_folder).load_adapter(adapter_folder, "ink")
    want = pipe(3, seed=0).images
    small = pixels(shrink(image, 16) for image in want)
    generate("small.png", "--num-images", 3, "--size", 16)
    assert np.asarray(Image.open(tmp_path / "small.png")).shape == (2 * 16 + grids.GAP, 2 * 16 + grids.GAP, 3)
    generate("strip.png", "--num-images", 1, "--size", 16, "--interpolate", 3)
    assert Image.open(tmp_path / "strip.png").size == (3 * 16 + 2 * grids.GAP, 16)
    generate("folder", "--num-images", 3, "--size", 16, "--separate")
    assert np.array_equal([image for _, image, _ in rows(tmp_path / "folder")], small)
    generate("tars", "--num-images", 3, "--size", 16, "--format", "webdataset")
    assert np.array_equal([image for _, image, _ in rows(tmp_path / "tars")], small)
    assert json.loads((tmp_path / "tars" / MANIFEST).read_text(encoding="utf-8"))["size"] == 16
    monkeypatch.setattr(grids, "TILE", 24)  # as 512 px is for a base of 1024 px
    for out, more, side in (("a.png", (), 24), ("b.png", ("--size", 32), 32)):
        generate(out, "--num-images", 3, *more)
        tiles = [shrink(image, side) for image in want]
        assert Image.open(tmp_path / out).tobytes() == grids.make_grid(tiles, 2, side).tobytes()
    generate("full", "--num-images", 3, "--separate")
    assert np.array_equal([image for _, image, _ in rows(tmp_path / "full")], pixels(want))


@pytest.mark.parametrize("side, pictures", [(16, 1024), (256, 1024), (512, 1024), (1024, 256), (2048, 64), (2**16, 1)])
def test_shards_of_large_pictures_hold_fewer(side, pictures):
    assert generation.usual_shard(side) == pictures


def test_large_pictures_are_drawn_in_small_batches(base_folder, tmp_path, monkeypatch):
    assert [generation.usual_batch(side) for side in (16, 512, 1024)] == [8, 8, 2]
    sizes, draw = [], FewShotGAN.__call__
    monkeypatch.setattr(
        FewShotGAN, "__call__", lambda self, n, **k: sizes.append(k["batch_size"]) or draw(self, n, **k)
    )
    for resolution, more, size in ((32, [], 8), (1024, [], 2), (1024, ["--batch-size", "3"], 3)):
        monkeypatch.setattr(generation, "usual_batch", lambda side, r=resolution, f=usual_batch: f(side * r // 32))
        command = ["generate", "--base", str(base_folder), "--num-images", "4", "--out", str(tmp_path / "a.png"), *more]
        assert CliRunner().invoke(app, command).exit_code == 0 and set(sizes) == {size}
        sizes.clear()


def test_shards_are_chosen_by_the_size_that_is_written(pipe, tmp_path, monkeypatch):
    monkeypatch.setattr(generation, "SHARD_PIXELS", 2 * 32**2)
    for out, options, shards in (("full", {}, 4), ("small", {"size": 16}, 1), ("asked", {"shard_size": 4}, 2)):
        write_pictures(pipe, tmp_path / out, 8, file_format="webdataset", **options)
        assert len(list((tmp_path / out).glob("*.tar"))) == shards


# ------------------------------------------------------------------------------------------------------------ refusals


def test_another_run_is_refused_in_the_same_folder(pipe, tmp_path, monkeypatch, perturbed):
    pipe.load_adapter(perturbed(LeFTAdapter.for_model(pipe.generator, rank=2)), "ink")
    run = {"seed": 1, **settings("webdataset")}
    write_pictures(pipe, tmp_path / "out", 4, **run)
    before = contents(tmp_path / "out")

    def refused(num_images=4, **changed):
        with pytest.raises(ValueError) as caught:
            write_pictures(pipe, tmp_path / "out", num_images, **{**run, **changed})
        assert contents(tmp_path / "out") == before
        assert "holds pictures of another run" in str(caught.value) and "another folder, remove" in str(caught.value)
        return str(caught.value)

    assert "seed was 1, now 2" in refused(seed=2)
    assert "num_images was 4, now 5" in refused(5)
    assert "truncation_psi was 0.7, now 1" in refused(truncation_psi=1)
    assert "noise_mode was 'const', now 'none'" in refused(noise_mode="none")
    assert "format was 'webdataset', now 'parquet'" in refused(file_format="parquet")
    assert "shard_size was 4, now 8" in refused(shard_size=8)
    assert "size was None, now 16" in refused(size=16)
    assert "looks was" in refused(looks={"": {}})
    assert "latents was None, now" in refused(latents=torch.zeros(4, 16))
    with torch.no_grad():
        last = [*pipe.bank.adapters["ink"].parameters()][-1]
        last[..., 0] = torch.nextafter(last[..., 0], torch.tensor(9.0))  # the smallest change of one number
    assert "adapters was {'ink': " in refused()
    monkeypatch.setattr(generation, "__version__", "0.0")
    assert "fewshot_gan_version was" in refused()
    monkeypatch.undo()
    other = FewShotGAN(tiny_mobile(seed=1))
    with pytest.raises(ValueError, match="base_fingerprint was"):
        write_pictures(other, tmp_path / "out", 4, **run)
    (tmp_path / "out" / MANIFEST).write_text("{oops", encoding="utf-8")
    with pytest.raises(ValueError, match="is damaged"):
        write_pictures(pipe, tmp_path / "out", 4, **run)


def test_what_makes_no_sense_is_refused_before_there_is_a_folder(pipe, tmp_path, monkeypatch):
    for options, sentence in (
        ({"file_format": "zip"}, "unknown format 'zip'; known: png, webdataset, parquet"),
        ({"shard_size": 4}, "a png folder has a file per picture"),
        ({"file_format": "parquet", "shard_size": 0}, "shard_size=0"),
        ({"batch_size": 0}, "batch_size=0"),
        ({"size": 15}, "size 15: give a whole number of px from 16 to 32, the size of this base's pictures"),
        ({"size": 33}, "size 33: give a whole number"),
        ({"seed": 2**63}, "whole number from 0 to 2\\^63 - 1"),
        ({"noise_mode": "pink"}, "pink"),
        ({"class_labels": 1}, "knows no classes"),
        ({"looks": {"a-": {}, "b-": {"oil": 1.0}}}, "'oil' is not loaded"),
        ({"looks": {}}, "looks={}: give {prefix: {adapter: weight}} of a look or more, or None"),
        ({"looks": {"a-": "ink"}}, "looks={'a-': 'ink'}: give {prefix"),
        ({"looks": ["ink"]}, r"looks=\['ink'\]: give {prefix"),
        ({"looks": {"../x-": {}}}, "prefix '../x-' of looks: give the start of a file name, without slashes"),
        ({"looks": {"a/": {}}}, "prefix 'a/' of looks"),
        ({"looks": {1: {}}}, "prefix 1 of looks"),
        ({"looks": {"v1.0-": {}, "v1_0-": {}}, "file_format": "webdataset"}, "become one in WebDataset"),
        ({"seeds": [1, 2, 3, 4]}, "4 seeds for no latents"),
        ({"seeds": [1], "latents": torch.zeros(4, 16)}, "1 seeds for 4 latents"),
        ({"latents": torch.zeros(3, 16)}, "3 latents for 4 images"),
        ({"latents": torch.zeros(4, 9)}, "are not z"),
    ):
        with pytest.raises(ValueError, match=sentence):
            write_pictures(pipe, tmp_path / "out", 4, **options)
    with pytest.raises(ValueError, match="num_images=0"):
        write_pictures(pipe, tmp_path / "out", 0)
    monkeypatch.setenv("WORLD_SIZE", "")
    assert generation.launched() is None
    monkeypatch.setenv("WORLD_SIZE", "two")
    with pytest.raises(ValueError, match="WORLD_SIZE='two' is no number of processes; unset it"):
        generation.launched()
    monkeypatch.delenv("WORLD_SIZE")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(ImportError, match="parquet needs the pyarrow package.*pip install"):
        write_pictures(pipe, tmp_path / "out", 4, file_format="parquet")
    assert not (tmp_path / "out").exists()
    (tmp_path / "file").write_text("mine", encoding="utf-8")
    with pytest.raises(FileExistsError, match="is a file"):
        write_pictures(pipe, tmp_path / "file", 4)
    with pytest.raises(FileExistsError, match="not an empty folder"):
        write_pictures(pipe, tmp_path, 4)


def test_the_command_line_refuses(base_folder, adapter_folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def refused(*more):
        result = CliRunner().invoke(app, ["generate", "--base", str(base_folder), *map(str, more)])
        assert result.exit_code == 2 and result.stderr.startswith("error: ") and result.stderr.count("\n") == 1
        assert not list(tmp_path.iterdir())
        return result.stderr

    assert "give one" in refused("--separate", "--format", "png")
    assert "--shard-size belongs to --format" in refused("--shard-size", 4)
    assert "has a file per picture" in refused("--shard-size", 4, "--format", "png")
    assert "nor --format" in refused("--adapter", adapter_folder, "--interpolate", 3, "--format", "png")
    with monkeypatch.context() as alone:
        alone.setenv("WORLD_SIZE", "2")
        alone.setattr("accelerate.PartialState", lambda **kwargs: SimpleNamespace(num_processes=1))
        assert "WORLD_SIZE=2, but this process knows of no other" in refused("--format", "png")
    monkeypatch.setattr(generation, "launched", lambda: True)
    assert "only write a folder together, with --format" in refused("--separate")
    assert "only write a folder together, with --format" in refused()
