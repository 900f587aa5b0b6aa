"""A network that predicts looks: rows of a batch equal the adapters made of them, and files load as their kind."""

import pytest
import torch
from helpers.networks import tiny_mobile, tiny_stylegan2

from fewshot_gan import FewShotGAN
from fewshot_gan.adapters import AdapterBank, BlendAdapter, DomainHyperNetwork, HyperNetwork, LookHyperNetwork
from fewshot_gan.features.encoders import LookEncoder

SMALL = {"embedding_dim": 24, "width": 16, "depth": 1, "neck": 8}


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def visible(generator, **options):
    """A network whose looks differ clearly from the base."""
    torch.manual_seed(0)
    network = LookHyperNetwork.for_model(generator, **SMALL, **options).eval()
    torch.nn.init.normal_(network.layers[-1].weight, std=0.2)
    return network.requires_grad_(False)


@pytest.mark.parametrize("make", [tiny_mobile, tiny_stylegan2])
def test_rows_of_a_batch_are_the_adapters_of_their_embeddings(make):
    generator = make()
    network, pipe = visible(generator, base_model_name_or_path="a-base"), FewShotGAN(generator)
    embeddings, z = random(3, 24), random(3, 16, seed=1)
    network.standardise(random(8, 24, seed=2))
    predicted = network(embeddings)
    assert sum(delta[0].numel() for delta in predicted.values()) == network.num_deltas
    with torch.no_grad(), pipe.bank.using_vectors(predicted):
        together = generator(z)
    for i, name in enumerate("abc"):
        adapter = network.adapter(embeddings[i], images=1)
        assert isinstance(adapter, BlendAdapter) and adapter.config.base_model_name_or_path == "a-base"
        assert adapter.config.training == {"encoder": None, "images": 1}
        pipe.load_adapter(adapter, name)
        with torch.no_grad(), pipe.bank.using({name: 1.0}):
            alone = generator(z[i : i + 1])
        torch.testing.assert_close(alone, together[i : i + 1], rtol=0, atol=1e-4)
        with torch.no_grad(), pipe.bank.using_vectors({path: d[i : i + 1] for path, d in predicted.items()}):
            for_all_rows = generator(z)
        torch.testing.assert_close(for_all_rows[i], together[i], rtol=0, atol=1e-4)
    with torch.no_grad(), pipe.bank.using({}):
        assert (generator(z) - together).abs().mean() > 0.05


def test_gradients_reach_every_part():
    generator = tiny_mobile().requires_grad_(False)
    network = visible(generator).requires_grad_(True).train()
    numbers = network(random(2, 24))
    for delta in numbers.values():
        delta.retain_grad()
    with AdapterBank(generator).using_vectors(numbers):
        generator(random(2, 16)).square().mean().backward()
    assert all(delta.grad is not None and delta.grad.abs().max() > 0 for delta in numbers.values())
    assert all(parameter.grad is None for parameter in generator.parameters())


def test_files_load_as_their_kind(tmp_path):
    generator = tiny_mobile()
    network = visible(generator)
    network.standardise(random(8, 24))
    network.save_pretrained(tmp_path / "look")
    DomainHyperNetwork.for_model(generator, embedding_dim=24, width=16).save_pretrained(tmp_path / "domain")
    loaded = HyperNetwork.from_pretrained(tmp_path / "look")
    assert type(loaded) is LookHyperNetwork and loaded.input_std.shape == (24,)
    assert all(torch.equal(v, loaded.state_dict()[k]) for k, v in network.state_dict().items())
    assert type(HyperNetwork.from_pretrained(tmp_path / "domain")) is DomainHyperNetwork
    with pytest.raises(ValueError, match="it is a LookHyperNetwork, which LookHyperNetwork.from_pretrained loads"):
        DomainHyperNetwork.from_pretrained(tmp_path / "look")
    with pytest.raises(ValueError, match="neck=0: give a whole number, 1 or more"):
        LookHyperNetwork.for_model(generator, **SMALL | {"neck": 0})
    targets = {path: dict(spec) for path, spec in network.config.target_modules.items()}
    targets[next(iter(targets))]["role"] = "noise"
    with pytest.raises(ValueError, match="a look changes layers of the roles .*, not of noise"):
        LookHyperNetwork(targets, 24)


def test_the_encoder_tells_colours_apart_and_treats_pictures_alone(features):
    encoder, x = LookEncoder(features), random(3, 3, 64, 64).clamp(-1, 1)
    together = encoder.image(x)
    assert together.shape == (3, encoder.dim) and torch.allclose(together.norm(dim=1), torch.ones(3), atol=1e-5)
    torch.testing.assert_close(torch.cat([encoder.image(image[None]) for image in x]), together, rtol=0, atol=1e-5)
    red = x * torch.tensor([1.0, 0.2, 0.2]).view(3, 1, 1)
    assert (encoder.image(red) - together).norm(dim=1).min() > 0.05
    assert encoder.identity != LookEncoder.__mro__[1](features).identity
