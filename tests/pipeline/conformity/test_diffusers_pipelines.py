"""What diffusers asks of its pipelines, asked of a pipeline of every generator."""

import copy
import math
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from diffusers.training_utils import EMAModel
from helpers.every_network import GENERATORS, same
from helpers.every_pipeline import DRAWN, draw, draw_one, piped
from safetensors.torch import save_file

from fewshot_gan import FewShotGAN
from fewshot_gan.apps.cli.sources import read_latents
from fewshot_gan.apps.generation import write_pictures


@pytest.mark.parametrize("name", GENERATORS)
def test_draws_in_evaluation_mode_whatever_mode_it_was_given(name):
    pipe = piped(name, training=True)
    assert not any(part.training for part in pipe.components.values() if part is not None)
    torch.testing.assert_close(draw(pipe, 1)[0], draw(pipe, 5)[0], rtol=0, atol=1e-4)  # the promise of batches
    want, state = draw(pipe), {k: v.clone() for k, v in pipe.generator.state_dict().items()}
    pipe.generator.train()
    frozen = next(iter(pipe.generator.children())).eval()
    assert torch.equal(draw(pipe), want)
    assert pipe.generator.training and not frozen.training  # as the user left them
    assert all(torch.equal(v, state[k]) for k, v in pipe.generator.state_dict().items())


def test_threads_that_draw_leave_the_mode_to_the_last():
    pipe = piped("biggan")
    want = draw(pipe, 2)
    pipe.generator.train()
    with ThreadPoolExecutor(4) as pool:
        drawn = list(pool.map(lambda _: draw(pipe, 2), range(40)))
    assert all(torch.equal(images, want) for images in drawn) and pipe.generator.training


def test_outputs_of_each_kind_are_the_same_pictures(pipe):
    options = {**DRAWN, "class_labels": pipe.some_labels(2)}
    output, pair = pipe(2, **options), pipe(2, **options, return_dict=False)
    assert type(pair) is tuple and same([*output.to_tuple()], [*pair])
    arrays = pipe(2, **{**options, "output_type": "np"}).images
    assert torch.equal(torch.from_numpy(arrays).permute(0, 3, 1, 2), output.images)
    pictures = np.stack([np.asarray(image) for image in pipe(2, **{**options, "output_type": "pil"}).images])
    assert np.abs(pictures / 255 - arrays).max() <= 0.501 / 255  # rounded to 256 levels


def test_a_picture_is_the_same_alone_and_in_batches_of_any_size(pipe):
    want = draw(pipe, 5)
    for batch_size in (1, 2, 3):
        torch.testing.assert_close(draw(pipe, 5, batch_size=batch_size), want, rtol=0, atol=1e-4)  # as promised
    random = [torch.Generator().manual_seed(i) for i in range(3)]
    listed = draw(pipe, 3, seed=None, generator=random)
    for i in range(3):
        alone = draw_one(pipe, i, seed=None, generator=torch.Generator().manual_seed(i))
        torch.testing.assert_close(alone, listed[i], rtol=0, atol=1e-4)


def test_parts_that_may_be_left_out(pipe, tmp_path):
    want = draw(pipe)
    pipe.save_pretrained(tmp_path)
    bare = FewShotGAN.from_pretrained(tmp_path, discriminator=None, projected_discriminator=None)
    assert [name for name, part in bare.components.items() if part is not None] == ["generator"]
    assert torch.equal(draw(bare), want)
    bare.save_pretrained(tmp_path / "bare")
    assert torch.equal(draw(FewShotGAN.from_pretrained(tmp_path / "bare")), want)
    given = FewShotGAN.from_pretrained(tmp_path, generator=pipe.generator)
    assert given.generator is pipe.generator and torch.equal(draw(given), want)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64], ids=str)
def test_a_pipeline_is_cast_and_draws_about_the_same(pipe, look, dtype):
    want = draw(pipe)
    assert pipe.to(dtype) is pipe and {part.dtype for part in pipe.components.values() if part} == {dtype} == {
        pipe.dtype
    }
    assert {p.dtype for p in look.parameters()} == {torch.float32}
    drawn = draw(pipe)
    assert drawn.dtype == torch.float32 and torch.isfinite(drawn).all()
    assert (drawn - want).abs().mean() < 30 * torch.finfo(dtype).eps + 1e-5  # a dozen layers round one after another


def test_an_average_of_weights_is_drawn_with_and_without_adapters(pipe, look):
    """diffusers' EMAModel writes through `.data`, which leaves no trace on a tensor."""
    draw(pipe), draw(pipe, adapter_names="__base__")  # cached now
    average = EMAModel(pipe.generator.parameters())
    average.shadow_params = [p * 1.25 for p in average.shadow_params]
    average.copy_to(pipe.generator.parameters())
    fresh = FewShotGAN(copy.deepcopy(pipe.generator))
    looks = [draw(pipe), draw(pipe, adapter_names="__base__")]
    assert torch.equal(looks[1], draw(fresh))
    other = copy.deepcopy(look)
    other.register_to_config(base_fingerprint=None)
    fresh.load_adapter(other, "look")
    assert torch.equal(looks[0], draw(fresh))


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, 1e39], ids=str)
def test_latents_that_are_no_numbers_are_refused(pipe, bad, tmp_path):
    latents = torch.zeros(3, pipe.generator.z_dim, dtype=torch.float64)
    latents[1, 2] = bad
    labels = pipe.some_labels(3)
    with pytest.raises(ValueError, match=r"latents\[1\] has numbers that are NaN, infinite or beyond torch.float32"):
        pipe(latents=latents, class_labels=labels)
    with pytest.raises(ValueError, match=r"latents\[1\] has numbers"):
        next(pipe.stream(3, latents=latents, batch_size=1, class_labels=labels))  # before the first, which is good
    with pytest.raises(ValueError, match=r"latents\[1\] has numbers"):
        pipe.interpolate("__base__", "__base__", 2, latents=latents, class_labels=labels)
    with pytest.raises(ValueError, match=r"latents\[1\] has numbers"):
        write_pictures(pipe, tmp_path / "pictures", 3, latents=latents, class_labels=labels)
    assert not (tmp_path / "pictures").exists()
    path = tmp_path / "latents.safetensors"
    save_file({"latents": latents}, path)
    with pytest.raises(ValueError, match=r"the latents in .*latents.safetensors\[1\] has numbers"):
        read_latents(path)


def test_latents_too_large_for_half_precision_are_refused(pipe):
    pipe.to(torch.bfloat16)
    latents = torch.full((1, pipe.generator.z_dim), 1e38)
    pipe.generator.to(torch.float16)
    with pytest.raises(ValueError, match="beyond torch.float16"):
        pipe(latents=latents, class_labels=pipe.some_labels(1))


@pytest.mark.parametrize(
    "wrong", [torch.zeros(2, 8, dtype=torch.complex64), torch.zeros(2, 8) > 0, [[0.0]], torch.zeros(8)]
)
def test_latents_of_another_kind_are_refused(wrong):
    with pytest.raises(ValueError, match="latents are"):
        piped("sngan")(latents=wrong)
    with pytest.raises(ValueError, match="latents are"):
        piped("sngan").interpolate("__base__", "__base__", latents=wrong)


@pytest.mark.parametrize("option", ["dtype", pytest.param("torch_dtype", marks=pytest.mark.slow)])
def test_a_pipeline_loads_in_half_precision(pipe, tmp_path, option):
    pipe.save_pretrained(tmp_path / "shards", max_shard_size="2KB", variant="a")
    assert len(list((tmp_path / "shards" / "generator").glob("diffusion_pytorch_model.a-*.safetensors"))) > 1
    assert torch.equal(draw(FewShotGAN.from_pretrained(tmp_path / "shards", variant="a")), draw(pipe))
    pipe.save_pretrained(tmp_path)
    loaded = FewShotGAN.from_pretrained(tmp_path, **{option: torch.float16})
    assert {part.dtype for part in loaded.components.values() if part is not None} == {torch.float16}
    assert loaded.bank.fingerprint() == pipe.bank.fingerprint()  # adapters fit all the same
    assert (draw(loaded) - draw(pipe)).abs().max() < 0.05  # half precision rounds to a thousandth, layer after layer
    exact = FewShotGAN.from_pretrained(tmp_path, low_cpu_mem_usage=False, use_safetensors=True)
    assert torch.equal(draw(exact), draw(pipe)) and exact.dtype == torch.float32


def test_a_pipeline_takes_a_dtype_for_each_part_and_no_two(tmp_path):
    piped("biggan").save_pretrained(tmp_path)
    loaded = FewShotGAN.from_pretrained(tmp_path, torch_dtype={"generator": torch.bfloat16, "default": torch.float32})
    assert (loaded.generator.dtype, loaded.discriminator.dtype) == (torch.bfloat16, torch.float32)
    assert FewShotGAN.from_pretrained(tmp_path, dtype=torch.half, torch_dtype=torch.half).dtype == torch.half
    with pytest.raises(ValueError, match="two names of one option"):
        FewShotGAN.from_pretrained(tmp_path, dtype=torch.half, torch_dtype=torch.float32)
    with pytest.raises(ValueError, match="dtype='half': give one of torch.float16"):
        FewShotGAN.from_pretrained(tmp_path, dtype="half")
