"""The place of a new scene: held against other processes, and cleared of what may go."""

import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from infnerf_tiles.errors import StoreError
from infnerf_tiles.store.documents import DOCUMENT
from infnerf_tiles.store.locking import lock_of
from infnerf_tiles.store.root import KNOWN_NAMES
from infnerf_tiles.store.scene_store import SceneStore

_OWN = re.compile(r"zarr\.json|c\.[0-9.]+|[0-9]+|L[0-9]+-[0-9-]+|band-[0-9]+|seed|renewal|redo|.+\.partial")
"""What lies in the folders of a scene."""


def check_room(scene: str, overwrite: bool) -> None:
    """StoreError unless a scene may be made at that place: it is new or empty, or holds what a `build` left that was
    interrupted, or, with `overwrite`, a scene. Other files are never touched."""
    path = Path(scene)
    if "://" in scene or not path.exists():
        return
    names = _names(path) if path.is_dir() else {path.name}
    if not names or (path.is_dir() and _interrupted(path, names)):
        return
    is_scene = path.is_dir() and (DOCUMENT in names or _own(path, names))
    if not overwrite and not is_scene:
        what = f"a folder with other files, such as {min(names)}" if path.is_dir() else "a file"
        raise StoreError(
            f"scene {scene}: expected a new name or an empty folder to build in, got {what}; it is left alone, name "
            "another place"
        )
    if not overwrite:
        lost = DOCUMENT not in names and _has_generations(path) and _own(path, names)
        advice = f" (its {DOCUMENT} is lost: 'verify --repair' restores it)" if lost else ""
        raise StoreError(
            f"scene {scene}: there is something already{advice}; train it, or build elsewhere or with --overwrite"
        )
    # a Zarr store of another kind has the document too, and a scene may lie among other files
    foreign = names - KNOWN_NAMES - {DOCUMENT} if path.is_dir() else names
    if foreign or not (DOCUMENT in names or _own(path, names)):
        raise StoreError(f"scene {scene}: expected a scene to overwrite, got other files; they are left alone")


@contextmanager
def room_for(scene: str, overwrite: bool) -> Iterator[None]:
    """Make room for a new scene and keep other processes from the place meanwhile; errors as `check_room`.

    StoreError, with nothing touched, while another process writes to a scene there. A kill in between leaves what the
    next `build` takes for an interrupted one.
    """
    path = Path(scene)
    if "://" in scene:
        yield
        return
    check_room(scene, overwrite)
    path.mkdir(parents=True, exist_ok=True)
    with lock_of(path).hold():
        check_room(scene, overwrite)  # somebody may have been quicker
        _clear(path)
        yield


def _clear(path: Path) -> None:
    """Empty a folder in place, since the lock is on the folder itself; what makes it a scene goes first."""
    for entry in sorted(path.iterdir(), key=lambda entry: (entry.name != DOCUMENT, entry.name != "index")):
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry)
        else:
            entry.unlink()


def _interrupted(path: Path, names: set[str]) -> bool:
    """Whether this is what an interrupted `build` leaves: nothing that could be trained or restored."""
    if not _own(path, names - {DOCUMENT}):
        return False
    if DOCUMENT not in names:
        return not _has_generations(path)
    try:
        with SceneStore.open(path) as store:
            return store.generation == 0
    except StoreError:
        return False


def _names(path: Path) -> set[str]:
    """Names in a folder, without a root document's that was never completed."""
    names = (entry.name for entry in path.iterdir())
    return {name for name in names if not (name.startswith(f"{DOCUMENT}.") and name.endswith(".partial"))}


def _has_generations(path: Path) -> bool:
    index = path / "index"
    return index.is_dir() and any(entry.name.isdigit() for entry in index.iterdir())


def _own(path: Path, names: set[str]) -> bool:
    """Whether these are folders of a scene, with nothing in them that a scene does not have."""
    folders = [path / name for name in names]
    return names <= KNOWN_NAMES and all(
        folder.is_dir() and all(_OWN.fullmatch(entry.name) for entry in folder.iterdir()) for folder in folders
    )
