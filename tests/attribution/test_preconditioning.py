"""Preconditioned rows equal the plain loop: autograd's gradient in full, times explicit matrices, then projected."""

import copy

import numpy as np
import pytest
import torch
from torch import nn

from quantascope.attribution.blocks import find_blocks
from quantascope.attribution.engine import GradientEngine
from quantascope.attribution.losses import TokenBatch, mean_losses, token_losses
from quantascope.attribution.preconditioning import (
    PRECONDITIONERS,
    FactorMeter,
    Kronecker,
    KroneckerFactors,
    SecondMoment,
    block_moments,
    factorisation_error,
    fisher_whitener,
    precondition_projection,
    precondition_rows,
    second_moments,
)
from quantascope.attribution.preconditioning.factors import Factors
from quantascope.attribution.projection import Identity, TensorSketch, TwoSided
from quantascope.attribution.whitening import Whitener, WhiteningConfig, unit_rows
from quantascope.errors import ConfigurationError
from tests.tiny import tiny_neox

VOCABULARY = 50
DAMPING = 0.2
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


def measured(model, blocks, **options):
    meter = FactorMeter(model, blocks, **options)
    batch = token_batch(seed=7)
    meter.add(batch, token_losses, batch.example)
    return meter.factors()


def assert_close(found, wanted):
    assert ((found - wanted).norm(dim=1) / wanted.norm(dim=1)).max() < TOLERANCE


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


def test_accumulators_are_the_explicit_sums_over_positions():
    torch.manual_seed(0)
    model = Map()
    index, weight = torch.randint(0, 5, (6, 7)), torch.randn(6, 7, 3).double()
    weight[:, 5:] = 0  # padding: no gradient arrives there
    meter = FactorMeter(model, find_blocks(model, "all").blocks)
    for part in (slice(0, 1), slice(1, 6)):
        meter.add((index[part], weight[part]), weighted_outputs)
    factors = meter.factors()
    x, g = model.words.weight[index], weight
    at_words = g @ model.map.weight
    x = torch.cat([x, torch.ones_like(x[..., :1])], dim=-1)
    reached = [(n, t) for n in range(6) for t in range(5)]
    counts = torch.zeros(5).double()
    for n, t in reached:
        counts[index[n, t]] += 1
    assert factors.num_units == 6
    wanted = {
        "map": (sum(torch.outer(g[p], g[p]) for p in reached)[None], sum(torch.outer(x[p], x[p]) for p in reached)),
        "words": (counts, sum(torch.outer(at_words[p], at_words[p]) for p in reached)),
    }
    for name, role in (("map", "map"), ("words", "word")):
        (found,) = factors.blocks[name].values()
        assert factors.blocks[name].keys() == {role}
        torch.testing.assert_close(found.rows, wanted[name][0])
        torch.testing.assert_close(found.columns[0], wanted[name][1].detach())
        assert found.weight == 30


def test_every_backward_pass_of_a_forward_counts_its_own_positions():
    """Units that share a forward pass give the same factors as each unit by itself; parameters in full too."""
    model = neox()
    blocks = find_blocks(model, "all").blocks
    batch = token_batch(seed=7)
    together = measured(model, blocks)
    apart = FactorMeter(model, blocks)
    for example, position in zip(batch.example, batch.position, strict=True):
        one = TokenBatch(ids=batch.ids[example][None], example=torch.tensor([0]), position=position[None])
        apart.add(one, token_losses, one.example)
    gradients = full_gradients(model, blocks, token_losses, batch)
    assert_same_factors(together, apart.factors())
    norm = "gpt_neox.layers.0.input_layernorm"
    squares = gradients[norm][:, 0].square().sum(0)
    torch.testing.assert_close(together.blocks[norm]["full"].columns, squares)
    assert together.blocks[norm]["full"].weight == pytest.approx(float(squares.sum()))


def assert_same_factors(found, wanted):
    assert found.blocks.keys() == wanted.blocks.keys()
    for name, roles in wanted.blocks.items():
        assert found.blocks[name].keys() == roles.keys()
        for role, factors in roles.items():
            torch.testing.assert_close(found.blocks[name][role].rows, factors.rows)
            torch.testing.assert_close(found.blocks[name][role].columns, factors.columns)
            assert found.blocks[name][role].weight == pytest.approx(factors.weight)


def test_gradients_formed_in_full_give_both_marginals():
    model = neox()
    blocks = find_blocks(model).blocks
    meter = FactorMeter(model, blocks)
    for number in range(len(blocks)):
        meter._engine.route.demote(number)
    batch = token_batch()
    meter.add(batch, token_losses, batch.example)
    gradients = full_gradients(model, blocks, token_losses, batch)
    for name, roles in meter.factors().blocks.items():
        assert roles.keys() == {"full"}
        torch.testing.assert_close(roles["full"].rows[0], torch.einsum("nic,njc->ij", gradients[name], gradients[name]))
        torch.testing.assert_close(
            roles["full"].columns[0], torch.einsum("nri,nrj->ij", gradients[name], gradients[name])
        )


def test_a_tied_embedding_has_two_roles():
    model = neox(tied=True, layers=1)
    factors = measured(model, find_blocks(model, "embedding").blocks)
    (roles,) = factors.blocks.values()
    assert roles.keys() == {"map", "word"}


def test_experts_outputs_keep_one_matrix_per_expert():
    """Units of one position each: there a routed expert's gradient is g xᵀ, and all of them see the same x."""
    model = tiny_mixtral()
    blocks = find_blocks(model, "*gate_up_proj").blocks
    ids = torch.randint(0, VOCABULARY, (20, 2), generator=torch.Generator().manual_seed(0))
    batch = TokenBatch(ids=ids, example=torch.arange(20), position=torch.ones(20, dtype=torch.long))
    meter = FactorMeter(model, blocks)
    meter.add(batch, token_losses, batch.example)
    factors = meter.factors()
    seen = []
    handle = model.model.layers[0].mlp.experts.register_forward_pre_hook(lambda _m, args: seen.append(args[0]))
    (gradient,) = full_gradients(model, blocks, token_losses, batch).values()
    handle.remove()
    x = seen[0].detach().reshape(20, 2, 8)[:, 0]
    by_expert = gradient.reshape(20, 3, 12, 8)
    found = factors.blocks[blocks[0].name]["map"]
    wanted = torch.einsum("neic,nejc,n->eij", by_expert, by_expert, 1 / x.square().sum(1))
    assert (wanted.diagonal(dim1=1, dim2=2).sum(1) > 0).all()
    torch.testing.assert_close(found.rows, wanted)
    torch.testing.assert_close(found.columns[0], 2 * x.T @ x)  # two experts per token
    assert found.weight == 40
    assert not factors.unseen


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


def test_merged_and_stored_factors_are_those_of_all_units():
    model = neox()
    blocks = find_blocks(model, "linear").blocks
    batches = [token_batch(seed=s) for s in (1, 2)]
    parts, whole = [], FactorMeter(model, blocks)
    for batch in batches:
        part = FactorMeter(model, blocks)
        part.add(batch, token_losses, batch.example)
        whole.add(batch, token_losses, batch.example)
        parts.append(part.factors())
    merged = KroneckerFactors.merged(*parts)
    assert merged.num_units == 10
    assert_same_factors(merged, whole.factors())
    again = KroneckerFactors.from_arrays(merged.to_arrays())
    assert again.digest == merged.digest != parts[0].digest
    arrays = merged.to_arrays()
    del arrays[f"{blocks[0].name}/map/columns"]
    with pytest.raises(ConfigurationError, match=r"lack .*columns; measure"):
        KroneckerFactors.from_arrays(arrays)
    other = measured(model, find_blocks(model, "paper").blocks)
    with pytest.raises(ConfigurationError, match="different blocks"):
        KroneckerFactors.merged(merged, other)


def test_a_block_without_gradient_is_named_and_left_as_it_is():
    blocks = one_map(rows=torch.zeros(3).double(), columns=torch.zeros(2).double(), weight=0.0)
    factors = KroneckerFactors(blocks=blocks, num_units=4)
    assert factors.unseen == ("map",)
    block = Kronecker(base=Identity(), factors=factors).block(
        "map", number=0, shape=(3, 2), dtype=torch.float64, device=torch.device("cpu")
    )
    gradient = torch.arange(6.0).double().reshape(1, 3, 2)
    assert torch.equal(block.project(gradient), gradient.flatten(1))


def one_map(**sides):
    whole = {"rows": torch.ones(3).double(), "columns": torch.ones(2).double(), "weight": 1.0}
    return {"map": {"map": Factors(**whole | sides)}}


def test_factors_that_no_second_moment_has_are_refused():
    with pytest.raises(ConfigurationError, match=r"row factor of map has NaN.*finite"):
        KroneckerFactors(blocks=one_map(rows=torch.tensor([1.0, torch.nan, 1.0])), num_units=1)
    with pytest.raises(ConfigurationError, match=r"column factor of map is no second moment.*-1"):
        KroneckerFactors(blocks=one_map(columns=torch.tensor([1.0, -1.0])), num_units=1)
    with pytest.raises(ConfigurationError, match="no units"):
        KroneckerFactors(blocks=one_map(), num_units=0)
    crooked = torch.tensor([[[1.0, 5.0], [5.0, 1.0]]]).double()
    factors = KroneckerFactors(blocks=one_map(columns=crooked), num_units=1)
    with pytest.raises(ConfigurationError, match="eigenvalue -2"):
        factors.scales("map", (3, 2), damping=0.1)
    with pytest.raises(ConfigurationError, match=r"lack block other; they have map\."):
        factors.scales("other", (3, 2), damping=0.1)
    with pytest.raises(ConfigurationError, match="Block map is 2 × 3, its Kronecker factors are for 3 × 2"):
        factors.scales("map", (2, 3), damping=0.1)
    with pytest.raises(ConfigurationError, match="damping is 0"):
        Kronecker(base=Identity(), factors=factors, damping=0.0)
    broken = neox()
    broken.gpt_neox.embed_in.weight.data[:] = torch.nan
    with pytest.raises(ConfigurationError, match="losses and weights are finite"):
        measured_without_proof(broken)


def measured_without_proof(model):
    meter = FactorMeter(model, find_blocks(model, "linear").blocks)
    meter._engine.proof.take_for_granted()
    batch = token_batch()
    meter.add(batch, token_losses, batch.example, num_examples=3)
    return meter.factors()


def test_rows_of_other_factors_are_described_as_another_map():
    factors = KroneckerFactors(blocks=one_map(), num_units=1)
    others = KroneckerFactors(blocks=one_map(rows=torch.ones(3).double() + 1e-12), num_units=1)
    base = TensorSketch(dim_per_block=4)
    made = [
        Kronecker(base=base, factors=factors),
        Kronecker(base=base, factors=others),
        Kronecker(base=base, factors=factors, damping=0.3),
        Kronecker(base=Identity(), factors=factors),
        SecondMoment(base=base, moments={"map": torch.ones(3, 2)}),
        SecondMoment(base=base, moments={"map": torch.ones(3, 2) * 2}),
        SecondMoment(base=base, moments={"map": torch.ones(3, 2)}, epsilon=0.1),
        base,
    ]
    described = [repr(m.describe()) for m in made]
    assert len(set(described)) == len(made)
    assert Kronecker(base=base, factors=factors).describe() == made[0].describe()


def random_moments(model, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return {n: torch.rand(p.shape, generator=generator).double() ** 3 for n, p in model.named_parameters()}


@models
@kinds
@pytest.mark.parametrize("max_exact", [0, 100_000], ids=["factored", "exact"])
def test_second_moment_rows_are_divided_gradients_projected(model, projection, max_exact):
    model, epsilon = model(), 1e-3
    blocks = find_blocks(model, "all").blocks
    moments = block_moments(blocks, random_moments(model))
    batch = token_batch()
    gradients = full_gradients(model, blocks, token_losses, batch)
    made = SecondMoment(base=projection, moments=moments, epsilon=epsilon, max_exact=max_exact)
    engine = GradientEngine(model, made, blocks)
    found = engine.rows(batch, token_losses, batch.example).rows
    assert not engine.route.looped
    divided = {}
    for block in blocks:
        divisor = moments[block.name].sqrt() + epsilon
        kept_whole = isinstance(projection, Identity) or block.numel <= 23
        if not (max_exact or kept_whole or block.rows == 1):
            square = divisor**2
            divisor = (torch.outer(square.sum(1), square.sum(0)) / square.sum()).sqrt()
        divided[block.name] = gradients[block.name] / divisor
    small = [b for b in blocks if 16 < b.numel <= 23]
    assert not small  # else the two bases differ in what they keep whole
    assert_close(found, wanted_rows(blocks, projection, divided))


def test_a_second_moment_of_rank_one_factorises_without_error():
    torch.manual_seed(0)
    rows, columns = torch.rand(7, 1).double() + 0.1, torch.rand(1, 5).double() + 0.1
    assert factorisation_error(rows @ columns, epsilon=1e-12) < 1e-10
    assert factorisation_error(torch.rand(1, 9).double()) < 1e-15
    assert factorisation_error(torch.zeros(3, 3)) == 0
    moment = torch.tensor([[1.0, 4.0], [4.0, 1.0]]).double()
    # the factorised one is 2.5 everywhere, against 1 and 4: half of the entries each
    wanted = np.sqrt(((1 / 2.5**0.5 - 1) ** 2 + 4 * (1 / 2.5**0.5 - 0.5) ** 2) / 2)
    assert factorisation_error(moment, epsilon=1e-12) == pytest.approx(wanted)


def test_the_factorisation_error_is_that_of_preconditioned_gradients():
    torch.manual_seed(0)
    moment = torch.rand(6, 5).double() ** 4
    gradients = torch.randn(20_000, 6, 5).double() * moment.sqrt()
    made = [
        SecondMoment(base=TensorSketch(dim_per_block=29), moments={"map": moment}, max_exact=exact).block(
            "map", number=0, shape=(6, 5), dtype=torch.float64, device=torch.device("cpu")
        )
        for exact in (0, 30)
    ]
    exact = made[1].project(gradients)
    error = (made[0].project(gradients) - exact).norm() / exact.norm()
    assert error == pytest.approx(factorisation_error(moment), rel=0.05)  # 29 buckets for 30 numbers keep norms


def trained(model, optimizer, steps=3):
    batch = token_batch()
    for _ in range(steps):
        optimizer.zero_grad()
        mean_losses(model, batch).sum().backward()
        optimizer.step()
    return optimizer


def two_groups(model):
    """Matrices and vectors apart, as trainers do for weight decay."""
    matrices = [(n, p) for n, p in model.named_parameters() if p.dim() > 1]
    vectors = [(n, p) for n, p in model.named_parameters() if p.dim() < 2]
    return matrices, vectors


def test_second_moments_come_from_an_optimiser_or_its_state():
    model = neox(layers=1)
    beta = 0.8
    matrices, vectors = two_groups(model)
    groups = [{"params": [p for _, p in part]} for part in (matrices, vectors)]
    optimizer = trained(model, torch.optim.AdamW(groups, betas=(0.9, beta), lr=1e-3))
    found = second_moments(optimizer, model)
    assert set(found) == {n for n, _ in model.named_parameters()}
    name, parameter = matrices[1]
    torch.testing.assert_close(found[name], optimizer.state[parameter]["exp_avg_sq"] / (1 - beta**3))
    names = [n for n, _ in (*matrices, *vectors)]
    other = neox(layers=1)
    assert_same(second_moments(optimizer.state_dict(), other, names=names), found)
    with pytest.raises(ConfigurationError, match=r"2 groups .* no names.*give names="):
        second_moments(optimizer.state_dict(), other)
    with pytest.raises(ConfigurationError, match="give names= in the optimiser's order"):
        second_moments(optimizer.state_dict(), other, names=names[::-1])
    with pytest.raises(ConfigurationError, match="there are 2 names"):
        second_moments(optimizer.state_dict(), other, names=names[:2])
    with pytest.raises(ConfigurationError, match="parameters that the model does not"):
        second_moments(optimizer, other)


def test_second_moments_by_name_and_by_the_models_order():
    model = neox(layers=1)
    first, second = copy.deepcopy(model), copy.deepcopy(model)
    plain = trained(first, torch.optim.Adam(first.parameters()))
    matrices, vectors = two_groups(second)
    by_name = trained(second, torch.optim.Adam([{"params": matrices}, {"params": vectors}]))
    assert_same(second_moments(plain.state_dict(), model), second_moments(by_name.state_dict(), model))


def assert_same(found, wanted):
    assert found.keys() == wanted.keys()
    for name, moment in wanted.items():
        assert torch.equal(found[name], moment)


def test_one_step_of_adam_has_the_squared_gradient_as_second_moment():
    model = neox(layers=1)
    optimizer = trained(model, torch.optim.Adam(model.parameters(), lr=0.0), steps=1)
    for name, moment in second_moments(optimizer, model).items():
        torch.testing.assert_close(moment, model.get_parameter(name).grad.square())


def test_optimisers_and_moments_that_cannot_serve_are_refused():
    model = neox(layers=1)
    with pytest.raises(ConfigurationError, match=r"no second moment for .*momentum_buffer"):
        second_moments(trained(model, torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)), model)
    with pytest.raises(ConfigurationError, match="after at least one step"):
        second_moments(torch.optim.Adam(model.parameters()), model)
    with pytest.raises(ConfigurationError, match="has state and param_groups; this one has model"):
        second_moments({"model": {}}, model)
    blocks = find_blocks(model, "linear").blocks
    moments = random_moments(model)
    del moments[blocks[1].parameters[0]]
    with pytest.raises(ConfigurationError, match=rf"the first is {blocks[1].parameters[0]}"):
        block_moments(blocks, moments)
    for value in (-1e-9, torch.nan):
        with pytest.raises(ConfigurationError, match="of map has negative, NaN or infinite"):
            SecondMoment(base=Identity(), moments={"map": torch.full((2, 2), value)})
    with pytest.raises(ConfigurationError, match="epsilon is 0"):
        SecondMoment(base=Identity(), moments={}, epsilon=0.0)
    made = SecondMoment(base=Identity(), moments={"map": torch.ones(2, 3)})
    for name, message in (("other", "No second moment for block other"), ("map", "Block map is 3 × 2")):
        with pytest.raises(ConfigurationError, match=message):
            made.block(name, number=0, shape=(3, 2), dtype=torch.float64, device=torch.device("cpu"))


def test_preconditioners_are_chosen_by_name():
    rows = np.random.default_rng(0).standard_normal((40, 6)).astype(np.float32)
    base = TensorSketch(dim_per_block=4)
    factors = KroneckerFactors(blocks=one_map(), num_units=1)
    moments = {"map": torch.ones(3, 2)}
    for name in PRECONDITIONERS:
        made = precondition_projection(name, base, factors=factors, moments=moments)
        assert (made is base) == (name not in ("kfac", "second-moment"))
        found = precondition_rows(name, rows)(rows)
        wanted = {"unit": unit_rows(rows), "fisher": fisher_whitener(rows).apply(rows)}.get(name, rows)
        np.testing.assert_array_equal(found, wanted)
    wanted = Whitener.fit(rows, WhiteningConfig(strength="full", damping=0.3)).apply(rows)
    np.testing.assert_array_equal(precondition_rows("fisher", rows, damping=0.3)(rows), wanted)
    for name, message in (("kfac", "needs factors"), ("second-moment", "this checkpoint has none"), ("x", "accepted")):
        with pytest.raises(ConfigurationError, match=message):
            precondition_projection(name, base)
    with pytest.raises(ConfigurationError, match="accepted are none, unit, fisher, kfac, second-moment"):
        precondition_rows("x", rows)
