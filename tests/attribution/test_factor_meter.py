"""What a meter adds up over batches is the explicit sum over positions, for every kind of block."""

import pytest
import torch

from quantascope.attribution.blocks import find_blocks
from quantascope.attribution.losses import TokenBatch, token_losses
from quantascope.attribution.preconditioning import FactorMeter, Kronecker, KroneckerFactors
from quantascope.attribution.projection import Identity
from quantascope.errors import ConfigurationError
from tests.attribution.preconditioned import (
    VOCABULARY,
    Map,
    full_gradients,
    measured,
    neox,
    one_map,
    tiny_mixtral,
    token_batch,
    weighted_outputs,
)


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
