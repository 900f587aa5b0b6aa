"""Folders that another thread holds."""

from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

from fewshot_gan.utils.folder_lock import locked


@contextmanager
def held_elsewhere(folder):
    """A folder that another thread holds meanwhile; to a thread, it is as to another process."""
    with ThreadPoolExecutor(1) as pool:
        lock = locked(folder)
        pool.submit(lock.__enter__).result()
        try:
            yield
        finally:
            pool.submit(lock.__exit__, None, None, None).result()
