"""Numbers on their way to a device and back, without making either side wait.

On a GPU both copies go through page-locked memory beside the work that is queued; elsewhere nothing is copied. Knows
arrays and tensors only.
"""

import numpy as np
import torch
from torch import Tensor


def on_device(values: np.ndarray | Tensor, device: torch.device) -> Tensor:
    """An array as a tensor on a device; work queued there later finds it, and nobody waits for work queued before."""
    tensor = torch.from_numpy(values) if isinstance(values, np.ndarray) else values
    if device.type == "cuda" and tensor.device.type == "cpu":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)


class Arrivals:
    """Tensors on their way from a device: `add` starts a copy, `all` waits once for every copy."""

    def __init__(self) -> None:
        self._coming: list[tuple[Tensor, ...]] = []
        self._devices: set[torch.device] = set()

    def add(self, *tensors: Tensor) -> None:
        """Start to copy; the tensors are read when the device comes to it."""
        queued = {t.device for t in tensors if t.device.type == "cuda"}
        self._devices |= queued
        # to page-locked memory, which torch holds until the copy is done
        self._coming.append(tuple(t.to("cpu", non_blocking=t.device in queued) for t in tensors))

    def all(self) -> list[tuple[Tensor, ...]]:
        """What was added, in order, on the CPU; the next call begins anew."""
        for device in self._devices:
            torch.cuda.synchronize(device)
        found, self._coming = self._coming, []
        self._devices.clear()
        return found
