"""The command line as tests call it: in this process, or as a process of its own with a clean environment."""

import os
import signal
import sys
from pathlib import Path

import pytest

SCRIPT = str(Path(sys.executable).with_name("quantascope"))


def run_main(*arguments):
    """Call the command line's entry with these arguments; return its exit status."""
    from quantascope.api.cli import main

    before = signal.getsignal(signal.SIGTERM)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["quantascope", *map(str, arguments)])
        try:
            main()
        except SystemExit as leaving:
            return leaving.code or 0
        finally:
            signal.signal(signal.SIGTERM, before)
    return 0


def clean_environment(**extra):
    """This process's environment without what a Ray in it has set."""
    return {k: v for k, v in os.environ.items() if not k.startswith("RAY_")} | extra


def contents(root):
    """Every file of a run that must be equal between equal runs: all but the log and the lock."""
    files = [p for p in Path(root).rglob("*") if p.is_file() and p.name != ".lock" and "log" not in p.parts]
    return {p.relative_to(root).as_posix(): p.read_bytes() for p in files}
