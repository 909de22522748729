"""What stands on one city block: buildings, trees and cars as solids, a deterministic function of (seed, block).

Frame: world metres, z up, ground at z = 0. Block (gx, gy) is the square of edge BLOCK_EDGE centred at
(gx, gy) * BLOCK_EDGE; streets run along the block borders and nothing reaches over them, so blocks are independent.

Its numbers are constants of kernels made with njit.
"""

from dataclasses import dataclass

import numpy as np

from infnerf_tiles.arrays import Float64, Int64, UInt8

BLOCK_EDGE = 60.0
ROAD = 4.5  # half width of a street, metres from the block border
CURB = 7.0  # outer edge of the sidewalk, metres from the block border
MAX_HEIGHT = 48.0  # nothing in the city is higher

# Shapes. Every solid is given by its axis-aligned box; the shape says what fills it.
BOX, GABLE_X, GABLE_Y, ELLIPSOID = 0, 1, 2, 3
# Materials.
WALL, TILES, FOLIAGE, TRUNK, CAR, CABIN, METAL, HEDGE = 0, 1, 2, 3, 4, 5, 6, 7
# Kinds of block; they also colour the ground.
PARK, HOUSES, COURTYARD, TOWERS, MIXED = 0, 1, 2, 3, 4
_KIND_WEIGHTS = (0.13, 0.24, 0.25, 0.18, 0.20)

_LOT = (CURB, BLOCK_EDGE - CURB)  # buildable interval, block coordinates
_MASK = (1 << 64) - 1
_SALT = 1651  # chosen so that the middle of the city of seed 0 has blocks of every kind


@dataclass(frozen=True, kw_only=True)
class Block:
    """Solids of one block.

    boxes: float64 [n, 6] world metres (x0, y0, z0, x1, y1, z1); shape, material: uint8 [n]; style: int64 [n], 31 random
    bits that the texture turns into colours and window patterns; kind: one of PARK ... MIXED.
    """

    kind: int
    boxes: Float64
    shape: UInt8
    material: UInt8
    style: Int64


class BlockRandom:
    """splitmix64 stream of one block; its own generator, so that a city never changes with the numpy version."""

    def __init__(self, seed: int, gx: int, gy: int) -> None:
        self._state = (_SALT + seed * 0x9E3779B97F4A7C15 + gx * 0xC2B2AE3D27D4EB4F + gy * 0x165667B19E3779F9) & _MASK
        self.bits()

    def bits(self) -> int:
        """31 random bits."""
        self._state = (self._state + 0x9E3779B97F4A7C15) & _MASK
        z = self._state
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & _MASK
        return (z ^ (z >> 31)) >> 33

    def uniform(self, low: float, high: float) -> float:
        return low + (high - low) * (self.bits() / 2147483648.0)

    def chance(self, probability: float) -> bool:
        return self.uniform(0.0, 1.0) < probability


def block_kind(seed: int, gx: int, gy: int) -> int:
    """The kind of a block: one of PARK ... MIXED."""
    draw = BlockRandom(seed, gx, gy).uniform(0.0, 1.0)
    for kind, weight in enumerate(_KIND_WEIGHTS):
        draw -= weight
        if draw < 0.0:
            return kind
    return MIXED


def make_block(seed: int, gx: int, gy: int) -> Block:
    """The solids of block (gx, gy) of the city with this seed; the same whatever the size of the city."""
    builder = _Builder(BlockRandom(seed, gx, gy))
    builder.rng.bits()  # the draw that chose the kind
    kind = block_kind(seed, gx, gy)
    _INTERIORS[kind](builder)
    _street(builder, kind)
    boxes = np.array(builder.boxes, dtype=np.float64).reshape(-1, 6)
    corner = np.array([gx - 0.5, gy - 0.5]) * BLOCK_EDGE
    boxes[:, [0, 3]] += corner[0]
    boxes[:, [1, 4]] += corner[1]
    return Block(
        kind=kind,
        boxes=boxes,
        shape=np.array(builder.shape, dtype=np.uint8),
        material=np.array(builder.material, dtype=np.uint8),
        style=np.array(builder.style, dtype=np.int64),
    )


class _Builder:
    """Collects solids in block coordinates, [0, BLOCK_EDGE)^2."""

    def __init__(self, rng: BlockRandom) -> None:
        self.rng = rng
        self.boxes: list[tuple[float, float, float, float, float, float]] = []
        self.shape: list[int] = []
        self.material: list[int] = []
        self.style: list[int] = []

    def add(
        self, box: tuple[float, float, float, float, float, float], material: int, style: int, shape: int = BOX
    ) -> None:
        self.boxes.append(box)
        self.shape.append(shape)
        self.material.append(material)
        self.style.append(style)

    def building(self, x0: float, y0: float, x1: float, y1: float, z0: float, z1: float, style: int) -> None:
        """A flat-roofed part with its rooftop plant."""
        rng = self.rng
        self.add((x0, y0, z0, x1, y1, z1), WALL, style)
        if min(x1 - x0, y1 - y0) < 7.0:
            return
        for _ in range(1 + int(rng.chance(0.5))):
            w, d, h = rng.uniform(1.8, 3.6), rng.uniform(1.8, 3.6), rng.uniform(1.0, 2.6)
            x = rng.uniform(x0 + 1.2, x1 - 1.2 - w)
            y = rng.uniform(y0 + 1.2, y1 - 1.2 - d)
            self.add((x, y, z1, x + w, y + d, z1 + h), METAL, rng.bits())

    def gabled(
        self, x0: float, y0: float, x1: float, y1: float, eaves: float, rise: float, style: int, along_x: bool
    ) -> None:
        """A part with a pitched roof that overhangs the walls by half a metre."""
        self.add((x0, y0, 0.0, x1, y1, eaves), WALL, style)
        roof = (x0 - 0.5, y0 - 0.5, eaves, x1 + 0.5, y1 + 0.5, eaves + rise)
        self.add(roof, TILES, style, GABLE_X if along_x else GABLE_Y)
        if self.rng.chance(0.7):
            x = self.rng.uniform(x0 + 1.0, x1 - 2.0)
            y = self.rng.uniform(y0 + 1.0, y1 - 2.0)
            self.add((x, y, eaves, x + 0.9, y + 0.9, eaves + rise + 0.7), METAL, self.rng.bits())

    def tree(self, x: float, y: float, radius: float) -> None:
        """A crown of one large and one small ellipsoid on a trunk."""
        rng = self.rng
        clear = rng.uniform(1.4, 2.2)
        height = clear + radius * rng.uniform(1.7, 2.4)
        style = rng.bits()
        self.add((x - 0.25, y - 0.25, 0.0, x + 0.25, y + 0.25, clear + 0.6), TRUNK, style)
        self.add((x - radius, y - radius, clear, x + radius, y + radius, height), FOLIAGE, style, ELLIPSOID)
        if radius > 2.0:
            small = 0.62 * radius
            cx = x + rng.uniform(-0.45, 0.45) * radius
            cy = y + rng.uniform(-0.45, 0.45) * radius
            top = height + rng.uniform(0.05, 0.2) * radius
            self.add(
                (cx - small, cy - small, top - 2.0 * small, cx + small, cy + small, top), FOLIAGE, style, ELLIPSOID
            )

    def car(self, x: float, y: float, along_x: bool) -> None:
        """A parked car centred at (x, y)."""
        style = self.rng.bits()
        length, width = 2.15, 0.9
        a, b = (length, width) if along_x else (width, length)
        self.add((x - a, y - b, 0.25, x + a, y + b, 0.95), CAR, style)
        a, b = (1.15, 0.75) if along_x else (0.75, 1.15)
        self.add((x - a, y - b, 0.95, x + a, y + b, 1.5), CABIN, style)

    def scatter_trees(self, x0: float, y0: float, x1: float, y1: float, count: int, low: float, high: float) -> None:
        """Trees at random places of a rectangle, not closer to each other than their crowns allow."""
        placed: list[tuple[float, float, float]] = []
        for _ in range(3 * count):
            if len(placed) == count:
                return
            radius = self.rng.uniform(low, high)
            x = self.rng.uniform(x0 + radius, x1 - radius)
            y = self.rng.uniform(y0 + radius, y1 - radius)
            if all((x - px) ** 2 + (y - py) ** 2 > (0.8 * (radius + pr)) ** 2 for px, py, pr in placed):
                placed.append((x, y, radius))
                self.tree(x, y, radius)


def _park(b: _Builder) -> None:
    lo, hi = _LOT
    middle = 0.5 * BLOCK_EDGE
    # The crossing paths (texture) and the pond stay open: trees fill the four quarters around them.
    for x0, x1 in ((lo, middle - 4.0), (middle + 4.0, hi)):
        for y0, y1 in ((lo, middle - 4.0), (middle + 4.0, hi)):
            if x0 > middle and y0 > middle:
                b.scatter_trees(x1 - 6.5, y0, x1, y1, 3, 2.0, 3.2)  # a pond lies in this quarter
                continue
            b.scatter_trees(x0, y0, x1, y1, 5 + b.rng.bits() % 4, 2.0, 3.8)


def _houses(b: _Builder) -> None:
    lo, hi = _LOT
    rng = b.rng
    width = (hi - lo) / 3.0
    for column in range(3):
        for row in range(2):
            x = lo + column * width
            w, d = rng.uniform(8.5, 11.0), rng.uniform(8.5, 12.0)
            x0 = x + rng.uniform(1.2, width - w - 1.2)
            front = rng.uniform(2.5, 5.0)
            y0 = lo + front if row == 0 else hi - front - d
            eaves, rise = rng.uniform(3.4, 6.6), rng.uniform(2.2, 3.6)
            b.gabled(x0, y0, x0 + w, y0 + d, eaves, rise, rng.bits(), rng.chance(0.5))
            garden = (lo + front + d + 1.5, 29.5) if row == 0 else (30.5, hi - front - d - 1.5)
            if garden[1] - garden[0] > 4.2:
                b.scatter_trees(x + 0.8, garden[0], x + width - 0.8, garden[1], 1 + rng.bits() % 2, 1.3, 2.0)
        if column:
            x = lo + column * width
            b.add((x - 0.4, lo + 7.0, 0.0, x + 0.4, hi - 7.0, 1.4), HEDGE, rng.bits())


def _courtyard(b: _Builder) -> None:
    lo, hi = _LOT
    rng = b.rng
    depth = rng.uniform(10.0, 12.5)
    inner = (lo + depth, hi - depth)
    bars = (
        (lo, lo, lo + depth, 30.0),
        (lo, 30.0, lo + depth, hi),
        (hi - depth, lo, hi, 30.0),
        (hi - depth, 30.0, hi, hi),
        (inner[0], lo, inner[1], lo + depth),
        (inner[0], hi - depth, inner[1], hi),
    )
    base = rng.uniform(11.0, 17.0)
    gate = rng.bits() % 8  # one side may be open to the street
    for k, (x0, y0, x1, y1) in enumerate(bars):
        if k == gate and k >= 4:
            continue
        height = base + rng.uniform(-3.0, 4.5)
        style = rng.bits()
        if rng.chance(0.4):
            b.gabled(x0 + 0.3, y0 + 0.3, x1 - 0.3, y1 - 0.3, height, rng.uniform(2.6, 4.0), style, k >= 4)
        else:
            b.building(x0, y0, x1, y1, 0.0, height, style)
    b.scatter_trees(inner[0] + 1.0, inner[0] + 1.0, inner[1] - 1.0, inner[1] - 1.0, 5, 1.6, 2.8)


def _towers(b: _Builder) -> None:
    lo, hi = _LOT
    rng = b.rng
    style = rng.bits()
    podium = rng.uniform(5.0, 8.5)
    inset = rng.uniform(2.0, 5.0)
    b.building(lo + inset, lo + inset, hi - inset, hi - inset, 0.0, podium, rng.bits())
    if rng.chance(0.5):  # one tower in steps
        w = rng.uniform(22.0, 27.0)
        x = rng.uniform(lo + inset + 2.0, hi - inset - 2.0 - w)
        y = rng.uniform(lo + inset + 2.0, hi - inset - 2.0 - w)
        z = podium
        for share, rise in (
            (1.0, rng.uniform(12.0, 16.0)),
            (0.72, rng.uniform(7.0, 10.0)),
            (0.46, rng.uniform(4.0, 7.0)),
        ):
            shrink = 0.5 * w * (1.0 - share)
            b.building(x + shrink, y + shrink, x + w - shrink, y + w - shrink, z, z + rise, style)
            z += rise
        return
    # two slabs
    gap = rng.uniform(8.0, 11.0)
    for k, (y0, y1) in enumerate(((lo + inset + 2.0, 30.0 - 0.5 * gap), (30.0 + 0.5 * gap, hi - inset - 2.0))):
        x0, x1 = lo + inset + rng.uniform(2.0, 8.0), hi - inset - rng.uniform(2.0, 8.0)
        b.building(x0, y0, x1, y1, podium, podium + rng.uniform(12.0, 30.0), style + k * rng.chance(0.3))


def _mixed(b: _Builder) -> None:
    lo, hi = _LOT
    rng = b.rng
    cut_x, cut_y = rng.uniform(26.0, 34.0), rng.uniform(26.0, 34.0)
    parking = rng.bits() % 4
    for k in range(4):
        x0, x1 = (lo, cut_x - 2.0) if k % 2 == 0 else (cut_x + 2.0, hi)
        y0, y1 = (lo, cut_y - 2.0) if k < 2 else (cut_y + 2.0, hi)
        if k == parking:
            for row in range(2):
                for place in range(5):
                    if rng.chance(0.75):
                        x, y = x0 + 2.5 + 3.1 * place, y0 + 4.0 + 8.5 * row
                        if x + 1.0 < x1:
                            b.car(x, y, False)
            continue
        if rng.chance(0.35):
            low, high = rng.uniform(6.0, 10.0), rng.uniform(14.0, 24.0)
            split = rng.uniform(0.4, 0.6) * (x1 - x0) + x0
            style = rng.bits()
            b.building(x0, y0, split, y1, 0.0, low, style)
            b.building(split, y0, x1, y1, 0.0, high, style)
        elif rng.chance(0.3):
            b.gabled(
                x0 + 1.0, y0 + 1.0, x1 - 1.0, y1 - 1.0, rng.uniform(7.0, 11.0), rng.uniform(3.0, 4.2), rng.bits(), True
            )
        else:
            b.building(x0 + 0.5, y0 + 0.5, x1 - 0.5, y1 - 0.5, 0.0, rng.uniform(8.0, 20.0), rng.bits())


def _street(b: _Builder, kind: int) -> None:
    """Trees on the sidewalks and cars at the curb, along the four sides."""
    rng = b.rng
    leafy = 0.75 if kind in (PARK, HOUSES, COURTYARD) else 0.45
    for side in range(4):
        along_x = side < 2
        near = side % 2 == 0
        for k in range(4):
            place = 12.5 + 11.5 * k + rng.uniform(-1.5, 1.5)
            if rng.chance(leafy):
                across = 5.9 if near else BLOCK_EDGE - 5.9
                x, y = (place, across) if along_x else (across, place)
                # Crowns stay clear of the facades, which begin at CURB.
                b.tree(x, y, rng.uniform(1.7, 2.7))
        for k in range(6):
            place = 13.0 + 6.5 * k + rng.uniform(-0.6, 0.6)
            if rng.chance(0.4):
                across = 3.4 if near else BLOCK_EDGE - 3.4
                x, y = (place, across) if along_x else (across, place)
                b.car(x, y, along_x)


_INTERIORS = {PARK: _park, HOUSES: _houses, COURTYARD: _courtyard, TOWERS: _towers, MIXED: _mixed}
