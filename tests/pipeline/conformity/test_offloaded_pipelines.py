"""Pipelines whose weights are elsewhere: they draw the same, and refuse what would write to such weights."""

from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext

import pytest
import torch
from helpers.every_network import inputs, labels
from helpers.every_pipeline import draw, piped
from helpers.offloading import PIPE_WAYS, ROUNDING, offload_pipe

from fewshot_gan.adapters import LeFTAdapter


@pytest.mark.parametrize("way", PIPE_WAYS)
def test_offloaded_pipelines_draw_the_same(pipe, look, way, tmp_path, poison):
    names = ["look", "__base__", "look"]
    want, mixed = draw(pipe), draw(pipe, adapter_names=names)
    assert (want - mixed).abs().max() > 1e-3
    offload_pipe(pipe, way, tmp_path)
    for _ in range(2):
        torch.testing.assert_close(draw(pipe), want, **ROUNDING)
        torch.testing.assert_close(draw(pipe, adapter_names=names), mixed, rtol=0, atol=1e-4)  # the promise of rows
    assert pipe._execution_device.type == "cpu"
    pipe.delete_adapters("look")
    pipe.load_adapter(look, "again")  # known by the weights that are elsewhere now
    torch.testing.assert_close(draw(pipe), want, **ROUNDING)


@pytest.mark.parametrize("way", PIPE_WAYS)
@pytest.mark.parametrize("name", ["mobile", "biggan"])
def test_threads_take_turns_with_an_offloaded_pipeline(name, way, tmp_path, poison):
    pipe = piped(name)
    want = [draw(pipe, 2, seed=seed) for seed in range(8)]
    offload_pipe(pipe, way, tmp_path)
    with ThreadPoolExecutor(4) as pool:
        drawn = list(pool.map(lambda seed: draw(pipe, 2, seed=seed), range(8)))
    torch.testing.assert_close(drawn, want, **ROUNDING)


@pytest.mark.parametrize("way", ["sequential", "leaf_level"])
def test_what_would_write_to_offloaded_weights_is_refused(pipe, look, way, tmp_path):
    want = draw(pipe)
    offload_pipe(pipe, way, tmp_path / "offloaded")
    with pytest.raises(ValueError, match="cannot fuse adapters while the weights of .* are offloaded"):
        pipe.fuse_adapters()
    with pytest.raises(ValueError, match="cannot save while"):
        pipe.save_pretrained(tmp_path / "saved")
    torch.testing.assert_close(draw(pipe), want, **ROUNDING)


def test_fused_adapters_are_not_undone_while_offloaded():
    pipe = piped("gp_gan")
    adapter = LeFTAdapter.for_model(pipe.generator)
    pipe.load_adapter(adapter, "look")
    pipe.fuse_adapters()
    want = draw(pipe)
    pipe.enable_sequential_cpu_offload(device="cpu")
    with pytest.raises(ValueError, match="cannot undo fuse_adapters while"):
        pipe.unfuse_adapters()
    torch.testing.assert_close(draw(pipe), want, **ROUNDING)
    pipe.remove_all_hooks()
    pipe.unfuse_adapters()


@pytest.mark.parametrize("name", ["mobile", "stylegan2"])
def test_pictures_are_inverted_while_offloaded(name, tmp_path):
    pipe = piped(name)
    photos = 2 * draw(pipe, 2) - 1
    options = {"steps": 3, "perceptual": "none", "progress": False}
    want = pipe.invert(photos, **options).latents
    for way in ("model", "sequential"):
        offload_pipe(pipe, way, tmp_path)
        torch.testing.assert_close(pipe.invert(photos, **options).latents, want, rtol=0, atol=1e-4)  # three steps
        pipe.remove_all_hooks()
    offload_pipe(pipe, "leaf_level", tmp_path)
    with pytest.raises(ValueError, match="cannot invert pictures while .* is offloaded in groups"):
        pipe.invert(photos, **options)


def test_adapters_follow_the_generators_device(pipe, look, monkeypatch):
    """The place of a GPU is taken by "meta", where shapes are computed and numbers are not."""
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: nullcontext())  # "meta" has none
    pipe.generator.to("meta")
    (latents,) = inputs(pipe.generator)
    drawn = pipe.generator(latents.to("meta"), **labels(pipe.generator))
    assert drawn.is_meta and drawn.shape[1:] == (3, pipe.generator.resolution, pipe.generator.resolution)
    assert {tensor.device.type for tensor in look.parameters()} == {"meta"}
