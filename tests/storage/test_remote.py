"""Requests to an object store that networks and stores do not answer, and places that are none."""

import hashlib
import os
import time

import pytest

from quantascope.errors import (
    ConfigurationError,
    RunNotFoundError,
    StoreAccessError,
    StoreUnavailableError,
)
from quantascope.storage import Run
from quantascope.storage.objects import PATIENCE, Objects
from quantascope.storage.providers import Patience
from quantascope.storage.remote import RemoteStore
from quantascope.storage.run import find_runs, open_store

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
