"""The one place that chooses what the operations run on: plain torch, or a kernel package of the kernels hub's layout.

"local" is the Triton package inside fewshot_gan, "hub" the same one from the Hub, "off" plain torch. Without a choice
tensors on a GPU use "local" if triton and kernels are installed. A package is loaded when the first tensor needs it;
whatever cannot be loaded is logged once, and plain torch takes its place. Kernels hub: huggingface.co/docs/kernels.
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
    name: str | None  # None: nobody chose
    version: int = 1
    repo_id: str = KERNEL_REPO
    trust_remote_code: bool | list[str] = False
    tried: bool = False
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
        # the interpreter of Triton lets a chosen package run without a GPU, for tests
        self.on_cpu = self.name in ("hub", "local") and os.environ.get("TRITON_INTERPRET") == "1"


_selection: _Selection | None = None  # None: the environment was not read yet


def set_kernels(
    kernels: str | None,
    *,
    version: int = 1,
    repo_id: str = KERNEL_REPO,
    trust_remote_code: bool | list[str] = False,
) -> None:
    """Choose what the operations of this process run on from now on; nothing is loaded before it is needed.

    Args:
        kernels: "hub", "local" or "off"; None: as if nobody had chosen.
        version: of the Hub's package: branch `v<version>`.
        repo_id: of the Hub's package.
        trust_remote_code: run code of a publisher whom the Hub does not list as trusted: True, or a list of repo ids.

    Raises:
        ValueError: an unknown choice, or no version number.
    """
    global _selection
    _selection = _Selection(kernels, version, repo_id, trust_remote_code)


def _chosen() -> _Selection:
    global _selection
    if _selection is None:
        _selection = _Selection(os.environ.get(VARIABLE) or None)
    return _selection


def traced() -> bool:
    """Whether a graph is being made of what runs: it sees through plain torch, not through kernels or kept values."""
    return torch.compiler.is_compiling() or torch.jit.is_tracing()


def kernels_for(x: torch.Tensor) -> ModuleType | None:
    """The package whose operations take `x`, or None: plain torch does.

    Raises:
        ValueError: the environment variable names something unknown.
    """
    if traced():
        return None
    selection = _chosen()
    if not (x.is_cuda or selection.on_cpu) or selection.name == "off" or x.dtype not in DTYPES:
        return None
    if not selection.tried:
        selection.tried = True
        selection.module = _load(selection)
    return selection.module


def _load(selection: _Selection) -> ModuleType | None:
    """The chosen package, or None with the reason in the log."""
    if missing := [name for name in ("triton", "kernels") if find_spec(name) is None]:
        level = logging.INFO if selection.name is None else logging.WARNING
        logger.log(level, "plain torch: %s not installed; pip install fewshot_gan[kernels]", " and ".join(missing))
        return None
    try:
        if selection.name == "hub":
            from kernels import get_kernel

            backend = None if torch.cuda.is_available() else "cpu"  # a CUDA build of torch without a GPU
            options = {"version": selection.version, "trust_remote_code": selection.trust_remote_code}
            module = get_kernel(selection.repo_id, backend=backend, **options)
        else:
            from kernels import get_local_kernel

            module = get_local_kernel(BUNDLED)
        if lacking := [name for name in OPS if not hasattr(module, name)]:
            raise ImportError(f"it has no {', '.join(lacking)}")
    except Exception as error:  # a package is other people's code: whatever it raises, there are pictures to make
        logger.warning("plain torch: the kernels %r cannot be loaded: %s", selection.name or "local", error)
        return None
    place = f"{selection.repo_id} v{selection.version}" if selection.name == "hub" else "the bundled stylegan-ops"
    logger.info("operations run on %s", place)
    return module


def kernel_mapping() -> dict:
    """For `kernels.use_kernel_mapping`: the layers that `kernels.kernelize` finds in the networks → the chosen package.

    Raises:
        ImportError: kernels is not installed.
    """
    from kernels import LayerRepository, LocalLayerRepository

    selection, mapping = _chosen(), {}
    for layer in ("BiasAct", "InverseHaar", "Upsample2d"):
        if selection.name == "hub":
            options = {"version": selection.version, "trust_remote_code": selection.trust_remote_code}
            repository = LayerRepository(selection.repo_id, layer_name=layer, **options)
        else:
            repository = LocalLayerRepository(BUNDLED, layer_name=layer)
        mapping[f"StyleGAN{layer}"] = dict.fromkeys(("cuda", "cpu"), repository)
    return mapping
