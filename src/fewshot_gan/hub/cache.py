"""The local cache of the Hub, and error messages for its faults."""

from pathlib import Path

from ..utils.errors import fault_of_disk
from ..utils.files import user_path

OTHER_CACHE = "set HF_HOME to a folder that can be written, or give cache_dir=…"


def cache_folder(cache_dir) -> Path:
    """Return the folder of the cache: `cache_dir`, or the default of huggingface_hub."""
    from huggingface_hub import constants

    return user_path(cache_dir or constants.HF_HUB_CACHE)


def check_cache(cache_dir) -> None:
    """Refuse a cache path that cannot be a folder; huggingface_hub would report a missing network connection.

    Raises:
        NotADirectoryError: the path, or a parent of it, is a file.
    """
    cache = cache_folder(cache_dir)
    there = next(path for path in (cache.absolute(), *cache.absolute().parents) if path.exists())
    if not there.is_dir():
        raise NotADirectoryError(f"the cache {cache} is no folder: {there} is a file; {OTHER_CACHE}")


def refuse_fault_of_cache(error: Exception, what: str, cache_dir) -> None:
    """Raise an error about the disk if that, and not the Hub, made a download fail.

    Raises:
        OSError: the disk is full, read-only or the like.
    """
    if fault := fault_of_disk(error):
        fault, _, _ = fault.partition("; ")
        raise OSError(f"the cache {cache_folder(cache_dir)} cannot take {what}: {fault}; {OTHER_CACHE}") from error
