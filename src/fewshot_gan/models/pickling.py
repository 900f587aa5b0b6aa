"""Pickles of modules with parametrised weights (spectral norm, masks), which torch itself refuses."""

from copy import deepcopy

from torch import nn
from torch.nn.utils import parametrize


class Picklable(nn.Module):
    """A module whose pickle holds its parametrisations, with the same parameters.

    torch gives a parametrised module a class made on the spot, which no pickle can name; the pickle names the class it
    had before, and parametrises the module again.
    """

    def __reduce_ex__(self, protocol):
        if not parametrize.is_parametrized(self):
            return super().__reduce_ex__(protocol)
        cls = parametrize.type_before_parametrizations(self)
        return cls.__new__, (cls,), dict(cls.__getstate__(self)), None, None, _restore

    def __copy__(self):
        """Another module with the same parameters and submodules, as `copy.copy` makes of any module."""
        new = type(self).__new__(type(self))  # the class that torch made serves both
        state = parametrize.type_before_parametrizations(self).__getstate__(self)
        new.__setstate__(dict(state))
        return new

    def __deepcopy__(self, memo):
        cls = parametrize.type_before_parametrizations(self)
        memo[id(self)] = new = cls.__new__(cls)
        state = deepcopy(dict(cls.__getstate__(self)), memo)
        if parametrize.is_parametrized(self):
            _restore(new, state)
        else:
            new.__setstate__(state)
        return new


def _restore(module: nn.Module, state: dict) -> None:
    parametrized = state["_modules"].pop("parametrizations")
    module.__setstate__(state)
    for name, parametrizations in parametrized.items():
        original = parametrizations.original
        if isinstance(original, nn.Parameter):
            module.register_parameter(name, original)
        else:
            module.register_buffer(name, original)
        for parametrization in parametrizations:  # unsafe: not to be tried out, which changes estimates in training
            training = parametrization.training
            parametrize.register_parametrization(module, name, parametrization, unsafe=True)
            parametrization.train(training)
    module._modules["parametrizations"] = parametrized  # the very modules, after torch made a class for their like
