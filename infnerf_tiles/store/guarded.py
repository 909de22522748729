"""The one door to the bytes of a scene: a Zarr store that refuses what Zarr lets pass.

Zarr reads a missing chunk as zeros, allocates whatever a compressed chunk claims to hold, never syncs, and passes
"disk full" on as a bare OSError. `GuardedStore` wraps any Zarr store and mends these four in one place.
"""

import contextlib
import errno
import os
import threading
import uuid
from collections.abc import Coroutine, Iterator
from pathlib import Path
from typing import Any, Self, TypeVar

from zarr.abc.store import ByteRequest, Store
from zarr.core.buffer import Buffer, BufferPrototype, default_buffer_prototype
from zarr.core.sync import sync
from zarr.storage import LocalStore, WrapperStore

from infnerf_tiles.errors import StorageFullError
from infnerf_tiles.store.schema import MAX_DOCUMENT_BYTES, MAX_OBJECT_BYTES

_Result = TypeVar("_Result")
_ZSTD_MAGIC = b"\x28\xb5\x2f\xfd"
_CHECKSUM_BYTES = 4
_FULL = {errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC)}


class ChunkError(Exception):
    """A chunk is missing, empty, or not of the size that its array declares. Callers turn it into what it means."""


class GuardedStore(WrapperStore[Store]):
    """A Zarr store whose chunk reads raise `ChunkError` where nothing trustworthy is stored.

    Writes to a local folder are remembered until `flush` syncs them; a full disk raises StorageFullError. The methods
    without `async` may be called from any thread but Zarr's own.
    """

    def __init__(self, store: Store, name: str | None = None) -> None:
        super().__init__(store)
        self.name = str(store) if name is None else name
        self._owned = name is not None
        self.local_root: Path | None = store.root if isinstance(store, LocalStore) else None
        self._expected: dict[str, tuple[int, bool]] = {}
        self._dirty: set[str] = set()
        self._lock = threading.Lock()

    def _with_store(self, store: Store) -> Self:
        copy = type(self)(store, self.name)
        copy._expected = self._expected
        return copy

    def close(self) -> None:
        """Close the store below, unless the caller brought it along (then it has no name of ours)."""
        if self._owned:
            self._store.close()

    def expect_chunks(self, array_path: str, nbytes: int, compressed: bool) -> None:
        """Declare that every chunk below `array_path` decodes to `nbytes` (zstd + crc32c, or crc32c alone)."""
        self._expected[array_path] = (nbytes, compressed)

    async def get(self, key: str, prototype: BufferPrototype, byte_range: ByteRequest | None = None) -> Buffer | None:
        """See zarr; raises ChunkError instead of returning None or nonsense for a chunk."""
        folder, _, leaf = key.rpartition("/")
        is_chunk = leaf.startswith("c.") or leaf == "c"
        self._check_size(key, MAX_OBJECT_BYTES if is_chunk else MAX_DOCUMENT_BYTES)
        value = await self._store.get(key, prototype, byte_range)
        if not is_chunk:
            return value
        if value is None:
            raise ChunkError(f"{key} is missing")
        if folder in self._expected and byte_range is None:
            _check_chunk(key, value, *self._expected[folder])
        return value

    async def set(self, key: str, value: Buffer) -> None:
        """See zarr; StorageFullError when the disk is full."""
        with _naming_full_disk(key, self.name):
            await self._store.set(key, value)
        with self._lock:
            self._dirty.add(key)

    def read_bytes(self, key: str) -> bytes | None:
        """The bytes stored under `key`; None if there are none. ChunkError if they exceed the cap for documents."""
        self._check_size(key, MAX_DOCUMENT_BYTES)
        if self.local_root is not None:  # spares the detour through Zarr's event loop
            try:
                return (self.local_root / key).read_bytes()
            except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
                return None
        value = _wait(self._store.get(key, default_buffer_prototype()))
        return None if value is None else value.to_bytes()

    def write_bytes(self, key: str, data: bytes) -> None:
        """Store `data` under `key`, as one atomic replacement."""
        _wait(self.set(key, default_buffer_prototype().buffer.from_bytes(data)))

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
        return _wait(self._store.exists(key))

    def size(self, key: str) -> int:
        """Bytes stored under `key`, 0 if nothing is."""
        try:
            return _wait(self._store.getsize(key))
        except FileNotFoundError:
            return 0

    def names(self, folder: str) -> list[str]:
        """Sorted names of what lies directly in `folder`."""
        return sorted(_wait(self._names(folder)))

    def keys(self, folder: str = "") -> list[str]:
        """Sorted keys of everything below `folder`."""
        return sorted(_wait(self._keys(folder)))

    def remove(self, key: str) -> None:
        """Delete one key; nothing happens if it is missing."""
        _wait(self._store.delete(key))

    def remove_folder(self, folder: str) -> None:
        """Delete everything below `folder`."""
        _wait(self._store.delete_dir(folder))

    async def _names(self, folder: str) -> list[str]:
        return [name.rstrip("/") async for name in self._store.list_dir(folder)]

    async def _keys(self, folder: str) -> list[str]:
        listing = self._store.list_prefix(folder + "/") if folder else self._store.list()
        return [key async for key in listing]

    def _check_size(self, key: str, limit: int) -> None:
        if self.local_root is None:
            return
        with contextlib.suppress(OSError):  # what is missing is reported by the read
            if (size := os.stat(self.local_root / key).st_size) > limit:
                raise ChunkError(f"{key} holds {size} bytes, more than the {limit} that are ever stored")


def _check_chunk(key: str, value: Buffer, nbytes: int, compressed: bool) -> None:
    if len(value) <= _CHECKSUM_BYTES:
        raise ChunkError(f"{key} is empty")
    declared = zstd_content_size(value[:18].to_bytes()) if compressed else len(value) - _CHECKSUM_BYTES
    if declared != nbytes:
        raise ChunkError(f"{key} decodes to {declared} bytes, expected {nbytes}")


def zstd_content_size(head: bytes) -> int | None:
    """Decoded size that a zstd frame declares in its first 18 bytes; None if it declares none or is no frame."""
    if len(head) < 6 or head[:4] != _ZSTD_MAGIC:
        return None
    descriptor = head[4]
    single_segment = descriptor >> 5 & 1
    length = (single_segment, 2, 4, 8)[descriptor >> 6]
    start = 5 + (1 - single_segment) + (0, 1, 2, 4)[descriptor & 3]
    if length == 0 or len(head) < start + length:
        return None
    return int.from_bytes(head[start : start + length], "little") + (256 if length == 2 else 0)


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


def _wait(coroutine: Coroutine[Any, Any, _Result]) -> _Result:
    """Run on Zarr's own event loop, where the clients of remote stores live."""
    return sync(coroutine)
