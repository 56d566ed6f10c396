"""One step of an optimiser as a linear map of the gradients, with what was realised: SGD, Adam, AdamW.

With g the gradient that is stepped (clipped, with the decay that belongs inside it), m the momentum, w the weight:

    m ← β m + k g        Δ = −scale ⊙ (a g + b m) − decoupled · w

Adam (Kingma & Ba 2015, algorithm 1): k = 1 − β₁, a = 0, b = 1, scale = η / ((1 − β₁ᵗ) (√v̂ₜ + ε)). AdamW (Loshchilov &
Hutter 2019): decoupled = η λ. SGD: scale = η; with momentum μ and dampening τ, β = μ, k = 1 − τ (1 at the first step),
and a, b are 0, 1, or with Nesterov's form 1, μ; without momentum a = 1, b = 0.

Knows torch's optimisers and the form of their state; nothing of kinds.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ...errors import ConfigurationError, RunMismatchError

ACCEPTED = (torch.optim.SGD, torch.optim.Adam, torch.optim.AdamW)


@dataclass(frozen=True, slots=True, kw_only=True)
class MomentumStep:
    """What is known before the step."""

    beta: float
    keep: float
    """k above."""
    sign: float
    """−1 where the optimiser maximises."""
    coupled: float
    """λ of decay inside the gradient."""
    decoupled: float
    """η λ of decay beside it (AdamW), or past the momentum (SGD without momentum, or in Nesterov's form)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightStep:
    """What is known after the step."""

    direct: float
    """a above."""
    from_momentum: float
    """b above."""
    scale: Tensor | float
    """In the parameter's shape, or one number for all."""


def readable(optimizer: Any) -> torch.optim.Optimizer:  # noqa: ANN401 - whatever was given is named
    """The optimiser itself, taken out of accelerate's wrapper.

    ConfigurationError, naming it, for an optimiser whose step is not a known linear map of the gradients.
    """
    inner = getattr(optimizer, "optimizer", optimizer)
    if type(inner) not in ACCEPTED:
        raise ConfigurationError(
            f"The exact ledger cannot read the state of {type(inner).__module__}.{type(inner).__qualname__}: it must "
            f"know how a step follows from the gradients. Accepted are {', '.join(c.__name__ for c in ACCEPTED)} of "
            "torch.optim."
        )
    for group in inner.param_groups:
        if group.get("amsgrad"):
            raise ConfigurationError(
                f"{type(inner).__name__} with amsgrad=True keeps the greatest second moment of all steps; the exact "
                "ledger accepts amsgrad=False."
            )
    return inner


def momentum_step(optimizer: torch.optim.Optimizer, group: Mapping[str, Any], *, is_first: bool) -> MomentumStep:
    """How this group's momentum takes up the gradients of the step to come."""
    rate, decay = float(group["lr"]), float(group["weight_decay"])
    sign = -1.0 if group.get("maximize") else 1.0
    if isinstance(optimizer, torch.optim.SGD):
        momentum = float(group["momentum"])
        return MomentumStep(
            beta=momentum,
            keep=1.0 if is_first else 1 - float(group["dampening"]),
            sign=sign,
            coupled=decay if momentum else 0.0,
            decoupled=0.0 if momentum and not group["nesterov"] else rate * decay,
        )
    beta = float(group["betas"][0])
    is_decoupled = isinstance(optimizer, torch.optim.AdamW) or bool(group.get("decoupled_weight_decay"))
    return MomentumStep(
        beta=beta,
        keep=1 - beta,
        sign=sign,
        coupled=0.0 if is_decoupled else decay,
        decoupled=rate * decay if is_decoupled else 0.0,
    )


def weight_step(
    optimizer: torch.optim.Optimizer, group: Mapping[str, Any], state: Mapping[str, Any], dtype: torch.dtype
) -> WeightStep:
    """How this group's parameter moved in the step just made; `state` is that parameter's."""
    rate = float(group["lr"])
    if isinstance(optimizer, torch.optim.SGD):
        momentum = float(group["momentum"])
        if momentum == 0:
            return WeightStep(direct=1.0, from_momentum=0.0, scale=rate)
        if group["nesterov"]:
            return WeightStep(direct=1.0, from_momentum=momentum, scale=rate)
        return WeightStep(direct=0.0, from_momentum=1.0, scale=rate)
    first, second = (float(beta) for beta in group["betas"])
    steps = float(state["step"])
    # the optimiser's own order of operations, so that rounding is its own too
    denominator = (state["exp_avg_sq"].to(dtype).sqrt() / (1 - second**steps) ** 0.5).add_(float(group["eps"]))
    scale = denominator.reciprocal_().mul_(rate / (1 - first**steps))
    return WeightStep(direct=0.0, from_momentum=1.0, scale=scale)


def steps_made(optimizer: torch.optim.Optimizer) -> int:
    """How many steps the optimiser's state speaks of: 0 where it has none (SGD keeps no count: at most 1)."""
    counts = [float(s["step"]) if "step" in s else 1.0 for s in optimizer.state.values() if s]
    return int(max(counts, default=0))


def will_step(optimizer: torch.optim.Optimizer, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> bool:
    """Whether this call of the optimiser's step makes one; ConfigurationError for calls that cannot be booked."""
    if any(a is not None for a in (*args[1:], kwargs.get("closure"))):
        raise ConfigurationError("The ledger cannot book optimizer.step(closure): compute the gradients before.")
    if getattr(optimizer, "grad_scale", None) is not None:
        raise ConfigurationError(
            "The optimiser unscales gradients by itself (fused): call scaler.unscale_(optimizer) before "
            "scaler.step, or make the optimiser with fused=False."
        )
    overflow = getattr(optimizer, "found_inf", None)
    return overflow is None or not float(overflow)


def require_same_start(optimizer: torch.optim.Optimizer, num_steps: int) -> None:
    """An optimiser that has made steps which the ledger knows nothing of has momentum of no account."""
    made = steps_made(optimizer)
    if made > num_steps:
        raise RunMismatchError(
            f"The optimiser has made {made} steps, the ledger has booked {num_steps}: load the ledger's state "
            "(load_state_dict), or open the ledger before the first step."
        )
