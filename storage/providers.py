"""Where objects lie and as whom they are asked for: URIs, providers, credentials from the environment, clients.

Asks nothing of any store. Knows obstore's constructors; not its requests.
"""

import configparser
import os
from dataclasses import dataclass
from datetime import timedelta
from functools import lru_cache
from pathlib import Path
from typing import Any

from ..errors import ConfigurationError, MissingDependencyError

SCHEMES = {"s3": "s3", "s3a": "s3", "gs": "gs", "gcs": "gs", "az": "az", "abfs": "az"}
"""Schemes that are accepted, and what each is in short."""
VARIABLES = {
    "s3": "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY (AWS_SESSION_TOKEN), or AWS_PROFILE",
    "gs": "GOOGLE_APPLICATION_CREDENTIALS",
    "az": "AZURE_STORAGE_ACCOUNT_NAME with AZURE_STORAGE_ACCOUNT_KEY or AZURE_STORAGE_SAS_TOKEN",
}
"""Where each provider's credentials come from."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Patience:
    """How long a request is tried again."""

    tries: int = 8
    first_wait_seconds: float = 0.2
    """Doubled each time, less a random part."""
    longest_wait_seconds: float = 10.0
    connect_seconds: float = 5.0
    silence_seconds: float = 60.0
    """Without a byte from the store, a request has failed."""
    request_seconds: float = 900.0
    """A request has failed after so long in any case."""


def parse(uri: str) -> tuple[str, str, str]:
    """Scheme in short, bucket and prefix; ConfigurationError for what is none of an object store's."""
    scheme, _, rest = uri.partition("://")
    bucket, _, prefix = rest.partition("/")
    parts = prefix.split("/") if prefix else []
    if "@" in bucket:
        raise ConfigurationError(
            f"{scheme}://…@{bucket.rpartition('@')[2]}: credentials and account belong in the environment."
        )
    if scheme not in SCHEMES or not bucket or {"", ".", ".."} & set(parts):
        raise ConfigurationError(
            f"{uri} is no place in an object store: s3://BUCKET/FOLDER is, also with gs:// or az://."
        )
    return SCHEMES[scheme], bucket, prefix


def open_client(place: tuple[str, str, str], patience: Patience, *, retried: bool) -> Any:  # noqa: ANN401
    """obstore's client for scheme, bucket and prefix, kept for its connections while the environment stays.

    `retried` has the client try failed requests again by itself, which large uploads need part by part.
    """
    return _open(place, patience, retried, _environment())


def endpoint() -> str:
    """The server that the environment names in S3's place, or nothing."""
    return os.environ.get("AWS_ENDPOINT_URL") or os.environ.get("AWS_ENDPOINT") or ""


@lru_cache(maxsize=32)
def _open(place: tuple[str, str, str], patience: Patience, retried: bool, _: tuple[tuple[str, str], ...]) -> Any:  # noqa: ANN401
    scheme, bucket, prefix = place
    try:
        from obstore.store import AzureStore, GCSStore, S3Store
    except ImportError as error:
        raise MissingDependencyError(f"{scheme}:// needs obstore ({error}): run `pip install obstore`.") from error
    options: Any = {
        "connect_timeout": timedelta(seconds=patience.connect_seconds),
        "read_timeout": timedelta(seconds=patience.silence_seconds),
        "timeout": timedelta(seconds=patience.request_seconds),
    }
    retry: Any = {
        "max_retries": patience.tries - 1 if retried else 0,
        "retry_timeout": timedelta(seconds=120),
        "backoff": {
            "init_backoff": timedelta(seconds=patience.first_wait_seconds),
            "max_backoff": timedelta(seconds=patience.longest_wait_seconds),
        },
    }
    common: Any = {"prefix": prefix or None, "client_options": options, "retry_config": retry}
    try:
        if scheme == "gs":
            return GCSStore(bucket, **common)
        if scheme == "az":
            return AzureStore(bucket, **common)
        options["allow_http"] = endpoint().startswith("http://")  # nobody writes that by accident
        return S3Store(bucket, **common, **_profile())
    except Exception as error:
        raise ConfigurationError(f"{scheme}://{bucket} cannot be opened: {first_line(error)}.") from error


def first_line(error: Exception) -> str:
    """What obstore's error says, without what it adds for those who debug obstore."""
    return " ".join(str(error).partition("\n\nDebug source")[0].split())


def _environment() -> tuple[tuple[str, str], ...]:
    """All that decides where and as whom obstore asks."""
    return tuple(sorted((k, v) for k, v in os.environ.items() if k.startswith(("AWS_", "GOOGLE_", "AZURE_"))))


def _profile() -> Any:  # noqa: ANN401 - obstore's S3Config
    """Keys of the shared credentials file, where the environment itself holds none."""
    if any(os.environ.get(name) for name in ("AWS_ACCESS_KEY_ID", "AWS_WEB_IDENTITY_TOKEN_FILE", "AWS_SKIP_SIGNATURE")):
        return {}
    name = os.environ.get("AWS_PROFILE", "default")
    keys = _section("AWS_SHARED_CREDENTIALS_FILE", "~/.aws/credentials", name)
    config = _section("AWS_CONFIG_FILE", "~/.aws/config", name if name == "default" else f"profile {name}")
    accepted = {
        "aws_access_key_id": "access_key_id",
        "aws_secret_access_key": "secret_access_key",
        "aws_session_token": "session_token",
    }
    found = {ours: keys[theirs] for theirs, ours in accepted.items() if theirs in keys}
    if "region" in config and not os.environ.get("AWS_REGION"):
        found["region"] = config["region"]
    return found


def _section(variable: str, default: str, name: str) -> dict[str, str]:
    path = Path(os.environ.get(variable) or default).expanduser()
    reader = configparser.ConfigParser(interpolation=None)
    try:
        reader.read(path, encoding="utf-8")
    except configparser.Error as error:
        raise ConfigurationError(f"{path} cannot be read: {error}") from error
    return dict(reader[name]) if reader.has_section(name) else {}
