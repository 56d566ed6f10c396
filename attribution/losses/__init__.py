"""Losses, one per unit, in nats unless said otherwise: what gradient rows are the gradients of.

Each takes a model and a batch and gives one number per unit, as `GradientEngine.rows` asks: the batch's first axis is
the example, and a unit depends on its own example alone. Any function of that form is a loss too (`custom`).
"""

from typing import TYPE_CHECKING

import lazy_loader

if TYPE_CHECKING:
    from .classification import ClassificationBatch as ClassificationBatch
    from .classification import classification_losses as classification_losses
    from .completions import mean_losses as mean_losses
    from .completions import sum_losses as sum_losses
    from .contrast import CompletionPairs as CompletionPairs
    from .contrast import TokenContrasts as TokenContrasts
    from .contrast import completion_contrast_losses as completion_contrast_losses
    from .contrast import token_contrast_losses as token_contrast_losses
    from .custom import custom_losses as custom_losses
    from .diffusion import diffuse_tokens as diffuse_tokens
    from .margins import token_margins as token_margins
    from .masked import MaskedBatch as MaskedBatch
    from .masked import mask_tokens as mask_tokens
    from .masked import masked_losses as masked_losses
    from .preference import PreferenceBatch as PreferenceBatch
    from .preference import preference_losses as preference_losses
    from .regression import RegressionBatch as RegressionBatch
    from .regression import regression_losses as regression_losses
    from .spans import SpanBatch as SpanBatch
    from .spans import span_losses as span_losses
    from .spans import span_sums as span_sums
    from .tokens import TokenBatch as TokenBatch
    from .tokens import token_losses as token_losses

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "classification": ["ClassificationBatch", "classification_losses"],
        "completions": ["mean_losses", "sum_losses"],
        "contrast": ["CompletionPairs", "TokenContrasts", "completion_contrast_losses", "token_contrast_losses"],
        "custom": ["custom_losses"],
        "diffusion": ["diffuse_tokens"],
        "margins": ["token_margins"],
        "masked": ["MaskedBatch", "mask_tokens", "masked_losses"],
        "preference": ["PreferenceBatch", "preference_losses"],
        "regression": ["RegressionBatch", "regression_losses"],
        "spans": ["SpanBatch", "span_losses", "span_sums"],
        "tokens": ["TokenBatch", "token_losses"],
    },
)
