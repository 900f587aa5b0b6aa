"""JSON and safetensors files of others, and their words: bounded, copied, one sentence, no commands to a terminal."""

import json
import os
import struct

import pytest
import torch
from helpers.networks import tiny_stylegan2
from PIL import Image
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from fewshot_gan.adapters import LeFTAdapter
from fewshot_gan.cli import app
from fewshot_gan.data.datasets import load_images
from fewshot_gan.utils.json_files import MAX_DEPTH, read_json
from fewshot_gan.utils.regular_files import read_regular, regular_file_size
from fewshot_gan.utils.safetensors_files import DTYPES, read_header, read_tensors
from fewshot_gan.utils.text import in_short, plain


def test_plain_text_has_no_commands_and_one_line():
    assert plain("a\x1b[31mred\x1b[0m\r\nb\x07\x9b2J\u202eevil\u200b\u2028c") == "ared b evil c"
    assert plain("\x1b]0;title\x07x\x1b]52;c;cHduZWQ=\x1b\\y") == "xy" and plain("\x1bc\x1b(0z") == "z"
    assert plain("Zürich — 東京 ✓") == "Zürich — 東京 ✓" and plain(None) == "None"
    assert in_short(ValueError("x" * 999)) == "x" * 200 and in_short(KeyError()) == "KeyError"


@pytest.mark.parametrize(
    "data, why",
    [
        (b"[1]", "an array instead of an object"),
        (b"3", "a number instead of an object"),
        (b"null", "null instead"),
        (b"{", "Expecting property name"),
        (b"\xff{}", "invalid start byte"),
        (b'{"a": ' + b"[" * 100 + b"]" * 100 + b"}", f"nested more than {MAX_DEPTH} levels"),
        (b'{"a": ' + b"[" * 10**6 + b"]" * 10**6 + b"}", f"nested more than {MAX_DEPTH} levels"),
        (b'{"a": 1' + b"0" * 10**5 + b"}", "integer string conversion"),
        (b'{"a": "' + b"x" * (8 * 2**20) + b'"}', "at most 8,388,608 are read"),
    ],
)
def test_json_of_others_is_refused_in_a_sentence(tmp_path, data, why):
    path = tmp_path / "x.json"
    path.write_bytes(data)
    with pytest.raises(ValueError, match=why) as caught:
        read_json(path)
    assert "\n" not in str(caught.value) and str(path) in str(caught.value)


def test_json_is_read(tmp_path):
    path = tmp_path / "x.json"
    path.write_text(json.dumps({"ä": [1, {"b": None}]}), encoding="utf-8")
    assert read_json(path) == {"ä": [1, {"b": None}]}
    path.write_text("[1, 2]", encoding="utf-8")
    assert read_json(path, list) == [1, 2]
    with pytest.raises(FileNotFoundError):
        read_json(tmp_path / "nowhere.json")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes in folders on this system")
def test_pipes_devices_and_folders_are_no_files(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path, kind in ((tmp_path / "pipe", "a pipe"), (tmp_path, "a folder"), ("/dev/zero", "a device")):
        for read in (regular_file_size, lambda p: read_regular(p, 9), read_json, read_header, read_tensors):
            with pytest.raises(ValueError, match=f"{kind}.*no regular file"):
                read(path)


def test_what_is_printed_of_others_is_plain(tmp_path, caplog):
    """The config of an adapter, as `info` shows it, and the names of pictures that are too small."""
    LeFTAdapter.for_model(tiny_stylegan2(), rank=1).save_pretrained(tmp_path / "look")
    path = tmp_path / "look" / "adapter_config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    config |= {"base_model_name_or_path": "\x1b]0;title\x07ffhq\r\nline", "training": {"\x1b[2Ja": "\x1b[31mred\u202e"}}
    path.write_text(json.dumps(config), encoding="utf-8")
    shown = CliRunner().invoke(app, ["info", str(tmp_path / "look")])
    assert shown.exit_code == 0 and all(line.isprintable() for line in shown.stdout.splitlines())
    assert "base: ffhq line," in shown.stdout and "training: a red" in shown.stdout
    (tmp_path / "pictures").mkdir()
    for name in ("a\x1b[2J", "b"):
        Image.new("RGB", (40, 40)).save(tmp_path / "pictures" / f"{name}.png")
    with caplog.at_level("INFO"):
        load_images(tmp_path / "pictures", 64)
    assert "enlarged and therefore soft: a.png (40x40), b.png (40x40)" in caplog.text and "\x1b" not in caplog.text


def written(path, tensors=None, **metadata):
    save_file(tensors or {"b": torch.ones(2, 3), "a": torch.arange(4)}, path, metadata=metadata or None)
    return path


def test_tensors_equal_those_of_the_library_and_are_ours(tmp_path):
    random = torch.Generator().manual_seed(0)
    tensors = {}
    for name, (dtype, _) in DTYPES.items():
        tensors[name] = (torch.randn(3, 5, generator=random) * 9).to(getattr(torch, dtype))
    tensors |= {"scalar": torch.tensor(2.5), "none": torch.zeros(0, 4)}
    path = written(tmp_path / "x.safetensors", tensors, note="é")
    read, known = read_tensors(path), load_file(path)
    assert read.keys() == known.keys() and read_header(path).metadata == {"note": "é"}
    for name, tensor in known.items():
        assert read[name].dtype == tensor.dtype and read[name].shape == tensor.shape
        assert torch.equal(read[name].double(), tensor.double())
    assert read_header(path).numel == sum(tensor.numel() for tensor in tensors.values())
    os.truncate(path, 10)  # a mapped file would end the process here
    assert all(torch.equal(read[name].double(), tensors[name].double()) for name in tensors)


def with_header(path, header, data=b"", length=None):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text) if length is None else length) + text + data)
    return path


def entry(dtype="F32", shape=(2,), begin=0, end=8):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [begin, end]}


@pytest.mark.parametrize(
    "header, data, why",
    [
        ({"a": entry()}, bytes(7), "15 bytes|bytes instead of"),
        ({"a": entry()}, bytes(9), "bytes instead of"),
        ({"a": entry(shape=(3,))}, bytes(8), r"a of shape \(3,\) does not fit its 8 bytes"),
        ({"a": entry(shape=(2**40, 2**40))}, bytes(8), "does not fit its 8 bytes"),
        ({"a": entry(shape=(-2,), end=-8)}, bytes(8), "other than whole numbers"),
        ({"a": entry(shape=(1.5,))}, bytes(8), "other than whole numbers"),
        ({"a": entry("C64", (1,))}, bytes(8), "a is of C64; networks have F64"),
        ({"a": entry("\x1b[2J")}, bytes(8), "a is of ; networks have"),
        ({"a": entry(), "b": entry()}, bytes(8), "b begins at byte"),
        ({"a": entry(begin=8, end=16)}, bytes(16), "a begins at byte"),
        ({"a": 3}, b"", "a has no dtype, shape and place"),
        ({"a": {"dtype": "F32", "shape": 3, "data_offsets": [0, 8]}}, bytes(8), "no dtype, shape and place"),
        ({"__metadata__": {"a": 1}}, b"", "its notes are no texts"),
        (b"[]", b"", "an array instead of an object"),
        (b"{" * 9, b"", "Expecting property name"),
    ],
)
def test_headers_that_do_not_fit_are_refused(tmp_path, header, data, why):
    path = with_header(tmp_path / "x.safetensors", header, data)
    for read in (read_header, read_tensors):
        with pytest.raises(ValueError, match=f"x.safetensors is damaged or cut short .*(?:{why})") as caught:
            read(path)
        assert "\n" not in str(caught.value) and "\x1b" not in str(caught.value)


def test_a_header_is_no_longer_than_the_file(tmp_path):
    for length in (2**63, 100, 2**25):
        path = with_header(tmp_path / "x.safetensors", b"{}", length=length)
        with pytest.raises(ValueError, match="less than it says"):
            read_header(path)
    path = with_header(tmp_path / "x.safetensors", b"{" + b" " * 2**24 + b"}")
    with pytest.raises(ValueError, match="a header of 16,777,218 bytes; at most 16,777,216"):
        read_header(path)
