"""What a collection can do to gradients before they are rows, asked for by name. Without Ray."""

import pickle  # noqa: TID251 - to make what must be refused
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy

from quantascope.attribution.blocks import find_blocks
from quantascope.attribution.engine import GradientEngine
from quantascope.attribution.losses import TokenBatch, token_losses
from quantascope.attribution.preconditioning import (
    FactorMeter,
    SecondMoment,
    block_moments,
    factorisation_error,
    second_moments,
)
from quantascope.attribution.projection import Pair, member_columns
from quantascope.attribution.projection.describe import from_description
from quantascope.errors import BadWeightsError, ConfigurationError
from quantascope.jobs.collecting.collect import collect
from quantascope.jobs.collecting.config import RowConfig, SelectionConfig, SetConfig
from quantascope.jobs.collecting.plan import make_engine, make_projection
from quantascope.jobs.collecting.precondition import FACTORS_FILE, stored_factors
from quantascope.jobs.models.model import ModelSource, load_model
from quantascope.jobs.models.optimizer_state import OPTIMIZER_FILE, read_moments
from quantascope.jobs.workers.ray_session import RayOptions
from quantascope.storage import Run
from tests.here import workers_here
from tests.tiny import tiny_neox, tiny_tokenizer

ONE = RayOptions(num_workers=1)
SMALL = {"dim": 256, "rows_per_block": 8, "batch_tokens": 128}


def trainers_groups(model):
    """With weight decay, and without: norms and biases; by hand, not by Trainer."""
    plain = [n for n, _ in model.named_parameters() if "norm" in n or "bias" in n]
    named = dict(model.named_parameters())
    decayed = [n for n in named if n not in plain]
    return [{"params": [named[n] for n in names]} for names in (decayed, plain)]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A folder as Trainer leaves it, and the optimiser that wrote its state."""
    folder = tmp_path_factory.mktemp("checkpoint")
    model = tiny_neox().train()
    optimizer = torch.optim.AdamW(trainers_groups(model), lr=1e-3, eps=1e-6)
    for step in range(3):
        ids = torch.randint(0, 320, (4, 16), generator=torch.Generator().manual_seed(step))
        cross_entropy(model(input_ids=ids).logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten()).backward()
        optimizer.step()
        optimizer.zero_grad()
    model.eval().save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    torch.save(optimizer.state_dict(), folder / OPTIMIZER_FILE)
    return folder, second_moments(optimizer, model)


def rows_of(path, name="token-loss"):
    return Run.open(path).row_set(name).unit_rows()[1]


def test_a_trainers_checkpoint_has_the_moments_of_its_optimiser(checkpoint):
    folder, wanted = checkpoint
    found = read_moments(load_model(ModelSource(model=str(folder))))
    assert found.epsilon == 1e-6
    assert set(found.moments) == set(wanted)
    assert all(torch.equal(found.moments[name], moment) for name, moment in wanted.items())


@pytest.mark.parametrize("projection", ["tensor-sketch", pytest.param("two-sided", marks=pytest.mark.slow)])
def test_rows_are_divided_by_the_optimisers_second_moment(projection, checkpoint, tiny_collection, tmp_path):
    folder, moments = checkpoint
    rows = RowConfig(precondition="second-moment", projection=projection, blocks="all", **SMALL | {"dim": 1024})
    with workers_here():
        collect(tiny_collection(tmp_path / "run", model=folder, rows=rows, max_units=8), ONE)
        assert collect(tiny_collection(tmp_path / "run", model=folder, rows=rows, max_units=8), ONE).rows_here == 0
    row_set = Run.open(tmp_path / "run").row_set("token-loss")
    loaded = load_model(ModelSource(model=str(folder)))
    base = from_description(row_set.plan["projection"])
    plain, _, coverage = make_engine(rows, loaded, row_set.plan["projection"])
    by_block = block_moments(coverage.blocks, moments)
    wanted = SecondMoment(base=base, moments=by_block, epsilon=1e-6)
    kept = stored_factors(row_set)
    assert len(row_set.read(FACTORS_FILE)) < 0.7 * sum(m.numel() * 4 for m in moments.values())
    for number, block in enumerate(coverage.blocks):
        gradient = torch.randn(2, block.rows, block.columns, generator=torch.Generator().manual_seed(number))
        options = {"number": number, "shape": (block.rows, block.columns), "dtype": torch.float32}
        made = SecondMoment(base=base, moments=kept.moments, epsilon=kept.epsilon)
        one, other = (p.block(block.name, **options, device=torch.device("cpu")) for p in (made, wanted))
        torch.testing.assert_close(one.project(gradient), other.project(gradient))
    errors = row_set.plan["second_moment"]["factorisation_error"]
    assert set(errors) == {b.name for b in coverage.blocks}
    for block, columns in zip(coverage.blocks, plain.columns, strict=True):
        exact = block.rows == 1 or columns.stop - columns.start >= block.numel
        assert errors[block.name] == (0 if exact else factorisation_error(by_block[block.name], 1e-6))
    assert 0 < max(errors.values()) < 1
    engine = GradientEngine(loaded.model, wanted, coverage.blocks)
    oracle = np.stack([row_of(engine, Run.open(tmp_path / "run"), unit) for unit in row_set.selection().to_pylist()])
    oracle /= np.linalg.norm(oracle, axis=1, keepdims=True)
    np.testing.assert_allclose(rows_of(tmp_path / "run"), oracle, atol=2e-3)  # float16 on disk


def row_of(engine, run, unit):
    """A token's row, by itself."""
    ids = run.documents[unit["document"]].tokens[unit["first_token"] : unit["last_token"] + 1].astype(np.int64)
    batch = TokenBatch(
        ids=torch.from_numpy(ids)[None], example=torch.zeros(1, dtype=torch.long), position=torch.tensor([len(ids) - 1])
    )
    return engine.rows(batch, token_losses, batch.example, num_examples=1).rows[0].numpy()


def test_contributions_may_be_divided_too_and_kfac_has_none():
    contributions = SelectionConfig(unit_type="token-contribution")
    SetConfig(selection=contributions, rows=RowConfig(precondition="second-moment"))
    with pytest.raises(ConfigurationError, match="kfac is for units with a loss of their own"):
        SetConfig(selection=contributions, rows=RowConfig(precondition="kfac"))


def spoil(folder, name):
    path = folder / OPTIMIZER_FILE
    state = torch.load(path, weights_only=True)
    if name == "none":
        path.unlink()
    elif name == "torn":
        path.write_bytes(path.read_bytes()[:1000])
    elif name == "a pickle of code":
        path.write_bytes(pickle.dumps(RowConfig, protocol=2))
    elif name == "a list":
        torch.save([1, 2], path)
    elif name == "three groups":
        state["param_groups"].append({"params": []})
        torch.save(state, path)
    elif name == "groups by another rule":
        last = state["param_groups"][0]["params"].pop()
        state["param_groups"][1]["params"].append(last)
        torch.save(state, path)
    else:
        sgd = torch.optim.SGD(trainers_groups(tiny_neox()), lr=0.1, momentum=0.9).state_dict()
        sgd["state"] = {0: {"momentum_buffer": torch.ones(3)}}
        torch.save(sgd, path)


@pytest.mark.parametrize(
    ("name", "error", "says"),
    [
        ("none", ConfigurationError, r"has no optimizer\.pt"),
        ("torn", BadWeightsError, "cannot be read as tensors alone"),
        ("a pickle of code", BadWeightsError, "cannot be read as tensors alone"),
        ("a list", BadWeightsError, "holds a list"),
        ("three groups", ConfigurationError, "3 groups of parameters and no names"),
        ("groups by another rule", ConfigurationError, "which is which is not known"),
        ("sgd", ConfigurationError, "no second moment"),
    ],
)
def test_a_checkpoint_without_a_second_moment_is_refused_before_anything_is_made(
    name, error, says, checkpoint, tiny_collection, tmp_path
):
    folder = shutil.copytree(checkpoint[0], tmp_path / "model")
    spoil(folder, name)
    rows = RowConfig(precondition="second-moment", **SMALL)
    with workers_here(), pytest.raises(error, match=says):
        collect(tiny_collection(tmp_path / "run", model=folder, rows=rows), ONE)
    assert not (tmp_path / "run").exists()


def test_row_sets_with_the_same_sample_of_a_run_share_their_kronecker_factors(tiny_collection, tmp_path, monkeypatch):
    measured = []
    factors = FactorMeter.factors
    monkeypatch.setattr(FactorMeter, "factors", lambda self: measured.append(1) or factors(self))

    def collected(name, **changes):
        rows = RowConfig(precondition="kfac", **SMALL | {"dim": changes.pop("dim", 256)})
        with workers_here():
            collect(replace(tiny_collection(tmp_path / "run", rows=rows, **changes), name=name), ONE)
        return Run.open(tmp_path / "run").row_set(name).plan["files"][FACTORS_FILE]

    first = collected("first", max_units=8)
    assert collected("other-projection", max_units=8, dim=128) == first
    assert len(measured) == 1
    assert collected("other-units", max_units=4) != first
    assert collected("windows", max_units=8, unit_type="window") != first
    assert len(measured) == 3


def test_two_independent_projections_are_collected_in_one_pass(tiny_collection, tmp_path, tiny_model_folder):
    rows = RowConfig(projection="pair:tensor-sketch", seed=3, **SMALL)
    with workers_here():
        done = collect(tiny_collection(tmp_path / "run", rows=rows, max_units=8), ONE)
    assert done.dim <= 256
    run = Run.open(tmp_path / "run")
    plan = run.row_set("token-loss").plan
    pair = from_description(plan["projection"])
    assert isinstance(pair, Pair)
    assert [m.describe()["seed"] for m in pair.members] == [6, 7]
    blocks = [slice(b["first_column"], b["last_column"] + 1) for b in plan["blocks"]]
    stored = rows_of(tmp_path / "run")
    loaded = load_model(ModelSource(model=str(tiny_model_folder)))
    norms = np.linalg.norm(stored, axis=1)
    for member, parts in zip(pair.members, member_columns(blocks, 2), strict=True):
        engine = GradientEngine(loaded.model, member)
        wanted = np.stack([row_of(engine, run, unit) for unit in run.row_set("token-loss").selection().to_pylist()])
        found = np.concatenate([stored[:, part] for part in parts], axis=1)
        cosines = (found * wanted).sum(1) / np.linalg.norm(found, axis=1) / np.linalg.norm(wanted, axis=1)
        assert cosines.min() > 0.99999
        assert (np.linalg.norm(found, axis=1) < norms).all()


@pytest.mark.parametrize("name", ["pair:none", "pair:", "pair:pair:dense", "twosided"])
def test_projections_that_there_are_not_are_refused(name):
    with pytest.raises(ConfigurationError, match="accepted are tensor-sketch"):
        RowConfig(projection=name)


@pytest.mark.parametrize("kind", ["two-sided-gaussian", "wide", "sparse-jl", "dense"])
def test_every_projection_has_a_pair(kind, tiny_model_folder):
    loaded = load_model(ModelSource(model=str(tiny_model_folder)))
    made = make_projection(RowConfig(projection=f"pair:{kind}", dim=512), loaded, find_blocks(loaded.model).blocks)
    assert from_description(made.describe()).describe() == made.describe()


def test_checkpointed_activations_change_no_byte_of_the_rows(tiny_collection, tmp_path):
    with workers_here():
        for name, checkpointed in (("plain", False), ("checkpointed", True)):
            rows = RowConfig(checkpoint_activations=checkpointed, **SMALL)
            collect(tiny_collection(tmp_path / name, rows=rows, max_units=16), ONE)
    plans = [Run.open(tmp_path / name).row_set("token-loss").plan for name in ("plain", "checkpointed")]
    assert plans[0] == plans[1]
    assert np.array_equal(rows_of(tmp_path / "plain"), rows_of(tmp_path / "checkpointed"))


def test_a_dim_beyond_the_models_keeps_every_gradient_whole(tiny_model_folder):
    loaded = load_model(ModelSource(model=str(tiny_model_folder)))
    engine, _, coverage = make_engine(RowConfig(dim=10**9), loaded)
    assert engine.dim == sum(block.numel for block in coverage.blocks)
