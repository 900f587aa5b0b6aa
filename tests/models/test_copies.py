"""Copies and averages of networks: whole, and their own."""

import pytest
import torch
from diffusers.training_utils import EMAModel
from helpers.copies import COPIES, unpickled
from helpers.every_network import NETWORKS, arguments, made, result, same
from helpers.offloading import offload

from fewshot_gan.models.network import evaluating


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
