"""A disk that forgets, when the power goes, what was not synced.

A name (a file's or folder's) lasts once its folder was synced after it was given, moved or taken away; bytes last once
their file was synced. What becomes of the rest is the disk's choice: `lose` makes it in two ways, which bound the
others: no unsynced name lasts, or every name does and unsynced bytes are empty.
"""

import os
import shutil
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.faults.dying_disk import Death


class ForgetfulDisk:
    """Follows what is done to the files below `root`; the power goes before operation number `at`."""

    def __init__(self, root, aside, at=None):
        self._root, self._aside, self._at = Path(root), Path(aside), at
        self.num_operations = 0
        self._unsynced = []
        """Of each name: the folder that must be synced for it, and what undoes it."""
        self._synced = set()
        """Inodes of files whose bytes last."""
        self._real = {name: getattr(os, name) for name in ("link", "replace", "rename", "unlink", "mkdir", "fsync")}
        self._rmtree = shutil.rmtree

    def lose(self, *, names):
        """What the next start finds; `names` says that names last, and unsynced bytes do not."""
        if names:
            for path in self._root.rglob("*"):
                if path.is_file() and path.name != ".lock" and path.stat().st_ino not in self._synced:
                    path.write_bytes(b"")
        else:
            for _, undo in reversed(self._unsynced):
                undo()

    def _step(self):
        if self._at is not None and self.num_operations >= self._at:
            raise Death
        self.num_operations += 1

    def _kept(self, path):
        """A second name for a file, or a copy of a folder, to bring it back by."""
        if not path.exists():
            return None
        kept = self._aside / f"{len(list(self._aside.iterdir()))}"
        if path.is_dir():
            shutil.copytree(path, kept, copy_function=self._real["link"])
        else:
            self._real["link"](path, kept)
        return kept

    def _bring_back(self, kept, path):
        if kept is not None and path.parent.is_dir():
            self._forget(path)
            (shutil.copytree if kept.is_dir() else self._real["link"])(kept, path)

    def _forget(self, path):
        if path.is_dir():
            self._rmtree(path)
        else:
            path.unlink(missing_ok=True)

    def _below(self, path):
        return isinstance(path, (str, os.PathLike)) and Path(path).is_relative_to(self._root)

    def link(self, source, target):
        if self._below(target):
            self._step()
        self._real["link"](source, target)
        if self._below(target):
            self._unsynced.append((Path(target).parent, lambda: self._forget(Path(target))))

    def replace(self, source, target):
        source, target = Path(source), Path(target)
        if not self._below(target):
            return self._real["replace"](source, target)
        self._step()
        older, moved = self._kept(target), self._kept(source)

        def undo():
            self._forget(target)
            self._bring_back(older, target)

        self._real["replace"](source, target)
        self._unsynced.append((source.parent, lambda: self._bring_back(moved, source)))
        self._unsynced.append((target.parent, undo))
        return None

    def unlink(self, path, **options):
        if not self._below(path):
            return self._real["unlink"](path, **options)
        self._step()
        kept = self._kept(Path(path))
        self._real["unlink"](path, **options)
        self._unsynced.append((Path(path).parent, lambda: self._bring_back(kept, Path(path))))
        return None

    def mkdir(self, path, *arguments, **options):
        if self._below(path):
            self._step()
        self._real["mkdir"](path, *arguments, **options)
        if self._below(path):
            self._unsynced.append((Path(path).parent, lambda: self._forget(Path(path))))

    def rmtree(self, path, **options):
        if self._below(path) and Path(path).exists():
            self._step()
            kept = self._kept(Path(path))
            self._unsynced.append((Path(path).parent, lambda: self._bring_back(kept, Path(path))))
        self._rmtree(path, **options)

    def fsync(self, descriptor):
        path = Path(f"/proc/self/fd/{descriptor}").readlink()
        if self._below(path):
            self._step()
            self._synced.add(path.stat().st_ino)
        self._unsynced = [(folder, undo) for folder, undo in self._unsynced if folder != path]
        self._real["fsync"](descriptor)


@contextmanager
def forgetful_disk(root, aside, at=None):
    """While this lasts, what is done below the root is followed; with `at`, the power goes before that operation."""
    disk = ForgetfulDisk(root, aside, at)
    with pytest.MonkeyPatch.context() as patch:
        for name in ("link", "replace", "unlink", "mkdir", "fsync"):
            patch.setattr(os, name, getattr(disk, name))
        patch.setattr(os, "rename", disk.replace)
        patch.setattr("quantascope.storage.local.shutil.rmtree", disk.rmtree)
        yield disk
