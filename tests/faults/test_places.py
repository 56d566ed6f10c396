"""Disks that are full, read only or slow, blocks that two workers get, clocks that jump: the bytes stay the same."""

import datetime
import hashlib
import json
import os
import random
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from quantascope.errors import NoSpaceError
from quantascope.jobs.collecting.passes import workers
from quantascope.jobs.verify import verify
from quantascope.jobs.workers.progress import ignore
from quantascope.jobs.workers.ray_session import RayOptions
from quantascope.storage import Run, run
from quantascope.storage.local import LocalStore
from tests.command_line import contents
from tests.faults.dying_disk import Death, dying_disk

CAN_MOUNT = shutil.which("unshare") and not subprocess.run(["unshare", "-rm", "true"], capture_output=True).returncode


@pytest.mark.skipif(not CAN_MOUNT, reason="this user may not mount a file system of its own")
def test_a_full_disk_and_a_read_only_one_cost_only_time(collect_flags, reference_run, tmp_path):
    folder = tmp_path / "disk"
    folder.mkdir()
    here = Path(__file__).parents[2]
    done = subprocess.run(
        ["unshare", "-rm", sys.executable, str(Path(__file__).with_name("small_disk.py")), str(folder), *collect_flags],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": f"{here}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"},
        timeout=200,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    full, read_only, last = found["tries"]
    assert full["status"] == read_only["status"] == NoSpaceError.exit_status
    assert "is full. What was committed" in full["told"]
    assert "cannot be written to (Read-only file system)" in read_only["told"]
    assert 0 < full["commits"] < 50
    assert read_only["commits"] == full["commits"]
    assert (last["status"], last["commits"]) == (0, 50)
    assert found["digests"] == {n: hashlib.sha256(d).hexdigest() for n, d in contents(reference_run).items()}


def test_a_slow_store_costs_only_time(small_collection, quick_collect, tmp_path, monkeypatch):
    quick_collect(small_collection(tmp_path / "quick"))
    real, waited = LocalStore.replace, []

    def slow(self, key, data):
        waited.append(key)
        time.sleep(0.02)
        real(self, key, data)

    monkeypatch.setattr(LocalStore, "replace", slow)
    quick_collect(small_collection(tmp_path / "slow"))
    assert len(waited) > 10
    assert contents(tmp_path / "slow") == contents(tmp_path / "quick")


def test_two_writers_of_every_block_leave_one_of_each(small_collection, quick_collect, tmp_path):
    """Two threads commit the same blocks at once."""
    from quantascope.jobs.collecting.plan import make_engine
    from quantascope.jobs.collecting.worker import collect_block
    from quantascope.jobs.models.model import load_model

    collection = small_collection(tmp_path / "run")
    quick_collect(collection)
    whole = contents(tmp_path / "run")
    row_set = Run.open(tmp_path / "run").row_set()
    loaded = load_model(collection.model)
    engine = make_engine(collection.config.rows, loaded, row_set.plan["projection"])[0]
    made = [collect_block(Run.open(tmp_path / "run"), row_set, b, engine)[0] for b in range(3)]
    for name in row_set.committed_blocks():
        (tmp_path / "run/rows/token-loss" / row_set.record_name(name)).unlink()
    threads = [
        threading.Thread(target=lambda: [Run.open(tmp_path / "run").row_set().commit(b, made[b]) for b in range(3)])
        for _ in range(2)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert contents(tmp_path / "run") == whole
    assert verify(str(tmp_path / "run")).is_clean


@pytest.mark.ray
@pytest.mark.slow
def test_every_block_sent_to_two_actors_is_committed_once(ray_cluster, tiny_run, tiny_collection):
    whole = contents(tiny_run)
    row_set = Run.open(tiny_run).row_set()
    for block in range(row_set.num_blocks):
        (tiny_run / row_set.folder / row_set.record_name(block)).unlink()
    twice = [block for block in range(row_set.num_blocks) for _ in range(2)]
    records = []
    with workers(tiny_collection(tiny_run), Run.open(tiny_run), RayOptions(num_workers=2), ignore) as (pool, _, _):
        pool.run(
            twice, lambda w, b: w.collect.remote(b), on_done=lambda b, record: records.append((b, record["files"]))
        )
    assert len(records) == len(twice)
    assert len({(b, json.dumps(files)) for b, files in records}) == row_set.num_blocks
    assert contents(tiny_run) == whole


def test_a_clock_that_jumps_decides_nothing(small_collection, quick_collect, tmp_path, monkeypatch):
    quick_collect(small_collection(tmp_path / "steady"))
    chance = random.Random(0)

    class Jumping(datetime.datetime):
        @classmethod
        def now(cls, tz=None):
            return super().now(tz) + datetime.timedelta(days=chance.uniform(-400, 400))

    real = time.time
    monkeypatch.setattr(time, "time", lambda: real() + chance.uniform(-4e7, 4e7))
    monkeypatch.setattr(run, "datetime", Jumping)
    for place in (40, 90):
        with dying_disk(tmp_path / "run", place), pytest.raises(Death):
            quick_collect(small_collection(tmp_path / "run"))
    quick_collect(small_collection(tmp_path / "run"))
    assert contents(tmp_path / "run") == contents(tmp_path / "steady")
    assert verify(str(tmp_path / "run")).is_clean
