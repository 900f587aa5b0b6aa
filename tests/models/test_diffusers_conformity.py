"""What diffusers asks of its own models and pipelines, asked of every network of this package and of the pipeline.

diffusers ships no tests; these are its common checks in our words, one row per network and one per base.
"""

import copy
import io
import itertools
import json
import math
import os
import pickle
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from functools import partial

import accelerate
import numpy as np
import pytest
import torch
from diffusers import DDPMPipeline
from diffusers.training_utils import EMAModel
from helpers.hub_server import connected
from helpers.networks import TinyFeatures, tiny_discriminator, tiny_mobile, tiny_stylegan2
from safetensors.torch import save_file
from torch.profiler import ProfilerActivity, profile

from fewshot_gan import FewShotGAN, NetworkOutput, ProjectedDiscriminator
from fewshot_gan.adapters import AdapterBank, LeFTAdapter, fingerprint
from fewshot_gan.apps.cli import app as cli
from fewshot_gan.apps.generation import write_pictures
from fewshot_gan.models import (
    BigGANDiscriminator,
    BigGANGenerator,
    GPGANDiscriminator,
    GPGANGenerator,
    MobileStyleGANGenerator,
    SNGANDiscriminator,
    SNGANGenerator,
    StyleGAN2Discriminator,
    StyleGAN2Generator,
    TailoredGenerator,
)
from fewshot_gan.models.layers import adaptable_layers
from fewshot_gan.models.network import Network, evaluating
from fewshot_gan.utils.offloading import execution_device
from fewshot_gan.utils.random import seeded

SHAPES = {0: 16, 2: 8, 7: 8}  # feature levels of the projected discriminator and the size of their maps
GENERATORS = {
    "mobile": lambda: tiny_mobile(),
    "stylegan2": lambda: tiny_stylegan2(resolution=16),
    "labelled": lambda: StyleGAN2Generator(
        16, 64, 8, 8, 8, 2, architecture="resnet", num_classes=3, embed_dim=4, mapping_dim=6
    ),
    "sngan": lambda: SNGANGenerator(8, z_dim=8, resolution=16),
    "biggan": lambda: BigGANGenerator((8, 8, 8), attention_after=1, chunk_dim=4, shared_dim=8, num_classes=3),
    "gp_gan": lambda: GPGANGenerator((8, 8, 8, 8), 1, num_classes=3, z_dim=8, embedding_dim=4),
    "tailored": lambda: TailoredGenerator(
        (8, 8, 8), 1, style_blocks=1, z_dim=8, style_dim=8, mapping_layers=2, gain=1.0
    ),
}
DISCRIMINATORS = {
    "stylegan2": lambda: tiny_discriminator(resolution=16),
    "labelled": lambda: StyleGAN2Discriminator(16, 64, 8, architecture="skip", num_classes=3),
    "sngan": lambda: SNGANDiscriminator(8, resolution=16),
    "biggan": lambda: BigGANDiscriminator((8, 8), (True, True), attention_after=1, num_classes=3, resolution=16),
    "gp_gan": lambda: GPGANDiscriminator((8, 8, 8, 8), 1, num_classes=3),
    "projected": lambda: ProjectedDiscriminator({k: TinyFeatures.WIDTH for k in SHAPES}, {0: 2, 2: 1, 7: 1}),
}
NETWORKS = {f"{name}-G": make for name, make in GENERATORS.items()}
NETWORKS |= {f"{name}-D": make for name, make in DISCRIMINATORS.items()}


def made(name: str, seed: int = 0, training: bool = False) -> Network:
    """A network whose every parameter matters: none is zero."""
    torch.manual_seed(seed)
    network = NETWORKS[name]()
    random = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in network.parameters():
            if not parameter.any():
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=random))
    return network.train(training)


@pytest.fixture(params=NETWORKS)
def network(request):
    return made(request.param)


def inputs(network: Network, batch: int = 2, seed: int = 0) -> list:
    """What its `forward` takes, but for labels."""
    random = torch.Generator().manual_seed(seed)
    if isinstance(network, ProjectedDiscriminator):
        width = TinyFeatures.WIDTH
        return [{k: torch.randn(batch, width, n, n, generator=random) for k, n in SHAPES.items()}]
    size = (network.z_dim,) if hasattr(network, "z_dim") else (3, network.resolution, network.resolution)
    return [torch.randn(batch, *size, generator=random)]


def labels(network: Network, batch: int = 2) -> dict:
    """The `class_labels` that its `forward` wants."""
    classes = getattr(network, "num_classes", None)
    return {} if classes is None else {"class_labels": torch.arange(batch) % classes}


def tensors(value) -> list[torch.Tensor]:
    """The floating-point tensors in nested lists, tuples and dicts."""
    if isinstance(value, torch.Tensor):
        return [value] if value.is_floating_point() else []
    parts = value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else []
    return [tensor for part in parts for tensor in tensors(part)]


def cast(value, dtype: torch.dtype):
    """`value` with its floating-point tensors in `dtype`."""
    if isinstance(value, torch.Tensor):
        return value.to(dtype) if value.is_floating_point() else value
    return {k: cast(v, dtype) for k, v in value.items()} if isinstance(value, dict) else [cast(v, dtype) for v in value]


@torch.no_grad()
def result(network: Network, **options) -> list[torch.Tensor]:
    return tensors(network(*cast(inputs(network), network.dtype), **labels(network), **options))


def arguments(network: Network) -> dict:
    """Its config as JSON has it, without notes on where it comes from."""
    config = json.loads(network.to_json_string())
    return {name: value for name, value in config.items() if not name.startswith("_")}


def same(a: list[torch.Tensor], b: list[torch.Tensor]) -> bool:
    return len(a) == len(b) > 0 and all(map(torch.equal, a, b))


def differ(a: list[torch.Tensor], b: list[torch.Tensor]) -> float:
    """Largest difference over the largest value."""
    largest = max(y.abs().max() for y in b)
    return float(max((x.float() - y.float()).abs().max() for x, y in zip(a, b, strict=True)) / largest)


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


@pytest.mark.parametrize("low", [True, False], ids=["low-memory", "usual"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("option", ["dtype", "torch_dtype"])
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


# ---------------------------------------------------------------------------------------------------------- offloading

CPU = torch.device("cpu")


@pytest.fixture
def poison():
    """Memory that is not written to holds NaN: what reads an offloaded tensor out of its time shows."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


def offload(network: Network, way: str, folder) -> None:
    """Move the weights to "meta" or into files, from where hooks bring each when its module computes."""
    if way == "sequential":
        accelerate.cpu_offload(network, CPU)
    elif way == "sequential, buffers too":
        accelerate.cpu_offload(network, CPU, offload_buffers=True)
    elif way == "disk":
        accelerate.disk_offload(network, folder, CPU)
    elif way == "model":
        accelerate.cpu_offload_with_hook(network, CPU)
    else:
        options = {"offload_to_disk_path": str(folder), "num_blocks_per_group": 1}
        network.enable_group_offload(CPU, CPU, way, **options)


WAYS = ["sequential", "sequential, buffers too", "disk", "model", "leaf_level", "block_level"]
ROUNDING = {"rtol": 0, "atol": 1e-5}  # tensors from files begin elsewhere in memory, where products of matrices round


@pytest.mark.parametrize("way", WAYS)
def test_offloaded_networks_compute_the_same(network, way, tmp_path, poison):
    want = result(network)
    prints = fingerprint(network)
    offload(network, way, tmp_path)
    for _ in range(2):  # the first call sets up what later ones use
        torch.testing.assert_close(result(network), want, **ROUNDING)
    assert execution_device(network) == CPU and fingerprint(network) == prints


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", ["mobile-G", "stylegan2-G", "labelled-G"])
@torch.no_grad()
def test_offloaded_generators_take_w_and_every_noise(name, way, tmp_path, poison):
    network = made(name)
    ws = network.map_latents(*inputs(network), **labels(network))

    def drawn():
        cases = [{"noise_mode": "none"}, {"noise_mode": "random", "generator": torch.Generator().manual_seed(0)}]
        return [network(ws, latent_space="w+", truncation_psi=0.5, **case) for case in [{}, *cases]]

    want = drawn()
    offload(network, way, tmp_path)
    torch.testing.assert_close(drawn(), want, **ROUNDING)


@pytest.mark.parametrize("way", ["sequential", "disk", "leaf_level"])
def test_weights_that_are_elsewhere_are_not_saved(network, way, tmp_path):
    offload(network, way, tmp_path / "offloaded")
    with pytest.raises(ValueError, match="cannot save while the weights of .* are offloaded layer by layer"):
        network.save_pretrained(tmp_path / "saved")
    assert not (tmp_path / "saved").exists()


def test_a_device_map_places_a_network(network, tmp_path):
    network.save_pretrained(tmp_path)
    loaded = type(network).from_pretrained(tmp_path, device_map="auto")
    torch.testing.assert_close(result(loaded), result(network), **ROUNDING)
    parts = [name for name, _ in network.named_children()]
    loaded = type(network).from_pretrained(tmp_path, device_map=dict.fromkeys(parts, "cpu"))
    torch.testing.assert_close(result(loaded), result(network), **ROUNDING)
    with pytest.raises(ValueError, match="device_map has 'disk', where buffers would be lost"):
        type(network).from_pretrained(tmp_path, device_map={**dict.fromkeys(parts, "cpu"), parts[0]: "disk"})


# ------------------------------------------------------------------------------------------------ copies and averages


def unpickled(x, protocol: int = pickle.DEFAULT_PROTOCOL):
    return pickle.loads(pickle.dumps(x, protocol))


def saved_by_torch(x):
    file = io.BytesIO()
    torch.save(x, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


COPIES = {"deepcopy": copy.deepcopy, "pickle": unpickled, "pickle 2": partial(unpickled, protocol=2)}
COPIES["torch.save"] = saved_by_torch


@pytest.mark.parametrize("training", [False, True], ids=["evaluating", "training"])
@pytest.mark.parametrize("way", COPIES)
@pytest.mark.parametrize("name", NETWORKS)
def test_copies_of_a_network_are_whole_and_its_own(name, way, training):
    network = made(name, training=training)
    last = list(network.parameters())[-1].requires_grad_(False)
    if name.endswith("-G"):
        network.enable_gradient_checkpointing()
    state = {k: v.clone() for k, v in network.state_dict().items()}
    other = COPIES[way](network)
    assert list(other.state_dict()) == list(state) and all(
        torch.equal(v, state[k]) for k, v in other.state_dict().items()
    )
    assert str(other) == str(network) and arguments(other) == arguments(network) and other.dtype == network.dtype
    assert [m.training for m in other.modules()] == [m.training for m in network.modules()]
    assert [(n, p.requires_grad) for n, p in other.named_parameters()] == [
        (n, p.requires_grad) for n, p in network.named_parameters()
    ]
    assert other.is_gradient_checkpointing == network.is_gradient_checkpointing
    with evaluating(network), evaluating(other):
        want = result(network)
        assert same(result(other), want)
        with torch.no_grad():
            for parameter in other.parameters():
                parameter.mul_(1.5)
        assert not same(result(other), want) and same(result(network), want) and not last.requires_grad


def test_an_optimiser_goes_on_in_a_pickle():
    """Parameters under spectral norm are the same objects in the copy of the network and of the optimiser."""
    network = made("biggan-D", training=True)
    optimiser = torch.optim.SGD(network.parameters(), lr=0.1)
    network, optimiser = unpickled((network, optimiser))
    assert all(a is b for a, b in zip(network.parameters(), optimiser.param_groups[0]["params"], strict=True))


@pytest.mark.parametrize("way", ["sequential", "model", "leaf_level"])
def test_offloaded_networks_are_not_copied(network, way, tmp_path):
    offload(network, way, tmp_path)
    for make_copy in COPIES.values():
        with pytest.raises(ValueError, match=f"cannot copy {type(network).__name__} while it is offloaded"):
            make_copy(network)


def test_diffusers_own_average_of_weights(network, tmp_path):
    average = EMAModel(network.parameters(), decay=0.5, model_cls=type(network), model_config=network.config)
    for _ in range(2):  # the first step takes all of the new weights
        with torch.no_grad():
            for parameter in network.parameters():
                parameter.mul_(1.02)
        average.step(network.parameters())
    average.save_pretrained(tmp_path)
    loaded = EMAModel.from_pretrained(tmp_path, type(network))
    assert same(loaded.shadow_params, average.shadow_params)
    loaded.store(network.parameters())
    trained = result(network)  # what is cached now is of other weights
    loaded.copy_to(network.parameters())  # writes through `.data`
    fresh = type(network).from_config(network.config).eval()
    fresh.load_state_dict(network.state_dict())
    assert same([p.detach() for p in fresh.parameters()], average.shadow_params)
    assert same(result(network), result(fresh)) and not same(trained, result(fresh))
    loaded.restore(network.parameters())
    assert same(result(network), trained)


# ---------------------------------------------------------------------------------------------- gradient checkpointing


def gradients(network: Network, given: list, **options) -> tuple[torch.Tensor, dict, dict]:
    """Pictures, the gradients that a loss of them leaves, and buffers afterwards."""
    torch.manual_seed(0)  # of noise that has no generator
    options |= {"generator": [seeded(3), seeded(4)]} if options.get("noise_mode") == "random" else {}
    drawn = network(*given, **labels(network), **options)
    (drawn.square().mean() + drawn[:, 0].mean()).backward()
    found = {name: p.grad for name, p in network.named_parameters() if p.grad is not None}
    return drawn.detach(), found, {name: b.clone() for name, b in network.named_buffers()}


CASES = [(f"{name}-G", {}) for name in GENERATORS]
CASES += [(f"{name}-G", {"noise_mode": "random"}) for name in ("mobile", "stylegan2", "labelled")]


@pytest.mark.parametrize("trained", ["all", "last block", "w"])
@pytest.mark.parametrize("training", [False, True], ids=["evaluating", "training"])
@pytest.mark.parametrize("name, options", CASES)
def test_checkpointed_gradients_are_the_same(name, options, training, trained):
    found = []
    for checkpointing in (False, True):
        network, given = made(name, training=training), inputs(made(name))
        if checkpointing:
            network.enable_gradient_checkpointing()
            assert network.is_gradient_checkpointing
        network.requires_grad_(trained == "all")
        block = [module for path, module in network.named_modules() if re.search(r"(^|\.)b\d+$", path)][-1]
        block.requires_grad_(trained != "w")
        given[0].requires_grad_(trained == "w")
        found.append((*gradients(network, given, **options), given[0].grad))
    (drawn, grads, buffers, at_input), (drawn2, grads2, buffers2, at_input2) = found
    assert torch.equal(drawn, drawn2) and grads.keys() == grads2.keys() and (trained == "w" or len(grads) > 2)
    for a, b in [*((grads[k], grads2[k]) for k in grads), *([(at_input, at_input2)] if trained == "w" else [])]:
        torch.testing.assert_close(a, b, rtol=0, atol=1e-6)  # promised; the same numbers are computed in the same order
    assert all(torch.equal(buffers[k], buffers2[k]) for k in buffers)  # statistics learn once a step


@pytest.mark.parametrize("name", GENERATORS)
def test_checkpointed_gradients_of_adapters_that_no_longer_act(name, perturbed):
    """A look acts in a block that is left before the backward pass; a frozen base may overwrite features meanwhile."""
    found = []
    for checkpointing in (False, True):
        network, given = made(f"{name}-G"), inputs(made(f"{name}-G"))
        network.requires_grad_(False)
        if checkpointing:
            network.enable_gradient_checkpointing()
        paths = [path for path, layer in adaptable_layers(network) if layer.role in LeFTAdapter.roles]
        adapter = perturbed(LeFTAdapter.for_model(network, target_modules=paths[-3:]), std=0.2)  # of late layers alone
        bank = AdapterBank(network)
        bank.add("look", adapter)
        adapter.requires_grad_(True)
        with bank.using({"look": 1.0}):
            drawn = network(*given, **labels(network))
        bank.activate({})
        drawn.square().mean().backward()
        found.append({name: p.grad for name, p in adapter.named_parameters()})
    plain, checkpointed = found
    assert all(g.any() for g in plain.values())
    for key in plain:
        torch.testing.assert_close(plain[key], checkpointed[key], rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", ["sngan-G", "biggan-G"])
def test_statistics_learn_from_each_forward_pass_and_from_no_backward_pass(name):
    found = []
    for checkpointing in (False, True):
        network = made(name, training=True)
        if checkpointing:
            network.enable_gradient_checkpointing()
        first, second = (network(*inputs(network, seed=seed), **labels(network)).square().mean() for seed in (0, 1))
        first.backward()  # of the pass before the last
        seen = [*(p.grad.clone() for p in network.parameters()), *(b.clone() for b in network.buffers())]
        second.backward()
        found.append([*seen, *(p.grad for p in network.parameters()), *network.buffers()])
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-6)


def test_checkpointing_has_second_derivatives():
    """Path length regularisation (arXiv 1912.04958 §3.2) differentiates a gradient."""
    found = []
    for checkpointing in (False, True):
        network = made("stylegan2-G")
        if checkpointing:
            network.enable_gradient_checkpointing()
        ws = network.map_latents(*inputs(network)).detach().requires_grad_(True)
        (slope,) = torch.autograd.grad(network(ws, latent_space="w+").square().sum(), ws, create_graph=True)
        slope.square().mean().backward()
        found.append([p.grad for p in network.synthesis.parameters() if p.grad is not None])
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)  # sums of gradients in another order


def test_a_checkpoint_of_ones_own_and_its_end():
    network, calls = made("sngan-G", training=True), []

    def counted(block, *args):
        calls.append(block)
        return torch.utils.checkpoint.checkpoint(block, *args, use_reentrant=True)

    (latents,) = inputs(network)
    plain = gradients(network, [latents.requires_grad_(True)])[1]
    network.zero_grad()
    network.load_state_dict(made("sngan-G").state_dict())
    network.enable_gradient_checkpointing(counted)
    own = gradients(network, [latents])[1]
    assert len(calls) == 2 and all(torch.allclose(plain[k], own[k], rtol=0, atol=1e-6) for k in plain)
    network.disable_gradient_checkpointing()
    network(latents)
    assert len(calls) == 2 and not network.is_gradient_checkpointing
    network.enable_gradient_checkpointing(counted)
    with torch.no_grad():
        network(latents)
    assert len(calls) == 2  # nothing to compute again
    with pytest.raises(ValueError, match="does not support gradient checkpointing"):
        made("sngan-D").enable_gradient_checkpointing()


LARGER = {  # several blocks of about the same memory
    "mobile": lambda: MobileStyleGANGenerator((32, 32, 32, 32), 16, 16, 2),
    "stylegan2": lambda: StyleGAN2Generator(64, 2048, 32, 16, 16, 2),
    "labelled": lambda: StyleGAN2Generator(64, 2048, 32, 16, 16, 2, architecture="orig", num_classes=3),
    "sngan": lambda: SNGANGenerator(16, 8, 64),
    "biggan": lambda: BigGANGenerator((16, 16, 16, 16, 16), 2, 4, 8, 3),
    "gp_gan": lambda: GPGANGenerator((16, 16, 16, 16, 16, 16), 2, 3, 8, 4),
    "tailored": lambda: TailoredGenerator((16, 16, 16), 2, style_blocks=2, z_dim=8, style_dim=8, mapping_layers=2),
}


@pytest.mark.parametrize("name", GENERATORS)
def test_checkpointing_holds_less(name):
    network = LARGER[name]().train()
    given = inputs(network, 4)

    def peak() -> int:
        network.zero_grad()
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as run:
            network(*given, **labels(network, 4)).square().mean().backward()
        events = [event for event in run.profiler.kineto_results.events() if event.name() == "[memory]"]
        sizes = [event.nbytes() for event in sorted(events, key=lambda event: event.start_ns())]
        return max(itertools.accumulate(sizes))

    peak()  # what is made once
    usual = peak()
    network.enable_gradient_checkpointing()
    assert peak() < 0.9 * usual  # 0.64 to 0.85 of it: the widest block is held whole


# -------------------------------------------------------------------------------------------------------- the pipeline

JUDGES = {name: name for name in ("stylegan2", "labelled", "sngan", "biggan", "gp_gan")} | {"mobile": "projected"}
DRAWN = {"seed": 0, "output_type": "pt"}


def piped(name: str, training: bool = False) -> FewShotGAN:
    parts = {"generator": made(f"{name}-G", training=training)}
    if name in JUDGES:
        judge = "projected_discriminator" if JUDGES[name] == "projected" else "discriminator"
        parts[judge] = made(f"{JUDGES[name]}-D", training=training)
    return FewShotGAN(**parts)


@pytest.fixture(params=GENERATORS)
def pipe(request):
    return piped(request.param)


def draw(pipe: FewShotGAN, num_images: int = 3, **options) -> torch.Tensor:
    return pipe(num_images, class_labels=pipe.some_labels(num_images), **{**DRAWN, **options}).images


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


def draw_one(pipe: FewShotGAN, number: int, **options) -> torch.Tensor:
    label = pipe.some_labels(number + 1)
    return pipe(1, class_labels=label and label[-1], **{**DRAWN, **options}).images[0]


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
        cli._read_latents(path)


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


@pytest.mark.parametrize("option", ["dtype", "torch_dtype"])
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


# ------------------------------------------------------------------------------------------------- offloaded pipelines


@pytest.fixture
def look(pipe, perturbed):
    """An adapter of `pipe`, loaded as "look"."""
    adapter = perturbed(LeFTAdapter.for_model(pipe.generator), std=0.2)
    pipe.load_adapter(adapter, "look")
    return adapter


def offload_pipe(pipe: FewShotGAN, way: str, folder) -> None:
    if way == "sequential":
        pipe.enable_sequential_cpu_offload(device="cpu")
    elif way == "model":
        pipe.enable_model_cpu_offload(device="cpu")
    else:
        pipe.enable_group_offload(CPU, CPU, way, num_blocks_per_group=1, offload_to_disk_path=str(folder))


PIPE_WAYS = ["sequential", "model", "leaf_level", "block_level"]


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


# ------------------------------------------------------------------------------------- pipelines: copies and from_pipe


@pytest.mark.parametrize("way", COPIES)
def test_copies_of_a_pipeline_are_whole_and_its_own(pipe, look, way, perturbed):
    pipe.load_adapter(perturbed(LeFTAdapter.for_model(pipe.generator), seed=1, std=0.2), "other")
    pipe.set_adapters(["look", "other"], [0.7, 0.5])
    want, base, alone = draw(pipe), draw(pipe, adapter_names="__base__"), draw(pipe, adapter_names="look")
    cached = pipe.bank.cached_bytes()
    twin = COPIES[way](pipe)
    assert twin.bank.model is twin.generator is not pipe.generator and dict(twin.config) == dict(pipe.config)
    assert twin.loaded_adapters() == ["look", "other"] == twin.active_adapters() and twin.bank.cached_bytes() == 0
    assert torch.equal(draw(twin), want) and torch.equal(draw(twin, adapter_names="__base__"), base)
    assert torch.equal(draw(twin, adapter_names="look"), alone) and twin.bank.cached_bytes() == cached
    twin.load_adapter(look, "again")  # known by its weights
    with torch.no_grad():
        for parameter in twin.bank.adapters["look"].parameters():
            parameter.mul_(1.5)
        for parameter in twin.generator.parameters():
            parameter.mul_(1.5)
    twin.set_adapters([])
    twin.delete_adapters("other")
    assert not torch.equal(draw(twin), base)
    assert torch.equal(draw(pipe), want) and torch.equal(draw(pipe, adapter_names="look"), alone)
    pipe.delete_adapters(["look", "other"])
    assert torch.equal(draw(pipe), base) and twin.loaded_adapters() == ["look", "again"]


@pytest.mark.parametrize("way", COPIES)
def test_copies_of_a_fused_pipeline_can_be_undone(way):
    pipe = piped("gp_gan")
    base = draw(pipe)
    adapter = LeFTAdapter.for_model(pipe.generator)
    with torch.no_grad():
        for parameter in adapter.parameters():
            parameter.add_(0.1)
    pipe.load_adapter(adapter, "look")
    want = draw(pipe)
    pipe.fuse_adapters()
    fused = draw(pipe)
    twin = COPIES[way](pipe)
    assert torch.equal(draw(twin), fused)
    twin.unfuse_adapters()
    assert torch.equal(draw(twin), want) and torch.equal(draw(twin, adapter_names="__base__"), base)
    assert torch.equal(draw(pipe), fused)
    pipe.generator.to_rgb.weight.data.mul_(1.5)
    with pytest.raises(ValueError, match="written to while adapters were fused"):
        COPIES[way](pipe).unfuse_adapters()


def test_a_copy_of_a_cast_pipeline_knows_the_stored_weights(tmp_path):
    pipe = piped("gp_gan")
    adapter = LeFTAdapter.for_model(pipe.generator)
    pipe.save_pretrained(tmp_path)
    cast = FewShotGAN.from_pretrained(tmp_path, dtype=torch.bfloat16)  # of weights that bfloat16 cannot hold
    for twin in (copy.deepcopy(cast), unpickled(cast), FewShotGAN.from_pipe(cast), cast.to("cpu"), cast.to(torch.half)):
        twin.load_adapter(copy.deepcopy(adapter), "look")
        twin.delete_adapters("look")
    cast.generator.to(memory_format=torch.channels_last)  # moves weights, as offloading to a GPU does
    cast.enable_sequential_cpu_offload(device="cpu")
    draw(cast)
    cast.load_adapter(adapter, "look")
    cast.remove_all_hooks()
    cast.load_adapter(copy.deepcopy(adapter), "again")
    with torch.no_grad():
        next(cast.generator.parameters()).add_(1)
    with pytest.raises(ValueError, match="fingerprint"):
        cast.load_adapter(copy.deepcopy(adapter), "a third")


def test_a_generator_is_copied_without_the_adapters_of_its_pipeline(pipe, look):
    twins = [make(pipe.generator) for make in COPIES.values()]
    adapted = result(pipe.generator)
    pipe.set_adapters([])
    base = result(pipe.generator)
    assert not same(adapted, base) and all(same(result(twin), base) for twin in twins)


def test_from_pipe_shares_networks_and_adapters(pipe, look):
    want, base = draw(pipe), draw(pipe, adapter_names="__base__")
    pipe.base_name = "ffhq"
    new = FewShotGAN.from_pipe(pipe, truncation_psi=0.9)
    assert all(new.components[name] is part for name, part in pipe.components.items())
    assert new.config.truncation_psi == 0.9 and new.base_name == "ffhq" and new.bank is not pipe.bank
    assert new.loaded_adapters() == ["look"] == new.active_adapters()
    psi = {"truncation_psi": pipe.config.truncation_psi}
    assert torch.equal(draw(new, **psi), want)
    new.set_adapters([])
    assert torch.equal(draw(new, **psi), base) and torch.equal(draw(pipe), want)  # each has its own look
    pipe.delete_adapters("look")
    assert torch.equal(draw(pipe), base) and torch.equal(draw(new, adapter_names="look", **psi), want)
    assert torch.equal(draw(FewShotGAN(**pipe.components)), base)


def test_from_pipe_casts_only_when_asked(pipe):
    pipe.to(torch.bfloat16)
    assert FewShotGAN.from_pipe(pipe).dtype == torch.bfloat16
    assert FewShotGAN.from_pipe(pipe, torch_dtype=torch.float32).dtype == torch.float32


def test_from_pipe_with_other_parts(pipe, look):
    other = type(pipe.generator).from_config(pipe.generator.config)
    new = FewShotGAN.from_pipe(pipe, generator=other, discriminator=None)
    assert new.generator is other and new.discriminator is None and new.loaded_adapters() == []

    class Subclass(type(pipe.generator)):
        """As users derive one."""

    derived = FewShotGAN(Subclass.from_config(pipe.generator.config))
    assert FewShotGAN.from_pipe(derived).generator is derived.generator


def test_from_pipe_of_what_cannot_be_shared(pipe, look):
    pipe.fuse_adapters() if not any(m.demodulation == "spectral" for _, m in adaptable_layers(pipe.generator)) else None
    if pipe.bank.fused is not None:
        with pytest.raises(ValueError, match="cannot share the generator while 'look' is fused"):
            FewShotGAN.from_pipe(pipe)
    with pytest.raises(ValueError, match="expected"):
        FewShotGAN.from_pipe(DDPMPipeline(None, None))


def test_parts_are_annotated_as_diffusers_reads_them():
    types = FewShotGAN._get_signature_types()
    assert {type(made(f"{name}-G")) for name in GENERATORS} == set(types["generator"])
    judges = {type(made(f"{name}-D")) for name in DISCRIMINATORS}
    assert judges == {*types["discriminator"], *types["projected_discriminator"]} - {type(None)}


# ------------------------------------------------------------------------------------------------- plain diffusers

PLAIN = """
import json, sys
from diffusers import DiffusionPipeline
pipe = DiffusionPipeline.from_pretrained(sys.argv[1], **json.loads(sys.argv[2]))
images = pipe(2, class_labels=pipe.some_labels(2), seed=0, output_type="np").images
parts = [type(part).__name__ for part in pipe.components.values()]
print(json.dumps([type(pipe).__module__, pipe.base_name, parts, float(images.sum(dtype="float64"))]))
"""


def by_plain_diffusers(base, home, **options) -> list:
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "HF_HOME": str(home), "HF_HUB_DISABLE_XET": "1"}
    command = [sys.executable, "-W", "ignore", "-c", PLAIN, str(base), json.dumps(options)]
    run = subprocess.run(command, env=env, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    return json.loads(run.stdout.splitlines()[-1])


@pytest.mark.parametrize("name", ["mobile", "biggan"])
def test_a_saved_base_loads_with_plain_diffusers(name, tmp_path):
    pipe = piped(name)
    pipe.save_pretrained(tmp_path / "base")
    parts = [type(part).__name__ for part in pipe.components.values()]
    images = pipe(2, class_labels=pipe.some_labels(2), seed=0, output_type="np").images
    want = ["fewshot_gan.pipeline", str(tmp_path / "base"), parts, float(images.sum(dtype="float64"))]
    for custom in ({}, {"custom_pipeline": str(tmp_path / "base")}):
        assert by_plain_diffusers(tmp_path / "base", tmp_path, trust_remote_code=True, **custom) == want


def test_a_pushed_base_loads_with_plain_diffusers(monkeypatch, tmp_path):
    pipe = piped("biggan")
    with connected(monkeypatch, tmp_path / "cache") as hub:
        pipe.push_to_hub("me/faces", token="write-me")
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        monkeypatch.setenv("HF_HUB_OFFLINE", "0")
        module, base, parts, total = by_plain_diffusers("me/faces", tmp_path / "home", trust_remote_code=True)
    assert (module, base) == ("fewshot_gan.pipeline", "me/faces")
    assert parts == [type(part).__name__ for part in pipe.components.values()]
    assert total == float(pipe(2, class_labels=[0, 1], seed=0, output_type="np").images.sum(dtype="float64"))


def test_our_own_class_runs_no_file_of_a_base(tmp_path):
    pipe = piped("biggan")
    pipe.save_pretrained(tmp_path / "base")
    evil = f"open({str(tmp_path / 'ran')!r}, 'w').close()"
    for path in (tmp_path / "base").rglob("*.py"):
        path.write_text(evil, encoding="utf-8")
    assert torch.equal(draw(FewShotGAN.from_pretrained(tmp_path / "base")), draw(pipe))
    index = tmp_path / "base" / "model_index.json"
    config = json.loads(index.read_text(encoding="utf-8"))
    assert config["_class_name"] == ["pipeline", "FewShotGAN"] and config["generator"][0] == "fewshot_gan"
    for library in ("evil", "fewshot_gan.pipeline_files", "os"):
        (tmp_path / "base" / "generator" / f"{library}.py").write_text(evil, encoding="utf-8")
        index.write_text(json.dumps({**config, "generator": [library, "BigGANGenerator"]}), encoding="utf-8")
        with pytest.raises(ValueError, match="a base has networks of fewshot_gan alone"):
            FewShotGAN.from_pretrained(tmp_path / "base")
    assert not (tmp_path / "ran").exists()


def test_bases_of_before_load_and_derived_classes_are_saved_as_before(tmp_path):
    pipe = piped("sngan")
    pipe.save_pretrained(tmp_path / "base")
    for path in (tmp_path / "base").rglob("*.py"):
        path.unlink()
    index = tmp_path / "base" / "model_index.json"
    config = json.loads(index.read_text(encoding="utf-8"))
    index.write_text(json.dumps({**config, "_class_name": "FewShotGAN"}), encoding="utf-8")
    loaded = FewShotGAN.from_pretrained(tmp_path / "base")
    assert torch.equal(draw(loaded), draw(pipe))

    class Mine(FewShotGAN):
        """As users derive one."""

    Mine(**pipe.components).save_pretrained(tmp_path / "mine")
    assert not (tmp_path / "mine" / "pipeline.py").exists()
    assert type(Mine.from_pretrained(tmp_path / "mine")) is Mine
