"""`fewshot-gan adapt`."""

import time
from pathlib import Path
from typing import Annotated

import typer

from ...training.interrupt import interruptible
from ...utils.errors import needing
from .options import AdapterKind, Base, MethodName, Preset, Threads, count, number, path_option, seed_option
from .root import app, begin


@app.command()
@interruptible()  # Ctrl-C and SIGTERM end it with a checkpoint, exit code 130 or 143
def adapt(
    data: Annotated[
        str | None, typer.Argument(help="Folder or zip archive of about ten pictures, embedded set, or datasets id.")
    ] = None,
    *,
    out: Annotated[Path, path_option("Folder of the adapter; the same command again resumes.")],
    text: Annotated[
        str | None, typer.Option(help="The look in words instead, e.g. 'anime painting'; needs CLIP.")
    ] = None,
    base: Base = "ffhq",
    adapter: Annotated[AdapterKind | None, typer.Option(help="How it is stored; default: the method's.")] = None,
    rank: Annotated[int | None, number("Of left; 0: one factor per weight.", 0, 10_000)] = None,
    method: Annotated[
        MethodName | None, typer.Option(help="Paper whose losses teach it; default lfs_gan, for words hyperdomainnet.")
    ] = None,
    preset: Annotated[Preset | None, typer.Option(help="few_images: for a CPU; others: as published.")] = None,
    steps: Annotated[int | None, count("Training steps.")] = None,
    learning_rate: Annotated[float | None, number("Of the factors.", 1e-12, 1000, "1e-12 to 1000, e.g. 0.005")] = None,
    batch_size: Annotated[int | None, count("Pictures per step.")] = None,
    real_zoom: Annotated[
        float | None,
        number(
            "Enlarge pictures up to this at random, if framed more widely than the base's.", 1, 16, "1 to 16, e.g. 1.5"
        ),
    ] = None,
    seed: Annotated[int | None, seed_option("Of everything random.")] = None,
    push_to_hub: Annotated[bool, typer.Option("--push-to-hub", help="Upload the adapter when done.")] = False,
    hub_model_id: Annotated[str | None, typer.Option(help="Repo id; default: the folder's name.")] = None,
    num_threads: Threads = None,
):
    """Teach a base a new look from about ten pictures, or from words."""
    with needing("training", "train"):
        from ...training import adapt as adaptation
    argv = [f"--output_dir={out}", f"--base={base}"]
    method = method or (MethodName.hyperdomainnet if text else MethodName.lfs_gan)
    if (data is None) == (text is None):
        raise ValueError("a look is shown by pictures or named by words: give a folder of about ten, or --text")
    if text is not None and method is not MethodName.hyperdomainnet:
        raise ValueError(f"--method {method.value} learns from pictures; --text needs hyperdomainnet")
    if preset is not None and preset.value not in (known := adaptation.METHODS[method.value].presets):
        raise ValueError(f"--method {method.value} has no preset {preset.value!r}; known: {', '.join(known)}")
    if real_zoom is not None and not adaptation.METHODS[method.value].objective.uses_images:
        raise ValueError(f"--method {method.value} looks at whole pictures, never enlarged; leave out --real-zoom")
    given = {
        "data": data,
        "text": text,
        "preset": preset and preset.value,
        "adapter": adapter and adapter.value,
        "rank": rank,
        "max_train_steps": steps,
        "learning_rate": learning_rate,
        "train_batch_size": batch_size,
        "real_zoom": real_zoom,
        "seed": seed,
        "hub_model_id": hub_model_id,
        "num_threads": num_threads,
    }
    argv += [f"--{name}={value}" for name, value in given.items() if value is not None]
    argv += ["--push_to_hub"] if push_to_hub else []
    start = time.perf_counter()
    begin(num_threads)
    adaptation.run(adaptation.parser(method.value).parse_args(argv))
    print(f"{out}  ({time.perf_counter() - start:.0f} s)")
