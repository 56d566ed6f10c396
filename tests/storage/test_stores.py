"""What a run asks of the place where it lies, of a folder and of an object store alike."""

import hashlib
import multiprocessing
import os
import time

import pytest

from quantascope.errors import DamagedRunError, RunBusyError, RunNotFoundError
from quantascope.storage import remote
from quantascope.storage.run import open_store


@pytest.fixture(params=["folder", "s3"])
def place(request, tmp_path):
    return str(tmp_path / "run") if request.param == "folder" else f"{request.getfixturevalue('bucket')}/a/run"


@pytest.fixture
def store(place):
    return open_store(place)


def test_a_claimed_name_is_never_overwritten(store):
    assert store.claim("a/b", b"first")
    assert not store.claim("a/b", b"second")
    assert not store.claim("a/b", b"first")
    assert store.read("a/b") == b"first"
    store.replace("a/b", b"third")
    assert list(store.keys()) == ["a/b"]
    assert store.read("a/b") == b"third"


def test_files_are_found_by_name_and_by_folder(store):
    for key in ("manifest.json", "rows/one/set.json", "rows/one-more/set.json", "traces/Übung, 100%/facts.json"):
        store.replace(key, b"{}")
    assert store.names("") == ["manifest.json", "rows", "traces"]
    assert store.names("rows") == ["one", "one-more"]
    assert store.names("rows/none") == []
    assert sorted(store.keys()) == sorted(store.listed().keys())
    assert len(list(store.keys())) == 4
    for view in (store, store.listed()):
        assert [view.exists(k) for k in ("rows/one", "rows/one/set.json", "rows/on", "none")] == [
            True,
            True,
            False,
            False,
        ]
        assert view.size_bytes("traces/Übung, 100%/facts.json") == 2


@pytest.mark.parametrize("size", [0, 1, 12_000_000])
def test_bytes_come_back_whole_and_in_pieces(store, size, monkeypatch):
    monkeypatch.setattr(remote, "_IN_MEMORY_BYTES", 1 << 20)
    monkeypatch.setattr("quantascope.storage.objects._PART_BYTES", 5 << 20)
    monkeypatch.setattr("quantascope.storage.objects._PIECE_BYTES", 5 << 20)
    data = os.urandom(size)
    store.replace("x", iter([data[:1000], data[1000:]]))
    assert store.read("x") == b"".join(store.pieces("x")) == data
    sha256 = hashlib.sha256(data).hexdigest()
    assert store.digest("x") == sha256
    assert bytes(store.mapped("x", sha256)) == store.file("x", sha256).read_bytes() == data
    assert list(store.keys()) == ["x"]


def test_many_records_at_once(store):
    records = {f"{i:05d}.json": b"%d" % i for i in range(20)}
    for name, data in records.items():
        store.replace(f"commits/{name}", data)
    assert store.read_all("commits", records) == records
    store.replace("commits/00003.json", b"new")
    assert store.read_all("commits", records)["00003.json"] == b"new"
    with pytest.raises(RunNotFoundError, match=r"00099\.json"):
        store.read_all("commits", ["00001.json", "00099.json"])


def test_what_is_missing_or_damaged_is_named(store):
    for read in (
        store.read,
        store.size_bytes,
        lambda key: list(store.pieces(key)),
        lambda key: store.file(key, "0" * 64),
    ):
        with pytest.raises((RunNotFoundError, FileNotFoundError), match="gone"):
            read("gone")
    store.replace("x", b"1")
    for key in ("gone", "x"):
        for read in (store.mapped, store.read_checked):
            with pytest.raises(DamagedRunError, match=f"{store.path(key)} is .*quantascope verify"):
                read(key, "0" * 64)


def test_a_new_folder_appears_whole_or_not_at_all(store):
    with store.new_folder("quanta/main") as folder:
        folder.claim("x.npy", b"old")
        folder.claim("facts.json", b"1")
    with pytest.raises(ZeroDivisionError), store.new_folder("quanta/main") as folder:
        folder.claim("facts.json", b"%d" % (1 // 0))
    assert store.read("quanta/main/x.npy") == b"old"
    with store.new_folder("quanta/main") as folder:
        folder.claim("y.npy", b"new")
        folder.claim("facts.json", b"2")
    assert store.names("quanta/main") == ["facts.json", "y.npy"]
    assert store.read("quanta/main/facts.json") == b"2"
    assert not [key for key in store.keys() if key.startswith(".tmp")]  # noqa: SIM118 - a method


def test_files_and_folders_are_moved_and_removed(store):
    for key in ("rows/a/x", "rows/a/b/y", "rows/ab", "old/z"):
        store.replace(key, key.encode())
    store.move("rows/a", "old")
    assert sorted(store.keys()) == ["old/b/y", "old/x", "rows/ab"], "in place of what was there"
    store.move("rows/ab", "damaged/rows/ab")
    assert store.read("damaged/rows/ab") == b"rows/ab"
    store.remove("old")
    store.remove("damaged/rows/ab")
    assert not list(store.keys())


def test_the_second_to_write_is_told_who_does(place):
    with open_store(place).lock():
        for _ in range(2):
            with pytest.raises(RunBusyError, match=rf"{place} is being written to by process {os.getpid()} on "):
                open_store(place).lock().__enter__()
    with pytest.raises(ZeroDivisionError), open_store(place).lock():
        raise ZeroDivisionError
    with open_store(place).lock():
        pass


def test_the_lock_sweeps_what_a_killed_process_left(store):
    store.replace(".tmp/1-abc", b"half")
    with store.lock():
        assert not list(store.keys())
        store.leave()
    assert not store.exists("")


def _count_up(place, times):
    store = open_store(place)
    for _ in range(times):
        with store.hold("rows", 3) as held:
            before = int(held.read("rows/number")) if held.exists("rows/number") else 0
            held.replace("rows/number", b"%d" % (before + 1))


def test_one_process_at_a_time_holds_a_number(place):
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=_count_up, args=(place, 3)) for _ in range(2)]
    for process in processes:
        process.start()
    _count_up(place, 3)
    for process in processes:
        process.join()
        assert process.exitcode == 0
    assert open_store(place).read("rows/number") == b"9"
    assert list(open_store(place).keys()) in (["rows/number"], ["rows/number", "rows/.lock"])


def test_a_place_that_is_ready_says_nothing_and_is_left_as_it_was(store):
    store.require_ready()
    assert not list(store.keys())
    assert store.free_bytes() > 0


def _hold_for_ever(place, ready):
    with open_store(place).lock(), open_store(place).hold("rows", 3):
        ready.set()
        time.sleep(60)


def test_what_a_killed_process_held_is_free_at_once(place):
    context = multiprocessing.get_context("spawn")
    ready = context.Event()
    process = context.Process(target=_hold_for_ever, args=(place, ready))
    process.start()
    assert ready.wait(60)
    with pytest.raises(RunBusyError, match=f"process {process.pid} on "):
        open_store(place).lock().__enter__()
    process.kill()
    process.join()
    begin = time.monotonic()
    with open_store(place).lock(), open_store(place).hold("rows", 3):
        assert time.monotonic() - begin < 20, "and not when its last heartbeat is old"
