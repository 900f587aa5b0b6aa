"""The Hugging Face Hub: names, downloads, uploads and cards. Error messages are one sentence with the cause."""

from .fetch import HUB_OPTIONS, check_hashes, resolve_folder
from .names import (
    ASSETS,
    adapter_folders,
    data_source,
    embedded_adapters,
    embedded_base_of,
    embedded_bases,
    embedded_datasets,
    embedded_directions,
    folders_per_base,
    is_repo_id,
    portable_name,
)
from .push import PUSH_OPTIONS, files_to_push, push_folder
from .transformers_models import NO_CODE, fetch_model, read_model, refuse_missing

__all__ = [
    "ASSETS",
    "HUB_OPTIONS",
    "NO_CODE",
    "PUSH_OPTIONS",
    "adapter_folders",
    "check_hashes",
    "data_source",
    "embedded_adapters",
    "embedded_base_of",
    "embedded_bases",
    "embedded_datasets",
    "embedded_directions",
    "fetch_model",
    "folders_per_base",
    "is_repo_id",
    "portable_name",
    "files_to_push",
    "push_folder",
    "read_model",
    "refuse_missing",
    "resolve_folder",
]
