"""A checkpoint that an earlier tree wrote resumes, and ends with the factors of the run that was never stopped."""

import zipfile
from pathlib import Path

import torch
from helpers.networks import TinyFeatures, tiny_discriminator, tiny_mobile
from PIL import Image
from safetensors.torch import load_file

from fewshot_gan.pipeline import FewShotGAN
from fewshot_gan.training import adapt

# run/checkpoint-000004 and, of the same run after eight steps, factors.safetensors; made at commit b757467
RUN = Path(__file__).parents[1] / "golden" / "run_0.1.zip"
COMMAND = "--output_dir=run --base=base --data=pictures --preset=paper --max_train_steps=8 --train_batch_size=2"
COMMAND += " --checkpointing_steps=4 --sample_steps=0 --report_to=none --num_threads=1 --seed=5"


def test_a_checkpoint_of_the_version_before_resumes(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(TinyFeatures, "sha256", "0" * 64)
    monkeypatch.setattr("fewshot_gan.methods.method.load_features", lambda device="cpu", **options: TinyFeatures())
    with zipfile.ZipFile(RUN) as archive:
        archive.extractall()
    FewShotGAN(tiny_mobile(), tiny_discriminator()).save_pretrained("base")
    random = torch.Generator().manual_seed(4)
    Path("pictures").mkdir()
    for i, picture in enumerate(torch.randint(0, 256, (4, 32, 32, 3), dtype=torch.uint8, generator=random)):
        Image.fromarray(picture.numpy()).save(f"pictures/{i}.png")
    steps = []
    monkeypatch.setattr(adapt.Trainer, "train_step", counted(adapt.Trainer.train_step, steps))
    adapt.main("lfs_gan", COMMAND.split())
    assert steps == [4, 5, 6, 7]
    resumed, want = load_file("run/adapter_model.safetensors"), load_file("factors.safetensors")
    assert resumed.keys() == want.keys()
    for name, factor in want.items():  # equal bit for bit on the machine that made them; others round otherwise
        torch.testing.assert_close(resumed[name], factor, atol=1e-4, rtol=1e-4)


def counted(train_step, steps):
    def step(self):
        steps.append(self.step)
        return train_step(self)

    return step
