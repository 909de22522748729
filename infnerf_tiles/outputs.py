"""Places for results, looked at before the work whose result goes there."""

import errno
import os
import tempfile
from pathlib import Path

from infnerf_tiles.errors import SettingsError, StorageFullError

_FULL = (errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC))
_STORE_MARK = "zarr.json"  # what every Zarr store has at its top


def check_file(target: Path) -> None:
    """See that a file can be put at `target`, which may be there already; folders above it are made.

    SettingsError, which names `target`, where a folder stands there, something above it is a file or a Zarr store such
    as a scene, or nothing may be written; StorageFullError where the disk is full. Nothing but the folders is left.
    """
    if os.path.isdir(target):  # no error for a name that cannot be
        raise SettingsError(f"{target}: expected a file name, got a folder; name a file inside it")
    _check_free(target)
    _make_folder(target.parent, target)
    _try_to_write(target.parent, target, f".{target.name}.")


def check_folder(target: Path) -> None:
    """Make the folder `target` unless it is there, and see that files can be put into it; errors as of `check_file`."""
    _check_free(target)
    _make_folder(target, target)
    _try_to_write(target, target, ".")


def _check_free(target: Path) -> None:
    place = target.absolute()
    for folder in (place, *place.resolve().parents):
        if os.path.isfile(folder / _STORE_MARK):
            raise SettingsError(
                f"{target}: expected a place outside of scenes, got one in {folder}, a Zarr store; name another"
            )


def _make_folder(folder: Path, target: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as error:
        what = "a folder" if folder == target else "a name in a folder"
        raise SettingsError(f"{target}: expected {what}, got a file on the way there; name another place") from error
    except OSError as error:
        raise _unwritable(target, error) from error


def _try_to_write(folder: Path, target: Path, prefix: str) -> None:
    try:
        with tempfile.NamedTemporaryFile(dir=folder, prefix=prefix, suffix=".partial"):
            pass
    except OSError as error:
        raise _unwritable(target, error) from error


def _unwritable(target: Path, error: OSError) -> SettingsError | StorageFullError:
    if error.errno in _FULL:
        return StorageFullError(f"{target}: expected room on the disk, got: {error.strerror}; free some space")
    return SettingsError(f"{target}: expected a place that can be written, got: {error.strerror}; name another")
