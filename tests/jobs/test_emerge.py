import json
from contextlib import nullcontext
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from quantascope import connect
from quantascope.errors import ConfigurationError, RunMismatchError, RunNotFoundError
from quantascope.jobs.change.emerge import find_checkpoints, read_emergence
from quantascope.jobs.quanta.cluster import Quanta
from quantascope.storage.run import Run
from tests.here import Actor, Pool
from tests.tiny import save_tiny, tiny_neox, tiny_tokenizer

STEPS = (10, 20, 40, 80, 160)


@pytest.fixture(scope="module")
def series(tmp_path_factory, tiny_model_folder):
    """Checkpoints on the way from other weights to the run's own model."""
    folder = tmp_path_factory.mktemp("series")
    first = tiny_neox(seed=5)
    last = type(first).from_pretrained(tiny_model_folder)
    for number, step in enumerate(STEPS):
        share = number / (len(STEPS) - 1)
        model = tiny_neox()
        with torch.no_grad():
            for own, a, b in zip(model.parameters(), first.parameters(), last.parameters(), strict=True):
                own.copy_(torch.lerp(4 * a, b, share))
        model.save_pretrained(folder / f"checkpoint-{step}")
        tiny_tokenizer().save_pretrained(folder / f"checkpoint-{step}")
    return folder


@pytest.fixture
def in_process(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "ray", SimpleNamespace(remote=Actor))
    for room in ("emerge", "curves"):
        monkeypatch.setattr(f"quantascope.jobs.change.{room}.WorkerPool", Pool)
        monkeypatch.setattr(f"quantascope.jobs.change.{room}.ray_session", lambda _: nullcontext(1))


def test_curves_and_times_are_stored_and_shown(in_process, cli, run_copy, series):
    out, _ = cli("emerge", run_copy, "--checkpoints", series, "--resamples", "20")
    run = Run.open(run_copy)
    quanta, found = Quanta(run), connect(run_copy).emergence()
    assert found.facts["steps"] == list(STEPS)
    assert len(found.quanta) == len(quanta.table)
    assert out.startswith(f"{len(quanta.table)} quanta over 5 checkpoints, steps 10 to 160: ")
    curves = found.curves.to_pandas().pivot_table(index="quantum", columns="step", values="loss")
    units = quanta.units.to_pandas()
    expected = units.groupby("quantum")["loss"].mean()
    np.testing.assert_allclose(curves[160], expected, rtol=1e-4)  # the last checkpoint is the run's own model
    assert (curves[10].mean() - curves[160].mean()) > 0.5
    nearest = units.sort_values(["quantum", "cosine"], ascending=[True, False]).groupby("quantum").head(8)
    norms = found.curves.to_pandas().pivot_table(index="quantum", columns="step", values="gradient_norm")
    np.testing.assert_allclose(norms[160], nearest.groupby("quantum")["norm"].mean(), rtol=1e-3)
    flags = ("--checkpoints", series, "--units-per-quantum", "0", "--resamples", "20", "--json")
    value = json.loads(cli("emerge", run_copy, *flags)[0])
    assert [row["midpoint"] for row in value["quanta"]] == found.quanta["midpoint"].to_pylist()
    assert "gradient_norm" not in read_emergence(run).curves.column_names
    kinds = value["facts"]["monogenic"]
    uses_one = units["monogenic"] > 1 - 1e-6
    assert kinds["num_one"] + kinds["num_several"] + kinds["num_left_out"] == len(units)
    assert 0 < kinds["num_one"] <= uses_one.sum()
    assert kinds["sentence"] in out


def test_what_is_no_series_is_refused(in_process, refused, run_copy, series, tmp_path):
    ends = [series / f"checkpoint-{step}" for step in STEPS]
    several = [flag for folder in ends[:3] for flag in ("--checkpoints", folder)]
    assert "A series of 3 checkpoints" in refused(ConfigurationError, "emerge", run_copy, *several)
    twice = ["--checkpoints", series, "--checkpoints", ends[1]]
    assert "Step 20 is given twice" in refused(ConfigurationError, "emerge", run_copy, *twice)
    assert "holds no checkpoints" in refused(RunNotFoundError, "emerge", run_copy, "--checkpoints", tmp_path)
    wide = save_tiny(tmp_path / "checkpoint-320", width=24)
    message = refused(RunMismatchError, "emerge", run_copy, "--checkpoints", series, "--checkpoints", wide)
    assert "checkpoint-320 has another shape" in message
    assert "hidden_size is 24 there, 16 here" in message
    others = [save_tiny(tmp_path / f"other-{step}", layers=1) for step in STEPS]
    message = refused(RunMismatchError, "emerge", run_copy, *[f for o in others for f in ("--checkpoints", o)])
    assert "parameters, the run's own model" in message
    assert "accepted are log, linear" in refused(
        ConfigurationError, "emerge", run_copy, "--checkpoints", series, "--scale", "square"
    )
    assert "units-per-quantum is 1" in refused(
        ConfigurationError, "emerge", run_copy, "--checkpoints", series, "--units-per-quantum", "1"
    )


def test_checkpoints_are_taken_in_the_order_of_their_steps(series):
    assert [int(c.rsplit("-", 1)[1]) for c in find_checkpoints([str(series)])] == list(STEPS)
