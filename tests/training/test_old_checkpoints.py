"""A checkpoint that an earlier tree wrote resumes, and ends with the factors of the run that was never stopped."""

import zipfile
from pathlib import Path

import pytest
import torch
from helpers.networks import TinyFeatures, tiny_discriminator, tiny_mobile
from PIL import Image
from safetensors.torch import load_file

from fewshot_gan.methods.lfs_gan import LFSObjective
from fewshot_gan.methods.pair import Latents
from fewshot_gan.pipeline import FewShotGAN
from fewshot_gan.training import adapt

# run/checkpoint-000004 and, of the same run after eight steps, factors.safetensors; made at commit b757467
RUN = Path(__file__).parents[1] / "golden" / "run_0.1.zip"
COMMAND = "--output_dir=run --base=base --data=pictures --preset=paper --max_train_steps=8 --train_batch_size=2"
COMMAND += " --checkpointing_steps=4 --sample_steps=0 --report_to=none --num_threads=1 --seed=5"
# what the preset was then; it has the rates of the released code since
SETTINGS = "--learning_rate=0.005 --adam_beta2=0.99 --lr_warmup_steps=10 --lr_decay_start=0.6 --lr_final=0.15"
SETTINGS += " --d_learning_rate=0.001 --ema_decay=0.97 --truncation_psi=0.7 --augment=fewshot --noise=const"


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
    monkeypatch.setattr(LFSObjective, "regularisers", near_anchors(LFSObjective.regularisers))
    steps = []
    monkeypatch.setattr(adapt.Trainer, "train_step", counted(adapt.Trainer.train_step, steps))
    with pytest.raises(SystemExit, match=r"other settings \(learning_rate was 0.005, now 0.0016; .*use them again"):
        adapt.main("lfs_gan", COMMAND.split())
    adapt.main("lfs_gan", [*COMMAND.split(), *SETTINGS.split()])
    assert steps == [4, 5, 6, 7]
    resumed, want = load_file("run/adapter_model.safetensors"), load_file("factors.safetensors")
    assert resumed.keys() == want.keys()
    for name, factor in want.items():  # equal bit for bit on the machine that made them; others round otherwise
        torch.testing.assert_close(resumed[name], factor, atol=1e-4, rtol=1e-4)


def near_anchors(regularisers):
    """As it was then: on anchor steps the latents of mode seeking lay near anchors too."""

    def then(self, pair, batch, step, random):
        free, many = pair.draw, batch * self.config.mode_seeking_factor
        pair.draw = lambda n, r: Latents(self.anchors.sample(n, step, r)) if n == many else free(n, r)
        yield from regularisers(self, pair, batch, step, random)
        pair.draw = free

    return then


def counted(train_step, steps):
    def step(self):
        steps.append(self.step)
        return train_step(self)

    return step
