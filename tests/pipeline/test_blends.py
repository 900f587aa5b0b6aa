"""Blends, strips and fused adapters in the pipeline."""

import pytest
import torch
from helpers.every_pipeline import TOLERANCE, images

from fewshot_gan import FewShotGAN
from fewshot_gan.adapters import DomainVectorAdapter, LeFTAdapter


def test_adapter_names_take_blends(looks):
    looks.set_adapters(["a", "b"], [0.5, -0.25])
    want = images(looks, 3)
    blend = {"a": 0.5, "b": -0.25}
    looks.set_adapters("a")
    mixed = images(looks, 3, adapter_names=["__base__", blend, {"a": 1.0, "__base__": 0.3}])
    torch.testing.assert_close(mixed[1], want[1], **TOLERANCE)
    torch.testing.assert_close(mixed[0], images(looks, 3, adapter_names="__base__")[0], **TOLERANCE)
    torch.testing.assert_close(mixed[2], images(looks, 3, adapter_names="a")[2], **TOLERANCE)
    torch.testing.assert_close(images(looks, 3, adapter_names=blend), want, **TOLERANCE)


def test_a_mixed_batch_is_one_forward(looks):
    forwards = []
    handle = looks.generator.synthesis.register_forward_hook(lambda *_: forwards.append(1))
    images(looks, 6, adapter_names=["a", "b", "__base__", None, "a", {"a": 0.5, "b": 0.5}])
    handle.remove()
    assert len(forwards) == 1


def test_interpolate_is_a_strip_of_blends(looks):
    out = looks.interpolate("a", "b", 5, num_images=2, seed=3, output_type="pt")
    assert out.images.shape[0] == 10 and torch.equal(out.latents[0], out.latents[4])
    assert not torch.equal(out.latents[0], out.latents[5])
    assert torch.equal(out.latents[::5], looks(2, seed=3).latents)
    for k, t in enumerate((0, 0.25, 0.5, 0.75, 1)):
        looks.set_adapters(["a", "b"], [1 - t, t])
        want = looks(latents=out.latents[::5], output_type="pt").images
        torch.testing.assert_close(out.images[k::5], want, **TOLERANCE)
    ends = looks.interpolate("__base__", "a", 2, seed=3, output_type="pt").images
    torch.testing.assert_close(ends[0], images(looks, 1, seed=3, adapter_names="__base__")[0], **TOLERANCE)
    torch.testing.assert_close(ends[1], images(looks, 1, seed=3, adapter_names="a")[0], **TOLERANCE)
    for arguments, message in (
        (("a", "b", 1), "steps=1: a strip has at least its two ends"),
        (("a", "c", 3), "'c' is not loaded; loaded: 'a', 'b'"),
    ):
        with pytest.raises(ValueError, match=message):
            looks.interpolate(*arguments)
    with pytest.raises(ValueError, match="interpolate chooses adapter_names itself"):
        looks.interpolate("a", "b", adapter_names="a")


def test_a_schedule_over_depth(looks):
    base, a = images(looks, adapter_names="__base__"), images(looks, adapter_names="a")
    looks.set_adapters("a", {"coarse": 0.0, "middle": 1.0})
    fine = images(looks)
    looks.set_adapters(["a", "b"], [{"coarse": 1.0, "middle": 0.0}, 0.0])
    coarse = images(looks)
    assert all((x - y).abs().max() > 0.01 for x in (fine, coarse) for y in (base, a))
    looks.set_adapters("a", {0: 1.0})
    assert torch.equal(images(looks), a)


def test_fusing_a_pipeline(pipe, perturbed, tmp_path):
    torch.manual_seed(0)
    pipe.load_adapter(perturbed(LeFTAdapter.for_model(pipe.generator), 1), "a")
    pipe.load_adapter(perturbed(LeFTAdapter.for_model(pipe.generator), 2), "b")
    source = {k: v.clone() for k, v in pipe.generator.state_dict().items()}
    pipe.set_adapters(["a", "b"], [0.5, 0.5])
    want = images(pipe)
    pipe.fuse_adapters(["a", "b"], [0.5, 0.5])
    torch.testing.assert_close(images(pipe), want, rtol=0, atol=1e-5)
    pipe.save_pretrained(tmp_path / "fused")
    for action in (
        pipe.fuse_adapters,
        lambda: pipe.set_adapters("a"),
        lambda: pipe.load_adapter("sketch"),
        lambda: pipe.load_adapters(tmp_path),
        lambda: pipe.delete_adapters("a"),
        pipe.disable_adapters,
        lambda: pipe(1, adapter_names="a"),
        lambda: pipe.interpolate("a", "b"),
    ):
        with pytest.raises(ValueError, match="cannot .* while 'a', 'b' is fused; call unfuse_adapters first"):
            action()
    pipe.unfuse_adapters()
    assert all(torch.equal(v, source[k]) for k, v in pipe.generator.state_dict().items())
    assert torch.equal(images(pipe), want)
    with pytest.raises(ValueError, match="no adapter is fused"):
        pipe.unfuse_adapters()
    standalone = FewShotGAN.from_pretrained(tmp_path / "fused")
    torch.testing.assert_close(images(standalone), want, rtol=0, atol=1e-5)


def test_fused_weights_are_refused_by_other_pipelines_of_the_generator(looks):
    other = FewShotGAN.from_pipe(looks)
    want = images(looks)
    looks.fuse_adapters()
    for action in (
        lambda: other(1),
        lambda: other(1, adapter_names="__base__"),
        lambda: other.set_adapters("a"),
        other.fuse_adapters,
        other.unfuse_adapters,
    ):
        with pytest.raises(ValueError, match="while .* is fused; call unfuse_adapters on the other pipeline"):
            action()
    torch.testing.assert_close(images(looks), want, rtol=0, atol=1e-5)
    looks.unfuse_adapters()
    other.set_adapters([])
    other.fuse_adapters("a")
    with pytest.raises(ValueError, match="call unfuse_adapters on the other pipeline of this generator"):
        looks.fuse_adapters()
    other.unfuse_adapters()
    assert torch.equal(images(looks), want)


def test_pictures_that_are_not_finite_are_refused(looks):
    with pytest.raises(ValueError, match="the pictures would have values that are not finite: weights of adapters"):
        looks(1, adapter_names={"a": 1e29})
    with pytest.raises(ValueError, match="adapter 'gone' is not loaded|'gone' is not loaded"):
        looks.bank.row_order([{"gone": 1.0}])


def test_what_cannot_be_fused_is_not_saved_as_if_it_were(stylegan2, perturbed, tmp_path):
    pipe = FewShotGAN(stylegan2)
    pipe.load_adapter(perturbed(DomainVectorAdapter.for_model(stylegan2), std=0.5), "v")
    want = images(pipe)
    pipe.fuse_adapters()
    torch.testing.assert_close(images(pipe), want, rtol=0, atol=1e-5)
    with pytest.raises(ValueError, match="'v' acts at 7 layers.*save_adapter instead"):
        pipe.save_pretrained(tmp_path / "fused")
    assert not (tmp_path / "fused").exists()


def test_add_weighted_adapter(looks, make_generator, tmp_path):
    looks.set_adapters(["a", "b"], [0.5, 0.5])
    want = images(looks)
    looks.add_weighted_adapter(["a", "b"], [0.5, 0.5], "both")
    assert looks.active_adapters() == ["a", "b"]
    looks.add_weighted_adapter(["both", "a"], [1.0, 0.0], "again")  # a blend of a blend
    for name in ("both", "again"):
        looks.save_adapter(tmp_path / name, name)
    fresh = FewShotGAN(make_generator())
    for name in ("both", "again"):
        fresh.load_adapter(tmp_path / name)
        torch.testing.assert_close(images(fresh), want, **TOLERANCE)
    for arguments, message in (
        ((["a", "c"], 0.5, "x"), "'c' is not loaded"),
        ((["a", "b"], [1.0], "x"), "2 adapters but 1 weights"),
        ((["a", "b"], 0.5, "both"), "an adapter 'both' is already loaded"),
        ((["a", "a"], 0.5, "x"), "each once"),
    ):
        with pytest.raises(ValueError, match=message):
            looks.add_weighted_adapter(*arguments)


def test_looks_as_mappings_and_what_is_no_list(looks):
    looks.set_adapters({"a": 0.25, "b": {"coarse": 1.0}})
    assert looks.bank.active == {"a": 0.25, "b": {"coarse": 1.0}}
    for bad in ({"a", "b"}, 5, None, [["a"]], [1, 1], iter("ab")):
        with pytest.raises(ValueError, match="give a name, a list of names"):
            looks.set_adapters(bad)
        with pytest.raises(ValueError):
            looks.delete_adapters(bad)
    for bad in ({"a", "b"}, 5, iter("ab"), ["a", ["b"], "a", "a"], ["a", 3, "a", "a"]):
        with pytest.raises(ValueError, match="adapter_names"):
            looks(4, adapter_names=bad)
    with pytest.raises(ValueError, match="2 adapters but 3 weights|no finite number"):
        looks.set_adapters(["a", "b"], "0.5")
    with pytest.raises(ValueError, match="'zz' is not loaded"):
        looks.delete_adapters(["a", "zz"])
    assert looks.loaded_adapters() == ["a", "b"]  # all or none
    with pytest.raises(ValueError, match="empty list"):
        looks.save_adapter("nowhere", [])
    with pytest.raises(ValueError, match="unknown options of load_adapter: bogus"):
        looks.load_adapter("sketch", bogus=1)
    with pytest.raises(ValueError, match="an Adapter is loaded as it is"):
        looks.load_adapter(looks.bank.adapters["a"], "c", subfolder="x")
    looks.delete_adapters(looks.bank.adapters)
    assert looks.loaded_adapters() == []


def test_a_strip_keeps_its_noise(looks):
    state = torch.get_rng_state()
    options = {"num_images": 2, "seed": 0, "noise_mode": "random", "output_type": "pt"}
    first, again = (looks.interpolate("__base__", "a", 3, **options).images for _ in range(2))
    assert torch.equal(first, again) and torch.equal(torch.get_rng_state(), state)
    base = images(looks, 2, noise_mode="random", adapter_names="__base__")
    torch.testing.assert_close(first[::3], base, **TOLERANCE)
    looks.bank.activate({})
    still = looks.interpolate("__base__", "__base__", 3, **options).images
    torch.testing.assert_close(still[0], still[2], **TOLERANCE)
