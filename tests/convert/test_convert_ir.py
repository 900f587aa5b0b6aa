"""MobileStyleGAN as an OpenVINO IR: the converted generator draws what OpenVINO draws of the same file.

The networks are those of `helpers.mobile_ir`, which share no code with the package.
"""

import shutil
import sys

import pytest
import torch
from helpers.mobile_ir import W, Z, write

from fewshot_gan.convert import ConversionError, convert_checkpoint


@torch.no_grad()
@pytest.mark.parametrize("transpose, gain, half", [(True, None, False), (False, 1.5, False), (True, 1.5, True)])
def test_it_draws_what_openvino_draws(tmp_path, transpose, gain, half):
    """Also of weights in fp16, OpenVINO's default."""
    mapping, synthesis = write(tmp_path / "wheel" / "data", transpose, half, gain=gain)
    network = convert_checkpoint(tmp_path / "wheel")["generator"]
    assert (network.resolution, network.z_dim, network.w_dim) == (32, Z, W) and not network.training
    z = torch.randn(3, Z, generator=torch.Generator().manual_seed(1))
    w = torch.cat([torch.from_numpy(mapping(row[None].numpy())[0]) for row in z])
    torch.testing.assert_close(network.map_latents(z)[:, 0], w, rtol=1e-5, atol=1e-5)
    want = torch.cat([torch.from_numpy(synthesis(row[None].numpy())[0]) for row in w])
    torch.testing.assert_close(network(z), want, rtol=1e-4, atol=1e-4)  # float32 in another order of summation
    some = network.map_latents(torch.randn(20_000, Z, generator=torch.Generator().manual_seed(2)))[:, 0]
    assert ((network.mapping.w_avg - some.mean(0)).abs() < 5 * some.std(0) * (1 / 1e5 + 1 / 2e4) ** 0.5).all()


def test_another_network_is_refused(tmp_path, monkeypatch):
    write(tmp_path / "a")
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    xml = tmp_path / "b" / "SynthesisNetwork.xml"
    text = xml.read_text(encoding="utf-8")
    for here, there, message in (
        ("layers.0.up.", "layers.0.other.", r"expected Add at m.layers.0.other.modulation.bias; is this a Mobile"),
        ("layers.0.conv1.conv.weight_dw", "layers.0.conv1.extra", "left over: synthesis.b8.conv0.extra"),
        ("layers.1.conv2.bias", "layers.1.conv2.other", "left over: synthesis.b16.conv0.bias"),
    ):
        assert here in text
        xml.write_text(text.replace(f"m.{here}", f"m.{there}"), encoding="utf-8")
        with pytest.raises(ConversionError, match=message):
            convert_checkpoint(tmp_path / "b")
    monkeypatch.setitem(sys.modules, "openvino", None)  # the standard library reads it
    assert convert_checkpoint(tmp_path / "a")["generator"].resolution == 32
