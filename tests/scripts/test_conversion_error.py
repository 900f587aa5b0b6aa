"""The measure of a conversion: none of the same network, and what it says of another one."""

import json
import math

import torch
from helpers.networks import tiny_mobile

from fewshot_gan import FewShotGAN
from fewshot_gan.data.images import to_bytes


def pictures(generator, z, psi):
    with torch.no_grad():
        return [generator(row, truncation_psi=psi) for row in z.split(1)]


def test_what_it_measures(script):
    measure, generator, z = script("conversion_error"), tiny_mobile().eval(), torch.randn(3, 16)
    drawn = pictures(generator, z, 0.7)
    same = measure.difference(generator, iter(drawn), z, 0.7)
    assert same["largest_difference"] == same["bytes_that_differ"] == 0 and math.isinf(same["psnr_least_db"])
    moved = [drawn[0], drawn[1] + 0.25, drawn[2]]
    found = measure.difference(generator, iter(moved), z, 0.7)
    assert abs(found["largest_difference"] - 0.25) < 1e-6 and abs(found["mean_difference"] - 0.25 / 3) < 1e-6
    error = (moved[1].clamp(-1, 1) - drawn[1].clamp(-1, 1)).square().mean()
    assert abs(found["psnr_least_db"] - float(10 * torch.log10(4 / error))) < 1e-3
    steps = (to_bytes(moved[1].clamp(-1, 1)).int() - to_bytes(drawn[1].clamp(-1, 1)).int()).abs()
    assert found["largest_difference_of_bytes"] == int(steps.max()) > 0
    assert abs(found["bytes_that_differ"] - float((steps > 0).float().mean()) / 3) < 1e-6


def test_the_report_says_how_it_was_made(script, tmp_path, monkeypatch, capsys):
    measure, generator = script("conversion_error"), tiny_mobile().eval()
    FewShotGAN(generator).save_pretrained(tmp_path / "base")
    wanted = lambda wheel, z, psi: iter(x + 0.01 for x in pictures(generator, z, psi))  # noqa: E731
    monkeypatch.setattr(measure, "openvino_pictures", wanted)
    options = [f"--base={tmp_path / 'base'}", "--wheel=x.whl", "--num=2", "--psi=0.5", "--seed=3"]
    found = measure.main([*options, f"--out={tmp_path / 'out.json'}"])
    assert (
        found == json.loads((tmp_path / "out.json").read_text(encoding="utf-8")) == json.loads(capsys.readouterr().out)
    )
    assert (found["num"], found["psi"], found["seed"]) == (2, 0.5, 3)
    assert abs(found["largest_difference"] - 0.01) < 1e-6
