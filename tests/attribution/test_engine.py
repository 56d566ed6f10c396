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
from quantascope.attribution.projection import Identity, TensorSketch, TwoSided
from quantascope.errors import ConfigurationError, CoverageError
from tests.plain_loop import assert_equal_rows, plain_rows
from tests.tiny import tiny_neox

PROJECTIONS = [
    TensorSketch(dim_per_block=16),
    TensorSketch(dim_per_block=97),
    TensorSketch(dim_per_block=7),
    TwoSided(dim_per_block=16),
    Identity(),
]


def engine_of(model, projection, choice="all"):
    return GradientEngine(model, projection, find_blocks(model, choice).blocks)


def ids_of(*shape, seed=1):
    return torch.randint(0, 50, shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("choice", ["paper", "all"])
@pytest.mark.parametrize("projection", PROJECTIONS, ids=repr)
def test_token_rows_are_the_gradients_of_each_tokens_own_loss(projection, choice):
    model = tiny_neox(vocab_size=50, dtype="float64")
    ids = ids_of(3, 20)
    batch = TokenBatch(ids=ids, example=torch.tensor([2, 0, 0, 1, 2, 2]), position=torch.tensor([19, 3, 9, 5, 1, 4]))
    engine = engine_of(model, projection, choice)
    found = engine.rows(batch, token_losses, batch.example)
    assert_equal_rows(found.rows, plain_rows(engine, batch, token_losses))
    norms = torch.stack([found.rows[:, c].norm(dim=1) for c in engine.columns], dim=1)
    torch.testing.assert_close(found.block_norms, norms)
    own = cross_entropy(
        model(input_ids=ids).logits[batch.example, batch.position - 1], ids[batch.example, batch.position]
    )
    assert found.losses.mean().item() == pytest.approx(own.item())


@pytest.mark.parametrize("projection", PROJECTIONS[:4:3], ids=repr)
def test_window_rows_are_the_gradients_of_the_mean_loss(projection):
    model = tiny_neox(vocab_size=50, dtype="float64")
    batch = TokenBatch(ids=ids_of(2, 12), example=torch.tensor([0, 0, 0, 1, 1]), position=torch.tensor([1, 2, 3, 5, 8]))
    engine = engine_of(model, projection)
    assert_equal_rows(engine.rows(batch, mean_losses).rows, plain_rows(engine, batch, mean_losses))


@pytest.mark.parametrize("projection", PROJECTIONS[:4:3], ids=repr)
def test_contributions_add_up_to_the_row_and_later_positions_have_none(projection):
    engine = engine_of(tiny_neox(vocab_size=50, dtype="float64"), projection)
    batch = TokenBatch(ids=ids_of(2, 12), example=torch.tensor([0, 1]), position=torch.tensor([8, 11]))
    made = engine.contributions(batch, token_losses, num_examples=2, num_positions=12)
    row = engine.rows(batch, token_losses, num_examples=2).rows
    assert_equal_rows(made.rows.sum(1) + made.unplaced, row)
    assert made.unplaced.norm() == 0  # every parameter of this model has positions, norms too
    assert made.rows[0, :8].norm(dim=1).min() > 0
    assert made.rows[0, 8:].abs().max() < 1e-15 * row.norm()


class Shared(nn.Module):
    """One weight in two modules with a bias each, and one module called twice."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.last = nn.Linear(5, 5), nn.Linear(5, 5), nn.Linear(5, 2, bias=False)
        self.second.weight = self.first.weight

    def forward(self, x):
        return self.last(self.first(torch.tanh(self.second(torch.tanh(self.first(x))))))


def squares(model, x):
    made = model(x)
    return mse_loss(made, torch.zeros_like(made), reduction="none").flatten(1).sum(1)


@pytest.mark.parametrize("shape", [(4, 5), (4, 3, 5), (4, 2, 3, 5)])
def test_any_module_and_loss_with_shared_weights_and_repeated_calls(shape):
    torch.manual_seed(0)
    model = Shared().double()
    x = torch.randn(shape, dtype=torch.float64)
    engine = engine_of(model, TensorSketch(dim_per_block=11))
    assert [(b.name, b.modules) for b in engine.blocks] == [
        ("first", ("first", "second")),
        ("first.bias", ("first",)),
        ("second.bias", ("second",)),
        ("last", ("last",)),
    ]
    found = gradient_rows(model, x, squares, projection=TensorSketch(dim_per_block=11))
    assert_equal_rows(found.rows, plain_rows(engine, x, squares))


@settings(max_examples=15, deadline=None, derandomize=True)
@given(st.data())
def test_rows_do_not_depend_on_the_batch_that_they_are_in(data):
    model = tiny_neox(vocab_size=50, dtype="float64")
    engine = engine_of(model, TensorSketch(dim_per_block=16))
    num_windows, length = data.draw(st.integers(1, 4)), data.draw(st.integers(2, 12))
    ids = ids_of(num_windows, length, seed=3)
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
        assert_equal_rows(row[None], engine.rows(alone, token_losses, alone.example, num_examples=1).rows)


def test_float32_rows_are_close_to_float64_rows():
    example = torch.arange(8)
    batch = TokenBatch(ids=ids_of(8, 32, seed=4), example=example, position=torch.full((8,), 31))
    rows = [
        engine_of(tiny_neox(vocab_size=50, dtype=d), TensorSketch(dim_per_block=16)).rows(batch, token_losses, example)
        for d in ("float32", "float64")
    ]
    # the float64 model holds the float32 weights, so that only the arithmetic differs
    error = (rows[0].rows.double() - rows[1].rows).norm(dim=1) / rows[1].rows.norm(dim=1)
    assert error.median() < 1e-5
    assert error.max() < 1e-3


def test_bfloat16_rows_point_where_float32_rows_do():
    example = torch.arange(8)
    batch = TokenBatch(ids=ids_of(8, 32, seed=4), example=example, position=torch.full((8,), 31))
    rows = []
    for dtype in (torch.bfloat16, torch.float32):
        model = tiny_neox(vocab_size=50, width=64).to(torch.bfloat16).to(dtype)
        rows.append(engine_of(model, TensorSketch(dim_per_block=64)).rows(batch, token_losses, example).rows)
    assert rows[0].dtype == torch.float32
    assert torch.cosine_similarity(*rows).mean() > 0.999


def test_the_papers_blocks_leave_out_embeddings_head_and_norms():
    model = tiny_neox()
    coverage = find_blocks(model)
    assert len(coverage.blocks) == 8
    assert set(coverage.left_out.values()) == {"embedding", "head", "norm"}
    covered = sum(p.numel() for n, p in model.named_parameters() if n not in coverage.left_out)
    assert coverage.covered_share == pytest.approx(covered / sum(p.numel() for p in model.parameters()))
    assert len(find_blocks(model, "linear").blocks) == 9
    assert len(find_blocks(tiny_neox(tied=True), "linear").blocks) == 8
    everything = find_blocks(model, "all")
    assert everything.covered_share == 1
    assert sum(b.numel for b in everything.blocks) == sum(p.numel() for p in model.parameters())


def test_blocks_are_chosen_by_kind_pattern_and_last_layers():
    model = tiny_neox(layers=3)
    names = [b.name for b in find_blocks(model, "norm").blocks]
    assert len(names) == 7
    assert all("norm" in n for n in names)
    assert [b.name for b in find_blocks(model, "*.attention.dense,last:2").blocks] == [
        "gpt_neox.layers.1.attention.dense",
        "gpt_neox.layers.2.attention.dense",
    ]
    assert {b.name.split(".")[2] for b in find_blocks(model, "last:1").blocks} == {"2"}
    for wrong in ("", "nothing", "last:0", "last:x", "last:1,last:2"):
        with pytest.raises(ConfigurationError, match="accepted are"):
            find_blocks(model, wrong)


def test_the_backward_pass_stops_at_the_earliest_chosen_block():
    model = tiny_neox(vocab_size=50, layers=4, dtype="float64")
    batch = TokenBatch(ids=ids_of(2, 12), example=torch.tensor([0, 1]), position=torch.tensor([8, 11]))
    engine = engine_of(model, TensorSketch(dim_per_block=16), "last:1")
    engine.rows(batch, token_losses, num_examples=2)
    reached = []
    hooks = [
        layer.register_forward_hook(lambda m, a, out: reached.append(out.requires_grad))
        for layer in model.gpt_neox.layers
    ]
    engine.rows(batch, token_losses, num_examples=2)
    for hook in hooks:
        hook.remove()
    assert reached == [False, False, False, True]


def test_parameters_that_can_have_no_gradient_are_named():
    model = nn.Sequential(nn.Linear(3, 3))
    model.register_parameter("table", nn.Parameter(torch.zeros(3, dtype=torch.int8), requires_grad=False))
    with pytest.warns(UserWarning, match="1 parameters can have no gradient"):
        coverage = find_blocks(model, "all")
    assert coverage.uncovered == {"table": "stored as torch.int8"}
    with pytest.raises(CoverageError, match="table"):
        coverage.require()
    with pytest.raises(CoverageError, match="no parameter"):
        find_blocks(nn.Sequential(nn.LayerNorm(3)), "linear")


def test_losses_that_use_no_parameter_are_refused():
    with pytest.raises(CoverageError, match="do not use"):
        gradient_rows(
            nn.Linear(3, 3),
            torch.ones(2, 3),
            lambda m, x: x.sum(1).requires_grad_(),
            projection=TensorSketch(dim_per_block=4),
        )


def test_losses_that_mix_examples_are_refused():
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4, track_running_stats=False), nn.Linear(4, 1))
    x = torch.randn(5, 3, generator=torch.Generator().manual_seed(0))
    with pytest.raises(CoverageError, match="depends on another one"):
        gradient_rows(model, x, squares, projection=TensorSketch(dim_per_block=4))
    with pytest.raises(CoverageError, match="depends on another one"):
        gradient_rows(
            nn.Linear(3, 1), x, lambda m, x: (m(x) - m(x).mean()).flatten(), projection=TensorSketch(dim_per_block=2)
        )


def test_a_batch_norm_with_running_statistics_has_rows_in_eval_mode():
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Dropout(0.5), nn.ReLU(inplace=True), nn.Linear(4, 1))
    model = model.double().train()
    x = torch.randn(5, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    with pytest.warns(UserWarning, match="1 dropout layers on"):
        engine = engine_of(model, Identity())
    assert not model.training
    assert_equal_rows(engine.rows(x, squares, num_examples=5).rows, plain_rows(engine, x, squares))


@pytest.mark.parametrize("losses", [token_losses, mean_losses])
def test_the_output_heads_rows_are_right_too(losses):
    """Several tokens of a window: the head must not be handed only the positions whose losses are asked for."""
    engine = engine_of(tiny_neox(vocab_size=50, dtype="float64"), TensorSketch(dim_per_block=16), "linear")
    batch = TokenBatch(ids=ids_of(2, 12), example=torch.tensor([0, 0, 1]), position=torch.tensor([3, 9, 5]))
    found = engine.rows(batch, losses, batch.example if losses is token_losses else None)
    assert_equal_rows(found.rows, plain_rows(engine, batch, losses))


class Past(nn.Module):
    """Uses a weight past its module, which no tap can see."""

    def __init__(self):
        super().__init__()
        self.map, self.seen = nn.Linear(3, 3, bias=False), nn.Linear(3, 3)

    def forward(self, x):
        return self.seen(x @ self.map.weight.T)


def test_a_weight_that_is_used_past_its_module_is_found_by_proof_and_not_silently_zero():
    model = Past().double()
    x = torch.randn(4, 2, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    engine = engine_of(model, Identity())
    assert_equal_rows(engine.rows(x, squares, num_examples=4).rows, plain_rows(engine, x, squares))
    assert [engine.route.way(i) for i in range(2)] == ["copies", "tap"]


def test_what_runs_under_no_vmap_is_found_unit_by_unit():
    class Recurrent(nn.Module):
        def __init__(self):
            super().__init__()
            self.cell, self.last = nn.LSTM(3, 4, batch_first=True), nn.Linear(4, 2)

        def forward(self, x):
            return self.last(self.cell(x)[0])

    model = Recurrent().double()
    x = torch.randn(4, 5, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    engine = engine_of(model, TensorSketch(dim_per_block=16))
    assert_equal_rows(engine.rows(x, squares, num_examples=4).rows, plain_rows(engine, x, squares))
    assert [engine.route.way(i) for i in range(2)] == ["loop", "tap"]


def test_a_later_batch_that_holds_examples_otherwise_is_refused():
    class Both(nn.Module):
        def __init__(self):
            super().__init__()
            self.map = nn.Linear(3, 3)
            self.flat = False

        def forward(self, x):
            made = self.map(x.flatten(0, 1)[:-1] if self.flat else x)
            return made.sum() * x

    model = Both()
    engine = engine_of(model, Identity())
    x = torch.ones(3, 2, 3)
    engine.rows(x, lambda m, x: (m.map(x) ** 2).sum((1, 2)), num_examples=3)
    model.flat = True
    with pytest.raises(CoverageError, match="saw 5 rows for 3 examples"):
        engine.rows(x, lambda m, x: m(x).sum((1, 2)), num_examples=3)


def test_non_finite_gradients_stay_in_their_own_rows():
    model = nn.Linear(3, 2).double()
    x = torch.ones(3, 3, dtype=torch.float64)
    engine = engine_of(model, Identity())
    engine.rows(x, squares, num_examples=3)
    x[1, 0] = float("nan")
    rows = engine.rows(x, squares, num_examples=3).rows
    assert rows[[0, 2]].isfinite().all()
    assert not rows[1].isfinite().all()


@pytest.mark.parametrize("norm", [nn.LayerNorm, nn.RMSNorm])
def test_a_norms_rows_are_right_beside_an_example_that_is_not_finite(norm):
    model = nn.Sequential(nn.Linear(4, 4), norm(4), nn.Linear(4, 2)).double()
    x = torch.randn(3, 5, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    engine = engine_of(model, Identity())
    wanted = engine.rows(x, squares, num_examples=3).rows
    x[0, 0] = float("nan")
    rows = engine.rows(x, squares, num_examples=3).rows
    assert not rows[0].isfinite().all()
    assert_equal_rows(rows[1:], wanted[1:])


class InPlace(nn.Module):
    """What every tapped kind gives is changed in place at once; with `inputs`, what a map has read is, too."""

    def __init__(self, *, inputs=False):
        super().__init__()
        self.inputs, self.words, self.norm = inputs, nn.Embedding(7, 4), nn.LayerNorm(4)
        self.filter, self.map, self.last = nn.Conv1d(4, 4, 3, padding=1), nn.Linear(4, 4), nn.Linear(4, 2, bias=False)

    def forward(self, ids):
        x = self.norm(self.words(ids).mul_(1.5)).sin_()
        x = self.filter(x.mT).relu_().mT
        made = self.map(x).tanh_()
        if self.inputs:
            x.mul_(2)
        return self.last(made).mul_(3)


@pytest.mark.parametrize("projection", [TensorSketch(dim_per_block=8), Identity()], ids=["sketch", "identity"])
def test_activations_that_are_changed_in_place_have_their_rows(projection):
    torch.manual_seed(0)
    ids = torch.randint(0, 7, (3, 6), generator=torch.Generator().manual_seed(0))
    engine = engine_of(InPlace().double(), projection)
    assert_equal_rows(engine.rows(ids, squares, num_examples=3).rows, plain_rows(engine, ids, squares))
    assert {engine.route.way(n) for n in range(len(engine.blocks))} == {"tap"}


def test_a_model_that_destroys_what_its_gradient_needs_is_refused():
    ids = torch.randint(0, 7, (3, 6), generator=torch.Generator().manual_seed(0))
    with pytest.raises(CoverageError, match="could not be trained either: write that operation out of place"):
        engine_of(InPlace(inputs=True).double(), Identity()).rows(ids, squares, num_examples=3)
