"""Units of several types in one tree: windows beside the tokens in them."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from quantascope import connect
from quantascope.attribution.clustering import AverageLinkage
from quantascope.errors import ConfigurationError, RunMismatchError, RunNotFoundError
from quantascope.jobs.quanta.cluster import QuantaConfig, make_quanta, measure
from quantascope.jobs.quanta.clustered import Quanta
from quantascope.jobs.quanta.joined import JoinedRows, open_rows
from quantascope.storage.run import Run

BOTH = "token-loss,window"


@pytest.fixture(scope="module")
def client(bare_run, tmp_path_factory):
    folder = Path(shutil.copytree(bare_run, tmp_path_factory.mktemp("joined") / "run"))
    quanta = make_quanta(Run.open(folder), QuantaConfig(rows=BOTH, clusterer=AverageLinkage(num_quanta=6)))
    measure(quanta, num_shuffles=5)
    return connect(folder)


def test_joined_rows_are_those_of_each_set_numbered_through(bare_run):
    run = Run.open(bare_run)
    tokens, windows = run.row_set("token-loss"), run.row_set("window")
    both = open_rows(run, BOTH)
    assert len(both) == len(tokens) + len(windows)
    units = both.units()
    assert units["unit"].to_pylist() == list(range(len(both)))
    assert units["unit_type"].to_pylist() == ["token-loss"] * len(tokens) + ["window"] * len(windows)
    assert units["loss"].to_pylist() == [*tokens.units()["loss"].to_pylist(), *windows.units()["loss"].to_pylist()]
    kept, rows = both.unit_rows()
    own_kept, own_rows = windows.unit_rows()
    assert np.array_equal(kept[-len(own_kept) :], own_kept + len(tokens))
    assert np.array_equal(rows[-len(own_rows) :], own_rows)
    assert both.block_norms().shape == (len(both), len(tokens.plan["blocks"]))
    assert both.plan["unit_type"] == "mixed"
    assert both.fingerprint() not in (tokens.fingerprint(), windows.fingerprint())
    assert open_rows(run, "window").name == "window"


def test_one_tree_holds_units_of_both_types(client):
    units = list(client.units())
    types = [u.unit_type for u in units]
    assert set(types) == {"token-loss", "window"}
    assert client.quanta(grain=1)[0].size == len(units)
    window = next(u for u in units if u.unit_type == "window")
    token = next(u for u in units if u.unit_type == "token-loss" and u.document == window.document)
    for unit in (window, token):
        steps = client.ancestors(unit=unit.unit)
        assert (steps[0].size, steps[-1].size) == (1, len(units))
        assert unit.quantum in [s.quantum for s in steps]
    steps = client.ancestors(document=window.document)
    assert round(steps[-1].share * sum(u.document == window.document for u in units)) > 1
    assert client.ancestors(group=("kind", "k0"))[-1].share == 1


def test_what_is_made_of_it_opens_again_and_is_reported(client, tmp_path):
    quanta = Quanta(client.run)
    assert quanta.row_set.name == BOTH
    assert len(quanta.rows) == len(quanta.units)
    rows = quanta.evidence()["rows"]
    assert rows[0]["next_token"]["value"] >= 0
    page = client.report(tmp_path / "report.html").read_text(encoding="utf-8")
    assert "skills in" in page
    assert f"{len(quanta.units):,} units" in page


def test_the_command_takes_both(cli, bare_run, tmp_path):
    run = shutil.copytree(bare_run, tmp_path / "run")
    out, _ = cli("cluster", run, "--rows", BOTH, "--name", "both", "--num-quanta", "5", "--json")
    assert json.loads(out)["num_quanta"] == 5
    assert json.loads(out)["num_units"] > len(Run.open(run).row_set("token-loss").unit_rows()[0])


def test_what_cannot_be_joined_is_refused(bare_run, monkeypatch):
    run = Run.open(bare_run)
    with pytest.raises(ConfigurationError, match="twice"):
        open_rows(run, "window,window")
    with pytest.raises(RunNotFoundError):
        len(open_rows(run, "window,absent"))
    one, other = run.row_set("token-loss"), run.row_set("window")
    other.plan["projection"] = {}
    with pytest.raises(RunMismatchError, match="projection"):
        JoinedRows([one, other])
