"""An object store's own: its lease, its errors, its cache, and requests that networks and stores do not answer."""

import hashlib
import json
import os
import shutil
import subprocess
import time
from dataclasses import asdict

import pyarrow as pa
import pytest

from quantascope.errors import (
    ConfigurationError,
    DamagedRunError,
    NoSpaceError,
    RunBusyError,
    RunNotFoundError,
    StoreAccessError,
    StoreUnavailableError,
)
from quantascope.storage import Run, remote, remote_lease
from quantascope.storage.lease import STALE_SECONDS, Lease, LeaseLostError
from quantascope.storage.object_cache import ObjectCache
from quantascope.storage.objects import PATIENCE, Objects
from quantascope.storage.providers import Patience
from quantascope.storage.remote import RemoteStore
from quantascope.storage.remote_lease import RemoteLease, _Holder
from quantascope.storage.run import find_runs, open_store
from tests.storage.test_commits import NUM_BLOCKS, PLAN, SIZE, content

ELSEWHERE = Lease(host="elsewhere", boot="b-1", process=1, since="2026-01-02T03:04:05+00:00", command="quantascope x")
FAULTS = ("503", "reset", "torn", "lost", "cut", "silence", "slow")


@pytest.fixture
def store(bucket):
    return open_store(f"{bucket}/a/run")


def sha256_of(data):
    return hashlib.sha256(data).hexdigest()


class First:
    """A fault at the first request of each method and path, `limit` in all."""

    def __init__(self, fault, limit=None):
        self._fault, self._limit, self._seen = fault, limit, set()

    def __call__(self, method, path):
        if (method, path) in self._seen or len(self._seen) == self._limit:
            return None
        self._seen.add((method, path))
        return self._fault


# requests


@pytest.mark.parametrize("fault", FAULTS)
def test_whatever_happens_to_a_request_it_is_tried_again_and_does_its_work_once(s3, store, fault):
    s3.fault = First(fault, limit=3 if fault in ("silence", "slow") else None)
    data = os.urandom(300_000)
    assert store.claim("a", b"mine"), "also where only the answer to it was lost"
    assert not store.claim("a", b"theirs")
    store.replace("rows/b", data)
    assert store.read("a") == b"mine"
    assert store.names("") == ["a", "rows"]
    assert store.digest("rows/b") == sha256_of(data)
    assert bytes(store.mapped("rows/b", sha256_of(data))) == data
    with store.new_folder("quanta/main") as folder:
        folder.claim("facts.json", b"{}")
    store.move("a", "c")
    store.remove("rows")
    assert sorted(store.keys()) == ["c", "quanta/main/facts.json"]
    assert {found for _, _, found in s3.requests} >= {fault}


def test_a_large_object_that_breaks_off_goes_on_where_it_stopped(s3, store, monkeypatch):
    monkeypatch.setattr("quantascope.storage.objects._PIECE_BYTES", 1 << 20)
    data = os.urandom(5 << 20)
    store.replace("x", data)
    s3.fault = First("cut")
    assert b"".join(store.pieces("x")) == data


@pytest.mark.parametrize("size", [1000, 12_000_000])
def test_a_torn_upload_leaves_nothing_that_is_taken_for_data(s3, store, size, monkeypatch):
    monkeypatch.setattr("quantascope.storage.remote._IN_MEMORY_BYTES", 1 << 20)
    monkeypatch.setattr("quantascope.storage.objects._PART_BYTES", 5 << 20)
    store.replace("x", b"before")
    s3.fault = lambda method, path: "torn" if method == "PUT" else None
    for key in ("x", "y"):
        with pytest.raises(StoreUnavailableError):
            store.replace(key, iter([bytes(size)]))
    s3.reset()
    assert store.read("x") == b"before"
    assert list(store.keys()) == ["x"]


def test_a_store_that_throttles_for_ever_is_asked_so_often_and_no_more(s3, store):
    s3.fault = lambda *_: "503"
    begin = time.monotonic()
    with pytest.raises(StoreUnavailableError) as caught:
        store.read("x")
    assert time.monotonic() - begin < 5
    assert len(s3.requests) == PATIENCE.tries
    message = str(caught.value)
    assert message.startswith(f"{store.root} does not answer: {PATIENCE.tries} tries in ")
    assert "503 SlowDown: Please reduce your request rate.. What was committed is safe" in message
    assert f"endpoint {s3.url}" in message
    assert "give the same command again" in message


def test_waits_grow_and_are_bounded(s3, bucket, monkeypatch):
    waits = []
    monkeypatch.setattr("quantascope.storage.objects.time.sleep", waits.append)
    s3.fault = lambda *_: "503"
    with pytest.raises(StoreUnavailableError):
        Objects(bucket, Patience(tries=9)).read("x")
    bounds = [min(10.0, 0.2 * 2**number) for number in range(8)]
    assert all(bound / 2 <= wait <= bound for wait, bound in zip(waits, bounds, strict=True))


def test_a_server_that_is_not_there_is_named(store, monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    with pytest.raises(StoreUnavailableError, match=r"endpoint http://127\.0\.0\.1:1"):
        store.read("x")


# what is refused


@pytest.mark.parametrize("missing", ["AWS_ACCESS_KEY_ID", "all"])
def test_missing_credentials_are_said_at_once(bucket, monkeypatch, tmp_path, missing):
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        if missing in ("all", name):
            monkeypatch.delenv(name)
    begin = time.monotonic()
    with pytest.raises((StoreAccessError, ConfigurationError), match=r"AWS_ACCESS_KEY_ID|AccessKey"):
        Run.open(f"{bucket}/run")
    assert time.monotonic() - begin < 5


def test_credentials_may_come_from_the_shared_file(bucket, monkeypatch, tmp_path):
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    (tmp_path / "keys").write_text("[mine]\naws_access_key_id = key\naws_secret_access_key = secret%\n")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "keys"))
    monkeypatch.setenv("AWS_PROFILE", "mine")
    assert open_store(f"{bucket}/run").claim("x", b"1")


def test_refused_credentials_are_not_tried_again(s3, store):
    s3.fault = lambda *_: "403"
    for ask in (lambda: store.read("x"), lambda: store.claim("x", b"1"), store.require_ready, store.lock().__enter__):
        before = len(s3.requests)
        with pytest.raises(
            StoreAccessError, match=rf"{store.root}: the store refused.*AccessDenied.*AWS_ACCESS_KEY_ID"
        ):
            ask()
        assert len(s3.requests) == before + 1


def test_a_bucket_that_does_not_exist_is_named(s3):
    for ask in (
        Run.open,
        find_runs,
        lambda uri: open_store(uri).require_ready(),
        lambda uri: open_store(uri).read("x"),
    ):
        with pytest.raises(RunNotFoundError, match="there is no bucket 'no-such-bucket'"):
            ask("s3://no-such-bucket/run")


def test_a_store_without_conditional_writes_is_refused_before_anything_is_written(s3, store):
    s3.fault = lambda *_: "careless"
    with pytest.raises(ConfigurationError, match="knows no If-None-Match"), Run.create(store.root, config={}):
        pass
    s3.reset()
    assert not list(store.keys())


@pytest.mark.parametrize(
    ("place", "said"),
    [
        ("memory://run", "dies with one process"),
        ("https://host/run", "no place that can be written to"),
        ("ftp://host/run", "not known"),
        ("s3://", "no place in an object store"),
        ("s3://bucket//run", "no place in an object store"),
        ("s3://bucket/../run", "no place in an object store"),
        ("s3://key:secret@bucket/run", "belong in the environment"),
        ("s3://key:secret@bucket//run", "belong in the environment"),
    ],
)
def test_places_that_are_none_are_refused(place, said):
    with pytest.raises(ConfigurationError, match=said) as caught:
        open_store(place)
    assert "secret" not in str(caught.value)


def test_other_places_are_known_by_their_scheme(tmp_path):
    assert open_store(f"file://{tmp_path}/a%20run").root == tmp_path / "a run"
    for uri in ("gs://bucket/run", "az://container/run", "abfs://container/run"):
        assert str(open_store(uri).root) == uri
        assert isinstance(open_store(uri), RemoteStore)


def test_a_uri_that_holds_no_run_is_refused(bucket):
    with pytest.raises(RunNotFoundError, match=f"{bucket}/nothing holds no run"):
        Run.open(f"{bucket}/nothing")
    assert find_runs(bucket) == []


# the lease


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


# the cache


def test_nothing_is_fetched_twice(s3, store, bucket):
    store.replace("x", b"1" * 1000)
    sha256 = sha256_of(b"1" * 1000)
    s3.reset()
    for _ in range(2):
        assert len(open_store(f"{bucket}/a/run").mapped("x", sha256)) == 1000
        assert len(open_store(f"{bucket}/a/run").read_checked("x", sha256)) == 1000
    assert [method for method, _, _ in s3.requests] == ["GET"]


def test_a_copy_that_went_bad_is_fetched_again_and_the_object_is_not_blamed(store, bucket):
    store.replace("x", b"1234")
    path = store.file("x", sha256_of(b"1234"))
    for spoil in (b"1235", b"", b"12"):
        path.write_bytes(spoil)
        assert bytes(open_store(store.root).mapped("x", sha256_of(b"1234"))) == b"1234"
    store.replace("x", b"1235")
    store.forget(sha256_of(b"1234"))
    with pytest.raises(DamagedRunError, match=f"{store.root}/x is damaged"):
        open_store(store.root).mapped("x", sha256_of(b"1234"))


def test_the_cache_is_bounded_and_drops_what_was_used_longest_ago(tmp_path):
    cache = ObjectCache(tmp_path / "cache", 1000)
    datas = [bytes([i]) * 300 for i in range(5)]
    for i, data in enumerate(datas):
        path = cache.put(sha256_of(data), [data[:100], data[100:]])
        os.utime(path, (i, i))
        if i == 2:
            os.utime(cache.get(sha256_of(datas[0])), (10, 10))
    assert [cache.get(sha256_of(data)) is not None for data in datas] == [True, False, False, True, True]
    large = bytes(5000)
    assert cache.put(sha256_of(large), [large]).stat().st_size == 5000, "what is asked for is given in any case"
    assert not [p for p in (tmp_path / "cache").iterdir() if p.is_file()]
    assert (tmp_path / "cache").stat().st_mode & 0o077 == 0


def test_bytes_of_another_digest_are_not_kept(tmp_path):
    cache = ObjectCache(tmp_path / "cache")
    assert cache.put(sha256_of(b"1"), [b"2"]) is None
    assert cache.get(sha256_of(b"1")) is None
    assert not [p for p in (tmp_path / "cache").rglob("*") if p.is_file()]


def test_a_cache_smaller_than_what_is_read_still_serves(store, monkeypatch):
    monkeypatch.setenv("QUANTASCOPE_CACHE_BYTES", "10")
    small = open_store(store.root)
    places = []
    for number in range(12):
        data = os.urandom(50)
        store.replace(f"{number}", data)
        places.append((f"{number}", sha256_of(data)))
    for place, _ in zip(places, small.ahead(places), strict=True):
        assert sha256_of(bytes(small.mapped(*place))) == place[1]


def test_a_cache_that_cannot_be_written_to_says_so(store, monkeypatch, tmp_path):
    store.replace("x", b"1")
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with pytest.raises(ConfigurationError, match="XDG_CACHE_HOME"):
        open_store(store.root).mapped("x", sha256_of(b"1"))
    monkeypatch.setenv("QUANTASCOPE_CACHE_BYTES", "many")
    with pytest.raises(ConfigurationError, match="QUANTASCOPE_CACHE_BYTES is 'many'"):
        open_store(store.root)


@pytest.fixture
def full_disk(tmp_path):
    folder = tmp_path / "full"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(folder)], capture_output=True)
    if mounted.returncode:
        pytest.skip("needs the right to mount a small file system")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


@pytest.mark.skipif(not shutil.which("mount"), reason="needs mount")
def test_a_full_disk_under_the_cache_says_what_to_do(store, monkeypatch, full_disk):
    data = os.urandom(200_000)
    store.replace("x", data)
    monkeypatch.setenv("XDG_CACHE_HOME", str(full_disk))
    with pytest.raises(NoSpaceError, match="QUANTASCOPE_CACHE_BYTES"):
        open_store(store.root).mapped("x", sha256_of(data))
    assert not [p for p in full_disk.rglob("*") if p.is_file()]
