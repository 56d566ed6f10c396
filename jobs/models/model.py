"""A causal language model, loaded: its weights checked and fingerprinted, with its tokenizer.

Knows transformers. What can be found out beforehand is in `check`. Knows nothing of gradients, data or Ray. No
weight is read through pickle, and no code of a model's own runs unless the caller allowed it at a pinned revision.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from ...errors import BadWeightsError, ConfigurationError, ModelNotFoundError
from ..data.tokens import require_fast, tokenizer_fingerprint
from ..hub import first_line, quiet
from .check import ModelFacts, ModelSource, check_model, find_folder, require_safetensors, unreadable
from .spread import placement, require_placed

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    import torch

__all__ = [
    "LoadedModel",
    "ModelFacts",
    "ModelSource",
    "bad_weights",
    "check_model",
    "load_model",
    "model_fingerprint",
]
_PIECE_BYTES = 1 << 26  # bounds the memory that hashing and checking add to the model's own


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class LoadedModel:
    """A causal language model in evaluation mode, no weight requiring a gradient, and its fast tokenizer."""

    model: Any
    tokenizer: Any
    facts: ModelFacts
    fingerprint: str
    """`model_fingerprint` of the weights as loaded: another dtype is another fingerprint."""
    tokenizer_fingerprint: str


def load_model(source: ModelSource) -> LoadedModel:
    """Check, load and fingerprint the model and its tokenizer.

    Raises what `check_model` raises, and BadWeightsError for weights that are missing, unreadable, NaN or infinite.
    """
    facts = check_model(source)
    # The commit that was checked, in case the branch has moved since.
    pinned = replace(source, revision=facts.revision or source.revision)
    folder, _ = find_folder(pinned, weights=True)
    require_safetensors(source, folder)
    device = _resolve_device(source.device)
    placed = placement(source, facts) if device == "spread" else {}
    with quiet():
        tokenizer = load_tokenizer(source, folder, facts)
        model = _load_weights(source, folder, facts, placed)
    if placed:
        require_placed(model, source)
    else:
        model = model.to(device)
    model = model.eval().requires_grad_(requires_grad=False)
    if bad := bad_weights(model):
        shown = ", ".join(bad[:5]) + (f" and {len(bad) - 5} more" if len(bad) > 5 else "")
        raise BadWeightsError(
            f"{source.model} has NaN or infinite weights, loaded as {source.dtype}, in {shown}. "
            "Load it as float32 if another dtype was asked for; else take another checkpoint."
        )
    return LoadedModel(
        model=model,
        tokenizer=tokenizer,
        facts=facts,
        fingerprint=model_fingerprint(model),
        tokenizer_fingerprint=tokenizer_fingerprint(tokenizer),
    )


def model_fingerprint(model: torch.nn.Module) -> str:
    """Return the SHA-256, in hex, of the model's parameters and saved buffers.

    It covers names in sorted order, shapes, dtypes and bytes; tied weights count once, under their first name. The
    device does not matter. Bytes are streamed, so that no copy of the model is made.
    """
    digest = hashlib.sha256()
    for name, tensor in sorted(_named_weights(model)):
        digest.update(json.dumps([name, list(tensor.shape), str(tensor.dtype)]).encode())
        for piece in _pieces(tensor):
            digest.update(piece.contiguous().cpu().view(_byte_dtype()).numpy().data)
    return digest.hexdigest()


def bad_weights(model: torch.nn.Module) -> list[str]:
    """Return the names of parameters and saved buffers with a NaN or infinite entry, sorted."""
    return [
        name
        for name, tensor in sorted(_named_weights(model))
        if tensor.is_floating_point() and not all(bool(piece.isfinite().all()) for piece in _pieces(tensor))
    ]


def _named_weights(model: torch.nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    saved = model.state_dict().keys()
    for name, parameter in model.named_parameters():
        yield name, parameter.detach()
    for name, buffer in model.named_buffers():
        if name in saved:
            yield name, buffer.detach()


def _pieces(tensor: torch.Tensor) -> Iterator[torch.Tensor]:
    flat = tensor.reshape(-1)
    length = _PIECE_BYTES // tensor.element_size()
    for first in range(0, flat.numel(), length):
        yield flat[first : first + length]


def _byte_dtype() -> torch.dtype:
    import torch

    return torch.uint8


def _resolve_device(device: str) -> str:
    import torch

    if device == "spread" and torch.cuda.device_count() > 1:
        return device
    if device in ("auto", "spread"):
        return "cuda" if torch.cuda.is_available() else "cpu"
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise ConfigurationError(
            f"device is {device!r}, but torch sees no GPU here. Accepted here are auto, spread and cpu."
        )
    return device


def load_tokenizer(source: ModelSource, folder: Path, facts: ModelFacts) -> Any:  # noqa: ANN401 - partial annotations
    """The fast tokenizer in a model's folder; ModelNotFoundError for one that cannot be loaded."""
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(
            folder, local_files_only=True, trust_remote_code=facts.needs_remote_code
        )
    except Exception as error:
        raise ModelNotFoundError(
            f"The tokenizer of {source.model} cannot be loaded ({first_line(error)}). Fetch or save it again."
        ) from error
    require_fast(tokenizer)
    return tokenizer


def _load_weights(source: ModelSource, folder: Path, facts: ModelFacts, placed: dict[str, Any]) -> Any:  # noqa: ANN401 - partial annotations
    import torch
    from safetensors import SafetensorError
    from transformers import AutoModelForCausalLM

    try:
        model, info = AutoModelForCausalLM.from_pretrained(
            folder,
            dtype=getattr(torch, source.dtype),
            use_safetensors=True,
            local_files_only=True,
            trust_remote_code=facts.needs_remote_code,
            output_loading_info=True,
            **placed,
        )
    except (OSError, ValueError, RuntimeError, KeyError, SafetensorError) as error:
        raise unreadable(source, error) from error
    if missing := sorted(info["missing_keys"]):
        raise BadWeightsError(
            f"The weights of {source.model} lack {len(missing)} of the architecture's parameters, first {missing[0]}; "
            "they would be random. Save the whole model with save_pretrained, head included."
        )
    return model
