"""SNGAN and GP-GAN under other wrappers, SNGAN without spectral norm, and one forward pass of all that converts."""

from contextlib import nullcontext

import pytest
import torch
import torch.nn.functional as F
from helpers.biggan_checkpoints import port_discriminator, port_generator
from helpers.networks import tiny_discriminator, tiny_mobile, tiny_stylegan2
from helpers.plain_checkpoints import act, gp_gan, gp_gan_scale, sngan, sngan_logits, sngan_pictures
from helpers.stylegan2_checkpoints import prefixed, pt_generator
from helpers.tensors import normal_source
from typer.testing import CliRunner

from fewshot_gan.cli import app
from fewshot_gan.convert import ConversionError, convert_checkpoint, networks
from fewshot_gan.convert.check import check
from fewshot_gan.models.sngan import SNGANDiscriminator

LIMIT = 1e-4  # float32 in another order of summation; logits reach 100


def largest_difference(*pairs):
    return max(float((ours - theirs).abs().max()) for ours, theirs in pairs)


# ---------------------------------------------------------------------------------------------------------------- SNGAN


def unnormed(d):
    """Without spectral norm: the stored weights are those that are used."""
    return {name.removesuffix("_orig"): v / 4 for name, v in d.items() if not name.endswith(("_u", "_v"))}


def settled(d):
    """With vectors near the singular ones, as after a training."""
    d = dict(d)
    for name in [name for name in d if name.endswith("weight_orig")]:
        weight, layer = d[name].flatten(1), name.removesuffix("_orig")
        for _ in range(3):
            d[f"{layer}_u"] = F.normalize(weight @ d[f"{layer}_v"], dim=0)
            d[f"{layer}_v"] = F.normalize(weight.T @ d[f"{layer}_u"], dim=0)
    return d


def pruned(tensors):
    """Convolutions as `torch.nn.utils.prune` keeps them, and the same network with its weights multiplied out."""
    held, dense = dict(tensors), dict(tensors)
    for name in [name for name, value in tensors.items() if value.ndim == 4]:
        mask = (tensors[name].abs() > tensors[name].abs().median()).float()
        held |= {f"{name}_orig": held.pop(name), f"{name}_mask": mask}
        dense[name] = tensors[name] * mask
    return held, dense


def unnormed_logits(s, x):
    def conv(name, x):
        weight = s[f"{name}.weight"]
        return F.conv2d(x, weight, s[f"{name}.bias"], padding=weight.shape[-1] // 2)

    y = F.avg_pool2d(conv("block1.c2", F.relu(conv("block1.c1", x))), 2)
    x = y + conv("block1.c_sc", F.avg_pool2d(x, 2))
    y = conv("block2.c2", F.relu(conv("block2.c1", F.relu(x))))
    x = F.avg_pool2d(y, 2) + F.avg_pool2d(conv("block2.c_sc", x), 2)
    for block in ("block3", "block4"):
        x = x + conv(f"{block}.c2", F.relu(conv(f"{block}.c1", F.relu(x))))
    return F.linear(F.relu(x).sum((2, 3)), s["l5.weight"])


@pytest.mark.parametrize("prefix", ["", "module."])
@pytest.mark.parametrize("kind", ["spectral norm", "no spectral norm", "no spectral norm, pruned"])
def test_sngan_equals_its_own_function(tmp_path, kind, prefix):
    g, d = sngan()
    held, logits = (settled(d), settled(d)), sngan_logits
    if kind != "spectral norm":
        held, logits = (unnormed(d), unnormed(d)), unnormed_logits
    if kind.endswith("pruned"):
        held = pruned(unnormed(d))
    data = {"gen_state_dict": prefixed(prefix, g), "dis_state_dict": prefixed(prefix, held[0]), "epoch": 3}
    torch.save(data, tmp_path / "checkpoint.pth")
    found = convert_checkpoint(tmp_path / "checkpoint.pth")
    assert found["discriminator"].config.spectral_norm == (kind == "spectral norm")
    z, x = normal_source(2)(3, 5), normal_source(3)(3, 3, 16, 16)
    with torch.no_grad():
        want = logits(held[1], x)
        pairs = (found["generator"](z), sngan_pictures(g, z)), (found["discriminator"](x), want)
        difference = largest_difference(*pairs)
        assert want.std() > 0.03  # far above the limit: something is compared
        assert found["discriminator"](found["generator"](z)).shape == (3, 1)  # of one size
    print(f"SNGAN | {kind} | {prefix or 'no prefix'} | {difference:.1e}")
    assert difference < LIMIT
    found["discriminator"].save_pretrained(tmp_path / "d")
    again = SNGANDiscriminator.from_pretrained(tmp_path / "d").eval()
    with torch.no_grad():
        assert torch.equal(again(x), found["discriminator"](x))


def test_a_discriminator_of_an_unknown_kind_is_named(tmp_path, caplog):
    g, d = sngan()
    other = {"trunk.0.weight": torch.ones(4, 4), "trunk.1.weight": torch.ones(4, 4), "head.weight": torch.ones(1, 4)}
    torch.save({"gen_state_dict": g, "dis_state_dict": other}, tmp_path / "x.pth")
    assert set(convert_checkpoint(tmp_path / "x.pth")) == {"generator"}
    assert "dis_state_dict.trunk (2 weights), dis_state_dict.head (1 weights)" in caplog.text
    torch.save(
        {"gen_state_dict": g, "dis_state_dict": {k: v for k, v in d.items() if k[:2] != "l5"}}, tmp_path / "x.pth"
    )
    message = "dis_state_dict looks like the SNGAN discriminator but has no tensor 'l5.weight_orig'; it is damaged"
    with pytest.raises(ConversionError, match=message):
        convert_checkpoint(tmp_path / "x.pth")


# --------------------------------------------------------------------------------------------------------------- GP-GAN


@pytest.mark.parametrize("prefix", ["", "module."])
@pytest.mark.parametrize("blocks", [1, 2])
def test_gp_gan_equals_its_own_function(tmp_path, blocks, prefix):
    g, d = gp_gan(blocks)
    data = {
        "generator_test": prefixed(prefix, g),
        "generator": prefixed(prefix, g),
        "discriminator": prefixed(prefix, d),
    }
    torch.save(data, tmp_path / "model.pt")
    found = convert_checkpoint(tmp_path / "model.pt")
    assert set(found) == {"generator", "generator_raw", "discriminator"}
    z, images, labels = normal_source(8)(4, 6), normal_source(9)(4, 3, 16, 16), torch.tensor([0, 4, 2, 2])
    e = g["embedding.weight"][labels]
    e = e / e.norm(dim=1, keepdim=True) if blocks == 2 else e  # the 256 px networks leave it as it is
    x = F.linear(torch.cat([z, e], 1), g["fc.weight"], g["fc.bias"]).view(4, 8, 4, 4)
    y = F.conv2d(images, d["conv_img.weight"], d["conv_img.bias"], padding=1)
    for i in range(3):
        x = gp_gan_scale(g, i, blocks, x if i == 0 else F.interpolate(x, scale_factor=2))
        y = gp_gan_scale(d, i, blocks, y if i == 0 else F.avg_pool2d(y, 3, 2, 1))
    pictures = torch.tanh(F.conv2d(act(x), g["conv_img.weight"], g["conv_img.bias"], padding=1))
    logits = F.linear(act(y.flatten(1)), d["fc.weight"], d["fc.bias"])[range(4), labels]
    with torch.no_grad():
        pairs = (found["generator"](z, labels), pictures), (found["discriminator"](images, labels)[:, 0], logits)
        difference = largest_difference(*pairs)
    print(f"GP-GAN | {blocks} blocks a scale | {prefix or 'no prefix'} | {difference:.1e}")
    assert difference < LIMIT


def test_a_wrapper_named_ema_says_nothing_of_what_is_in_it():
    """As ema_pytorch saves its module."""
    g, _ = sngan()
    both = prefixed("ema_model.", g) | prefixed("online_model.", {name: 2 * x for name, x in g.items()})
    found = networks.convert(networks.find({"ema": both | {"initted": torch.tensor(True)}}), "x.pth")
    assert torch.equal(found["generator_raw"].to_rgb.bias, 2 * found["generator"].to_rgb.bias)


# --------------------------------------------------------------------------------------------------- one forward pass


@pytest.fixture
def mismatched(tmp_path):
    """A folder with a generator of 32 px and a discriminator of 64 px."""
    torch.save(port_generator(32), tmp_path / "G.pth")
    torch.save(port_discriminator(64), tmp_path / "D.pth")
    return tmp_path


MISMATCH = "the generator draws 32 px and the discriminator takes 64 px; give the files of one training"


def test_networks_of_two_sizes_are_refused_before_anything_is_written(mismatched):
    with pytest.raises(ConversionError, match=MISMATCH):
        convert_checkpoint(mismatched)
    done = CliRunner().invoke(app, ["convert", str(mismatched), str(mismatched / "base")])
    assert done.exit_code == 2 and MISMATCH in " ".join(done.output.split())
    assert not (mismatched / "base").exists()


@pytest.mark.parametrize("role", ["generator", "generator_raw", "discriminator"])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e38])
def test_networks_that_give_no_numbers_are_refused(role, value):
    """Also where every weight is a number and only their products are none."""
    g, d = sngan()
    found = networks.convert(networks.find({"gen": g, "avg_gen": g, "dis": settled(d)}), "x.pth")
    check(found)
    network = found[role]
    layer = network.out if role == "discriminator" else network.to_rgb
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.fill_(value)
        if role == "discriminator":
            network.block3.conv1.bias.fill_(value)
    message = f"the converted {role} gives numbers that are not finite; the checkpoint"
    finite = role != "discriminator" and value == 1e38  # tanh of infinity is a number
    with nullcontext() if finite else pytest.raises(ConversionError, match=message):
        check(found)


@pytest.mark.parametrize("make", [tiny_mobile, tiny_stylegan2])
def test_every_network_runs_once(make):
    calls = []
    found = {"generator_raw": make(), "generator": make(), "discriminator": tiny_discriminator()}
    for role, network in found.items():
        network.register_forward_hook(lambda module, inputs, output, role=role: calls.append((role, output.shape)))
    check(found)
    assert calls == [("generator_raw", (1, 3, 32, 32)), ("generator", (1, 3, 32, 32)), ("discriminator", (1, 1))]
    found["generator"].resolution = 64
    with pytest.raises(ConversionError, match=r"the converted generator gives \(1, 3, 32, 32\) instead of \(1, 3, 64"):
        check(found)
    found["generator"].z_dim = 5
    with pytest.raises(ConversionError, match="the converted generator does not run"):
        check(found)


def test_more_blocks_than_any_network_has_are_refused():
    many = {f"block{i}.c1.weight": torch.ones(1) for i in range(2, 30)} | sngan()[0]
    with pytest.raises(ConversionError, match="the checkpoint has 28 blocks, more than the 16 of any known network"):
        networks.convert(networks.find({"x": many}), "x.pth")


def test_a_file_within_itself_is_refused():
    data = {"g": pt_generator(1)} | {f"empty{i}": {} for i in range(1000)}
    data |= {f"again{i}": {"data": data} for i in range(1000)}
    for i in range(1000):
        data[f"self{i}"] = data
    with pytest.raises(ConversionError, match="more than 1,000,000 names; this is no checkpoint of a known network"):
        networks.find(data)
