"""What every network shares: built again from its config, and equal to the bit once loaded."""

import torch
from safetensors.torch import load_file

from fewshot_gan.models import MobileStyleGANGenerator


def test_a_config_of_arguments_by_position_builds_the_same_network():
    network = MobileStyleGANGenerator((8, 12, 16), 6, 10, 2)
    assert dict(type(network).from_config(network.config).config)["block_channels"] == (8, 12, 16)
    small = network.truncated(1)
    assert (small.resolution, small.z_dim, small.w_dim) == (16, 6, 10)


def test_loaded_tensors_lie_where_torch_lays_its_own(tmp_path):
    network = MobileStyleGANGenerator((4, 4), 3, 5, 1)  # sizes after which the next tensor begins anywhere
    network.save_pretrained(tmp_path)
    stored = load_file(tmp_path / "diffusion_pytorch_model.safetensors")
    assert any(tensor.data_ptr() % 64 for tensor in stored.values())
    loaded = MobileStyleGANGenerator.from_pretrained(tmp_path)
    assert not any(tensor.data_ptr() % 64 for tensor in loaded.state_dict().values())
    assert all(torch.equal(loaded.state_dict()[name], tensor) for name, tensor in stored.items())
