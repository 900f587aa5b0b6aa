"""Bases of others: what their files may say, how large they may be, and that files may change once they are read."""

import json
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from helpers import hostile
from helpers.every_network import SETTINGS
from helpers.networks import tiny_stylegan2
from safetensors.torch import load_file, save_file

from fewshot_gan import FewShotGAN
from fewshot_gan.hub import data_source, embedded_datasets
from fewshot_gan.models import (
    BigGANDiscriminator,
    StyleGAN2Generator,
)
from fewshot_gan.models.bounds import limit_size


@pytest.fixture
def folder(base_folder, tmp_path):
    return shutil.copytree(base_folder, tmp_path / "base")


def change(path, **values):
    path.write_text(json.dumps(json.loads(path.read_text(encoding="utf-8")) | values), encoding="utf-8")


def weights_of(part):
    (path,) = part.glob("*.safetensors")
    return path


def rewrite(path, **tensors):
    save_file(load_file(path) | tensors, path, metadata={"format": "pt"})


def refused(folder, *, quickly=True) -> str:
    start = time.perf_counter()
    with pytest.raises(ValueError) as caught:
        FewShotGAN.from_pretrained(folder)
    said = str(caught.value)
    assert time.perf_counter() - start < 10 and said.isprintable() and str(folder) in said
    return said


# ------------------------------------------------------------------------------------------------------------ numbers


@pytest.mark.parametrize("part", ["generator", "discriminator"])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_weights_that_are_no_numbers_are_refused(folder, part, value):
    path = weights_of(folder / part)
    name, tensor = next((k, v) for k, v in load_file(path).items() if v.ndim > 1)
    tensor.view(-1)[-1] = value
    rewrite(path, **{name: tensor})
    assert f"has weights that are no finite real numbers: {name}" in refused(folder)


def test_complex_weights_are_refused(folder):
    path = weights_of(folder / "generator")
    name, tensor = next(iter(load_file(path).items()))
    rewrite(path, **{name: tensor.to(torch.complex64)})
    assert f"{name} is of C64; networks have F64" in refused(folder)


# -------------------------------------------------------------------------------------------------------------- sizes


@pytest.mark.parametrize("network", SETTINGS, ids=lambda network: network.__name__)
def test_every_network_is_as_large_as_its_file_and_no_larger(tmp_path, network):
    saved = network(**SETTINGS[network])
    saved.save_pretrained(tmp_path)
    loaded = network.from_pretrained(tmp_path)
    assert all(torch.equal(tensor, saved.state_dict()[name]) for name, tensor in loaded.state_dict().items())
    for name, value in SETTINGS[network].items():  # each setting, as large as it can be asked for
        wide = [2**13] * len(value) if isinstance(value, list) and name != "down" else 2**13
        if name in ("down", "attention_after", "channel_base") or (
            name == "resolution" and network is BigGANDiscriminator
        ):
            continue  # say nothing of a size
        change(tmp_path / "config.json", **{name: wide})
        try:
            _, info = network.from_pretrained(tmp_path, output_loading_info=True)
            assert info["missing_keys"], name  # small blocks that the file does not have
        except ValueError as error:
            assert re.search("at most|do not belong together|shape|not a power of two", str(error))
        change(tmp_path / "config.json", **{name: value})


@pytest.mark.parametrize(
    "settings, why",
    [
        ({"num_mapping_layers": 10**9}, "num_mapping_layers is 1,000,000,000; at least 0 and at most 64"),
        ({"block_channels": [4] * 1000}, "block_channels has 1000 entries; at most 64"),
        ({"block_channels": [10**9, 4, 4]}, r"block_channels[0] is 1,000,000,000; at least"),
        ({"z_dim": 2**24}, "do not belong together"),
        ({"block_channels": [2**15] * 6}, "do not belong together"),
        ({"w_dim": float("nan")}, "w_dim is nan; give a finite number"),
        ({"w_dim": 10**400}, "w_dim is of more than 15 digits; at least 0 and at most"),
        ({"block_channels": "many"}, "could not load the base"),
        ({"block_channels": {"a": [[[]]]}}, "each a positive multiple of 4"),
        ({"z_dim": None}, "could not load the base"),
        ({"z_dim": -5}, "z_dim is -5; at least 0"),
    ],
)
def test_settings_of_a_base_are_bounded(folder, settings, why):
    change(folder / "generator" / "config.json", **settings)
    assert why in refused(folder)


def test_a_network_made_by_hand_may_have_any_size_within_reason():
    assert tiny_stylegan2().config.z_dim == 16
    with pytest.raises(ValueError, match="num_mapping_layers is 1,000,000; at least 0 and at most 64"):
        StyleGAN2Generator(16, num_mapping_layers=10**6)
    with pytest.raises(ValueError, match="mapping_lr_multiplier is inf; give a finite number"):
        StyleGAN2Generator(16, mapping_lr_multiplier=float("inf"))
    with limit_size(10**6), pytest.raises(ValueError, match="has more than .* numbers, the weights at most 1,000,000"):
        StyleGAN2Generator(1024)


# -------------------------------------------------------------------------------------------------------------- files


def test_a_base_lives_on_when_its_files_are_cut_short(folder):
    """Mapped files would end the process with SIGBUS; here they are empty before the first picture is drawn."""
    code = f"""
import os, sys
from pathlib import Path
from fewshot_gan import FewShotGAN, MobileStyleGANGenerator
folder = Path({str(folder)!r})
pipe, network = FewShotGAN.from_pretrained(folder), MobileStyleGANGenerator.from_pretrained(folder / "generator")
for path in folder.glob("*/*.safetensors"):
    os.truncate(path, 0)
first = pipe(1, seed=0, output_type="pt").images
pipe.bank.fingerprint()
print(bool(first.isfinite().all()), sum(float(t.sum()) for t in network.state_dict().values()) != 0)
"""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=120)
    assert done.stdout.strip() == "True True", (done.returncode, done.stderr[-500:])


def test_shards_lie_beside_their_index(folder):
    part = folder / "generator"
    index = part / "diffusion_pytorch_model.safetensors.index.json"
    for content, why in (
        ([], "an array instead of an object"),
        ({}, "it has no weight_map"),
        ({"weight_map": {"a": "../../secret.safetensors"}}, "which is not beside it; do not trust this base"),
        ({"weight_map": {"a": "/etc/passwd"}}, "which is not beside it"),
        ({"weight_map": {"a": "C:\\\\x.safetensors"}}, "which is not beside it"),
        ({"weight_map": {"a": 3}}, "which is not beside it"),
    ):
        index.write_text(json.dumps(content), encoding="utf-8")
        assert why in refused(folder)


def test_sharded_bases_load(tmp_path):
    pipe = FewShotGAN(tiny_stylegan2())
    pipe.save_pretrained(tmp_path, max_shard_size="20KB")
    assert len(list((tmp_path / "generator").glob("*.safetensors"))) > 1
    loaded = FewShotGAN.from_pretrained(tmp_path)
    assert all(torch.equal(t, pipe.generator.state_dict()[k]) for k, t in loaded.generator.state_dict().items())


def test_pickled_weights_are_read_here_first(tmp_path):
    pipe = FewShotGAN(tiny_stylegan2())
    pipe.save_pretrained(tmp_path, safe_serialization=False)
    (path,) = (tmp_path / "generator").glob("*.bin")
    loaded = FewShotGAN.from_pretrained(tmp_path)
    assert all(torch.equal(t, pipe.generator.state_dict()[k]) for k, t in loaded.generator.state_dict().items())
    bombs = hostile.bombs()
    for name in ("memo.pt", "nested.pt", "expanded.pth"):
        content, why = bombs[name]
        path.write_bytes(content)
        assert why in refused(tmp_path)


# -------------------------------------------------------------------------------------------------------------- index


@pytest.mark.parametrize(
    "content, why",
    [
        ([], "an array instead of an object"),
        ("text", "a text instead of an object"),
        ({}, "does not say which pipeline it is of"),
        ({"_class_name": 3}, "does not say which pipeline"),
        ({"_class_name": ["a", "b", "c"]}, "does not say which pipeline"),
        ({"_class_name": [["a"]]}, "does not say which pipeline"),
        ({"generator": ["antigravity", "X"]}, "generator is ['antigravity', 'X']; a base has networks of fewshot_gan"),
        ({"generator": ["transformers", "CLIPModel"]}, "a base has networks of fewshot_gan alone"),
        ({"generator": ["fewshot_gan", "FewShotGAN"]}, "a base has networks of fewshot_gan alone"),
        ({"generator": ["fewshot_gan", "load_encoder"]}, "a base has networks of fewshot_gan alone"),
        ({"generator": ["fewshot_gan", "nothing"]}, "a base has networks of fewshot_gan alone"),
        ({"generator": ["fewshot_gan.cli", "app"]}, "a base has networks of fewshot_gan alone"),
        ({"generator": ["fewshot_gan"]}, "a base has networks of fewshot_gan alone"),
        ({"generator": ["fewshot_gan", ["StyleGAN2Generator"]]}, "a base has networks of fewshot_gan alone"),
        ({"generator": ["\x1b[2J", "X"]}, "a base has networks of fewshot_gan alone"),
        ({"generator": "StyleGAN2Generator"}, "could not load the base"),
        ({"generator": [None, None]}, "could not load the base"),
        ({"generator": ["fewshot_gan", "StyleGAN2Discriminator"]}, "could not load the base"),
        ({"truncation_psi": "0.7"}, "truncation_psi is 0.7; it is a finite number"),
        ({"truncation_psi": float("nan")}, "truncation_psi is nan; it is a finite number"),
        ({"truncation_psi": [1]}, "truncation_psi is [1]; it is a finite number"),
    ],
)
def test_an_index_of_another_shape_is_refused(folder, content, why):
    index = folder / "model_index.json"
    before = json.loads(index.read_text(encoding="utf-8"))
    named = isinstance(content, dict) and content and "_class_name" not in content
    index.write_text(json.dumps(before | content if named else content), encoding="utf-8")
    assert why in refused(folder) and "antigravity" not in sys.modules


def test_code_beside_an_index_is_not_run(folder):
    marker = folder / "marker"
    for name in ("pipeline.py", "generator/network.py"):
        (folder / name).write_text(f"open({str(marker)!r}, 'w').close()\nclass X: pass\n", encoding="utf-8")
    change(folder / "model_index.json", generator=["network", "X"])
    refused(folder)
    change(
        folder / "model_index.json", generator=["fewshot_gan", "MobileStyleGANGenerator"], _class_name=["pipeline", "X"]
    )
    FewShotGAN.from_pretrained(folder)  # as saved bases say, for plain diffusers: our own class runs no file of a base
    assert not marker.exists()


def test_the_path_of_a_folder_is_no_embedded_name(folder, monkeypatch):
    folder.rename(folder.parent / "ffhq")
    monkeypatch.chdir(folder.parent)
    pipe = FewShotGAN.from_pretrained(Path("ffhq"))
    assert pipe.base_name == os.path.join(".", "ffhq") and pipe.generator.resolution < 64
    assert FewShotGAN.from_pretrained(pipe.base_name).bank.fingerprint() == pipe.bank.fingerprint()


def test_an_embedded_name_that_hides_a_folder_is_told(tmp_path, monkeypatch, caplog):
    monkeypatch.chdir(tmp_path)
    for name in ("ffhq-256", "sketch", "pencil"):
        os.mkdir(name)

    def told():
        (record,) = caplog.records
        caplog.clear()
        return record.getMessage()

    pipe = FewShotGAN.from_pretrained("ffhq-256")
    assert told() == ("'ffhq-256' is the embedded base, not the folder of this name; write ./ffhq-256 for the folder")
    pipe.load_adapter("sketch")
    assert told() == "'sketch' is the embedded adapter, not the folder of this name; write ./sketch for the folder"
    assert data_source("pencil") == str(embedded_datasets()["pencil"])
    assert told() == "'pencil' is the embedded image set, not the folder of this name; write ./pencil for the folder"
    assert data_source("./pencil") == "./pencil" and data_source(Path("pencil")) == os.path.join(".", "pencil")
    os.rmdir("sketch")
    pipe.load_adapter("sketch", "again")
    assert not caplog.records
