"""Importance of filters (AdAM, RICK): what is kept does not change, what is pruned is zero, and F is the papers'."""

import pytest
import torch
from accelerate import Accelerator

from fewshot_gan.adapters import AdaFMAdapter, FullAdapter, LeFTAdapter
from fewshot_gan.methods.importance import FilterImportance
from fewshot_gan.methods.lfs_gan import LFSConfig, LFSObjective
from fewshot_gan.training.engine import Trainer, TrainingConfig

IMAGES = torch.randint(0, 256, (3, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(4))


@pytest.fixture
def trainer(mobile, features):
    def make(folder, cls=FullAdapter, **settings):
        usual = {"max_train_steps": 6, "train_batch_size": 2, "checkpointing_steps": 3, "sample_steps": 0}
        config = TrainingConfig(str(folder), **(usual | {"importance_every": 2} | settings))
        objective = LFSObjective(LFSConfig.few_images(), IMAGES.float() / 127.5 - 1, 16, features=features)
        return Trainer(mobile, cls.for_model(mobile), objective, IMAGES, config, Accelerator(cpu=True))

    return make


def effective(run, adapter=None) -> dict[str, torch.Tensor]:
    """Weight `[O, …]` of each ranked layer under the adapter."""
    of = (adapter or run.adapter).factors()
    layers = {path: run.generator.get_submodule(path).stored() for path in run.importance.filters}
    return {path: of[path](*stored).weight.detach().clone() for path, stored in layers.items()}


@pytest.mark.parametrize("cls", [FullAdapter, AdaFMAdapter])
@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_kept_filters_stay_and_pruned_ones_are_zero(trainer, tmp_path, cls, momentum):
    run = trainer(tmp_path, cls, keep_filters=0.5, prune_filters=0.25, adam_beta1=momentum, learning_rate=1e-2)
    for _ in range(3):  # the first choice is made before the third update
        before, biases = effective(run), {k: v.detach().clone() for k, v in run.adapter.state_dict().items()}
        run.train_step()
    after, changed = effective(run), 0
    for path, weight in after.items():
        kept, pruned = run.importance.is_kept[path], run.importance.is_pruned[path]
        assert int(kept.sum()) == round(0.5 * len(kept)) and not (kept & pruned).any()
        assert torch.equal(weight[kept], before[path][kept])
        assert not weight[pruned].any()
        changed += int((weight != before[path])[~(kept | pruned)].any())
        if f"{path}.bias_delta" in biases:
            assert torch.equal(run.adapter.state_dict()[f"{path}.bias_delta"][kept], biases[f"{path}.bias_delta"][kept])
    assert changed == len(after)
    for _ in range(3):
        run.train_step()
    for path, pruned in run.importance.is_pruned.items():
        assert int(pruned.sum()) == round(0.25 * len(pruned))
        assert not effective(run, run.ema)[path][pruned].any()


def test_fisher_information_of_a_filter(mobile):
    """F of a filter is the mean of the squared gradients of its numbers, summed since the last choice."""
    adapter = FullAdapter.for_model(mobile)
    chooser = FilterImportance(adapter, mobile, keep=0.25, prune=0.5, every=2, steps=3)
    optimizer, wanted = torch.optim.Adam(adapter.parameters()), {}
    random = torch.Generator().manual_seed(1)
    for step in range(2):
        for path, filters in chooser.filters.items():
            grad = torch.randn(filters.measured.shape, generator=random)
            filters.measured.grad = grad.clone()
            wanted[path] = wanted.get(path, 0) + (grad**2).flatten(1).mean(1)
        chooser.before_update(optimizer, step)
    for path, fisher in wanted.items():
        torch.testing.assert_close(chooser.fisher[path], fisher)
    for filters in chooser.filters.values():
        filters.measured.grad = torch.zeros_like(filters.measured)
    chooser.before_update(optimizer, 2)
    for path, fisher in wanted.items():
        order, total = fisher.argsort(), len(fisher)
        assert set(chooser.is_pruned[path].nonzero()[:, 0].tolist()) == set(order[: round(total / 2)].tolist())
        assert set(chooser.is_kept[path].nonzero()[:, 0].tolist()) == set(order[total - round(total / 4) :].tolist())
        assert not chooser.fisher[path].any()


def test_a_resumed_run_keeps_its_choice(trainer, tmp_path):
    settings = {"keep_filters": 0.5, "prune_filters": 0.25, "adam_beta1": 0.5}
    whole = trainer(tmp_path / "whole", **settings).train()
    trainer(tmp_path / "killed", **settings).train(stop_after=4)
    resumed = trainer(tmp_path / "killed", **settings).train()
    for (name, a), b in zip(whole.state_dict().items(), resumed.state_dict().values(), strict=True):
        assert torch.equal(a, b), name
    with pytest.raises(ValueError, match="keep_filters"):
        trainer(tmp_path / "killed", **settings | {"keep_filters": 0.25}).train()


def test_refusals(trainer, tmp_path):
    with pytest.raises(ValueError, match=r"keep_filters=0.5 .* --adapter left changes none .* use --adapter full or"):
        trainer(tmp_path, LeFTAdapter, keep_filters=0.5)
    with pytest.raises(ValueError, match=r"keep_filters=0.7 and prune_filters=0.3 leave no filter to change"):
        trainer(tmp_path, keep_filters=0.7, prune_filters=0.3)
    with pytest.raises(ValueError, match=r"keep_filters=1"):
        trainer(tmp_path, keep_filters=1)
    assert trainer(tmp_path, keep_filters=0.0).importance is None
