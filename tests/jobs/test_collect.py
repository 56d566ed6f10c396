import os
import signal
import threading
import time
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy

from quantascope.attribution.clustering import AverageLinkage
from quantascope.errors import (
    ConfigurationError,
    IncompleteRunError,
    NoSpaceError,
    QuantascopeError,
    RayStartError,
    RunMismatchError,
)
from quantascope.jobs.change.curves import collect_curves
from quantascope.jobs.collecting.collect import collect, dry_run
from quantascope.jobs.collecting.config import RowConfig
from quantascope.jobs.collecting.plan import make_engine
from quantascope.jobs.collecting.worker import collect_block
from quantascope.jobs.models.model import ModelSource, load_model
from quantascope.jobs.quanta.cluster import Quanta, QuantaConfig, make_quanta, measure
from quantascope.jobs.workers.pool import WorkerPool
from quantascope.jobs.workers.ray_session import RayOptions
from quantascope.storage import RowBlock, Run
from quantascope.storage.local import LocalStore
from tests.command_line import contents
from tests.here import workers_here
from tests.jobs.flaky import Flaky, Leaving
from tests.plain_loop import plain_rows
from tests.tiny import save_tiny

pytestmark = pytest.mark.ray
ONE, TWO = RayOptions(num_workers=1), RayOptions(num_workers=2)
QUANTA = QuantaConfig(clusterer=AverageLinkage(num_quanta=6))


def test_one_worker_and_two_give_the_same_bytes_and_the_same_quanta(tiny_run, tiny_collection, tmp_path):
    done = collect(tiny_collection(tmp_path / "two"), TWO)
    assert (done.num_units, done.rows_here, done.refused, done.zero) == (40, 40, 0, 0)
    with workers_here():
        assert replace(collect(tiny_collection(tmp_path / "here"), ONE), seconds=done.seconds) == done
    for out in (tiny_run, tmp_path / "two", tmp_path / "here"):
        make_quanta(Run.open(out), QUANTA)
    one, two, here = contents(tiny_run), contents(tmp_path / "two"), contents(tmp_path / "here")
    assert len(one) > 20
    assert one == two
    assert one == here


def test_rows_are_the_gradients_of_the_selected_tokens_own_losses(tiny_collection, tmp_path, tmp_path_factory):
    """From the stored run back to the plain loop: text, token, loss and gradient of every unit."""
    folder = save_tiny(tmp_path_factory.mktemp("m") / "f64", dtype="float64")
    collection = tiny_collection(tmp_path / "run", model=folder)
    with workers_here():
        collect(collection, ONE)
    run = Run.open(tmp_path / "run")
    row_set = run.row_set("token-loss")
    loaded = load_model(collection.model)
    engine, _, _ = make_engine(collection.config.rows, loaded, row_set.plan["projection"])
    kept, rows = row_set.unit_rows()
    units = row_set.units().to_pylist()
    for unit, row in zip(kept, rows, strict=True):
        entry = units[unit]
        ids = torch.from_numpy(run.documents[entry["document"]].tokens.astype(np.int64))
        ids = ids[entry["first_token"] : entry["last_token"] + 1][None]

        def own_loss(model, ids):
            return cross_entropy(model(input_ids=ids).logits[0, -2:-1], ids[0, -1:])[None]

        assert own_loss(loaded.model, ids).item() == pytest.approx(entry["loss"], rel=1e-5)
        wanted = plain_rows(engine, ids, own_loss)[0].numpy()
        assert entry["norm"] == pytest.approx(np.linalg.norm(wanted), rel=1e-4)
        np.testing.assert_allclose(row, wanted / np.linalg.norm(wanted), atol=1e-3)  # float16 on disk


def test_a_finished_collection_is_not_repeated_and_a_partial_one_goes_on(tiny_run, tiny_collection, tmp_path):
    collection = tiny_collection(tiny_run)
    whole = contents(tmp_path / "run")
    assert collect(collection, TWO).rows_here == 0
    for name in ("commits/00001.json", "commits/00003.json", "gradients/c/3/0"):
        (tmp_path / "run/rows/token-loss" / name).unlink()
    with pytest.raises(IncompleteRunError, match="2 of 5 blocks"):
        make_quanta(Run.open(tmp_path / "run"), QUANTA)
    assert collect(collection, TWO).rows_here == 16
    assert contents(tmp_path / "run") == whole


def test_another_plan_or_model_is_refused_with_both_sides(tiny_run, tiny_collection, tmp_path):
    whole = contents(tmp_path / "run")
    with pytest.raises(RunMismatchError, match=r"projection\.seed: there 0, asked for 7"):
        collect(tiny_collection(tmp_path / "run", rows=RowConfig(dim=128, seed=7)), ONE)
    other = save_tiny(tmp_path / "other", seed=1)
    with pytest.raises(RunMismatchError, match=r"model\.fingerprint"):
        collect(tiny_collection(tmp_path / "run", model=other), ONE)
    with pytest.raises(RunMismatchError, match="keep_text: there True, asked for False"):
        collect(tiny_collection(tmp_path / "run", keep_text=False), ONE)
    assert contents(tmp_path / "run") == whole


def test_what_cannot_fit_is_refused_before_anything_is_written(tiny_collection, tmp_path, monkeypatch):
    monkeypatch.setattr(LocalStore, "free_bytes", lambda self: 1000)
    with pytest.raises(NoSpaceError, match="smaller --max-units"):
        dry_run(tiny_collection(tmp_path / "run"), ONE)
    assert not (tmp_path / "run").exists()


def test_a_dry_run_counts_rows_and_bytes_and_writes_nothing(tiny_collection, tmp_path):
    found = dry_run(tiny_collection(tmp_path / "run", max_units=20), TWO)
    assert (found.num_units, found.dim) == (20, 128)
    assert 20 * 256 < found.num_bytes < 20 * 600
    assert found.seconds > 0
    assert not (tmp_path / "run").exists()


def test_what_cannot_be_collected_says_why(ray_cluster, tiny_collection, tmp_path):
    with workers_here(), pytest.raises(ConfigurationError, match="larger --max-loss"):
        collect(tiny_collection(tmp_path / "a", max_loss=1e-9), ONE)
    with pytest.raises(ConfigurationError, match="context is 64"):
        collect(tiny_collection(tmp_path / "b", window_tokens=65), ONE)
    with pytest.raises(ConfigurationError, match="give at least 64"):
        collect(tiny_collection(tmp_path / "c", rows=RowConfig(dim=8)), ONE)
    with pytest.raises(RayStartError, match="room for"):
        collect(tiny_collection(tmp_path / "d"), RayOptions(num_workers=1000))


def test_a_refused_row_is_counted_and_left_out_of_the_quanta(tiny_run, tiny_collection, tmp_path):
    """A gradient that overflows is NaN on disk; the job goes on."""
    collection = tiny_collection(tiny_run)
    run = Run.open(tmp_path / "run")
    row_set = run.row_set("token-loss")
    loaded = load_model(collection.model)
    content, _ = collect_block(run, row_set, 2, make_engine(collection.config.rows, loaded)[0])
    content.rows[5] = np.inf
    run.store.path("rows/token-loss/commits/00002.json").unlink()
    row_set.commit(2, RowBlock(rows=content.rows, block_norms=content.block_norms, units=content.units))
    quanta = make_quanta(run, QUANTA)
    assert len(quanta.units) == 39
    assert 21 not in quanta.units["unit"].to_pylist()
    assert collect(collection, ONE).refused == 1


def test_windows_hold_only_what_counts(tiny_collection, tmp_path):
    with workers_here():
        collect(tiny_collection(tmp_path / "run", unit_type="window", max_units=10), ONE)
    table = Run.open(tmp_path / "run").row_set("window").units()
    assert len(table) == 10
    assert set(table["label_kind"].to_pylist()) == {"k0", "k1"}
    assert np.isfinite(np.asarray(table["loss"])).all()


def test_evidence_is_stored_for_its_quanta_and_refused_for_others(tiny_run):
    run = Run.open(tiny_run)
    quanta = make_quanta(run, QUANTA)
    found = measure(quanta, roles=lambda _, units: np.arange(len(units)) % 2, num_shuffles=20)
    assert [row["name"] for row in found["rows"]] == [
        "quanta",
        "target token",
        "previous token",
        "words before (tf–idf)",
        "random directions",
    ]
    assert Quanta(run).evidence() == found
    again = make_quanta(run, QuantaConfig(clusterer=AverageLinkage(num_quanta=3)))
    with pytest.raises(RunMismatchError, match="compute it again"):
        again.evidence()


def test_curves_hold_each_units_loss_at_each_checkpoint(tiny_run, tmp_path, tiny_model_folder):
    run = Run.open(tiny_run)
    folders = [save_tiny(tmp_path / f"checkpoint-{step}", seed=step) for step in (10, 2)]
    folders.append(save_tiny(tmp_path / "checkpoint-30"))
    curves = collect_curves(run, "token-loss", [ModelSource(model=str(f)) for f in folders], TWO)
    assert curves.steps.tolist() == [2, 10, 30]
    assert curves.losses.shape == (40, 3)
    np.testing.assert_allclose(curves.losses[:, 2], np.asarray(run.row_set().units()["loss"]), rtol=1e-4)
    assert np.abs(curves.losses[:, 0] - curves.losses[:, 2]).max() > 1e-3
    with pytest.raises(ConfigurationError, match="training step"):
        collect_curves(run, "token-loss", [ModelSource(model=str(tiny_model_folder))], TWO)


def test_dead_and_failing_workers_cost_their_task_and_no_more(ray_cluster, tmp_path):
    import ray

    actor = ray.remote(Flaky)
    done = {}
    with WorkerPool(lambda: actor.remote(tmp_path), 2) as pool:
        pool.run(range(5), lambda w, t: w.work.remote(t), on_done=done.__setitem__)
        assert done == {i: i * 10 for i in range(5)}
    with WorkerPool(lambda: actor.remote(tmp_path), 2) as pool, pytest.raises(ConfigurationError, match="never"):
        pool.run([8], lambda w, t: w.work.remote(t), on_done=done.__setitem__)
    with (
        WorkerPool(lambda: actor.remote(tmp_path), 2) as pool,
        pytest.raises(QuantascopeError, match="Block 9 failed 3"),
    ):
        pool.run([9], lambda w, t: w.work.remote(t), on_done=done.__setitem__)


def test_a_worker_that_is_told_to_leave_ends_its_block_first(ray_cluster, tmp_path, caplog):
    """As a machine that is about to be taken away tells it, with SIGTERM; nothing is held against the next block."""
    import ray

    actor = ray.remote(Leaving)
    done, struck = {}, []

    def submit(worker, task):
        reference = worker.nap.remote(task)
        if task == 0:
            struck.append(threading.Thread(target=tell_to_leave, args=(tmp_path,)))
            struck[0].start()
        return reference

    with WorkerPool(lambda: actor.remote(tmp_path), 1, prepare=lambda w: w.prepare.remote()) as pool:
        pool.run(range(3), submit, on_done=done.__setitem__)
    struck[0].join()
    assert done[0] != done[1] == done[2], "the one that was told ended its block, another did the rest"
    assert sorted(done) == [0, 1, 2]
    assert len(list(tmp_path.glob("*-begun-*"))) == 3, "no block was begun twice"
    assert "tried again" not in caplog.text


def tell_to_leave(folder):
    deadline = time.monotonic() + 60
    while not (begun := list(folder.glob("0-begun-*"))) and time.monotonic() < deadline:
        time.sleep(0.02)
    os.kill(int(begun[0].name.rpartition("-")[2]), signal.SIGTERM)


def test_no_more_is_given_out_than_there_are_workers(ray_cluster, tmp_path):
    """However slow the driver or the store: a worker gets its next piece when its last result was taken."""
    import ray

    actor = ray.remote(Flaky)
    given, taken, most = set(), set(), 0

    def submit(worker, task):
        nonlocal most
        given.add(task)
        most = max(most, len(given) - len(taken))
        return worker.work.remote(task)

    def done(task, _):
        time.sleep(0.05)
        taken.add(task)

    with WorkerPool(lambda: actor.remote(tmp_path), 2) as pool:
        pool.run(range(20, 60), submit, on_done=done)
    assert taken == set(range(20, 60))
    assert most == 2
