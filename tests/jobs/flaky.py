"""An actor that fails on purpose, apart from the tests: a process that runs it need not import what they import."""

import os
import time

from quantascope.errors import ConfigurationError
from quantascope.jobs.collecting.worker import Worker


class Flaky:
    """Dies, fails or refuses at its first task of a number, as the tasks say."""

    def __init__(self, folder):
        self._folder = folder

    def work(self, task):
        mark = self._folder / str(task)
        if not mark.exists():
            mark.touch()
            if task == 1:
                os._exit(1)
            if task == 2:
                raise OSError("a passing fault")
        if task == 9:
            raise OSError("always")
        if task == 8:
            raise ConfigurationError("never try again")
        return task * 10


class Leaving(Worker):
    """A worker without a model, whose pieces of work are naps: it leaves marks of what it began and ended."""

    def __init__(self, folder):
        self._folder = folder
        self._leaving = self._at_work = False

    @property
    def _loaded(self):
        return None

    def nap(self, task):
        with self._working():
            (self._folder / f"{task}-begun-{os.getpid()}").touch()
            time.sleep(1.5)
            (self._folder / f"{task}-ended").touch()
            return os.getpid()
