"""Write any number of pictures to a folder: batch by batch, resumed after a kill, split over processes.

Also draw the pictures of a grid, of which one batch at a time is held at full size.
"""

import io
import json
import os
import tarfile
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from functools import partial
from itertools import groupby, islice
from numbers import Integral, Real
from operator import attrgetter, itemgetter
from pathlib import Path
from typing import Any, NamedTuple

import torch
from PIL.Image import Image
from tqdm.auto import tqdm

from ..adapters.looks import plain_look, without_zeros
from ..data.grids import check_size, shrink
from ..hub import portable_name
from ..models.latents import check_latents
from ..pipeline import FewShotGAN
from ..utils.files import LEFTOVER, abandoned, replace_file, replace_text, user_path
from ..utils.hashing import hash_tensors
from ..utils.json_files import read_json
from ..utils.random import check_seed, seeded
from ..utils.threads import available_cores, world_size
from ..version import __version__

MANIFEST = ".generation.json"  # hidden, since `load_dataset(folder)` would read it as data
SUFFIX = {"png": "png", "webdataset": "tar", "parquet": "parquet"}
SHARD_SIZE = 1024  # pictures; a multiple of usual batch sizes, so that batches are the same in all formats
SHARD_PIXELS = 2**28  # of a shard, so that it has about 400 MB: 1024 pictures of up to 512 px, 256 of 1024 px
ROW_GROUP = 100  # pictures per row group of parquet: held in memory when writing, read at once by readers


class Part(NamedTuple):
    """Pictures that are written together: a shard, or a batch in a folder of PNG files."""

    prefix: str  # of the look, in file names
    start: int  # number of the first picture
    stop: int  # number after that of the last picture
    files: tuple[str, ...]


def write_pictures(
    pipe: FewShotGAN,
    folder,
    num_images: int,
    *,
    file_format: str = "png",
    shard_size: int | None = None,
    seed: int = 0,
    looks: Mapping[str, Mapping] | None = None,
    latents: torch.Tensor | None = None,
    seeds: Sequence[int] | None = None,
    class_labels=None,
    truncation_psi: float | None = None,
    noise_mode: str = "const",
    batch_size: int = 8,
    size: int | None = None,
) -> int:
    """Write all pictures of `pipe(num_images, seed=seed)` to a folder; a second call resumes an interrupted run.

    Files appear whole or not at all. A hidden manifest records what defines the pictures; the same folder is refused
    for other pictures. Processes started by torchrun or accelerate launch share the work, on one machine or on several
    that share the folder. Two batches are held in memory. Which pictures share a batch depends on `batch_size` and
    `shard_size` only, so the bytes of the files do not depend on interruptions and on the number of processes.

    Args:
        pipe: on the device that shall draw; see `device`.
        folder: a new or empty folder, or that of the interrupted run.
        num_images: pictures per look.
        file_format: "png": a file per picture, `00000.png`. "webdataset": tar files of `00000.png` and `00000.json`.
            "parquet": a column `image`, an `Image` of the datasets library. The latter two also hold `index`, `seed`
            (null for given latents without `seeds`), `label` for class-conditional bases, and `look`, `adapter` and
            `caption`, see `facts_of`.
        shard_size: pictures per tar or parquet file; None: 1024, or 256 above 512 px, see `usual_shard`. Not for png.
        seed, latents, class_labels, truncation_psi, noise_mode, batch_size: as in `FewShotGAN.__call__`.
        seeds: the seed that each of the given latents is of, for the column `seed`; None: of none.
        looks: prefix of the file names → `{adapter: weight}`; all looks are drawn from the same latents. A prefix holds
            no slash, and for webdataset none may equal another where a dot counts as "_". None: the active adapters.
        size: side in pixels to which pictures are reduced, see `grids.shrink`; None: that of the base.

    Returns:
        Number of pictures that this process drew; pictures that exist already are not drawn again.

    Raises:
        FileExistsError: the folder holds other files.
        ValueError: the folder holds pictures of another run, the pipeline refuses an option, `seeds` are not one for
            each of given latents, or `looks` is empty or holds something else than looks or a prefix that is no part
            of a file name; the message names what differs.
        ImportError: parquet without pyarrow, or several processes without accelerate.
    """
    if file_format not in SUFFIX:
        raise ValueError(f"unknown format {file_format!r}; known: {', '.join(SUFFIX)}")
    if file_format == "png" and shard_size is not None:
        raise ValueError("a shard size is of webdataset and parquet; a png folder has a file per picture")
    side = check_size(size, pipe.generator.resolution)
    shard_size = usual_shard(side) if shard_size is None else shard_size
    together = batch_size if file_format == "png" else shard_size  # pictures of a part
    for name, value in (("num_images", num_images), ("batch_size", batch_size), ("shard_size", together)):
        if not isinstance(value, Integral) or value < 1:
            raise ValueError(f"{name}={value!r}: give a whole number, 1 or more")
    seed = check_seed(seed)
    if looks is not None:
        if not isinstance(looks, Mapping) or not looks or not all(isinstance(v, Mapping) for v in looks.values()):
            raise ValueError(f"looks={looks!r}: give {{prefix: {{adapter: weight}}}} of a look or more, or None")
        looks = {prefix: plain_look(look) for prefix, look in looks.items()}
        _check_prefixes(looks, file_format)
    if latents is not None and len(check_latents(latents, pipe.generator.dtype)) != num_images:
        raise ValueError(f"{len(latents)} latents for {num_images} images; give one per image")
    if seeds is not None and (latents is None or len(seeds) != num_images):
        count = "no" if latents is None else len(latents)
        raise ValueError(f"{len(seeds)} seeds for {count} latents; give the latents of these seeds, or leave seeds out")
    seeds = None if seeds is None else [check_seed(one, "seeds") for one in seeds]
    pack = _parquet_writer() if file_format == "parquet" else _write_tar
    state = launched()
    rank, processes = (state.process_index, state.num_processes) if state else (0, 1)
    options = {"truncation_psi": truncation_psi, "noise_mode": noise_mode, "batch_size": batch_size}
    labels = pipe.prepare_class_labels(class_labels, num_images, latents)
    given = {"latents": latents, "class_labels": labels}
    per_image: dict[str, Any] = {name: values for name, values in given.items() if values is not None}
    for look in [None] if looks is None else looks.values():  # fails before the folder is made if options are refused
        pipe(1, seed=seed, adapter_names=look, **options, **{name: values[:1] for name, values in per_image.items()})

    folder = user_path(folder)
    acting = {"": plain_look(pipe.bank.current())} if looks is None else looks
    deciding = seed if latents is None or noise_mode == "random" else None  # with given latents, it is of noise alone
    record = _record(pipe, acting, per_image, seed=deciding, truncation_psi=truncation_psi, noise_mode=noise_mode)
    record |= {"num_images": int(num_images), "format": file_format}
    record |= {} if side == pipe.generator.resolution else {"size": side}  # missing in folders of older versions
    record["shard_size"] = None if file_format == "png" else int(shard_size)
    facts_of_looks = {prefix: facts_of(pipe, look) for prefix, look in acting.items()}
    integer_columns = ["index", "seed", *(["label"] if "class_labels" in per_image else [])]
    record["columns"] = None if file_format == "png" else [*integer_columns, *next(iter(facts_of_looks.values()))]
    _check_folder(folder, record)
    if rank == 0 and not (folder / MANIFEST).is_file():
        replace_text(folder / MANIFEST, json.dumps(record, indent=1) + "\n")
    if state:
        state.wait_for_everyone()

    file_name = f"{{}}{{:0{max(5, len(str(num_images - 1)))}d}}.png".format  # (prefix, index) → name of a picture
    starts = range(0, num_images, together)
    spans = [(prefix, i, min(i + together, num_images)) for prefix in looks or [""] for i in starts]
    own_parts = []  # those of this process
    for prefix, start, stop in spans[rank::processes]:
        shard = (f"{prefix}{start // together:05d}.{SUFFIX[file_format]}",)
        files = tuple(file_name(prefix, i) for i in range(start, stop)) if file_format == "png" else shard
        own_parts.append(Part(prefix, start, stop, files))
    finished = _tidy(folder, {file for part in own_parts for file in part.files})
    todo = [part for part in own_parts if not finished.issuperset(part.files)]

    def drawn(pool: ThreadPoolExecutor) -> Iterator[tuple]:
        """Yield `(part, file name, facts, future)` of each missing picture.

        The future gives its PNG bytes; for a folder of PNG files, it writes the file.
        """
        for prefix, parts in groupby(todo, attrgetter("prefix")):
            look, source, position = looks and looks[prefix], seeded(seed), 0
            for part in parts:
                values = {key: v[part.start : part.stop] for key, v in per_image.items()}
                skip, position = part.start - position, part.stop
                batches = pipe.stream(
                    part.stop - part.start, skip=skip, generator=source, adapter_names=look, **options, **values
                )
                for index, image in enumerate((image for batch in batches for image in batch.images), part.start):
                    file = file_name(prefix, index)
                    facts: dict[str, int | str | None] = {"index": index, "seed": None if latents is not None else seed}
                    if seeds is not None:
                        facts["seed"] = seeds[index]
                    if "class_labels" in per_image:
                        facts["label"] = int(per_image["class_labels"][index])
                    facts |= facts_of_looks[prefix]
                    picture: Any = shrink(image, side)  # of the output type "pil"
                    if file_format == "png":
                        future = pool.submit(replace_file, folder / file, picture.save)
                    else:
                        future = pool.submit(_encode, picture)
                    yield part, file, facts, future

    total, missing = (sum(part.stop - part.start for part in parts) for parts in (own_parts, todo))
    bar: dict[str, Any] = {"total": total, "initial": total - missing}
    bar["disable"] = rank > 0 or missing < 4 * batch_size
    bar["desc"] = "drawing" if processes == 1 else f"drawing, process 1 of {processes}"
    with ThreadPoolExecutor(min(8, available_cores())) as pool:
        for part, pictures in groupby(tqdm(_ahead(drawn(pool), batch_size), **bar), itemgetter(0)):
            rows = ((file, future.result(), facts) for _, file, facts, future in pictures)
            if file_format == "png":
                deque(rows, maxlen=0)  # wait until the pool has written them
            else:
                replace_file(folder / part.files[0], partial(pack, rows))
    if state:
        state.wait_for_everyone()
    return missing


def usual_shard(side: int) -> int:
    """Return how many pictures of `side` px a shard holds by default: 1024, or fewer above 512 px, a power of two."""
    return min(SHARD_SIZE, 2 ** max(0, (SHARD_PIXELS // side**2).bit_length() - 1))


def usual_batch(resolution: int) -> int:
    """Return how many pictures to draw at once by default: 8, or 2 above 512 px: as fast, in 1.6 instead of 3.8 GB."""
    return 8 if resolution <= 512 else 2


def draw_tiles(pipe: FewShotGAN, num_images: int, side: int, *, batch_size: int = 8, **options) -> list[Image]:
    """Return the pictures of `pipe(num_images, …)`, reduced to `side` px; one batch is held at full size.

    Args:
        pipe: its active adapters draw.
        num_images: number of pictures.
        side: of the reduced pictures in pixels, see `grids.shrink`.
        batch_size: pictures per forward pass.
        options: of `pipe.stream`.

    Raises:
        ValueError: an option that the pipeline refuses.
    """
    tiles, batches = [], pipe.stream(num_images, batch_size=batch_size, **options)
    with tqdm(desc="drawing", total=num_images, disable=num_images < 4 * batch_size) as bar:
        for batch in batches:
            tiles += [shrink(image, side) for image in batch.images]
            bar.update(len(batch.images))
    return tiles


def draw_strips(
    pipe: FewShotGAN, first: str, last: str, steps: int, num_images: int, side: int, *, seed: int, **options
) -> list[Image]:
    """Return the pictures of `pipe.interpolate(first, last, steps)`, reduced; one strip is held at full size.

    Args:
        pipe: holds both adapters.
        first, last, steps, num_images: of `pipe.interpolate`.
        side: of the reduced pictures in pixels, see `grids.shrink`.
        seed: of the latents and noise.
        options: of `pipe.interpolate`.

    Raises:
        ValueError: an option that the pipeline refuses.
    """
    tiles, source, latents = [], seeded(check_seed(seed)), options.pop("latents", None)
    labels = pipe.prepare_class_labels(options.pop("class_labels", None), num_images, latents)
    for i in range(num_images):
        own = {"latents": latents, "class_labels": labels}
        own = {name: values[i : i + 1] for name, values in own.items() if values is not None}
        strip = pipe.interpolate(first, last, steps, generator=source, **own, **options).images
        tiles += [shrink(image, side) for image in strip]
    return tiles


def facts_of(pipe: FewShotGAN, look: Mapping) -> dict[str, str]:
    """Return the columns that describe a look.

    Returns:
        `look`: `{adapter: weight}` as JSON, `{}` for the base. `adapter`: names of the adapters whose weight is not 0,
        joined by " + ", empty for the base. `caption`: the same in words: each adapter by the text that it was trained
        with, if any, followed by its weight if that is a number other than 1; the name of the base if no adapter acts.
    """
    weights = without_zeros(look)
    captions = []
    for name, weight in weights.items():
        text = (pipe.bank.adapters[name].config.training or {}).get("text")
        words = text if isinstance(text, str) and text else name
        captions.append(f"{words} {weight:g}" if isinstance(weight, Real) and weight != 1 else words)
    caption = " + ".join(captions) or portable_name(pipe.base_name) or "base"
    return {"look": json.dumps(dict(look)), "adapter": " + ".join(weights), "caption": caption}


def launched():
    """Return accelerate's `PartialState` if torchrun or accelerate launch started several processes, else None.

    Raises:
        ImportError: there are several processes, and accelerate is not installed.
        ValueError: `WORLD_SIZE` is no number, or says that there are several, but they were started in another way and
            do not communicate.
    """
    if (count := world_size()) == 1:
        return None
    try:
        from accelerate import PartialState
    except ImportError as error:
        raise ImportError(
            f"WORLD_SIZE={count}: several processes need the accelerate package, which is not "
            "installed: pip install 'fewshot_gan[train]'"
        ) from error
    # a long timeout: the first process to finish may wait long for the last
    state = PartialState(cpu=_on_cpu(), timeout=timedelta(weeks=4))
    if state.num_processes == 1:
        raise ValueError(
            f"WORLD_SIZE={count}, but this process knows of no other; start them with torchrun or accelerate launch"
        )
    return state


def device() -> torch.device:
    """Return the device of this process: its own GPU if there is one, unless `ACCELERATE_USE_CPU=true` is set."""
    state = launched()
    return torch.device(state.device) if state and state.device else torch.device("cpu" if _on_cpu() else "cuda")


def _on_cpu() -> bool:
    return os.environ.get("ACCELERATE_USE_CPU", "").lower() in ("1", "true", "yes") or not torch.cuda.is_available()


# --------------------------------------------------------------------------------------------- manifest and folder


def _record(pipe: FewShotGAN, looks: Mapping[str, Mapping], per_image: Mapping[str, torch.Tensor], **run) -> dict:
    """Return the content of the manifest: everything that the pictures depend on."""
    if run["truncation_psi"] is None and "latents" not in per_image:
        run["truncation_psi"] = pipe.config.truncation_psi
    adapters = {name: pipe.bank.adapters[name] for look in looks.values() for name in look}
    labels, latents = per_image.get("class_labels"), per_image.get("latents")
    if labels is not None:
        labels = int(labels[0]) if (labels == labels[0]).all() else hash_tensors({"class_labels": labels})
    record = {
        "fewshot_gan_version": __version__,
        "base": portable_name(pipe.base_name),
        "base_fingerprint": pipe.bank.fingerprint(),
        "dtype": str(pipe.generator.dtype),
        "looks": {prefix: dict(look) for prefix, look in looks.items()},
        "adapters": {name: hash_tensors(adapter.state_dict(), adapter.config) for name, adapter in adapters.items()},
        "latents": None if latents is None else hash_tensors({"latents": latents}),
        "class_labels": labels,
        **run,
    }
    # with the types that reading the manifest gives; float: of numbers of NumPy
    return json.loads(json.dumps(record, default=float))


def _check_prefixes(looks: Mapping, file_format: str) -> None:
    """Refuse prefixes that lead to another folder, or whose pictures get equal names."""
    for prefix in looks:
        if not isinstance(prefix, str) or any(mark in prefix for mark in "/\\"):
            raise ValueError(f"prefix {prefix!r} of looks: give the start of a file name, without slashes, like 'ink-'")
    keys = [_tar_key(prefix) for prefix in looks]
    if file_format == "webdataset" and (twice := [p for p in looks if keys.count(_tar_key(p)) > 1]):
        raise ValueError(f"prefixes {twice} of looks become one in WebDataset, where a dot is '_'; change one of them")


def _check_folder(folder: Path, record: dict) -> None:
    """Refuse a folder that holds anything but pictures of this run."""
    if folder.exists() and not folder.is_dir():
        raise FileExistsError(f"{folder} is a file; give a folder")
    manifest = folder / MANIFEST
    if not manifest.is_file():
        temp = [path for path in folder.glob(f".*-{MANIFEST}") if LEFTOVER.fullmatch(path.name)]
        if folder.is_dir() and set(folder.iterdir()) - set(temp):
            raise FileExistsError(
                f"{folder} exists, is not an empty folder, and has no {MANIFEST} to go on from; choose another, or "
                "remove it first"
            )
        return
    try:
        earlier = read_json(manifest)
    except ValueError as error:
        raise ValueError(f"{error}, choose another folder, or remove this one") from error
    for name in {**record, **earlier}:
        if name != "base" and earlier.get(name) != record.get(
            name
        ):  # a base may have several names; its fingerprint counts
            raise ValueError(
                f"{folder} holds pictures of another run: {name} was {earlier.get(name)!r}, now {record.get(name)!r}; "
                "choose another folder, remove this one, or give the old value"
            )


def _tidy(folder: Path, wanted: set[str]) -> set[str]:
    """Remove temporary files that killed processes left, and return the names of the finished files.

    Args:
        folder: of the run; need not exist.
        wanted: names of the files of this process; others are left alone.
    """
    finished = set()
    for entry in os.scandir(folder):
        if abandoned(entry.name) in wanted:
            Path(entry).unlink(missing_ok=True)
        elif entry.name in wanted and entry.stat().st_size:  # empty if the machine crashed before the write to disk
            finished.add(entry.name)
    return finished


# ------------------------------------------------------------------------------------------------------------- files


def _ahead(items: Iterable, count: int) -> Iterator:
    """Yield items, each fetched `count` items ahead, so that the pool encodes them while the next batch is drawn."""
    waiting = deque()
    for item in items:
        waiting.append(item)
        if len(waiting) > count:
            yield waiting.popleft()
    yield from waiting


def _encode(image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "png")
    return buffer.getvalue()


def _tar_key(stem: str) -> str:
    """Return the key of a file in WebDataset, which takes everything after the first dot for the extension."""
    return stem.replace(".", "_")


def _write_tar(rows: Iterator[tuple], path: Path) -> None:
    """Write a WebDataset shard; without times and owners, so that its bytes are always the same."""
    with tarfile.open(path, "w") as tar:
        for name, png, facts in rows:
            key = _tar_key(Path(name).stem)
            for suffix, data in (("png", png), ("json", json.dumps(facts).encode())):
                entry = tarfile.TarInfo(f"{key}.{suffix}")
                entry.size = len(data)
                tar.addfile(entry, io.BytesIO(data))


def _parquet_writer():
    """Return the function `write(rows, path)`.

    Raises:
        ImportError: pyarrow is not installed.
    """
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError as error:
        raise ImportError(
            "parquet needs the pyarrow package, which is not installed: pip install pyarrow, or choose webdataset"
        ) from error

    def write(rows: Iterator[tuple], path: Path) -> None:
        writer = None
        try:
            while group := [
                {"image": {"bytes": png, "path": name}, **facts} for name, png, facts in islice(rows, ROW_GROUP)
            ]:
                if writer is None:
                    facts = {name: value for name, value in group[0].items() if name != "image"}
                    writer = parquet.ParquetWriter(path, _schema(pyarrow, facts))
                writer.write_table(pyarrow.Table.from_pylist(group, writer.schema))
        finally:
            if writer is not None:
                writer.close()

    return write


def _schema(pyarrow, facts: Mapping[str, int | str | None]):
    """Return the schema, with the metadata from which the datasets library reads the features; no seed is a null."""
    image = pyarrow.struct([("bytes", pyarrow.binary()), ("path", pyarrow.string())])
    kinds = {name: "string" if isinstance(value, str) else "int64" for name, value in facts.items()}
    features = {"image": {"_type": "Image"}, **{name: {"dtype": k, "_type": "Value"} for name, k in kinds.items()}}
    note = json.dumps({"info": {"features": features}})
    columns = [("image", image), *((name, getattr(pyarrow, kind)()) for name, kind in kinds.items())]
    return pyarrow.schema(columns, metadata={"huggingface": note})
