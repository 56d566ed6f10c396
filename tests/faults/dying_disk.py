"""A process that dies at one chosen write, sync, link, rename, removal or new folder below a folder.

From that moment on nothing that it does reaches the disk: neither what it had still to do nor what its `finally` would
clean up. A write that it dies at leaves half of its bytes.
"""

import os
import shutil
from contextlib import contextmanager
from pathlib import Path

import pytest


class Death(BaseException):
    """Not an Exception: nothing may catch it and go on."""


class DyingDisk:
    """Counts what is done to the files below `root`, and dies at operation number `at`."""

    def __init__(self, root, at=None):
        self._root, self._at = os.fspath(root), at
        self.done = []
        """What was done, in order: a name and a path below the root."""

    @property
    def dead(self):
        return self._at is not None and len(self.done) > self._at

    def count(self, name, path):
        """Whether this operation is the one to die at; Death where it comes later."""
        if self.dead:
            raise Death
        self.done.append((name, os.path.relpath(path, self._root)))
        return self.dead

    def concerns(self, path):
        return isinstance(path, (str, os.PathLike)) and os.fspath(path).startswith(self._root)

    def wrap(self, name, real, which=0):
        """The operation, done unless it is the one to die at."""

        def call(*arguments, **options):
            path = arguments[which]
            if isinstance(path, int):
                path = str(Path(f"/proc/self/fd/{path}").readlink())
            if self.concerns(path) and self.count(name, path):
                raise Death
            return real(*arguments, **options)

        return call

    def write(self, path, pieces):
        """In place of the store's own: the bytes, and half of them where it dies here."""
        data = b"".join(pieces)
        if self.count("write", path):
            Path(path).write_bytes(data[: len(data) // 2])
            raise Death
        with Path(path).open("xb", buffering=0) as handle:
            handle.write(data)
            os.fsync(handle.fileno())


@contextmanager
def dying_disk(root, at=None):
    """While this lasts, what is done below the root is counted, and number `at` (from 0) is fatal."""
    disk = DyingDisk(root, at)
    with pytest.MonkeyPatch.context() as patch:
        for name, which in (("link", 1), ("replace", 1), ("rename", 0), ("unlink", 0), ("mkdir", 0), ("fsync", 0)):
            patch.setattr(os, name, disk.wrap(name, getattr(os, name), which))
        patch.setattr("quantascope.storage.local.shutil.rmtree", disk.wrap("rmtree", shutil.rmtree))
        patch.setattr("quantascope.storage.local._write", disk.write)
        yield disk
