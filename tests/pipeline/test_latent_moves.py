"""Latents of seeds, edits, mixes and walks: what they draw is what single pictures of these latents are."""

import json

import numpy as np
import pytest
import torch
from helpers.networks import tiny_stylegan2
from safetensors.torch import save_file

from fewshot_gan import FewShotGAN
from fewshot_gan.adapters import DomainVectorAdapter, LeFTAdapter
from fewshot_gan.directions import Direction, Directions, ganspace, sefa
from fewshot_gan.models.layers import adaptable_layers, mix_styles
from fewshot_gan.pipeline_latents import between, curve, key_places


@pytest.fixture
def pipe(base_folder, perturbed):
    pipe = FewShotGAN.from_pretrained(base_folder)
    pipe.load_adapter(perturbed(LeFTAdapter.for_model(pipe.generator), std=0.1), "one")
    pipe.load_adapter(perturbed(DomainVectorAdapter.for_model(pipe.generator), std=0.1), "two")
    pipe.set_adapters([])
    return pipe


def pictures(pipe, *args, **options):
    return pipe(*args, output_type="pt", **options).images


def test_latents_are_those_of_the_pictures(pipe):
    assert torch.equal(pictures(pipe, latents=pipe.latents(3, seed=4), truncation_psi=0.7), pictures(pipe, 3, seed=4))
    singly = torch.cat([pictures(pipe, 1, seed=seed) for seed in (5, 1, 5)])
    torch.testing.assert_close(pictures(pipe, latents=pipe.latents(seeds=[5, 1, 5]), truncation_psi=0.7), singly)
    assert pipe.latents().shape == (1, 16)
    for options, message in (
        ({"num_images": 2, "seeds": [1]}, "num_images=2: seeds give one picture each"),
        ({"seeds": []}, "seeds is empty"),
        ({"seed": -1}, "seed=-1"),
        ({"num_images": 0}, "num_images=0"),
    ):
        with pytest.raises(ValueError, match=message):
            pipe.latents(**options)


def test_mapped_latents_draw_the_same_pictures(pipe):
    z = pipe.latents(2, seed=3)
    ws = pipe.map_latents(z)
    assert ws.shape == (2, pipe.generator.num_ws, 16)
    torch.testing.assert_close(pictures(pipe, latents=ws), pictures(pipe, 2, seed=3), rtol=0, atol=1e-5)
    assert torch.equal(pipe.map_latents(ws), ws)  # no truncation of what is w+ already
    torch.testing.assert_close(pipe.map_latents(ws[:, 0], latent_space="w"), ws)
    pipe.set_adapters("one")  # an adapter of the mapping network maps otherwise
    assert not torch.allclose(pipe.map_latents(z), ws)
    torch.testing.assert_close(
        pictures(pipe, latents=pipe.map_latents(z)), pictures(pipe, 2, seed=3), rtol=0, atol=1e-5
    )


def test_variations_are_moved_towards_other_faces(pipe):
    z = pipe.latents(1, seed=3)
    face, average = pipe.map_latents(z), pipe.map_latents(z, truncation_psi=0.0)
    others = pipe.map_latents(pipe.latents(2, seed=7), truncation_psi=1.0)
    varied = pipe.variations(z, 3, strength=0.5, seed=7)
    assert torch.equal(varied[:1], face) and torch.equal(pipe.variations(face, 1), face)
    torch.testing.assert_close(varied[1:], face + 0.5 * (others - average))
    torch.testing.assert_close(pipe.variations(face, 3, strength=0.0), face.expand(3, -1, -1))
    assert pictures(pipe, latents=varied, adapter_names="two").shape[0] == 3
    for latents, options, message in (
        (pipe.latents(2), {"num_images": 3}, "latents of 2 faces: variations are of one face"),
        (face, {"num_images": 3, "strength": 3}, "strength=3: give 0 to 2"),
        (face, {"num_images": 3, "strength": float("nan")}, "strength=nan: give 0 to 2"),
        (face, {"num_images": 0}, "num_images=0"),
    ):
        with pytest.raises(ValueError, match=message):
            pipe.variations(latents, **options)


def test_edits_add_directions_to_their_layers(pipe):
    vectors = torch.randn(2, 16, generator=torch.Generator().manual_seed(1))
    known = Directions({"pose": Direction(vectors[0], 0, 2), "light": Direction(vectors[1], 3)})
    z = pipe.latents(2, seed=3)
    edited, plain = pipe.edit(z, {"pose": 1.5, "light": -2}, known), pipe.map_latents(z)
    wanted = plain.clone()
    wanted[:, :2] += 1.5 * vectors[0]
    wanted[:, 3:] -= 2 * vectors[1]
    torch.testing.assert_close(edited, wanted)
    assert torch.equal(pipe.edit(z, {}, known), plain)
    with pytest.raises(ValueError, match="unknown direction 'age'; known: pose, light"):
        pipe.edit(z, {"age": 1}, known)
    with pytest.raises(ValueError, match="strength of pose=nan"):
        pipe.edit(z, {"pose": float("nan")}, known)
    with pytest.raises(ValueError, match="no directions ship with this base; find some with method='ganspace'"):
        pipe.edit(z, {"pose": 1})


def test_mixes_are_the_grid_of_stylegan(pipe):
    rows, columns = pipe.latents(2, seed=1), pipe.latents(3, seed=2)
    grid = pipe.mix_styles(rows, columns, crossover=3, output_type="pt", adapter_names="two").images
    a, b = pipe.map_latents(rows), pipe.map_latents(columns)
    for r in range(2):
        for c in range(3):
            ws = mix_styles(a[r : r + 1], b[c : c + 1], 3)
            torch.testing.assert_close(
                grid[3 * r + c], pictures(pipe, latents=ws, adapter_names="two")[0], atol=1e-5, rtol=0
            )
    for crossover in (-1, 99, True):
        with pytest.raises(ValueError, match=f"crossover={crossover}: give 0 to {pipe.generator.num_ws}"):
            pipe.mix_styles(rows, columns, crossover=crossover)


# ---------------------------------------------------------------------------------------------------------------- walks


def test_a_walk_passes_its_key_frames(pipe):
    frames = torch.stack(list(pipe.walk(seeds=[1, 5, 9], frames=9, output_type="pt")))
    assert len(frames) == 9
    keys = torch.cat([pictures(pipe, 1, seed=seed) for seed in (1, 5, 9)])
    torch.testing.assert_close(frames[::3], keys, rtol=0, atol=1e-5)
    ends = torch.stack(list(pipe.walk(seeds=[1, 5], frames=4, loop=False, output_type="pt")))
    torch.testing.assert_close(ends[[0, -1]], keys[:2], rtol=0, atol=1e-5)
    again = torch.stack(list(pipe.walk(seeds=[1, 5, 9], frames=9, output_type="pt", batch_size=7)))
    torch.testing.assert_close(again, frames, rtol=0, atol=1e-5)


def test_a_walk_between_looks(pipe):
    z = pipe.latents(seed=3)
    looks = ["__base__", "one", {"two": 0.5}]
    frames = list(pipe.walk(z, looks=looks, frames=6, output_type="pt"))
    ws = pipe.map_latents(z.expand(3, -1), adapter_names=looks)  # each look has its own mapping
    for frame, look in (
        (0, "__base__"),
        (2, "one"),
        (4, {"two": 0.5}),
        (3, {"one": 0.5, "two": 0.25}),
        (5, {"two": 0.25}),
    ):
        way = curve(ws, frame / 2, loop=True)[None]
        torch.testing.assert_close(frames[frame], pictures(pipe, latents=way, adapter_names=look)[0], rtol=0, atol=1e-5)


def test_places_and_curves():
    assert key_places(3, 6, loop=True) == [0, 0.5, 1, 1.5, 2, 2.5]
    assert key_places(3, 5, loop=False) == [0, 0.5, 1, 1.5, 2]
    line = torch.tensor([[0.0], [1.0], [2.0], [3.0]])
    assert [round(float(curve(line, x, loop=False)), 6) for x in (0, 1, 1.25, 3)] == [0, 1, 1.25, 3]
    circle = torch.tensor([[1.0, 0], [0, 1], [-1, 0], [0, -1]])
    before, after = (curve(circle, x, loop=True) for x in (3.999, 0.001))
    assert (before - after).abs().max() < 0.01 and (curve(circle, 3.5, loop=True).norm() - 0.88).abs() < 0.02
    assert between([{"a": 1.0}, {"b": 2.0}], 1.5, loop=True) == {"b": 1.0, "a": 0.5}
    assert between([{"a": 1.0}, {}], 1.0, loop=False) == {}


def test_walks_that_cannot_be(pipe):
    z = pipe.latents(2, seed=0)
    for options, message in (
        ({}, "give latents or seeds of the key frames"),
        ({"latents": z, "seeds": [1]}, "one of both"),
        ({"latents": z[:1]}, "a walk needs two key frames or more"),
        ({"latents": z, "looks": ["one"] * 3}, "3 looks for 2 latents"),
        ({"latents": z, "frames": 1}, "frames=1 for 2 key frames: give 2 or more"),
        ({"seed": 3}, "seed=3: a walk draws its key frames; give seeds or latents"),
        ({"latents": z, "seed": 3}, "seed=3: a walk draws its key frames"),
        ({"latents": z, "num_images": 3}, "num_images=3: a walk draws its key frames"),
        ({"latents": z, "looks": ["one"] * 2, "adapter_names": "two"}, "looks and adapter_names both say which"),
        ({"latents": z, "looks": ["one", "nobody"]}, "nobody"),
        ({"latents": z, "looks": ["one", {"two": {"coarse": 1.0}}]}, "not with schedules over depth"),
    ):
        with pytest.raises(ValueError, match=message):
            next(iter(pipe.walk(**options)))


# ----------------------------------------------------------------------------------------------------------- directions


def test_ganspace_are_the_principal_components(pipe):
    found = ganspace(pipe.generator, 4, samples=3000)
    z = torch.randn(3000, 16, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        w = pipe.generator.mapping(z)[:, 0]
    values, vectors = torch.linalg.eigh((w - w.mean(0)).t() @ (w - w.mean(0)) / 3000)
    assert list(found) == ["0", "1", "2", "3"]
    for i, direction in enumerate(found.values()):
        want = vectors[:, -1 - i] * values[-1 - i].sqrt()
        cosine = torch.cosine_similarity(direction.vector, want, dim=0).abs()
        assert cosine > 0.999 and direction.vector.norm() == pytest.approx(float(want.norm()), rel=1e-3)


def test_sefa_are_eigenvectors_of_the_style_layers(pipe):
    found = sefa(pipe.generator, 3, layers=(0, 2))
    layers = [layer for _, layer in adaptable_layers(pipe.generator.synthesis) if layer.role == "affine"][:2]
    rows = torch.cat([torch.nn.functional.normalize(layer.stored()[0].detach(), dim=1) for layer in layers])
    for direction in found.values():
        vector = torch.nn.functional.normalize(direction.vector, dim=0)
        image = rows.t() @ (rows @ vector)
        torch.testing.assert_close(image, vector * (image @ vector), rtol=1e-3, atol=1e-3)
        assert (direction.start, direction.stop) == (0, 2)
    assert pipe.directions("sefa", num=2).keys() == {"0", "1"}
    with pytest.raises(ValueError, match="num=99: give 1 to 16"):
        pipe.directions("ganspace", num=99)


def test_directions_in_files(pipe, tmp_path):
    found = pipe.directions("ganspace", num=2, samples=100).with_layers(1, 4)
    found.save(tmp_path / "two.safetensors")
    again = pipe.directions(str(tmp_path / "two.safetensors"))
    assert again.keys() == found.keys() and (again["0"].start, again["0"].stop) == (1, 4)
    torch.testing.assert_close(again["1"].vector, found["1"].vector, rtol=1e-3, atol=1e-3)
    save_file({"age": torch.ones(16)}, tmp_path / "other.safetensors")  # vectors of others change all layers
    assert pipe.directions(str(tmp_path / "other.safetensors"))["age"].stop is None
    num_ws = pipe.generator.num_ws
    for layers in ((0, 0), (2, 2), (3, 1), (-1, 2), (0.5, 2), ("0", None)):
        with pytest.raises(ValueError, match=f"direction '0' changes layers {layers[0]} to {layers[1]}; give a whole"):
            found.with_layers(*layers)
    for layers in ((num_ws, None), (0, num_ws + 1), (10**6, None)):
        with pytest.raises(ValueError, match=f"changes layers {layers[0]} to {layers[1]}, and this base has {num_ws}"):
            pipe.edit(pipe.latents(), {"0": 1.0}, found.with_layers(*layers))
    last = pipe.edit(pipe.latents(), {"0": 1.0}, found.with_layers(num_ws - 1, num_ws)) - pipe.map_latents(
        pipe.latents()
    )
    assert (last[0].abs().sum(1) > 0).tolist() == [False] * (num_ws - 1) + [True]
    for tensors, metadata, message in (
        ({"a": torch.ones(2, 16)}, {}, "holds no directions"),
        ({"a": torch.ones(8)}, {}, "of 8 numbers, and w of this base has 16"),
        ({"a": torch.full((16,), float("nan"))}, {}, "no vector .* of finite numbers"),
        ({"a": torch.ones(16)}, {"layers": json.dumps({"a": [4, 1]})}, "changes layers 4 to 1"),
        ({"a": torch.ones(16)}, {"layers": "[1]"}, "says wrongly which layers"),
    ):
        save_file(tensors, tmp_path / "bad.safetensors", metadata)
        with pytest.raises(ValueError, match=message):
            pipe.directions(str(tmp_path / "bad.safetensors"))
    with pytest.raises(FileNotFoundError, match="directions 'nada': give ganspace or sefa, or a file"):
        pipe.directions("nada")


def test_networks_without_styles_are_refused():
    from fewshot_gan.models import SNGANGenerator

    plain = FewShotGAN(SNGANGenerator(8, resolution=32))
    for call in (
        plain.directions,
        lambda: plain.edit(torch.zeros(1, 128), {}),
        lambda: plain.map_latents(torch.zeros(1, 128)),
        lambda: plain.mix_styles(torch.zeros(1, 128), torch.zeros(1, 128)),
    ):
        with pytest.raises(ValueError, match="a SNGANGenerator has no styles"):
            call()
    assert np.asarray(plain(latents=plain.latents(2, seed=1)).images[0]).shape == (32, 32, 3)
    own = FewShotGAN(plain.generator, truncation_psi=0.5)  # z itself is truncated
    assert torch.equal(own.latents(2, seed=1), own(2, seed=1).latents)
    assert torch.equal(own.latents(seeds=[4, 1])[1:], own(1, seed=1).latents)
    assert torch.equal(pictures(own, latents=own.latents(2, seed=1)), pictures(own, 2, seed=1))


def test_a_pipeline_says_what_it_holds(pipe, base_folder):
    assert repr(pipe) == (
        f"FewShotGAN(base: {base_folder}, MobileStyleGANGenerator, 32 px; AdapterBank(loaded: one (left), two "
        "(domain_vector); active: the base alone))"
    )
    pipe.set_adapters(["one", "two"], [0.5, {"coarse": 1.0}])
    assert "active: one 0.5, two {'coarse': 1.0}" in repr(pipe.bank)
    assert "loaded: none" in repr(FewShotGAN(pipe.generator)) and "made here" in repr(FewShotGAN(pipe.generator))


def close(a, b):
    torch.testing.assert_close(a, b, rtol=0, atol=1e-5)


def test_latents_are_mapped_by_the_look_that_is_drawn(pipe):
    """Not by the look that happens to be active: "one" has layers in the mapping network."""
    z, looks = pipe.latents(2, seed=3), ["__base__", "one"]
    want = pictures(pipe, latents=z, adapter_names=looks, truncation_psi=0.7)
    for active in ([], "one", "two"):
        pipe.set_adapters(active)
        ws = pipe.map_latents(z, adapter_names=looks)
        close(pictures(pipe, latents=ws, adapter_names=looks), want)
        frames = list(pipe.walk(z, looks=looks, frames=2, output_type="pt"))
        close(torch.stack(frames), want)
        named = list(pipe.walk(z, adapter_names=looks, frames=2, output_type="pt"))
        close(torch.stack(named), want)
        for look in looks:
            mixed = pictures_of_mix(pipe, z, look)
            close(mixed[0], pictures(pipe, latents=z[:1], adapter_names=look, truncation_psi=0.7)[0])
            assert torch.equal(pipe.edit(z, {"a": 0}, ONE, adapter_names=look), pipe.map_latents(z, adapter_names=look))
            face = pipe.variations(z[:1], 2, adapter_names=look)[:1]
            close(face, pipe.map_latents(z[:1], adapter_names=look))


ONE = Directions({"a": Direction(torch.ones(16))})


def pictures_of_mix(pipe, z, look):
    return pipe.mix_styles(z, z, adapter_names=look, output_type="pt").images


def test_the_pipelines_of_one_generator_map_each_by_its_own_look(pipe):
    z = pipe.latents(1)
    base = pipe.map_latents(z)
    other = FewShotGAN.from_pipe(pipe)
    pipe.set_adapters("one")
    assert torch.equal(other.map_latents(z), base) and not torch.allclose(pipe.map_latents(z), base)
    pipe.fuse_adapters()
    with pytest.raises(ValueError, match="cannot draw while 'one' is fused"):
        other.map_latents(z)
    pipe.unfuse_adapters()
    assert torch.equal(other.map_latents(z), base)


def test_truncation_of_the_leading_layers(pipe):
    z, some = pipe.latents(2, seed=3), {"truncation_psi": 0.5, "truncation_cutoff": 2}
    want = pictures(pipe, latents=z, **some)
    close(torch.stack(list(pipe.walk(z, frames=2, output_type="pt", **some))), want)
    close(pipe.mix_styles(z[:1], z[:1], output_type="pt", **some).images, want[:1])
    with pytest.raises(ValueError, match="truncation_cutoff=2: nothing is truncated; give truncation_psi, too"):
        pipe(latents=pipe.map_latents(z), truncation_cutoff=2)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"latents": torch.zeros(2, 7)}, r"latents of shape \(2, 7\) are not z \[N, 16\]"),
        ({"latents": torch.zeros(1, 16), "latent_space": "x"}, "unknown latent_space 'x'"),
        ({"latents": torch.zeros(1, 16), "truncation_psi": float("nan")}, "truncation_psi=nan"),
        ({"latents": torch.zeros(1, 16), "adapter_names": "three"}, "three"),
    ],
)
def test_latents_that_cannot_be_mapped(pipe, options, message):
    with pytest.raises(ValueError, match=message):
        pipe.map_latents(**options)
    with pytest.raises(ValueError, match=message):
        pipe.edit(strengths={"a": 1}, directions=ONE, **options)


def test_sefa_analyses_the_layers_that_it_changes():
    """In StyleGAN2 a to_rgb reads the w of the convolution after it, so style layers and w+ are counted differently."""
    generator = tiny_stylegan2()
    found = sefa(generator, 3, layers=(6, 8), samples=100)
    weights = [layer.affine.weight for layer in (generator.synthesis.b32.conv1, generator.synthesis.b32.to_rgb)]
    scaled = torch.cat([weight / weight.norm(dim=1, keepdim=True) for weight in weights])
    first = found["0"].vector / found["0"].vector.norm()
    largest = torch.linalg.eigvalsh(scaled.t() @ scaled)[-1]
    torch.testing.assert_close((scaled @ first).square().sum(), largest)
    FewShotGAN(generator).edit(torch.zeros(1, 16), {"0": 1}, found)
    with pytest.raises(ValueError, match="w\\+ of this generator has 8 layers"):
        sefa(generator, 3, layers=(8, 9))


def test_sefa_of_an_offloaded_generator(pipe):
    want = pipe.directions("sefa", num=1, samples=20)["0"].vector
    pipe.enable_sequential_cpu_offload(device="cpu")
    torch.testing.assert_close(pipe.directions("sefa", num=1, samples=20)["0"].vector, want)
