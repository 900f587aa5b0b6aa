"""Folders with folders in them, and zip archives: what is read, in which order, and what is left out, by name."""

import io
import logging
import os
import stat
import struct
import subprocess
import sys
import zipfile
from contextlib import contextmanager

import numpy as np
import pytest
import torch
from PIL import Image

from fewshot_gan.apps import evaluation
from fewshot_gan.data import sets as picture_sets
from fewshot_gan.data.datasets import load_images, load_labelled, provenance
from fewshot_gan.data.images import square
from fewshot_gan.data.sets import PictureSet
from fewshot_gan.features.encoders import FeatureEncoder
from fewshot_gan.hub import reports
from fewshot_gan.pipeline import FewShotGAN
from fewshot_gan.training import hypernetwork


def noise_picture(seed=0, side=40):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (side, side, 3), dtype=np.uint8))


def png(seed=0):
    buffer = io.BytesIO()
    noise_picture(seed).save(buffer, "PNG")
    return buffer.getvalue()


def squares(*seeds):
    return torch.stack([square(noise_picture(seed), 32) for seed in seeds])


@pytest.fixture
def folder(tmp_path):
    """Pictures 0 to 4 in the order of their names, among what is none."""
    for name, seed in {"a.png": 0, "b/a.png": 1, "b/c/a.png": 2, "b/c.png": 3, "z.PNG": 4}.items():
        path = tmp_path / "set" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(png(seed))
    for name in (".hidden.png", ".cache/a.png", "__MACOSX/a.png", "Thumbs.db", "b/desktop.ini"):
        path = tmp_path / "set" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"what systems leave behind")
    return tmp_path / "set"


def zipped(folder, path, prefix="", compression=zipfile.ZIP_DEFLATED):
    with zipfile.ZipFile(path, "w", compression) as archive:
        for file in sorted(folder.rglob("*"), reverse=True):  # the order in the archive is not that of the names
            archive.write(file, prefix + file.relative_to(folder).as_posix())
    return path


def warnings_of(caplog):
    return [record.message for record in caplog.records if record.levelno == logging.WARNING]


# ------------------------------------------------------------------------------------------------------------ folders


def test_subfolders_are_read_in_the_order_of_names(folder, caplog):
    with caplog.at_level(logging.INFO):
        assert torch.equal(load_images(folder, 32), squares(0, 1, 2, 3, 4))
    assert warnings_of(caplog) == []


def test_flat_folders_are_read_as_before(tmp_path):
    """The hash of evaluation's protocol, and the order of training, are those of earlier versions."""
    for name, seed in {"b.png": 0, "a.bmp": 1, "B.png": 2, "a1.png": 3, "a10.png": 4, "a 2.png": 5}.items():
        noise_picture(seed).save(tmp_path / name)
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == ["B.png", "a 2.png", "a.bmp", "a1.png", "a10.png", "b.png"]
    assert torch.equal(load_images(tmp_path, 32), squares(2, 5, 1, 3, 4, 0))


def test_whatever_is_left_out_is_named(folder, caplog):
    for name in ("a.svg", "b/draft.psd", "b/c/archive.tar", "notes", "1.raw", "2.raw", "3.raw", "4.raw", "5.raw"):
        (folder / name).write_bytes(b"x")
    (folder / "gone.png").symlink_to(folder / "nowhere.png")
    os.mkfifo(folder / "pipe.png")
    for name in ("captions.txt", "dataset.json", "LICENSE", "b/readme.md"):
        (folder / name).write_text("{}", encoding="utf-8")
    with caplog.at_level(logging.INFO):
        assert torch.equal(load_images(folder, 32), squares(0, 1, 2, 3, 4))
    (warning,) = warnings_of(caplog)
    assert f"of {folder} 11 files are left out: " in warning
    assert "1.raw, 2.raw, 3.raw and 6 more (no picture of a format that is read)" in warning
    assert "gone.png (the link leads nowhere)" in warning and "pipe.png (no regular file)" in warning
    (info,) = [r.message for r in caplog.records if r.levelno == logging.INFO]
    assert "5 images" in info and "4 texts are not read: LICENSE, b/readme.md, captions.txt, …" in info
    with PictureSet(folder) as pictures:
        assert sorted(pictures.left_out) == sorted(
            ["1.raw", "2.raw", "3.raw", "4.raw", "5.raw", "a.svg", "b/c/archive.tar", "b/draft.psd", "notes"]
            + ["gone.png", "pipe.png"]
        )


def test_a_folder_of_what_is_left_out_says_so(tmp_path):
    (tmp_path / "a.psd").write_bytes(b"x")
    with pytest.raises(ValueError, match=r"has no image; put png, .* \(1 file is left out: a.psd \(no picture"):
        load_images(tmp_path, 32)


def test_links_that_lead_out_are_followed_once_and_named(folder, tmp_path, caplog):
    (tmp_path / "elsewhere" / "deep").mkdir(parents=True)
    (tmp_path / "elsewhere" / "p.png").write_bytes(png(9))
    (tmp_path / "elsewhere" / "deep" / "up").symlink_to("..")
    (tmp_path / "elsewhere" / "back").symlink_to(folder)
    (tmp_path / "elsewhere" / "all").symlink_to(tmp_path)
    (folder / "c.png").symlink_to(tmp_path / "elsewhere" / "p.png")  # as in the cache of the Hub
    (folder / "self").symlink_to(folder)
    (folder / "b" / "up").symlink_to("..")
    (folder / "out").symlink_to(tmp_path / "elsewhere")
    (folder / "circle.png").symlink_to(folder / "circle.png")
    assert torch.equal(load_images(folder, 32), squares(0, 1, 2, 3, 9, 9, 4))
    left_out, links = warnings_of(caplog)
    assert "6 files are left out: b/up, out/all, out/back and 2 more (the link leads to a folder that is" in left_out
    assert "circle.png (the link leads nowhere)" in left_out
    assert links == f"links lead out of {folder} and are followed: out"


def test_folders_are_followed_so_far(tmp_path, caplog, monkeypatch):
    deep = tmp_path.joinpath(*"abcdefghijklmnopqrst")
    deep.mkdir(parents=True)
    (deep / "a.png").write_bytes(png())
    (tmp_path / "a" / "a.png").write_bytes(png())
    assert len(load_images(tmp_path, 32, least=1)) == 1
    assert "(more than 16 folders deep)" in warnings_of(caplog)[0]
    monkeypatch.setattr(picture_sets, "MAX_NAMES", 0)
    with pytest.raises(ValueError, match="holds more than 0 files"):
        load_images(tmp_path, 32)


def test_names_of_others_cannot_command_a_terminal(tmp_path, caplog):
    (tmp_path / "\x1b[2J\u202eevil.psd").write_bytes(b"x")
    (tmp_path / "a.png").write_bytes(png())
    load_images(tmp_path, 32, least=1)
    assert "\x1b" not in caplog.text.replace(str(tmp_path), "") and "evil.psd" in caplog.text


# ----------------------------------------------------------------------------------------------------------- archives


@pytest.mark.parametrize("prefix", ["", "set/", "holiday/2024/"])
@pytest.mark.parametrize("compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_an_archive_is_read_as_its_folder(folder, tmp_path, prefix, compression, caplog):
    path = zipped(folder, tmp_path / "pictures.zip", prefix, compression)
    before = sorted(tmp_path.rglob("*"))
    assert torch.equal(load_images(str(path), 32), load_images(folder, 32))
    assert sorted(tmp_path.rglob("*")) == before and warnings_of(caplog) == []  # nothing is unpacked


def test_what_an_archive_holds_beside_pictures_is_named(tmp_path, caplog):
    path = tmp_path / "pictures.zip"
    link = zipfile.ZipInfo("link.png")
    link.external_attr = (stat.S_IFLNK | 0o777) << 16
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a.png", png(0))
        archive.writestr("../../b.png", png(1))  # where it would be unpacked is nobody's business here
        archive.writestr("inner.zip", b"PK\3\4")
        archive.writestr("c.psd", b"8BPS")
        archive.writestr("notes.txt", b"notes")
        archive.writestr("from\\windows.png", png(4))
        archive.writestr(link, "/etc/passwd")
        archive.writestr("bz2.png", png(2), zipfile.ZIP_BZIP2)
        archive.writestr("lzma.png", png(2), zipfile.ZIP_LZMA)
        with pytest.warns(UserWarning, match="Duplicate name"):
            archive.writestr("a.png", png(3))
    data = bytearray(path.read_bytes())
    place = data.rindex(b"PK\1\2", 0, data.index(b"c.psd", data.rindex(b"inner.zip")))
    data[place + 8] |= 1  # encrypted
    path.write_bytes(data)
    assert torch.equal(load_images(path, 32), squares(1, 0, 4))
    (warning,) = warnings_of(caplog)
    assert "6 files are left out" in warning
    for part in ("a.png (the name comes twice, the first counts)", "c.psd (encrypted)", "inner.zip (no picture"):
        assert part in warning
    assert "bz2.png, lzma.png (compressed otherwise than by deflate)" in warning and "link.png (a link)" in warning


def test_folders_of_an_archive_are_classes(folder, tmp_path):
    root = tmp_path / "classes"
    for name, seeds in {"cats": (0, 1), "apes": (2, 3, 4)}.items():
        (root / name / "deeper").mkdir(parents=True)
        for seed in seeds:
            (root / name / ("deeper" if seed == 4 else "") / f"{seed}.png").write_bytes(png(seed))
    (root / "dataset.json").write_text('{"style": "beasts", "licence": {"text": "CC0"}}', encoding="utf-8")
    for source in (root, zipped(root, tmp_path / "a.zip"), zipped(root, tmp_path / "b.zip", "all of them/")):
        images, labels, names = load_labelled(source, 32)
        assert names == ["apes", "cats"] and labels.tolist() == [0, 0, 0, 1, 1] and labels.dtype == torch.int64
        assert torch.equal(images, squares(2, 3, 4, 0, 1))
        assert provenance(source) == {"images": "beasts", "images_licence": "CC0"}
    images, labels, names = load_labelled(zipped(root / "cats", tmp_path / "cats.zip", "cats/"), 32)
    assert labels is None and names == [] and torch.equal(images, squares(0, 1))
    with pytest.raises(ValueError, match=r"images beside folders of images \(b, …\)"):
        load_labelled(zipped(folder, tmp_path / "mixed.zip"), 32)


@pytest.mark.parametrize("place", ["", "set/", "set/deeper/", "set/deeper/pics/"])
def test_an_archives_licence_lies_above_its_pictures(tmp_path, place):
    with zipfile.ZipFile(tmp_path / "set.zip", "w") as archive:
        archive.writestr("set/deeper/pics/a.png", png(0))
        archive.writestr(f"{place}dataset.json", '{"style": "beasts", "licence": {"text": "CC0"}}')
    assert provenance(tmp_path / "set.zip") == {"images": "beasts", "images_licence": "CC0"}


def test_links_to_one_folder_are_met_in_the_order_of_names(tmp_path, monkeypatch):
    (tmp_path / "far").mkdir()
    (tmp_path / "far" / "a.png").write_bytes(png(0))
    (tmp_path / "set").mkdir()
    for name in ("b", "a"):
        (tmp_path / "set" / name).symlink_to(tmp_path / "far")
    listed = os.scandir

    @contextmanager
    def scandir(folder):  # as some file systems list
        with listed(folder) as entries:
            yield iter(sorted(entries, key=lambda entry: entry.name, reverse=True))

    monkeypatch.setattr(os, "scandir", scandir)
    with PictureSet(tmp_path / "set") as pictures:
        assert pictures.names == ["a/a.png"] and list(pictures.left_out) == ["b"]


def nested(count):
    """An archive of one picture that is named `count` times, each entry pointing to the same bytes."""
    data = png()
    local = struct.pack("<4s5H3L2H", b"PK\3\4", 20, 0, 0, 0, 0, 0, len(data), len(data), 5, 0) + b"a.png" + data
    names = [b"%08d.png" % i for i in range(count)]
    entry = struct.pack("<4s6H3L5H2L", b"PK\1\2", 20, 20, 0, 0, 0, 0, 0, len(data), len(data), 12, 0, 0, 0, 0, 0, 0)
    table = b"".join(entry + name for name in names)
    end = struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, min(count, 65535), min(count, 65535), len(table), len(local), 0)
    return local + table + end


def bomb(size):
    """A picture of zeros that unfolds a thousandfold."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive, archive.open("a.bmp", "w") as file:
        for _ in range(0, size, 2**20):
            file.write(bytes(2**20))
    return buffer.getvalue()


def cut(data):
    return data[: len(data) // 2]


ARCHIVES = {
    "unfolds": (lambda: bomb(40 * 2**20), r"a.bmp \(would unfold to more than 200 times its size\)"),
    "unfolds beyond any picture": (lambda: bomb(500 * 2**20), r"a.bmp \(more than 400,000,000 bytes\)"),
    "a long list": (lambda: nested(450_000), "is no zip archive that can be read"),
    "cut": (lambda: cut(nested(3)), "is no zip archive that can be read"),
    "empty": (lambda: b"PK\5\6" + bytes(18), "has no image"),
    "nonsense": (lambda: b"PK\3\4" + bytes(range(256)) * 20, "is no zip archive that can be read"),
}

LOAD = """
import sys
from pathlib import Path
from fewshot_gan.data.datasets import load_images
Path("/proc/self/clear_refs").write_text("5")  # the peak from here on, not that of the process that started this one
try:
    print(len(load_images(sys.argv[1], 32)))
except ValueError as error:
    print(error)
print([int(line.split()[1]) for line in Path("/proc/self/status").read_text().splitlines() if "VmHWM" in line][0])
"""


@pytest.mark.parametrize("name", ARCHIVES)
def test_bad_archives_are_explained_and_take_no_gigabyte(tmp_path, name):
    make, message = ARCHIVES[name]
    path = tmp_path / f"{name}.zip"
    path.write_bytes(make())
    with pytest.raises(ValueError, match=message) as caught:
        load_images(path, 32)
    assert "\n" not in str(caught.value)
    if name in ("unfolds beyond any picture", "a long list"):
        env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
        done = subprocess.run([sys.executable, "-c", LOAD, str(path)], capture_output=True, text=True, env=env)
        peak = int(done.stdout.splitlines()[-1]) * 1024
        print(f"{name}: {peak / 1e6:.0f} MB")
        assert done.returncode == 0 and peak < 1e9


def test_an_archive_that_unfolds_as_a_whole_is_refused(tmp_path, monkeypatch):
    """Many names for the same deflated bytes: each is within the limits."""
    path = tmp_path / "overlap.zip"
    path.write_bytes(nested(40_000))
    size = len(png()) * 40_000
    monkeypatch.setattr(picture_sets, "MAX_RATIO", 20)
    assert size > 20 * path.stat().st_size
    with pytest.raises(ValueError, match=f"would unfold to {size:,}, more than 20 times as many; this is no archive"):
        load_images(path, 32)


def test_a_damaged_member_is_named(tmp_path):
    path = tmp_path / "pictures.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x/a.png", png(0))
        archive.writestr("x/b.png", png(1))
    data = bytearray(path.read_bytes())
    data[data.index(png(1)) + 60] ^= 0xFF
    path.write_bytes(data)
    with pytest.raises(ValueError, match=r"pictures.zip: b.png is damaged \(Bad CRC-32.*\); make the archive anew"):
        load_images(path, 32)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a.png", png(0)[:300])
    with pytest.raises(ValueError, match="pictures.zip: a.png cannot be read as an image"):
        load_images(path, 32)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("dataset.json", b"{" * 10)
    with pytest.raises(ValueError, match="pictures.zip/dataset.json is not a description of a data set"):
        provenance(path)


def test_mutated_archives_end_in_one_sentence(tmp_path):
    """200 seeded mutations, most of them in the list of files; one made zipfile raise IndexError."""
    with zipfile.ZipFile(tmp_path / "a.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for i in range(3):
            archive.writestr(f"x/{i % 2}/{i}.png", png(i))
        archive.writestr("x/dataset.json", "{}")
    whole, refused = (tmp_path / "a.zip").read_bytes(), 0
    for seed in range(200):
        draw, data = np.random.default_rng(seed), bytearray(whole)
        for _ in range(draw.choice([1, 2, 4, 16])):
            start = whole.index(b"PK\1\2") if draw.random() < 0.7 else 0
            place = draw.integers(start, len(data))
            if draw.random() < 0.6:
                data[place] = draw.integers(256)
            else:
                data[place : place + 4] = [b"\xff" * 4, b"\0" * 4, b"", b"PK\1\2"][draw.integers(4)]
        (tmp_path / "b.zip").write_bytes(data)
        for read in (lambda: load_labelled(tmp_path / "b.zip", 32), lambda: provenance(tmp_path / "b.zip")):
            try:
                read()
            except ValueError as error:
                assert "\n" not in str(error)
                refused += 1
    assert refused > 200  # of 400: most mutations matter


@pytest.mark.parametrize("name, content", [("a.tar", b"x" * 600), ("a.zip", b"Rar!\x1a\7"), ("a.png", png())])
def test_other_files_are_no_sets(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match="is a file, not a folder or a zip archive; pass the folder"):
        load_images(tmp_path / name, 32)


# --------------------------------------------------------------------------------------------------------- other places


def test_evaluation_reads_folders_and_archives_alike(folder, tmp_path, mobile):
    pipe, found = FewShotGAN(mobile), []
    for source in (folder, zipped(folder, tmp_path / "pictures.zip")):
        report = evaluation.evaluate(pipe, str(source), num_images=4, neighbour=2)
        assert report["protocol"]["num_true"] == 5
        found.append(report)
    assert reports.compare(*found) and reports.differences(*found) == []


def test_data_sets_are_decoded_within_the_limits(tmp_path, monkeypatch):
    """Rows of the Hub are bytes of others too: an EPS would have started Ghostscript."""
    datasets = pytest.importorskip("datasets")
    rows = [{"bytes": png(0), "path": None}, {"bytes": png(1), "path": None}]
    eps = {"bytes": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 64 64\n", "path": None}
    for name, of in {"good": rows, "eps": [*rows, eps], "none": [*rows, None]}.items():
        data = datasets.Dataset.from_dict({"image": of}, features=datasets.Features(image=datasets.Image(decode=False)))
        data = data.cast_column("image", datasets.Image())
        monkeypatch.setattr(datasets, "load_dataset", lambda *a, data=data, **k: data)
        if name == "good":
            assert torch.equal(load_images("owner/name", 32), squares(0, 1))
        else:
            with pytest.raises(ValueError, match=r"owner/name\[2\] (cannot be read as an image|has no picture)"):
                load_images("owner/name", 32)


def test_arrays_in_data_sets_are_scaled_or_refused(monkeypatch):
    """The datasets package stores arrays as TIFFs of floats and integers, which turned black."""
    datasets = pytest.importorskip("datasets")
    grey = np.asarray(noise_picture().convert("L"))
    for array in (grey / np.float32(255), grey.astype(np.int32)):
        data = datasets.Dataset.from_dict({"image": [array] * 2}, features=datasets.Features(image=datasets.Image()))
        monkeypatch.setattr(datasets, "load_dataset", lambda *a, data=data, **k: data)
        want = square(noise_picture().convert("L").convert("RGB"), 32)
        assert torch.equal(load_images("owner/name", 32), torch.stack([want, want]))
    column = datasets.Array3D(shape=(40, 40, 3), dtype="float32")
    data = datasets.Dataset.from_dict(
        {"pixels": [np.zeros((40, 40, 3))] * 2}, features=datasets.Features(pixels=column)
    )
    monkeypatch.setattr(datasets, "load_dataset", lambda *a, **k: data)
    with pytest.raises(ValueError, match=r"data set owner/name has no image column, only \['pixels'\]"):
        load_images("owner/name", 32)


def test_what_the_datasets_package_passes_over_is_named(folder, caplog, monkeypatch):
    pytest.importorskip("datasets")
    monkeypatch.setattr("fewshot_gan.data.files._can_decode", lambda name: name != "HEIF")
    (folder / "a.hif").write_bytes(b"x")
    (folder / ".hidden.png").unlink()
    assert len(load_images(f"imagefolder:{folder}", 32)) == 5
    assert "a.hif (HEIC needs the pillow-heif package" in caplog.text


def test_domains_of_a_hypernetwork_come_from_an_archive(base_folder, tmp_path, features, monkeypatch):
    for place in ("training.hypernetwork", "features", "features.encoders"):
        monkeypatch.setattr(f"fewshot_gan.{place}.load_features", lambda device="cpu", **kwargs: features.to(device))
    monkeypatch.setattr(type(features), "sha256", "0" * 64)
    monkeypatch.setattr("fewshot_gan.features.encoders._load", lambda name, device: FeatureEncoder(features.to(device)))
    root = tmp_path / "domains"
    for name, seeds in {"ink": (0, 1), "wood": (2, 3)}.items():
        (root / name).mkdir(parents=True)
        for seed in seeds:
            (root / name / f"{seed}.png").write_bytes(png(seed))
    common = [f"--base={base_folder}", "--max_train_steps=1", "--train_batch_size=2", "--report_to=none", "--width=16"]
    command = [
        *common,
        f"--data={zipped(root, tmp_path / 'domains.zip', 'domains/')}",
        f"--output_dir={tmp_path / 'a'}",
    ]
    network = hypernetwork.run(hypernetwork.parse(command))
    assert network.config.training["domains"] == ["ink", "wood"]
    with pytest.raises(SystemExit, match="has images, but no folders of them; give a folder of images per domain"):
        hypernetwork.main([*common, f"--data={root / 'ink'}", f"--output_dir={tmp_path / 'b'}"])
