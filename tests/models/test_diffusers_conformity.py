"""What diffusers asks of its own models and pipelines, asked of every network of this package and of the pipeline.

diffusers ships no tests; these are its common checks in our words, one row per network and one per base.
"""

import pytest
import torch
from helpers.every_network import (
    NETWORKS,
    arguments,
    differ,
    inputs,
    labels,
    made,
    result,
    same,
    tensors,
)

from fewshot_gan import NetworkOutput, ProjectedDiscriminator

# ------------------------------------------------------------------------------------------------ save, load and dtype


def test_draws_the_same_twice_and_needs_no_gradient_mode(network):
    first = result(network)
    assert same(result(network), first) and all(torch.isfinite(x).all() and x.std() > 1e-3 for x in first)


@pytest.mark.parametrize("safe", [True, False], ids=["safetensors", "bin"])
def test_save_and_load(network, tmp_path, safe):
    network.save_pretrained(tmp_path, safe_serialization=safe)
    loaded = type(network).from_pretrained(tmp_path)
    assert same(result(loaded), result(network)) and not any(module.training for module in loaded.modules())
    assert arguments(loaded) == arguments(network)


def test_variant_and_shards(network, tmp_path):
    network.save_pretrained(tmp_path, max_shard_size="2KB", variant="fp32")
    files = sorted(path.name for path in tmp_path.glob("*.safetensors"))
    assert len(files) > 1 and all(name.startswith("diffusion_pytorch_model.fp32-0") for name in files)
    assert same(result(type(network).from_pretrained(tmp_path, variant="fp32")), result(network))
    with pytest.raises(OSError):
        type(network).from_pretrained(tmp_path, variant="fp16")


DTYPES = [torch.float16, torch.bfloat16, torch.float64]


@pytest.mark.parametrize(
    "option, dtype, low",
    [*(("dtype", dtype, True) for dtype in DTYPES), ("dtype", DTYPES[0], False), ("torch_dtype", DTYPES[1], True)],
    ids=str,
)
def test_loads_in_any_precision(network, tmp_path, dtype, low, option):
    network.save_pretrained(tmp_path)
    loaded = type(network).from_pretrained(tmp_path, **{option: dtype}, low_cpu_mem_usage=low)
    state = [*loaded.parameters(), *loaded.buffers()]
    assert {tensor.dtype for tensor in state if tensor.is_floating_point()} == {dtype} == {loaded.dtype}
    assert torch.get_default_dtype() == torch.float32
    drawn = result(loaded)
    assert {x.dtype for x in drawn} == {dtype}
    # rounding of weights and features, over a dozen layers of random weights: a few hundred times that of one number,
    # beside that of float32 itself, which counts for more where a logit is the small difference of large numbers
    assert differ(drawn, result(network)) < 300 * torch.finfo(dtype).eps + 1e-4


def test_moved_and_loaded_in_half_precision_are_the_same(network, tmp_path):
    network.save_pretrained(tmp_path)
    loaded = type(network).from_pretrained(tmp_path, dtype=torch.bfloat16)
    assert same(result(loaded), result(network.to(torch.bfloat16)))


def test_one_dtype_under_two_names(tmp_path):
    network = made("stylegan2-G")
    network.save_pretrained(tmp_path)
    loaded = type(network).from_pretrained(tmp_path, dtype=torch.float16, torch_dtype=torch.float16)
    assert loaded.dtype == torch.float16
    with pytest.raises(ValueError, match="dtype=torch.float16 and torch_dtype=torch.float32 are two names"):
        type(network).from_pretrained(tmp_path, dtype=torch.float16, torch_dtype=torch.float32)
    for wrong in ("fp16", torch.int64, torch.float8_e4m3fn):
        with pytest.raises(ValueError, match="give one of torch.float16, torch.bfloat16, torch.float32, torch.float64"):
            type(network).from_pretrained(tmp_path, torch_dtype=wrong)


def test_a_failed_load_leaves_torchs_default_dtype_alone(network, tmp_path):
    network.save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text(
        '{"resolution": "large", "channels": "x", "block_channels": 3}', encoding="utf-8"
    )
    with pytest.raises(Exception):  # noqa: B017
        type(network).from_pretrained(tmp_path, dtype=torch.float16, low_cpu_mem_usage=False)
    assert torch.get_default_dtype() == torch.float32


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", NETWORKS)
def test_fresh_weights_of_half_precision_are_those_of_float32(name, dtype):
    """Orthogonal weights need a QR decomposition that half precision lacks."""
    torch.manual_seed(0)
    torch.set_default_dtype(dtype)
    try:
        network = NETWORKS[name]()
    finally:
        torch.set_default_dtype(torch.float32)
    assert all(torch.isfinite(tensor).all() for tensor in network.state_dict().values())
    for layer in network.modules():
        if "biggan" in name and getattr(layer, "demodulation", None) == "spectral":
            weight = layer.stored()[0].detach().flatten(1).float()
            gram = weight @ weight.T if len(weight) <= weight.shape[1] else weight.T @ weight
            assert (gram - torch.eye(len(gram))).abs().max() < 4 * torch.finfo(dtype).eps


def test_layerwise_casting_says_no(network):
    before = result(network)
    with pytest.raises(ValueError, match="does not cast layer by layer: adapters act on the stored weights"):
        network.enable_layerwise_casting(torch.float8_e4m3fn, torch.bfloat16)
    assert same(result(network), before)


def test_loading_info(network, tmp_path):
    network.save_pretrained(tmp_path)
    loaded, info = type(network).from_pretrained(tmp_path, output_loading_info=True)
    assert same(result(loaded), result(network)) and not any(info.values())


# ------------------------------------------------------------------------------------------------------------- outputs


@torch.no_grad()
def test_forward_answers_as_torch_modules_or_as_models_of_diffusers_do(network):
    given, options = inputs(network), labels(network)
    alone = network(*given, **options)
    assert isinstance(alone, list if isinstance(network, ProjectedDiscriminator) else torch.Tensor)
    pair, output = network(*given, **options, return_dict=False), network(*given, **options, return_dict=True)
    assert type(pair) is tuple and len(pair) == 1 and same(tensors(pair), tensors(alone))
    assert type(output) is NetworkOutput and same(tensors(output.sample), tensors(alone))
    assert output[0] is output.sample is output["sample"] and output.to_tuple() == (output.sample,)


@pytest.mark.parametrize("name", ["mobile-G", "stylegan2-G", "stylegan2-D", "labelled-G", "labelled-D", "projected-D"])
@torch.no_grad()
def test_features_come_with_each_kind_of_answer(name):
    network = made(name)
    options, given = {"return_features": True, **labels(network)}, inputs(network)
    alone = network(*given, **options)
    assert type(alone) is tuple and len(alone) == 2 and len(alone[1]) >= 3
    pair, output = network(*given, **options, return_dict=False), network(*given, **options, return_dict=True)
    assert type(pair) is tuple and same(tensors(pair), tensors(alone)) and list(output.features) == list(alone[1])
    assert same(tensors(output.to_tuple()), tensors(alone)) and list(output) == ["sample", "features"]
