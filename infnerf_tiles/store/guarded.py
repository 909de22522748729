"""The one door to the bytes of a scene: any Zarr store, with what Zarr leaves out.

Zarr's stores never sync, pass "disk full" on as a bare OSError and read objects of any size. `GuardedStore` wraps one
and mends that in one place.
"""

import contextlib
import errno
import os
import threading
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Self

from zarr.abc.store import ByteRequest, RangeByteRequest, Store, SuffixByteRequest
from zarr.core.buffer import Buffer, default_buffer_prototype
from zarr.storage import LocalStore, WrapperStore

from infnerf_tiles.errors import StorageFullError
from infnerf_tiles.store.chunk_codec import ChunkError
from infnerf_tiles.store.fetch import wait_for
from infnerf_tiles.store.remote import RemoteStore
from infnerf_tiles.store.schema import MAX_DOCUMENT_BYTES

_FULL = {errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC)}


class GuardedStore(WrapperStore[Store]):
    """A Zarr store that names a full disk, knows what has yet to be synced, and caps what it reads.

    Writes to a local folder are remembered until `flush` syncs them; a full disk raises StorageFullError. The methods
    without `async` may be called from any thread but Zarr's own.
    """

    def __init__(self, store: Store, name: str | None = None) -> None:
        super().__init__(store)
        own = store.name if isinstance(store, RemoteStore) else str(store)
        self.name = own if name is None else name
        self._owned = name is not None
        self.local_root: Path | None = store.root if isinstance(store, LocalStore) else None
        self.is_remote = isinstance(store, RemoteStore)
        self._dirty: set[str] = set()
        self._lock = threading.Lock()

    def _with_store(self, store: Store) -> Self:
        return type(self)(store, self.name)

    def close(self) -> None:
        """Close the store below, unless the caller brought it along (then it has no name of ours)."""
        if self._owned:
            self._store.close()

    async def set(self, key: str, value: Buffer) -> None:
        """See zarr; StorageFullError when the disk is full."""
        with _naming_full_disk(key, self.name):
            await self._store.set(key, value)
        with self._lock:
            self._dirty.add(key)

    def read_bytes(self, key: str, limit: int = MAX_DOCUMENT_BYTES) -> bytes | None:
        """The bytes stored under `key`; None if there are none. ChunkError if they are more than `limit`.

        A local file is measured before it is read, an object elsewhere after it has been fetched.
        """
        if self.local_root is not None:  # spares the detour through Zarr's event loop
            try:
                with (self.local_root / key).open("rb", buffering=0) as file:
                    _check_size(key, os.fstat(file.fileno()).st_size, limit)
                    return file.read()
            except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
                return None
        value = wait_for(self._store.get(key, default_buffer_prototype()))
        if value is None:
            return None
        _check_size(key, len(value), limit)
        return value.to_bytes()

    def read_range(self, key: str, start: int | None, length: int) -> bytes | None:
        """`length` bytes from byte `start` of an object on, the last `length` bytes where `start` is None; fewer if it
        ends before. None if there is no such object."""
        if self.local_root is not None:
            try:
                with (self.local_root / key).open("rb", buffering=0) as file:
                    size = os.fstat(file.fileno()).st_size
                    file.seek(max(size - length, 0) if start is None else start)
                    return file.read(length)
            except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
                return None
        wanted: ByteRequest = SuffixByteRequest(length) if start is None else RangeByteRequest(start, start + length)
        value = wait_for(self._store.get(key, default_buffer_prototype(), wanted))
        if value is None:
            return None
        _check_size(key, len(value), length)
        return value.to_bytes()

    def write_bytes(self, key: str, data: bytes) -> None:
        """Store `data` under `key`, as one atomic replacement."""
        wait_for(self.set(key, default_buffer_prototype().buffer.from_bytes(data)))

    def replace_durably(self, key: str, data: bytes) -> None:
        """`flush`, then replace `key` so that after a power cut it is either the old or the new, never in between."""
        self.flush()
        if self.local_root is None:
            self.write_bytes(key, data)
            return
        path = self.local_root / key
        partial = path.with_name(f"{path.name}.{uuid.uuid4().hex}.partial")
        with _naming_full_disk(key, self.name):
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
                with partial.open("wb") as file:
                    file.write(data)
                    file.flush()
                    os.fsync(file.fileno())
                partial.replace(path)
            except BaseException:
                partial.unlink(missing_ok=True)
                raise
            _sync_folders({path.parent}, self.local_root)

    def flush(self) -> None:
        """Sync what was written through this object to the disk (local folders only)."""
        with self._lock:
            keys, self._dirty = self._dirty, set()
        if self.local_root is None:
            return
        try:
            with _naming_full_disk("the last rows", self.name):
                for key in keys:
                    _sync_file(self.local_root / key)
                _sync_folders({(self.local_root / key).parent for key in keys}, self.local_root)
        except BaseException:
            with self._lock:
                self._dirty |= keys  # so that a second try does not take them for safe
            raise

    def has(self, key: str) -> bool:
        """Whether something is stored under `key`."""
        if self.local_root is not None:
            return (self.local_root / key).is_file()
        return wait_for(self._store.exists(key))

    def size(self, key: str) -> int:
        """Bytes stored under `key`, 0 if nothing is."""
        try:
            return wait_for(self._store.getsize(key))
        except FileNotFoundError:
            return 0

    def names(self, folder: str) -> list[str]:
        """Sorted names of what lies directly in `folder`; none where the store cannot be listed."""
        if not self.supports_listing:
            return []
        return sorted(wait_for(self._names(folder)))

    def keys(self, folder: str = "") -> list[str]:
        """Sorted keys of everything below `folder`; none where the store cannot be listed."""
        if not self.supports_listing:
            return []
        return sorted(wait_for(self._keys(folder)))

    def remove(self, key: str) -> None:
        """Delete one key; nothing happens if it is missing."""
        wait_for(self._store.delete(key))

    def remove_folder(self, folder: str) -> None:
        """Delete everything below `folder`."""
        wait_for(self._store.delete_dir(folder))

    async def _names(self, folder: str) -> list[str]:
        return [name.rstrip("/") async for name in self._store.list_dir(folder)]

    async def _keys(self, folder: str) -> list[str]:
        listing = self._store.list_prefix(folder + "/") if folder else self._store.list()
        return [key async for key in listing]


def _check_size(key: str, size: int, limit: int) -> None:
    if size > limit:
        raise ChunkError(f"{key} holds {size} bytes, more than the {limit} that it may")


@contextlib.contextmanager
def _naming_full_disk(key: str, name: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno not in _FULL or isinstance(error, StorageFullError):
            raise
        full = StorageFullError(
            f"{name}: no space left while writing {key}; what was committed before is intact. "
            "Free some space (the 'gc' command drops old rows) and run the same command again"
        )
        full.errno = error.errno
        raise full from error


def _sync_file(path: Path) -> None:
    try:
        descriptor = os.open(path, os.O_RDWR)
    except FileNotFoundError:  # deleted again since
        return
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _sync_folders(folders: set[Path], root: Path) -> None:
    """Sync the folders and all above them up to `root`, so that new names survive a power cut."""
    everything = {folder for folder in folders if folder.is_dir()}
    for folder in list(everything):
        everything.update(parent for parent in folder.parents if parent == root or root in parent.parents)
    for folder in everything:
        try:
            descriptor = os.open(folder, os.O_RDONLY)
        except OSError:  # Windows cannot open folders
            continue
        try:
            os.fsync(descriptor)
        except OSError as error:
            if error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.EBADF):
                raise
        finally:
            os.close(descriptor)
