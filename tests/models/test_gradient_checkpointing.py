"""Gradient checkpointing: the same gradients and statistics with less memory."""

import itertools
import re

import pytest
import torch
from helpers.every_network import GENERATORS, inputs, labels, made
from torch.profiler import ProfilerActivity, profile

from fewshot_gan.adapters import AdapterBank, LeFTAdapter
from fewshot_gan.models import (
    BigGANGenerator,
    GPGANGenerator,
    MobileStyleGANGenerator,
    SNGANGenerator,
    StyleGAN2Generator,
    TailoredGenerator,
)
from fewshot_gan.models.layers import adaptable_layers
from fewshot_gan.models.network import Network
from fewshot_gan.utils.random import seeded


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
