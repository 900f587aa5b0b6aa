"""`fewshot-gan adapt`."""

import time
from pathlib import Path
from typing import Annotated

import typer

from ...catalogue import ADAPTERS, METHODS, USUAL_METHOD
from ...training.interrupt import interruptible
from ...utils.errors import needing
from .options import Base, Threads, count, entry_option, number, path_option, seed_option
from .root import app, begin

TRAINABLE = [name for name in ADAPTERS.own() if ADAPTERS[name].trainable]


@app.command()
@interruptible()  # Ctrl-C and SIGTERM end it with a checkpoint, exit code 130 or 143
def adapt(
    data: Annotated[
        str | None, typer.Argument(help="About ten pictures: folder, zip archive, embedded set, or datasets id.")
    ] = None,
    *,
    out: Annotated[Path, path_option("Folder of the adapter; the same command resumes a run.")],
    text: Annotated[
        str | None, typer.Option(help="Describe the look in words instead, e.g. 'anime painting'; needs CLIP.")
    ] = None,
    base: Base = "ffhq",
    adapter: Annotated[
        str | None, entry_option(ADAPTERS, "Kind of adapter that is trained; default: the method's.", TRAINABLE)
    ] = None,
    rank: Annotated[int | None, number("Rank of a left adapter; 0: one factor per weight.", 0, 10_000)] = None,
    method: Annotated[
        str | None,
        entry_option(METHODS, "Paper whose losses teach it; default: by the pictures, or hyperdomainnet for words."),
    ] = None,
    preset: Annotated[
        str | None, typer.Option(help="Weights and settings: few_images, for a CPU; paper, as published; or another.")
    ] = None,
    steps: Annotated[int | None, count("Training steps.")] = None,
    learning_rate: Annotated[
        float | None, number("Learning rate of the adapter.", 1e-12, 1000, "1e-12 to 1000, e.g. 0.005")
    ] = None,
    batch_size: Annotated[int | None, count("Pictures per step.")] = None,
    micro_batch_size: Annotated[
        int | None, count("Pictures whose activations are in memory at once; 1 needs least. Default: by the base.")
    ] = None,
    real_zoom: Annotated[
        float | None,
        number(
            "Enlarge pictures by a random factor up to this, if faces in them are smaller than the base's.",
            1,
            16,
            "1 to 16, e.g. 1.5",
        ),
    ] = None,
    seed: Annotated[int | None, seed_option("Seed of the run.")] = None,
    push_to_hub: Annotated[bool, typer.Option("--push-to-hub", help="Upload the adapter when done.")] = False,
    hub_model_id: Annotated[str | None, typer.Option(help="Repo id; default: the folder's name.")] = None,
    num_threads: Threads = None,
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", help="Print size, data, steps, time and memory of the run; train and write nothing."),
    ] = False,
):
    """Teach a base a new look from about ten pictures, or from words."""
    with needing("training", "train"):
        from ...training import adapt as adaptation
        from ...training.config import make_run
    if (data is None) == (text is None):
        raise ValueError("a look is shown by pictures or named by words: give a folder of about ten, or --text")
    is_chosen = method is None and data is not None and preset is None
    if method is None:
        method = USUAL_METHOD if data is not None else "hyperdomainnet"
    if text is not None and method != "hyperdomainnet":
        raise ValueError(f"--method {method} learns from pictures; --text needs hyperdomainnet")
    if real_zoom is not None and not METHODS.load(method).Objective.uses_images:
        raise ValueError(f"--method {method} looks at whole pictures, never enlarged; leave out --real-zoom")
    options = {
        "output_dir": out,
        "base": base,
        "data": data,
        "text": text,
        "preset": preset,
        "adapter": adapter,
        "rank": rank,
        "max_train_steps": steps,
        "learning_rate": learning_rate,
        "train_batch_size": batch_size,
        "micro_batch_size": micro_batch_size,
        "real_zoom": real_zoom,
        "seed": seed,
        "push_to_hub": push_to_hub,
        "hub_model_id": hub_model_id,
        "num_threads": num_threads,
        "dry_run": dry_run,
    }
    run = make_run(method, **options)  # refuses wrong options before pictures are looked at
    start = time.perf_counter()
    begin(num_threads)
    if is_chosen and data is not None:
        from ...training.choice import choose_method

        method, chosen, reason = choose_method(base, data, out)
        if chosen.get("preset") == "strokes" and adapter not in (None, chosen.get("adapter")):
            del chosen["preset"]  # its weights are those of LoRA
        chosen = {name: value for name, value in chosen.items() if options[name] is None}
        run = make_run(method, **options | chosen)
        settings = "".join(f" --{name.replace('_', '-')} {value}" for name, value in chosen.items())
        print(f"chosen: --method {method}{settings}; {reason}")
    adaptation.run(run)
    if not dry_run:
        print(f"{out}  ({time.perf_counter() - start:.0f} s)")
