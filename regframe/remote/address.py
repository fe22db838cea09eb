"""Addresses of objects in ``s3://``, ``gs://`` and ``https://`` stores, through obstore (the extra ``remote``).

A `Remote` has the methods of `pathlib.Path` that reading needs, and what a disk has not: several byte ranges in one call. It is
printed without its query, where signed addresses keep their secrets; credentials come from the environment and from the
usual files alone. A request that fails on the way is repeated; what still fails is a `RemoteError` of one sentence.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import importlib.util
import os
import re
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar
from urllib.parse import unquote, urlsplit

from . import credentials
from .errors import RemoteError, RemoteMissing

SCHEMES = ("s3", "gs", "https", "http")
"""What an address may begin with."""
WRITABLE = ("s3", "gs")
"""Stores to which objects are written: of the others each has its own way, or none."""
ATTEMPTS = 3
"""How often a request is made whose answer breaks off, beside the repetitions of obstore before an answer begins."""
_RETRIES = 4
"""Repetitions of a request that gets no answer or an error of the server (status 5xx), about 3 s in all."""
_WAIT = 0.2
"""Seconds before the first repetition; each further one waits twice as long."""
_LARGEST = 1 << 31
"""Bytes of one object that are read into memory at most: 2 GiB, as of one tile of a TIFF."""
_GAP = 0.15
"""Bytes between two ranges, relative to the second, up to which both are read at once: one request less for a few bytes more."""
_PART = 16
"""Ranges that one call asks for, by one request each, up to 10 at the same time."""

_T = TypeVar("_T")
Stamp = tuple[int, int, int]
"""Hash of the entity tag, size in bytes and time of change in ns of an object."""


def is_address(source: Any) -> bool:
    """Whether a text or object is an address of a store that `Remote` reads."""
    return isinstance(source, Remote) or (isinstance(source, str) and source.partition("://")[0].lower() in SCHEMES)


def locate(source: Any) -> Path | Remote:
    """The `Remote` of an address, the `Path` of anything else; ValueError for an address that is malformed."""
    if isinstance(source, Remote):
        return source
    return Remote.of(source) if is_address(source) else Path(source)


def address_of(place: Path | Remote) -> str:
    """The text from which `locate` makes the same place again, in any folder; of an address it may hold secrets."""
    return place.address if isinstance(place, Remote) else str(place.absolute())


@dataclass(frozen=True)
class Remote:
    """An object, or the root of a Zarr store, in a bucket or on a web server.

    Args:
        scheme: one of `SCHEMES`.
        host: the bucket; of a web server its name and port.
        key: what follows, without a slash at either end.
        query: of the address, without its question mark; never printed.
    """

    scheme: str
    host: str
    key: str
    query: str = dataclasses.field(default="", repr=False)

    @classmethod
    def of(cls, text: str) -> Remote:
        """Read an address; ValueError where it names no object, leads out of its store or holds a password."""
        parts = urlsplit(text)
        scheme = parts.scheme.lower()
        web = scheme.startswith("http")
        shown = f"{scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"
        if "@" in parts.netloc:
            raise ValueError(
                f"wanted an address without user and password, got one with both for {shown!r}; put them into the "
                "environment or the usual files"
            )
        key = unquote(parts.path) if web else text.partition("://")[2].partition("/")[2]
        pieces = key.strip("/").split("/")
        if not parts.netloc or not key.strip("/"):
            raise ValueError(
                f"wanted the address of an object, SCHEME://PLACE/NAME, got {shown!r}; name the image in it"
            )
        if any(p in ("", ".", "..") for p in pieces) or not key.isprintable() or "\\" in key:
            raise ValueError(f"wanted an address without empty or dotted parts, got {shown!r}; write it out")
        return cls(scheme, parts.netloc, "/".join(pieces), parts.query if web else "")

    # ---- as a path --------------------------------------------------------------------------------------------------

    def __str__(self) -> str:
        return f"{self.scheme}://{self.host}/{self.key}"

    def __truediv__(self, name: str) -> Remote:
        return dataclasses.replace(self, key=f"{self.key}/{name}".strip("/"))

    @property
    def address(self) -> str:
        """The whole address with its query: for handing on, not for printing."""
        return f"{self}?{self.query}" if self.query else str(self)

    @property
    def name(self) -> str:
        """The last part."""
        return self.key.rpartition("/")[2]

    @property
    def suffix(self) -> str:
        """The last suffix with its dot."""
        return PurePosixPath(self.name).suffix

    @property
    def suffixes(self) -> list[str]:
        """All suffixes with their dots."""
        return PurePosixPath(self.name).suffixes

    @property
    def parent(self) -> Remote:
        """The address without its last part."""
        return dataclasses.replace(self, key=self.key.rpartition("/")[0])

    def with_name(self, name: str) -> Remote:
        """The address with another last part."""
        return self.parent / name

    def resolve(self) -> Remote:
        """The address itself."""
        return self

    absolute = resolve

    def exists(self) -> bool:
        """Whether there is such an object, or one below it."""
        return self.is_file() or self.is_dir()

    def is_file(self) -> bool:
        """Whether there is such an object."""
        try:
            return self._facts() is not None
        except RemoteError as error:
            if error.kind != "denied":  # of a bucket that may not be listed, what is not there
                raise
            return False

    def is_dir(self) -> bool:
        """Whether there are objects below: on a web server, which lists none, the metadata of a Zarr store."""
        if any((self / name).is_file() for name in ("zarr.json", ".zattrs", ".zgroup", ".zarray")):
            return True
        try:
            return self.lists and next(self.keys(), None) is not None
        except RemoteError as error:
            if error.kind not in ("denied", "missing"):
                raise
            return False

    def check(self) -> None:
        """RemoteError, with the reason, where nothing can be read under the address."""
        if self.exists():
            return
        self._ask(
            "read", lambda obs, store: obs.get(store, self.key)
        )  # says whether the bucket or the object is missing
        raise RemoteMissing(f"cannot read {self}: there is nothing of this name")

    # ---- reading ----------------------------------------------------------------------------------------------------

    @property
    def lists(self) -> bool:
        """Whether the store says what it holds; a web server does not."""
        return self.scheme in WRITABLE

    def keys(self) -> Iterator[str]:
        """Names of all objects below, relative to this address."""
        prefix = f"{self.key}/"
        pages = iter(self._ask("list", lambda obs, store: obs.list(store, prefix)))
        while (page := self._ask("list", lambda *_: next(pages, None))) is not None:
            yield from (str(found["path"])[len(prefix) :] for found in page if str(found["path"]).startswith(prefix))

    def children(self) -> list[str]:
        """Names of what lies directly below."""
        prefix = f"{self.key}/"
        found: Any = self._ask("list", lambda obs, store: obs.list_with_delimiter(store, prefix))
        names = [str(one) for one in found["common_prefixes"]] + [str(one["path"]) for one in found["objects"]]
        return [name[len(prefix) :].strip("/") for name in names]

    def size(self) -> int:
        """Bytes of the object."""
        return self.stamp()[1]

    def stamp(self) -> Stamp:
        """The `Stamp` of the object; RemoteError where there is none."""
        found = self._facts()
        if found is None:
            raise RemoteMissing(f"cannot read {self}: there is nothing of this name")
        tag = zlib.crc32(str(found.get("e_tag") or "").encode())
        return tag, int(found["size"]), int(found["last_modified"].timestamp() * 1e9)

    def read_bytes(self, most: int = _LARGEST) -> bytes:
        """The object; RemoteError for one of more than ``most`` bytes, before it is read."""

        def whole(obs: Any, store: Any) -> bytes:
            answer = obs.get(store, self.key)
            check_size(self, answer.meta["size"], most)
            return bytes(answer.bytes())

        return self._ask("read", whole)

    def read_ranges(self, ranges: Sequence[tuple[int, int]], gap: int = 0) -> list[bytes]:
        """The bytes of several ranges (start, stop); RemoteError where the object ends before.

        Neighbours are read by one request: where there are up to ``gap`` bytes between them, or a small part of their own."""
        wanted = sorted({r for r in ranges if r[1] > r[0]})
        runs: list[list[int]] = []
        for start, stop in wanted:
            if runs and start - runs[-1][1] <= max(gap, _GAP * (stop - start)):
                runs[-1][1] = max(runs[-1][1], stop)
            else:
                runs.append([start, stop])
        if any(stop - start > _LARGEST for start, stop in runs):
            raise RemoteError(f"cannot read {self}: {_LARGEST >> 20} MiB at once are the most, got a range of more")
        got: list[Any] = []
        for first in range(0, len(runs), _PART):
            part = runs[first : first + _PART]
            starts, ends = [r[0] for r in part], [r[1] for r in part]
            got += self._ask("read", functools.partial(_ranges, self.key, starts, ends))
        held = [(start, memoryview(data)) for (start, _), data in zip(runs, got, strict=True)]
        for (start, stop), (_, data) in zip(runs, held, strict=True):
            if len(data) != stop - start:
                raise RemoteError(f"cannot read {self}: it ends after {start + len(data)} of {stop} bytes")
        return [self._cut(held, start, stop) for start, stop in ranges]

    @staticmethod
    def _cut(held: list[tuple[int, memoryview]], start: int, stop: int) -> bytes:
        for first, data in held:
            if first <= start and stop <= first + len(data):
                return bytes(data[start - first : stop - first])
        return b""

    # ---- writing ----------------------------------------------------------------------------------------------------

    def check_writable(self) -> None:
        """RemoteError where objects cannot be written here."""
        if self.scheme not in WRITABLE:
            raise RemoteError(
                f"cannot write {self}: a web server takes no files; write to s3:// or gs://, or to a disk"
            )

    def write_bytes(self, data: bytes) -> None:
        """Put the object: it appears as a whole or not at all."""
        self.check_writable()
        self._ask("write", lambda obs, store: obs.put(store, self.key, data))

    def unlink(self, *names: str) -> None:
        """Delete the object, or those of the given names below it; what is not there is left."""
        self.check_writable()
        keys = [f"{self.key}/{name}" for name in names] or [self.key]

        def remove(obs: Any, store: Any) -> None:
            for at in range(0, len(keys), 1000):  # what one request of S3 deletes at most
                try:
                    obs.delete(store, keys[at : at + 1000])
                except FileNotFoundError:  # Google's, which stops there
                    for key in keys[at : at + 1000]:
                        with contextlib.suppress(FileNotFoundError):
                            obs.delete(store, key)

        self._ask("delete", remove)

    # ---- inside -----------------------------------------------------------------------------------------------------

    def _facts(self) -> Any:
        """What the store says of the object; None where there is none."""

        def head(obs: Any, store: Any) -> Any:
            try:
                return obs.head(store, self.key)
            except FileNotFoundError:
                return None
            except Exception as error:
                if not self.scheme.startswith("http") or re.search("status code: 4", str(error)) is None:
                    raise
            return obs.get(store, self.key, options={"range": (0, 1)}).meta  # an address that is signed for GET alone

        return self._ask("read", head)

    def _ask(self, what: str, request: Callable[[Any, Any], _T]) -> _T:
        """The answer to a request, which is repeated where it breaks off; RemoteError where there is none."""
        obs, store = self.store()
        for attempt in range(ATTEMPTS):
            try:
                return request(obs, store)
            except RemoteError:
                raise
            except Exception as error:  # noqa: BLE001 - obstore's own, which name secrets
                said, again = self.said(what, error)
                if not again or attempt + 1 == ATTEMPTS:
                    raise said from None
                time.sleep(_WAIT * 2**attempt)
        raise AssertionError("unreachable")

    def store(self) -> tuple[Any, Any]:
        """obstore and its store of this bucket or server; RemoteError where the extra is not installed."""
        if importlib.util.find_spec("obstore") is None:
            raise RemoteError(
                f"wanted the package obstore for {self}, which is not installed; get it with: pip install 'regframe[remote]'",
                "extra",
            )
        import obstore

        known = tuple(sorted((k, v) for k, v in os.environ.items() if k.startswith(credentials.PREFIXES)))
        try:
            return obstore, _store(os.getpid(), self.scheme, self.host, self.query, known)
        except RemoteError:
            raise
        except Exception as error:  # noqa: BLE001 - obstore's own, which name secrets
            reason = type(error).__name__
            raise RemoteError(f"cannot open {self.scheme}://{self.host}: its settings are refused ({reason})") from None

    def said(self, what: str, error: Exception) -> tuple[RemoteError, bool]:
        """The sentence for an error of obstore, without the address that it quotes, and whether to repeat the request."""
        text = str(error)
        kind = type(error).__name__
        status = re.search(r"status code: (\d{3})", text)
        start = f"cannot {what} {self}: "
        if isinstance(error, FileNotFoundError):
            gone = "NoSuchBucket" in text or "The specified bucket does not exist" in text
            reason = f"there is no bucket {self.host!r}" if gone else "there is nothing of this name"
            return RemoteMissing(start + reason), False
        if kind in ("PermissionDeniedError", "UnauthenticatedError") or (status and status[1] in ("401", "403")):
            return RemoteError(start + self._denied(), "denied"), False
        if "LOCATION" in text or (status and status[1] in ("301", "307")):
            reason = f"the bucket {self.host!r} lies in another region; name it in AWS_REGION"
            return RemoteError(start + reason), False
        if kind == "NotSupportedError" or "ange request not supported" in text or "Content-Range" in text:
            reason = "the server sends no parts of files (byte ranges); download it"
            return RemoteError(start + reason), False
        if status and status[1] == "416":
            return RemoteError(start + "it is shorter than it says"), False
        if status and status[1] == "404":
            reason = f"there is no bucket {self.host!r}" if what == "list" else "there is nothing of this name"
            return RemoteMissing(start + reason), False
        if status:
            return RemoteError(f"{start}the server answers with status {status[1]}", "network"), False
        if "error sending request" in text or "dns" in text.lower() or "Connect" in text:
            reason = f"no connection to {credentials.endpoint(self.scheme) or self.host} ({_RETRIES + 1} tries)"
            return RemoteError(start + reason, "network"), False
        if "body" in text or "ended" in text or "Http" in text or "imeout" in text:
            reason = f"the connection breaks off in the middle of the answer ({ATTEMPTS} tries); run the same again"
            return RemoteError(start + reason, "network"), True
        return RemoteError(f"{start}the store refuses it ({kind})"), False

    def _denied(self) -> str:
        if self.scheme.startswith("http"):
            return "the server does not permit it; the address may have expired"
        if credentials.anonymous(self.scheme):
            return f"it is not permitted without credentials, and none were found; {credentials.HOW[self.scheme]}"
        return "the credentials that were found do not permit it (of some buckets also where there is nothing of this name)"


def _ranges(key: str, starts: list[int], ends: list[int], obs: Any, store: Any) -> list[Any]:
    return list(obs.get_ranges(store, key, starts=starts, ends=ends, coalesce=0))


def check_size(where: Remote, size: int, most: int) -> None:
    """RemoteError for an object that is larger than what it can be."""
    if size > most:
        raise RemoteError(f"cannot read {where}: wanted {most} bytes at most, got an object of {size}")


@functools.lru_cache(maxsize=16)
def _store(_: int, scheme: str, host: str, query: str, known: tuple[tuple[str, str], ...]) -> Any:
    """obstore's store of a bucket or server, one per process and state of the environment."""
    from datetime import timedelta

    from obstore.store import GCSStore, HTTPStore, S3Store

    end = credentials.endpoint(scheme)
    client: Any = {
        "connect_timeout": timedelta(seconds=10),
        "read_timeout": timedelta(seconds=60),
        "timeout": timedelta(minutes=30),
        "allow_http": scheme == "http" or end.startswith("http://"),
    }
    retry: Any = {
        "max_retries": _RETRIES,
        "backoff": {"init_backoff": timedelta(seconds=_WAIT), "max_backoff": timedelta(seconds=5), "base": 2},
        "retry_timeout": timedelta(minutes=2),
    }
    settings: Any = credentials.settings(scheme)
    if scheme == "s3":
        return S3Store(host, client_options=client, retry_config=retry, **settings)
    if scheme == "gs":
        return GCSStore(host, client_options=client, retry_config=retry, **settings)
    root = f"{scheme}://{host}" + (f"?{query}" if query else "")
    return HTTPStore.from_url(root, client_options=client, retry_config=retry)
