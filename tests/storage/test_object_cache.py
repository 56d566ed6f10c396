"""What was fetched from an object store and is kept on this machine."""

import hashlib
import os
import shutil
import subprocess

import pytest

from quantascope.errors import (
    ConfigurationError,
    DamagedRunError,
    NoSpaceError,
)
from quantascope.storage.object_cache import ObjectCache
from quantascope.storage.run import open_store


@pytest.fixture
def store(bucket):
    return open_store(f"{bucket}/a/run")


def sha256_of(data):
    return hashlib.sha256(data).hexdigest()


def test_nothing_is_fetched_twice(s3, store, bucket):
    store.replace("x", b"1" * 1000)
    sha256 = sha256_of(b"1" * 1000)
    s3.reset()
    for _ in range(2):
        assert len(open_store(f"{bucket}/a/run").mapped("x", sha256)) == 1000
        assert len(open_store(f"{bucket}/a/run").read_checked("x", sha256)) == 1000
    assert [method for method, _, _ in s3.requests] == ["GET"]


def test_a_copy_that_went_bad_is_fetched_again_and_the_object_is_not_blamed(store, bucket):
    store.replace("x", b"1234")
    path = store.file("x", sha256_of(b"1234"))
    for spoil in (b"1235", b"", b"12"):
        path.write_bytes(spoil)
        assert bytes(open_store(store.root).mapped("x", sha256_of(b"1234"))) == b"1234"
    store.replace("x", b"1235")
    store.forget(sha256_of(b"1234"))
    with pytest.raises(DamagedRunError, match=f"{store.root}/x is damaged"):
        open_store(store.root).mapped("x", sha256_of(b"1234"))


def test_the_cache_is_bounded_and_drops_what_was_used_longest_ago(tmp_path):
    cache = ObjectCache(tmp_path / "cache", 1000)
    datas = [bytes([i]) * 300 for i in range(5)]
    for i, data in enumerate(datas):
        path = cache.put(sha256_of(data), [data[:100], data[100:]])
        os.utime(path, (i, i))
        if i == 2:
            os.utime(cache.get(sha256_of(datas[0])), (10, 10))
    assert [cache.get(sha256_of(data)) is not None for data in datas] == [True, False, False, True, True]
    large = bytes(5000)
    assert cache.put(sha256_of(large), [large]).stat().st_size == 5000, "what is asked for is given in any case"
    assert not [p for p in (tmp_path / "cache").iterdir() if p.is_file()]
    assert (tmp_path / "cache").stat().st_mode & 0o077 == 0


def test_bytes_of_another_digest_are_not_kept(tmp_path):
    cache = ObjectCache(tmp_path / "cache")
    assert cache.put(sha256_of(b"1"), [b"2"]) is None
    assert cache.get(sha256_of(b"1")) is None
    assert not [p for p in (tmp_path / "cache").rglob("*") if p.is_file()]


def test_a_cache_smaller_than_what_is_read_still_serves(store, monkeypatch):
    monkeypatch.setenv("QUANTASCOPE_CACHE_BYTES", "10")
    small = open_store(store.root)
    places = []
    for number in range(12):
        data = os.urandom(50)
        store.replace(f"{number}", data)
        places.append((f"{number}", sha256_of(data)))
    for place, _ in zip(places, small.ahead(places), strict=True):
        assert sha256_of(bytes(small.mapped(*place))) == place[1]


def test_a_cache_that_cannot_be_written_to_says_so(store, monkeypatch, tmp_path):
    store.replace("x", b"1")
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with pytest.raises(ConfigurationError, match="XDG_CACHE_HOME"):
        open_store(store.root).mapped("x", sha256_of(b"1"))
    monkeypatch.setenv("QUANTASCOPE_CACHE_BYTES", "many")
    with pytest.raises(ConfigurationError, match="QUANTASCOPE_CACHE_BYTES is 'many'"):
        open_store(store.root)


@pytest.fixture
def full_disk(tmp_path):
    folder = tmp_path / "full"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(folder)], capture_output=True)
    if mounted.returncode:
        pytest.skip("needs the right to mount a small file system")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


@pytest.mark.skipif(not shutil.which("mount"), reason="needs mount")
def test_a_full_disk_under_the_cache_says_what_to_do(store, monkeypatch, full_disk):
    data = os.urandom(200_000)
    store.replace("x", data)
    monkeypatch.setenv("XDG_CACHE_HOME", str(full_disk))
    with pytest.raises(NoSpaceError, match="QUANTASCOPE_CACHE_BYTES"):
        open_store(store.root).mapped("x", sha256_of(data))
    assert not [p for p in full_disk.rglob("*") if p.is_file()]
