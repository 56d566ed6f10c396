"""A second device on a machine that has none, for tests of models that lie on several: `pretend`.

Its tensors hold real numbers in the CPU's memory, and every operation is computed; but one whose tensors lie on
different devices raises, as it does on real ones, unless those of the CPU have no axes. What torch registers for it
stays for the rest of the process, so tests use it in one of their own.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing
from torch.utils._pytree import tree_flatten, tree_map
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

PRETEND = "pretend:0"


class PretendTensor(torch.Tensor):
    """A tensor on the pretended device."""

    inner: torch.Tensor

    @staticmethod
    def __new__(cls, inner: torch.Tensor) -> "PretendTensor":
        return torch.Tensor._make_wrapper_subclass(
            cls, inner.shape, inner.stride(), inner.storage_offset(), dtype=inner.dtype, device=torch.device(PRETEND)
        )

    def __init__(self, inner: torch.Tensor) -> None:
        self.inner = inner

    def tolist(self) -> list[Any]:
        """Its numbers."""
        numbers: list[Any] = self.inner.tolist()
        return numbers

    @classmethod
    def __torch_dispatch__(
        cls, func: Any, types: object, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        return _compute(func, args, kwargs or {})


class _Factories(TorchDispatchMode):
    """Makes new tensors on the device too."""

    def __torch_dispatch__(
        self, func: Any, types: object, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        return _compute(func, args, kwargs or {})


def _compute(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """The operation on the numbers, its results where torch would put them."""
    if func is torch.ops.aten.copy_.default:  # besides _to_copy, the one operation between devices
        _bare(args[0]).copy_(_bare(args[1]))
        return args[0]
    given = [x for x in tree_flatten((args, kwargs))[0] if isinstance(x, torch.Tensor)]
    asked = kwargs.get("device")
    if asked is None:
        device = _common(func, given)
    else:
        device, kwargs = torch.device(asked).type, kwargs | {"device": torch.device("cpu")}
    found = func(*tree_map(_bare, args), **tree_map(_bare, kwargs))
    if device != "pretend":
        return found
    found = tree_map(lambda x: PretendTensor(x) if isinstance(x, torch.Tensor) else x, found)
    return found if asked is not None else return_and_correct_aliasing(func, args, kwargs, found)


def _common(func: Any, given: list[torch.Tensor]) -> str:
    """The one device of all tensors; those of the CPU without axes go with any."""
    devices = {x.device.type for x in given if x.dim() or isinstance(x, PretendTensor)}
    if len(devices) > 1:
        raise RuntimeError(f"{func} got tensors on different devices: {[(tuple(x.shape), x.device) for x in given]}")
    return next(iter(devices), "cpu")


def _bare(x: Any) -> Any:
    return x.inner if isinstance(x, PretendTensor) else x


@contextmanager
def pretend_device() -> Iterator[None]:
    """Within, `PRETEND` is a device that tensors and modules can be put on."""
    _setup_privateuseone_for_python_backend("pretend")
    with _Factories():
        yield
