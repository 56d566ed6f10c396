"""Real processes, really killed: what was committed stays, and the same command goes on to the same bytes."""

import json
import os
import random
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from pathlib import Path

import pytest

from quantascope.errors import RunBusyError
from tests.command_line import SCRIPT, clean_environment, contents

pytestmark = pytest.mark.ray


@pytest.fixture
def temporary():
    """A temporary folder for a command and its Ray, which name it in their environment; short, for Ray's sockets."""
    folder = tempfile.mkdtemp(prefix="qs")
    yield folder
    for process in processes_of(folder):
        os.kill(process, signal.SIGKILL)
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def start(collect_flags, temporary):
    """Starts the collection as a process with a Ray of its own, which hears Ctrl-C even where these tests do not.

    A shell's background jobs ignore it, and so would what they start.
    """
    started = []
    before = signal.signal(signal.SIGINT, signal.default_int_handler)

    def call(out):
        environment = clean_environment(TMPDIR=temporary)
        command = [SCRIPT, *collect_flags, "--out", str(out)]
        started.append(subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment))
        return started[-1]

    yield call
    signal.signal(signal.SIGINT, before)
    for process in started:
        process.kill()
        process.communicate()


def processes_of(folder):
    """Living processes that name the folder in their environment."""
    found = []
    for entry in Path("/proc").iterdir():
        try:
            if entry.name.isdigit() and f"TMPDIR={folder}".encode() in (entry / "environ").read_bytes().split(b"\0"):
                found.append(int(entry.name))
        except OSError:
            continue
    return found


def working(folder):
    """Those that compute, hold memory or write. Ray's two agents tell a dead head of it for a minute, and then end."""
    return [process for process in processes_of(folder) if b"Agent" not in command_of(process)]


def command_of(process):
    try:
        return Path(f"/proc/{process}/cmdline").read_bytes()
    except OSError:
        return b""


def wait_until(true, seconds):
    end = time.monotonic() + seconds
    while not true() and time.monotonic() < end:
        time.sleep(0.02)
    assert true(), f"not within {seconds} s"


def committed(run):
    """Each file that a commit record names, and the record, with the time at which it was written."""
    rows = run / "rows/token-loss"
    found = {}
    for record in (rows / "commits").glob("[0-9]*.json"):
        for name in (record.relative_to(rows), *json.loads(record.read_text())["files"]):
            found[str(name)] = (rows / name).stat().st_mtime_ns
    return found


def stop_at_a_random_moment(process, run, number):
    """Send a signal after the first commit that the process makes."""
    seed = time.time_ns()
    delay = random.Random(seed).uniform(0, 0.3)
    print(f"seed {seed}: signal {number} {delay:.3f} s after the first new commit")  # noqa: T201 - for a failure's report
    before = len(committed(run))
    wait_until(lambda: process.poll() is not None or len(committed(run)) > before, 90)
    time.sleep(delay)
    process.send_signal(number)
    return process.communicate(timeout=30)


def require_interrupted(process, err, run, temporary):
    message = err.decode()
    assert process.returncode == 130, message
    assert "interrupted; what was committed is kept. To go on: quantascope collect --model" in message
    assert f"--out {run}" in message
    assert "Traceback" not in message
    assert "***" not in message, "Ray's own handler has spoken"
    wait_until(lambda: not working(temporary), 20)


def test_killed_then_terminated_a_collection_goes_on_to_the_same_bytes(
    ray_cluster, start, temporary, cli, collect_flags, reference_run, tmp_path
):
    run = tmp_path / "run"
    process = start(run)
    stop_at_a_random_moment(process, run, signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL, "the collection was over before it was killed"
    wait_until(lambda: not working(temporary), 20)
    kept = committed(run)

    process = start(run)
    _, err = stop_at_a_random_moment(process, run, signal.SIGTERM)
    require_interrupted(process, err, run, temporary)
    more = committed(run)
    assert len(kept) < len(more) < 200, "each stop leaves work to do"

    out, _ = cli(*collect_flags, "--out", run)
    assert f"{200 - len(more)} collected now" in out
    assert contents(run) == contents(reference_run)
    finished = committed(run)
    assert {name: finished[name] for name in kept | more} == kept | more, "no committed block is written again"


@pytest.mark.slow
def test_a_second_collection_is_told_who_is_at_work_and_the_first_finishes(
    start, cli, collect_flags, reference_run, tmp_path
):
    run = tmp_path / "run"
    process = start(run)
    wait_until(lambda: (run / ".lock").exists() and (run / ".lock").read_bytes(), 60)
    _, err = cli(*collect_flags, "--out", run, status=RunBusyError.exit_status)
    assert f"{run} is being written to by process {process.pid} on {socket.gethostname()}, since 20" in err
    assert "(quantascope collect --model " in err
    process.communicate(timeout=120)
    assert process.returncode == 0
    assert contents(run) == contents(reference_run)


@pytest.mark.slow
def test_an_interrupted_collection_says_how_to_go_on(start, temporary, reference_run, tmp_path):
    run = tmp_path / "run"
    process = start(run)
    _, err = stop_at_a_random_moment(process, run, signal.SIGINT)
    require_interrupted(process, err, run, temporary)
    assert committed(run).keys() <= committed(reference_run).keys()
    wait_until(lambda: not processes_of(temporary), 20)
    assert not list(Path(temporary).glob("quantascope-*")), "the token is removed"


@pytest.mark.slow
def test_after_a_kill_the_last_process_of_ray_ends_by_itself(start, temporary, tmp_path):
    process = start(tmp_path / "run")
    stop_at_a_random_moment(process, tmp_path / "run", signal.SIGKILL)
    wait_until(lambda: not processes_of(temporary), 90)
