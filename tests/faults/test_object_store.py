"""The same run in an object store: every command on it, the same bytes, and what the network does to them."""

import json
import random
import signal
import subprocess
import time

import pytest

from quantascope.errors import (
    DamagedRunError,
    RunBusyError,
    RunMismatchError,
    RunNotFoundError,
    StoreAccessError,
    StoreUnavailableError,
)
from quantascope.jobs.copying import copy
from quantascope.jobs.repair import repair
from quantascope.jobs.verify import verify
from quantascope.jobs.workers.ray_session import RayOptions
from quantascope.storage import Run
from quantascope.storage.checked import encode_json
from quantascope.storage.providers import Patience
from quantascope.storage.run import open_store
from tests.command_line import SCRIPT, clean_environment, contents
from tests.here import workers_here

ROWS = "rows/token-loss"


def fetched(uri):
    """Every object of a run that must be equal between equal runs."""
    store = open_store(uri)
    return {key: store.read(key) for key in store.keys() if not key.startswith("log/")}  # noqa: SIM118 - a method


def collected(small_run):
    """What a collection alone leaves of the run with everything."""
    return {k: v for k, v in contents(small_run).items() if k.split("/")[0] in ("manifest.json", "documents", "rows")}


@pytest.fixture
def remote(bucket, small_run):
    """A copy of the small run in the store."""
    copy(str(small_run), f"{bucket}/runs/small")
    return f"{bucket}/runs/small"


def test_every_command_works_on_it_and_gives_the_same_bytes(
    cli, bucket, small_run, small_collection, quick_collect, tmp_path
):
    uri = f"{bucket}/runs/small"
    quick_collect(small_collection(uri))
    cli("cluster", uri, "--num-quanta", "3")
    cli("trace", uri, "When John and", " Mary", "--save", "Mary")
    wanted = {k: v for k, v in contents(small_run).items() if not k.startswith("curves/")}
    assert fetched(uri) == wanted
    assert json.loads(cli("info", uri, "--json")[0])["path"] == uri
    assert cli("ls", bucket)[0] == f"{uri}\n"
    cli("report", uri, "--out", tmp_path / "report.html")
    assert (tmp_path / "report.html").stat().st_size > 50_000
    assert "every file is as it was written" in cli("verify", uri)[0]
    cli("rm", uri, "--quanta", "main", "--yes")
    assert {k.split("/")[0] for k in fetched(uri)} == {"manifest.json", "documents", "rows", "traces"}
    cli("rm", uri, "--yes")
    assert not list(open_store(bucket).keys())


FAULTS = ("503", "503", "reset", "torn", "lost", "cut", "slow")


@pytest.mark.parametrize("seed", [0, *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(1, 10))])
def test_a_collection_on_a_bad_network_gives_the_same_bytes(
    s3, bucket, small_run, small_collection, quick_collect, seed
):
    chance = random.Random(seed)
    s3.fault = lambda *_: chance.choice(FAULTS) if chance.random() < 0.2 else None
    quick_collect(small_collection(f"{bucket}/run"))
    assert {found for _, _, found in s3.requests} >= set(FAULTS)
    s3.reset()
    assert fetched(f"{bucket}/run") == collected(small_run)
    assert not open_store(f"{bucket}/run").names("rows/token-loss/.lock")


def versions(uri):
    """What tells whether committed files were written again: every write has a later time, or another version."""
    store = open_store(uri)
    row_set = Run.open(uri).row_set()
    files = [(f"commits/{b:05d}.json", *row_set.record(b)["files"]) for b in row_set.committed_blocks()]
    return {key: store._objects.facts(f"{ROWS}/{key}") for names in files for key in names}


@pytest.mark.parametrize("step", [pytest.param(1, marks=[pytest.mark.slow, pytest.mark.timeout(3600)]), 80])
def test_a_collection_whose_store_goes_away_goes_on_to_the_same_bytes(
    s3,
    bucket,
    small_run,
    small_collection,
    quick_collect,
    monkeypatch,
    step,
):
    """It goes away at every request in turn: what has no record does not exist, what has one is not made again."""
    quick_collect(small_collection(f"{bucket}/first"))
    writes = [i for i, (method, _, _) in enumerate(s3.requests) if method in ("PUT", "POST", "DELETE")]
    wanted, missed, said = collected(small_run), 0, "give the same command again"
    for number in [*writes[::step], writes[-3]]:
        uri = f"{bucket}/run-{number}"
        s3.reset()
        gone = random.Random(number).choice(("503", "reset", "torn", "lost"))
        s3.fault = lambda *_, gone=gone, last=number: gone if len(s3.requests) >= last else None
        with monkeypatch.context() as patch:
            patch.setattr("quantascope.storage.objects.PATIENCE", Patience(tries=1))
            try:
                quick_collect(small_collection(uri))
            except StoreUnavailableError as error:
                said = str(error)
            else:  # heartbeats go by the clock: this collection may have had fewer requests than the first
                assert not any(fault for *_, fault in s3.requests), f"nothing was said of request {number}"
                missed += 1
        assert "give the same command again" in said
        s3.reset()
        has_records = open_store(uri).exists(f"{ROWS}/commits")
        before = versions(uri) if has_records else {}
        quick_collect(small_collection(uri))
        assert fetched(uri) == wanted, number
        assert {key: value for key, value in versions(uri).items() if key in before} == before, "committed work is kept"
    assert missed <= 3


def test_a_run_is_copied_both_ways_and_proved(cli, remote, small_run, tmp_path):
    assert fetched(remote) == contents(small_run)
    assert verify(remote).is_clean
    out, _ = cli("copy", remote, tmp_path / "back")
    assert f"is a proved copy of {remote}" in out
    assert contents(tmp_path / "back") == contents(small_run)
    assert json.loads(cli("copy", small_run, remote, "--json")[0])["copied_here"] == 0
    open_store(remote).replace(f"{ROWS}/units/00001.parquet", b"other bytes")
    assert json.loads(cli("copy", small_run, remote, "--json")[0])["copied_here"] == 1


def test_half_a_copy_is_no_run(s3, bucket, refused, small_run, monkeypatch):
    uri = f"{bucket}/copy"
    s3.fault = lambda *_: "torn" if len(s3.requests) > 60 else None
    with monkeypatch.context() as patch:
        patch.setattr("quantascope.storage.objects.PATIENCE", Patience(tries=1))
        with pytest.raises(StoreUnavailableError):
            copy(str(small_run), uri)
    s3.reset()
    assert "copy that was not finished" in refused(RunNotFoundError, "info", uri)
    copy(str(small_run), uri)
    assert fetched(uri) == contents(small_run)


def test_damage_in_the_store_is_named_never_answered_from_and_mended(cli, remote, small_run):
    store = open_store(remote)
    key = f"{ROWS}/gradients/c/1/0"
    data = bytearray(store.read(key))
    data[100] ^= 4
    store.replace(key, bytes(data))
    with pytest.raises(DamagedRunError, match=f"{remote}/{key} is damaged"):
        Run.open(remote).row_set().unit_rows()
    out, _ = cli("verify", remote, "--json", status=DamagedRunError.exit_status)
    finding = json.loads(out)["findings"][0]
    assert (finding["file"], finding["kind"], finding["mend"]) == (key, "damaged", f"quantascope repair {remote}")
    with workers_here():
        assert all(mended.proved for mended in repair(remote, ray_options=RayOptions(num_workers=1)).mended)
    assert fetched(remote) == contents(small_run)


def test_what_cannot_be_worked_on_is_said_in_one_sentence(s3, bucket, refused, remote, old_run, small_run):
    assert "holds no run" in refused(RunNotFoundError, "info", f"{bucket}/nothing")
    assert "there is no bucket" in refused(RunNotFoundError, "cluster", "s3://no-such-bucket/run")
    store = open_store(remote)
    manifest = json.loads(store.read("manifest.json"))
    manifest.pop("checksum")
    store.replace("manifest.json", encode_json(manifest | {"schema_version": 99}))
    assert "schema version 99, this quantascope reads up to" in refused(RunMismatchError, "verify", remote)
    copy(str(old_run), f"{bucket}/old")
    assert Run.open(f"{bucket}/old").row_set().unit_rows()[1].shape[0] > 0
    assert "holds another run" in refused(RunMismatchError, "copy", small_run, f"{bucket}/old")
    with open_store(f"{bucket}/old").lock():
        assert "is being written to by process" in refused(RunBusyError, "cluster", f"{bucket}/old")
    s3.fault = lambda *_: "403"
    assert "refused these credentials" in refused(StoreAccessError, "info", remote)


def test_refused_credentials_stop_a_collection_before_its_model_is_loaded(
    s3, bucket, collect_flags, refused, monkeypatch
):
    monkeypatch.setattr("quantascope.jobs.collecting.collect.load_model", lambda _: pytest.fail("that takes long"))
    s3.fault = lambda *_: "403"
    refused(StoreAccessError, *collect_flags, "--out", f"{bucket}/run")


@pytest.mark.slow
@pytest.mark.ray
def test_workers_on_ray_write_to_the_store_and_a_killed_driver_costs_nothing(s3, bucket, collect_flags, reference_run):
    uri = f"{bucket}/run"
    command = [SCRIPT, *collect_flags, "--out", uri]
    process = subprocess.Popen(command, env=clean_environment(), stderr=subprocess.DEVNULL)
    end = time.monotonic() + 120
    while len(open_store(uri).names(f"{ROWS}/commits")) < 3 and time.monotonic() < end:
        time.sleep(0.2)
    process.send_signal(signal.SIGKILL)
    process.wait()
    before = versions(uri)
    assert 3 <= len(before) / 4 < 50
    subprocess.run(command, check=True, env=clean_environment(), stderr=subprocess.DEVNULL)
    assert {key: value for key, value in versions(uri).items() if key in before} == before
    assert fetched(uri) == contents(reference_run)
