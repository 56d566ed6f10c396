"""Every error that quantascope raises on purpose, each with the exit status that the command line gives it.

A message says what is wrong, what was got, what is accepted, and what to do next. Each class also inherits the
built-in exception that a caller would catch. This module knows no other part of the project.
"""

from typing import ClassVar


class QuantascopeError(Exception):
    """The base of all errors raised on purpose."""

    exit_status: ClassVar[int] = 1


class ConfigurationError(QuantascopeError, ValueError):
    """An option, or a combination of options, that cannot work."""

    exit_status = 2


class ModelNotFoundError(QuantascopeError, FileNotFoundError):
    """No model (or tokenizer) where the user said there is one."""

    exit_status = 3


class DatasetNotFoundError(QuantascopeError, FileNotFoundError):
    """No data set, or no such split, where the user said there is one."""

    exit_status = 4


class MissingFieldError(QuantascopeError, KeyError):
    """The data set lacks a field that was asked for."""

    exit_status = 5

    def __str__(self) -> str:
        """Show the message itself; KeyError would show its repr."""
        return str(self.args[0]) if self.args else ""


class BadRowError(QuantascopeError, ValueError):
    """A row of the data set that is empty, null, or not text; names the row by number."""

    exit_status = 6


class EncodingError(QuantascopeError, ValueError):
    """A file that is not UTF-8."""

    exit_status = 7


class QueryTooLongError(QuantascopeError, ValueError):
    """A prompt and completion that do not fit the model's context."""

    exit_status = 8


class BadWeightsError(QuantascopeError, ValueError):
    """A model with NaN or infinite weights."""

    exit_status = 9


class RemoteCodeError(QuantascopeError, PermissionError):
    """A model or data set that wants to run code of its own without a pinned revision and the flag."""

    exit_status = 10


class RunMismatchError(QuantascopeError, ValueError):
    """A run, row set or derived file that was made with another configuration; prints both sides."""

    exit_status = 11


class NoSpaceError(QuantascopeError, OSError):
    """The disk is full, or what was planned cannot fit."""

    exit_status = 12


class RayStartError(QuantascopeError, RuntimeError):
    """Ray could not be started or reached, or has no room for one worker."""

    exit_status = 13


class RunNotFoundError(QuantascopeError, FileNotFoundError):
    """A path that holds no run, or a run without the row set or quanta that were asked for."""

    exit_status = 14


class DamagedRunError(QuantascopeError, OSError):
    """Bytes of a run that do not match their recorded checksum; names the file and the command that mends it."""

    exit_status = 15


class MissingDependencyError(QuantascopeError, ImportError):
    """An optional package that this call needs; names its install line."""

    exit_status = 16


class RunBusyError(QuantascopeError, BlockingIOError):
    """Another process is writing to this run; names it, its host, since when, and its command."""

    exit_status = 17


class IncompleteRunError(QuantascopeError, RuntimeError):
    """Some blocks of a row set are not collected yet; names the command that goes on."""

    exit_status = 18


class CoverageError(QuantascopeError, ValueError):
    """Parameters that the gradient engine cannot cover, where the user asked for an error."""

    exit_status = 19


class WorkerFailedError(QuantascopeError, RuntimeError):
    """Blocks that failed on every try; names them and the last cause."""

    exit_status = 20


class StoreUnavailableError(QuantascopeError, ConnectionError):
    """An object store that does not answer, after a bounded number of tries; names it, and the last cause."""

    exit_status = 21


class StoreAccessError(QuantascopeError, PermissionError):
    """Credentials for an object store that are missing, or that it refuses; names the store and the variables."""

    exit_status = 22
