"""What a training run leaves behind: its page, its losses and its events, read and checked."""

import json
import re
from html.parser import HTMLParser
from pathlib import Path

from fewshot_gan.training.report import LOSSES_NAME, PAGE_NAME

VOID = {"meta", "img", "progress", "br", "link", "path"}


class Page(HTMLParser):
    """A parsed report: texts, pictures, curves. Fails on anything that runs, is fetched, or has no text alternative.

    Attributes:
        polylines: tag and attributes of every drawn curve.
        curves: name of a loss → label → steps and values, from the page's JSON.
    """

    def __init__(self, text: str):
        super().__init__()
        self.open, self.text, self.images, self.polylines, self.links, self.titles = [], "", [], [], [], []
        self.curves = None
        self.feed(text)
        self.close()
        assert not self.open, f"never closed: {self.open}"

    def handle_starttag(self, tag, attributes):
        a = dict(attributes)
        assert not [k for k in a if k.startswith("on")], f"<{tag}> has handlers"
        assert tag not in ("link", "iframe", "object", "embed", "base", "form"), tag
        assert tag != "script" or a == {"type": "application/json", "id": "curves"}
        for name in ("src", "srcset", "xlink:href", "data", "action"):
            assert name not in a or a[name].startswith("data:image/jpeg;base64,"), (tag, name)
        assert "href" not in a or tag == "a"
        assert "id" not in a or tag == "script", "ids of several charts would collide"
        assert not re.search(r"url\(|@import|expression", a.get("style", ""))
        if tag == "a":
            self.links.append(a["href"])
        if tag == "img":
            assert a["alt"]
            self.images.append(a["alt"])
        if tag == "th":
            assert a["scope"] in ("row", "col")
        if tag == "path" and a["class"] != "grid":
            self.polylines.append((tag, a))
        if tag == "svg":
            assert a["role"] == "img"
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open[-1:] == ["script"]:
            self.curves = json.loads(data)
        elif self.open[-1:] == ["style"]:
            assert not re.search(r"url\(|@import", data)
        else:
            self.text += data

    @property
    def state(self) -> str:
        return next(word for word in self.text.split() if word in ("running", "finished", "diverged", "stopped"))


def read_page(folder) -> Page:
    """Return the report in a run's folder, after a check for what every report contains."""
    text = (Path(folder) / PAGE_NAME).read_text(encoding="utf-8")
    found = Page(text)
    for wanted in ("prefers-color-scheme: dark", 'name="viewport"', "default-src 'none'", '<html lang="en">'):
        assert wanted in text
    for wanted in ("Losses", "Data", "Command", "Versions", "Settings", "fewshot_gan", "a step"):
        assert wanted in found.text, wanted
    return found


def read_losses(folder) -> list[tuple[int, dict[str, float]]]:
    """Return step and losses of each line of a run's `losses.jsonl`."""
    rows = [json.loads(line) for line in (Path(folder) / LOSSES_NAME).read_text(encoding="utf-8").splitlines()]
    assert all(row["seconds"] > 0 for row in rows)
    return [(row["step"], row["losses"]) for row in rows]


def read_events(folder) -> tuple[dict[str, list[tuple[int, float]]], dict[str, list[int]]]:
    """Return what TensorBoard logged below a folder: name → (step, value) of scalars, name → steps of pictures."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    scalars, pictures = {}, {}
    # by second and by the number that ends a name: the tenth file of a process comes after the ninth
    files = Path(folder).rglob("events.out.tfevents.*")
    for file in sorted(files, key=lambda path: [int(n) for n in (path.name.split(".")[3], path.name.split(".")[-1])]):
        events = EventAccumulator(str(file), size_guidance={"scalars": 0, "images": 0}).Reload()
        for tag in events.Tags()["scalars"]:
            scalars.setdefault(tag, []).extend((e.step, e.value) for e in events.Scalars(tag))
        for tag in events.Tags()["images"]:
            pictures.setdefault(tag, []).extend(e.step for e in events.Images(tag))
    return scalars, pictures


def check_run(folder, steps: int) -> Page:
    """Return the page of a finished run, after a check that its curves equal the logged losses at every step."""
    found, losses = read_page(folder), read_losses(folder)
    assert found.state == "finished" and f"step {steps} of {steps}" in found.text
    assert [step for step, _ in losses] == list(range(1, steps + 1))
    want = {}
    for step, values in losses:
        for name, value in values.items():
            points = want.setdefault(name, {"": [[], []]})[""]
            points[0].append(step), points[1].append(value)
    assert found.curves == want
    return found
