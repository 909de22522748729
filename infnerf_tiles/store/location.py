"""Where a scene lives: the one function that turns a path, a URL or a Zarr store into a `GuardedStore`."""

import os
import re
import time
import zipfile
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit
from urllib.request import url2pathname

from zarr.abc.store import Store
from zarr.core.sync import sync
from zarr.storage import FsspecStore, LocalStore, ZipStore

from infnerf_tiles.errors import DamagedStoreError, SceneNotFoundError, SettingsError, StoreError
from infnerf_tiles.store.guarded import GuardedStore
from infnerf_tiles.store.remote import OBJECT_SCHEMES, WEB_SCHEMES, open_remote
from infnerf_tiles.store.schema import MAX_OBJECT_BYTES

Location = str | Path | Store
Mode = Literal["r", "r+", "w"]
STALE_SECONDS = 600.0
_PARTIAL = re.compile(r".*\.[0-9a-f]{32}\.partial")


def open_location(location: Location, mode: Mode) -> GuardedStore:
    """Open the bytes of a scene.

    `location`: a folder, a .zip file (reading only), a URL (http, https: reading only; s3, gs, az, ...; whatever else
    fsspec knows), or a Zarr store. `mode`: "r", "r+" (must exist) or "w" (a folder is made). SceneNotFoundError if
    there is nothing at a path, StoreError if the place cannot be written, DamagedStoreError if a zip is none or claims
    members larger than any the store writes, SettingsError for a URL that cannot be used.
    """
    if isinstance(location, GuardedStore):
        return location
    if isinstance(location, Store):
        if mode != "r" and location.read_only:
            raise StoreError(f"scene {location}: expected a store that can be written, got one opened for reading")
        return GuardedStore(location)
    text = str(location)
    if not text.strip():
        raise SettingsError("scene: expected a folder, a .zip or a URL, got an empty name; is a variable not set?")
    if text.startswith("file://"):
        location = Path(url2pathname(urlsplit(text).path))
    elif "://" in text:
        return _open_url(text, mode)
    path = Path(location)
    if mode == "w":
        return GuardedStore(LocalStore(path), str(path))
    if not path.exists():
        raise SceneNotFoundError(f"no scene at {path}; make one with 'build'")
    if path.is_dir():
        return GuardedStore(LocalStore(path, read_only=mode == "r"), str(path))
    if mode == "r+":
        raise StoreError(f"scene {path}: expected a folder, got a file; a packed scene can be read but not changed")
    return _open_zip(path)


def _open_url(url: str, mode: Mode) -> GuardedStore:
    name, scheme = display_name(url), urlsplit(url).scheme.lower()
    if scheme in WEB_SCHEMES:
        if mode != "r":
            raise StoreError(
                f"scene {name}: expected a folder, got a web address, where it can be read but not changed"
            )
        # one address is one object there: what follows "?" can be a key to one object, not to thousands
        if urlsplit(url).query:
            raise SettingsError(f"scene {name}: expected an address without '?...', which only one file could have")
    if scheme in WEB_SCHEMES | OBJECT_SCHEMES:
        return GuardedStore(open_remote(url, name, read_only=mode == "r"), name)
    try:
        return GuardedStore(FsspecStore.from_url(url, read_only=mode == "r"), name)
    except (ImportError, ValueError) as error:
        raise SettingsError(
            f"scene {name}: expected a folder, a .zip, or a URL of a kind that is known here, got: {error}"
        ) from error


def display_name(url: str) -> str:
    """A URL without user, password and query, fit for messages and logs."""
    parts = urlsplit(url)
    port = f":{parts.port}" if parts.port else ""
    return f"{parts.scheme}://{parts.hostname or ''}{port}{parts.path}"


def _open_zip(path: Path) -> GuardedStore:
    try:
        with zipfile.ZipFile(path) as archive:
            largest = max((member.file_size for member in archive.infolist()), default=0)
        if largest > MAX_OBJECT_BYTES:
            raise DamagedStoreError(
                f"scene {path}: expected members up to {MAX_OBJECT_BYTES} bytes, got one of {largest}; "
                "get the file again from where it came from"
            )
        return GuardedStore(sync(ZipStore.open(path, mode="r")), str(path))
    except zipfile.BadZipFile as error:
        raise DamagedStoreError(
            f"scene {path}: expected a folder or a zip archive, got neither ({error}); get the file again"
        ) from error


def sweep_partial_files(store: GuardedStore, older_than: float = STALE_SECONDS) -> int:
    """Delete what interrupted writers left half-written in a local folder; returns how many files that were.

    Only files untouched for `older_than` seconds: a younger one may belong to a writer that is still alive.
    """
    if store.local_root is None:
        return 0
    newest = time.time() - older_than
    swept = 0
    for folder, _, names in os.walk(store.local_root):
        for name in names:
            if _PARTIAL.fullmatch(name):
                path = Path(folder) / name
                try:
                    if path.stat().st_mtime <= newest:
                        path.unlink()
                        swept += 1
                except FileNotFoundError:  # its writer finished it
                    continue
    return swept
