"""Fifty real kills of drivers, workers and nodes, at random moments of every stage: nothing is lost or repeated."""

import os
import random
import re
import shutil
import signal
import tempfile
from collections import Counter

import pytest

from tests.command_line import contents, run_main
from tests.faults.kills import Job, Machines, kill, wait_until
from tests.here import workers_here
from tests.tiny import SENTENCES, write_jsonl

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(2400)]
SEED = 20261121
TARGETS = ("driver", "worker", "node")
SIGNALS = (signal.SIGKILL, signal.SIGTERM)
KILLS = 50
PER_STAGE = {"select": 14, "collect": 20, "index": 8, "cluster": 8}
"""Of them so many; index and cluster run in the driver alone."""


@pytest.fixture(scope="module")
def flags(tiny_model_folder, tmp_path_factory):
    """A collection of 600 units in 300 blocks, found in eleven selection tasks."""
    texts = [{"text": f"{number} {SENTENCES[number % len(SENTENCES)]}"} for number in range(6_000)]
    data = write_jsonl(tmp_path_factory.mktemp("kills") / "data.jsonl", texts)
    return [
        *("collect", "--model", str(tiny_model_folder), "--dataset", str(data), "--max-loss", "100"),
        *("--window-tokens", "32", "--max-units", "600", "--dim", "128", "--rows-per-block", "2"),
    ]


def commands(flags, run, address=None):
    there = ["--ray-address", address, "--allow-no-token"] if address else ["--workers", "1"]
    collect = [*flags, "--out", str(run), *there]
    return {
        "select": collect,
        "collect": collect,
        "index": ["index", str(run), "--name", "scan", "--kind", "flat"],
        "cluster": ["cluster", str(run), "--num-quanta", "20"],
    }


def test_fifty_kills_cost_nothing_that_was_committed(flags, tmp_path):
    with workers_here():
        for stage, command in commands(flags, tmp_path / "whole").items():
            if stage != "select":
                assert run_main(*command) == 0
    whole = contents(tmp_path / "whole")
    chance = random.Random(SEED)
    struck: Counter[tuple[str, str, int]] = Counter()
    folder = tempfile.mkdtemp(prefix="qs")
    machines = Machines(folder)
    try:
        episode = 0
        while not all(count(struck, stage) >= wanted for stage, wanted in PER_STAGE.items()):
            episode += 1
            run = tmp_path / f"run{episode}"
            print(f"run {episode}, {dict(struck)}", flush=True)  # noqa: T201 - how far it is
            one_run(Job(machines, run, commands(flags, run, machines.address)), struck, chance)
            assert contents(run) == whole, f"run {episode}, {dict(struck)}"
            shutil.rmtree(run)
    finally:
        machines.close()
        for process in machines.processes():
            os.kill(process, signal.SIGKILL)
        shutil.rmtree(folder, ignore_errors=True)
    print(f"seed {SEED}, {episode} runs, {sum(struck.values())} kills:", dict(struck))  # noqa: T201 - what was struck
    assert sum(struck.values()) >= KILLS
    for target in TARGETS:
        for number in SIGNALS:
            assert sum(n for (_, t, s), n in struck.items() if (t, s) == (target, number)) >= 5


def count(struck, stage):
    return sum(n for (s, _, _), n in struck.items() if s == stage)


def one_run(job, struck, chance):
    """A run that is killed up to so often in each stage as is still wanted, and then let go on to its end."""
    kept = {}
    here: Counter[str] = Counter()
    while (stage := job.stage()) is not None:
        if here[stage] >= 6 or count(struck, stage) >= PER_STAGE[stage]:
            job.go_on()
            wait_until(
                lambda stage=stage: job.process.poll() is not None or job.stage() != stage, 900, f"end of {stage}"
            )
        else:
            pairs = [(t, n) for t in (TARGETS if stage in ("select", "collect") else TARGETS[:1]) for n in SIGNALS]
            target, number = min(pairs, key=lambda pair, stage=stage: (struck[stage, *pair], chance.random()))
            found = kill(job, target, number, chance)
            if found:
                struck[found, "driver" if found in ("index", "cluster") else target, number] += 1
                here[found] += 1
        kept = job.kept() | kept
    job.process.wait(300)
    job.require_fine()
    finished = job.kept()
    assert {name: finished[name] for name in kept} == kept, "a committed block was written again"
    for before, process in job.starts:
        first = re.search(r"^collect: ([\d,]+) of", process.error, re.MULTILINE)
        if first:
            assert int(first[1].replace(",", "")) >= before, "a driver did not see what was committed"
