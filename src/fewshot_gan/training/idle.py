"""Refuse options that were given and cannot act beside the others, which a run would record as if they had."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from .ada import ADA_SETTINGS
from .checkpoints import latest_checkpoint

Lookup = Callable[[str], Any]  # name of a setting → its value; None: there is no such setting


class Need(NamedTuple):
    """What an option acts with.

    Attributes:
        words: what to set, as on the command line.
        met: whether it is set.
    """

    words: str
    met: Callable[[Lookup], Any]


def above_0(setting: str) -> Need:
    """Return the need of a number that is not 0."""
    return Need(f"--{setting} above 0", lambda of: of(setting) != 0)


SOURCE = Need("--discriminator source", lambda of: of("discriminator") != "projected")
FILTERS = Need("--keep_filters or --prune_filters above 0", lambda of: of("chooses_filters"))
RELATION = Need("--relation_weight above 0 and --diversity own", lambda of: of("relates"))
SMALL_MAPS = Need("--feature_weight or --relation_weight above 0", lambda of: of("feature_weight") or of("relates"))
PROJECTED = Need(
    "--transformed_every above 0 and a term of projected images",
    lambda of: of("transformed_every") and of("needs_latents"),
)
MOMENTS = Need(
    "--statistics_weight, --wasserstein_weight or --part_weight above 0",
    lambda of: any(of(name) for name in ("statistics_weight", "wasserstein_weight", "part_weight")),
)
CHOSEN = Need("--max_train_steps above --importance_every", lambda of: of("max_train_steps") > of("importance_every"))
OTHERS = Need("--train_batch_size of 3 or more", lambda of: (of("relation_latents") or of("train_batch_size")) > 2)
AVERAGED = Need("--max_train_steps above --ema_start", lambda of: of("max_train_steps") > of("ema_start"))
FALLING = Need("--lr_final other than 1", lambda of: of("lr_final") != 1 or of("lr_decay_start") >= 1)
PART = Need("--num or --percent", lambda of: of("num") is not None or of("percent") is not None)
DRAWN = Need(
    "--ticket and the folder of a round", lambda of: str(of("ticket") or "random").partition(":")[0] != "random"
)
PAIRED = ("coarse_weight", "landmark_weight", "pair_every", "pair_layer", "pair_others", "pair_pull", "pair_start")
NEEDS: dict[str, tuple[Need, ...]] = {  # option → what it acts with, all of it
    **dict.fromkeys(ADA_SETTINGS, (Need("--augment ada", lambda of: of("augment") == "ada"),)),
    **dict.fromkeys(("adv_gamma", "adv_direction", "adv_weight"), (above_0("adv_steps"),)),
    **dict.fromkeys(("code_sigma", "mix_probability"), (PROJECTED,)),
    **dict.fromkeys(("mode_seeking_every", "mode_seeking_factor"), (above_0("mode_seeking_weight"),)),
    **dict.fromkeys(("penalty", "r1_every"), (SOURCE, above_0("r1_weight"))),
    **dict.fromkeys(PAIRED, (above_0("pair_weight"),)),
    "adv_steps": (above_0("adv_gamma"), above_0("adv_weight")),
    "allow_other_init": (DRAWN,),
    "anchor_sigma": (above_0("anchor_every"),),
    "crop_weight": (above_0("crops"),),
    "d_learning_rate": (above_0("adversarial_weight"),),
    **dict.fromkeys(("keep_filters", "prune_filters"), (CHOSEN,)),
    "deepest_level": (MOMENTS,),
    "ema_start": (above_0("ema_decay"), AVERAGED),
    "freeze_d": (above_0("adversarial_weight"),),
    "lr_decay_start": (FALLING,),
    "lr_final": (Need("--lr_decay_start below 1", lambda of: of("lr_decay_start") < 1 or of("lr_final") == 1),),
    "relation_weight": (OTHERS,),
    "dcl_weight": (Need("--diversity dcl", lambda of: of("diversity") == "dcl"),),
    "distillation_final": (above_0("distillation_weight"),),
    "feature_resolution": (SMALL_MAPS,),
    "importance_every": (FILTERS,),
    "path_length_every": (above_0("path_length_weight"),),
    "r1_weight": (SOURCE,),
    "relation_latents": (RELATION,),
    "structure_size": (above_0("structure_weight"),),
    "subset_seed": (PART,),
}


def refuse_idle(given: Mapping[str, Any], folder: str, *settings: Any) -> None:
    """Refuse an option that cannot act; 0 and the settings of a run that goes on are left alone.

    Args:
        given: the options that the user gave, with their values.
        folder: of the run's checkpoints.
        settings: all settings of the run, in one or more objects.

    Raises:
        ValueError: an option cannot act; the message names what it needs.
    """

    def lookup(name: str) -> Any:
        return next((getattr(part, name) for part in settings if hasattr(part, name)), None)

    for name in [name for name, value in given.items() if value and name in NEEDS]:
        for need in NEEDS[name]:
            if not need.met(lookup) and latest_checkpoint(Path(folder)) is None:
                shown = f"--{name}" if given[name] is True else f"--{name} {given[name]}"
                raise ValueError(f"{shown} acts only with {need.words}; give that too, or leave --{name} out")
