"""Masked text diffusion (LLaDA: Nie et al. 2025, equation 3): hide a random share t, guess all of it, weigh by 1/t.

t and what is hidden depend on the seed and the example's own id alone. The loss itself is `masked.masked_losses`.
"""

from collections.abc import Sequence
from typing import Literal

import numpy as np
from jaxtyping import Bool, Int
from torch import Tensor

from .masked import MaskedBatch, hidden_batch, uniform


def diffuse_tokens(
    ids: Int[Tensor, "example position"],
    counts: Bool[Tensor, "example position"],
    keys: Sequence[str],
    *,
    mask_id: int,
    attention: Int[Tensor, "example position"] | None = None,
    reduction: Literal["mean", "sum"] = "mean",
    seed: int = 0,
) -> MaskedBatch:
    """Draw t from (0, 1] for each example and hide each of its tokens with probability t; the loss is Σ CE / t.

    `counts` says which tokens may be hidden (no padding; for a prompt with an answer, equation 5, only the answer's),
    `keys` are the examples' ids. With reduction mean the loss is divided by the number of tokens that may be hidden,
    also the ones that are not: nats per token. Its mean over seeds is the paper's bound on −log p. An example in which
    the draw hides nothing has loss 0. Without `attention`, every position counts as a token. The ids are copied.
    """
    seen = ids.cpu().numpy().copy()
    allowed = counts.cpu().numpy()
    hidden: list[tuple[int, int, float]] = []
    for number, key in enumerate(keys):
        time = 1 - float(uniform(seed, key, "time", 1)[0])
        chosen = np.flatnonzero(allowed[number] & (uniform(seed, key, "hide", seen.shape[1]) < time))
        seen[number, chosen] = mask_id
        weight = 1 / (time * (int(allowed[number].sum()) if reduction == "mean" else 1)) if len(chosen) else 0.0
        hidden += [(number, int(p), weight) for p in chosen]
    return hidden_batch(ids, seen, hidden, attention)
