"""What a worker does where the device's memory does not suffice, and with every projection. Without Ray."""

import numpy as np
import pytest
import torch

from quantascope.errors import ConfigurationError, DamagedRunError, WorkerFailedError
from quantascope.jobs.collecting import unit_rows, worker
from quantascope.jobs.collecting.collect import collect
from quantascope.jobs.collecting.config import PROJECTIONS, RowConfig, SelectionConfig, SetConfig
from quantascope.jobs.collecting.precondition import FACTORS_FILE, stored_factors
from quantascope.jobs.workers.ray_session import RayOptions
from quantascope.storage import Run
from tests.here import workers_here

ONE = RayOptions(num_workers=1)


def rows_of(path):
    return Run.open(path).row_set("token-loss").unit_rows()[1]


def test_batches_are_halved_where_memory_does_not_suffice_and_the_record_says_so(
    tiny_collection, tmp_path, monkeypatch
):
    def small_device(task):
        if task.plan["batch_tokens"] > 32:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return unit_rows.unit_rows(task)

    with workers_here():
        collect(tiny_collection(tmp_path / "large"), ONE)
        monkeypatch.setattr(worker, "unit_rows", small_device)
        collect(tiny_collection(tmp_path / "small"), ONE)
    records = [Run.open(tmp_path / "small").row_set("token-loss").record(b) for b in range(5)]
    assert [r["batch_tokens"] for r in records] == [32] * 5
    np.testing.assert_allclose(rows_of(tmp_path / "small"), rows_of(tmp_path / "large"), atol=2e-3)  # float16 on disk


def test_a_text_that_does_not_fit_by_itself_is_said_at_once(tiny_collection, tmp_path, monkeypatch):
    def no_device(task):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")

    monkeypatch.setattr(worker, "unit_rows", no_device)
    with workers_here(), pytest.raises(WorkerFailedError, match=r"Tried to allocate 2 GiB\)\. Give a smaller"):
        collect(tiny_collection(tmp_path / "run"), ONE)


@pytest.mark.parametrize("projection", PROJECTIONS)
def test_rows_are_collected_under_every_projection_and_read_back_with_it(projection, tiny_collection, tmp_path):
    rows = RowConfig(dim=128, projection=projection, rows_per_block=8, batch_tokens=128)
    with workers_here():
        done = collect(tiny_collection(tmp_path / "run", rows=rows, max_units=8), ONE)
        again = collect(tiny_collection(tmp_path / "run", rows=rows, max_units=8), ONE)
    assert (done.num_units, done.zero, done.refused, again.rows_here) == (8, 0, 0, 0)
    assert done.dim <= 128 or projection == "none"
    norms = np.linalg.norm(rows_of(tmp_path / "run"), axis=1)
    np.testing.assert_allclose(norms, 1, atol=1e-3)


def test_kfac_rows_are_whitened_by_factors_of_a_sample_that_the_run_keeps(tiny_collection, tmp_path):
    rows = RowConfig(dim=256, precondition="kfac", projection="two-sided", rows_per_block=8, batch_tokens=128)
    with workers_here():
        collect(tiny_collection(tmp_path / "run", rows=rows), ONE)
        assert collect(tiny_collection(tmp_path / "run", rows=rows), ONE).rows_here == 0
        collect(tiny_collection(tmp_path / "plain"), ONE)
    row_set = Run.open(tmp_path / "run").row_set("token-loss")
    assert row_set.plan["preconditioner"] == "kfac"
    assert stored_factors(row_set).num_units == 40
    whitened, plain = rows_of(tmp_path / "run"), rows_of(tmp_path / "plain")
    # whitened rows of different units point apart
    assert np.abs(whitened @ whitened.T).mean() < 0.7 * np.abs(plain @ plain.T).mean()
    damaged = tmp_path / "run/rows/token-loss" / FACTORS_FILE
    damaged.write_bytes(damaged.read_bytes()[:-1] + b"\1")
    with pytest.raises(DamagedRunError, match="factors"):
        stored_factors(Run.open(tmp_path / "run").row_set("token-loss"))


def test_row_sets_of_one_run_take_the_same_projection(tiny_collection, tmp_path):
    with workers_here():
        collect(tiny_collection(tmp_path / "run"), ONE)
        collect(tiny_collection(tmp_path / "run", unit_type="window", max_units=8), ONE)
    run = Run.open(tmp_path / "run")
    assert run.row_set("window").plan["projection"] == run.row_set("token-loss").plan["projection"]


def test_contributions_cannot_be_preconditioned():
    with pytest.raises(ConfigurationError, match="not contributions"):
        SetConfig(selection=SelectionConfig(unit_type="token-contribution"), rows=RowConfig(precondition="kfac"))
