"""A model laid over all GPUs that a process sees, layer after layer, by accelerate's device map.

Every weight stays on its GPU: what accelerate would offload to the CPU or a disk has no gradient there, and is refused.
Knows torch's and accelerate's view of devices; not how weights are read.
"""

from __future__ import annotations

from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from ...errors import ConfigurationError

if TYPE_CHECKING:
    from .check import ModelFacts, ModelSource

_BYTES = {"float32": 4, "float64": 8, "bfloat16": 2, "float16": 2}
_ROOM = 0.9
"""Part of the free memory that weights may take; activations need the rest at least."""


def placement(source: ModelSource, facts: ModelFacts) -> dict[str, Any]:
    """What `from_pretrained` needs to spread a model; ConfigurationError where accelerate or memory is missing."""
    import torch

    if find_spec("accelerate") is None:
        raise ConfigurationError("--device spread needs accelerate, which is not installed: pip install accelerate.")
    free = sum(torch.cuda.mem_get_info(i)[0] for i in range(torch.cuda.device_count()))
    require_room((facts.num_parameters or 0) * _BYTES[source.dtype], free, source)
    return {"device_map": "balanced"}


def require_room(needed_bytes: int, free_bytes: int, source: ModelSource) -> None:
    """ConfigurationError for weights that the GPUs cannot hold."""
    if needed_bytes > _ROOM * free_bytes:
        raise ConfigurationError(
            f"{source.model} takes {needed_bytes / 1e9:.1f} GB as {source.dtype}; the GPUs that it may use have "
            f"{free_bytes / 1e9:.1f} GB free, of which weights may take nine tenths. Give more --gpus-per-worker, or "
            "--dtype bfloat16."
        )


def require_placed(model: Any, source: ModelSource) -> None:  # noqa: ANN401 - transformers' partial annotations
    """ConfigurationError where accelerate left a part of the model off the GPUs."""
    places = getattr(model, "hf_device_map", None) or {}
    if off := [name or "the model" for name, place in places.items() if str(place) in ("cpu", "disk", "meta")]:
        raise ConfigurationError(
            f"{source.model} does not fit on the GPUs that it may use: {off[0]} would be offloaded, and a gradient "
            "needs every weight in place. Give more --gpus-per-worker, or --dtype bfloat16."
        )
