"""The hypernetwork: published size, exact files, vectors that act row by row, and adapters from words and pictures."""

import json
from copy import deepcopy

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from helpers.adapter_kinds import specs_of
from helpers.networks import tiny_mobile, tiny_stylegan2
from helpers.saved_models import tiny_clip
from PIL import Image
from safetensors.torch import load_file, save_file

from fewshot_gan import FewShotGAN
from fewshot_gan.adapters import Adapter, AdapterBank, DomainHyperNetwork, DomainVectorAdapter, LeFTAdapter
from fewshot_gan.features.encoders import FeatureEncoder, load_encoder
from fewshot_gan.models import MobileStyleGANGenerator, StyleGAN2Generator
from fewshot_gan.ops import upfirdn2d

# The published promise for pictures: MobileStyleGAN folds one look's scale into the weights, and scales activations
# where rows differ, which rounds differently in each of its layers.
PROMISE = {"rtol": 0, "atol": 1e-4}
SMALL = {"width": 16, "backbone_depth": 2, "head_depth": 2}


def latents(n=3, seed=1, dim=16):
    return torch.randn(n, dim, generator=torch.Generator().manual_seed(seed))


def vectors(generator, batch=3, seed=0, std=0.5):
    """δ `[B, C]` for every styled convolution."""
    g = torch.Generator().manual_seed(seed)
    return {p: torch.randn(batch, s["shape"][1], generator=g) * std for p, s in specs_of(generator, ("conv",)).items()}


def trained(generator, encoder=None, **options):
    """A hypernetwork whose vectors are visible and whose batch norms have seen something."""
    torch.manual_seed(0)
    size = {} if encoder is not None else {"embedding_dim": 24}
    network = DomainHyperNetwork.for_model(generator, encoder, **SMALL, **size, **options)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(torch.randn(parameter.shape) * 0.2)
        network.train()(latents(8, 2, network.config.embedding_dim))
    return network.eval()


@pytest.fixture(scope="module")
def clip_folder(tmp_path_factory):
    return tiny_clip(tmp_path_factory.mktemp("clip"))


@pytest.fixture(scope="module")
def clip(clip_folder):
    return load_encoder(str(clip_folder))


# ------------------------------------------------------------------------------------------------------------- network


@pytest.mark.parametrize("depth, numbers", [(4, 13_913_504), (6, 14_968_224)])
def test_the_published_size(depth, numbers):  # spec test 10
    with torch.device("meta"):
        network = DomainHyperNetwork(specs_of(StyleGAN2Generator(1024), ("conv",)), backbone_depth=depth)
    assert sum(p.numel() for p in network.parameters()) == numbers
    assert network.num_deltas == 6048 and len(network.heads) == 17


def test_it_fits_the_base_that_ships():
    with torch.device("meta"):
        network = DomainHyperNetwork(specs_of(MobileStyleGANGenerator(), ("conv",)))
    assert network.num_deltas == 3456 and len(network.heads) == 11


def test_shapes_start_and_scale(make_generator):
    generator = make_generator()
    torch.manual_seed(0)
    network = DomainHyperNetwork.for_model(generator, embedding_dim=24)
    x, want = latents(5, 3, 24), specs_of(generator, ("conv",))
    with torch.no_grad():
        deltas = network.train()(x)
        assert {path: tuple(d.shape) for path, d in deltas.items()} == {p: (5, s["shape"][1]) for p, s in want.items()}
        assert 1e-4 < max(d.abs().max() for d in deltas.values()) < 0.2
        network.eval()
        assert max(d.abs().max() for d in network(x).values()) < 1e-3  # batch norms have seen one batch
        assert all(torch.allclose(a, b) for a, b in zip(network(x).values(), network(3 * x).values(), strict=True))


def test_residual_blocks_and_heads_as_specified(mobile):
    network = trained(mobile).train()
    x = F.normalize(latents(4, 5, 24), dim=1)
    with torch.no_grad():
        linear, _, norm, block = network.backbone
        hidden = norm(F.relu(linear(x)))
        first, bn1, _, second, bn2 = block.layers
        hidden = F.relu(hidden + bn2(second(F.relu(bn1(first(hidden))))))
        path = "synthesis.b8.conv0.conv"
        residual, last = network.heads["synthesis-b8-conv0-conv"]
        first, bn1, _, second, bn2 = residual.layers
        hidden = F.relu(hidden + bn2(second(F.relu(bn1(first(hidden))))))
        torch.testing.assert_close(network(4 * x)[path], last(hidden), rtol=1e-4, atol=1e-5)


def test_what_it_refuses(mobile, clip, features):
    network = trained(mobile)
    with pytest.raises(ValueError, match=r"batch norm cannot train on a single domain; give 2 or more"):
        network.train()(latents(1, dim=24))
    network.eval()(latents(1, dim=24))
    with pytest.raises(ValueError, match=r"\(2, 16\) are not \[B, 24\]; use the encoder it was made for"):
        network(latents(2, dim=16))
    with pytest.raises(ValueError, match="3 embeddings for one adapter"):
        network.adapter(latents(3, dim=24))
    targets = specs_of(mobile, ("conv",))
    for options, message in (
        ({"width": 0}, "width=0: give a whole number"),
        ({"head_depth": 1.5}, "head_depth=1.5"),
        ({"placement": "pre_demod"}, "placement='pre_demod': a hypernetwork predicts vectors that act 'post_demod'"),
    ):
        with pytest.raises(ValueError, match=message):
            DomainHyperNetwork(targets, **options)
    with pytest.raises(ValueError, match="target_modules is empty"):
        DomainHyperNetwork({})
    with pytest.raises(ValueError, match="give an encoder, or embedding_dim=512"):
        DomainHyperNetwork.for_model(mobile)
    of_clip = DomainHyperNetwork.for_model(mobile, clip, **SMALL)
    assert (of_clip.config.embedding_dim, of_clip.config.encoder) == (24, clip.name)
    of_clip.check_encoder(clip)
    with pytest.raises(ValueError, match=r"reads 24 numbers of encoder .*, not 80 of 'features' \("):
        of_clip.check_encoder(FeatureEncoder(features))


def test_files_are_exact(make_generator, tmp_path):
    generator = make_generator()
    network = trained(generator, base_model_name_or_path="me/base", training={"steps": 3})
    network.save_pretrained(tmp_path / "a")
    loaded = DomainHyperNetwork.from_pretrained(tmp_path / "a")
    before, after = network.state_dict(), loaded.state_dict()
    assert before.keys() == after.keys() and all(torch.equal(before[k], after[k]) for k in before)
    assert not loaded.training and not any(p.requires_grad for p in loaded.parameters())
    assert loaded.config.training == {"steps": 3} and loaded.config.base_model_name_or_path == "me/base"
    loaded.save_pretrained(tmp_path / "b")
    assert str(tmp_path) not in (tmp_path / "b" / "config.json").read_text(encoding="utf-8")
    again = DomainHyperNetwork.from_pretrained(tmp_path, subfolder="b")
    x = latents(2, dim=24)
    assert all(torch.equal(a, b) for a, b in zip(network(x).values(), again(x).values(), strict=True))
    network.round_to_half()
    network.save_pretrained(tmp_path / "half")
    size, whole = (
        (tmp_path / name / "diffusion_pytorch_model.safetensors").stat().st_size - 4000 for name in ("half", "a")
    )
    assert size < 0.7 * whole  # without the header; running means and variances stay as they are
    loaded = DomainHyperNetwork.from_pretrained(tmp_path / "half")
    after = loaded.state_dict()
    assert all(v.dtype == after[k].dtype and torch.equal(v, after[k]) for k, v in network.state_dict().items())


def test_damaged_files(mobile, tmp_path):
    network = trained(mobile)
    with pytest.raises(FileNotFoundError, match="there is no hypernetwork 'nowhere'"):
        DomainHyperNetwork.from_pretrained("nowhere")

    def without_a_tensor(folder):
        path = folder / "diffusion_pytorch_model.safetensors"
        tensors = load_file(path)
        del tensors["backbone.0.weight"]
        save_file(tensors, path, metadata={"format": "pt"})

    for name, damage, message in (
        ("lacking", without_a_tensor, "missing or unknown: backbone.0.weight"),
        ("cut", lambda f: (f / "diffusion_pytorch_model.safetensors").write_bytes(b"12345678"), "can be loaded"),
        ("config", lambda f: (f / "config.json").write_text("{", encoding="utf-8"), "can be loaded"),
        ("empty", lambda f: (f / "config.json").write_text("{}", encoding="utf-8"), "can be loaded"),
    ):
        network.save_pretrained(tmp_path / name)
        damage(tmp_path / name)
        with pytest.raises(ValueError, match=message) as error:
            DomainHyperNetwork.from_pretrained(tmp_path / name)
        assert "\n" not in str(error.value)


# ------------------------------------------------------------------------------------------- vectors, a row of each


@torch.no_grad()
def test_standardised_inputs_tell_domains_apart(mobile, tmp_path):
    """Nearly parallel embeddings would otherwise be one: their differences are below batch norm's ε."""
    common = torch.randn(1, 24, generator=torch.Generator().manual_seed(0))
    near = common + 0.1 * torch.randn(6, 24, generator=torch.Generator().manual_seed(1))

    torch.manual_seed(0)
    plain = DomainHyperNetwork.for_model(mobile, embedding_dim=24, width=32, backbone_depth=2, head_depth=1)
    seen = deepcopy(plain)
    seen.standardise(near)
    units = (F.normalize(near, dim=1) - seen.input_mean) / seen.input_std
    assert units.mean(0).abs().max() < 1e-4 and units.square().mean().item() == pytest.approx(1, abs=1e-4)
    inside = [network.backbone[:3] for network in (plain, seen)]
    plain_out, seen_out = (f.train()(x) for f, x in zip(inside, (F.normalize(near, dim=1), units), strict=True))
    assert plain_out.std(0).mean() < 0.3 < seen_out.std(0).mean()  # after the first batch norm: 1 where a unit works
    seen.eval().save_pretrained(tmp_path / "hyper")
    again = DomainHyperNetwork.from_pretrained(tmp_path / "hyper")
    for path, delta in again(near).items():
        torch.testing.assert_close(delta, seen(near)[path], rtol=1e-3, atol=1e-6)
    assert seen.num_values() == plain.num_values()  # neither is trained


@torch.no_grad()
def test_zero_vectors_are_the_base(make_generator):  # spec test 2
    generator = make_generator()
    want, bank = generator(latents()), AdapterBank(generator)
    with bank.using_vectors({path: d * 0 for path, d in vectors(generator).items()}):
        torch.testing.assert_close(generator(latents()), want, rtol=0, atol=0)
    with bank.using_vectors({}):
        assert torch.equal(generator(latents()), want)


@torch.no_grad()
def test_rows_equal_solo_runs_and_adapters(make_generator):  # spec test 6
    generator = make_generator()
    bank, deltas, z = AdapterBank(generator), vectors(make_generator()), latents()
    with bank.using_vectors(deltas):
        together = generator(z)
    adapter = DomainVectorAdapter.for_model(generator)
    bank.add("a", adapter)
    for row in range(3):
        with bank.using_vectors({path: d[row : row + 1] for path, d in deltas.items()}):
            torch.testing.assert_close(generator(z[row : row + 1]), together[row : row + 1], **PROMISE)
            everyone = generator(z)  # one vector for a whole batch
        for path, factors in adapter.factors().items():
            factors.delta.copy_(deltas[path][row])
        with bank.using({"a": 1.0}):
            torch.testing.assert_close(generator(z), everyone, **PROMISE)
    assert (together - generator(z)).abs().max() > 0.05


@pytest.mark.parametrize("path", ["synthesis.b8.conv1", "synthesis.b16.conv0"])  # plain and up-sampling
@torch.no_grad()
def test_they_act_after_demodulation(stylegan2, path):  # spec test 3
    layer, bank = stylegan2.get_submodule(path), AdapterBank(stylegan2)
    layer.bias.zero_()
    x, w = torch.randn(3, 12, 8, 8, generator=torch.Generator().manual_seed(3)), latents(3, 4)
    d = 1 + vectors(stylegan2)[path]
    with bank.using_vectors({path: d - 1}):
        got = layer(x, w, noise_mode="none")
    torch.testing.assert_close(got, layer(x * d[:, :, None, None], w, noise_mode="none"), rtol=1e-5, atol=1e-5)

    def by_hand(after, before):
        """One image at a time, through weights W3 `[O, I, 3, 3]` written out."""
        rows = []
        for i, style in enumerate(layer.affine(w)):
            modulated = layer.weight * (style * before[i])[:, None, None]
            weight = modulated * (modulated.square().sum((1, 2, 3), keepdim=True) + 1e-8).rsqrt()
            weight = weight * after[i][:, None, None]
            if layer.up == 2:
                y = F.conv_transpose2d(x[i : i + 1], weight.transpose(0, 1), stride=2)
                y = upfirdn2d(y, layer.resample_filter, padding=(1, 1, 1, 1), gain=4)
            else:
                y = F.conv2d(x[i : i + 1], weight, padding=1)
            rows.append(F.leaky_relu(y, 0.2) * 2**0.5)
        return torch.cat(rows)

    ones = torch.ones_like(d)
    torch.testing.assert_close(got, by_hand(d, ones), rtol=1e-4, atol=1e-4)
    assert (got - by_hand(ones, d)).abs().max() > 0.05


def test_gradients_reach_the_vectors_alone(make_generator):  # spec test 5
    generator = make_generator().requires_grad_(False)
    before = {k: v.clone() for k, v in generator.state_dict().items()}
    network, bank = trained(generator).requires_grad_(True), AdapterBank(generator)
    optimizer = torch.optim.Adam(network.train().parameters(), 1e-2)
    with bank.using_vectors(network(latents(3, 4, 24))):
        generator(latents()).square().mean().backward()
    optimizer.step()
    assert all(
        p.grad is not None and p.grad.abs().max() > 0 for n, p in network.named_parameters() if n.endswith("weight")
    )
    assert all(p.grad is None for p in generator.parameters())
    assert all(torch.equal(v, before[k]) for k, v in generator.state_dict().items())


@torch.no_grad()
def test_blocks_nest_and_leave_nothing_behind(mobile, perturbed):
    bank, z, deltas = AdapterBank(mobile), latents(), vectors(mobile)
    bank.add("left", perturbed(LeFTAdapter.for_model(mobile)))
    base = mobile(z)
    bank.activate({"left": 1.0})
    adapted = mobile(z)
    with bank.using_vectors(deltas):
        led = mobile(z)
        with bank.using({}):
            assert torch.equal(mobile(z), base)
        assert torch.equal(mobile(z), led)
    with bank.using({}), bank.using_vectors(deltas):
        assert torch.equal(mobile(z), led)
    assert torch.equal(mobile(z), adapted) and (led - base).abs().max() > 0.05
    path = next(iter(deltas))
    for wrong, message in (
        (
            {"synthesis.b4.conv": deltas[path]},
            "has no convolution synthesis.b4.conv, nor an affine layer .* these vectors are of another base",
        ),
        ({"mapping.fc0": torch.zeros(1, 16)}, "has no convolution mapping.fc0"),
        ({path: torch.zeros(3, 7)}, rf"of {path} are of shape \(3, 7\), not \[B, 16\]"),
        ({path: torch.zeros(16)}, r"of shape \(16,\)"),
    ):
        with pytest.raises(ValueError, match=message), bank.using_vectors(wrong):
            pass
    bank.fuse()
    with pytest.raises(ValueError, match="is fused; call unfuse_adapters first"), bank.using_vectors(deltas):
        pass


# ------------------------------------------------------------------------------------------------------------ adapters


def test_an_adapter_is_small_and_says_where_it_is_from(tmp_path):  # spec tests 7 and 12
    with torch.device("meta"):
        targets = specs_of(StyleGAN2Generator(1024), ("conv",))
    torch.manual_seed(0)
    base = {"base_model_name_or_path": "me/ffhq", "base_fingerprint": "0" * 16}
    network = DomainHyperNetwork(targets, 24, 8, 1, 1, encoder=str(tmp_path / "clip"), **base)
    torch.nn.init.normal_(network.backbone[0].weight)
    for head in network.heads.values():
        torch.nn.init.normal_(head[-1].weight)
    adapter = network.train().adapter(latents(1, dim=24)[0], text="ink")
    assert network.training and adapter.num_values() == 6048
    adapter.save_pretrained(tmp_path)
    assert (tmp_path / "adapter_model.safetensors").stat().st_size < 35_000
    keys = load_file(tmp_path / "adapter_model.safetensors").keys()
    assert keys == {f"{path}.delta" for path in targets} and not any("to_rgb" in key for key in keys)
    config = json.loads((tmp_path / "adapter_config.json").read_text(encoding="utf-8"))
    assert (config["method"], config["adapter_type"]) == ("hyperdomainnet", "domain_vector")
    assert {k: config[k] for k in base} == base and config["training"] == {"encoder": "clip", "text": "ink"}
    loaded = Adapter.from_pretrained(tmp_path)
    assert all(torch.equal(a, b) for a, b in zip(loaded.parameters(), adapter.parameters(), strict=True))


def pictures(pipe, **options):
    return pipe(3, seed=0, output_type="pt", truncation_psi=1.0, **options).images


@torch.no_grad()
def drawn_with(pipe, network, embedding):
    with pipe.bank.using_vectors(network(embedding[None])):
        return pictures(pipe)


def test_adapter_from_text(pipe, clip, clip_folder, tmp_path):
    network = trained(pipe.generator, clip, base_model_name_or_path="me/tiny")
    base = pictures(pipe)
    assert pipe.adapter_from_text("Pencil drawing!", network) is pipe  # the encoder is the folder its config names
    assert pipe.active_adapters() == ["pencil-drawing"]
    got = pictures(pipe)
    torch.testing.assert_close(got, drawn_with(pipe, network, clip.text(["Pencil drawing!"])[0]), **PROMISE)
    assert (got - base).abs().max() > 0.01
    network.save_pretrained(tmp_path / "hyper")
    pipe.adapter_from_text("oil on canvas", tmp_path / "hyper", "oil", encoder=clip)
    assert pipe.active_adapters() == ["oil"] and (pictures(pipe) - got).abs().max() > 1e-4
    assert torch.equal(pictures(pipe, adapter_names="pencil-drawing"), got)

    pipe.save_adapter(tmp_path / "pencil", "pencil-drawing")
    other = FewShotGAN(pipe.generator)
    assert torch.equal(pictures(other.load_adapter(tmp_path / "pencil")), got)
    assert "pencil drawing" in (tmp_path / "pencil" / "README.md").read_text(encoding="utf-8").lower()
    pipe.set_adapters(["oil", "pencil-drawing"], [0.5, 0.5])
    blended = pictures(pipe)
    pipe.add_weighted_adapter(["oil", "pencil-drawing"], [0.5, 0.5], "both")
    torch.testing.assert_close(pictures(pipe, adapter_names="both"), blended, rtol=0, atol=1e-5)

    with pytest.raises(ValueError, match="'oil' is already loaded"):
        pipe.adapter_from_text("oil", network)
    with pytest.raises(ValueError, match="nothing to read"):
        pipe.adapter_from_text("", network)
    with pytest.raises(ValueError, match="unknown options for this hypernetwork: subfolder"):
        pipe.adapter_from_text("ink", network, subfolder="x")
    with pytest.raises(ValueError, match="unknown options for this hypernetwork: variant"):
        pipe.adapter_from_text("ink", tmp_path / "hyper", variant="x")
    pipe.adapter_from_text("ink", tmp_path, subfolder="hyper")
    with pytest.raises(FileNotFoundError, match="no hypernetwork 'nowhere'"):
        pipe.adapter_from_text("ink", "nowhere")


def test_adapter_from_image(pipe, clip, tmp_path):
    network = trained(pipe.generator, clip)
    array = np.random.default_rng(0).integers(0, 255, (40, 64, 3), dtype=np.uint8)
    photo = Image.fromarray(array)
    photo.save(tmp_path / "My photo.png")
    square = photo.crop((12, 0, 52, 40)).resize((32, 32), Image.Resampling.LANCZOS)
    tensor = torch.from_numpy(np.array(square)).permute(2, 0, 1)[None].float() / 127.5 - 1
    pipe.adapter_from_image(tmp_path / "My photo.png", network)
    pipe.adapter_from_image(photo, network)
    pipe.adapter_from_image(tensor, network, "tensor")
    assert pipe.loaded_adapters() == ["my-photo", "image", "tensor"] and pipe.active_adapters() == ["tensor"]
    want = drawn_with(pipe, network, clip.image(tensor)[0])
    for name in pipe.loaded_adapters():
        torch.testing.assert_close(pictures(pipe, adapter_names=name), want, **PROMISE)
    several = torch.cat([tensor, tensor.flip(2)])
    pipe.adapter_from_image([photo, square.transpose(Image.Transpose.FLIP_TOP_BOTTOM)], network, "several")
    mean = drawn_with(pipe, network, clip.image(several).mean(0))
    torch.testing.assert_close(pictures(pipe, adapter_names="several"), mean, **PROMISE)
    assert pipe.bank.adapters["several"].config.training["images"] == 2
    for wrong in ([], tensor[0], tensor[:0], tensor[:, :2]):
        with pytest.raises(ValueError, match="give at least one picture"):
            pipe.adapter_from_image(wrong, network)
    with pytest.raises(ValueError, match=r"images go beyond \[-1, 1\]; scale 8-bit"):
        pipe.adapter_from_image((tensor + 1) * 127.5, network)


def test_what_does_not_fit_together(clip, features, tmp_path):
    pipe, eyes = FewShotGAN(tiny_mobile()), FeatureEncoder(features)
    network = trained(pipe.generator, clip, base_model_name_or_path="me/tiny")
    for other, message in (
        (tiny_mobile(seed=1), r"trained on 'me/tiny' \(fingerprint [0-9a-f]{16}\), not on this generator"),
        (tiny_stylegan2(), "does not fit this StyleGAN2Generator"),
    ):
        with pytest.raises(ValueError, match=message):
            FewShotGAN(other).adapter_from_text("ink", network)
    with pytest.raises(ValueError, match="not 80 of 'features'"):
        pipe.adapter_from_text("ink", network, encoder=eyes)
    twin = load_encoder(str(tiny_clip(tmp_path, seed=1)))
    with pytest.raises(ValueError, match="use the former"):
        pipe.adapter_from_text("ink", network, encoder=twin)
    with pytest.raises(ValueError, match="'features' reads no text"):
        pipe.adapter_from_text("ink", trained(pipe.generator, eyes), encoder=eyes)
    pipe.adapter_from_image(torch.zeros(1, 3, 32, 32), trained(pipe.generator, eyes), "grey", encoder=eyes)
    nameless = trained(pipe.generator)
    with pytest.raises(ValueError, match="does not say which encoder"):
        pipe.adapter_from_text("ink", nameless)
    pipe.adapter_from_text("ink", nameless, encoder=clip)
    assert pipe.loaded_adapters() == ["grey", "ink"]
