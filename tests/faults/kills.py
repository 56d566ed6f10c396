"""A job on a cluster of several nodes, and ways to kill parts of it. Every signal is real."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from tests.command_line import SCRIPT, clean_environment

STAGES = ("select", "collect", "index", "cluster")


class Machines:
    """Two worker nodes and a head; all their processes name the temporary folder in their environment."""

    def __init__(self, folder, num_nodes=2):
        self.folder = folder
        self.environment = clean_environment(
            TMPDIR=folder,
            OMP_NUM_THREADS="1",
            RAY_USAGE_STATS_ENABLED="0",
            RAY_worker_niceness="0",  # else workers starve where anything else runs
        )
        command = [sys.executable, str(Path(__file__).with_name("cluster_host.py")), str(num_nodes)]
        self._host = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=self.environment, text=True
        )
        self.address = self._host.stdout.readline().strip()
        assert self.address, "the cluster did not start"

    def tell(self, command):
        self._host.stdin.write(f"{command}\n")
        self._host.stdin.flush()
        return self._host.stdout.readline()

    def close(self):
        self._host.communicate(timeout=120)

    def processes(self, mark=b""):
        """Living processes of the cluster and its jobs whose command line holds the mark."""
        found = []
        for entry in Path("/proc").iterdir():
            try:
                if (
                    entry.name.isdigit()
                    and mark in (entry / "cmdline").read_bytes()
                    and f"TMPDIR={self.folder}".encode() in (entry / "environ").read_bytes().split(b"\0")
                ):
                    found.append(int(entry.name))
            except OSError:
                continue
        return found

    def workers(self):
        """Actors that hold a model."""
        return self.processes(b"ray::Worker")


class Job:
    """The commands that make one run, each given again after the driver died."""

    def __init__(self, machines, run, commands):
        self.machines, self.run, self.commands = machines, Path(run), commands
        """For each stage the command that does it, without its RUN or --out."""
        self.process = None
        self.starts = []
        """For each driver that had blocks left: how many rows it found, and how many were committed when it began."""

    def stage(self):
        """What is to be done next; None when all is."""
        rows = self.run / "rows/token-loss"
        if not (rows / "set.json").exists():
            return "select"
        if len(self.blocks()) < -(-json.loads((rows / "set.json").read_text())["num_units"] // 2):
            return "collect"
        done = {"cluster": self.run / "quanta/main/facts.json", "index": self.run / "index/scan/facts.json"}
        return next(
            (stage for stage in ("index", "cluster") if stage in self.commands and not done[stage].exists()), None
        )

    def blocks(self):
        return sorted((self.run / "rows/token-loss/commits").glob("[0-9]*.json"))

    def kept(self):
        """What is committed, and what tells whether it was written again."""
        found = {}
        rows = self.run / "rows/token-loss"
        for record in self.blocks():
            for name in (record.relative_to(rows), *json.loads(record.read_text())["files"]):
                status = (rows / name).stat()
                found[str(name)] = (status.st_ino, status.st_mtime_ns)
        return found

    def go_on(self):
        """Start the command of the stage at hand, unless it runs."""
        if self.process is not None and self.process.poll() is None:
            if self.stage() in ("index", "cluster") and self.process.args[1] == "collect":
                self.process.wait(300)  # the collection only takes its leave
            else:
                return
        self.require_fine()
        before = 2 * len(self.blocks())
        command = [SCRIPT, *self.commands[self.stage()]]
        self.process = subprocess.Popen(
            command,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            env=self.machines.environment,
            text=True,
        )
        self.starts.append((before, self.process))

    def require_fine(self):
        """A driver ends well, or by the signal that it was sent."""
        if self.process is not None:
            error = self.process.communicate()[1]
            self.process.error = error
            assert self.process.returncode in (0, -signal.SIGKILL, 130, -signal.SIGTERM), error
            assert self.process.returncode != 130 or "To go on: quantascope" in error, error

    def committed_pieces(self):
        return len(list(self.run.glob("begun/*/*/*.json")) + list(self.run.glob("begun/rows/*/*/*.json"))) + len(
            self.blocks()
        )


def wait_until(true, seconds, what):
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, f"not within {seconds} s: {what}"
        time.sleep(0.02)


def kill(job, target, number, chance):
    """Wait for a random moment of the stage at hand, and send the signal; the stage that it struck, if any."""
    machines = job.machines
    job.go_on()
    stage = job.stage()
    if stage in ("index", "cluster") or (target == "driver" and chance.random() < 0.2):
        time.sleep(chance.uniform(0.2, 4.0))  # at any moment, its start among them
    else:
        before = job.committed_pieces()
        wait_until(
            lambda: job.process.poll() is not None or job.committed_pieces() > before or job.stage() != stage,
            600,
            f"a commit in {stage}",
        )
        time.sleep(chance.uniform(0.0, 0.4))
    stage = job.stage()
    if stage is None or job.process.poll() is not None:
        return None
    if target == "driver" or stage in ("index", "cluster"):
        job.process.send_signal(number)
        start = time.monotonic()
        job.process.wait(40)
        if job.process.returncode == 0:
            return None
        told = (130, -signal.SIGTERM)  # the second: Python itself had not begun yet
        assert job.process.returncode in ((-signal.SIGKILL,) if number == signal.SIGKILL else told)
        assert time.monotonic() - start < 30
    elif target == "worker":
        found = machines.workers()
        if not found:
            return None
        os.kill(chance.choice(found), number)
    else:
        machines.tell("kill" if number == signal.SIGKILL else "term")
        machines.tell("add")
    return stage
