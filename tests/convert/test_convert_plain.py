"""SNGAN, BigGAN and GP-GAN checkpoints: the same pictures and logits as the layouts' own function.

The functions of `helpers.plain_checkpoints` run a checkpoint's tensors directly and share no code with the package.
"""

import pytest
import torch
import torch.nn.functional as F
from helpers.plain_checkpoints import (
    act,
    biggan,
    biggan_logits,
    biggan_pictures,
    gp_gan,
    gp_gan_scale,
    sngan,
    sngan_logits,
    sngan_pictures,
)
from helpers.tensors import normal_source

from fewshot_gan.convert import ConversionError, convert_checkpoint

TOLERANCE = {"atol": 1e-5, "rtol": 1e-4}  # float32 in another order of summation


# ---------------------------------------------------------------------------------------------------------------- SNGAN


def test_sngan(tmp_path):
    g, d = sngan()
    average = {name: value + 1 if "weight" in name else value for name, value in g.items()}
    torch.save(
        {"gen_state_dict": g, "dis_state_dict": d, "avg_gen_state_dict": average, "epoch": 3, "gen_optimizer": {}},
        tmp_path / "checkpoint.pth",
    )
    networks = convert_checkpoint(tmp_path / "checkpoint.pth")
    assert set(networks) == {"generator", "generator_raw", "discriminator"}
    z, x = normal_source(2)(3, 5), normal_source(3)(3, 3, 16, 16)
    with torch.no_grad():
        torch.testing.assert_close(networks["generator_raw"](z), sngan_pictures(g, z), **TOLERANCE)
        torch.testing.assert_close(networks["generator"](z), sngan_pictures(average, z), **TOLERANCE)
        torch.testing.assert_close(networks["discriminator"](x), sngan_logits(d, x), **TOLERANCE)
    assert networks["generator"].b8.norm0.norm.num_batches_tracked == 7


def test_pruned_sngan(tmp_path):
    g, _ = sngan()
    pruned, dense = dict(g), dict(g)
    for name in [n for n in g if n.endswith(".weight") and g[n].ndim == 4]:
        mask = (g[name].abs() > 0.05).float()
        pruned |= {f"{name}_orig": pruned.pop(name), f"{name}_mask": mask}
        dense[name] = g[name] * mask
    torch.save({"gen_state_dict": pruned}, tmp_path / "checkpoint_3.pth")
    z = normal_source(2)(3, 5)
    with torch.no_grad():
        pictures = convert_checkpoint(tmp_path / "checkpoint_3.pth")["generator"](z)
        torch.testing.assert_close(pictures, sngan_pictures(dense, z), **TOLERANCE)
    del pruned["c5.weight_orig"]
    torch.save({"gen_state_dict": pruned}, tmp_path / "checkpoint_3.pth")
    with pytest.raises(ConversionError, match="c5.weight_mask but no c5.weight_orig"):
        convert_checkpoint(tmp_path / "checkpoint_3.pth")


# --------------------------------------------------------------------------------------------------------------- BigGAN


@pytest.mark.parametrize("prefix", ["", "module."])
def test_biggan(tmp_path, prefix, caplog):
    g, d = biggan()
    for name, state in (("G_ema", g), ("D", d)):
        torch.save({prefix + key: value for key, value in state.items()}, tmp_path / f"{name}.pth")
    torch.save({"itr": 3, "config": {"G_activation": torch.nn.ReLU()}}, tmp_path / "state_dict.pth")  # holds code
    torch.save({"state": {}, "param_groups": [{"lr": 1.0}]}, tmp_path / "G_optim.pth")
    networks = convert_checkpoint(tmp_path)
    assert set(networks) == {"generator", "discriminator"}
    assert "state_dict.pth was refused: it names torch.nn" in caplog.text
    z, x, labels = normal_source(5)(4, 9), normal_source(6)(4, 3, 16, 16), torch.tensor([0, 4, 2, 2])
    with torch.no_grad():
        torch.testing.assert_close(networks["generator"](z, labels), biggan_pictures(g, z, labels), **TOLERANCE)
        torch.testing.assert_close(networks["discriminator"](x, labels), biggan_logits(d, x, labels), **TOLERANCE)
    alone = convert_checkpoint(tmp_path / "G_ema.pth")
    assert set(alone) == {"generator"}
    torch.save(g, tmp_path / "G_ema_best0.pth")
    with pytest.raises(ConversionError, match="both G_ema and G_ema_best0 are a moving average of a generator; give"):
        convert_checkpoint(tmp_path)


def test_a_damaged_file_of_a_folder_is_not_passed_over(tmp_path):
    g, d = biggan()
    for name, state in (("G.pt", g), ("G_ema.pt", g), ("D.pt", d)):
        torch.save(state, tmp_path / name)
    assert set(convert_checkpoint(tmp_path)) == {"generator", "generator_raw", "discriminator"}
    whole = (tmp_path / "G_ema.pt").read_bytes()
    (tmp_path / "G_ema.pt").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ConversionError, match="G_ema.pt was refused: it is damaged or cut short"):
        convert_checkpoint(tmp_path)


# --------------------------------------------------------------------------------------------------------------- GP-GAN


@pytest.mark.parametrize("blocks", [1, 2])
def test_gp_gan(tmp_path, blocks):
    g, d = gp_gan(blocks)
    raw = {name: value * 2 for name, value in g.items()}
    torch.save({"generator_test": g, "generator": raw, "discriminator": d}, tmp_path / "model.pt")
    networks = convert_checkpoint(tmp_path / "model.pt")
    assert torch.equal(networks["generator_raw"].to_rgb.bias, raw["conv_img.bias"])
    z, images, labels = normal_source(8)(4, 6), normal_source(9)(4, 3, 16, 16), torch.tensor([0, 4, 2, 2])
    e = g["embedding.weight"][labels]
    e = e / e.norm(dim=1, keepdim=True) if blocks == 2 else e  # the 256 px networks leave it as it is
    x = F.linear(torch.cat([z, e], 1), g["fc.weight"], g["fc.bias"]).view(4, 8, 4, 4)
    y = F.conv2d(images, d["conv_img.weight"], d["conv_img.bias"], padding=1)
    for i in range(3):
        x = gp_gan_scale(g, i, blocks, x if i == 0 else F.interpolate(x, scale_factor=2))
        y = gp_gan_scale(d, i, blocks, y if i == 0 else F.avg_pool2d(y, 3, 2, 1))
    want = torch.tanh(F.conv2d(act(x), g["conv_img.weight"], g["conv_img.bias"], padding=1))
    logits = F.linear(act(y.flatten(1)), d["fc.weight"], d["fc.bias"])[range(4), labels]
    with torch.no_grad():
        torch.testing.assert_close(networks["generator"](z, labels), want, **TOLERANCE)
        torch.testing.assert_close(networks["discriminator"](images, labels)[:, 0], logits, **TOLERANCE)


# -------------------------------------------------------------------------------------------------------------- misfits


@pytest.mark.parametrize(
    ("make", "part", "name"),
    [
        (sngan, 0, "block3.c2.weight"),
        (sngan, 1, "block2.c1.weight_u"),
        (biggan, 0, "blocks.1.0.bn2.stored_var"),
        (biggan, 1, "blocks.0.1.phi.u0"),
        (lambda: gp_gan(2), 0, "resnet_2_0.conv_s.weight"),
        (lambda: gp_gan(1), 1, "resnet_0_0.conv_0.bias"),
    ],
)
def test_differing_keys_are_listed(tmp_path, make, part, name):
    state = dict(make()[part])
    value = state.pop(name)
    torch.save({"generator": state}, tmp_path / "x.pt")
    with pytest.raises(ConversionError, match=rf"missing: {name}"):
        convert_checkpoint(tmp_path / "x.pt")
    torch.save({"generator": {**state, name: torch.cat([value, value]) if value.ndim else value}}, tmp_path / "x.pt")
    with pytest.raises(ConversionError, match=rf"shape of {name}"):
        convert_checkpoint(tmp_path / "x.pt")
    torch.save({"generator": {**state, name: value, "extra.weight": value}}, tmp_path / "x.pt")
    with pytest.raises(ConversionError, match="left over: extra.weight"):
        convert_checkpoint(tmp_path / "x.pt")
