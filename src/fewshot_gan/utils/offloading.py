"""Work with offloaded networks, whose tensors are available only while a module's `forward` runs.

accelerate and diffusers attach hooks (`_hf_hook`, `_diffusers_hook`) in three ways. `enable_model_cpu_offload` moves
the whole model before its `forward`. `enable_sequential_cpu_offload` and `accelerate.cpu_offload` put each module's
tensors on "meta" and load them from a map. `enable_group_offload` moves groups of tensors in place, from memory or
files. Neither library has a public way to ask a module for its hooks.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn


def _hooks(module: nn.Module) -> list:
    """Return the hooks that move tensors of `module`, and perhaps of its submodules, around its `forward`."""
    if torch.compiler.is_compiling():
        return []
    hook = module.__dict__.get("_hf_hook")  # accelerate's; a sequential hook holds others in `hooks`
    hooks = [h for h in getattr(hook, "hooks", [hook]) if getattr(h, "offload", None) is True]
    registry = module.__dict__.get("_diffusers_hook")
    grouped = None if registry is None else registry.get_hook("group_offloading")
    return hooks if grouped is None else [*hooks, grouped]


def is_offloaded(network: nn.Module) -> bool:
    """Return whether modules of `network` load their tensors one by one; False if the network moves as a whole."""
    return any(_hooks(module) for module in network.modules())


@contextmanager
def onloaded(module: nn.Module) -> Iterator[None]:
    """Load the tensors of `module` for a `with` block outside of its `forward`."""
    hooks = _hooks(module)
    try:
        for hook in hooks:
            hook.pre_forward(module)
        yield
    finally:
        for hook in hooks:
            hook.post_forward(module, None)


def offload_safe(module: nn.Module, tensor: torch.Tensor) -> torch.Tensor:
    """Return `tensor` of `module` for use after its `forward`: a view, whose values stay when hooks move the module."""
    return tensor.view_as(tensor) if _hooks(module) else tensor


def fetch_tensor(module: nn.Module, name: str) -> torch.Tensor:
    """Return the parameter or buffer `name` of `module`, for use outside of its `forward`."""
    if not _hooks(module):
        return getattr(module, name)
    with onloaded(module):
        return offload_safe(module, getattr(module, name))


def execution_device(network: nn.Module) -> torch.device:
    """Return the device on which `network` computes; the tensors of an offloaded network are on another one."""
    for module in network.modules():
        for hook in _hooks(module):
            device = hook.config.onload_device if hasattr(hook, "config") else hook.execution_device
            return torch.device(device)
    hook = network.__dict__.get("_hf_hook")  # the network moves as a whole
    devices = [getattr(h, "execution_device", None) for h in getattr(hook, "hooks", [hook])]
    return next((torch.device(d) for d in devices if d is not None), next(network.parameters()).device)


def stored_state(network: nn.Module) -> dict[str, torch.Tensor]:
    """Return the `state_dict`; for an offloaded network its tensors are copies on the CPU."""
    if not is_offloaded(network):
        return network.state_dict()
    state = {}

    def visit(module: nn.Module, prefix: str) -> None:
        with onloaded(module):
            names = [name for name in module.state_dict() if "." not in name]  # the module's own tensors
            state.update({prefix + name: getattr(module, name).detach().to("cpu", copy=True) for name in names})
            for name, child in module.named_children():
                visit(child, f"{prefix}{name}.")

    visit(network, "")
    return state


def refuse_offloaded(network: nn.Module, action: str) -> None:
    """Refuse to write or save tensors that are offloaded layer by layer.

    Args:
        network: the network.
        action: verb of the error message, e.g. "save".

    Raises:
        ValueError: tensors of `network` are on "meta" or in files.
    """
    hooks = [hook for module in network.modules() for hook in _hooks(module)]
    if any(not hasattr(hook, "config") or hook.config.offload_to_disk_path for hook in hooks):
        raise ValueError(
            f"cannot {action} while the weights of {type(network).__name__} are offloaded layer by layer; do so before "
            "offloading, or with a pipeline that is loaded anew"
        )


def has_hooks(network: nn.Module) -> bool:
    """Return whether `network` is offloaded in any way."""
    return any("_hf_hook" in module.__dict__ or "_diffusers_hook" in module.__dict__ for module in network.modules())


def refuse_hooks(network: nn.Module, action: str) -> None:
    """Refuse to copy or pickle a network, since the copy would share its hooks.

    Raises:
        ValueError: `network` is offloaded in any way.
    """
    if has_hooks(network):
        raise ValueError(
            f"cannot {action} {type(network).__name__} while it is offloaded; call remove_all_hooks() of the pipeline "
            "first, or copy one that is loaded anew"
        )


def refuse_gradients(network: nn.Module, action: str) -> None:
    """Refuse to compute gradients through tensors that are moved in place, which autograd does not see.

    Raises:
        ValueError: `network` is offloaded in groups.
    """
    if any(hasattr(hook, "config") for module in network.modules() for hook in _hooks(module)):
        raise ValueError(
            f"cannot {action} while {type(network).__name__} is offloaded in groups, which is for drawing alone; use "
            "enable_model_cpu_offload, or a pipeline that is loaded anew"
        )
