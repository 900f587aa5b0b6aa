"""Scripts around limited data: data sets made locally, and the judge of bases trained on them."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from helpers.hub_server import HubServer
from helpers.networks import tiny_stylegan2
from PIL import Image

from fewshot_gan.adapters.ticket import magnitude_masks, prunable
from fewshot_gan.data.datasets import load_labelled
from fewshot_gan.models import SNGANDiscriminator, SNGANGenerator
from fewshot_gan.pipeline import FewShotGAN


def test_faces_are_samples_of_the_base(script, base_folder, tmp_path):
    make_data = script("make_data")
    common = [f"--base={base_folder}", "--resolution=32", "--seed=3"]
    make_data.main(["--faces=5", f"--out={tmp_path / 'a'}", *common])
    info = json.loads((tmp_path / "a" / "dataset.json").read_text(encoding="utf-8"))
    assert (info["num"], info["seed"], info["resolution"], info["style"]) == (5, 3, 32, "faces")
    files = sorted((tmp_path / "a").glob("*.png"))
    assert [f.name for f in files] == [f"{i:03d}.png" for i in range(5)]
    assert Image.open(files[0]).size == (32, 32)
    make_data.CHUNK = 2
    make_data.main(["--faces=7", f"--out={tmp_path / 'b'}", *common])
    # a longer run, in other chunks, starts with the same images; a product of another size may round otherwise
    for path in files:
        assert furthest(Image.open(tmp_path / "b" / path.name), Image.open(path)) <= 1
    pipe = FewShotGAN.from_pretrained(base_folder)
    assert furthest(pipe(1, seed=3, truncation_psi=0.7).images[0], Image.open(files[0])) <= 1


def furthest(a, b) -> int:
    """Largest difference of two pictures, in levels of 255."""
    return int(np.abs(np.asarray(a, np.int16) - np.asarray(b, np.int16)).max())


def test_classes_get_a_folder_each(script, tmp_path, monkeypatch):
    make_data = script("make_data")
    shade = {"lorelei": 10, "micah": 200}
    drawn = lambda style, num, size, seed: torch.full((num, 3, size, size), shade[style], dtype=torch.uint8)  # noqa: E731
    monkeypatch.setattr(make_data, "render_dicebear", drawn)
    monkeypatch.setattr(make_data, "parse_style", lambda style: style.split(":"))
    monkeypatch.setattr(make_data, "dicebear_licence", lambda style: {"text": f"{style}'s"})
    make_data.main(["--classes", "micah", "lorelei", "--num=3", "--resolution=32", f"--out={tmp_path / 'out'}"])
    images, labels, names = load_labelled(tmp_path / "out", 32)
    assert names == ["lorelei", "micah"] and labels.tolist() == [0, 0, 0, 1, 1, 1]
    assert images[0].unique().tolist() == [10] and images[-1].unique().tolist() == [200]
    assert (
        "micah: micah's"
        in json.loads((tmp_path / "out" / "dataset.json").read_text(encoding="utf-8"))["licence"]["text"]
    )


def test_make_data_refuses(script, tmp_path, capsys):
    make_data = script("make_data")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "x").touch()
    for options, message in (
        (["--faces=1"], "--faces 1 is below 2"),
        (["--faces=5", "--resolution=16"], "--resolution 16 is below 32"),
        (["--faces=5", f"--out={tmp_path / 'full'}"], "is not empty"),
        ([], "one of the arguments --faces --classes is required"),
    ):
        with pytest.raises(SystemExit):
            make_data.main([f"--out={tmp_path / 'out'}", *options])
        assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_bases_are_judged_by_what_they_never_saw(script, features, tmp_path, monkeypatch, capsys):
    bench = script("limited_bench")
    monkeypatch.setattr(bench, "load_features", lambda *a: features)
    torch.manual_seed(0)
    model = SNGANGenerator(8, 6, 32).eval()
    pipe = FewShotGAN(model)
    pipe.save_pretrained(tmp_path / "other")
    data = tmp_path / "data"
    data.mkdir()
    for i, image in enumerate(pipe(24, seed=9).images):  # its own pictures: it draws the truth
        image.save(data / f"{i:02d}.png")
    FewShotGAN(model, truncation_psi=0.3).save_pretrained(tmp_path / "same")
    torch.manual_seed(1)
    FewShotGAN(SNGANGenerator(8, 6, 32).eval()).save_pretrained(tmp_path / "other")
    runs = [str(tmp_path / name) for name in ("same", "other")]
    report = bench.main([*runs, f"--data={data}", "--num=8", f"--out={tmp_path / 'out'}", "--num_threads=1"])
    assert report["protocol"]["num"] == 16 and report["protocol"]["trained_on"] == 8
    assert report["protocol"]["truncation_psi"] == 1.0  # that of the training, not the pipeline's own
    same, other = (report["results"][run] for run in runs)
    for key in ("kid_x1e3", "frechet", "unseen_x1e3"):
        assert same[key] < other[key] / 2
    assert same["sparsity"] == 0
    assert json.loads((tmp_path / "out" / "limited_bench.json").read_text(encoding="utf-8")) == report
    assert (tmp_path / "out" / "table.md").read_text(encoding="utf-8").count("\n") == 6
    assert Image.open(tmp_path / "out" / "sheet.png").size == (8 * 64, 3 * 64)
    assert report["protocol"]["resolution"] == 32
    capsys.readouterr()
    FewShotGAN(tiny_stylegan2(resolution=64)).save_pretrained(tmp_path / "large")
    monkeypatch.setattr(bench, "load_features", None)  # nothing is judged below
    for more, message in (
        ([], "has 24 images, of which training takes 24, and --most 5000 leaves 0 to judge by; leave 4"),
        (["--num=8", "--most=3"], "training takes 8, and --most 3 leaves 3 to judge by; leave 4 or more"),
        (["--num=8", str(tmp_path / "large")], f"different sizes ({tmp_path / 'large'} 64 px, {runs[0]} 32 px"),
    ):
        with pytest.raises(SystemExit):
            bench.main([f"--data={data}", *more, *runs])
        assert message in capsys.readouterr().err


def test_a_base_without_classes_is_judged_by_a_folder_of_classes(script, features, tmp_path, monkeypatch):
    bench = script("limited_bench")
    monkeypatch.setattr(bench, "load_features", lambda *a: features)
    pipe = FewShotGAN(SNGANGenerator(8, 6, 32).eval())
    pipe.save_pretrained(tmp_path / "base")
    for i, image in enumerate(pipe(10, seed=9).images):
        (folder := tmp_path / "data" / "ab"[i % 2]).mkdir(parents=True, exist_ok=True)
        image.save(folder / f"{i}.png")
    options = [f"--data={tmp_path / 'data'}", "--num=4", f"--out={tmp_path / 'out'}", "--num_threads=1"]
    report = bench.main([str(tmp_path / "base"), *options])
    assert report["protocol"]["num"] == 6 and str(tmp_path / "base") in report["results"]


def test_what_a_ticket_is_worth(script, tmp_path, capsys):
    bench, folders = script("benchmark_tickets"), []
    for sparsity in (0.0, 0.75):
        torch.manual_seed(0)
        g, d = SNGANGenerator(8), SNGANDiscriminator(8, 32)
        with torch.no_grad():
            for path, mask in magnitude_masks(g, sparsity).items():
                prunable(g)[path].mul_(mask)
            if sparsity:
                g.to_rgb.weight[1] = 0
                g.to_rgb.weight[0] = torch.tensor([0.0, 0, 0, 1, 0, 0, 2, 3])[:, None, None]
        FewShotGAN(g, d).save_pretrained(folder := tmp_path / f"base-{sparsity}")
        folders.append(folder)
    out = tmp_path / "tickets.json"
    report = bench.main([*map(str, folders), "--batch=2", "--repeats=2", "--num_threads=1", f"--out={out}"])
    dense, ticket = (report[str(folder)] for folder in folders)
    total = sum(w.numel() for w in prunable(g).values())
    assert dense["sparsity"] == dense["empty_channels"] == dense["groups_of_four_with_two_zeros"] == 0
    assert dense["mask"] == ticket["mask"] == sum(-(-w.numel() // 8) for w in prunable(g).values())
    assert ticket["sparsity"] == pytest.approx(0.75, abs=0.01) and ticket["mask_entropy"] < ticket["mask"]
    assert ticket["empty_channels"] >= 1 and 0.5 < ticket["groups_of_four_with_two_zeros"] < 1
    assert bench.fours(g.to_rgb.weight[:1, :, :1, :1]).tolist() == [3, 2]
    assert ticket["dense_fp16"] == 2 * total and ticket["index_and_fp16_values"] < 3 * total
    for row in (dense, ticket):
        assert {*row["time"]} == {"masked", "csr"} and all(t["ratio"] > 0 for t in row["time"].values())
    assert json.loads(out.read_text(encoding="utf-8"))["tickets"].keys() == report.keys()
    assert out.with_suffix(".md").read_text(encoding="utf-8").count("kB") == 6
    with pytest.raises(SystemExit):
        bench.main([str(folders[0]), "--repeats=1", f"--out={out}"])
    assert "--repeats 1: give 2 or more" in capsys.readouterr().err


HUB = """
import sys, torch
from fewshot_gan.data.datasets import load_labelled
images, labels, names = load_labelled("uoft-cs/tiny10", 32)
torch.save({"images": images, "labels": labels, "names": names}, sys.argv[1])
"""


def test_a_labelled_data_set_comes_by_its_id(tmp_path):
    """CIFAR-10's layout on the Hub (parquet, a ClassLabel), over HTTP, in a process of its own."""
    import datasets

    pixels = torch.randint(0, 256, (5, 32, 32, 3), generator=torch.Generator().manual_seed(0)).byte()
    rows = {"img": [Image.fromarray(p.numpy()) for p in pixels], "label": [2, 0, 1, 0, 2]}
    features = {"img": datasets.Image(), "label": datasets.ClassLabel(names=["plane", "car", "bird"])}
    data = datasets.Dataset.from_dict(rows, features=datasets.Features(features))
    data.to_parquet(tmp_path / "train.parquet")
    with HubServer() as hub:
        hub.commit(
            "uoft-cs/tiny10", {"plain_text/train-00000-of-00001.parquet": (tmp_path / "train.parquet").read_bytes()}
        )
        env = {k: v for k, v in os.environ.items() if not k.startswith("HF_")}
        env |= {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "home"), "HF_HUB_DISABLE_XET": "1"}
        command = [sys.executable, "-c", HUB, str(tmp_path / "out.pt")]
        done = subprocess.run(command, capture_output=True, text=True, env=env)
    assert done.returncode == 0, done.stderr
    found = torch.load(tmp_path / "out.pt", weights_only=True)
    assert found["names"] == ["plane", "car", "bird"] and found["labels"].tolist() == rows["label"]
    assert torch.equal(found["images"], pixels.permute(0, 3, 1, 2))
    folders = tmp_path / "folders"
    for i, label in enumerate(rows["label"]):
        (folders / str(label)).mkdir(parents=True, exist_ok=True)
        rows["img"][i].save(folders / str(label) / f"{i}.png")
    images, labels, names = load_labelled(f"imagefolder:{folders}", 32)
    plain = load_labelled(folders, 32)
    assert names == plain[2] and torch.equal(labels, plain[1]) and torch.equal(images, plain[0])
