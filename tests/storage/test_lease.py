"""Who holds a run: with real processes on this machine, and with leases as another machine would leave them."""

import errno
import json
import multiprocessing
import os
import socket
import subprocess
import sys
import time
from dataclasses import asdict

import pytest

from quantascope.errors import RunBusyError
from quantascope.storage import lease as leases
from quantascope.storage.lease import STALE_SECONDS, Lease
from quantascope.storage.local import LocalStore

ELSEWHERE = Lease(host="elsewhere", boot="b-1", process=1, since="2026-01-02T03:04:05+00:00", command="quantascope x")
HOLD = """
import sys, time
from quantascope.storage.local import LocalStore
with LocalStore(sys.argv[1]).lock():
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def holder(tmp_path):
    """Starts a process that holds the folder until it is killed."""
    started = []

    def start():
        command = [sys.executable, "-c", HOLD, str(tmp_path)]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        started.append(process)
        assert process.stdout.readline() == "held\n"
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


def leave(folder, lease, *, seconds_ago):
    path = folder / ".lock"
    path.write_text(json.dumps(asdict(lease)))
    then = time.time() - seconds_ago
    os.utime(path, (then, then))


def test_the_second_process_is_told_who_holds_the_run(tmp_path, holder):
    process = holder()
    with pytest.raises(RunBusyError) as caught, LocalStore(tmp_path).lock():
        pass
    message = str(caught.value)
    assert f"process {process.pid} on {socket.gethostname()}, since 20" in message
    assert f"-c {tmp_path}" in message, "the command"


def test_a_dead_process_on_this_machine_is_taken_over_at_once(tmp_path, holder):
    process = holder()
    process.kill()
    process.wait()
    assert json.loads((tmp_path / ".lock").read_text())["process"] == process.pid, "it could not clean up"
    with LocalStore(tmp_path).lock():
        assert json.loads((tmp_path / ".lock").read_text())["process"] == os.getpid()
    assert (tmp_path / ".lock").read_bytes() == b""


def test_of_many_processes_exactly_one_gets_it(tmp_path):
    context = multiprocessing.get_context("spawn")
    results = context.Queue()
    barrier = context.Barrier(4)
    processes = [context.Process(target=_try, args=(tmp_path, barrier, results)) for _ in range(4)]
    for process in processes:
        process.start()
    found = sorted(results.get(timeout=30) for _ in processes)
    for process in processes:
        process.join()
    assert found == ["busy", "busy", "busy", "held"]


def _try(folder, barrier, results):
    barrier.wait(30)
    try:
        with LocalStore(folder).lock():
            barrier.wait(30)
            results.put("held")
    except RunBusyError:
        barrier.wait(30)
        results.put("busy")


def test_another_machine_is_believed_while_its_heart_beats(tmp_path):
    leave(tmp_path, ELSEWHERE, seconds_ago=STALE_SECONDS / 2)
    with pytest.raises(RunBusyError, match=r"process 1 on elsewhere, since 2026-.*last heard of 30 s ago"):
        LocalStore(tmp_path).lock().__enter__()
    leave(tmp_path, ELSEWHERE, seconds_ago=STALE_SECONDS + 1)
    with LocalStore(tmp_path).lock():
        pass


def test_clocks_need_not_agree(tmp_path, monkeypatch):
    """Ages are told by the file system's clock; this process's may jump as it likes."""
    leave(tmp_path, ELSEWHERE, seconds_ago=0)
    monkeypatch.setattr(time, "time", lambda: 1e12)
    with pytest.raises(RunBusyError, match="elsewhere"):
        LocalStore(tmp_path).lock().__enter__()


def test_the_heart_beats_while_a_run_is_held(tmp_path, monkeypatch):
    monkeypatch.setattr(leases, "HEARTBEAT_SECONDS", 0.01)
    with LocalStore(tmp_path).lock():
        os.utime(tmp_path / ".lock", (1, 1))
        end = time.monotonic() + 10
        while (tmp_path / ".lock").stat().st_mtime < 2 and time.monotonic() < end:
            time.sleep(0.01)
        assert (tmp_path / ".lock").stat().st_mtime > 2


def test_a_file_of_another_form_holds_nobody_up(tmp_path):
    for content in (b"123", b"{}", b"\xff", b'{"host": 1}'):
        (tmp_path / ".lock").write_bytes(content)
        with LocalStore(tmp_path).lock():
            pass


def test_without_the_kernels_locks_a_living_process_still_holds(tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(leases.fcntl, "flock", refuse)
    own = leases.own_lease()
    for process, is_held in ((os.getppid(), True), (2**22 + 1, False)):
        other = Lease(host=own.host, boot=own.boot, process=process, since=own.since, command="x")
        leave(tmp_path, other, seconds_ago=0)
        if is_held:
            with pytest.raises(RunBusyError, match=f"process {process}"):
                LocalStore(tmp_path).lock().__enter__()
        else:
            with LocalStore(tmp_path).lock():
                pass


def test_an_error_ends_the_lease(tmp_path):
    with pytest.raises(ZeroDivisionError), LocalStore(tmp_path).lock():
        raise ZeroDivisionError
    assert (tmp_path / ".lock").read_bytes() == b""
