"""What users of diffusers expect of any pipeline, for pipelines of this package's networks."""

from contextlib import nullcontext
from functools import wraps

import torch
from diffusers import DiffusionPipeline
from torch import nn

from .adapters.copies import share
from .models.network import evaluating, settle_dtype
from .pipeline_files import without_code
from .utils.offloading import execution_device, has_hooks


class NetworkPipeline(DiffusionPipeline):
    """A diffusers pipeline whose parts are in evaluation mode."""

    def register_modules(self, **modules) -> None:
        for module in modules.values():
            if isinstance(module, nn.Module):
                module.eval()
        super().register_modules(**modules)

    def __getstate__(self) -> dict:  # for copies and pickles, which cannot hold what torch.compile made
        return {**self.__dict__, "_compiled": None}

    _base_name: str | None = None

    @property
    def base_name(self) -> str | None:
        """What the base was loaded by: embedded name, folder or Hub repo id; None of networks made here."""
        return self._base_name or self.config.get("_name_or_path")

    @base_name.setter
    def base_name(self, name: str | None) -> None:
        self._base_name = name

    @classmethod
    def load_config(cls, *args, **kwargs):
        """As in diffusers; with it `from_pretrained` runs no file of a base."""
        loaded = super().load_config(*args, **kwargs)
        return without_code(loaded) if isinstance(loaded, dict) else loaded

    @classmethod
    def from_pipe(cls, pipeline: DiffusionPipeline, **kwargs) -> "NetworkPipeline":
        """A pipeline of the same networks, which take no more memory, and with the same adapters.

        Adapters are shared as networks are; which of them act is each pipeline's own. With another `generator=` there
        are none: adapters belong to the network they were made for.

        Args:
            pipeline: whose parts are taken.
            kwargs: parts and settings that replace its own, and `dtype`, to which the shared networks are cast; None:
                as they are (diffusers casts to float32).

        Raises:
            ValueError: it has no generator, or its adapters are fused.
        """
        bank = getattr(pipeline, "bank", None)
        if bank is not None:
            bank.refuse_while_fused("share the generator")
        kwargs["dtype"] = settle_dtype(kwargs) or pipeline.dtype
        names, _ = cls._get_signature_keys(cls)  # by name: of classes that derive from ours diffusers takes none
        parts = {name: part for name, part in pipeline.components.items() if name in names}
        new = super().from_pipe(pipeline, **{**parts, **kwargs})
        if bank is not None and new.generator is pipeline.generator:
            new.base_name = pipeline.base_name
            share(bank, new.bank)
        else:
            new.register_to_config(_name_or_path=None)
        return new

    @property
    def _execution_device(self) -> torch.device:
        """Where the generator computes, also while it is offloaded."""
        return execution_device(self.generator)

    def enable_sequential_cpu_offload(self, gpu_id: int | None = None, device: torch.device | str | None = None):
        """As in diffusers; "cpu" works too, with weights that come and go: to see what offloading does."""
        known = self.bank.known_fingerprint()
        if device is None or torch.device(device).type != "cpu":
            super().enable_sequential_cpu_offload(gpu_id, device)
        else:  # not by diffusers, whose cpu:0 is another device to accelerate
            from accelerate import cpu_offload

            self.remove_all_hooks()
            for part in self.components.values():
                if isinstance(part, nn.Module):
                    cpu_offload(part, torch.device("cpu"))
        if known is not None:
            self.bank.remember_fingerprint(known)

    def remove_all_hooks(self) -> None:
        known = self.bank.known_fingerprint()
        super().remove_all_hooks()
        if known is not None:
            self.bank.remember_fingerprint(known)


def drawing(method):
    """Let a method of a pipeline draw in evaluation mode, whatever mode the generator was put in meanwhile.

    In training mode a picture would depend on its batch (batch normalisation), and drawing would change the network.
    Threads take turns while the generator is offloaded; afterwards one that is offloaded as a whole goes back.
    """

    @wraps(method)
    def draw(pipe, *args, **options):
        # the device is kept while hooks are made anew, which happens after each call
        alone = getattr(pipe, "_offload_device", None) is not None or has_hooks(pipe.generator)
        with evaluating(pipe.generator), pipe.bank.weights_lock.exclusive() if alone else nullcontext():
            drawn = method(pipe, *args, **options)
            pipe.maybe_free_model_hooks()
        return drawn

    return draw
