"""Files that belong together: a process killed at any moment leaves the old ones or the new ones, never a mix."""

import os
import shutil
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch
from helpers.networks import tiny_mobile
from typer.testing import CliRunner

from fewshot_gan import FewShotGAN
from fewshot_gan.adapters import (
    Adapter,
    DomainHyperNetwork,
    LeFTAdapter,
    TicketAdapter,
    fingerprint,
    read_adapter,
)
from fewshot_gan.adapters import (
    io as loading,
)
from fewshot_gan.apps import export
from fewshot_gan.cli import app
from fewshot_gan.hub import adapter_folders, push_folder, resolve_folder
from fewshot_gan.utils import files

CALLS = ("mkdir", "replace", "rename", "fsync", "unlink", "remove", "rmdir", "open")  # after each of which a kill comes


def files_of(folder):
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(Path(folder).rglob("*")) if p.is_file()}


def killed(write, number):
    """Run `write` in a child that is killed after `number` calls to the file system; whether it came to that."""
    pid = os.fork()
    if pid == 0:
        count = 0

        def watched(call):
            def counting(*args, **options):
                nonlocal count
                try:
                    return call(*args, **options)
                finally:
                    count += 1
                    if count == number:
                        os.kill(os.getpid(), signal.SIGKILL)

            return counting

        try:
            for name in CALLS:
                setattr(os, name, watched(getattr(os, name)))
            write()
        except BaseException:
            os._exit(2)
        os._exit(0)
    _, status = os.waitpid(pid, 0)
    assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 0, "the writer failed"
    return os.WIFSIGNALED(status)


def every_kill(before, write, read, old, new):
    """Kill `write` at every call, each time in a fresh copy of the folder `before`; `read` gives `old` or `new`.

    Returns:
        How many kills left the old and the new.
    """
    counts = {"old": 0, "new": 0}
    for number in range(1, 10_000):
        folder = before.with_name(f"{before.name}-{number}")
        shutil.copytree(before, folder)
        over = not killed(lambda folder=folder: write(folder), number)
        found = read(folder)
        assert found in (old, new), f"kill {number} left a mix"
        left = [p.name for p in folder.rglob("*") if p.name.startswith(".")]
        assert not left, f"kill {number}: {left} stayed after reading"
        counts["old" if found == old else "new"] += 1
        shutil.rmtree(folder)
        if over:
            assert found == new
            return counts
    raise AssertionError("the writer never ended")


def two_adapters(generator):
    """Two of one layout with other settings and numbers: a mix of their files would load."""
    pair = []
    for seed in (1, 2):
        adapter = LeFTAdapter.for_model(generator, rank=1, training={"seed": seed})
        with torch.no_grad():
            for parameter in adapter.parameters():
                parameter.fill_(seed)
        pair.append(adapter)
    return pair


def seed_and_numbers(adapter):
    return adapter.config.training["seed"], float(next(iter(adapter.state_dict().values())).flatten()[0])


def test_save_adapter_killed_at_any_call_leaves_the_old_or_the_new_one(mobile, tmp_path):
    old, new = two_adapters(mobile)
    before = tmp_path / "look"
    old.save_pretrained(before)

    def read(folder):
        adapter = Adapter.from_pretrained(folder)
        assert sorted(files_of(folder)) == ["adapter_config.json", "adapter_model.safetensors"]
        return seed_and_numbers(adapter)

    counts = every_kill(before, new.save_pretrained, read, (1, 1.0), (2, 2.0))
    assert min(counts.values()) >= 4  # both sides of the decision were met


def test_every_reader_of_adapters_finishes_what_was_decided(mobile, tmp_path):
    """The config alone was moved: a reader that takes the files as they lie would mix them."""
    old, new = two_adapters(mobile)

    def half_moved(folder):
        old.save_pretrained(folder)
        new.save_pretrained(folder / files.COMMITTED)
        os.replace(folder / files.COMMITTED / "adapter_config.json", folder / "adapter_config.json")
        return folder

    want = tmp_path / "want"
    new.save_pretrained(want)
    collection = tmp_path / "looks"
    readers = {
        "from_pretrained": lambda folder: Adapter.from_pretrained(folder),
        "read_adapter": lambda folder: read_adapter(folder),
        "resolve_folder": lambda folder: resolve_folder(folder, kind="adapter"),
        "adapter_folders": lambda folder: adapter_folders(collection),
        "load_adapters": lambda folder: FewShotGAN(mobile).load_adapters(collection),
        "info": lambda folder: CliRunner().invoke(app, ["info", str(folder)], catch_exceptions=False),
        "save": lambda folder: old.save_pretrained(folder),
    }
    for name, read in readers.items():
        folder = half_moved(collection / name)
        read(folder)
        if name == "save":
            continue
        assert files_of(folder) == files_of(want), name
    only = tmp_path / "only"  # the first save into a fresh folder was decided on and not begun to move
    new.save_pretrained(only / "look" / files.COMMITTED)
    assert list(adapter_folders(only)) == ["look"] and files_of(only / "look") == files_of(want)


def test_hidden_folders_are_no_adapters(mobile, tmp_path):
    adapter = two_adapters(mobile)[0]
    for name in ("look", ".look"):
        adapter.save_pretrained(tmp_path / name)
    assert list(adapter_folders(tmp_path)) == ["look"]


def test_push_takes_what_was_decided(mobile, tmp_path, monkeypatch):
    old, new = two_adapters(mobile)
    old.save_pretrained(tmp_path / "look")
    new.save_pretrained(tmp_path / "look" / files.COMMITTED)
    sent = {}

    class Api:
        def __init__(self, **options): ...

        def create_repo(self, repo_id, **options):
            return type("Repo", (), {"repo_id": repo_id})

        def create_commit(self, repo_id, operations, **options):
            sent.update({op.path_in_repo: Path(op.path_or_fileobj).read_bytes() for op in operations})

    monkeypatch.setattr("huggingface_hub.HfApi", Api)
    push_folder(tmp_path / "look", "me/look")
    new.save_pretrained(tmp_path / "want")
    assert sent == files_of(tmp_path / "want")


def test_a_read_only_folder_is_read_as_decided(mobile, tmp_path, monkeypatch):
    old, new = two_adapters(mobile)
    folder = tmp_path / "look"
    old.save_pretrained(folder)
    new.save_pretrained(folder / files.COMMITTED)
    before, replace = files_of(folder), os.replace

    def read_only(source, target):
        if Path(target).is_relative_to(folder):
            raise OSError(30, "Read-only file system", str(target))
        replace(source, target)

    monkeypatch.setattr(os, "replace", read_only)
    assert seed_and_numbers(Adapter.from_pretrained(folder)) == (2, 2.0)
    assert files_of(folder) == before
    assert list(adapter_folders(tmp_path)) == ["look"]


def test_staged_folders_of_killed_writers_go_and_of_living_ones_stay(mobile, tmp_path):
    old, _ = two_adapters(mobile)
    old.save_pretrained(tmp_path)
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()
    living, here = os.getppid(), files._HERE
    names = {
        f".{child.pid}.0-{here}.staged": False,  # dead
        f".{living}.0-{here}.staged": True,
        f".{child.pid}.0-elsewhere.staged": True,  # another machine: that number says nothing
        f".{child.pid}.1-elsewhere.staged": False,  # but this is a day old
        f".{living}.1-{here}.staged": False,
        ".2024-notes.staged": True,  # somebody's own
    }
    for name in names:
        (tmp_path / name).mkdir()
        (tmp_path / name / "part").write_text("…", encoding="utf-8")
    for name in (f".{child.pid}.1-elsewhere.staged", f".{living}.1-{here}.staged"):
        os.utime(tmp_path / name, (0, 0))
    Adapter.from_pretrained(tmp_path)
    assert {name: (tmp_path / name).exists() for name in names} == names


def test_links_among_what_waits_are_left_alone(mobile, tmp_path):
    """A folder of strangers must not move files from, or to, another place."""
    old, _ = two_adapters(mobile)
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "secret").write_text("s", encoding="utf-8")
    for i, make in enumerate(
        (
            lambda f: (f / files.COMMITTED).symlink_to(outside),
            lambda f: ((f / files.COMMITTED).mkdir(), (f / files.COMMITTED / "in").symlink_to(outside)),
            lambda f: (
                ((f / files.COMMITTED / "in").mkdir(parents=True), (f / "in").symlink_to(outside))
                and (f / files.COMMITTED / "in" / "secret").write_text("t", encoding="utf-8")
            ),
        )
    ):
        folder = tmp_path / str(i)
        old.save_pretrained(folder)
        make(folder)
        assert seed_and_numbers(Adapter.from_pretrained(folder)) == (1, 1.0)
        assert files_of(outside) == {"secret": b"s"} and not (folder / "secret").exists()


def test_a_failed_save_leaves_nothing_and_a_folder_in_the_way_is_named(mobile, tmp_path, monkeypatch):
    old, new = two_adapters(mobile)
    old.save_pretrained(tmp_path / "look")
    before = files_of(tmp_path / "look")
    monkeypatch.setattr("fewshot_gan.adapters.io.save_file", lambda *a, **k: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        new.save_pretrained(tmp_path / "look")
    assert files_of(tmp_path / "look") == before
    assert len(list((tmp_path / "look").iterdir())) == 2
    monkeypatch.undo()
    (tmp_path / "odd" / "adapter_model.safetensors").mkdir(parents=True)
    with pytest.raises(IsADirectoryError, match="adapter_model.safetensors is a folder, where a file is to be written"):
        new.save_pretrained(tmp_path / "odd")
    assert [p.name for p in (tmp_path / "odd").iterdir()] == ["adapter_model.safetensors"]


def test_a_pair_that_changes_while_it_is_read_is_read_again(mobile, tmp_path, monkeypatch):
    """A whole save between config and weights, of the same size and time, and with the number of the old file."""
    old, new = two_adapters(mobile)
    old.save_pretrained(tmp_path)
    load, saved = loading.read_tensors, []

    def late(path):
        if not saved:
            saved.append(new.save_pretrained(tmp_path))
            for name in ("adapter_config.json", "adapter_model.safetensors"):
                os.utime(tmp_path / name, ns=(5, 5))
        return load(path)

    for name in ("adapter_config.json", "adapter_model.safetensors"):
        os.utime(tmp_path / name, ns=(5, 5))
    monkeypatch.setattr(loading, "read_tensors", late)
    assert seed_and_numbers(read_adapter(tmp_path)) == (2, 2.0) and saved
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ZeroDivisionError):  # and nothing waits for what is no file
        files.read_together(tmp_path, ["pipe", "nothing"], lambda place: 1 / 0)


def test_readers_and_writers_at_once_never_see_a_mix(mobile, tmp_path):
    old, new = two_adapters(mobile)
    folder = tmp_path / "look"
    old.save_pretrained(folder)
    problems, stop = [], threading.Event()

    def write(adapter):
        while not stop.is_set():
            adapter.save_pretrained(folder)

    def read():
        for _ in range(15):
            try:
                found = seed_and_numbers(Adapter.from_pretrained(folder))
                if found not in ((1, 1.0), (2, 2.0)):
                    problems.append(found)
            except Exception as error:
                problems.append(error)

    writers = [threading.Thread(target=write, args=(adapter,)) for adapter in (old, new)]
    readers = [threading.Thread(target=read) for _ in range(2)]
    for thread in writers + readers:
        thread.start()
    for thread in readers:
        thread.join()
    stop.set()
    for thread in writers:
        thread.join()
    assert not problems
    assert sorted(files_of(folder)) == ["adapter_config.json", "adapter_model.safetensors"]


# ------------------------------------------------------------------------------------ hypernetworks, bases, new folders


def test_a_hypernetwork_is_replaced_whole(mobile, tmp_path):
    networks = []
    for seed in (1, 2):
        network = DomainHyperNetwork.for_model(mobile, embedding_dim=4, width=4, training={"seed": seed})
        with torch.no_grad():
            network.input_mean.fill_(seed)
        networks.append(network)
    networks[0].save_pretrained(tmp_path / "h", max_shard_size="1KB")  # shards and an index, which the new one has not

    def read(folder):
        network = DomainHyperNetwork.from_pretrained(folder)
        return network.config.training["seed"], float(network.input_mean[0])

    counts = every_kill(tmp_path / "h", networks[1].save_pretrained, read, (1, 1.0), (2, 2.0))
    assert min(counts.values()) >= 4


def test_a_base_is_replaced_whole(tmp_path):
    bases = [FewShotGAN(tiny_mobile(seed), truncation_psi=seed / 4) for seed in (1, 2)]
    bases[0].save_pretrained(tmp_path / "base", max_shard_size="20KB")

    def read(folder):
        pipe = FewShotGAN.from_pretrained(folder)
        return pipe.config.truncation_psi, fingerprint(pipe.generator)

    old, new = ((base.config.truncation_psi, fingerprint(base.generator)) for base in bases)
    counts = every_kill(tmp_path / "base", bases[1].save_pretrained, read, old, new)
    assert min(counts.values()) >= 4


def test_saving_over_shards_or_another_format_loads_the_new_one(tmp_path):
    """diffusers leaves the old index, or the old .safetensors, and loads by it."""
    old, new = (FewShotGAN(tiny_mobile(seed)) for seed in (1, 2))
    for i, options in enumerate(({"max_shard_size": "20KB"}, {"safe_serialization": False}, {"variant": "fp16"})):
        folder = tmp_path / str(i)
        old.save_pretrained(folder, **options)
        kept = {k: v for k, v in files_of(folder).items() if "fp16" in k}
        new.save_pretrained(folder)
        assert fingerprint(FewShotGAN.from_pretrained(folder).generator) == fingerprint(new.generator)
        assert {k: v for k, v in files_of(folder).items() if "fp16" in k} == kept  # other variants stay
        fresh = tmp_path / f"fresh-{i}"
        new.save_pretrained(fresh)
        assert files_of(fresh) == {k: v for k, v in files_of(folder).items() if "fp16" not in k}


def test_a_new_folder_is_there_whole_or_not_at_all(tmp_path):
    counts = {"none": 0, "whole": 0}

    def write(folder):
        for name in ("a", "b"):
            (folder / name).write_text(name, encoding="utf-8")

    for number in range(1, 1000):
        place = tmp_path / str(number)
        place.mkdir()
        over = not killed(lambda place=place: files.write_folder(place / "out", write), number)
        found = files_of(place / "out") if (place / "out").exists() else None
        assert found in (None, {"a": b"a", "b": b"b"})
        counts["none" if found is None else "whole"] += 1
        if over:
            break
        files.write_folder(place / "again", write)
        assert not [p for p in place.iterdir() if p.name.startswith(".")]  # what the kill left
    assert min(counts.values()) >= 2


def test_a_new_folder_behind_a_link(tmp_path):
    (tmp_path / "disk").mkdir()
    (tmp_path / "disk" / "real").mkdir()
    (tmp_path / "out").symlink_to(tmp_path / "disk" / "real", target_is_directory=True)
    (tmp_path / "later").symlink_to(tmp_path / "disk" / "later", target_is_directory=True)
    for name in ("out", "later"):
        files.write_folder(tmp_path / name, lambda folder: (folder / "a").write_text("a", encoding="utf-8"))
        assert (tmp_path / name).is_symlink() and files_of(tmp_path / name) == {"a": b"a"}
    assert sorted(path.name for path in (tmp_path / "disk").iterdir()) == ["later", "real"]


def test_openvino_never_finds_an_old_network_with_new_weights(tmp_path):
    found = set()
    for number in range(1, 100):
        folder = tmp_path / str(number)
        for place, content in ((folder, b"old"), (folder / "staged", b"new")):
            place.mkdir()
            (place / "g.xml").write_bytes(content)
            (place / "g.bin").write_bytes(content)
        over = not killed(lambda folder=folder: export._place(folder / "staged" / "g.xml", folder / "g.xml"), number)
        left = files_of(folder)
        found.add((left.get("g.xml"), left["g.bin"]))
        if over:
            break
    # what others read are two files, and no rename moves both: between old and new there is nothing to read
    assert found == {(None, b"old"), (None, b"new"), (b"new", b"new")}


def test_a_ticket_saved_over_another_keeps_its_bytes(mobile, tmp_path):
    """What is stored is what it was before there was a transaction: two files, the same bytes in a fresh folder."""
    old, new = two_adapters(mobile)
    TicketAdapter.for_model(mobile).save_pretrained(tmp_path / "over")
    for folder in ("over", "fresh"):
        new.save_pretrained(tmp_path / folder)
    assert files_of(tmp_path / "over") == files_of(tmp_path / "fresh")
    modes = {p.name: oct(p.stat().st_mode) for p in (tmp_path / "fresh").iterdir()}
    assert len(modes) == 2 and len(set(modes.values())) == 1
