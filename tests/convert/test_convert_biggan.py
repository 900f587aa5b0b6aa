"""BigGAN of BigGAN-PyTorch and of StudioGAN, 32 to 256 px, against the layouts' own functions.

The functions of `helpers.biggan_checkpoints` share no code with the package.
"""

import pytest
import torch
from helpers.biggan_checkpoints import (
    CHUNK,
    LABELS,
    PORT,
    SHARED,
    STUDIO,
    port_discriminator,
    port_generator,
    port_logits,
    port_pictures,
    studio_discriminator,
    studio_generator,
    studio_logits,
    studio_pictures,
    torch_spectral,
)
from helpers.plain_checkpoints import attention, spectral
from helpers.tensors import normal_source

from fewshot_gan.convert import ConversionError, convert_checkpoint
from fewshot_gan.models.biggan import BigGANDiscriminator

LIMIT = 1e-4  # float32 in another order of summation, up to 20 layers deep; logits reach 30


# ----------------------------------------------------------------------------------------------------------- equalities


def largest_differences(networks, pictures, logits, size, chunks):
    z, x = normal_source(8)(3, CHUNK * chunks), normal_source(9)(3, 3, size, size)
    with torch.no_grad():
        drawn, judged = networks["generator"](z, LABELS), networks["discriminator"](x, LABELS)
        want_drawn, want_judged = pictures(z, LABELS), logits(x.clone(), LABELS)
    # far above the limit and not at the ends of tanh: something is compared
    assert want_drawn.std() > 0.05 and want_drawn.abs().mean() < 0.9 and want_judged.std() > 0.1
    return float((drawn - want_drawn).abs().max()), float((judged - want_judged).abs().max())


@pytest.mark.parametrize("prefix", ["", "module."])
@pytest.mark.parametrize("size", PORT)
def test_the_ports_networks_equal_their_own_function(tmp_path, size, prefix):
    g, d = port_generator(size), port_discriminator(size)
    for name, state in (("G_ema", g), ("D", d)):
        torch.save({prefix + key: value for key, value in state.items()}, tmp_path / f"{name}.pth")
    networks = convert_checkpoint(tmp_path)
    assert networks["generator"].resolution == networks["discriminator"].resolution == size
    assert networks["discriminator"].config.shortcut_after_relu is False
    differences = largest_differences(
        networks,
        lambda z, y: port_pictures(g, size, z, y),
        lambda x, y: port_logits(d, size, x, y),
        size,
        len(PORT[size][0]),
    )
    print(f"BigGAN-PyTorch | {size} px | {prefix or 'no prefix'} | G {differences[0]:.1e}, D {differences[1]:.1e}")
    assert max(differences) < LIMIT


@pytest.mark.parametrize("size", PORT)
def test_a_discriminator_alone_has_its_size_from_its_blocks(tmp_path, size):
    torch.save(port_discriminator(size), tmp_path / "D.pth")
    assert convert_checkpoint(tmp_path / "D.pth")["discriminator"].config.resolution == size


@pytest.mark.parametrize("prefix", ["", "module."])
@pytest.mark.parametrize("size", STUDIO)
def test_studiogans_networks_equal_their_own_function(tmp_path, caplog, size, prefix):
    """Named, wrapped and filled as the lottery tickets' (arXiv 2103.00397) training writes them."""
    g, d = studio_generator(size), studio_discriminator(size)
    training = {"seed": 1, "run_name": "BigGAN-train", "step": 9, "ada_p": "No", "optimizer": {"state": {}}}
    files = {"G_ema": {}, "G": training, "D": training | {"best_fid": 14.4, "best_fid_checkpoint_path": "."}}
    for name, beside in files.items():
        state = {"G_ema": g, "G": studio_generator(size, 16), "D": d}[name]
        wrapped = beside | {"state_dict": {prefix + key: value for key, value in state.items()}}
        torch.save(wrapped, tmp_path / f"model={name}-best-weights-step=9.pth")
    networks = convert_checkpoint(tmp_path)
    assert set(networks) == {"generator", "generator_raw", "discriminator"}
    assert networks["generator"].resolution == networks["discriminator"].resolution == size
    assert networks["discriminator"].config.shortcut_after_relu is True
    differences = largest_differences(
        networks,
        lambda z, y: studio_pictures(g, size, z, y),
        lambda x, y: studio_logits(d, size, x, y),
        size,
        len(STUDIO[size][0]),
    )
    print(f"StudioGAN | {size} px | {prefix or 'no prefix'} | G {differences[0]:.1e}, D {differences[1]:.1e}")
    assert max(differences) < LIMIT
    alone = convert_checkpoint(tmp_path / "model=G_ema-best-weights-step=9.pth")
    assert set(alone) == {"generator"} and torch.equal(alone["generator"].linear.bias, g["linear0.bias"])
    assert networks["generator"].norm.norm.num_batches_tracked == 7
    current = {"state_dict": studio_discriminator(size, 17)}  # the training keeps its last networks beside the best
    torch.save(current, tmp_path / "model=D-current-weights-step=10.pth")
    again = convert_checkpoint(tmp_path)["discriminator"].state_dict()
    assert all(torch.equal(value, again[key]) for key, value in networks["discriminator"].state_dict().items())
    assert "left out, because there is a best one: model=D-current-weights-step=10.state_dict" in caplog.text


def test_the_shortcut_after_relu_matters_and_is_saved(tmp_path):
    torch.save({"state_dict": studio_discriminator(64)}, tmp_path / "D.pth")
    d = convert_checkpoint(tmp_path / "D.pth")["discriminator"]
    d.save_pretrained(tmp_path / "d")
    again = BigGANDiscriminator.from_pretrained(tmp_path / "d").eval()
    other = BigGANDiscriminator.from_config({**d.config, "shortcut_after_relu": False}).eval()
    other.load_state_dict(d.state_dict())
    x = normal_source(9)(3, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(again(x, LABELS), d(x, LABELS))
        assert (other(x, LABELS) - d(x, LABELS)).abs().max() > 0.1
    assert BigGANDiscriminator().config.shortcut_after_relu is False


@pytest.mark.parametrize("norm", ["synchronised", "standing"])
def test_the_ports_other_batch_norms(tmp_path, norm):
    g = port_generator(32)
    changed = {}
    for name, value in g.items():
        new = name.replace("stored_", "bn.running_" if norm == "synchronised" else "bn.stored_")
        changed[new] = value
        if norm == "standing" and name.endswith("stored_mean"):
            changed[new.replace("stored_mean", "accumulation_counter")] = torch.zeros(1)
        elif norm == "synchronised" and name.endswith("stored_mean"):
            changed[new.replace("running_mean", "num_batches_tracked")] = torch.tensor(7)
    for name, value in (("one", g), ("other", changed)):
        torch.save(value, tmp_path / f"{name}.pth")
    z = normal_source(8)(3, CHUNK * 4)
    with torch.no_grad():
        one, other = (convert_checkpoint(tmp_path / f"{n}.pth")["generator"](z, LABELS) for n in ("one", "other"))
    assert torch.equal(one, other)


def test_further_singular_values_of_the_port_change_nothing(tmp_path):
    g, t = port_generator(32), normal_source(3)
    more = {name.replace(".u0", ".u1"): t(*value.shape) for name, value in g.items() if name.endswith(".u0")}
    more |= {name.replace(".u1", ".sv1"): torch.ones(1) for name in more}
    torch.save(g | more, tmp_path / "G.pth")
    z = normal_source(8)(3, CHUNK * 4)
    with torch.no_grad():
        difference = convert_checkpoint(tmp_path / "G.pth")["generator"](z, LABELS) - port_pictures(g, 32, z, LABELS)
    assert difference.abs().max() < LIMIT


# ---------------------------------------------------------------------------------------------------- what is refused


def renamed(tensors, *pairs):
    for old, new in pairs:
        tensors = {name.replace(old, new): value for name, value in tensors.items()}
    return tensors


def but(tensors, *ends):
    return {name: value for name, value in tensors.items() if not name.endswith(ends)}


def starting(tensors, *starts):
    return {name: value for name, value in tensors.items() if not name.startswith(starts)}


def without_chunks(tensors):
    return {
        name: value[:, :SHARED].clone() if ".gain.weight" in name or ".bias.weight" in name else value
        for name, value in tensors.items()
    }


def standing(tensors):
    changed = renamed(tensors, ("stored_", "bn.stored_"))
    return changed | {"output_layer.0.bn.accumulation_counter": torch.ones(1)}


def halving_throughout(tensors):
    """The last block, which keeps its width, gets the skip convolution that only halving would ask for."""
    return tensors | spectral(normal_source(1), "blocks.5.0.conv_sc", 128, 128, 1, 1)


def unnormed(tensors):
    return renamed(but(tensors, "_u", "_v"), ("_orig", ""))


DEEP = "this is BigGAN-deep, whose blocks have four convolutions; only BigGAN with two a block converts"
NO_CLASSES = "this StudioGAN network knows no classes (conditional_strategy no); only the BigGAN with classes converts"
NO_NORM = "this BigGAN was trained without spectral norm"
FOURTH = {"blocks.0.0.conv4.weight": torch.ones(1), "blocks.0.0.conv2d4.weight_orig": torch.ones(1)}
UNSUPPORTED = {
    "unshared": (
        lambda: starting(port_generator(32), "shared"),
        "this BigGAN has no class embedding that its blocks share (trained without --G_shared); only those with one "
        "convert",
    ),
    "not hierarchical": (
        lambda: without_chunks(port_generator(32)),
        "this BigGAN gives z to its first layer alone (trained without --hier); only those with a chunk of z for each "
        "block convert",
    ),
    "deep": (lambda: port_generator(32) | FOURTH, DEEP),
    "deep discriminator": (lambda: starting(port_discriminator(32) | FOURTH, "blocks.0.0.conv2d"), DEEP),
    "StudioGAN deep": (lambda: starting(studio_generator(32) | FOURTH, "shared"), DEEP),
    "StudioGAN deep discriminator": (lambda: starting(studio_discriminator(32) | FOURTH, "embedding"), DEEP),
    "no spectral norm": (
        lambda: but(port_generator(32), ".u0", ".sv0"),
        f"{NO_NORM} (no u0 beside its weights), ours has it",
    ),
    "StudioGAN, no spectral norm": (
        lambda: unnormed(studio_generator(32)),
        f"{NO_NORM}; ours normalises every weight",
    ),
    "StudioGAN discriminator, no spectral norm": (
        lambda: unnormed(studio_discriminator(32)),
        f"{NO_NORM}; ours normalises every weight",
    ),
    "StudioGAN, no classes": (
        lambda: starting(
            renamed(studio_generator(32), ("bn1.bn.", "bn1."), ("bn1.running_mean", "bn1.weight")), "shared"
        ),
        NO_CLASSES,
    ),
    "StudioGAN discriminator, no classes": (lambda: starting(studio_discriminator(32), "embedding"), NO_CLASSES),
    "ACGAN": (
        lambda: starting(studio_discriminator(32), "embedding") | torch_spectral(normal_source(1), "linear4", 5, 16),
        "this is a StudioGAN discriminator of ACGAN; only the projection discriminator (ProjGAN) converts",
    ),
    "ContraGAN": (
        lambda: studio_discriminator(32) | torch_spectral(normal_source(1), "linear2", 8, 16),
        "this is a StudioGAN discriminator of ContraGAN or its kin; only the projection discriminator (ProjGAN) "
        "converts",
    ),
    "attention twice": (
        lambda: port_generator(32) | attention(normal_source(1), "blocks.0.1", 16),
        "self-attention follows each of the blocks [1, 2]; only networks with one convert",
    ),
    "StudioGAN, another block": (
        lambda: studio_discriminator(32) | {"blocks.5.0.other.weight": torch.ones(1)},
        "blocks.5 is neither a residual block (conv2d1) nor attention (conv1x1_theta)",
    ),
    "standing statistics": (
        lambda: standing(port_generator(32)),
        "the batch norms hold sums of standing statistics; save the network without them",
    ),
    "another layout": (
        lambda: halving_throughout(port_discriminator(128)),
        "the discriminator's blocks [0, 1, 2, 3, 4, 5] of 6 halve the picture; known are layouts in which all but the "
        "last halve it (64 px and more), or all but the last two (32 px)",
    ),
}


@pytest.mark.parametrize("wrapped", [False, True])
@pytest.mark.parametrize("what", UNSUPPORTED)
def test_what_does_not_convert_says_so_in_one_sentence(tmp_path, what, wrapped):
    make, sentence = UNSUPPORTED[what]
    tensors = make()
    data = {"state_dict": {f"module.{name}": value for name, value in tensors.items()}} if wrapped else tensors
    torch.save(data, tmp_path / "x.pth")
    with pytest.raises(ConversionError) as error:
        convert_checkpoint(tmp_path / "x.pth")
    assert str(error.value) == sentence


@pytest.mark.parametrize("make", [studio_generator, studio_discriminator])
def test_differing_keys_of_studiogan_are_listed(tmp_path, make):
    for name in ("blocks.1.0.conv2d2.weight_v", "blocks.1.0.conv2d2.bias"):
        state = make(32)
        state = (
            {n: v for n, v in state.items() if n != name} if name in state else but(state, "blocks.2.0.conv2d2.bias")
        )
        torch.save({"state_dict": state}, tmp_path / "x.pth")
        with pytest.raises(ConversionError, match=r"missing: blocks.\d.0.conv2d2"):
            convert_checkpoint(tmp_path / "x.pth")
    torch.save({"state_dict": make(32) | {"extra.weight": torch.ones(1)}}, tmp_path / "x.pth")
    with pytest.raises(ConversionError, match="left over: extra.weight"):
        convert_checkpoint(tmp_path / "x.pth")
