"""Starting a local Ray, in a process of its own."""

import subprocess
import sys

import pytest

RAY_FIRST = """
import ray
from quantascope.jobs.workers.ray_session import RayOptions, ray_session
with ray_session(RayOptions(num_workers=1)):
    print(ray.get(ray.remote(lambda: "ran").remote()))
"""


@pytest.mark.ray
@pytest.mark.slow
def test_a_local_ray_starts_although_ray_was_imported_before(monkeypatch):
    """Ray keeps the authentication mode that it found when it was imported."""
    monkeypatch.delenv("RAY_AUTH_MODE", raising=False)
    done = subprocess.run([sys.executable, "-c", RAY_FIRST], capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode, done.stdout.strip()) == (0, "ran"), done.stderr[-2000:]
