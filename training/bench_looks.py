"""The looks of a bench: their training images, what they truly are, and the judge that compares a set of pictures."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import make_domain
import torch
from benchmark import (
    DISTANCES,
    FEATURES,
    SHEET_IMAGES,
    SIDE,
    SPATIAL_IMAGES,
    UNSEEN,
    Described,
    chunk_size,
    contact_sheet,
    describe,
    drawings,
    filtered,
    measure,
    native_protocol,
    ratio,
    reference_centres,
    versions,
)
from safetensors.torch import load_file, save_file
from torch import Tensor

from fewshot_gan.adapters import fingerprint
from fewshot_gan.data.images import to_floats
from fewshot_gan.features import load_features
from fewshot_gan.metrics import CROP_SIZE, CROPS
from fewshot_gan.training.domains import parse_style
from fewshot_gan.utils.files import replace_file, replace_text

logger = logging.getLogger("bench")

JUDGE = 1  # raise it when the same pictures get other numbers: what is on disk is then made anew
TRAINING_IMAGES = 10
DATA_SEED, SEED, TRUE_SEED = 7, 100_000, 1_100_003  # of the training images, judged pictures, true pictures
PSI = 0.7
DIVERSITIES = ("spatial_distance", "intra_cluster_distance", "balanced_intra_cluster_distance")  # to the true look: 1


class References(NamedTuple):
    """What a set of pictures of one look is compared with."""

    source: Described
    truth: Described  # the look on other latents, or other drawings
    twins: Described  # filters: the look on the same latents; else other drawings again
    centres: Tensor  # [K, E], the training images
    paired: bool

    def measure(self, images: Described) -> dict:
        return measure(images, self.truth, self.source, self.twins if self.paired else None, self.centres)


@dataclass
class Looks:
    """All looks on one base.

    Attributes:
        output: folder of the bench.
        base: embedded name, folder or repo id.
        num: judged pictures.
        num_true: true pictures per look.
    """

    output: Path
    base: str
    num: int
    num_true: int

    @cached_property
    def network(self):
        return load_features(device="cuda" if torch.cuda.is_available() else "cpu")

    @cached_property
    def unseen(self):
        return load_features(UNSEEN, device=next(self.network.parameters()).device)

    @cached_property
    def pipe(self):
        from fewshot_gan import FewShotGAN

        pipe = FewShotGAN.from_pretrained(self.base)
        pipe.set_progress_bar_config(disable=True)
        return pipe.to(next(self.network.parameters()).device)

    @cached_property
    def base_fingerprint(self) -> str:
        return fingerprint(self.pipe.generator)

    # --------------------------------------------------------------------------------------------- training images

    def data(self, look: str) -> Path:
        """Folder of the look's training images, made if it is not there.

        Raises:
            ValueError: the folder holds images of other settings.
        """
        folder = self.output / "data" / folder_name(look)
        wanted = {"style": look, "num": TRAINING_IMAGES, "seed": DATA_SEED}
        if look.startswith("filter:"):
            wanted["base"] = self.base
        if not folder.is_dir():
            options = [f"--style={look}", f"--base={self.base}", f"--num={TRAINING_IMAGES}", f"--seed={DATA_SEED}"]
            if look.startswith("dicebear:") and (resolution := self.pipe.generator.resolution) > 256:
                options.append(f"--resolution={resolution}")
            make_domain.main([*options, f"--out={folder}"])
        info = read_json(folder / "dataset.json") or {}
        if changed := difference({key: info.get(key) for key in wanted}, wanted):
            raise ValueError(f"{folder} holds images of other settings ({changed}); choose another --output_dir")
        return folder

    def data_sha256(self, look: str) -> str:
        content = hashlib.sha256()
        for path in sorted(self.data(look).glob("*.png")):
            content.update(path.read_bytes())
        return content.hexdigest()

    # ----------------------------------------------------------------------------------------------------- judging

    def protocol(self, look: str) -> dict:
        """All that the numbers of a look depend on, beside the adapter."""
        drawn = {name: v for name, v in versions().items() if name in ("dicebear-core", "dicebear-styles", "resvg-py")}
        return {
            "judge": JUDGE,
            "look": look,
            "base": self.base,
            "base_fingerprint": self.base_fingerprint,
            "features": FEATURES,
            "features_sha256": self.network.sha256,
            "unseen": UNSEEN,
            "unseen_sha256": self.unseen.sha256,
            "data_sha256": self.data_sha256(look),
            "num": self.num,
            "num_true": self.num_true,
            "spatial_images": min(SPATIAL_IMAGES, self.num),
            "seed": SEED,
            "true_seed": TRUE_SEED,
            "truncation_psi": PSI,
            "side": self.side,
            **self.native,
        } | (drawn if look.startswith("dicebear:") else {})

    @property
    def side(self) -> int:
        return min(SIDE, self.pipe.generator.resolution)

    @property
    def native(self) -> dict:
        """Settings of the native numbers, if the base draws pictures that have them."""
        resolution = self.pipe.generator.resolution
        return {"native": native_protocol(resolution, CROPS)} if resolution > CROP_SIZE else {}

    def render(self, seed: int, num: int, name: str = "__base__") -> Iterator[Tensor]:
        """Chunks of the pictures `[num, 3, R, R]` in [-1, 1] of a seed; how they are split does not change them."""
        generator = torch.Generator().manual_seed(seed)
        size = chunk_size(self.pipe.generator.resolution)
        for start in range(0, num, size):
            count = min(size, num - start)
            settings = {"truncation_psi": PSI, "output_type": "pt", "adapter_names": name}
            yield self.pipe(count, generator=generator, **settings).images * 2 - 1

    def true_pictures(self, look: str, seed: int, num: int) -> Iterator[Tensor]:
        """The look itself: of the latents of a seed, or the drawings of a seed."""
        kind, name = parse_style(look)
        if kind == "filter":
            yield from (filtered(chunk, name) for chunk in self.render(seed, num))
        else:
            yield from drawings(name, num, self.pipe.generator.resolution, seed)

    def references(self, look: str) -> References:
        """Made once and kept on disk: 1,000 pictures of a base take minutes."""
        protocol, name = self.protocol(look), folder_name(look)
        keys = ("judge", "base_fingerprint", "features_sha256", "unseen_sha256", "spatial_images", "side", "num")
        shared = {k: protocol[k] for k in keys} | self.native
        source = self._described("source", shared | {"seed": SEED, "psi": PSI}, self.render(SEED, self.num))
        truth = self.true_pictures(look, TRUE_SEED, self.num_true)
        twins = self.true_pictures(look, SEED, self.num)
        return References(
            source,
            self._described(f"{name}-other", protocol, truth, 0),
            self._described(f"{name}-same", protocol, twins),
            reference_centres(self.data(look), self.pipe.generator.resolution, self.network),
            look.startswith("filter:"),
        )

    def _described(self, name: str, protocol: dict, chunks: Iterator[Tensor], num_spatial=SPATIAL_IMAGES) -> Described:
        path = self.output / "truth" / f"{name}-{digest(protocol)}.safetensors"
        if not path.is_file():
            logger.info(f"making {path.name}")
            tensors = describe(chunks, self.network, self.unseen, num_spatial)._asdict()
            replace_file(path, lambda temp: save_file(tensors, temp))
        return Described(**load_file(path))

    def rows(self, look: str, references: References) -> dict[str, dict]:
        """Numbers of the unadapted source and of the true look, kept in looks/LOOK with their first pictures."""
        folder, protocol = self.output / "looks" / folder_name(look), self.protocol(look)
        known = read_json(folder / "look.json")
        if known is None or known["judging"] != protocol:
            sets = {"source": references.source, "true": references.twins}
            rows = {name: references.measure(images) for name, images in sets.items()}
            for name, images in sets.items():
                write_strip(folder / f"{name}.png", images.pictures)
            known = {"look": look, "judging": protocol, "rows": rows}
            write_json(folder / "look.json", known)
        return known["rows"]

    def judge(self, look: str, adapter: Path) -> tuple[dict, int, Tensor]:
        """All numbers of the adapter in a folder, how many numbers it holds, and the first judged pictures (uint8)."""
        references = self.references(look)
        rows = self.rows(look, references)
        self.pipe.load_adapter(adapter, "judged")
        try:
            images = describe(self.render(SEED, self.num, "judged"), self.network, self.unseen)
            parameters = self.pipe.bank.adapters["judged"].num_values()
        finally:
            self.pipe.set_adapters([])
            self.pipe.delete_adapters("judged")
        numbers = references.measure(images)
        for keys, row in ((DISTANCES, rows["source"]), (DIVERSITIES, rows["true"])):
            for key in [key for key in keys if key in row]:
                numbers[f"{key}_ratio"] = ratio(numbers[key], row[key])
        return numbers, parameters, images.pictures[:SHEET_IMAGES]


# ------------------------------------------------------------------------------------------------- protocols and files


def folder_name(look: str) -> str:
    return look.replace(":", "-")


def digest(protocol: dict) -> str:
    """Twelve hex digits that differ as soon as one setting does."""
    return hashlib.sha256(json.dumps(protocol, sort_keys=True).encode()).hexdigest()[:12]


def difference(before: dict, now: dict) -> str | None:
    """The first setting in which two protocols differ, in words."""
    for key in sorted({*before, *now}):
        if before.get(key) != now.get(key):
            return f"{key} was {before.get(key)}, now {now.get(key)}"
    return None


def write_json(path: Path, content: dict) -> None:
    text = json.dumps(content, indent=2) + "\n"
    replace_text(path, text)


def read_json(path: Path) -> dict | None:
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None


def write_strip(path: Path, pictures: Tensor) -> None:
    """The first of uint8 `[N, 3, S, S]` in a row."""
    first = to_floats(pictures[:SHEET_IMAGES])
    replace_file(path, contact_sheet([first], size=first.shape[-1]).save)
