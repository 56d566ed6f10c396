"""A Ray to run on: a local one of the command's own, or a given cluster.

A local Ray has no dashboard, sends no statistics, and has a token of its own that only this user can read. The
environment's RAY_ADDRESS is ignored unless asked for with address="auto".
"""

import atexit
import logging
import os
import secrets
import shutil
import signal
import sys
import tempfile
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from ...errors import ConfigurationError, RayStartError

_OBJECT_STORE_BYTES = 100_000_000  # Ray's least is 75 MB: rows go to the run, not through the object store
_NEEDED_BYTES = 500_000_000
_MANY = 1_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class RayOptions:
    """Where the workers run, and how many there are."""

    address: str | None = None
    """None starts a local Ray; `auto` or HOST:PORT joins a cluster."""
    num_workers: int | None = None
    """None takes one worker per `threads_per_worker` cores of this machine (or of the cluster)."""
    threads_per_worker: int = 1
    gpus_per_worker: float = 0
    allow_no_token: bool = False
    """Join a cluster that has no token authentication."""
    metrics_port: int | None = None
    """Where a local Ray serves Prometheus metrics, on this machine; None takes any free port. A cluster's nodes have
    ports of their own."""

    def __post_init__(self) -> None:
        if self.num_workers is not None and self.num_workers < 1:
            raise ConfigurationError(f"--workers is {self.num_workers}; give 1 or more.")
        if self.metrics_port is not None and not (self.address is None and 0 < self.metrics_port < 65_536):
            raise ConfigurationError(
                f"--metrics-port is {self.metrics_port}; give a port below 65,536, and only for a local Ray: the nodes "
                "of a cluster serve their metrics themselves."
            )
        if self.gpus_per_worker < 0:
            raise ConfigurationError(f"--gpus-per-worker is {self.gpus_per_worker}; give 0 or more.")
        if self.threads_per_worker < 1:
            raise ConfigurationError(f"--threads-per-worker is {self.threads_per_worker}; give 1 or more.")


@contextmanager
def ray_session(options: RayOptions) -> Iterator[int]:
    """Connect to Ray, and hand out how many workers to start. A Ray that the caller has connected to is used as is."""
    if _is_initialised():
        yield _num_workers(options)
        return
    _authenticate(options)
    _init(options)
    try:
        yield _num_workers(options)
    finally:
        import ray

        ray.shutdown()


def require_token(options: RayOptions) -> None:
    """RayStartError for a cluster that would be joined without a token, unless the user insists. Starts nothing."""
    if options.address is not None and os.environ.get("RAY_AUTH_MODE") != "token" and not options.allow_no_token:
        raise RayStartError(
            f"The cluster at {options.address} would be joined without a token, which leaves it open to anyone who "
            "reaches it. Set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN_PATH, or insist with --allow-no-token."
        )


def _init(options: RayOptions) -> None:
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    import ray

    if options.address is None:
        _require_room()
    arguments: dict[str, Any] = {"address": options.address or "local", "log_to_driver": False}
    if options.address is None:
        cpus = max(os.cpu_count() or 1, (options.num_workers or 1) * options.threads_per_worker)
        arguments |= {
            "include_dashboard": False,
            "num_cpus": cpus,
            "object_store_memory": _OBJECT_STORE_BYTES,
            "_metrics_export_port": options.metrics_port,
        }
    try:
        with _sigterm_kept():
            ray.init(configure_logging=True, logging_level=logging.ERROR, **arguments)
    except (RuntimeError, OSError, ValueError, ConnectionError, TimeoutError) as error:
        where = f"The cluster at {options.address}" if options.address else "A local Ray"
        raise RayStartError(
            f"{where} could not be reached or started: {str(error).splitlines()[0]}. "
            "Check the address and the token (RAY_AUTH_TOKEN_PATH), free memory, and space below the temporary folder."
        ) from error


@contextmanager
def _sigterm_kept() -> Iterator[None]:
    """Ray takes SIGTERM for itself, prints a stack and dies of it: give the caller's handler back."""
    before = signal.getsignal(signal.SIGTERM)
    yield
    if before is not None and threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, before)


def _authenticate(options: RayOptions) -> None:
    """Token authentication is on: our own token for a local Ray, the user's for a cluster."""
    require_token(options)
    if options.address is None:
        os.environ["RAY_AUTH_MODE"] = "token"
        os.environ["RAY_AUTH_TOKEN_PATH"] = str(_own_token())
        _reread_authentication()


def _reread_authentication() -> None:
    """Ray reads these variables when it is imported, which the caller may have done long before."""
    raylet = sys.modules.get("ray._raylet")
    if raylet is not None:
        raylet.Config.initialize("")
        raylet.AuthenticationTokenLoader.instance().reset_cache()


@cache
def _own_token() -> Path:
    """A file with a random token that only this user can read; one per process, since Ray reads it only once."""
    folder = Path(tempfile.mkdtemp(prefix="quantascope-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    token = folder / "ray-token"
    token.touch(mode=0o600)
    token.write_text(secrets.token_hex(32))
    return token


def worker_room(options: RayOptions) -> int:
    """How many workers the cluster holds when all of it is free: as it is now, or as its autoscaler may make it."""
    import ray

    now = sum(_fitting(options, node["Resources"]) for node in ray.nodes() if node["Alive"])
    return max(now, _room_to_come(options))


def _room_to_come(options: RayOptions) -> int:
    """How many workers fit on the nodes that an autoscaler may start; 0 where there is none."""
    from ray._private.state import state

    config = state.get_cluster_config()
    groups = config.node_group_configs if config is not None else ()
    return sum(
        _fitting(options, dict(group.resources)) * (group.max_count if group.max_count >= 0 else _MANY)
        for group in groups
    )


def _fitting(options: RayOptions, resources: Mapping[str, float]) -> int:
    """Workers that fit on one node."""
    room = int(resources.get("CPU", 0) // options.threads_per_worker)
    if options.gpus_per_worker:
        room = min(room, int(resources.get("GPU", 0) // options.gpus_per_worker))
    return room


def _num_workers(options: RayOptions) -> int:
    """How many workers to start; RayStartError, at once, if the cluster will never have room for them."""
    room = worker_room(options)
    wanted = options.num_workers or max(room, 1)
    if wanted > room:
        raise RayStartError(
            f"Ray has room for {room} workers of {options.threads_per_worker} threads"
            f"{f' and {options.gpus_per_worker:g} GPU' if options.gpus_per_worker else ''}, {wanted} were asked for: "
            "give a smaller --workers, or a larger cluster."
        )
    return wanted


def _require_room() -> None:
    for folder in (Path(tempfile.gettempdir()), Path("/dev/shm")):  # noqa: S108 - where Ray keeps sockets and objects
        if folder.is_dir():
            status = os.statvfs(folder)
            free = status.f_bavail * status.f_frsize
            if free < _NEEDED_BYTES:
                raise RayStartError(
                    f"No room for Ray to start: {folder} has {free / 1e6:.0f} MB free, {_NEEDED_BYTES / 1e6:.0f} MB "
                    "are needed. Free some, or point TMPDIR at a larger disk."
                )


def _is_initialised() -> bool:
    """Whether this process has connected to Ray already; does not import it to find out."""
    ray = sys.modules.get("ray")
    return ray is not None and bool(ray.is_initialized())
