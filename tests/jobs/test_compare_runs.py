import json
import shutil
import sys
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from quantascope import connect
from quantascope.attribution.change.lesions import lesioned
from quantascope.errors import ConfigurationError, RunMismatchError, RunNotFoundError
from quantascope.jobs.change.compare import read_comparison
from quantascope.jobs.change.curves import unit_losses
from quantascope.jobs.models.model import ModelSource, load_model
from quantascope.jobs.quanta.cluster import Quanta
from quantascope.storage.run import Run
from tests.here import Actor, Pool
from tests.tiny import tiny_neox, tiny_tokenizer


@pytest.fixture(scope="module")
def others(tmp_path_factory, tiny_model_folder):
    """Checkpoints near the run's own, each with noise of another seed."""
    folder = tmp_path_factory.mktemp("others")
    own = tiny_neox()
    for seed in range(3):
        model = type(own).from_pretrained(tiny_model_folder)
        chance = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter += 0.02 * torch.randn(parameter.shape, generator=chance)
        model.save_pretrained(folder / f"seed{seed}")
        tiny_tokenizer().save_pretrained(folder / f"seed{seed}")
    return folder


@pytest.fixture
def in_process(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", SimpleNamespace(remote=Actor))
    monkeypatch.setattr("quantascope.jobs.change.losses.WorkerPool", Pool)
    monkeypatch.setattr("quantascope.jobs.change.losses.ray_session", lambda _: nullcontext(1))


def rows(run, name):
    return connect(run).comparison(name).quanta.to_pandas()


def test_losses_of_a_checkpoint_stand_beside_the_run_s_own(in_process, cli, run_copy, others):
    out, _ = cli("compare", run_copy, others / "seed0", "--seed-run", others / "seed1", "--name", "one")
    assert "chance: 1 models that differ in their seed alone" in out
    run = Run.open(run_copy)
    quanta = Quanta(run)
    found = rows(run_copy, "one")
    units = quanta.units.to_pandas()
    np.testing.assert_allclose(found["loss_first"], units.groupby("quantum")["loss"].mean(), rtol=1e-4)
    loaded = load_model(ModelSource(model=str(others / "seed0")))
    losses = unit_losses(run, quanta.row_set, loaded)[units["unit"]]
    expected = units.assign(own=losses).groupby("quantum")["own"].mean()
    np.testing.assert_allclose(found["loss_other"], expected, rtol=1e-5)
    assert (found["change"].abs() > 0).all()
    assert (found["verdict"] == "same").mean() > 0.9  # seed 0 is to the run's model about what seed 1 is
    value = json.loads(cli("compare", run_copy, others / "seed0", "--flips", "100", "--json")[0])
    assert value["facts"]["against"] == "documents"
    assert len(value["quanta"]) == len(quanta.table)
    assert value["others"] == []


def test_a_run_compared_with_itself_shares_every_quantum(in_process, cli, run_copy, tmp_path):
    twin = shutil.copytree(run_copy, tmp_path / "twin")
    out, _ = cli("compare", run_copy, twin, "--name", "twin", "--flips", "50")
    found = read_comparison(Run.open(run_copy), "twin")
    table = found.quanta.to_pandas()
    assert (table["change"] == 0).all()
    assert (table["verdict"] == "same").all()
    sized = table[table["jaccard"] > found.facts["null_jaccard"]]
    assert (sized["partner"] == sized["quantum"]).all()
    assert (table["jaccard"] == 1).all()
    np.testing.assert_allclose(table["norm_own"], table["norm_other"])
    assert found.facts["num_shared"] == int(table["size"].sum())
    assert f"matched through {found.facts['num_shared']:,} units" in out
    assert len(found.others) == len(table)


def test_a_lesion_is_the_model_without_that_part(in_process, cli, run_copy, tiny_model_folder):
    parts = ("layers.1", "layers.0.heads.1")
    flags = [flag for part in parts for flag in ("--lesion", part)]
    out, _ = cli("compare", run_copy, *flags, "--name", "cut", "--flips", "50")
    assert "without layers.1: " in out
    table = rows(run_copy, "cut").set_index(["model", "quantum"])
    run = Run.open(run_copy)
    units = Quanta(run).units.to_pandas()
    loaded = load_model(ModelSource(model=str(tiny_model_folder)))
    for part in parts:
        with lesioned(loaded.model, part):
            losses = unit_losses(run, run.row_set(), loaded)[units["unit"]]
        expected = units.assign(own=losses).groupby("quantum")["own"].mean()
        np.testing.assert_allclose(table.loc[part, "loss_other"], expected, rtol=1e-5)


def test_what_cannot_be_compared_is_refused(in_process, refused, run_copy, others, reference_run, tmp_path):
    assert "one of the two" in refused(ConfigurationError, "compare", run_copy)
    both = (others / "seed0", "--lesion", "layers.1")
    assert "one of the two" in refused(ConfigurationError, "compare", run_copy, *both)
    seeded = ("--lesion", "layers.1", "--seed-run", others / "seed1")
    assert "a lesion has no seed" in refused(ConfigurationError, "compare", run_copy, *seeded)
    assert "has 2 layers" in refused(ConfigurationError, "compare", run_copy, "--lesion", "layers.7")
    assert "neither a run nor a checkpoint" in refused(RunNotFoundError, "compare", run_copy, tmp_path)
    same = (others / "seed0", "--seed-run", others / "seed0")
    assert "are equal" in refused(ConfigurationError, "compare", run_copy, *same)
    assert "has no quanta" in refused(RunNotFoundError, "compare", reference_run, others / "seed0")
    changed = Path(shutil.copytree(others / "seed0", tmp_path / "changed"))
    tokenizer = tiny_tokenizer(300)
    tokenizer.save_pretrained(changed)
    assert "has another tokenizer" in refused(RunMismatchError, "compare", run_copy, changed)
