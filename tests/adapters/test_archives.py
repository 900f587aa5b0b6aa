"""Adapters in zip archives: loaded like folders, within limits, and nothing stays behind."""

import json
import re
import shutil
import tempfile
import zipfile
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from fewshot_gan import FewShotGAN
from fewshot_gan.adapters import LeFTAdapter, load_adapter
from fewshot_gan.apps.uploads import pack
from fewshot_gan.cli import app
from fewshot_gan.data import adapter_archives


@pytest.fixture
def look(mobile, perturbed, tmp_path, monkeypatch):
    """Folder of an adapter; temporary folders are made below tmp_path / "temp"."""
    (tmp_path / "temp").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temp"))
    perturbed(LeFTAdapter.for_model(mobile)).save_pretrained(tmp_path / "my-look")
    return tmp_path / "my-look"


def same(a, b):
    return all(torch.equal(a.state_dict()[name], value) for name, value in b.state_dict().items())


@pytest.mark.parametrize("layout", ["of the demo", "at the top", "by another program"])
def test_an_archive_is_loaded_like_its_folder(look, tmp_path, mobile, layout):
    file = tmp_path / "look.zip"
    if layout == "of the demo":
        pack(look, file)
    else:
        with zipfile.ZipFile(file, "w") as archive:
            for path in look.iterdir():
                archive.write(path, path.name if layout == "at the top" else f"some/where\\{path.name}")
            archive.writestr("__MACOSX/my-look/._adapter_config.json", "{}")
            archive.writestr("notes.txt", "hello")
    assert same(load_adapter(file), load_adapter(look)) and same(load_adapter(str(file)), load_adapter(look))
    pipe = FewShotGAN(mobile).load_adapter(str(file))
    assert list(pipe.bank.adapters) == ["look"] and pipe(1, seed=0).images
    assert not list((tmp_path / "temp").iterdir())  # nothing stays


def test_the_command_line_takes_archives(look, tmp_path, base_folder, monkeypatch):
    pack(look, tmp_path / "look.zip")
    args = ["generate", f"--base={base_folder}", f"--adapter={tmp_path / 'look.zip'}", f"--out={tmp_path / 'x.png'}"]
    done = CliRunner().invoke(app, [*args, "--num-images=1", "--num-threads=1"])
    assert done.exit_code == 0, done.output
    pushed = []
    monkeypatch.setattr("fewshot_gan.hub.push_folder", lambda folder, *rest, **o: pushed.append(Path(folder)) or "url")
    done = CliRunner().invoke(app, ["push", str(tmp_path / "look.zip"), "me/look"])
    assert done.exit_code == 0 and pushed[0].name == "look", done.output


def write(file, **members):
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name.replace("__", "/").replace("_dot_", "."), content)
    return file


def test_archives_that_are_refused(look, tmp_path, monkeypatch):
    config = (look / "adapter_config.json").read_bytes()
    files = {
        "empty.zip": "holds no adapter_config.json",
        "two.zip": "holds 2 adapters; give the archive of one adapter",
        "bomb.zip": "would unpack to more than an adapter has",
        "text.zip": "is no zip archive that can be read",
        "cut.zip": "is no zip archive that can be read|damaged|no adapter_model",
        "without.zip": "has no adapter_model.safetensors",
    }
    write(tmp_path / "empty.zip", readme="x")
    write(tmp_path / "two.zip", a__adapter_config_dot_json=config, b__adapter_config_dot_json=config)
    write(tmp_path / "without.zip", **{"adapter_config.json": config})
    write(tmp_path / "bomb.zip", **{"adapter_config.json": config, "adapter_model.safetensors": bytes(50_000_000)})
    (tmp_path / "text.zip").write_text("no archive", encoding="utf-8")
    pack(look, tmp_path / "whole.zip")
    (tmp_path / "cut.zip").write_bytes((tmp_path / "whole.zip").read_bytes()[:-200])
    for name, message in files.items():
        with pytest.raises((ValueError, FileNotFoundError), match=message):
            load_adapter(tmp_path / name)
        assert not list((tmp_path / "temp").iterdir()), name
    with pytest.raises(ValueError, match="subfolder: an archive brings its own files; leave out"):
        load_adapter(tmp_path / "whole.zip", subfolder="x")
    many = write(tmp_path / "many.zip", **{f"{i}.txt": "" for i in range(1500)})
    with pytest.raises(ValueError, match="has 1,500 files"):
        load_adapter(many)
    monkeypatch.setattr(adapter_archives, "MOST_DIRECTORY", 1000)
    with pytest.raises(ValueError, match="is no zip archive that can be read"):
        load_adapter(many)
    monkeypatch.setattr(adapter_archives, "MOST_BYTES", 10)
    with pytest.raises(ValueError, match="an archive of an adapter has at most 10"):
        load_adapter(tmp_path / "whole.zip")


def test_messages_name_the_archive(look, tmp_path):
    """And not the temporary folder, which is gone."""
    config, file = json.loads((look / "adapter_config.json").read_text(encoding="utf-8")), tmp_path / "look.zip"
    whole = (look / "adapter_model.safetensors").read_bytes()
    for changed, weights, kind, message in (
        ({}, b"cut", ValueError, "{file}/adapter_model.safetensors is damaged"),
        ({"rank": "x"}, whole, ValueError, "{file}/adapter_config.json: rank is 'x'"),
        ({"colour": 1}, whole, UserWarning, "{file}/adapter_config.json has settings that"),
        ({}, None, FileNotFoundError, "{file} is not an adapter folder: it has no adapter_model.safetensors"),
    ):
        members = {"adapter_config.json": json.dumps(config | changed)}
        members |= {} if weights is None else {"adapter_model.safetensors": weights}
        write(file, **members)
        wanted = "^" + re.escape(message.format(file=file))
        with pytest.warns(kind, match=wanted) if kind is UserWarning else pytest.raises(kind, match=wanted):
            load_adapter(file)
    write(file, **{"adapter_config.json": "{oops", "adapter_model.safetensors": whole})
    done = CliRunner().invoke(app, ["push", str(file), "me/look"])
    assert done.exit_code == 2 and f"error: {file}/adapter_config.json is damaged" in done.stderr


def test_a_member_that_lies_about_its_size(look, tmp_path):
    pack(look, tmp_path / "whole.zip")
    raw = bytearray((tmp_path / "whole.zip").read_bytes())
    with zipfile.ZipFile(tmp_path / "whole.zip") as archive:
        size = archive.getinfo("my-look/adapter_config.json").file_size.to_bytes(4, "little")
    place = raw.rindex(size)  # in the directory
    raw[place : place + 4] = (10).to_bytes(4, "little")
    (tmp_path / "lies.zip").write_bytes(raw)
    with pytest.raises(ValueError):
        load_adapter(tmp_path / "lies.zip")
    assert not list((tmp_path / "temp").iterdir())
    shutil.rmtree(tmp_path / "my-look")
