"""Pickle modules with parametrised weights (spectral norm, masks), which torch itself refuses.

The pickled state is the `__dict__` of `nn.Module`, whose layout (`_modules`) is part of every torch pickle.
"""

from copy import deepcopy
from typing import Any

from torch import nn
from torch.nn.utils import parametrize


class Picklable(nn.Module):
    """A module whose pickle includes its parametrisations, with the same parameters.

    torch gives a parametrised module a class that it creates at run time, which a pickle cannot name. The pickle
    therefore names the original class, and unpickling parametrises the module again.
    """

    def __reduce_ex__(self, protocol):
        if not parametrize.is_parametrized(self):
            return super().__reduce_ex__(protocol)
        cls: Any = parametrize.type_before_parametrizations(self)
        return cls.__new__, (cls,), dict(cls.__getstate__(self)), None, None, _restore

    def __copy__(self):
        """Return another module with the same parameters and submodules, as `copy.copy` does for any module."""
        new = type(self).__new__(type(self))  # both share the class that torch created
        cls: Any = parametrize.type_before_parametrizations(self)
        state = cls.__getstate__(self)
        new.__setstate__(dict(state))
        return new

    def __deepcopy__(self, memo):
        cls: Any = parametrize.type_before_parametrizations(self)
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
        for parametrization in parametrizations:  # unsafe: do not call it, which would update its estimates in training
            training = parametrization.training
            parametrize.register_parametrization(module, name, parametrization, unsafe=True)
            parametrization.train(training)
    module.parametrizations = parametrized  # the pickled modules replace the new ones
