"""Which pose files of a data set are read, and what to say where there are none or two."""

import logging
from dataclasses import dataclass
from pathlib import Path

from infnerf_tiles.data.colmap import find_colmap, num_images
from infnerf_tiles.data.nearby import what_is_there
from infnerf_tiles.data.transforms_json import TRANSFORMS_FILE, contents_text, find_transforms
from infnerf_tiles.errors import DatasetError, NoPosesError

logger = logging.getLogger(__name__)

_MODEL_FILES = frozenset({"cameras", "images", "points3D"})
_ABOVE = 2  # sparse/0


@dataclass(frozen=True, kw_only=True)
class Source:
    """folder: the data set's own, in which masks, split.json and geo.json lie. transforms: what was asked for, the
    folder or one .json file. model: folder of the COLMAP model, None for none. reads_model: whether the poses are the
    model's, not those of the transforms file."""

    folder: Path
    transforms: Path
    model: Path | None
    reads_model: bool


def find_source(path: Path) -> Source:
    """What to read of `path`: a data set's folder, the folder of a COLMAP model, or one .json or model file.

    Of a model and a transforms file the model is read, unless it is nerfstudio's own (colmap/sparse): its transforms
    file says more. NoPosesError, naming what lies nearby, if there are no poses; DatasetError if it is a file of
    another kind.
    """
    if path.is_file():
        if path.suffix.lower() == ".json":
            return Source(folder=path.parent, transforms=path, model=None, reads_model=False)
        if path.stem not in _MODEL_FILES or path.suffix not in (".bin", ".txt"):
            raise DatasetError(
                f"{path}: expected a folder with posed photos, or a .json file with poses, got another file"
                f"{what_is_there(path)}"
            )
        path = path.parent
    if not path.is_dir():
        raise NoPosesError(
            f"{path}: expected a folder with posed photos, got none{what_is_there(path) or '; check the path'}"
        )
    model, transforms = find_colmap(path), find_transforms(path)
    if model is None:
        if not transforms:
            raise NoPosesError(
                f"{path}: expected a COLMAP model (images.bin or images.txt in sparse/0, sparse, colmap/sparse/0 or "
                f"the folder itself), {TRANSFORMS_FILE} or Blender's transforms_train.json, got none of them"
                f"{what_is_there(path) or '; give the folder that holds the poses'}"
            )
        return Source(folder=path, transforms=path, model=None, reads_model=False)
    reads_model = not transforms or path / "colmap" not in model.parents
    if reads_model and transforms:
        _tell_of_transforms(path, model, transforms)
    return Source(folder=_own_folder(path, model), transforms=path, model=model, reads_model=reads_model)


def _tell_of_transforms(path: Path, model: Path, transforms: tuple[Path, ...]) -> None:
    count = num_images(model)
    try:
        text = contents_text(transforms)
        loud = "with" in text or not text.startswith(f"{count} ")
    except DatasetError as error:
        text, loud = str(error), False
    logger.log(
        logging.WARNING if loud else logging.INFO,
        "%s: the COLMAP model in %s (%d photos) is read, not %s beside it (%s); to read that, give its path",
        path, model, count, transforms[0].name, text,
    )  # fmt: skip


def _own_folder(path: Path, model: Path) -> Path:
    """The data set's folder: above the model, where the folder of the model itself was given."""
    if model != path and not (model.parent == path and model.name.isdecimal()):
        return path
    above = (path, *path.absolute().parents[:_ABOVE])
    return next((folder for folder in above if (folder / "images").is_dir()), path)
