"""Bases and adapters in files: they round-trip, in folders of several too, and damaged ones are refused."""

import json
import shutil

import pytest
import torch
from helpers.every_pipeline import images
from PIL import Image

from fewshot_gan import FewShotGAN
from fewshot_gan.adapters import LeFTAdapter
from fewshot_gan.hub.cards import write_adapter_card


def test_the_base_round_trips(make_generator, discriminator, tmp_path):
    pipe = FewShotGAN(make_generator(), discriminator, truncation_psi=0.6)
    pipe.save_pretrained(tmp_path)
    index = json.loads((tmp_path / "model_index.json").read_text(encoding="utf-8"))
    assert index["generator"] == ["fewshot_gan", type(pipe.generator).__name__]
    assert index["discriminator"] == ["fewshot_gan", "StyleGAN2Discriminator"]
    loaded = FewShotGAN.from_pretrained(tmp_path)
    assert loaded.base_name == str(tmp_path) and loaded.config.truncation_psi == 0.6
    assert torch.equal(images(loaded, noise_mode="random"), images(pipe, noise_mode="random"))
    x = images(pipe) * 2 - 1
    assert torch.equal(loaded.discriminator(x), discriminator(x))
    assert FewShotGAN.from_pretrained(tmp_path, discriminator=None).discriminator is None


def test_the_discriminator_is_optional(mobile, tmp_path):
    FewShotGAN(mobile).save_pretrained(tmp_path)
    assert not (tmp_path / "discriminator").exists()
    assert FewShotGAN.from_pretrained(tmp_path).discriminator is None


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(base_folder, dtype):
    want = images(FewShotGAN.from_pretrained(base_folder), noise_mode="random")
    half = FewShotGAN.from_pretrained(base_folder, dtype=dtype)
    assert half.generator.dtype == dtype
    # pictures in [0, 1]; three or ten bits of mantissa fewer than a picture needs show in a few pixels
    assert (images(half, noise_mode="random") - want).abs().mean() < (0.002 if dtype == torch.float16 else 0.02)


def test_to_keeps_adapters_in_full_precision(looks):
    assert looks.to(torch.bfloat16) is looks
    assert looks.generator.dtype == torch.bfloat16 and looks.bank.adapters["a"].dtype == torch.float32
    assert torch.isfinite(images(looks, adapter_names=["a", "b", "a", "b"])).all()


@pytest.mark.parametrize("with_grid", [True, False])
def test_card_of_an_adapter(mobile, tmp_path, with_grid):
    from huggingface_hub import ModelCard

    training = {"max_train_steps": 3, "seed": 7}
    options = {"base_model_name_or_path": "ffhq", "method": "lfs_gan", "training": training}
    for base in ("ffhq", "me/faces", str(tmp_path)):
        folder = tmp_path / "pencil"
        adapter = LeFTAdapter.for_model(mobile, **{**options, "base_model_name_or_path": base})
        adapter.save_pretrained(folder)
        for step in (1, 20):
            (tmp_path / "samples").mkdir(exist_ok=True)
            Image.new("RGB", (8, 8), (step, 0, 0)).save(tmp_path / "samples" / f"step-{step:06d}.png")
        write_adapter_card(adapter, folder, "pencil", grid=tmp_path / "samples" if with_grid else None)
        card = ModelCard.load(folder / "README.md")
        data = card.data.to_dict()
        assert data["library_name"] == "fewshot_gan"
        assert data["pipeline_tag"] == "unconditional-image-generation"
        repo = {"me/faces": "me/faces", "ffhq": "fewshot-gan/ffhq"}.get(base)  # where the embedded one is published
        assert (data.get("base_model"), data.get("base_model_relation")) == (repo, "adapter" if repo else None)
        assert (data.get("license") == "other") == ("non-commercial" in card.text) == (base == "ffhq")
        assert str(tmp_path) not in str(card)
        assert f"{adapter.num_values():,} numbers" in card.text and "| seed | 7 |" in card.text
        assert f"{(folder / 'adapter_model.safetensors').stat().st_size:,} bytes" in card.text
        assert 'load_adapter("pencil")' in card.text and "2308.11917" in card.text
        if with_grid:
            assert abs(Image.open(folder / "images" / "grid.jpg").getpixel((0, 0))[0] - 20) <= 2
        assert ("images/grid.jpg" in card.text) == ("widget" in data) == with_grid == (folder / "images").exists()
        assert not [p for p in folder.rglob("*") if p.name.startswith(".")]


def test_an_adapter_of_another_base(pipe, make_generator):
    for base, way_out in (
        ("me/cats", "trained on 'me/cats'.*load its base with FewShotGAN.from_pretrained.'me/cats'"),
        ("ffhq", "load its base with FewShotGAN.from_pretrained.'ffhq'"),
        ("afhq-cat", "trained on 'afhq-cat'.*its base 'afhq-cat' is not on this machine; get it from whoever"),
        ("/home/me/cats", "its base '/home/me/cats' is not on this machine"),
        (None, "load the base it was made for"),
    ):
        stranger = LeFTAdapter.for_model(make_generator(7), base_model_name_or_path=base)
        with pytest.raises(ValueError, match=way_out):
            pipe.load_adapter(stranger, "cat")
    assert pipe.loaded_adapters() == [] == pipe.active_adapters()


def copy_of(base_folder, tmp_path):
    return shutil.copytree(base_folder, tmp_path / "base")


@pytest.mark.parametrize("keep", [0, 100, -5])
def test_truncated_base(base_folder, tmp_path, keep):
    folder = copy_of(base_folder, tmp_path)
    (weights,) = (folder / "generator").glob("*.safetensors")
    weights.write_bytes(weights.read_bytes()[:keep])
    with pytest.raises(ValueError, match="could not load the base in"):
        FewShotGAN.from_pretrained(folder)


def test_base_that_lacks_a_tensor(base_folder, tmp_path):
    from safetensors.torch import load_file, save_file

    folder = copy_of(base_folder, tmp_path)
    (weights,) = (folder / "generator").glob("*.safetensors")
    tensors = load_file(weights)
    bias = tensors.pop("synthesis.b8.conv0.bias")
    save_file(tensors, weights, metadata={"format": "pt"})
    with pytest.raises(ValueError, match="generator in .* lacks weights: synthesis.b8.conv0.bias"):
        FewShotGAN.from_pretrained(folder)
    save_file(tensors | {"synthesis.b8.conv0.bias": bias, "extra": bias.clone()}, weights, metadata={"format": "pt"})
    with pytest.raises(ValueError, match="has weights that it does not know: extra"):
        FewShotGAN.from_pretrained(folder)


def test_folder_that_is_no_base(tmp_path):
    with pytest.raises(FileNotFoundError, match="is not a base: it has no model_index.json"):
        FewShotGAN.from_pretrained(tmp_path)


def test_names_are_unique_unless_swapped(looks, tmp_path):
    a, b = (images(looks, adapter_names=n) for n in "ab")
    looks.save_adapter(tmp_path / "x", "b")
    with pytest.raises(ValueError, match="an adapter 'a' is already loaded; give this one another adapter_name"):
        looks.load_adapter(tmp_path / "x", "a")
    with pytest.raises(ValueError, match="hotswap replaces a loaded adapter, but there is no 'x'"):
        looks.load_adapter(tmp_path / "x", hotswap=True)
    looks.set_adapters("a")
    assert torch.equal(images(looks), a)
    looks.load_adapter(tmp_path / "x", "a", hotswap=True)
    assert looks.active_adapters() == ["a"] and torch.equal(images(looks), b)
    with pytest.raises(ValueError, match="adapters named twice"):
        looks.set_adapters(["a", "a"])


def test_a_folder_of_several_adapters(looks, make_generator, tmp_path):
    solo = {n: images(looks, adapter_names=n) for n in "ab"}
    looks.save_adapter(tmp_path, ["a", "b"])
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a", "b"]
    fresh = FewShotGAN(make_generator())
    with pytest.raises(ValueError, match="holds several adapters: a, b; choose one with subfolder='a'"):
        fresh.load_adapter(tmp_path)
    fresh.load_adapter(tmp_path, subfolder="b")
    assert fresh.loaded_adapters() == ["b"] and torch.equal(images(fresh), solo["b"])
    with pytest.raises(ValueError, match="'b' is already loaded"):
        fresh.load_adapters(tmp_path)
    assert fresh.loaded_adapters() == ["b"]  # all or none
    fresh.delete_adapters("b")
    assert fresh.load_adapters(tmp_path) == ["a", "b"] == fresh.loaded_adapters()
    assert fresh.active_adapters() == []
    for name in "ab":
        assert torch.equal(images(fresh, adapter_names=name), solo[name])
    with pytest.raises(FileNotFoundError, match="holds no adapter folders"):
        fresh.load_adapters(tmp_path / "a")
    with pytest.raises(ValueError, match="subfolder='../a' leads out of"):
        fresh.load_adapter(tmp_path, "x", subfolder="../a")
    with pytest.raises(ValueError, match="'c' is not loaded"):
        looks.save_adapter(tmp_path / "new", ["a", "c"])
    assert not (tmp_path / "new").exists()


def test_variants_of_an_adapter(looks, make_generator, tmp_path):
    want = images(looks, adapter_names="a")
    looks.save_adapter(tmp_path / "a", "a", variant="fp32")
    fresh = FewShotGAN(make_generator()).load_adapter(tmp_path / "a", variant="fp32")
    assert torch.equal(images(fresh), want)
    with pytest.raises(FileNotFoundError, match="has no adapter_model.safetensors"):
        fresh.load_adapter(tmp_path / "a", "other")


def test_an_index_that_points_elsewhere(base_folder, tmp_path):
    folder = copy_of(base_folder, tmp_path)
    (weights,) = (folder / "generator").glob("*.safetensors")
    index = folder / "generator" / f"{weights.name}.index.json"
    for shard in ("../../secret.safetensors", "/etc/x.safetensors", "a\\b.safetensors", 3, ".."):
        index.write_text(json.dumps({"metadata": {}, "weight_map": {"w": shard}}), encoding="utf-8")
        with pytest.raises(ValueError, match="names the file .* which is not beside it"):
            FewShotGAN.from_pretrained(folder)
    index.write_text("{", encoding="utf-8")
    with pytest.raises(ValueError, match="index.json is damaged"):
        FewShotGAN.from_pretrained(folder)


def test_a_sharded_base(base_folder, tmp_path):
    want = images(FewShotGAN.from_pretrained(base_folder))
    pipe = FewShotGAN.from_pretrained(base_folder)
    pipe.save_pretrained(tmp_path / "shards", max_shard_size="20KB")
    assert len(list((tmp_path / "shards" / "generator").glob("*.safetensors"))) > 1
    assert torch.equal(images(FewShotGAN.from_pretrained(tmp_path / "shards")), want)


def test_adapters_of_a_float32_base_fit_it_in_half_precision(tmp_path, perturbed):
    from fewshot_gan.models import MobileStyleGANGenerator

    torch.manual_seed(0)
    size = {"z_dim": 16, "w_dim": 16, "num_mapping_layers": 2}
    pipe = FewShotGAN(MobileStyleGANGenerator((16, 16, 16), **size))  # weights that no half precision holds
    pipe.save_pretrained(tmp_path / "base")
    pipe.load_adapter(perturbed(LeFTAdapter.for_model(pipe.generator)), "a")
    pipe.base_name = str(tmp_path / "base")
    pipe.save_adapter(tmp_path / "a", "a")
    assert str(tmp_path) not in (tmp_path / "a" / "README.md").read_text(encoding="utf-8")  # the card may travel
    for dtype in (torch.float16, torch.bfloat16):
        loaded = FewShotGAN.from_pretrained(tmp_path / "base", dtype=dtype).load_adapter(tmp_path / "a")
        assert torch.isfinite(images(loaded)).all()
        cast = FewShotGAN.from_pretrained(tmp_path / "base").to(dtype).load_adapter(tmp_path / "a")
        assert torch.equal(images(cast), images(loaded))


def test_a_base_in_a_subfolder(base_folder, tmp_path):
    shutil.copytree(base_folder, tmp_path / "all" / "faces")
    assert torch.equal(
        images(FewShotGAN.from_pretrained(tmp_path / "all", subfolder="faces")),
        images(FewShotGAN.from_pretrained(base_folder)),
    )


def test_collections_in_a_variant_and_their_cards(looks, make_generator, tmp_path):
    looks.save_adapter(tmp_path, ["a", "b"], variant="fp32")
    fresh = FewShotGAN(make_generator())
    assert fresh.load_adapters(tmp_path, variant="fp32") == ["a", "b"]
    assert torch.equal(images(fresh, adapter_names="a"), images(looks, adapter_names="a"))
    card = tmp_path / "a" / "README.md"
    assert 'load_adapter("a")' in card.read_text(encoding="utf-8")
    card.write_text("# my own words\n", encoding="utf-8")
    looks.save_adapter(tmp_path / "a", "a")
    assert card.read_text(encoding="utf-8") == "# my own words\n"
