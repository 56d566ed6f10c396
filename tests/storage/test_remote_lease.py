"""An object store's lease, its commits and its derived folders, which several processes want at once."""

import json
import os
import time
from dataclasses import asdict

import pyarrow as pa
import pytest

from quantascope.errors import (
    RunBusyError,
    StoreUnavailableError,
)
from quantascope.storage import Run, remote, remote_lease
from quantascope.storage.lease import STALE_SECONDS, Lease, LeaseLostError
from quantascope.storage.objects import Objects
from quantascope.storage.providers import Patience
from quantascope.storage.remote_lease import RemoteLease, _Holder
from quantascope.storage.run import open_store
from tests.storage.test_commits import NUM_BLOCKS, PLAN, SIZE, content

ELSEWHERE = Lease(host="elsewhere", boot="b-1", process=1, since="2026-01-02T03:04:05+00:00", command="quantascope x")


@pytest.fixture
def store(bucket):
    return open_store(f"{bucket}/a/run")


def leave_lock(store, holder, **changes):
    value = {**asdict(holder), "beat": "2"} | changes
    store._objects.put(".lock", json.dumps(value).encode())


def test_another_machine_is_believed_while_its_heart_beats_by_the_stores_clock(s3, store, monkeypatch):
    leave_lock(store, _Holder(lease=ELSEWHERE, namespace="", started="", nonce="1"))
    for jump in (-1e9, 1e9):
        monkeypatch.setattr(time, "time", lambda jump=jump: jump)
        s3.older = {"/.lock": STALE_SECONDS / 2}
        with pytest.raises(RunBusyError, match=r"process 1 on elsewhere, since 2026-.*last heard of 3[01] s ago"):
            store.lock().__enter__()
        s3.older = {"/.lock": STALE_SECONDS + 2}
        with store.lock():
            assert json.loads(store.read(".lock"))["lease"]["process"] == os.getpid()
        assert store.read(".lock") == b""
        leave_lock(store, _Holder(lease=ELSEWHERE, namespace="", started="", nonce="1"))


def test_a_dead_process_is_taken_over_at_once_where_it_can_be_seen_to_be_dead(store):
    own = _Holder.own()
    dead = Lease(**asdict(own.lease) | {"process": 2**22 + 1})
    leave_lock(store, _Holder(lease=dead, namespace="pid:[1]", started="", nonce="1"))
    with pytest.raises(RunBusyError):
        store.lock().__enter__()  # another container of this machine: its processes have numbers of their own
    leave_lock(store, _Holder(lease=dead, namespace=own.namespace, started="", nonce="1"))
    with store.lock():
        pass
    # its number is used again
    leave_lock(
        store, _Holder(lease=own.lease, namespace=own.namespace, started="1", nonce="1")
    )  # its number is used again
    with store.lock():
        pass
    leave_lock(store, _Holder.own("1"))  # this process held it, and its store did not answer any more at the end
    with store.lock():
        pass


def test_a_lock_of_another_form_is_believed_until_it_is_old(s3, store):
    store._objects.put(".lock", b"{}")
    with pytest.raises(RunBusyError, match="another version"):
        store.lock().__enter__()
    s3.older = {"/.lock": STALE_SECONDS + 2}
    with store.lock():
        pass


def test_the_heart_beats_while_a_run_is_held(store, monkeypatch):
    monkeypatch.setattr(remote_lease, "HEARTBEAT_SECONDS", 0.02)
    with store.lock():
        seen, end = set(), time.monotonic() + 10
        while len(seen) < 3 and time.monotonic() < end:
            seen.add(store.read(".lock"))
        assert len(seen) >= 3
        store.replace("x", b"1")


def test_who_lost_the_run_writes_no_more(s3, store, monkeypatch):
    monkeypatch.setattr(remote_lease, "HEARTBEAT_SECONDS", 0.02)
    with store.lock():
        leave_lock(store, _Holder(lease=ELSEWHERE, namespace="", started="", nonce="1"))
        end = time.monotonic() + 10
        while not remote._HELD[str(store.root)]._is_lost and time.monotonic() < end:
            time.sleep(0.02)
        with pytest.raises(LeaseLostError, match="not heard of for too long"):
            store.replace("x", b"1")
        with pytest.raises(LeaseLostError):
            open_store(store.root).claim("y", b"1")
    assert "elsewhere" in store.read(".lock").decode(), "what is another's is not freed"


def test_who_slept_too_long_writes_no_more_although_nobody_told_it(store, monkeypatch):
    with store.lock():
        now = remote_lease._clock()
        monkeypatch.setattr(remote_lease, "_clock", lambda: now + STALE_SECONDS)
        with pytest.raises(LeaseLostError):
            store.replace("x", b"1")
    assert not store.exists("x")


def test_who_slept_while_it_held_a_block_harms_nothing_of_its_successor(store):
    """Two holders of one block, whose rows differ by rounding: record and files are of one of them."""
    with store.hold("rows", 0) as slept:
        slept.replace("rows/x", b"slept")
        store._objects.delete(["rows/.lock-0"])  # as its successor does with a hold that is too old
        with store.hold("rows", 0) as awake:
            awake.replace("rows/x", b"awake")
            awake.replace("rows/y", b"awake")
            for write in (slept.replace, slept.claim):
                with pytest.raises(LeaseLostError):
                    write("rows/y", b"slept")
            store._objects.put_if("rows/record.json", b"slept", None)  # it had just asked whether the hold was its own
            awake.claim("rows/record.json", b"awake")
    assert {store.read(f"rows/{name}") for name in store.names("rows")} == {b"awake"}


def test_a_commit_is_eleven_requests_and_a_lock_nine(s3, bucket):
    """As docs/runs.md says: each costs a distant store's latency."""
    with Run.create(f"{bucket}/run", config={}) as run:
        run.documents.finish(run.documents.write(iter([]), label_names=[]), tokenizer="{}")
        row_set = run.new_row_set("rows")
        row_set.freeze(PLAN, pa.table({"unit": pa.array(range(NUM_BLOCKS * SIZE), pa.int64())}))
    row_set.commit(0, content(0))
    s3.reset()
    row_set.commit(1, content(1))
    assert len(s3.requests) == 11
    s3.reset()
    with run.store.lock():
        pass
    assert len(s3.requests) == 9


def test_a_block_whose_hold_was_lost_is_committed_again(bucket, monkeypatch):
    with Run.create(f"{bucket}/run", config={}) as run:
        run.documents.finish(run.documents.write(iter([]), label_names=[]), tokenizer="{}")
        row_set = run.new_row_set("rows")
        row_set.freeze(PLAN, pa.table({"unit": pa.array(range(NUM_BLOCKS * SIZE), pa.int64())}))
    real, times = RemoteLease.confirm, []

    def lose_the_first(self):
        times.append(1)
        if len(times) == 1:
            raise LeaseLostError
        real(self)

    monkeypatch.setattr(RemoteLease, "confirm", lose_the_first)
    assert row_set.commit(2, content(2))["block"] == 2
    assert row_set.committed_blocks() == [2]
    assert len(Run.open(f"{bucket}/run").row_set().stored_block(2)) == SIZE


def test_of_many_threads_exactly_one_gets_the_run(bucket):
    from concurrent.futures import ThreadPoolExecutor
    from threading import Barrier

    barrier = Barrier(4)

    def attempt(_):
        lease = RemoteLease(Objects(bucket), ".lock")
        barrier.wait(30)
        try:
            with lease.held():
                barrier.wait(30)
                return "held"
        except RunBusyError:
            barrier.wait(30)
            return "busy"

    with ThreadPoolExecutor(4) as pool:
        assert sorted(pool.map(attempt, range(4))) == ["busy", "busy", "busy", "held"]


# the journal


@pytest.mark.parametrize("step", [pytest.param(1, marks=pytest.mark.slow), 5])
def test_a_folder_that_was_being_replaced_is_whole_after_the_next_lock(s3, store, monkeypatch, step):
    """Whatever request was the last: the older one, the newer one or none, never a mixture; in the end the newer."""
    content = {
        "old": {"a.npy": b"old", "b.npy": b"old", "facts.json": b"old"},
        "new": {"a.npy": b"new", "facts.json": b"new"},
    }

    def write(version):
        with store.new_folder("quanta/main") as folder:
            for name, data in content[version].items():
                folder.claim(name, data)

    write("old")
    s3.reset()
    write("new")
    number = len(s3.requests)
    monkeypatch.setattr("quantascope.storage.objects.PATIENCE", Patience(tries=1))
    store = open_store(store.root)
    seen = set()
    for last in sorted({*range(0, number, step), number - 4}):
        write("old")
        s3.reset()
        s3.fault = lambda *_, last=last: "reset" if len(s3.requests) >= last else None
        with pytest.raises(StoreUnavailableError):
            write("new")
        s3.reset()
        found = {name: store.read(f"quanta/main/{name}") for name in store.names("quanta/main")}
        if "facts.json" in found:
            assert found in content.values(), last
        with store.lock():
            after = {name: store.read(f"quanta/main/{name}") for name in store.names("quanta/main")}
        assert after in content.values()
        seen.add((found.get("facts.json"), after["facts.json"]))
    possible = {(b"old", b"old"), (b"old", b"new"), (None, b"new"), (b"new", b"new")}
    assert {(b"old", b"old"), (None, b"new")} <= seen <= possible
