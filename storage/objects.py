"""Objects in a bucket through obstore: requests that are tried again a bounded number of times, and plain errors.

The one module that makes requests of obstore and knows status codes. Keys are relative to the URI. Every conditional
write leaves a token with its object, so that a write whose answer was lost knows its own.
"""

import random
import re
import secrets
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from ..errors import (
    ConfigurationError,
    RunNotFoundError,
    StoreAccessError,
    StoreUnavailableError,
)
from .providers import VARIABLES, Patience, endpoint, first_line, open_client, parse

if TYPE_CHECKING:
    from obstore.store import AzureStore, GCSStore, S3Store

_PART_BYTES = 16 << 20
"""Objects above this size are sent in parts of it."""
_PAGE = 1000
_PIECE_BYTES = 8 << 20
_MACHINE_CREDENTIALS = ("169.254.169.254", "latest/api/token", "latest/meta-data", "metadata.google", "computeMetadata")
"""Where a machine in a cloud asks who it is; asked in vain by one that is in none."""
_EXPIRED = ("ExpiredToken", "InvalidToken", "TokenRefreshRequired")
"""What S3 answers with status 400, and means the credentials."""
_TOKEN = "quantascope-write"  # noqa: S105 - the name of a piece of metadata
_Found = TypeVar("_Found")


PATIENCE = Patience()


Version = tuple[str | None, str | None]
"""An object's ETag, and its generation where the store numbers them: others for every content."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ObjectFacts:
    """What the store says of an object."""

    size_bytes: int
    version: Version
    modified: datetime
    """By the store's own clock."""


class Objects:
    """The objects under one URI."""

    def __init__(self, uri: str, patience: Patience | None = None) -> None:
        self.uri = uri
        self._scheme, self._bucket, self._prefix = parse(uri)
        self.patience = patience or PATIENCE

    def facts(self, key: str) -> ObjectFacts | None:
        """Size, version and time; None if there is no such object."""
        import obstore

        found = self._try(lambda: obstore.head(self._store(), key), missing=None)
        return None if found is None else _facts(found)

    def read(self, key: str) -> bytes | None:
        """The bytes; None if there is no such object."""
        found = self.read_with_facts(key)
        return None if found is None else found[0]

    def read_with_facts(self, key: str) -> tuple[bytes, ObjectFacts] | None:
        """The bytes, and what the store says of just these."""
        import obstore

        def get() -> tuple[bytes, ObjectFacts]:
            answer = obstore.get(self._store(), key)
            return bytes(answer.bytes()), _facts(answer.meta)

        return self._try(get, missing=None)

    def pieces(self, key: str) -> Iterator[bytes] | None:
        """The bytes, piece by piece; None if there is no such object. One that breaks off goes on where it stopped."""
        import obstore

        answer = self._try(lambda: obstore.get(self._store(), key), missing=None)
        return None if answer is None else self._pieces(key, answer)

    def _pieces(self, key: str, answer: Any) -> Iterator[bytes]:  # noqa: ANN401 - obstore's GetResult
        import obstore

        size, done, stream = answer.meta["size"], 0, iter(answer.stream(min_chunk_size=_PIECE_BYTES))
        while done < size:
            try:
                piece = bytes(next(stream))
            except Exception as error:  # noqa: BLE001 - judged by _refuse
                self._refuse(error)
                break
            done += len(piece)
            yield piece
        for start in range(done, size, _PIECE_BYTES):
            end = min(start + _PIECE_BYTES, size)
            asked = partial(obstore.get_range, self._store(), key, start=start, end=end)
            data = self._try(asked, missing=None)
            if data is None:
                return  # it was removed meanwhile: whoever checks the digest finds it too short
            yield bytes(data)

    def put(self, key: str, data: bytes | Path) -> None:
        """Write an object, whole or not at all, in place of what is there; a file's content in parts."""
        import obstore

        if isinstance(data, Path):
            size = data.stat().st_size
            self._try(
                lambda: obstore.put(
                    self._store(retried=True),  # each part by itself
                    key,
                    data,
                    chunk_size=max(_PART_BYTES, size // 9_000),  # S3 takes 10,000 parts
                    max_concurrency=4,
                ),
                tries=2,
            )
        else:
            self._try(lambda: obstore.put(self._store(), key, data, use_multipart=False))

    def put_if(self, key: str, data: bytes, version: Version | None) -> Version | None:
        """Write an object if it still has this version (None: if there is none); the new version, or None.

        Exactly one of several that try at once is given a version.
        """
        import obstore
        from obstore.exceptions import AlreadyExistsError, PreconditionError

        token, tries = secrets.token_hex(16), 0
        mode: Any = "create"
        if version is not None:
            mode = {name: part for name, part in zip(("e_tag", "version"), version, strict=True) if part is not None}

        def put() -> Version | None:
            nonlocal tries
            tries += 1
            try:
                made = obstore.put(self._store(), key, data, mode=mode, attributes={_TOKEN: token}, use_multipart=False)
            except (AlreadyExistsError, PreconditionError) as error:
                self._refuse(error)
                if _status(str(error)) == 409:  # another request on this name is on its way
                    raise ConnectionError(describe(error)) from error
                return self._own(key, token) if tries > 1 else None  # ours, where only an earlier answer was lost
            return made["e_tag"], made["version"]

        return self._try(put)

    def _own(self, key: str, token: str) -> Version | None:
        import obstore

        try:
            answer = obstore.get(self._store(), key, options={"head": True})
        except FileNotFoundError:
            return None
        found = {name.lower(): value for name, value in answer.attributes.items()}
        return _facts(answer.meta).version if found.get(_TOKEN) == token else None

    def copy(self, key: str, to: str) -> bool:
        """Copy an object inside the store; False if there is none."""
        import obstore

        def copy() -> bool:
            obstore.copy(self._store(), key, to)
            return True

        return self._try(copy, missing=False)

    def delete(self, keys: Sequence[str]) -> None:
        """Delete objects; those that are gone already are none the worse."""
        import obstore

        if keys:
            self._try(lambda: obstore.delete(self._store(), list(keys)), missing=None)

    def below(self, folder: str) -> Iterator[tuple[str, ObjectFacts]]:
        """Key and facts of every object below a folder, in the store's order."""
        import obstore

        last: str | None = None

        def page() -> Any:  # noqa: ANN401 - obstore's own
            return next(obstore.list(self._store(), folder or None, offset=last, chunk_size=_PAGE), ())

        while True:
            found = self._try(page)
            for meta in found:
                yield meta["path"], _facts(meta)
            if len(found) < _PAGE:
                return
            last = found[-1]["path"]

    def directly_in(self, folder: str) -> tuple[list[str], dict[str, ObjectFacts]]:
        """Names of the folders, and names and facts of the objects, that lie directly in a folder."""
        import obstore

        found = self._try(lambda: obstore.list_with_delimiter(self._store(), folder or None))
        folders = [path.rpartition("/")[2] for path in found["common_prefixes"]]
        return folders, {meta["path"].rpartition("/")[2]: _facts(meta) for meta in found["objects"]}

    def _store(self, *, retried: bool = False) -> "S3Store | GCSStore | AzureStore":
        return open_client((self._scheme, self._bucket, self._prefix), self.patience, retried=retried)

    def _try(self, request: Callable[[], _Found], tries: int | None = None, **otherwise: Any) -> _Found:  # noqa: ANN401
        """What a request gives, after as many tries as patience allows; `missing` where there is no such object."""
        begin = time.monotonic()
        tries = tries or self.patience.tries
        for number in range(1, tries + 1):
            try:
                return request()
            except FileNotFoundError as error:
                if "missing" not in otherwise or "NoSuchBucket" in str(error):
                    self._refuse(error)
                    raise
                found: _Found = otherwise["missing"]
                return found
            except Exception as error:
                self._refuse(error)
                if number == tries:
                    raise StoreUnavailableError(
                        f"{self.uri} does not answer: {number} tries in {time.monotonic() - begin:.0f} s, the last "
                        f"with: {describe(error)}. What was committed is safe: see that the store can be reached "
                        f"({self._endpoint()}), and give the same command again."
                    ) from error
            wait = min(self.patience.longest_wait_seconds, self.patience.first_wait_seconds * 2 ** (number - 1))
            time.sleep(wait * random.uniform(0.5, 1))  # noqa: S311 - so that workers do not come back all at once
        raise AssertionError("the last try returns or raises")

    def _refuse(self, error: Exception) -> None:
        """Raise for what no further try can change; return for what one can."""
        text = str(error)
        status = _status(text)
        if "NoSuchBucket" in text or "ContainerNotFound" in text:
            raise RunNotFoundError(
                f"{self.uri}: there is no bucket {self._bucket!r} ({self._endpoint()}). Make it, or see that name and "
                "endpoint are right."
            ) from error
        if any(place in text for place in _MACHINE_CREDENTIALS) or status == 401 or _is(error, "Unauthenticated"):
            raise StoreAccessError(
                f"{self.uri}: no credentials were found, or the store does not know them ({describe(error)}). Set "
                f"{VARIABLES[self._scheme]} here and, for Ray workers, on every node."
            ) from error
        if status == 403 or _is(error, "PermissionDenied") or any(code in text for code in _EXPIRED):
            raise StoreAccessError(
                f"{self.uri}: the store refused these credentials ({describe(error)}). They need to list the bucket, "
                f"and to read, write and delete below {self._prefix or 'it'}/. They come from "
                f"{VARIABLES[self._scheme]}."
            ) from error
        if status in (301, 307):
            raise ConfigurationError(
                f"{self.uri}: the bucket lies in another region; set AWS_REGION ({describe(error)})."
            ) from error
        if _is(error, "NotSupported") or (status in (400, 405, 501) and "RequestTimeout" not in text):
            raise ConfigurationError(
                f"{self.uri}: the store does not do what a run needs ({describe(error)})."
            ) from error
        if isinstance(error, OSError) or _is(error, "Base") or "reqwest" in text:
            return
        raise error

    def _endpoint(self) -> str:
        named = endpoint() if self._scheme == "s3" else ""
        return f"endpoint {named}" if named else "the provider's own endpoint"


def describe(error: Exception) -> str:
    """An error's cause in one line, without the markup that stores answer in."""
    text = first_line(error)
    code, message = (re.search(rf"<{tag}>([^<]*)</{tag}>", text) for tag in ("Code", "Message"))
    if code:
        status = _status(str(error))
        return f"{status or ''} {code[1]}{': ' + message[1] if message else ''}".strip()
    return text[:300] or type(error).__name__


def _status(text: str) -> int | None:
    found = re.search(r"status(?: code)?: (\d{3})", text)
    return int(found[1]) if found else None


def _is(error: Exception, kind: str) -> bool:
    """Whether it is obstore's error of this kind, or of a kind below it."""
    return any(c.__name__ == f"{kind}Error" and c.__module__ == "obstore.exceptions" for c in type(error).__mro__)


def _facts(found: Any) -> ObjectFacts:  # noqa: ANN401 - obstore's ObjectMeta
    return ObjectFacts(
        size_bytes=found["size"], version=(found["e_tag"], found["version"]), modified=found["last_modified"]
    )
