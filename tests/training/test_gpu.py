"""On a GPU, `python -m pytest -m gpu`: pictures equal the CPU's, every method trains there, a CPU loads the result."""

import pytest
import torch

from fewshot_gan.adapters import read_adapter
from fewshot_gan.pipeline import FewShotGAN
from fewshot_gan.training import adapt

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU"),
    pytest.mark.usefixtures("tiny_features"),
]
METHODS = [
    ("lfs_gan", []),
    ("d3t", ["--preset=paper", "--projection_steps=2"]),
    ("d3t", ["--preset=large_gap", "--real_zoom=1.5"]),
    ("cdc", ["--preset=paper"]),
    ("finetune", []),
    ("hyperdomainnet", ["--preset=image", "--projection_steps=2"]),
]


@pytest.mark.parametrize("name", ["__base__", "sketch"])
def test_pictures_equal_the_cpus(name):
    shown = {"num_images": 2, "seed": 0, "output_type": "pt", "adapter_names": name}
    pipe = FewShotGAN.from_pretrained("ffhq-256").load_adapter("sketch")
    on_cpu = pipe(**shown).images
    on_gpu = pipe.to("cuda")(**shown).images  # on the CPU again, wherever they were drawn
    assert pipe.device.type == "cuda"
    torch.testing.assert_close(on_gpu, on_cpu, rtol=0, atol=5e-3)  # cuDNN may use TF32


@pytest.mark.parametrize("method, options", METHODS)
def test_each_method_trains_there(train, tmp_path, monkeypatch, base_folder, method, options):
    devices = []
    original = adapt.Trainer.train
    monkeypatch.setattr(
        adapt.Trainer, "train", lambda self, on_step: devices.append(self.device.type) or original(self)
    )
    result = train(method, *options)
    assert devices == ["cuda"]
    stored = read_adapter(tmp_path / "run")
    fresh = type(stored).for_model(FewShotGAN.from_pretrained(base_folder).generator)
    values = stored.state_dict()
    assert all(torch.isfinite(v).all() for v in values.values())
    assert any(not torch.equal(v, values[k]) for k, v in fresh.state_dict().items())
    assert all(torch.equal(v.cpu(), values[k]) for k, v in result.state_dict().items())
    pipe = FewShotGAN.from_pretrained(base_folder).load_adapter(tmp_path / "run")
    assert torch.isfinite(pipe(1, seed=0, output_type="pt").images).all()


def test_bf16_features_of_the_generator_train_alike(train, base_folder):
    losses = {kind: train("finetune", f"--mixed_precision={kind}", out=kind).state_dict() for kind in ("no", "bf16")}
    for key, value in losses["no"].items():
        torch.testing.assert_close(losses["bf16"][key], value, rtol=0.1, atol=2e-3)
