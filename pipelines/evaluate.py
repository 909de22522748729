"""evaluate: held-out photos against renders, at every pyramid level, by region and along the faces of nodes."""

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from infnerf_tiles.pipelines.surfaces import RegionFigures, RegionSums, StripFigures, StripSums, surfaces

from infnerf_tiles.arrays import Bool, Float64, UInt8
from infnerf_tiles.data.dataset import PosedPhotos
from infnerf_tiles.data.photos import decode_masked_photo, mask_pyramid, num_pyramid_levels, pyramid
from infnerf_tiles.data.records import Rejected
from infnerf_tiles.errors import DamagedPhotoError, DatasetError
from infnerf_tiles.metrics import apply_affine, fit_affine, psnr, ssim
from infnerf_tiles.process import peak_memory
from infnerf_tiles.rendering.renderer import DeviceChoice, Renderer
from infnerf_tiles.rendering.scene import Scene
from infnerf_tiles.settings import Settings
from infnerf_tiles.training.context import scene_dataset
from infnerf_tiles.training.inputs import photo_places

Split = Literal["test", "train"]
Progress = Callable[[int, int], None]
"""(pictures done, pictures in all)"""

RIDGE = 1e-4
"""Pull of fitted colour transforms towards the identity, in squared colour units."""
_MIN_FITTED = 64  # pixels; fewer say nothing about twelve numbers
_MAX_PSNR = 120.0  # what two equal pictures get, since JSON has no infinity
_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class LevelScore:
    """Means over photos at one pyramid level.

    psnr, ssim: with the mean colour transform of the training photos. psnr_half, ssim_half: of the right half of each
    photo, with a transform fitted to its left half. lpips: not computed. None where no photo allows it.
    """

    pyramid: int
    images: int
    psnr: float | None
    psnr_half: float | None
    ssim: float | None
    ssim_half: float | None
    lpips: float | None = None

    def to_json(self) -> dict[str, Any]:
        """JSON values."""
        return {name: getattr(self, name) for name in self.__dataclass_fields__}


@dataclass(frozen=True, kw_only=True)
class PhotoScore:
    """One photo at pyramid level 0; fields as in LevelScore."""

    name: str
    psnr: float | None
    psnr_half: float | None
    ssim: float | None
    ssim_half: float | None

    def to_json(self) -> dict[str, Any]:
        """JSON values."""
        return {name: getattr(self, name) for name in self.__dataclass_fields__}


@dataclass(frozen=True, kw_only=True)
class EvalReport:
    """What `evaluate` found.

    regions: treelets of the finest band. strips: surface pixels inside nodes and along the faces of nodes and of
    treelets. Both at pyramid level 0 and with a colour transform fitted to each whole photo, so that they tell places
    and not exposures apart.
    """

    split: Split
    images: int
    levels: tuple[LevelScore, ...]
    regions: tuple[RegionFigures, ...]
    strips: tuple[StripFigures, ...]
    photos: tuple[PhotoScore, ...]
    samples: int
    seconds: float
    peak_bytes: int
    unusable: tuple[Rejected, ...] = ()
    """Photos of the split that were left out because they cannot be decoded."""

    def to_json(self) -> dict[str, Any]:
        """JSON values."""
        return {
            "split": self.split,
            "images": self.images,
            "unusable": [{"photo": photo.name, "reason": photo.reason} for photo in self.unusable],
            "levels": [level.to_json() for level in self.levels],
            "regions": [region.to_json() for region in self.regions],
            "strips": [strip.to_json() for strip in self.strips],
            "photos": [photo.to_json() for photo in self.photos],
            "samples": self.samples,
            "seconds": self.seconds,
            "peak_bytes": self.peak_bytes,
        }


def evaluate(
    scene: str,
    dataset: PosedPhotos | None = None,
    *,
    data: str | None = None,
    images: str | None = None,
    split: Split = "test",
    limit: int | None = None,
    lod_bias: float = 0.0,
    memory_budget: int | None = None,
    threads: int | None = None,
    device: DeviceChoice | None = None,
    settings: Settings | None = None,
    progress: Progress | None = None,
) -> EvalReport:
    """Score a scene's renders against its photos.

    Args:
        scene: path or URL of a scene store.
        dataset: the photos; not given, they are read from `data` (default: where they were at build).
        split: the held-out photos, or those trained on.
        limit: score only so many photos, evenly chosen.
        lod_bias: added to the wanted level. memory_budget: bytes for resident nodes. threads: processor threads.
        device: where to draw, default: as the settings say.
        settings: used instead of the scene's own, of which they may differ in the section rendering.

    A photo that cannot be decoded is left out with a warning. Raises DatasetError if there is no photo to score, and
    what `Scene.open` and `read_dataset` raise.
    """
    started = time.monotonic()
    with Scene.open(scene) as stored:
        opened = stored if settings is None else replace(stored, settings=settings)
        photos = dataset or _read_photos(opened, data, images)
        rows = _chosen(opened, photos, split, limit)
        with Renderer(opened, memory_budget, threads=threads, device=device) as renderer:
            scorer = _Scorer(opened, renderer, lod_bias)
            cameras = [opened.cameras.camera(row) for row, _ in rows]
            heights = [num_pyramid_levels(camera.width, camera.height) for camera in cameras]
            total, done = sum(heights), 0
            unusable: list[Rejected] = []
            for (row, photo), height in zip(rows, heights, strict=True):
                try:
                    decoded = decode_masked_photo(photos.photo_file(photo))
                except DamagedPhotoError as error:
                    _log.warning("%s; the photo is not scored", error)
                    unusable.append(Rejected(photos.names[photo], str(error)))
                    total -= height
                    continue
                shown = pyramid(decoded.rgb, height)
                masks = [None] * height if decoded.mask is None else mask_pyramid(decoded.mask, height)
                for level in range(height):
                    scorer.add(row, level, shown[level], masks[level])
                    done += 1
                    if progress is not None:
                        progress(done, total)
    if len(unusable) == len(rows):
        raise DatasetError(
            f"scene {scene}: expected {split} photos to score, got {len(rows)} that cannot be decoded, the first: "
            f"{unusable[0].reason}"
        )
    return EvalReport(
        split=split,
        images=len(rows) - len(unusable),
        levels=scorer.levels(),
        regions=scorer.regions.figures(),
        strips=scorer.strips.figures(),
        photos=tuple(scorer.photos),
        samples=scorer.num_samples,
        seconds=time.monotonic() - started,
        peak_bytes=peak_memory(),
        unusable=tuple(unusable),
    )


class _Scorer:
    """Renders photo after photo and keeps the scores."""

    def __init__(self, scene: Scene, renderer: Renderer, lod_bias: float) -> None:
        self.regions = RegionSums()
        self.strips = StripSums()
        self.photos: list[PhotoScore] = []
        self.num_samples = 0
        self._scene = scene
        self._renderer = renderer
        self._lod_bias = lod_bias
        self._scores: dict[int, list[PhotoScore]] = {}

    def add(self, row: int, level: int, photo: UInt8, mask: Bool | None) -> None:
        """Score one photo at one pyramid level. row: of the scene's cameras."""
        camera = self._scene.cameras.camera(row).scaled_down(1 << level)
        pose = self._scene.cameras.camera_to_world[row]
        picture = self._renderer.render(camera, pose, lod_bias=self._lod_bias)
        self.num_samples += picture.num_samples
        target = photo.astype(np.float64) / 255.0
        raw = picture.rgb.astype(np.float64)
        usable = np.ones(target.shape[:2], np.bool_) if mask is None else mask
        plain = _shown(self._scene.mean_affine, raw)
        right = np.s_[:, target.shape[1] // 2 :]
        half = _right_half(raw, target, usable)
        score = PhotoScore(
            name=self._scene.names[row],
            psnr=_psnr(plain, target, usable),
            psnr_half=None if half is None else _psnr(half, target[right], usable[right]),
            ssim=_ssim(plain, target, mask),
            ssim_half=None if half is None else _ssim(half, target[right], None if mask is None else mask[right]),
        )
        self._scores.setdefault(level, []).append(score)
        if level == 0:
            self.photos.append(score)
            found = surfaces(self._scene, camera, pose, picture, self._lod_bias)
            if usable.sum() >= _MIN_FITTED:
                fitted = _shown(fit_affine(raw[usable], target[usable], RIDGE), raw)
                self.regions.add(found.treelet, usable, fitted, target)
                self.strips.add(found.strips, usable, fitted, target)
            else:  # too few to fit, yet a region that only they show is not to be lost from the table
                self.regions.add(found.treelet, usable, plain, target)

    def levels(self) -> tuple[LevelScore, ...]:
        """Means per pyramid level."""
        return tuple(
            LevelScore(
                pyramid=level,
                images=len(scores),
                psnr=_mean([s.psnr for s in scores]),
                psnr_half=_mean([s.psnr_half for s in scores]),
                ssim=_mean([s.ssim for s in scores]),
                ssim_half=_mean([s.ssim_half for s in scores]),
            )
            for level, scores in sorted(self._scores.items())
        )


def _read_photos(scene: Scene, data: str | None, images: str | None) -> PosedPhotos:
    folder, photo_folder = photo_places(scene.header, data, images)
    return scene_dataset(scene.settings, Path(folder), None if photo_folder is None else Path(photo_folder))


def _chosen(scene: Scene, photos: PosedPhotos, split: Split, limit: int | None) -> list[tuple[int, int]]:
    """(row of the scene's cameras, row of `photos`) of the photos to score."""
    row_of = {name: row for row, name in enumerate(photos.names)}
    wanted = np.flatnonzero(scene.is_test == (split == "test")).tolist()
    missing = [scene.names[row] for row in wanted if scene.names[row] not in row_of]
    if missing:
        _log.warning("%d of %d photos to score are missing, the first: %s", len(missing), len(wanted), missing[0])
    found = [(row, row_of[scene.names[row]]) for row in wanted if scene.names[row] in row_of]
    if not found:
        reason = f"{len(missing)} are missing from {photos.root}; give their folder with --data or --images"
        if not wanted:
            reason = "the scene was built without any; score the others with --split " + (
                "train, or build with another data.test_every" if split == "test" else "test"
            )
        raise DatasetError(f"scene {scene.store.name}: expected {split} photos to score, got none: {reason}")
    if limit is None or limit >= len(found):
        return found
    return [found[i] for i in np.linspace(0, len(found) - 1, max(limit, 1)).round().astype(int).tolist()]


def _shown(affine: Float64, rgb: Float64) -> Float64:
    return np.clip(apply_affine(affine, rgb), 0.0, 1.0)


def _psnr(render: Float64, photo: Float64, usable: Bool) -> float | None:
    return min(psnr(render, photo, usable), _MAX_PSNR) if usable.any() else None


def _right_half(raw: Float64, photo: Float64, usable: Bool) -> Float64 | None:
    """The right half with the colour transform that fits the left half; None where that has too few pixels."""
    middle = raw.shape[1] // 2
    left = usable[:, :middle]
    if left.sum() < _MIN_FITTED:
        return None
    affine = fit_affine(raw[:, :middle][left], photo[:, :middle][left], RIDGE)
    return _shown(affine, raw[:, middle:])


def _ssim(render: Float64, photo: Float64, mask: Bool | None) -> float | None:
    try:
        return ssim(render, photo, mask)
    except ValueError:  # no window fits
        return None


def _mean(values: list[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else None
