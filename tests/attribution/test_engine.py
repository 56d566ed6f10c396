"""Every row equals the plain per-example loop: the full gradient by autograd in float64, then the same projection."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn.functional import cross_entropy, mse_loss

from quantascope.attribution.blocks import find_blocks
from quantascope.attribution.engine import GradientEngine, gradient_rows
from quantascope.attribution.losses import TokenBatch, mean_losses, token_losses
from quantascope.attribution.projection import TensorSketch, TwoSided
from quantascope.errors import CoverageError
from tests.tiny import tiny_neox

PROJECTIONS = [
    TensorSketch(dim_per_block=16),
    TensorSketch(dim_per_block=97),
    TensorSketch(dim_per_block=7),
    TwoSided(side=4),
    TwoSided.full(),
]
TOLERANCE = 1e-10  # float64 rounding over a few thousand sums leaves 1e-14


def plain_row(engine, projection, loss):
    """The oracle: autograd's own weight gradients, projected as explicit matrices."""
    engine.model.requires_grad_(True)
    parts = []
    for block in engine.blocks:
        modules = [engine.model.get_submodule(name) for name in block.modules]
        in_full = projection.block(
            block.name,
            in_width=block.in_width,
            out_width=block.out_width,
            bias=block.bias,
            dtype=torch.float64,
            device=torch.device("cpu"),
        )
        weight = modules[0].weight
        (gradient,) = torch.autograd.grad(loss, weight, retain_graph=True)
        if type(modules[0]).__name__ == "Conv1D":
            gradient = gradient.T
        if block.bias:
            bias = sum(torch.autograd.grad(loss, m.bias, retain_graph=True)[0] for m in modules)
            gradient = torch.cat([gradient, bias[:, None]], dim=1)
        parts.append(in_full.project(gradient[None])[0])
    engine.model.requires_grad_(False)
    return torch.cat(parts)


def assert_equal_rows(rows, wanted):
    error = (rows - wanted).norm(dim=1) / wanted.norm(dim=1)
    assert error.max() < TOLERANCE


@pytest.mark.parametrize("projection", PROJECTIONS, ids=repr)
def test_token_rows_are_the_gradients_of_each_tokens_own_loss(projection):
    model = tiny_neox(vocab_size=50, dtype="float64")
    ids = torch.randint(0, 50, (3, 20), generator=torch.Generator().manual_seed(1))
    batch = TokenBatch(ids=ids, example=torch.tensor([2, 0, 0, 1, 2, 2]), position=torch.tensor([19, 3, 9, 5, 1, 4]))
    engine = GradientEngine(model, projection)
    found = engine.rows(batch, token_losses, batch.example)
    wanted = []
    for example, position in zip(batch.example, batch.position, strict=True):
        model.requires_grad_(True)
        logits = model(input_ids=ids[example][None]).logits[0, position - 1]
        loss = cross_entropy(logits, ids[example, position])
        wanted.append(plain_row(engine, projection, loss))
    assert_equal_rows(found.rows, torch.stack(wanted))
    norms = torch.stack([found.rows[:, c].norm(dim=1) for c in engine.columns], dim=1)
    torch.testing.assert_close(found.block_norms, norms)


@pytest.mark.parametrize("projection", PROJECTIONS[:4:3], ids=repr)
def test_window_rows_are_the_gradients_of_the_mean_loss(projection):
    model = tiny_neox(vocab_size=50, dtype="float64")
    ids = torch.randint(0, 50, (2, 12), generator=torch.Generator().manual_seed(2))
    position = torch.tensor([1, 2, 3, 5, 8])
    batch = TokenBatch(ids=ids, example=torch.tensor([0, 0, 0, 1, 1]), position=position)
    engine = GradientEngine(model, projection)
    found = engine.rows(batch, mean_losses)
    wanted = []
    for example, chosen in ((0, position[:3]), (1, position[3:])):
        model.requires_grad_(True)
        logits = model(input_ids=ids[example][None]).logits[0]
        wanted.append(plain_row(engine, projection, cross_entropy(logits[chosen - 1], ids[example, chosen])))
    assert_equal_rows(found.rows, torch.stack(wanted))


@pytest.mark.parametrize("projection", PROJECTIONS[:4:3], ids=repr)
def test_the_shares_of_positions_add_up_to_the_row_and_later_ones_have_none(projection):
    engine = GradientEngine(tiny_neox(vocab_size=50, dtype="float64"), projection)
    ids = torch.randint(0, 50, (1, 12), generator=torch.Generator().manual_seed(2))
    batch = TokenBatch(ids=ids, example=torch.tensor([0]), position=torch.tensor([8]))
    shares = engine.position_rows(batch, token_losses)
    row = engine.rows(batch, token_losses).rows
    assert_equal_rows(shares.sum(0)[None], row)
    assert shares[:8].norm(dim=1).min() > 0
    assert shares[8:].abs().max() < 1e-15 * row.norm()


class Shared(nn.Module):
    """One weight in two modules, and one module called twice."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.last = nn.Linear(5, 5), nn.Linear(5, 5), nn.Linear(5, 2, bias=False)
        self.second.weight = self.first.weight

    def forward(self, x):
        return self.last(self.first(torch.tanh(self.second(torch.tanh(self.first(x))))))


@pytest.mark.parametrize("shape", [(4, 5), (4, 3, 5), (4, 2, 3, 5)])
def test_any_module_and_loss_with_shared_weights_and_repeated_calls(shape):
    torch.manual_seed(0)
    model = Shared().double()
    x = torch.randn(shape, dtype=torch.float64)

    def losses(model, x):
        return mse_loss(model(x), torch.zeros(()).double().expand_as(model(x)), reduction="none").flatten(1).sum(1)

    engine = GradientEngine(model, TensorSketch(dim_per_block=11))
    assert [b.modules for b in engine.blocks] == [("first", "second"), ("last",)]
    found = gradient_rows(model, x, losses, projection=TensorSketch(dim_per_block=11))
    wanted = []
    for n in range(4):
        model.requires_grad_(True)
        wanted.append(plain_row(engine, TensorSketch(dim_per_block=11), losses(model, x[n : n + 1])[0]))
    assert_equal_rows(found.rows, torch.stack(wanted))


@settings(max_examples=15, deadline=None, derandomize=True)
@given(st.data())
def test_rows_do_not_depend_on_the_batch_that_they_are_in(data):
    model = tiny_neox(vocab_size=50, dtype="float64")
    engine = GradientEngine(model, TensorSketch(dim_per_block=16))
    num_windows, length = data.draw(st.integers(1, 4)), data.draw(st.integers(2, 12))
    ids = torch.randint(0, 50, (num_windows, length), generator=torch.Generator().manual_seed(3))
    unit = st.tuples(st.integers(0, num_windows - 1), st.integers(1, length - 1))
    chosen = data.draw(st.lists(unit, min_size=1, max_size=6))
    example, position = (torch.tensor(column) for column in zip(*chosen, strict=True))
    batch = TokenBatch(ids=ids, example=example, position=position)
    together = engine.rows(batch, token_losses, example, num_examples=num_windows).rows
    for row, (e, p) in zip(together, chosen, strict=True):
        padding = torch.zeros(1, data.draw(st.integers(0, 3)), dtype=torch.long)
        alone = TokenBatch(
            ids=torch.cat([ids[e : e + 1, : p + 1], padding], dim=1),
            example=torch.zeros(1, dtype=torch.long),
            position=torch.tensor([p]),
        )
        assert_equal_rows(row[None], engine.rows(alone, token_losses, alone.example).rows)


def test_float32_rows_are_close_to_float64_rows():
    ids = torch.randint(0, 50, (8, 32), generator=torch.Generator().manual_seed(4))
    example = torch.arange(8)
    batch = TokenBatch(ids=ids, example=example, position=torch.full((8,), 31))
    rows = [
        GradientEngine(tiny_neox(vocab_size=50, dtype=d), TensorSketch(dim_per_block=16)).rows(
            batch, token_losses, example
        )
        for d in ("float32", "float64")
    ]
    # the float64 model holds the float32 weights, so that only the arithmetic differs
    error = (rows[0].rows.double() - rows[1].rows).norm(dim=1) / rows[1].rows.norm(dim=1)
    assert error.median() < 1e-5
    assert error.max() < 1e-3


@pytest.mark.parametrize("projection", [TensorSketch(dim_per_block=12), TwoSided(side=4)], ids=repr)
def test_inner_products_are_unbiased_over_seeds(projection):
    generator = torch.Generator().manual_seed(5)
    gradients = torch.randn(2, 9, 14, generator=generator, dtype=torch.float64)
    gradients[1] += gradients[0]
    true = (gradients[0] * gradients[1]).sum()
    found = []
    for seed in range(600):
        block = type(projection)(**({"dim_per_block": 12} if "dim" in repr(projection) else {"side": 4}), seed=seed)
        rows = block.block(
            "b", in_width=13, out_width=9, bias=True, dtype=torch.float64, device=torch.device("cpu")
        ).project(gradients)
        found.append(rows[0] @ rows[1])
    found = torch.stack(found)
    assert abs(found.mean() - true) < 4 * found.std() / 600**0.5  # four standard errors


def test_the_papers_blocks_leave_out_embeddings_head_and_norms():
    model = tiny_neox()
    coverage = find_blocks(model)
    assert len(coverage.blocks) == 8
    assert set(coverage.left_out.values()) == {"embedding", "output head", "norm"}
    assert not coverage.uncovered
    covered = sum(p.numel() for n, p in model.named_parameters() if n not in coverage.left_out)
    assert coverage.covered_share == pytest.approx(covered / sum(p.numel() for p in model.parameters()))
    assert len(find_blocks(model, "linear").blocks) == 9
    assert len(find_blocks(tiny_neox(tied=True), "linear").blocks) == 8


def test_parameters_without_rows_are_named():
    model = nn.Sequential(nn.Linear(3, 3), nn.Conv1d(3, 3, 1), nn.LSTM(3, 3))
    coverage = find_blocks(model)
    assert coverage.uncovered["1.weight"] == "Conv1d"
    with pytest.raises(CoverageError, match=r"1\.weight \(Conv1d\)"):
        coverage.require()
    with pytest.raises(CoverageError, match="no linear map"):
        find_blocks(nn.Sequential(nn.LSTM(3, 3)))


def test_losses_that_use_no_linear_map_are_refused():
    model = nn.Linear(3, 3)
    with pytest.raises(CoverageError, match="do not use"):
        gradient_rows(
            model, torch.ones(2, 3), lambda m, x: x.sum(1).requires_grad_(), projection=TensorSketch(dim_per_block=4)
        )


@pytest.mark.parametrize("losses", [token_losses, mean_losses])
def test_the_output_heads_rows_are_right_too(losses):
    """Several tokens of a window: the head must not be handed only the positions whose losses are asked for."""
    model = tiny_neox(vocab_size=50, dtype="float64")
    projection = TensorSketch(dim_per_block=16)
    engine = GradientEngine(model, projection, find_blocks(model, "linear").blocks)
    ids = torch.randint(0, 50, (2, 12), generator=torch.Generator().manual_seed(2))
    batch = TokenBatch(ids=ids, example=torch.tensor([0, 0, 1]), position=torch.tensor([3, 9, 5]))
    found = engine.rows(batch, losses, batch.example if losses is token_losses else None)
    model.requires_grad_(True)
    wanted = [plain_row(engine, projection, loss) for loss in losses(model, batch)]
    assert_equal_rows(found.rows, torch.stack(wanted))


def test_a_model_that_flattens_examples_and_positions_is_refused_and_not_silently_wrong():
    from transformers import OPTConfig, OPTForCausalLM

    model = OPTForCausalLM(
        OPTConfig(
            vocab_size=50,
            hidden_size=16,
            word_embed_proj_dim=16,
            ffn_dim=32,
            num_hidden_layers=1,
            num_attention_heads=2,
            max_position_embeddings=32,
        )
    )
    engine = GradientEngine(model, TensorSketch(dim_per_block=16))
    for num_windows in (1, 3):
        batch = TokenBatch(
            ids=torch.ones(num_windows, 8, dtype=torch.long),
            example=torch.arange(num_windows),
            position=torch.full((num_windows,), 5),
        )
        with pytest.raises(CoverageError, match="flattens or drops the example axis"):
            engine.rows(batch, token_losses, batch.example)


def test_an_input_without_an_example_axis_is_refused():
    class Flat(nn.Module):
        def __init__(self):
            super().__init__()
            self.map = nn.Linear(3, 3)

        def forward(self, x):
            return self.map(x.sum(0, keepdim=True)) * x

    with pytest.raises(CoverageError, match="saw 1 rows for 2 examples"):
        gradient_rows(Flat(), torch.ones(2, 3), lambda m, x: m(x).sum(1), projection=TensorSketch(dim_per_block=4))
