"""The same collection as a job on a cluster that somebody else started, with token authentication."""

import os
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from quantascope.errors import RayStartError
from tests.command_line import SCRIPT, clean_environment, contents

pytestmark = pytest.mark.ray
RAY = str(Path(sys.executable).with_name("ray"))


def free_ports(number):
    sockets = [socket.socket() for _ in range(number)]
    for opened in sockets:
        opened.bind(("127.0.0.1", 0))
    ports = [opened.getsockname()[1] for opened in sockets]
    for opened in sockets:
        opened.close()
    return ports


def call(*command, environment):
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=120)


@pytest.fixture(scope="module")
def cluster():
    """A head node with two cores and a token; gives the ports of Ray and of its dashboard, and who may join."""
    folder = Path(tempfile.mkdtemp(prefix="qs"))  # short, for Ray's sockets
    token = folder / "token"
    token.touch(mode=0o600)
    token.write_text(secrets.token_hex(32))
    environment = clean_environment(RAY_AUTH_MODE="token", RAY_AUTH_TOKEN_PATH=str(token), TMPDIR=str(folder))
    port, dashboard, agent, client, metrics = free_ports(5)
    try:
        started = call(
            *(RAY, "start", "--head", "--num-cpus", "2", "--port", str(port), "--disable-usage-stats"),
            *("--include-dashboard", "true", "--dashboard-host", "127.0.0.1", "--dashboard-port", str(dashboard)),
            *("--node-ip-address", "127.0.0.1", "--temp-dir", str(folder / "ray")),
            *("--dashboard-agent-listen-port", str(agent), "--ray-client-server-port", str(client)),
            *("--metrics-export-port", str(metrics), "--object-store-memory", "100000000"),
            environment=environment,
        )
        assert started.returncode == 0, started.stderr
        yield port, dashboard, environment
    finally:
        stop(folder)
        shutil.rmtree(folder, ignore_errors=True)


def stop(folder):
    """End every process of this cluster; `ray stop` would end those of others too."""
    for entry in Path("/proc").iterdir():
        try:
            if entry.name.isdigit() and f"TMPDIR={folder}".encode() in (entry / "environ").read_bytes().split(b"\0"):
                os.kill(int(entry.name), 9)
        except OSError:
            continue


def test_a_submitted_job_collects_the_same_bytes_and_a_token_is_needed(cluster, collect_flags, reference_run, tmp_path):
    port, dashboard, environment = cluster
    job = call(
        *(RAY, "job", "submit", "--address", f"http://127.0.0.1:{dashboard}", "--"),
        *(SCRIPT, *collect_flags, "--out", str(tmp_path / "run"), "--ray-address", "auto"),
        environment=environment,
    )
    assert job.returncode == 0, job.stdout[-3000:] + job.stderr[-3000:]
    assert "succeeded" in job.stdout
    assert "200 rows of 128 numbers" in job.stdout
    assert contents(tmp_path / "run") == contents(reference_run)

    join = [SCRIPT, *collect_flags, "--out", str(tmp_path / "other"), "--ray-address", f"127.0.0.1:{port}"]
    without = call(*join, environment=clean_environment(TMPDIR=environment["TMPDIR"]))
    assert without.returncode == RayStartError.exit_status
    assert "Set RAY_AUTH_MODE=token" in without.stderr
    assert "Traceback" not in without.stderr


@pytest.mark.slow  # Ray itself tries for 20 s
def test_the_cluster_refuses_a_wrong_token(cluster, collect_flags, tmp_path):
    port, _, environment = cluster
    (tmp_path / "token").write_text("0" * 64)
    join = [SCRIPT, *collect_flags, "--out", str(tmp_path / "run"), "--ray-address", f"127.0.0.1:{port}"]
    wrong = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(tmp_path / "token")}
    refused = call(*join, environment=clean_environment(TMPDIR=environment["TMPDIR"], **wrong))
    assert refused.returncode == RayStartError.exit_status
    assert "Check the address and the token (RAY_AUTH_TOKEN_PATH)" in refused.stderr
    assert "Traceback" not in refused.stderr
