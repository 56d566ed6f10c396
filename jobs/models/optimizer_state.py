"""The second moment that a checkpoint's optimiser holds, read from beside the weights.

transformers' Trainer writes `optimizer.pt`. It is a pickle: torch reads it with weights_only, which makes tensors and
plain containers and calls nothing else. Knows that file and how Trainer orders its parameters.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError  # noqa: TID251 - the name of an error, and nothing that reads
from typing import Any

import torch
from torch import Tensor

from ...attribution.preconditioning import second_moments
from ...errors import BadWeightsError, ConfigurationError
from ..hub import first_line
from .model import LoadedModel

OPTIMIZER_FILE = "optimizer.pt"


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class OptimizerMoments:
    """v̂ by parameter, and the optimiser's ε."""

    moments: Mapping[str, Tensor]
    epsilon: float


def read_moments(loaded: LoadedModel) -> OptimizerMoments:
    """The second moment beside a loaded model's weights.

    Raises ConfigurationError where there is none, or none that fits the model; BadWeightsError where it is unreadable.
    """
    path = Path(loaded.facts.folder) / OPTIMIZER_FILE
    if not path.is_file():
        raise ConfigurationError(
            f"--precondition second-moment needs the optimiser's state, and {loaded.facts.name} has no "
            f"{OPTIMIZER_FILE}. Give a checkpoint that transformers' Trainer wrote without save_only_model, or choose "
            "--precondition kfac, which measures its own moments."
        )
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, EOFError, UnpicklingError, ValueError) as error:
        raise BadWeightsError(
            f"{path} cannot be read as tensors alone ({first_line(error)}). Compare it with the original, and fetch or "
            "save it again."
        ) from error
    if not isinstance(state, dict):
        raise BadWeightsError(f"{path} holds a {type(state).__name__}, no optimiser's state. Save it again.")
    groups = state.get("param_groups") or [{}]
    return OptimizerMoments(
        moments=second_moments(state, loaded.model, names=_trainer_names(state, loaded.model)),
        epsilon=float(groups[0].get("eps", 1e-8)),
    )


def _trainer_names(state: Mapping[str, Any], model: Any) -> list[str] | None:  # noqa: ANN401 - transformers' models
    """Names in the order of Trainer's two groups, with weight decay and without; None where the state has names."""
    groups = state.get("param_groups") or []
    if len(groups) != 2 or all("param_names" in group for group in groups):
        return None
    from transformers import Trainer

    decayed = set(Trainer.get_decay_parameter_names(None, model))  # of no trainer: it asks nothing of itself
    names = [name for name, _ in model.named_parameters()]
    ordered = [[n for n in names if n in decayed], [n for n in names if n not in decayed]]
    if [len(part) for part in ordered] != [len(group["params"]) for group in groups]:
        raise ConfigurationError(
            f"The optimiser's two groups hold {' and '.join(str(len(g['params'])) for g in groups)} parameters; by "
            f"Trainer's rule the model has {' and '.join(str(len(part)) for part in ordered)} with weight decay and "
            "without, so which is which is not known. Use the state in Python: attribution.preconditioning."
        )
    return [*ordered[0], *ordered[1]]
