"""Rows whitened by Kronecker factors equal the plain loop: the gradient in full, times explicit matrices, projected."""

import numpy as np
import torch
from torch import nn

from quantascope.attribution.blocks import find_blocks
from quantascope.attribution.engine import GradientEngine
from quantascope.attribution.losses import token_losses
from quantascope.attribution.preconditioning import FactorMeter, Kronecker
from quantascope.attribution.projection import Identity, TwoSided
from tests.attribution.preconditioned import (
    Map,
    assert_close,
    full_gradients,
    kinds,
    measured,
    models,
    neox,
    token_batch,
    wanted_rows,
    weighted_outputs,
)

DAMPING = 0.2


def dense(moment):
    """A factor as one explicit matrix."""
    return torch.diag(moment) if moment.dim() == 1 else torch.block_diag(*moment)


def explicit_root(matrix):
    """(M + damping · mean eigenvalue · 1)^−½ by way of numpy."""
    damped = matrix.numpy() + DAMPING * np.trace(matrix.numpy()) / len(matrix) * np.eye(len(matrix))
    values, vectors = np.linalg.eigh(damped)
    return torch.from_numpy(vectors @ np.diag(values**-0.5) @ vectors.T)


def whitened(factors, name, gradient):
    """By the marginals of the sum of Kronecker products, formed in full."""
    roles = factors.blocks[name].values()
    parts = [(dense(f.rows), dense(f.columns), f.weight) for f in roles]
    num_rows, num_columns = len(parts[0][0]), len(parts[0][1])
    product = sum(torch.kron(rows, columns) / weight for rows, columns, weight in parts)
    product = product.reshape(num_rows, num_columns, num_rows, num_columns)
    rows, columns = torch.einsum("icjc->ij", product), torch.einsum("rirj->ij", product)
    return explicit_root(rows / factors.num_units) @ gradient @ explicit_root(columns / columns.trace())


@models
@kinds
def test_kronecker_rows_are_whitened_gradients_projected(model, projection):
    model = model()
    blocks = find_blocks(model, "all").blocks
    factors = measured(model, blocks)
    batch = token_batch()
    gradients = full_gradients(model, blocks, token_losses, batch)
    engine = GradientEngine(model, Kronecker(base=projection, factors=factors, damping=DAMPING), blocks)
    found = engine.rows(batch, token_losses, batch.example)
    assert not engine.route.looped
    white = {name: whitened(factors, name, g) for name, g in gradients.items()}
    assert_close(found.rows, wanted_rows(blocks, projection, white))


@kinds
def test_sides_that_are_too_wide_keep_their_diagonal(projection):
    model = neox()
    blocks = find_blocks(model, "linear,embedding").blocks
    factors = measured(model, blocks, max_width=20)
    by_name = {b.name: b for b in blocks}
    for name, roles in factors.blocks.items():
        (found,) = roles.values()
        assert (found.columns.dim() == 1) == (by_name[name].columns > 20)
        is_embedding = by_name[name].kind == "embedding"
        assert (found.rows.dim() == 1) == (by_name[name].rows > 20 or is_embedding)
    batch = token_batch()
    gradients = full_gradients(model, blocks, token_losses, batch)
    white = {name: whitened(factors, name, g) for name, g in gradients.items()}
    engine = GradientEngine(model, Kronecker(base=projection, factors=factors, damping=DAMPING), blocks)
    assert_close(engine.rows(batch, token_losses, batch.example).rows, wanted_rows(blocks, projection, white))


def test_a_two_sided_projection_takes_the_factors_in():
    model = neox()
    blocks = find_blocks(model, "linear").blocks
    kronecker = Kronecker(base=TwoSided(dim_per_block=9), factors=measured(model, blocks))
    block = kronecker.block(
        blocks[0].name,
        number=0,
        shape=(blocks[0].rows, blocks[0].columns),
        dtype=torch.float64,
        device=torch.device("cpu"),
    )
    assert type(block).__name__ == "TwoSidedBlock"


@kinds
def test_whitening_makes_the_second_moment_the_identity(projection):
    """Rows of independent x and g with strongly unequal directions; the sketch keeps it up to its own noise."""
    torch.manual_seed(0)
    num_units, model = 40_000, Map(inputs=4, outputs=3)
    mixing = torch.randn(3, 3).double() * torch.tensor([5.0, 1.0, 0.2])
    model.words.weight = nn.Parameter(torch.randn(5, 4).double() * torch.tensor([9.0, 1.0, 0.3, 2.0]))
    batch = (torch.randint(0, 5, (num_units, 1)), torch.randn(num_units, 1, 3).double() @ mixing)
    blocks = find_blocks(model, "linear").blocks
    meter = FactorMeter(model, blocks)
    meter.add(batch, weighted_outputs)
    base = projection if isinstance(projection, Identity) else type(projection)(dim_per_block=6)
    moments = []
    for made in (base, Kronecker(base=base, factors=meter.factors(), damping=1e-9)):
        rows = GradientEngine(model, made, blocks).rows(batch, weighted_outputs).rows
        moments.append(rows.T @ rows / num_units)
    if not isinstance(projection, Identity):
        wanted = wanted_rows(blocks, base, {"map": torch.eye(15).double().reshape(15, 3, 5)})
        assert (moments[1] - wanted.T @ wanted).norm() < 0.05 * wanted.norm()  # sampling: √(15² / 40,000)
        return
    assert (moments[1] - torch.eye(15)).norm() < 0.1
    assert (moments[0] - torch.eye(15)).norm() > 10
