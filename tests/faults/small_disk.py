"""A collection on a disk that is too small, then read only, then large enough: `python small_disk.py FOLDER COMMAND…`.

Runs in a mount namespace of its own (`unshare -rm`). Prints, as JSON, what each try came to and the digests at the end.
"""

import hashlib
import json
import subprocess
import sys
from contextlib import redirect_stderr, redirect_stdout
from io import StringIO
from pathlib import Path

from tests.command_line import contents, run_main
from tests.here import workers_here


def mount(folder, options):
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)], check=True)


def attempt(command, run):
    told = StringIO()
    with redirect_stdout(StringIO()), redirect_stderr(told), workers_here():
        status = run_main(*command, "--out", run)
    commits = len(list(run.glob("rows/*/commits/*.json")))
    return {"status": status, "told": told.getvalue().splitlines()[-1], "commits": commits}


def main():
    folder, command = Path(sys.argv[1]), sys.argv[2:]
    run = folder / "run"
    mount(folder, "size=420k")
    tries = [attempt(command, run)]
    mount_again = ["mount", "-o"]
    subprocess.run([*mount_again, "remount,ro", str(folder)], check=True)
    tries.append(attempt(command, run))
    subprocess.run([*mount_again, "remount,rw,size=64m", str(folder)], check=True)
    tries.append(attempt(command, run))
    digests = {name: hashlib.sha256(data).hexdigest() for name, data in contents(run).items()}
    print(json.dumps({"tries": tries, "digests": digests}))  # noqa: T201 - its answer


if __name__ == "__main__":
    main()
