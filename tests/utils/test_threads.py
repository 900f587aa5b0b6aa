"""What belongs to one call does not reach another: threads, writes that leave no trace, torch's global state."""

import ast
import copy
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers.training_utils import EMAModel
from helpers.adapter_files import adafm_tensors, gp_gan, source_of, specific_part
from helpers.plain_checkpoints import sngan
from PIL import Image

import fewshot_gan
from fewshot_gan import DomainVectorAdapter, FewShotGAN, FullAdapter, LeFTAdapter, adapter_base
from fewshot_gan.apps.generation import write_pictures
from fewshot_gan.convert import convert_checkpoint
from fewshot_gan.faces import Alignment, cut, paste
from fewshot_gan.utils.frozen import frozen
from fewshot_gan.utils.locks import SharedLock
from fewshot_gan.utils.random import seeded

LOOKS = ("a", "b", "__base__", {"a": 0.5, "b": 0.25})


@pytest.fixture
def pipe(make_generator, perturbed):
    pipe = FewShotGAN(make_generator())
    pipe.load_adapter(perturbed(LeFTAdapter.for_model(pipe.generator), 1), "a")
    pipe.load_adapter(perturbed(DomainVectorAdapter.for_model(pipe.generator), 2), "b")
    return pipe


def drawn(pipe, look, seed=0, **options) -> torch.Tensor:
    return pipe(2, seed=seed, adapter_names=look, output_type="pt", **options).images


def in_threads(count: int, work) -> list:
    """`work(i)` of that many threads, which start together."""
    gate = threading.Barrier(count)

    def run(i):
        gate.wait(timeout=60)
        return work(i)

    with ThreadPoolExecutor(count) as pool:
        return list(pool.map(run, range(count)))


@pytest.mark.parametrize("cache_bytes", [512 * 2**20, 0])
def test_every_picture_of_four_threads_equals_its_solo_run(pipe, cache_bytes):
    pipe.bank.cache_bytes = cache_bytes  # 0: each look pushes the others' weights out
    solo = {(i, seed): drawn(pipe, LOOKS[i], seed) for i in range(4) for seed in range(5)}

    def twenty_five(i):
        return all(torch.equal(drawn(pipe, LOOKS[i], n % 5), solo[i, n % 5]) for n in range(25))

    assert in_threads(4, twenty_five) == [True] * 4


def test_the_active_look_may_change_while_others_draw(pipe):
    solo = {name: drawn(pipe, name) for name in ("a", "b")}

    def work(i):
        if i == 0:
            for n in range(25):
                pipe.set_adapters("ab"[n % 2])
            return []
        return [drawn(pipe, "a" if i == 1 else None) for _ in range(25)]

    _, named, active = in_threads(3, work)
    assert all(torch.equal(images, solo["a"]) for images in named)
    assert all(any(torch.equal(images, want) for want in solo.values()) for images in active)  # never a mix


def test_a_call_keeps_the_look_it_started_with(pipe):
    """Weights are exchanged and the adapter deleted between the batches of one call."""
    want = pipe(6, seed=0, adapter_names="a", output_type="pt", batch_size=2).images
    pipe.set_adapters("a")
    for look in ("a", None):
        other, forward, passed = copy.deepcopy(pipe.bank.adapters["a"]), pipe.generator.forward, []

        def interrupted(*args, forward=forward, passed=passed, **kwargs):
            images = forward(*args, **kwargs)
            if not passed:
                pipe.set_adapters("b")
                pipe.delete_adapters("a")
            passed.append(1)
            return images

        pipe.generator.forward = interrupted
        try:
            got = pipe(6, seed=0, adapter_names=look, output_type="pt", batch_size=2).images
        finally:
            del pipe.generator.forward
        assert torch.equal(got, want)
        pipe.load_adapter(other, "a")


def test_fusing_waits_for_who_draws(pipe):
    solo, base = drawn(pipe, "a"), drawn(pipe, "__base__")
    pipe.set_adapters("a")

    def work(i):
        if i:
            return [drawn(pipe, None) for _ in range(20)]
        for _ in range(10):
            pipe.fuse_adapters()
            pipe.unfuse_adapters()
        return []

    pictures = sum(in_threads(3, work), [])
    # fused weights are rounded before they are modulated, stored ones after
    assert len(pictures) == 40 and all(float((images - solo).abs().max()) < 1e-4 for images in pictures)
    assert torch.equal(drawn(pipe, "__base__"), base)


def test_fusing_inside_of_a_draw_says_so_instead_of_waiting_for_itself(pipe):
    pipe.set_adapters("a")
    with pipe.bank.drawing(None), pytest.raises(RuntimeError, match="this thread is drawing"):
        pipe.fuse_adapters()
    pipe.fuse_adapters()


def test_two_pipelines_of_one_generator_draw_their_own_looks(pipe):
    second = FewShotGAN(pipe.generator)
    solo = drawn(pipe, "a"), drawn(second, None)
    pipe.set_adapters("a")
    assert not torch.equal(*solo)
    for _ in range(2):
        assert torch.equal(drawn(second, None), solo[1]) and torch.equal(drawn(pipe, None), solo[0])


def test_lock_is_shared_nested_and_new_in_copies():
    lock, events = SharedLock(), []
    with lock.exclusive(), lock.exclusive(), lock.shared():
        pass
    with lock.shared(), lock.shared():
        other = threading.Thread(target=lambda: events.append(1) if lock.shared().__enter__() is None else None)
        other.start()
        other.join(timeout=60)
        assert events == [1]  # two threads at once
    with copy.deepcopy(lock).exclusive():  # the thread above never let go of the first
        pass


def test_two_searches_at_once_equal_their_solo_runs(pipe):
    pipe.set_adapters("a")
    targets = [2 * drawn(pipe, "__base__", seed)[:1] - 1 for seed in (0, 1)]
    options = {"steps": 4, "perceptual": "none", "progress": False}
    solo = [pipe.invert(target, **options) for target in targets]
    trainable = [p.requires_grad for p in pipe.generator.parameters()]
    both = in_threads(2, lambda i: pipe.invert(targets[i], **options))
    assert all(torch.equal(a.latents, b.latents) for a, b in zip(solo, both, strict=True))
    assert [p.requires_grad for p in pipe.generator.parameters()] == trainable and any(trainable)
    assert all(p.grad is None for p in pipe.generator.parameters())


def test_weights_stay_frozen_until_the_last_block_ends():
    layer = torch.nn.Linear(1, 1)
    layer.bias.requires_grad_(False)
    first, second = frozen(layer), frozen(layer)
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    assert not layer.weight.requires_grad
    second.__exit__(None, None, None)
    assert layer.weight.requires_grad and not layer.bias.requires_grad


# ------------------------------------------------------------------------------------------- torch's global state


@contextmanager
def strange_default(kind: str):
    """Whoever else runs in this process may have chosen another default."""
    try:
        torch.set_default_dtype(torch.float64) if kind == "dtype" else torch.set_default_device("meta")
        yield
    finally:
        torch.set_default_dtype(torch.float32)
        torch.set_default_device(None)


def scenes(base, adapter_folder, random) -> list[torch.Tensor]:
    """Pictures and latents of a pipeline made, adapted, inverted and streamed from scratch."""
    pipe = FewShotGAN.from_pretrained(base).load_adapter(adapter_folder, "a")
    pipe.load_adapter(LeFTAdapter.for_model(pipe.generator), "fresh")
    options = {"output_type": "pt", "batch_size": 2}
    drawn = [pipe(3, seed=0, adapter_names=name, **options).images for name in ("a", "fresh", "__base__")]
    drawn.append(pipe(2, seed=1, noise_mode="random", **options).images)
    drawn.append(pipe(2, generator=random, **options).images)
    drawn.append(pipe.interpolate("a", "__base__", 3, seed=2, **options).images)
    drawn += [batch.images for batch in pipe.stream(3, seed=3, skip=1, **options)]
    pipe.set_adapters("a")
    pipe.fuse_adapters()
    drawn.append(pipe(2, seed=0, **options).images)
    return drawn


@pytest.mark.parametrize("kind", ["dtype", "device"])
def test_pictures_do_not_depend_on_global_state(base_folder, perturbed, tmp_path, kind):
    perturbed(LeFTAdapter.for_model(FewShotGAN.from_pretrained(base_folder).generator)).save_pretrained(tmp_path)
    want = scenes(base_folder, tmp_path, torch.Generator().manual_seed(5))
    with strange_default(kind):
        drawn = scenes(base_folder, tmp_path, torch.Generator(device="cpu").manual_seed(5))
    for got, expected in zip(drawn, want, strict=True):
        assert got.dtype == torch.float32 and torch.equal(got, expected)


def test_latents_are_found_whatever_the_default_dtype(base_folder):
    """Not on another default device: torch's own Adam keeps its steps there."""
    pipe = FewShotGAN.from_pretrained(base_folder)
    target = 2 * pipe(1, seed=0, output_type="pt").images - 1
    want = pipe.invert(target, steps=2, perceptual="none", progress=False)
    with strange_default("dtype"):
        got = pipe.invert(target, steps=2, perceptual="none", progress=False)
    assert torch.equal(got.latents, want.latents) and got.latents.dtype == torch.float32


@pytest.mark.parametrize("kind", ["dtype", "device"])
def test_converted_networks_do_not_depend_on_global_state(tmp_path, kind):
    g = gp_gan(4, 2)
    kept = {name: tensor for name, tensor in g.items() if name.startswith(("conv_img", "resnet_2_", "resnet_3_"))}
    torch.save(kept | adafm_tensors(g, (2, 3)) | specific_part(g, 2), tmp_path / "flowers.pt")
    torch.save({"gen_state_dict": sngan()[0]}, tmp_path / "sngan.pth")
    source = source_of(g, tmp_path)

    def converted():
        networks = (
            convert_checkpoint(tmp_path / "sngan.pth")["generator"],
            adapter_base(tmp_path / "flowers.pt", source),
        )
        return [tensor for network in networks for tensor in network.state_dict().values()]

    want = converted()
    with strange_default(kind):
        found = converted()
    assert all(x.dtype == y.dtype and torch.equal(x, y) for x, y in zip(found, want, strict=True))


def test_photos_are_cut_and_pasted_whatever_the_default_device():
    photo = Image.effect_noise((90, 80), 60).convert("RGB")
    place = Alignment(np.array([[0.5, 0.1, 10], [-0.1, 0.5, 20]]), 32)
    want = cut(photo, place), paste(photo, photo.crop((0, 0, 32, 32)), place)
    with strange_default("device"):
        found = cut(photo, place), paste(photo, photo.crop((0, 0, 32, 32)), place)
    assert [x.tobytes() for x in found] == [x.tobytes() for x in want]


@pytest.mark.parametrize("seed", [0, np.int64(3), np.uint8(3), torch.tensor(3), 2**63 - 1])
def test_seeds_of_any_integer_type(seed):
    assert torch.equal(*(torch.randn(2, generator=seeded(s)) for s in (seed, int(seed))))


@pytest.mark.parametrize("seed", [-1, 2**63, 1.0, "1", True, np.float64(1), torch.tensor([1, 2]), np.int64(-1)])
def test_other_seeds_are_refused(pipe, seed, tmp_path):
    photo = torch.zeros(1, 3, pipe.generator.resolution, pipe.generator.resolution)
    for call in (
        lambda: pipe(1, seed=seed),
        lambda: next(pipe.stream(1, seed=seed)),
        lambda: pipe.interpolate("a", "b", seed=seed),
        lambda: pipe.invert(photo, seed=seed, perceptual="none"),
        lambda: write_pictures(pipe, tmp_path / "out", 1, seed=seed),
    ):
        with pytest.raises(ValueError, match="give a whole number from 0 to 2\\^63 - 1"):
            call()


def draws_without_dtype_or_device(tree: ast.AST) -> list[int]:
    """Lines of draws from a `generator` that leave dtype (of floats) or device to torch's defaults."""
    lines = []
    for call in (node for node in ast.walk(tree) if isinstance(node, ast.Call)):
        name, given = ast.unparse(call.func), {keyword.arg for keyword in call.keywords}
        needs = {"torch.randn": {"dtype", "device"}, "torch.rand": {"dtype", "device"}}.get(name)
        needs = {"device"} if name in ("torch.randint", "torch.randperm") else needs
        if needs and "generator" in given and not needs <= given:
            lines.append(call.lineno)
    return lines


def test_every_draw_names_its_dtype_and_device():
    assert draws_without_dtype_or_device(ast.parse("torch.randn(1, generator=g, device='cpu')")) == [1]
    sources = sorted((Path(fewshot_gan.__file__).parent).rglob("*.py"))
    assert len(sources) > 50
    missing = {str(p.name): n for p in sources if (n := draws_without_dtype_or_device(ast.parse(p.read_text("utf-8"))))}
    assert missing == {}


# ------------------------------------------------------------------------------------- writes that leave no trace


def exact(pipe, look) -> torch.Tensor:
    """The picture of a pipeline that has nothing cached."""
    fresh = FewShotGAN(copy.deepcopy(pipe.generator))
    for name, adapter in pipe.bank.adapters.items():
        fresh.load_adapter(type(adapter)(**adapter.settings() | {"base_fingerprint": None}), name)
        fresh.bank.adapters[name].load_state_dict(adapter.state_dict())
    return drawn(fresh, look)


@pytest.mark.parametrize("look", ["a", "b", "full", "__base__", {"a": 0.5, "full": 0.5}])
@pytest.mark.parametrize("where", ["base", "adapter"])
def test_averages_of_diffusers_are_seen(pipe, perturbed, look, where):
    pipe.load_adapter(perturbed(FullAdapter.for_model(pipe.generator), 3), "full")
    networks = [pipe.generator] if where == "base" else list(pipe.bank.adapters.values())
    averages = [EMAModel(network.parameters()) for network in networks]
    with torch.no_grad():
        for network in networks:
            for parameter in network.parameters():
                parameter.add_(0.05 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
    before = drawn(pipe, look)
    for network, average in zip(networks, averages, strict=True):
        average.store(network.parameters())
        average.copy_to(network.parameters())  # through `.data`
    averaged = drawn(pipe, look)
    assert torch.equal(averaged, exact(pipe, look))
    assert torch.equal(averaged, before) == (where == "adapter" and look == "__base__")
    for network, average in zip(networks, averages, strict=True):
        average.restore(network.parameters())
    assert torch.equal(drawn(pipe, look), before)


@pytest.mark.parametrize(
    "write",
    [
        lambda data: data.view(-1)[-1:].add_(1.0),
        lambda data: data.copy_(data.flip(0) if data.ndim else data + 1),
        lambda data: data.neg_(),
        lambda data: data.view(-1)[:1].fill_(float("nan")),
    ],
)
@pytest.mark.parametrize("size", [(3,), (40, 7), (64, 32, 3, 3), (2, 1024)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.float64])
def test_writes_through_data_change_the_stamp(write, size, dtype):
    from fewshot_gan.ops.weight_cache import cached, compare_once, tensors_version

    weight = torch.nn.Parameter(torch.randn(size, generator=torch.Generator().manual_seed(0), dtype=torch.float64))
    weight.data = weight.data.to(dtype)
    before = tensors_version([weight])
    cached(weight, torch.abs)
    assert tensors_version([weight]) == before
    with compare_once([weight]):
        assert tensors_version([weight]) == before
    write(weight.data)
    assert tensors_version([weight]) != before
    torch.testing.assert_close(cached(weight, torch.abs), weight.detach().abs(), rtol=0, atol=0, equal_nan=True)


def test_unfusing_sees_a_write_through_data(pipe):
    pipe.set_adapters("a")
    pipe.fuse_adapters()
    fused = pipe.generator.get_submodule(next(iter(pipe.bank.adapters["a"].config.target_modules)))
    fused.stored()[0].data.add_(1)
    with pytest.raises(ValueError, match="written to while adapters were fused"):
        pipe.unfuse_adapters()
