"""Scenes on the other side of a network: whole objects by HTTP(S) or from S3-like stores, with patience.

What may work the second time is tried again after a pause that grows; what will not (forbidden, wrong address) or never
did ends in `UnreachableError`. An object that is not there is not an error.
"""

import asyncio
import logging
import os
import random
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Self, TypeVar
from urllib.parse import urlsplit

from zarr.abc.store import ByteRequest, Store
from zarr.core.buffer import Buffer, BufferPrototype
from zarr.storage import ObjectStore, WrapperStore

from infnerf_tiles.errors import SettingsError, UnreachableError

if TYPE_CHECKING:
    from obstore.store import ClientConfig, RetryConfig

WEB_SCHEMES = frozenset({"http", "https"})
OBJECT_SCHEMES = frozenset({"s3", "s3a", "gs", "az", "abfs", "abfss", "adl"})
_MISSING: tuple[type[Exception], ...] = (FileNotFoundError, IsADirectoryError, NotADirectoryError)
_Result = TypeVar("_Result")
_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Patience:
    """How long to put up with a server.

    attempts: requests for one object before giving up. pause: seconds before the second one; doubles each time. stall:
    seconds without a byte after which a request counts as failed. longest: seconds for one request in all.
    """

    attempts: int = 6
    pause: float = 0.2
    stall: float = 10.0
    longest: float = 300.0


class RemoteStore(WrapperStore[Store]):
    """A remote Zarr store whose reads are repeated as `patience` says. `name` is fit for messages.

    transient, final: exceptions of the store below after which another attempt makes sense, and those after which none
    does; `final` wins. lists: whether the server can be asked what it holds.
    """

    def __init__(
        self,
        store: Store,
        name: str,
        *,
        patience: Patience = Patience(),
        transient: tuple[type[Exception], ...] = (OSError,),
        final: tuple[type[Exception], ...] = (PermissionError,),
        lists: bool = True,
    ) -> None:
        super().__init__(store)
        self.name = name
        self.retries = 0
        self._patience = patience
        self._transient: tuple[type[Exception], ...] = (*transient, TimeoutError)
        self._final: tuple[type[Exception], ...] = final
        self._lists = lists

    @property
    def supports_listing(self) -> bool:
        """Whether the server can be asked what it holds."""
        return self._lists and self._store.supports_listing

    def _with_store(self, store: Store) -> Self:
        return type(self)(
            store, self.name, patience=self._patience, transient=self._transient, final=self._final, lists=self._lists
        )

    async def get(self, key: str, prototype: BufferPrototype, byte_range: ByteRequest | None = None) -> Buffer | None:
        """See zarr; UnreachableError when the server cannot be made to answer."""
        return await self._persist(key, lambda: self._store.get(key, prototype, byte_range))

    async def exists(self, key: str) -> bool:
        """See zarr; UnreachableError as in `get`."""
        return await self._persist(key, lambda: self._store.exists(key))

    async def getsize(self, key: str) -> int:
        """See zarr; UnreachableError as in `get`."""
        return await self._persist(key, lambda: self._store.getsize(key))

    async def set(self, key: str, value: Buffer) -> None:
        """See zarr; UnreachableError as in `get`."""
        await self._persist(key, lambda: self._store.set(key, value))

    async def delete(self, key: str) -> None:
        """See zarr; UnreachableError as in `get`."""
        await self._persist(key, lambda: self._store.delete(key))

    async def list(self) -> AsyncIterator[str]:
        """See zarr; UnreachableError as in `get`."""
        for key in await self._persist(_listing(""), lambda: _all(self._store.list())):
            yield key

    async def list_prefix(self, prefix: str) -> AsyncIterator[str]:
        """See zarr; UnreachableError as in `get`."""
        for key in await self._persist(_listing(prefix), lambda: _all(self._store.list_prefix(prefix))):
            yield key

    async def list_dir(self, prefix: str) -> AsyncIterator[str]:
        """See zarr; UnreachableError as in `get`."""
        for key in await self._persist(_listing(prefix), lambda: _all(self._store.list_dir(prefix))):
            yield key

    async def _persist(self, key: str, attempt: Callable[[], Awaitable[_Result]]) -> _Result:
        patience = self._patience
        for number in range(1, patience.attempts + 1):
            try:
                async with asyncio.timeout(patience.longest):
                    return await attempt()
            except _MISSING:
                raise
            except self._final as error:
                raise UnreachableError(
                    f"scene {self.name}: expected to reach {key}, got: {_brief(error)}; check the "
                    "address, and that you may go there"
                ) from error
            except self._transient as error:
                if number == patience.attempts:
                    raise UnreachableError(
                        f"scene {self.name}: expected to reach {key}, got after {number} attempts: {_brief(error)}; "
                        "check the connection and the server, then run the same command again"
                    ) from error
                self.retries += 1
                _log.info("scene %s: %s: %s; attempt %d follows", self.name, key, _brief(error), number + 1)
            # spread, so that many readers do not come back at the same moment
            await asyncio.sleep(patience.pause * 2 ** (number - 1) * random.uniform(0.5, 1.5))
        raise AssertionError("unreachable")


def open_remote(url: str, name: str, *, read_only: bool = True, patience: Patience = Patience()) -> RemoteStore:
    """The store behind a URL of WEB_SCHEMES or OBJECT_SCHEMES; nothing is asked of the server yet.

    Credentials, regions and endpoints of object stores come from their usual environment variables (AWS_ACCESS_KEY_ID,
    AWS_REGION, AWS_ENDPOINT_URL, AWS_SKIP_SIGNATURE for public buckets, ...). SettingsError where the library for it is
    not installed or the URL makes no sense.
    """
    try:
        import obstore.store
        from obstore import exceptions
    except ImportError as error:
        raise SettingsError(
            f"scene {name}: expected the library obstore, which is not installed; pip install 'infnerf-tiles[remote]'"
        ) from error
    options: ClientConfig = {
        "connect_timeout": timedelta(seconds=patience.stall),
        "read_timeout": timedelta(seconds=patience.stall),
        "timeout": timedelta(seconds=patience.longest),
    }
    no_retries: RetryConfig = {"max_retries": 0}  # they are made, counted and told above
    scheme = urlsplit(url).scheme
    opened: Any
    try:
        if scheme in WEB_SCHEMES:
            options["allow_http"] = scheme == "http"
            opened = obstore.store.HTTPStore.from_url(url, client_options=options, retry_config=no_retries)
        else:
            # an endpoint without TLS has to be named in the environment, which is leave enough
            options["allow_http"] = os.environ.get("AWS_ENDPOINT_URL", "").startswith("http://")
            kind = {"s3": "S3Store", "s3a": "S3Store", "gs": "GCSStore"}.get(scheme, "AzureStore")
            opened = getattr(obstore.store, kind).from_url(url, client_options=options, retry_config=no_retries)
    except (exceptions.BaseError, ValueError) as error:
        raise SettingsError(f"scene {name}: expected a URL of a scene, got: {_brief(error)}") from error
    return RemoteStore(
        ObjectStore(opened, read_only=read_only),
        name,
        patience=patience,
        transient=(OSError, exceptions.GenericError),
        final=(
            exceptions.PermissionDeniedError,
            exceptions.UnauthenticatedError,
            exceptions.NotSupportedError,
            exceptions.InvalidPathError,
        ),
        lists=scheme not in WEB_SCHEMES,
    )


def _listing(folder: str) -> str:
    return f"the list of {folder}" if folder else "the list of its files"


async def _all(keys: AsyncIterator[str]) -> "list[str]":
    return [key async for key in keys]


def _brief(error: BaseException) -> str:
    """The first line of a message, without what a URL may carry of credentials."""
    text = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    return re.sub(r"\?[^\s)]*", "", re.sub(r"//[^/@\s]*@", "//", text))
