import errno
import multiprocessing
import os
from pathlib import Path

import pytest

from quantascope.errors import NoSpaceError, RunBusyError, RunNotFoundError
from quantascope.storage.local import LocalStore


def test_a_claimed_file_is_never_overwritten(tmp_path):
    store = LocalStore(tmp_path)
    assert store.claim("a/b", b"first")
    assert not store.claim("a/b", b"second")
    assert store.read("a/b") == b"first"


def test_nothing_but_the_named_file_is_left(tmp_path):
    store = LocalStore(tmp_path)
    store.claim("one", b"1")
    store.claim("one", b"2")
    store.replace("two", b"2")
    assert sorted(p.name for p in tmp_path.rglob("*") if p.is_file()) == ["one", "two"]


def test_a_new_folder_appears_whole_or_not_at_all(tmp_path):
    store = LocalStore(tmp_path)
    with store.new_folder("quanta/main") as folder:
        folder.claim("x", b"old")
    with pytest.raises(ZeroDivisionError), store.new_folder("quanta/main") as folder:
        folder.claim("x", b"%d" % (1 // 0))
    assert store.read("quanta/main/x") == b"old"
    with store.new_folder("quanta/main") as folder:
        folder.claim("x", b"new")
    assert store.read("quanta/main/x") == b"new"
    assert store.names("quanta") == ["main"]


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(RunNotFoundError, match="gone"):
        LocalStore(tmp_path).read("gone")


def _hold(root, ready, leave):
    with LocalStore(root).lock():
        ready.set()
        leave.wait(30)


def test_a_run_is_written_by_one_process_and_free_again_when_it_is_killed(tmp_path):
    context = multiprocessing.get_context("spawn")
    ready, leave = context.Event(), context.Event()
    process = context.Process(target=_hold, args=(tmp_path, ready, leave))
    process.start()
    assert ready.wait(30)
    with pytest.raises(RunBusyError, match=str(process.pid)), LocalStore(tmp_path).lock():
        pass
    process.kill()
    process.join()
    with LocalStore(tmp_path).lock():
        pass


def test_the_lock_sweeps_what_a_killed_process_left(tmp_path):
    left = tmp_path / ".tmp" / "1-abc"
    left.parent.mkdir()
    left.write_bytes(b"half")
    with LocalStore(tmp_path).lock():
        assert not left.exists()


def test_a_full_disk_leaves_nothing_half_and_says_what_to_do(tmp_path, monkeypatch):
    def full(_descriptor):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(NoSpaceError, match="free some space"):
        LocalStore(tmp_path).claim("a", b"1")
    assert not (tmp_path / "a").exists()
    assert not list((tmp_path / ".tmp").iterdir())


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_real_refusal_of_the_disk_has_the_number_that_is_caught():
    with pytest.raises(OSError, match="No space") as caught, Path("/dev/full").open("wb", buffering=0) as handle:
        handle.write(b"x")
    assert caught.value.errno == errno.ENOSPC
