"""Grids: their size, and what no format can hold is refused before anything is drawn."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from fewshot_gan import FewShotGAN
from fewshot_gan.adapters import LeFTAdapter
from fewshot_gan.cli import app
from fewshot_gan.data.grids import GAP, TILE, WRITTEN, check_grid, check_size, grid_size, make_grid, shrink


@pytest.mark.parametrize("count, columns", [(1, 1), (5, 3), (6, 3), (7, 3), (2, 4)])
def test_a_grid_has_the_size_that_is_checked(count, columns):
    grid = make_grid([Image.new("RGB", (32, 20))] * count, columns)
    assert grid.size == grid_size(count, columns, 32, 20)
    assert grid.size == (columns * 32 + (columns - 1) * GAP, -(-count // columns) * 24 - GAP)


def test_large_images_become_tiles():
    stripes = Image.effect_noise((64, 32), 200).convert("RGB")
    assert shrink(stripes, 64) is stripes  # what is small enough stays as it is
    small = shrink(stripes, 16)
    assert small.size == (16, 8)
    means = np.asarray(stripes, float).reshape(8, 4, 16, 4, 3).mean((1, 3))
    assert np.abs(np.asarray(small) - means).mean() < 15  # no pixel is left out: single pixels would be 100 away
    grid = make_grid([stripes] * 3, 2, tile=16)
    assert grid.size == grid_size(3, 2, 16, 8) and grid.crop((0, 0, 16, 8)).tobytes() == small.tobytes()
    assert make_grid([stripes.resize((1024, 1024))], 1).size == (TILE, TILE) == (512, 512)


def test_sizes():
    assert check_size(None, 8) == 8 and check_size(8, 8) == 8 and check_size(16, 1024) == 16
    for size in (15, 1025, 16.0, "64"):
        with pytest.raises(ValueError, match=f"^size {size!r}: give a whole number of px from 16 to 1,024"):
            check_size(size, 1024)


BOUNDED = {ending: limit for ending, limit in WRITTEN.items() if limit <= 2**20}


@pytest.mark.parametrize("ending", sorted(WRITTEN.keys() - BOUNDED.keys()))
def test_pillow_writes_pngs_of_any_size_that_memory_holds(ending):
    check_grid(Path(f"a{ending}"), 1, 1, 100_000)


@pytest.mark.parametrize("ending, limit", BOUNDED.items(), ids=BOUNDED)
def test_pillow_writes_what_passes_and_not_a_pixel_more(ending, limit, tmp_path):
    Image.new("L", (limit, 2)).convert("RGB").save(tmp_path / f"a{ending}")
    with pytest.raises((OSError, ValueError)):
        Image.new("RGB", (limit + 1, 2)).save(tmp_path / f"b{ending}")
    check_grid(Path(f"a{ending}"), 1, 1, limit)
    with pytest.raises(ValueError, match=f"holds no more than {limit:,} a side; give a name ending in .png"):
        check_grid(Path(f"a{ending.upper()}"), 1, 1, limit + 1)


@pytest.mark.parametrize(
    "options, size",
    [
        (["--num-images=500", "--compare", "--out=a.webp"], "17,996x68"),
        (["--interpolate=500", "--num-images=2", "--out=a.webp"], "17,996x68"),
        (["--interpolate=2", "--num-images=500", "--out=a.webp"], "68x17,996"),
        (["--num-images=210000", "--out=a.webp"], "16,520x16,484"),
        (["--num-images=2000", "--compare", "--out=a.jpg"], "71,996x68"),
    ],
)
def test_too_wide_a_grid_is_refused_before_it_is_drawn(base_folder, tmp_path, monkeypatch, options, size):
    """WebP ends at 16,383 px: an error came after all pictures were drawn."""
    LeFTAdapter.for_model(FewShotGAN.from_pretrained(base_folder).generator).save_pretrained(tmp_path / "mine")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(FewShotGAN, "__call__", lambda *a, **k: pytest.fail("drawn"))
    done = CliRunner().invoke(app, ["generate", f"--base={base_folder}", "--adapter=./mine", *options])
    assert done.exit_code == 2 and f"the grid would be {size} px" in done.stderr and done.stderr.count("\n") == 1
    assert not list(tmp_path.glob("a.*"))
