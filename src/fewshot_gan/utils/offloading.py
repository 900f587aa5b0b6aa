"""Networks whose tensors come only while a module's `forward` runs: hooks of accelerate and diffusers.

Three ways: the whole model moves before its `forward` (`enable_model_cpu_offload`); each module's own tensors are on
"meta" and come from a map (`enable_sequential_cpu_offload`, `accelerate.cpu_offload`); groups of tensors are moved in
place, from memory or from files (`enable_group_offload`).
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn


def _hooks(module: nn.Module) -> list:
    """What moves tensors of `module`, and perhaps of what is below it, around its `forward`."""
    if torch.compiler.is_compiling():
        return []
    hook = module.__dict__.get("_hf_hook")  # of accelerate; several are in `hooks`
    hooks = [h for h in getattr(hook, "hooks", [hook]) if getattr(h, "offload", None) is True]
    registry = module.__dict__.get("_diffusers_hook")
    grouped = None if registry is None else registry.get_hook("group_offloading")
    return hooks if grouped is None else [*hooks, grouped]


def is_offloaded(network: nn.Module) -> bool:
    """Whether tensors of `network` come only while a module computes; not so of a network that moves as a whole."""
    return any(_hooks(module) for module in network.modules())


@contextmanager
def onloaded(module: nn.Module) -> Iterator[None]:
    """Have the tensors of `module` here for a `with` block outside of its `forward`."""
    hooks = _hooks(module)
    try:
        for hook in hooks:
            hook.pre_forward(module)
        yield
    finally:
        for hook in hooks:
            hook.post_forward(module, None)


def handed_out(module: nn.Module, tensor: torch.Tensor | None) -> torch.Tensor | None:
    """`tensor` of `module` for use after its `forward`: another name of its numbers, which stay when hooks move it."""
    return tensor.view_as(tensor) if tensor is not None and _hooks(module) else tensor


def fetched(module: nn.Module, name: str) -> torch.Tensor:
    """The tensor `name` of `module`, for use outside of its `forward`."""
    if not _hooks(module):
        return getattr(module, name)
    with onloaded(module):
        return handed_out(module, getattr(module, name))


def execution_device(network: nn.Module) -> torch.device:
    """Where `network` computes, which is not where its tensors lie while it is offloaded."""
    for module in network.modules():
        for hook in _hooks(module):
            device = hook.config.onload_device if hasattr(hook, "config") else hook.execution_device
            return torch.device(device)
    hook = network.__dict__.get("_hf_hook")  # of a network that moves as a whole
    devices = [getattr(h, "execution_device", None) for h in getattr(hook, "hooks", [hook])]
    return next((torch.device(d) for d in devices if d is not None), next(network.parameters()).device)


def stored_state(network: nn.Module) -> dict[str, torch.Tensor]:
    """`state_dict`, also of an offloaded network, whose tensors are then copies on the CPU."""
    if not is_offloaded(network):
        return network.state_dict()
    state = {}

    def visit(module: nn.Module, prefix: str) -> None:
        with onloaded(module):
            own = {**module._parameters, **module._buffers}
            names = [n for n, t in own.items() if t is not None and n not in module._non_persistent_buffers_set]
            state.update({prefix + name: getattr(module, name).detach().to("cpu", copy=True) for name in names})
            for name, child in module.named_children():
                visit(child, f"{prefix}{name}.")

    visit(network, "")
    return state


def refuse_offloaded(network: nn.Module, action: str) -> None:
    """Refuse what writes to tensors that are elsewhere, or saves them.

    Raises:
        ValueError: tensors of `network` lie on "meta" or in files until they are needed.
    """
    hooks = [hook for module in network.modules() for hook in _hooks(module)]
    if any(not hasattr(hook, "config") or hook.config.offload_to_disk_path for hook in hooks):
        raise ValueError(
            f"cannot {action} while the weights of {type(network).__name__} are offloaded layer by layer; do so before "
            "offloading, or with a pipeline that is loaded anew"
        )


def has_hooks(network: nn.Module) -> bool:
    """Whether `network` is offloaded in any way."""
    return any("_hf_hook" in module.__dict__ or "_diffusers_hook" in module.__dict__ for module in network.modules())


def refuse_hooks(network: nn.Module, action: str) -> None:
    """Refuse what would share the hooks of `network` with a copy.

    Raises:
        ValueError: `network` is offloaded in any way.
    """
    if has_hooks(network):
        raise ValueError(
            f"cannot {action} {type(network).__name__} while it is offloaded; call remove_all_hooks() of the pipeline "
            "first, or copy one that is loaded anew"
        )


def refuse_gradients(network: nn.Module, action: str) -> None:
    """Refuse what needs gradients through a network whose tensors are moved in place, which autograd cannot follow.

    Raises:
        ValueError: `network` is offloaded in groups.
    """
    if any(hasattr(hook, "config") for module in network.modules() for hook in _hooks(module)):
        raise ValueError(
            f"cannot {action} while {type(network).__name__} is offloaded in groups, which is for drawing alone; use "
            "enable_model_cpu_offload, or a pipeline that is loaded anew"
        )
