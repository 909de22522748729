"""Pixels on their way from photos to treelets: chunks of patches in the scene's scratch, and reading them back.

`pixels/TREELET/CHUNK` holds the patches that one task cut out of its photos; `pixels/BAND/CHUNK` says which patches of
those photos go to which treelet. Every chunk has one writer, and all of a treelet's go when it is committed.
"""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from infnerf_tiles.arrays import Bool, UInt8
from infnerf_tiles.data.photos import num_pyramid_levels
from infnerf_tiles.errors import StoreError
from infnerf_tiles.geometry.camera import Camera, PosedCameras
from infnerf_tiles.geometry.node_id import NodeId
from infnerf_tiles.store.bundle import Bundle, read_bundle, read_bundle_meta, write_bundle
from infnerf_tiles.store.journal import treelet_folder
from infnerf_tiles.store.scene_store import SceneStore
from infnerf_tiles.training.pixels import PATCH, Patches, PixelBatch, PixelSet, join_patches

AREA = "pixels"
PATCH_BYTES = PATCH * PATCH * 3 + PATCH * PATCH // 8 + 16
"""Stored bytes of a patch: colours, validity bits and its place."""
RESIDENT_PATCH_BYTES = PATCH * PATCH * 4 + 32
"""Bytes of a patch that is drawn from."""
CHUNK_BYTES = 32 << 20
"""Patches of one chunk of photos, unless a single photo has more."""
PART_BYTES = 8 << 20
"""Patches of a treelet that are stored and read together."""
_PART_PATCHES = PART_BYTES // PATCH_BYTES
_MOST_PARTS = 1 << 16
"""Of one treelet from the photos of a chunk: 512 GiB."""
_PLACE = ("photo", "pyramid", "column", "row")


def chunk_photos(cameras: PosedCameras, photos: Sequence[int]) -> list[tuple[int, ...]]:
    """The photos cut into runs whose patches take up to CHUNK_BYTES, at least one photo each."""
    chunks: list[tuple[int, ...]] = []
    run: list[int] = []
    size = 0
    bytes_of = [PATCH_BYTES * num_patches(c) for c in cameras.cameras]
    for photo in photos:
        own = bytes_of[int(cameras.camera_index[photo])]
        if run and size + own > CHUNK_BYTES:
            chunks.append(tuple(run))
            run, size = [], 0
        run.append(photo)
        size += own
    return [*chunks, tuple(run)] if run else chunks


def num_patches(camera: Camera) -> int:
    """Patches of all pyramid levels of a photo."""
    heights = range(num_pyramid_levels(camera.width, camera.height))
    levels = ((camera.width >> p, camera.height >> p) for p in heights)
    return sum(-(-w // PATCH) * -(-h // PATCH) for w, h in levels)


def write_assignment(store: SceneStore, band: int, chunk: int, assigned: dict[int, Patches]) -> None:
    """Keep which patches of a chunk's photos go to which treelet (by root key)."""
    counts = [patches.count for patches in assigned.values()]
    arrays = {name: np.concatenate([getattr(p, name) for p in assigned.values()]) for name in _PLACE} if counts else {}
    arrays["key"] = np.fromiter(assigned, np.int64, len(assigned))
    arrays["count"] = np.array(counts, np.int64)
    write_bundle(store.data, f"{AREA}/{band}/{chunk}", arrays, {})


def read_assignment(store: SceneStore, band: int, chunk: int) -> dict[int, Patches]:
    """What `write_assignment` kept. StoreError if it is gone."""
    found = read_bundle(store.data, f"{AREA}/{band}/{chunk}")
    if found is None:
        raise StoreError(f"scene {store.name}: the assignment of photos, chunk {chunk}, is gone; run 'train' again")
    arrays, start = found.arrays, 0
    result = {}
    for key, count in zip(arrays["key"].tolist(), arrays["count"].tolist(), strict=True):
        part = slice(start, start + count)
        result[key] = Patches(**{name: arrays[name][part] for name in _PLACE})
        start += count
    return result


class PixelWriter:
    """Keeps a treelet's patches from the photos of a chunk, in parts of up to PART_BYTES."""

    def __init__(self, store: SceneStore, treelet: str, chunk: int) -> None:
        self._store, self._treelet, self._number = store, treelet, chunk * _MOST_PARTS
        self._held: list[PixelSet] = []
        self._room = _PART_PATCHES

    def add(self, patches: Patches, levels: list[tuple[UInt8, Bool | None]]) -> None:
        """Cut patches out of one photo, given its pyramid levels with masks; those without a usable pixel are left
        out."""
        first = 0
        while first < patches.count:
            rows = np.arange(first, min(first + self._room, patches.count))
            cut = PixelSet.gather(patches.select(rows), lambda _: levels)
            first += len(rows)
            self._held.append(cut)
            self._room -= cut.patches.count
            if not self._room:
                self.close()

    def close(self) -> None:
        """Write what has not been written."""
        held, self._held, self._room = self._held, [], _PART_PATCHES
        patches = join_patches([pixels.patches for pixels in held])
        if not patches.count:
            return
        valid = np.concatenate([pixels.valid for pixels in held])
        arrays = {name: getattr(patches, name) for name in _PLACE}
        arrays |= {"rgb": np.concatenate([pixels.rgb for pixels in held]), "valid": np.packbits(valid, axis=None)}
        levels = np.bincount(patches.pyramid, valid.sum(axis=(1, 2)))
        meta = {"patches": patches.count, "pixels": [int(n) for n in levels]}
        write_bundle(self._store.data, _chunk_path(self._treelet, self._number), arrays, meta, compressed=False)
        self._number += 1


def drop_pixels(store: SceneStore, treelet: str) -> None:
    """Remove a treelet's pixels."""
    store.data.remove_folder(treelet_folder(AREA, treelet))


def drop_all_pixels(store: SceneStore) -> None:
    """Remove all pixels and assignments, such as an interrupted training leaves."""
    store.data.remove_folder(AREA)


def drop_assignments(store: SceneStore, band: int) -> None:
    """Remove the assignments of a band."""
    store.data.remove_folder(f"{AREA}/{band}")


@dataclass(frozen=True, kw_only=True)
class Chunk:
    """A stored chunk of a treelet. patches: how many; pixels: valid ones by pyramid level."""

    number: int
    patches: int
    pixels: tuple[int, ...]


def list_chunks(store: SceneStore, treelet: str) -> tuple[Chunk, ...]:
    """A treelet's chunks in the order of their numbers; those without a patch are left out."""
    numbers = sorted(int(n) for n in store.data.names(treelet_folder(AREA, treelet)) if n.isascii() and n.isdigit())
    chunks = []
    for number in numbers:
        meta = read_bundle_meta(store.data, _chunk_path(treelet, number))
        if meta is not None and meta["patches"]:
            chunks.append(Chunk(number=number, patches=int(meta["patches"]), pixels=tuple(meta["pixels"])))
    return tuple(chunks)


def read_pixels(store: SceneStore, treelet: str, chunks: "tuple[Chunk, ...]") -> PixelSet:
    """The patches of some of a treelet's chunks, one after the other, read into one allocation."""
    total = sum(chunk.patches for chunk in chunks)
    place = {name: np.empty(total, np.int32) for name in _PLACE}
    rgb: UInt8 = np.empty((total, PATCH, PATCH, 3), np.uint8)
    valid: Bool = np.empty((total, PATCH, PATCH), np.bool_)
    start = 0
    for chunk in chunks:
        found = _read_chunk(store, treelet, chunk.number)
        part = slice(start, start + chunk.patches)
        for name in _PLACE:
            place[name][part] = found.arrays[name]
        rgb[part] = found.arrays["rgb"]
        bits = np.unpackbits(found.arrays["valid"], count=chunk.patches * PATCH * PATCH)
        valid[part] = bits.reshape(-1, PATCH, PATCH)
        start += chunk.patches
    return PixelSet(Patches(**place), rgb, valid)


def _read_chunk(store: SceneStore, treelet: str, number: int) -> Bundle:
    found = read_bundle(store.data, _chunk_path(treelet, number))
    if found is None:
        raise StoreError(f"scene {store.name}: the pixels of treelet {treelet} are gone; run 'train' again")
    return found


def _chunk_path(treelet: str, chunk: int) -> str:
    return f"{treelet_folder(AREA, str(NodeId.parse(treelet)))}/{chunk}"


class StreamedPixels:
    """A treelet's pixels of which only some chunks are in memory at a time, in shuffled order.

    Which ones depends on (seed, progress) alone, so that a training that goes on from a checkpoint sees what it would
    have seen. Has what `Trainer` asks of a `PixelSet`.
    """

    def __init__(self, store: SceneStore, treelet: str, budget: int, passes: float, seed: tuple[int, ...]) -> None:
        self._store, self._treelet = store, treelet
        self._chunks = list_chunks(store, treelet)
        levels = max((len(chunk.pixels) for chunk in self._chunks), default=1)
        self.num_levels = levels
        self.num_pixels = sum(sum(chunk.pixels) for chunk in self._chunks)
        sizes = [chunk.patches * RESIDENT_PATCH_BYTES for chunk in self._chunks]
        rng = np.random.default_rng((*seed, 5))
        rounds = max(1, math.ceil(passes))
        self._windows: list[list[int]] = [[]]
        room = budget
        for chunk in itertools.chain.from_iterable(rng.permutation(len(sizes)).tolist() for _ in range(rounds)):
            if self._windows[-1] and sizes[chunk] > room:
                self._windows.append([])
                room = budget
            self._windows[-1].append(chunk)
            room -= sizes[chunk]
        self._at = -1
        self._window: PixelSet | None = None
        self.seek(0.0)

    @property
    def patches(self) -> Patches:
        """The patches in memory."""
        return self._now.patches

    @property
    def rgb(self) -> UInt8:
        """Their colours, as in PixelSet."""
        return self._now.rgb

    @property
    def valid(self) -> Bool:
        """Their usable pixels, as in PixelSet."""
        return self._now.valid

    @property
    def resident_bytes(self) -> int:
        """Bytes of the patches in memory."""
        return self._now.rgb.nbytes + self._now.valid.nbytes

    def seek(self, progress: float) -> None:
        """Have the chunks in memory that belong to this share of the training."""
        at = min(int(progress * len(self._windows)), len(self._windows) - 1)
        if at == self._at:
            return
        self._at, self._window = at, None  # the former set goes before the next one is read
        chosen = tuple(self._chunks[k] for k in sorted(set(self._windows[at])))
        self._window = read_pixels(self._store, self._treelet, chosen)

    def draw(self, rng: np.random.Generator, count: int, finest: int = 0) -> PixelBatch:
        """As PixelSet.draw, from the patches in memory."""
        return self._now.draw(rng, count, finest)

    @property
    def _now(self) -> PixelSet:
        if self._window is None:
            raise RuntimeError(f"treelet {self._treelet}: no pixels are loaded")
        return self._window


def open_pixels(
    store: SceneStore, treelet: str, budget: int | None, passes: float, seed: tuple[int, ...]
) -> PixelSet | StreamedPixels:
    """A treelet's pixels: all in memory if they fit `budget` bytes (None: they do), else streamed."""
    chunks = list_chunks(store, treelet)
    if budget is None or sum(chunk.patches for chunk in chunks) * RESIDENT_PATCH_BYTES <= budget:
        return read_pixels(store, treelet, chunks)
    return StreamedPixels(store, treelet, budget, passes, seed)
