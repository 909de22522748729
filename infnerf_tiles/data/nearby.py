"""What to say to someone who gave a folder without poses: where they are nearby, or what has to be converted first."""

from collections.abc import Iterator
from pathlib import Path

from infnerf_tiles.data.colmap import find_colmap
from infnerf_tiles.data.json_file import read_json
from infnerf_tiles.data.transforms_json import find_transforms
from infnerf_tiles.errors import DatasetError

_DEPTH = 2
_MAX_FOLDERS = 500
_MAX_FILES, _MAX_BYTES = 20, 1 << 27
_NUM_SHOWN = 3
_PHOTOS = frozenset({".jpg", ".jpeg", ".png", ".tif", ".tiff", ".webp", ".bmp", ".heic", ".dng"})
# Pose files of other programs, and what makes one of them that can be read.
_FOREIGN = (
    (("opensfm/reconstruction.json", "reconstruction.json"), "an OpenSfM or OpenDroneMap reconstruction",
     "'opensfm export_colmap' (ODM: in its opensfm folder) writes a COLMAP model"),
    (("odm_report/shots.geojson", "shots.geojson"), "poses of OpenDroneMap",
     "'opensfm export_colmap' in its opensfm folder, or nerfstudio's 'ns-process-data odm', makes poses of them"),
    (("keyframes/cameras", "keyframes/corrected_cameras"), "a raw capture of Polycam",
     "nerfstudio's 'ns-process-data polycam' writes transforms.json"),
    (("database.db", "distorted/database.db", "colmap/database.db"), "a COLMAP database, which holds no poses",
     "run 'colmap mapper' on it, which writes sparse/0"),
)  # fmt: skip
_METASHAPE = (
    "cameras of Metashape (.xml)",
    "nerfstudio's 'ns-process-data metashape' writes transforms.json, and Metashape exports COLMAP models itself",
)


def what_is_there(path: Path) -> str:
    """The end of a message, from its semicolon on, that names what lies nearby; "" if there is nothing."""
    if found := list(_nearby(path)):
        more = ", ..." if len(found) > _NUM_SHOWN else ""
        return f"; there are poses in {', '.join(map(str, found[:_NUM_SHOWN]))}{more}: give that folder"
    if not path.is_dir():
        return ""
    if document := next((file for file in sorted(path.glob("*.json"))[:_MAX_FILES] if _has_frames(file)), None):
        return f"; {document} has frames with poses: give its path"
    if (path / "zarr.json").exists():
        return "; it is a scene, which holds no photos: give the folder of the photos that it was built from"
    for names, what, step in _FOREIGN:
        for name in names:
            if (path / name).exists():
                return f"; {path / name} is {what}: {step}"
    if document := next((file for file in sorted(path.glob("*.xml")) if _begins_with(file, b"<document")), None):
        return f"; {document} is {_METASHAPE[0]}: {_METASHAPE[1]}"
    if count := _num_photos(path):
        return (
            f"; there are {count} photos and no poses: compute them first, with COLMAP (such as 'colmap "
            "automatic_reconstructor') or nerfstudio's 'ns-process-data images'"
        )
    return ""


def _nearby(path: Path) -> Iterator[Path]:
    """Folders with poses up to two levels above and below, those above first."""
    for folder in list(path.absolute().parents)[:_DEPTH]:
        if _has_poses(folder):
            yield folder
            return
    level = [path] if path.is_dir() else []
    for _ in range(_DEPTH):
        below = [folder for parent in level for folder in _subfolders(parent)]
        level = []
        for folder in below[:_MAX_FOLDERS]:
            if _has_poses(folder):
                yield folder
            else:
                level.append(folder)


def _has_poses(folder: Path) -> bool:
    try:
        return find_colmap(folder, tell=False) is not None or bool(find_transforms(folder))
    except OSError:
        return False


def _subfolders(folder: Path) -> list[Path]:
    try:
        return sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
    except OSError:
        return []


def _num_photos(folder: Path) -> int:
    for place in (folder / "images", folder):
        if place.is_dir() and (count := sum(file.suffix.lower() in _PHOTOS for file in place.iterdir())):
            return count
    return 0


def _has_frames(file: Path) -> bool:
    try:
        content = read_json(file) if file.stat().st_size <= _MAX_BYTES else None
    except (OSError, DatasetError):
        return False
    return isinstance(content, dict) and isinstance(content.get("frames"), list)


def _begins_with(file: Path, start: bytes) -> bool:
    try:
        with file.open("rb") as content:
            return start in content.read(300)
    except OSError:
        return False
