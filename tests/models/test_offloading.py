"""Networks whose weights are elsewhere: they compute the same, and are neither saved nor copied half."""

import pytest
import torch
from helpers.every_network import inputs, labels, made, result
from helpers.offloading import CPU, ROUNDING, WAYS, offload

from fewshot_gan.adapters import fingerprint
from fewshot_gan.utils.offloading import execution_device


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
