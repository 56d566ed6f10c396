"""Collection without Ray: its workers live in this process. For tests of what is collected, not of who collects it.

That both give the same bytes is tested in `jobs/test_collect.py`.
"""

import sys
from contextlib import contextmanager, nullcontext
from types import SimpleNamespace

import pytest


class Actor:
    """Stands for a Ray actor's class and for its handle: what it is asked for is done at once."""

    def __init__(self, made_of):
        self._made_of = made_of

    def options(self, **_):
        return self

    def remote(self, *arguments):
        return Actor(self._made_of(*arguments))

    def __getattr__(self, name):
        return Actor(getattr(self._made_of, name))


class Pool:
    """Stands for a WorkerPool: one worker, and the first error is raised as it is."""

    def __init__(self, make_worker, num_workers, **_):
        assert num_workers in (None, 1)
        self._worker = make_worker()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        """Leave nothing behind; there is no process to end."""

    def run(self, tasks, submit, *, on_done, what="block"):
        for task in tasks:
            on_done(task, submit(self._worker, task)._made_of)


class Uncounted:
    """Stands for Ray's metrics."""

    def __init__(self, run):
        self.pool = lambda _: None

    def listen(self, listener):
        return listener


@contextmanager
def workers_here():
    """While this lasts, `collect` works in this process, whatever its options ask for."""
    with pytest.MonkeyPatch.context() as patch:
        # In place of the module: a Ray that is imported here, before `ray_session` sets its token, never takes one.
        patch.setitem(sys.modules, "ray", SimpleNamespace(remote=Actor))
        patch.setattr("quantascope.jobs.collecting.passes.WorkerPool", Pool)
        patch.setattr("quantascope.jobs.collecting.passes.ray_session", lambda _: nullcontext(1))
        patch.setattr("quantascope.jobs.collecting.passes.Metrics", Uncounted)
        yield
