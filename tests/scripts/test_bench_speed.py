"""The speed bench compares networks that draw the same, and refuses what it cannot compare."""

import pytest
import torch
from helpers.networks import tiny_stylegan2


@torch.no_grad()
def test_the_grouped_reference_draws_what_the_package_draws(script):
    bench, generator = script("bench_speed"), tiny_stylegan2()
    ws = generator.map_latents(torch.randn(3, generator.z_dim))
    want = generator.synthesis(ws)
    replaced = lambda: (  # noqa: E731
        bench.stylegan2.modulated_conv2d is bench.grouped_modulated_conv2d,
        bench.layers.upsample2d is bench.zeros_between_upsample2d,
    )
    with bench.as_first_implemented():
        assert replaced() == (True, True)
        got = generator.synthesis(ws)
    assert replaced() == (False, False)
    torch.testing.assert_close(got, want, atol=1e-4, rtol=1e-4)


def test_a_table_says_what_was_compared(script):
    bench = script("bench_speed")
    measured = {"ratio": 1.5, "quartiles": [1.25, 2.0], "median_ms": [300.0, 200.0]}
    lines = bench.table([bench.row("step", "old / new", measured, **{"peak MiB now": 2048.0})]).splitlines()
    assert lines[-1] == "| step | old / new | 1.50 | 1.25–2.00 | 300.0 / 200.0 | peak MiB now 2.05e+03 |"


@pytest.mark.parametrize(
    "options, message",
    [
        (["--repeats=1"], "--repeats 1: give 2 or more"),
        (["--only", "step"], "section step needs --beside"),
        (["--beside", "nowhere"], "nowhere is no checkout"),
    ],
)
def test_refusals(script, capsys, tmp_path, options, message):
    with pytest.raises(SystemExit):
        script("bench_speed").main([f"--output_dir={tmp_path / 'out'}", *options])
    assert message in capsys.readouterr().err and not (tmp_path / "out").exists()
