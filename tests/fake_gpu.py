"""A GPU that is not there: tensors that say they are on one and are computed on the CPU, strictly apart from all others.

`Pretended` runs whole fits. Every operation is done by the CPU's kernels, so that values are those of the CPU; but as on a GPU,
an operation that is given tensors of both devices raises (`Mixed`), and what comes back to the host has to be asked for. Such
reads are counted. What differs from a GPU: time, memory, and rounding.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map

GPU = torch.device("cuda:0")
ENGINE = torch.autograd.grad


class Mixed(RuntimeError):
    """An operation was given tensors of both devices."""


def gradients(value: Any, leaves: Any, *further: Any, **options: Any) -> tuple[Tensor | None, ...]:
    """`torch.autograd.grad` of a scalar, node by node: torch's own engine asks for a GPU before it looks at the tensors."""
    if not isinstance(value, Tensor) or value.is_cpu:
        return ENGINE(value, leaves, *further, **options)
    leaves = [leaves] if isinstance(leaves, Tensor) else list(leaves)
    assert value.grad_fn is not None
    order, seen = list[Any](), set[Any]()

    def visit(node: Any) -> None:
        if node not in seen:
            seen.add(node)
            for after, _ in node.next_functions:
                if after is not None:
                    visit(after)
            order.append(node)

    visit(value.grad_fn)
    came: dict[Any, dict[int, Tensor]] = {value.grad_fn: {0: torch.ones_like(value)}}
    found: dict[int, Tensor] = {}
    for node in reversed(order):
        if node not in came:
            continue
        if hasattr(node, "variable"):
            found[id(node.variable)] = came[node][0]
            continue
        run = node if callable(node) else node.apply
        with torch.no_grad():
            passed = run(*[came[node].get(i) for i in range(max(came[node]) + 1)])
        passed = passed if isinstance(passed, tuple) else (passed,)  # what is no tensor comes last, and gets None
        for (after, slot), grad in zip(node.next_functions, passed, strict=False):
            if after is not None and grad is not None:
                known, wanted = came.setdefault(after, {}), after._input_metadata[slot]
                if grad.shape != wanted.shape:
                    grad = grad.sum_to_size(wanted.shape)
                assert grad.device == wanted.device
                known[slot] = known[slot] + grad if slot in known else grad
    return tuple(found.get(id(leaf)) for leaf in leaves)


@contextmanager
def lent(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Graphs of tensors that say they are on a GPU, in a torch without CUDA.

    It lets none be made, for want of what switches between GPUs; so it is lent what switches between "meta" devices, which does
    nothing.
    """
    monkeypatch.setattr(torch.autograd, "grad", gradients)
    monkeypatch.setattr(torch.cuda, "_lazy_init", lambda: None)
    switches: Any = [None] * 15
    if torch.version.cuda is None:
        library = ctypes.CDLL(str(Path(torch.__file__).parent / "lib" / "libc10.so"))
        name = "_ZN3c104impl26device_guard_impl_registryE"
        if not hasattr(library, name):
            pytest.skip(f"torch {torch.__version__} keeps what switches between devices elsewhere")
        switches = (ctypes.c_void_p * 15).in_dll(library, name)
        switches[1] = switches[14]
    before = torch._C._only_lift_cpu_tensors()
    torch._C._set_only_lift_cpu_tensors(True)  # torch.tensor(..., device="cuda") is made here, then copied
    try:
        yield
    finally:
        torch._C._set_only_lift_cpu_tensors(before)
        switches[1] = None


class There(Tensor):
    """A tensor that says it is on a GPU; ``inner`` has its values."""

    inner: Tensor

    @staticmethod
    def __new__(cls, inner: Tensor) -> There:
        return Tensor._make_wrapper_subclass(  # type: ignore[attr-defined,no-any-return]
            cls, inner.size(), strides=inner.stride(), storage_offset=inner.storage_offset(), dtype=inner.dtype, device=GPU
        )  # fmt: skip

    def __init__(self, inner: Tensor) -> None:
        self.inner = inner

    def __repr__(self) -> str:  # type: ignore[override]
        return f"There({self.inner!r})"

    def tolist(self) -> Any:  # torch refuses it to subclasses
        return self.cpu().tolist()

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        raise Mixed(f"{func} outside of Pretended")


ACROSS = ("aten::copy_", "aten::_to_copy", "regframe::contrast")
"""Operations that may be given both: copies, and the kernel that wants a few numbers of the host."""


class Pretended(TorchDispatchMode):
    """Runs everything on the CPU and keeps both devices apart; ``reads`` counts what was brought to the host."""

    def __init__(self) -> None:
        super().__init__()
        self.reads = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        given = [leaf for leaf in tree_flatten((args, kwargs))[0] if isinstance(leaf, Tensor)]
        there = [one for one in given if isinstance(one, There)]
        name, asked = func._schema.name, kwargs.get("device")
        here = [one for one in given if not isinstance(one, There) and one.ndim > 0]
        if there and here and name not in ACROSS and not name.startswith("aten::index"):
            raise Mixed(f"{func} was given tensors of both devices")
        if asked is not None:
            kwargs["device"] = torch.device("cpu")
        inside = (tree_map(lambda one: one.inner if isinstance(one, There) else one, part) for part in (args, kwargs))
        out = func(*next(inside), **next(inside))
        goes = torch.device(asked).type == "cuda" if asked is not None else bool(there)
        self.reads += bool(there) and (name == "aten::_local_scalar_dense" or not goes)
        if (name.endswith("_") and not name.endswith("__")) or "out" in kwargs:  # in place: what was given comes back
            return kwargs.get("out", args[0])
        return tree_map(lambda one: There(one) if isinstance(one, Tensor) else one, out) if goes else out
