"""LoRA: a product of two small factors beside each large weight, named and shaped as in peft."""

import math

import pytest
import torch
from safetensors.torch import load_file

from fewshot_gan.adapters import Adapter, AdapterBank, LayerSpec, LoRAAdapter
from fewshot_gan.adapters.full import FullFactors
from fewshot_gan.adapters.lora import LoRAFactors
from fewshot_gan.adapters.trainable import RankOptions
from fewshot_gan.models.layers import adaptable_layers


@pytest.fixture
def adapter(mobile, perturbed):
    torch.manual_seed(0)
    return perturbed(LoRAAdapter.for_model(mobile, rank=2, lora_alpha=3.0), 0)


def test_weights_are_those_of_the_formula(adapter, mobile, tmp_path):
    adapter.save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "adapter_model.safetensors")
    loaded, layers, low = Adapter.from_pretrained(tmp_path), dict(adaptable_layers(mobile)), 0
    for path, factors in loaded.factors().items():
        weight, bias = layers[path].stored()
        found = factors(weight, bias)
        outputs = weight.shape[0] if weight.ndim else 1
        if isinstance(factors, LoRAFactors):
            low += 1
            a, b = tensors[f"{path}.lora_A"].float(), tensors[f"{path}.lora_B"].float()
            assert a.shape == (2, *weight.shape[1:]) and b.shape == (outputs, 2, *[1] * (weight.ndim - 2))
            wanted = weight + 1.5 * torch.einsum("or,r...->o...", b.flatten(1), a)
        else:
            assert isinstance(factors, FullFactors) and 2 * (outputs + weight.numel() // outputs) >= weight.numel()
            wanted = weight + tensors[f"{path}.weight_delta"].float()
        torch.testing.assert_close(found.weight, wanted, rtol=1e-3, atol=1e-3)
        if bias is not None:
            torch.testing.assert_close(found.bias, bias + tensors[f"{path}.bias_delta"].float(), rtol=1e-3, atol=1e-3)
    assert low > 5 and low < len(layers)


def test_it_starts_as_the_identity_at_the_scale_of_each_weight(mobile):
    adapter = LoRAAdapter.fresh(mobile, RankOptions())
    bank, z = AdapterBank(mobile), torch.randn(2, mobile.z_dim, generator=torch.Generator().manual_seed(1))
    bank.add("look", adapter)
    with torch.no_grad():
        plain = mobile(z)
        with bank.using({"look": 1.0}):
            assert torch.equal(mobile(z), plain)
    layers = dict(adaptable_layers(mobile))
    assert adapter.rank == 8
    for path, factors in LoRAAdapter.for_model(mobile, rank=4).factors().items():
        if isinstance(factors, LoRAFactors):
            spread = float(layers[path].stored()[0].detach().std())
            assert math.isclose(float(factors.lora_A.detach().std()), spread / 2, rel_tol=0.5), path
            assert not factors.lora_B.any()


def test_a_constant_weight_can_learn():
    spec = LayerSpec((32, 32, 1, 1))
    factors = LoRAFactors(spec, 2, 1.0)
    factors.initialise(torch.zeros(spec.shape), None)
    factors(torch.zeros(spec.shape), None).weight[0].sum().backward()
    assert factors.lora_A.detach().abs().min() > 0 and factors.lora_B.grad.abs().sum() > 0


def test_the_factors_learn_at_rates_of_their_own(adapter):
    groups = {group["rate"]: len(group["params"]) for group in adapter.parameter_groups(0.01)}
    assert set(groups) == {1.0, 0.5, 0.2, 0.1}
    names = [name for name, _ in adapter.named_parameters()]
    assert groups[1.0] == sum(name.endswith("lora_B") for name in names) == groups[0.1]


@pytest.mark.parametrize("options, message", [({"rank": 0}, "rank=0"), ({"lora_alpha": 0.0}, "lora_alpha=0.0")])
def test_refusals(mobile, options, message):
    with pytest.raises(ValueError, match=message):
        LoRAAdapter.for_model(mobile, **options)
