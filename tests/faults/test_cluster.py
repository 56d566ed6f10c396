"""A cluster of several nodes on this machine: workers that come and go with them, what is refused at once, metrics."""

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time

import pytest

from quantascope.errors import RayStartError
from quantascope.jobs.verify import verify
from tests.command_line import SCRIPT, clean_environment
from tests.faults.kills import Machines, wait_until
from tests.tiny import SENTENCES, write_jsonl

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(900)]


@pytest.fixture
def machines():
    folder = tempfile.mkdtemp(prefix="qs")
    found = Machines(folder, num_nodes=1)
    yield found
    found.close()
    for process in found.processes():
        os.kill(process, signal.SIGKILL)
    shutil.rmtree(folder, ignore_errors=True)


def test_workers_come_with_nodes_and_go_with_them(machines, tiny_model_folder, tmp_path):
    """One node, then two, then one of them dies: the job goes on throughout, and asks for no number of workers."""
    texts = [{"text": f"{number} {SENTENCES[number % len(SENTENCES)]}"} for number in range(400)]
    command = [
        *(SCRIPT, "collect", "--model", str(tiny_model_folder), "--out", str(tmp_path / "run")),
        *("--dataset", str(write_jsonl(tmp_path / "data.jsonl", texts)), "--window-tokens", "32", "--max-loss", "100"),
        *("--max-units", "2500", "--rows-per-block", "1", "--dim", "128"),
        *("--ray-address", machines.address, "--allow-no-token"),
    ]
    process = subprocess.Popen(command, env=machines.environment, stderr=subprocess.PIPE, text=True)
    wait_until(lambda: len(machines.workers()) == 1, 200, "a first worker")
    assert machines.tell("add") == "add 2\n"
    wait_until(lambda: len(machines.workers()) == 2 or process.poll() is not None, 200, "a second worker")
    assert process.poll() is None, process.communicate()[1] or "the job was over before the second node was used"
    assert machines.tell("kill") == "kill 1\n"
    error = process.communicate(timeout=400)[1]
    assert process.returncode == 0, error
    assert len(list((tmp_path / "run/rows/token-loss/commits").glob("*.json"))) == 2500
    assert verify(str(tmp_path / "run")).is_clean


def test_what_a_cluster_will_never_have_is_refused_at_once(machines, collect_flags, tmp_path):
    flags = collect_flags[: collect_flags.index("--workers")]
    join = [SCRIPT, *flags, "--out", str(tmp_path / "run"), "--ray-address", machines.address]
    asked = {
        ("--gpus-per-worker", "4"): "room for 0 workers of 1 threads and 4 GPU, 1 were asked for",
        ("--workers", "50"): "room for 1 workers of 1 threads, 50 were asked for",
        ("--threads-per-worker", "64"): "room for 0 workers of 64 threads, 1 were asked for",
    }
    for more, message in asked.items():
        done = subprocess.run(
            [*join, "--allow-no-token", *more], env=machines.environment, capture_output=True, text=True, timeout=200
        )
        assert done.returncode == RayStartError.exit_status, done.stderr
        assert message in done.stderr
        assert "Traceback" not in done.stderr
    assert "without a token" in subprocess.run(join, env=machines.environment, capture_output=True, text=True).stderr


METRICS = """
import sys, time, urllib.request
from quantascope.jobs.workers.metrics import Metrics
from quantascope.jobs.workers.pool import PoolState
from quantascope.jobs.workers.progress import Stage, ignore
from quantascope.jobs.workers.ray_session import RayOptions, ray_session
port = int(sys.argv[1])
with ray_session(RayOptions(num_workers=1, metrics_port=port)):
    metrics = Metrics("demo")
    Stage(metrics.listen(ignore), "collect", total=10, unit="rows").advance(4)
    metrics.pool(PoolState(workers=2, starting=1, tried_again=3, set_aside=5))
    page = ""
    while page.count("ray_quantascope_") < 8 * 3:
        time.sleep(0.5)
        try:
            page = urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10).read().decode()
        except OSError:
            continue
    print(page)
"""


def test_progress_is_served_to_prometheus():
    with socket.socket() as opened:
        opened.bind(("127.0.0.1", 0))
        port = opened.getsockname()[1]
    command = [sys.executable, "-c", METRICS, str(port)]
    environment = clean_environment(RAY_metrics_report_interval_ms="500")
    begun = time.monotonic()
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment)
    assert done.returncode == 0, f"after {time.monotonic() - begun:.0f} s: {done.stderr[-2000:]}"
    lines = [line for line in done.stdout.splitlines() if line.startswith("ray_quantascope_")]
    values = {re.match(r"ray_quantascope_(\w+)", line)[1]: float(line.rpartition(" ")[2]) for line in lines}
    assert values["done"] == 4
    assert values["total"] == 10
    assert values["rate"] > 0
    assert values["seconds_left"] > 0
    assert (values["workers"], values["workers_starting"]) == (2, 1)
    assert (values["tried_again"], values["set_aside"]) == (3, 5)
    assert all('run="demo"' in line for line in lines)
    assert any('stage="collect",unit="rows"' in line for line in lines)
