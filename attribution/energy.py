"""Where in a model its gradients are: each block's share of the squared norm, on text that the model itself writes.

Knows causal language models by their logits; needs no data, so that a plan can be made before any is read.
"""

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from .blocks import Block
from .engine import GradientEngine
from .losses import TokenBatch, token_losses
from .projection import TensorSketch

_WINDOWS, _TOKENS, _PER_WINDOW = 8, 32, 4
_SKETCH = 64
_BY_SIZE = 0.1
"""Part of the shares that follows the blocks' sizes: a block that the sample misses is not starved."""


@torch.no_grad()
def own_text(model: nn.Module, vocab_size: int, *, seed: int = 0) -> Int[Tensor, "window token"]:
    """Windows that the model samples at temperature 1 from a random first token each; seeded, on the CPU."""
    device = next(model.parameters()).device
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(0, vocab_size, (_WINDOWS, 1), generator=generator)
    for _ in range(_TOKENS - 1):
        logits = model(input_ids=ids.to(device)).logits[:, -1].float().cpu()
        chances = logits.softmax(-1).nan_to_num(1 / vocab_size)
        ids = torch.cat([ids, torch.multinomial(chances, 1, generator=generator)], dim=1)
    return ids.to(device)


def energy_shares(
    model: nn.Module, blocks: tuple[Block, ...], *, vocab_size: int, seed: int = 0
) -> Float[np.ndarray, " block"]:
    """Mean share of each block in a token-loss gradient's squared norm, read off short sketches; they add up to 1.

    A tenth goes by size, and all of it where no gradient is finite.
    """
    ids = own_text(model, vocab_size, seed=seed)
    example = torch.arange(_WINDOWS).repeat_interleave(_PER_WINDOW)
    place = torch.randint(1, _TOKENS, example.shape, generator=torch.Generator().manual_seed(seed))
    example, place = example.to(ids.device), place.to(ids.device)
    engine = GradientEngine[TokenBatch](model, TensorSketch(dim_per_block=_SKETCH, seed=seed), blocks)
    norms = engine.rows(
        TokenBatch(ids=ids, example=example, position=place), token_losses, example, num_examples=_WINDOWS
    ).block_norms
    squares = norms.double().square()
    shares = squares / squares.sum(1, keepdim=True)
    shares = shares[shares.isfinite().all(1)]
    sizes = np.array([b.numel for b in blocks], np.float64)
    by_size = sizes / sizes.sum()
    if not len(shares):
        return by_size
    return np.asarray((1 - _BY_SIZE) * shares.mean(0).cpu().numpy() + _BY_SIZE * by_size)
