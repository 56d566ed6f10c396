"""Models, batches and autograd's own gradients that tests of preconditioning share."""

import pytest
import torch
from torch import nn

from quantascope.attribution.losses import TokenBatch, token_losses
from quantascope.attribution.preconditioning import FactorMeter
from quantascope.attribution.preconditioning.factors import Factors
from quantascope.attribution.projection import Identity, TensorSketch, TwoSided
from tests.tiny import tiny_neox

VOCABULARY = 50
TOLERANCE = 1e-10  # float64; whitening by a damping of 0.2 loses no digit of note
PROJECTIONS = [TwoSided(dim_per_block=16), TensorSketch(dim_per_block=23), Identity()]
kinds = pytest.mark.parametrize("projection", PROJECTIONS, ids=lambda p: type(p).__name__)


def tiny_mixtral():
    from transformers import MixtralConfig, MixtralForCausalLM

    config = MixtralConfig(
        vocab_size=VOCABULARY,
        hidden_size=8,
        intermediate_size=6,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        num_local_experts=3,
        num_experts_per_tok=2,
    )
    config._experts_implementation = "eager"
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return MixtralForCausalLM(config).double().eval()


def neox(**options):
    return tiny_neox(vocab_size=VOCABULARY, width=8, dtype="float64", **options)


MODELS = {"neox": neox, "tied": lambda: neox(tied=True, layers=1), "mixtral": tiny_mixtral}
models = pytest.mark.parametrize("model", MODELS.values(), ids=MODELS.keys())


def token_batch(seed=1):
    ids = torch.randint(0, VOCABULARY, (3, 12), generator=torch.Generator().manual_seed(seed))
    return TokenBatch(ids=ids, example=torch.tensor([2, 0, 0, 1, 2]), position=torch.tensor([11, 3, 9, 5, 1]))


def full_gradients(model, blocks, losses, batch):
    """Autograd's own gradient of each loss, one matrix per block."""
    names = [p for b in blocks for p in b.parameters]
    parameters = [model.get_parameter(p).requires_grad_() for p in names]
    found = {b.name: [] for b in blocks}
    for loss in losses(model, batch):
        gradients = torch.autograd.grad(loss, parameters, retain_graph=True, allow_unused=True)
        full = {
            n: (torch.zeros_like(p) if g is None else g)[None]
            for n, p, g in zip(names, parameters, gradients, strict=True)
        }
        for block in blocks:
            found[block.name].append(block.matrix(full)[0])
    model.requires_grad_(False)
    return {name: torch.stack(parts) for name, parts in found.items()}


def wanted_rows(blocks, projection, gradients):
    cpu = torch.device("cpu")
    return torch.cat(
        [
            projection.block(b.name, number=i, shape=(b.rows, b.columns), dtype=torch.float64, device=cpu).project(
                gradients[b.name]
            )
            for i, b in enumerate(blocks)
        ],
        dim=1,
    )


def assert_close(found, wanted):
    assert ((found - wanted).norm(dim=1) / wanted.norm(dim=1)).max() < TOLERANCE


def one_map(**sides):
    whole = {"rows": torch.ones(3).double(), "columns": torch.ones(2).double(), "weight": 1.0}
    return {"map": {"map": Factors(**whole | sides)}}


class Map(nn.Module):
    """One linear map and one embedding, whose factors are known."""

    def __init__(self, inputs=4, outputs=3):
        super().__init__()
        self.words = nn.Embedding(5, inputs)
        self.map = nn.Linear(inputs, outputs)
        self.double()


def weighted_outputs(model, batch):
    """A loss whose gradient at the map's output is the given weight, at each position."""
    index, weight = batch
    return (model.map(model.words(index)) * weight).flatten(1).sum(1)


def measured(model, blocks, **options):
    meter = FactorMeter(model, blocks, **options)
    batch = token_batch(seed=7)
    meter.add(batch, token_losses, batch.example)
    return meter.factors()
