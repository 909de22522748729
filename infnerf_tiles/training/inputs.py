"""What a scene remembers of how it was made: its settings and where its photos were."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from infnerf_tiles.data.placing import photo_folder
from infnerf_tiles.errors import DamagedStoreError, DatasetError
from infnerf_tiles.settings import Settings, parse_stored_settings
from infnerf_tiles.store.schema import SceneHeader

_INPUTS = "inputs"


@dataclass(frozen=True, kw_only=True)
class PointFacts:
    """By which sparse points are known again: how many there are, seen how often; the middle of the finite ones and
    their root mean square distance from it, world units. All 0 without points."""

    points: int
    observations: int
    centre: tuple[float, float, float]
    spread: float


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """Where the data set was when the scene was built (`train --data` overrides it after a move), and how large the
    octree may become."""

    dataset: str
    images: str | None = None
    node_limit: int | None = None
    """Most nodes that the scene may have, growth included; None: octree.max_nodes."""
    accepted: tuple[str, ...] = ()
    """"then:now", fingerprints of settings and photos between which --accept-changes saw no need to train again."""
    extended: bool = False
    """Whether photos were added since the scene was built."""
    points: PointFacts | None = None
    """The sparse points that the scene was built with; None if it does not say."""


def stored_settings(settings: Settings, inputs: Inputs) -> Mapping[str, Any]:
    """The value of `SceneHeader.settings`."""
    points = None if inputs.points is None else {**asdict(inputs.points), "centre": list(inputs.points.centre)}
    stored = {**asdict(inputs), "accepted": list(inputs.accepted), "points": points}
    return {**settings.model_dump(mode="json"), _INPUTS: stored}


def scene_settings(header: SceneHeader) -> Settings:
    """The resolved settings of a scene."""
    values = {key: value for key, value in header.settings.items() if key != _INPUTS}
    return parse_stored_settings(values, source="settings stored in the scene")


def scene_inputs(header: SceneHeader) -> Inputs:
    """Where the scene's photos were. DamagedStoreError if the scene does not say."""
    stored = header.settings.get(_INPUTS)
    if not isinstance(stored, Mapping) or not isinstance(stored.get("dataset"), str):
        raise DamagedStoreError("scene: expected the place of its photos in its settings, got none; pass --data")
    images = stored.get("images")
    limit = stored.get("node_limit")
    return Inputs(
        dataset=str(stored["dataset"]),
        images=None if images is None else str(images),
        node_limit=limit if isinstance(limit, int) else None,
        accepted=tuple(str(text) for text in stored.get("accepted") or ()),
        extended=stored.get("extended") is True,
        points=_point_facts(stored.get("points")),
    )


def _point_facts(stored: object) -> PointFacts | None:
    if not isinstance(stored, Mapping):
        return None
    try:
        x, y, z = (float(value) for value in stored["centre"])
        return PointFacts(
            points=int(stored["points"]),
            observations=int(stored["observations"]),
            centre=(x, y, z),
            spread=float(stored["spread"]),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise DamagedStoreError(
            f"scene: expected facts of its sparse points in its settings, got {stored!r:.80}; build it again"
        ) from error


def absolute(path: str | Path | None) -> str | None:
    """The path from the root, so that the scene can be trained from any folder."""
    return None if path is None else str(Path(path).resolve())


def photo_places(header: SceneHeader, data: str | None, images: str | None) -> tuple[str, str | None]:
    """Absolute folders of data set and photos (None: where the data set has them): as given, else as at build.

    A folder of photos of then that lay in the data set is looked for in the one that is given. DatasetError if neither
    the scene nor `data` names a data set.
    """
    then = Inputs(dataset="") if data is not None and _INPUTS not in header.settings else scene_inputs(header)
    if not (then.dataset or data):
        raise DatasetError("data set: expected its folder, but the scene names none; give it with --data")
    folder = absolute(data) or then.dataset
    if images is not None:
        return folder, absolute(photo_folder(Path(folder), Path(images)))
    if data is None or then.images is None or not (then.dataset and Path(then.images).is_relative_to(then.dataset)):
        return folder, then.images
    return folder, str(Path(folder) / Path(then.images).relative_to(then.dataset))
