"""Peers on the same model and batch, each where it is installed; none of them is a dependency."""

import copy
import warnings
from collections.abc import Callable
from typing import Any

import torch
from transformers import PreTrainedModel

from quantascope.attribution.losses import TokenBatch


def bergson_rows(model: PreTrainedModel, batch: TokenBatch, *, side: int) -> Callable[[], object] | None:
    """bergson's in-memory collector with side × side numbers per linear map, the head left out; None without bergson.

    As its own loop runs it: forward, losses per document, backward through activations, rows into a buffer.
    """
    try:
        from bergson.collector.in_memory_collector import InMemoryCollector
        from bergson.config.config import IndexConfig
        from bergson.gradients import GradientProcessor
    except ImportError:
        return None
    from datasets import Dataset

    num, length = batch.ids.shape
    embeddings = model.get_input_embeddings().requires_grad_(True)  # it takes its dtype from a trainable weight
    collector: Any = InMemoryCollector(
        model=model,
        data=Dataset.from_dict({"input_ids": batch.ids.tolist(), "length": [length] * num}),
        cfg=IndexConfig(run_path="unused"),
        processor=GradientProcessor(projection_dim=side),
        filter_modules="*embed_out*,*lm_head*",
    )

    embeddings.requires_grad_(False)

    def run() -> object:
        with collector:
            inputs = model.get_input_embeddings()(batch.ids).requires_grad_()
            logits = model(inputs_embeds=inputs, use_cache=False).logits[batch.example, batch.position - 1]
            losses = torch.nn.functional.cross_entropy(
                logits, batch.ids[batch.example, batch.position], reduction="none"
            )
            losses = losses.reshape(num, -1).mean(1)
            losses.sum().backward()
            collector.process_batch(list(range(num)), losses=losses)
        return collector.builder

    return run


def opacus_gradients(model: PreTrainedModel, batch: TokenBatch) -> Callable[[], object] | None:
    """opacus's per-example gradients of every weight that it knows a rule for, unprojected; None without opacus."""
    try:
        from opacus.grad_sample import GradSampleModule
    except ImportError:
        return None
    wrapped: Any = GradSampleModule(copy.deepcopy(model).requires_grad_(True).train(), loss_reduction="sum")

    warnings.filterwarnings("ignore", message="Full backward hook is firing")  # its embedding's inputs are integers

    def run() -> object:
        logits = wrapped(input_ids=batch.ids, use_cache=False).logits[batch.example, batch.position - 1]
        torch.nn.functional.cross_entropy(logits, batch.ids[batch.example, batch.position], reduction="sum").backward()
        gradients = [p.grad_sample for p in wrapped.parameters()]
        wrapped.zero_grad(set_to_none=True)
        return gradients

    return run
