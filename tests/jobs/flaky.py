"""An actor that fails on purpose, apart from the tests: a process that runs it need not import what they import."""

import os

from quantascope.errors import ConfigurationError


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
