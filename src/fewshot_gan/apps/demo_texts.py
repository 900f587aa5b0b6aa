"""What the demo's page says about jobs, photos and errors."""

from collections.abc import Mapping, Sequence
from html import escape

from ..utils.text import duration
from .jobs import Job

UNITS = {"film": "frame"}  # what a job counts, where it is not steps
LOSSES = {"d": "discriminator", "g": "generator"}  # those that the page plots


def progress_text(job: Job) -> str:
    """Return what a job that is not over is doing, with an estimate of the time left."""
    if job.stopping:
        return f"Stopping after this {unit(job)} …"
    if job.state == "waiting":
        return "Waiting for another visitor's job to end …"
    if job.done == 0:
        return " ".join(filter(None, ("Loading the networks …", job.note)))
    left = job.remaining()
    counted = f"{unit(job).capitalize()} {job.done} of {job.steps}"
    return counted + ("" if left is None else f" · {duration(left)} left")


def unit(job: Job) -> str:
    """Return the word for what a job counts."""
    return UNITS.get(job.kind, "step")


def outcome(job: Job) -> str:
    """Return as HTML how a job ended."""
    if job.state == "failed":
        return failure(job.error)
    if job.state == "stopped":
        kept = "the look stays as it was" if job.began else "nothing was kept"
        return f"Stopped after {job.done} of {job.steps} {unit(job)}s; {kept}."
    steps = f"Done: {job.steps} {unit(job)}{'s' * (job.steps != 1)}."
    return " ".join(filter(None, (steps, escape(job.note))))


def faces_found(count: int) -> str:
    """Return what the page says about a photo with `count` faces; 0: none were sought."""
    if count == 0:
        return "The middle of the photo is used."
    if count == 1:
        return "The face in the frame is used."
    return f"{count} faces were found. The one in the thick frame is used; to use another, crop the photo to it."


def failure(message: str) -> str:
    """Return an error message as HTML that screen readers announce."""
    return f'<p class="failed" role="alert">{escape(message)}</p>'


def losses(history: Mapping[str, Sequence[float]], before: int = 0):
    """Return the losses of both networks as a table for `gr.LinePlot`, with the columns step, loss and network.

    Args:
        history: values of each loss, by its name.
        before: number of steps before the first value.
    """
    import pandas as pd

    rows = [
        (step, value, network)
        for name, network in LOSSES.items()
        for step, value in enumerate(history.get(name, ()), start=before + 1)
    ]
    return pd.DataFrame(rows, columns=["step", "loss", "network"])
