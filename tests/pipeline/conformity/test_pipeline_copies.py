"""Copies of pipelines, and pipelines that share parts with others."""

import copy

import pytest
import torch
from diffusers import DDPMPipeline
from helpers.copies import COPIES, unpickled
from helpers.every_network import DISCRIMINATORS, GENERATORS, made, result, same
from helpers.every_pipeline import draw, piped

from fewshot_gan import FewShotGAN
from fewshot_gan.adapters import LeFTAdapter
from fewshot_gan.models.layers import adaptable_layers


@pytest.mark.parametrize("way", COPIES)
def test_copies_of_a_pipeline_are_whole_and_its_own(pipe, look, way, perturbed):
    pipe.load_adapter(perturbed(LeFTAdapter.for_model(pipe.generator), seed=1, std=0.2), "other")
    pipe.set_adapters(["look", "other"], [0.7, 0.5])
    want, base, alone = draw(pipe), draw(pipe, adapter_names="__base__"), draw(pipe, adapter_names="look")
    cached = pipe.bank.cached_bytes()
    twin = COPIES[way](pipe)
    assert twin.bank.model is twin.generator is not pipe.generator and dict(twin.config) == dict(pipe.config)
    assert twin.loaded_adapters() == ["look", "other"] == twin.active_adapters() and twin.bank.cached_bytes() == 0
    assert torch.equal(draw(twin), want) and torch.equal(draw(twin, adapter_names="__base__"), base)
    assert torch.equal(draw(twin, adapter_names="look"), alone) and twin.bank.cached_bytes() == cached
    twin.load_adapter(look, "again")  # known by its weights
    with torch.no_grad():
        for parameter in twin.bank.adapters["look"].parameters():
            parameter.mul_(1.5)
        for parameter in twin.generator.parameters():
            parameter.mul_(1.5)
    twin.set_adapters([])
    twin.delete_adapters("other")
    assert not torch.equal(draw(twin), base)
    assert torch.equal(draw(pipe), want) and torch.equal(draw(pipe, adapter_names="look"), alone)
    pipe.delete_adapters(["look", "other"])
    assert torch.equal(draw(pipe), base) and twin.loaded_adapters() == ["look", "again"]


@pytest.mark.parametrize("way", COPIES)
def test_copies_of_a_fused_pipeline_can_be_undone(way):
    pipe = piped("gp_gan")
    base = draw(pipe)
    adapter = LeFTAdapter.for_model(pipe.generator)
    with torch.no_grad():
        for parameter in adapter.parameters():
            parameter.add_(0.1)
    pipe.load_adapter(adapter, "look")
    want = draw(pipe)
    pipe.fuse_adapters()
    fused = draw(pipe)
    twin = COPIES[way](pipe)
    assert torch.equal(draw(twin), fused)
    twin.unfuse_adapters()
    assert torch.equal(draw(twin), want) and torch.equal(draw(twin, adapter_names="__base__"), base)
    assert torch.equal(draw(pipe), fused)
    pipe.generator.to_rgb.weight.data.mul_(1.5)
    with pytest.raises(ValueError, match="written to while adapters were fused"):
        COPIES[way](pipe).unfuse_adapters()


def test_a_copy_of_a_cast_pipeline_knows_the_stored_weights(tmp_path):
    pipe = piped("gp_gan")
    adapter = LeFTAdapter.for_model(pipe.generator)
    pipe.save_pretrained(tmp_path)
    cast = FewShotGAN.from_pretrained(tmp_path, dtype=torch.bfloat16)  # of weights that bfloat16 cannot hold
    for twin in (copy.deepcopy(cast), unpickled(cast), FewShotGAN.from_pipe(cast), cast.to("cpu"), cast.to(torch.half)):
        twin.load_adapter(copy.deepcopy(adapter), "look")
        twin.delete_adapters("look")
    cast.generator.to(memory_format=torch.channels_last)  # moves weights, as offloading to a GPU does
    cast.enable_sequential_cpu_offload(device="cpu")
    draw(cast)
    cast.load_adapter(adapter, "look")
    cast.remove_all_hooks()
    cast.load_adapter(copy.deepcopy(adapter), "again")
    with torch.no_grad():
        next(cast.generator.parameters()).add_(1)
    with pytest.raises(ValueError, match="fingerprint"):
        cast.load_adapter(copy.deepcopy(adapter), "a third")


def test_a_generator_is_copied_without_the_adapters_of_its_pipeline(pipe, look):
    twins = [make(pipe.generator) for make in COPIES.values()]
    adapted = result(pipe.generator)
    pipe.set_adapters([])
    base = result(pipe.generator)
    assert not same(adapted, base) and all(same(result(twin), base) for twin in twins)


def test_from_pipe_shares_networks_and_adapters(pipe, look):
    want, base = draw(pipe), draw(pipe, adapter_names="__base__")
    pipe.base_name = "ffhq"
    new = FewShotGAN.from_pipe(pipe, truncation_psi=0.9)
    assert all(new.components[name] is part for name, part in pipe.components.items())
    assert new.config.truncation_psi == 0.9 and new.base_name == "ffhq" and new.bank is not pipe.bank
    assert new.loaded_adapters() == ["look"] == new.active_adapters()
    psi = {"truncation_psi": pipe.config.truncation_psi}
    assert torch.equal(draw(new, **psi), want)
    new.set_adapters([])
    assert torch.equal(draw(new, **psi), base) and torch.equal(draw(pipe), want)  # each has its own look
    pipe.delete_adapters("look")
    assert torch.equal(draw(pipe), base) and torch.equal(draw(new, adapter_names="look", **psi), want)
    assert torch.equal(draw(FewShotGAN(**pipe.components)), base)


def test_from_pipe_casts_only_when_asked(pipe):
    pipe.to(torch.bfloat16)
    assert FewShotGAN.from_pipe(pipe).dtype == torch.bfloat16
    assert FewShotGAN.from_pipe(pipe, torch_dtype=torch.float32).dtype == torch.float32


def test_from_pipe_with_other_parts(pipe, look):
    other = type(pipe.generator).from_config(pipe.generator.config)
    new = FewShotGAN.from_pipe(pipe, generator=other, discriminator=None)
    assert new.generator is other and new.discriminator is None and new.loaded_adapters() == []

    class Subclass(type(pipe.generator)):
        """As users derive one."""

    derived = FewShotGAN(Subclass.from_config(pipe.generator.config))
    assert FewShotGAN.from_pipe(derived).generator is derived.generator


def test_from_pipe_of_what_cannot_be_shared(pipe, look):
    pipe.fuse_adapters() if not any(m.demodulation == "spectral" for _, m in adaptable_layers(pipe.generator)) else None
    if pipe.bank.fused is not None:
        with pytest.raises(ValueError, match="cannot share the generator while 'look' is fused"):
            FewShotGAN.from_pipe(pipe)
    with pytest.raises(ValueError, match="expected"):
        FewShotGAN.from_pipe(DDPMPipeline(None, None))


def test_parts_are_annotated_as_diffusers_reads_them():
    types = FewShotGAN._get_signature_types()
    assert {type(made(f"{name}-G")) for name in GENERATORS} == set(types["generator"])
    judges = {type(made(f"{name}-D")) for name in DISCRIMINATORS}
    assert judges == {*types["discriminator"], *types["projected_discriminator"]} - {type(None)}
