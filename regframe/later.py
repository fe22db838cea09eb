"""Large modules, loaded when they are first used: to read a header, or to refuse a file, takes no torch, which takes a second."""

from __future__ import annotations

import importlib
import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any


class Later(ModuleType):
    """Stands for a module until one of its names is asked for; every module that holds it then gets the real one."""

    def __getattr__(self, name: str) -> Any:
        """A name of the real module, which is loaded now."""
        if name.startswith("__"):  # what only looks at modules, such as a debugger, does not load one
            raise AttributeError(name)
        word = self.__name__
        real = importlib.import_module(word)
        for module in list(sys.modules.values()):
            names = getattr(module, "__dict__", {})
            if names.get(word) is self:
                names[word] = real
        return getattr(real, name)


def is_tensor(thing: object) -> bool:
    """Whether something is a tensor of torch, which is not loaded to tell: there is none before it is."""
    real = sys.modules.get("torch")
    return real is not None and isinstance(thing, getattr(real, "Tensor", ()))


def module(name: str) -> Any:
    """The module of a name without dots: the real one where it is loaded, or else one that is loaded at the first use.

    Bind it to that name in a module's own namespace: there the real one takes its place.
    """
    return sys.modules.get(name) or Later(name)


if TYPE_CHECKING:
    import torch as torch
else:
    torch = module("torch")
