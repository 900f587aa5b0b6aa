"""StyleGAN2: shapes, latents, noise, adaptable layers, discriminator, files."""

import pytest
import torch
from helpers.networks import tiny_stylegan2

from fewshot_gan.models.layers import EffectiveWeight, adaptable_layers, mix_styles
from fewshot_gan.models.stylegan2 import StyleGAN2Discriminator, StyleGAN2Generator, minibatch_stddev
from fewshot_gan.ops import RowWeights

TINY = {"channel_base": 128, "channel_max": 12}


def make_g(resolution=16, seed=0, **kwargs):
    torch.manual_seed(seed)
    g = StyleGAN2Generator(resolution, **TINY, z_dim=8, w_dim=6, num_mapping_layers=2, **kwargs).eval()
    with torch.no_grad():
        for name, p in g.named_parameters():
            if name.endswith("noise.strength"):
                p.fill_(0.3)
            elif name.endswith("bias") and "affine" not in name:
                p.normal_(0, 0.1)
        g.mapping.w_avg.normal_()
    return g


def make_d(resolution=16, seed=0, **kwargs):
    torch.manual_seed(seed)
    return StyleGAN2Discriminator(resolution, **TINY, **kwargs).eval()


def latents(n=3, seed=1, dim=8):
    return torch.randn(n, dim, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("resolution", [16, 32, 64])
def test_shapes(resolution):
    g, d = make_g(resolution), make_d(resolution)
    image, features = g(latents(), return_features=True)
    assert image.shape == (3, 3, resolution, resolution)
    blocks = [2**i for i in range(2, resolution.bit_length())]
    assert {k: tuple(v.shape) for k, v in features.items()} == {f"b{r}": (3, min(128 // r, 12), r, r) for r in blocks}
    assert g.num_ws == 2 * len(blocks) == g.map_latents(latents()).shape[1]
    logits, features = d(image, return_features=True)
    assert logits.shape == (3, 1)
    want = {f"b{r}": (3, min(256 // r, 12), r // 2, r // 2) for r in blocks[:0:-1]} | {"b4": (3, 12, 4, 4)}
    assert {k: tuple(v.shape) for k, v in features.items()} == want
    assert list(features) == list(want)
    torch.testing.assert_close(d(image), logits, atol=0, rtol=0)


@pytest.mark.parametrize("resolution", [0, 8, 24, 2048])
@pytest.mark.parametrize("cls", [StyleGAN2Generator, StyleGAN2Discriminator])
def test_unsupported_resolutions_are_refused(cls, resolution):
    with pytest.raises(ValueError, match=f"resolution={resolution}"):
        cls(resolution)


def test_noise_modes():
    g, z = make_g(), latents()
    const = g(z)
    assert torch.equal(g(z), const)
    seeded = [g(z, noise_mode="random", generator=torch.Generator().manual_seed(s)) for s in (5, 5, 6)]
    assert torch.equal(seeded[0], seeded[1])
    assert not torch.allclose(seeded[0], seeded[2], atol=1e-3)
    none = g(z, noise_mode="none")
    assert not torch.allclose(none, const, atol=1e-3)
    for _, layer in adaptable_layers(g):
        if hasattr(layer, "noise"):
            torch.nn.init.zeros_(layer.noise.strength)
    assert torch.equal(g(z), none)
    with pytest.raises(ValueError, match="unknown noise_mode 'off'"):
        g(z, noise_mode="off")


def test_a_batch_equals_its_samples():
    g, z = make_g(), latents(4)
    torch.testing.assert_close(g(z), torch.cat([g(z[i : i + 1]) for i in range(4)]), atol=1e-5, rtol=0)


def test_w_and_w_plus_equal_z():
    g, z = make_g(), latents()
    ws = g.map_latents(z)
    assert torch.equal(g(ws, latent_space="w+"), g(z))
    assert torch.equal(g(ws[:, 0], latent_space="w"), g(z))
    with pytest.raises(ValueError, match="fit neither w"):
        g(torch.zeros(2, 5), latent_space="w")


def test_truncation_and_cutoff():
    g, z = make_g(), latents()
    ws, average = g.map_latents(z), g.mapping.w_avg
    torch.testing.assert_close(g.map_latents(z, truncation_psi=0.0), average.expand_as(ws))
    got = g.map_latents(z, truncation_psi=0.25, truncation_cutoff=2)
    want = torch.cat([average + 0.25 * (ws[:, :2] - average), ws[:, 2:]], 1)
    torch.testing.assert_close(got, want)
    torch.testing.assert_close(
        g.map_latents(ws, "w+", truncation_psi=0.25, truncation_cutoff=2), want, atol=1e-6, rtol=1e-5
    )
    assert torch.equal(g(z, truncation_psi=0.25, truncation_cutoff=2), g(got, latent_space="w+"))


def test_each_entry_of_ws_changes_the_picture():
    g = make_g()
    ws = g.map_latents(latents(1)).clone()
    base = g(ws, latent_space="w+")
    for i in range(g.num_ws):
        other = ws.clone()
        other[:, i] += 1
        assert (g(other, latent_space="w+") - base).abs().max() > 1e-3, i


def test_mix_styles():
    a, b = torch.zeros(3, 4, 2), torch.ones(3, 4, 2)
    assert mix_styles(a, b, 1)[:, :, 0].tolist() == [[0, 1, 1, 1]] * 3
    mixed = mix_styles(a, b, torch.tensor([0, 3, 4]))
    assert mixed[:, :, 1].tolist() == [[1, 1, 1, 1], [0, 0, 0, 1], [0, 0, 0, 0]]
    with pytest.raises(ValueError, match="from 0 to 4"):
        mix_styles(a, b, 5)
    with pytest.raises(ValueError, match="shapes"):
        mix_styles(a, b[:1], 1)


def test_conv_clamp_limits_features():
    z = latents()
    free, clamped = make_g(), make_g(conv_clamp=0.5)
    assert free(z, return_features=True)[1]["b16"].abs().max() > 0.6
    features = clamped(z, return_features=True)[1]
    assert all(x.abs().max() <= 0.5 for x in features.values())
    logits = make_d(conv_clamp=0.1)(free(z), return_features=True)
    assert logits[1]["b4"].abs().max() <= 0.1


def test_roles_name_what_adapters_may_touch():
    roles = {name: (m.role, m.demodulation) for name, m in adaptable_layers(make_g())}
    assert roles["synthesis.b4.conv1"] == roles["synthesis.b8.conv0"] == ("conv", "runtime")
    assert roles["synthesis.b8.to_rgb"] == ("to_rgb", "none")
    assert roles["synthesis.b8.conv0.affine"][0] == "affine" and roles["mapping.fc0"][0] == "mapping"
    roles = {name: m.role for name, m in adaptable_layers(make_d())}
    assert roles["b16.from_rgb"] == "from_rgb" and roles["b8.skip"] == "conv" and roles["b4.fc"] == "affine"


def test_per_sample_effective_weights_equal_a_loop():
    """Every convolution gets a different weight and domain vector for each sample of one batch."""
    g, d, z = make_g(), make_d(mbstd_num_channels=0), latents()

    def adapt(model, samples):
        for i, (_, layer) in enumerate(adaptable_layers(model)):
            if layer.role not in ("conv", "to_rgb", "from_rgb"):
                continue
            noise = torch.Generator().manual_seed(i)
            delta = 0.3 * torch.randn(3, *layer.weight.shape, generator=noise)
            scale = 1 + 0.3 * torch.randn(3, layer.weight.shape[1], generator=noise)
            if isinstance(samples, int):  # one sample's adapter for the whole batch
                made = (layer.weight + delta[samples], scale[samples])
            else:
                made = (RowWeights(tuple(layer.weight + delta), (1, 1, 1)), scale)
            layer.adaptation = lambda w, b, made=made: EffectiveWeight(made[0], b, made[1])

    with torch.no_grad():
        base = g(z)
        adapt(g, slice(None)), adapt(d, slice(None))
        images = g(z)
        logits = d(images)
        for i in range(3):
            adapt(g, i), adapt(d, i)
            # three convolutions either way, but of other batches: sums of up to 108 float32 terms, three layers deep
            torch.testing.assert_close(images[i], g(z[i : i + 1])[0], atol=1e-4, rtol=0)
            torch.testing.assert_close(logits[i], d(images[i : i + 1])[0], atol=1e-4, rtol=0)
    assert (images - base).abs().max() > 0.1


def test_the_stored_weight_is_not_touched_and_gradients_reach_the_factors():
    g = make_g().requires_grad_(False)
    delta = torch.zeros(12, requires_grad=True)
    g.synthesis.b8.conv0.adaptation = lambda w, b: EffectiveWeight(w, b, 1 + delta)
    before = {k: v.clone() for k, v in g.state_dict().items()}
    g(latents()).square().sum().backward()
    assert delta.grad.abs().min() > 0
    assert all(torch.equal(v, before[k]) for k, v in g.state_dict().items())
    assert all(p.grad is None for p in g.parameters())


def test_minibatch_stddev_takes_any_batch():
    x = torch.randn(6, 4, 3, 3, generator=torch.Generator().manual_seed(0))
    for b, group, size in [(6, 4, 3), (5, 4, 1), (4, 4, 4), (2, 4, 2), (6, 3, 3)]:
        got = minibatch_stddev(x[:b], group, 2)
        assert got.shape == (b, 6, 3, 3) and torch.equal(got[:, :4], x[:b])
        for i in range(b):
            members = x[i % (b // size) : b : b // size]
            assert len(members) == size
            for f in range(2):
                value = (members[:, 2 * f : 2 * f + 2].var(0, unbiased=False) + 1e-8).sqrt().mean()
                torch.testing.assert_close(got[i, 4 + f], value.expand(3, 3))


def test_discriminator_names_what_is_wrong():
    with pytest.raises(ValueError, match=r"takes images \[B, 3, 16, 16\]"):
        make_d()(torch.zeros(1, 3, 32, 32))
    with pytest.raises(ValueError, match="mbstd_num_channels=5"):
        make_d(mbstd_num_channels=5)


def test_r1_differentiates_twice():
    d = make_d()
    images = torch.randn(2, 3, 16, 16, requires_grad=True, generator=torch.Generator().manual_seed(0))
    (grad,) = torch.autograd.grad(d(images).sum(), images, create_graph=True)
    grad.square().sum().backward()
    assert d.b16.conv0.weight.grad.abs().sum() > 0


@pytest.mark.parametrize("make,cls", [(make_g, StyleGAN2Generator), (make_d, StyleGAN2Discriminator)])
def test_save_and_load(tmp_path, make, cls):
    model = make(32, conv_clamp=256.0)
    model.save_pretrained(tmp_path)
    loaded = cls.from_pretrained(tmp_path)
    assert {k: loaded.config[k] for k in model.config if k[0] != "_"} == {
        k: v for k, v in model.config.items() if k[0] != "_"
    }
    assert loaded.state_dict().keys() == model.state_dict().keys()
    for (name, a), (_, b) in zip(model.named_buffers(), loaded.named_buffers(), strict=True):
        assert torch.equal(a, b), name  # the filters too, which no file holds
    x = latents() if make is make_g else torch.randn(2, 3, 32, 32)
    assert torch.equal(loaded(x), model(x))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_casting_keeps_the_filters(tmp_path, dtype):
    g = make_g()
    g.save_pretrained(tmp_path)
    for model in (make_g().to(dtype), StyleGAN2Generator.from_pretrained(tmp_path, dtype=dtype)):
        assert torch.equal(model.synthesis.b8.conv0.resample_filter.float(), g.synthesis.b8.conv0.resample_filter)
        assert model.mapping.fc0.weight.dtype == dtype
        image = model(latents().to(dtype))
        assert image.dtype == dtype
        # 8 to 11 bits of mantissa through eight layers, pictures of magnitude ~1
        tolerance = 0.15 if dtype == torch.bfloat16 else 0.02
        torch.testing.assert_close(image.float(), g(latents()), atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize(
    "config,generator,discriminator",
    [
        ({"resolution": 256, "channel_base": 16384}, 24_767_458, 24_001_089),  # stylegan2-ada "paper256"
        ({"resolution": 1024}, 30_370_060, 29_012_513),  # configuration F
    ],
)
def test_published_parameter_counts(config, generator, discriminator):
    with torch.device("meta"):
        g, d = StyleGAN2Generator(**config), StyleGAN2Discriminator(**config)
    assert sum(p.numel() for p in g.parameters()) == generator
    assert sum(p.numel() for p in d.parameters()) == discriminator


def test_the_energy_of_a_frozen_weight_is_kept_until_the_weight_changes():
    generator = tiny_stylegan2().requires_grad_(False)
    z, layer = torch.randn(2, generator.z_dim), generator.synthesis.b8.conv1
    with torch.no_grad():
        before = generator(z)
        first = layer.cached_energy(layer.weight)
        assert layer.cached_energy(layer.weight) is first
        layer.weight[0].mul_(3)  # demodulated: the picture stays, if the norm is that of the new weight
        assert layer.cached_energy(layer.weight) is not first
        torch.testing.assert_close(generator(z), before, atol=1e-5, rtol=1e-5)
    learning = layer.requires_grad_(True)
    assert learning.cached_energy(layer.weight) is None  # its gradient goes through the norm
    with torch.inference_mode():
        generator(z)
    styles = torch.randn(2, generator.w_dim, requires_grad=True)
    generator(styles, latent_space="w").sum().backward()  # what inference mode kept cannot be saved for backward
    assert styles.grad.abs().max() > 0
