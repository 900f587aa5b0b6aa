"""Choose what the operations run on: plain torch, or a package of kernels in the layout of the kernels hub.

"local" is the Triton package inside fewshot_gan, "hub" the same package from the Hub, "off" plain torch. By default
tensors on a GPU use "local" if triton and kernels are installed. A package is loaded when the first tensor needs it.
If it cannot be loaded, one warning is logged and plain torch runs instead. See huggingface.co/docs/kernels.
"""

import logging
import os
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType

import torch

logger = logging.getLogger(__name__)

CHOICES = ("hub", "local", "off")
VARIABLE = "FEWSHOT_GAN_KERNELS"
KERNEL_REPO = "fewshot-gan/stylegan-ops"
BUNDLED = Path(__file__).parents[1] / "kernels" / "stylegan-ops" / "torch-ext" / "stylegan_ops"
OPS = ("bias_act", "upfirdn2d", "haar", "inverse_haar", "modulate_weight", "expand_bits")
DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.uint8)


@dataclass
class _Selection:
    name: str | None  # None: the default
    version: int = 1
    repo_id: str = KERNEL_REPO
    trust_remote_code: bool | list[str] = False
    loaded: bool = False  # `_load` was called, with or without success
    module: ModuleType | None = None
    on_cpu: bool = field(init=False)

    def __post_init__(self):
        if self.name not in (None, *CHOICES):
            raise ValueError(
                f"unknown kernels {self.name!r} (from set_kernels or {VARIABLE}); known: {', '.join(CHOICES)}; "
                "'off' is plain torch, and without a choice a GPU uses 'local' where triton and kernels are installed"
            )
        if not isinstance(self.version, int) or isinstance(self.version, bool) or self.version < 1:
            raise ValueError(f"version={self.version!r}: give the number of a published version; 1 is branch v1")
        # tests run a package without a GPU in Triton's interpreter
        self.on_cpu = self.name in ("hub", "local") and os.environ.get("TRITON_INTERPRET") == "1"


_selection: _Selection | None = None  # None: the environment variable was not read yet


def set_kernels(
    kernels: str | None,
    *,
    version: int = 1,
    repo_id: str = KERNEL_REPO,
    trust_remote_code: bool | list[str] = False,
) -> None:
    """Choose what the operations of this process run on; a package is loaded when the first tensor needs it.

    Args:
        kernels: "hub", "local", "off", or None for the default.
        version: version of the "hub" package, from 1: its branch `v<version>`.
        repo_id: repository of the "hub" package.
        trust_remote_code: allow code of a publisher whom the Hub does not list as trusted: True, or a list of repo ids.

    Raises:
        ValueError: `kernels` is unknown, or `version` is not a whole number from 1.
    """
    global _selection
    _selection = _Selection(kernels, version, repo_id, trust_remote_code)


def _current_selection() -> _Selection:
    global _selection
    if _selection is None:
        _selection = _Selection(os.environ.get(VARIABLE) or None)
    return _selection


def is_traced() -> bool:
    """Return whether torch.compile, torch.export or torch.jit.trace records: use neither kernels nor caches then."""
    return torch.compiler.is_compiling() or _is_jit_tracing()


def is_exported() -> bool:
    """Return whether the graph being recorded is for another runtime (ONNX, OpenVINO, TorchScript)."""
    return _is_jit_tracing() or torch.compiler.is_exporting()


def _is_jit_tracing() -> bool:
    return torch.jit.is_tracing()  # pyright: ignore[reportPrivateImportUsage]  # missing from torch.jit.__all__


def kernels_for(x: torch.Tensor) -> ModuleType | None:
    """Return the kernel package that can process `x`, or None for plain torch.

    Raises:
        ValueError: the environment variable FEWSHOT_GAN_KERNELS names an unknown choice.
    """
    if is_traced():
        return None
    selection = _current_selection()
    if not (x.is_cuda or selection.on_cpu) or selection.name == "off" or x.dtype not in DTYPES:
        return None
    if not selection.loaded:
        selection.loaded = True
        selection.module = _load(selection)
    return selection.module


def _load(selection: _Selection) -> ModuleType | None:
    """Load the chosen package; return None and log the reason if that fails."""
    if missing := [name for name in ("triton", "kernels") if find_spec(name) is None]:
        level = logging.INFO if selection.name is None else logging.WARNING
        logger.log(level, "plain torch: %s not installed; pip install fewshot_gan[kernels]", " and ".join(missing))
        return None
    try:
        if selection.name == "hub":
            from kernels import get_kernel

            backend = None if torch.cuda.is_available() else "cpu"  # for a CUDA build of torch without a GPU
            options = {"version": selection.version, "trust_remote_code": selection.trust_remote_code}
            module = get_kernel(selection.repo_id, backend=backend, **options)
        else:
            from kernels import get_local_kernel

            module = get_local_kernel(BUNDLED)
        if absent := [name for name in OPS if not hasattr(module, name)]:
            raise ImportError(f"it has no {', '.join(absent)}")
    except Exception as error:  # third-party code may raise anything; plain torch always works
        logger.warning("plain torch: the kernels %r cannot be loaded: %s", selection.name or "local", error)
        return None
    source = f"{selection.repo_id} v{selection.version}" if selection.name == "hub" else "the bundled stylegan-ops"
    logger.info("operations run on %s", source)
    return module


def kernel_mapping() -> dict:
    """Return the mapping of layer names to kernel layers for `kernels.use_kernel_mapping`.

    Raises:
        ImportError: kernels is not installed.
    """
    from kernels import LayerRepository, LocalLayerRepository

    selection, mapping = _current_selection(), {}
    for layer in ("BiasAct", "InverseHaar", "Upsample2d"):
        if selection.name == "hub":
            options = {"version": selection.version, "trust_remote_code": selection.trust_remote_code}
            repository = LayerRepository(selection.repo_id, layer_name=layer, **options)
        else:
            repository = LocalLayerRepository(BUNDLED, layer_name=layer)
        mapping[f"StyleGAN{layer}"] = dict.fromkeys(("cuda", "cpu"), repository)
    return mapping
