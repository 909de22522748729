"""Colours of the synthetic city: procedural, band-limited functions of the world position, and its light.

All functions are numba kernels on scalars. Albedos are linear (the square of the palette's display values); display
values are the square root of the light, a gamma of 2. Details are half a metre or larger and their edges ramp over
EDGE metres, so that photos at any distance agree on what they show.
"""

import math

import numpy as np

from infnerf_tiles.arrays import Float32, Float64
from infnerf_tiles.compiled import njit
from infnerf_tiles.synthetic.layout import (
    BLOCK_EDGE,
    CABIN,
    CAR,
    COURTYARD,
    CURB,
    FOLIAGE,
    HEDGE,
    HOUSES,
    METAL,
    MIXED,
    PARK,
    ROAD,
    TILES,
    BlockRandom,
)

EDGE = 0.3  # width of the ramp at the edge of a painted detail, metres
COUNTRYSIDE = 255  # ground kind outside the city

_SUN = np.array([-0.50, -0.42, 0.76])
SUN_X, SUN_Y, SUN_Z = (float(v) for v in _SUN / np.linalg.norm(_SUN))


def _linear(*display: tuple[float, float, float]) -> Float64:
    return np.square(np.array(display, dtype=np.float64))


_WALLS = _linear(
    (0.64, 0.41, 0.33), (0.81, 0.74, 0.61), (0.86, 0.84, 0.79), (0.68, 0.68, 0.67),
    (0.83, 0.71, 0.49), (0.80, 0.66, 0.60), (0.54, 0.42, 0.36), (0.60, 0.66, 0.71),
)  # fmt: skip
_FLAT_ROOFS = _linear(
    (0.63, 0.62, 0.60),
    (0.46, 0.46, 0.47),
    (0.71, 0.67, 0.60),
    (0.75, 0.75, 0.74),
    (0.55, 0.46, 0.42),
    (0.46, 0.52, 0.35),
)
_TILES = _linear((0.67, 0.44, 0.35), (0.58, 0.37, 0.31), (0.43, 0.45, 0.49), (0.57, 0.44, 0.36))
_LEAVES = _linear((0.36, 0.48, 0.27), (0.42, 0.51, 0.29), (0.33, 0.44, 0.28), (0.47, 0.51, 0.30))
_CARS = _linear(
    (0.80, 0.80, 0.81),
    (0.32, 0.33, 0.35),
    (0.60, 0.61, 0.63),
    (0.62, 0.29, 0.26),
    (0.31, 0.39, 0.54),
    (0.71, 0.69, 0.64),
)
_FIELDS = _linear((0.46, 0.51, 0.32), (0.58, 0.56, 0.40), (0.41, 0.49, 0.31), (0.53, 0.49, 0.38))


_LATTICE_EDGE = 128


def _lattice() -> Float32:
    """Random values in [-1, 1) for `_noise`; a table is several times faster than hashing four corners."""
    rng = BlockRandom(0, 0, 0)
    values = [rng.uniform(-1.0, 1.0) for _ in range(_LATTICE_EDGE * _LATTICE_EDGE)]
    return np.array(values, dtype=np.float32).reshape(_LATTICE_EDGE, _LATTICE_EDGE)


_LATTICE = _lattice()


@njit
def _random(ix: int, iy: int, seed: int) -> float:
    """A number in [0, 1) for a lattice cell."""
    h = np.uint64(ix) * np.uint64(0x9E3779B97F4A7C15)
    h ^= np.uint64(iy) * np.uint64(0xC2B2AE3D27D4EB4F)
    h ^= np.uint64(seed) * np.uint64(0x165667B19E3779F9)
    h ^= h >> np.uint64(32)
    h *= np.uint64(0xD6E8FEB86659FD93)
    h ^= h >> np.uint64(32)
    return float(np.int64(h >> np.uint64(40))) * (1.0 / 16777216.0)


@njit
def _noise(x: float, y: float, seed: int) -> float:
    """Value noise in [-1, 1] with features of size 1, repeating every _LATTICE_EDGE."""
    fx, fy = math.floor(x), math.floor(y)
    last = _LATTICE_EDGE - 1
    ix, iy = int(fx) + seed * 37, int(fy) + (seed >> 7)
    x0, x1, y0, y1 = ix & last, (ix + 1) & last, iy & last, (iy + 1) & last
    u, v = x - fx, y - fy
    u = u * u * (3.0 - 2.0 * u)
    v = v * v * (3.0 - 2.0 * v)
    low = _LATTICE[x0, y0] * (1.0 - u) + _LATTICE[x1, y0] * u
    high = _LATTICE[x0, y1] * (1.0 - u) + _LATTICE[x1, y1] * u
    return float(low * (1.0 - v) + high * v)


@njit
def _inside(a: float, low: float, high: float) -> float:
    """1 inside [low, high], 0 outside, linear ramps of width EDGE centred on the ends."""
    rise = min(max((a - low) / EDGE + 0.5, 0.0), 1.0)
    fall = min(max((high - a) / EDGE + 0.5, 0.0), 1.0)
    return rise * fall


@njit
def _mix(a: tuple[float, float, float], b: tuple[float, float, float], w: float) -> tuple[float, float, float]:
    return a[0] + (b[0] - a[0]) * w, a[1] + (b[1] - a[1]) * w, a[2] + (b[2] - a[2]) * w


@njit
def _scale(a: tuple[float, float, float], s: float) -> tuple[float, float, float]:
    return a[0] * s, a[1] * s, a[2] * s


@njit
def _pick(palette: Float64, index: int) -> tuple[float, float, float]:
    row = index % palette.shape[0]
    return palette[row, 0], palette[row, 1], palette[row, 2]


@njit
def ground(x: float, y: float, kind: int) -> tuple[float, float, float]:
    """Linear albedo of the ground at (x, y) in a block of this kind (or COUNTRYSIDE)."""
    broad = _noise(x * 0.11, y * 0.11, 3)
    fine = _noise(x * 0.7, y * 0.7, 5)
    grass = _scale((0.170, 0.215, 0.100), 1.0 + 0.16 * broad + 0.13 * fine)
    bx, by = math.floor(x / BLOCK_EDGE + 0.5), math.floor(y / BLOCK_EDGE + 0.5)
    if kind == COUNTRYSIDE:
        fields = _pick(_FIELDS, int(_random(int(bx), int(by), 11) * 4.0))
        rows = math.sin((x if _random(int(bx), int(by), 12) < 0.5 else y) * 1.5)
        return _scale(fields, 1.0 + 0.15 * broad + 0.05 * rows)
    u = x - (bx - 0.5) * BLOCK_EDGE
    v = y - (by - 0.5) * BLOCK_EDGE
    eu, ev = min(u, BLOCK_EDGE - u), min(v, BLOCK_EDGE - v)
    border, other = min(eu, ev), max(eu, ev)
    if border < ROAD + 0.3:
        return _road(border, other, v if eu < ev else u, broad, fine)
    if border < CURB:
        along = v if eu < ev else u
        slabs = _inside(along - 3.0 * math.floor(along / 3.0), 0.12, 2.88)
        return _scale((0.40, 0.385, 0.36), 0.88 + 0.08 * slabs + 0.06 * fine + 0.05 * broad)
    if kind == PARK:
        path = max(_inside(abs(u - v), -1.0, 2.2), _inside(abs(u + v - BLOCK_EDGE), -1.0, 2.2))
        round_path = math.hypot(u - 30.0, v - 30.0)
        path = max(path, _inside(round_path, -1.0, 4.5))
        colour = _mix(grass, _scale((0.50, 0.43, 0.32), 1.0 + 0.08 * fine), path)
        pond = math.hypot((u - 40.5) / 5.0, (v - 45.0) / 6.5)
        colour = _mix(colour, (0.36, 0.34, 0.30), _inside(pond * 5.0, -1.0, 5.6))
        return _mix(colour, _scale((0.045, 0.10, 0.115), 1.0 + 0.12 * broad), _inside(pond * 5.0, -1.0, 4.9))
    if kind == HOUSES:
        lot = (u - CURB) - 46.0 / 3.0 * math.floor((u - CURB) / (46.0 / 3.0))
        drive = _inside(lot, 0.8, 3.6) * _inside(ev, CURB - 1.0, CURB + 11.0)
        return _mix(grass, _scale((0.33, 0.31, 0.29), 1.0 + 0.08 * fine), drive)
    if kind == COURTYARD:
        lawn = _inside(u, 22.0, 38.0) * _inside(v, 22.0, 38.0)
        return _mix(_scale((0.37, 0.33, 0.28), 1.0 + 0.1 * broad + 0.06 * fine), grass, lawn)
    paving = _scale((0.33, 0.32, 0.31), 1.0 + 0.10 * broad + 0.05 * fine)
    if kind == MIXED:
        bays = _inside(u - CURB - 3.1 * math.floor((u - CURB) / 3.1), 0.75, 1.15)
        return _mix(_scale(paving, 0.62), (0.60, 0.60, 0.58), 0.5 * bays)
    tiles = _inside(u - 4.0 * math.floor(u / 4.0), 0.3, 4.0) * _inside(v - 4.0 * math.floor(v / 4.0), 0.3, 4.0)
    return _scale(paving, 0.95 + 0.25 * tiles)


@njit
def _road(border: float, other: float, along: float, broad: float, fine: float) -> tuple[float, float, float]:
    """Asphalt with a dashed centre line, zebra crossings before the junctions and a pale curb stone."""
    asphalt = _scale((0.150, 0.150, 0.156), 1.0 + 0.16 * broad + 0.07 * fine)
    paint = 0.0
    if other > ROAD + 4.4:
        dash = along - 6.0 * math.floor(along / 6.0)
        paint = _inside(border, -1.0, 0.22) * _inside(dash, 1.4, 4.6)
    elif other > ROAD + 0.6:
        stripe = border - 1.2 * math.floor(border / 1.2)
        paint = _inside(stripe, 0.3, 0.9) * _inside(other, ROAD + 1.1, ROAD + 3.7) * _inside(border, -1.0, ROAD - 0.3)
    asphalt = _mix(asphalt, (0.62, 0.62, 0.60), 0.5 * paint)
    return _mix(asphalt, (0.45, 0.44, 0.42), _inside(border, ROAD - 0.15, ROAD + 1.0) * _inside(other, ROAD, 1e9))


@njit
def wall(x: float, y: float, z: float, nx: float, box: Float64, style: int) -> tuple[float, float, float]:
    """Linear albedo of a facade: storeys of windows in one of three styles, a shop floor at the street."""
    colour = _pick(_WALLS, style)
    if abs(nx) > 0.5:
        s, length = y - box[1], box[4] - box[1]
    else:
        s, length = x - box[0], box[3] - box[0]
    height = box[5] - box[2]
    colour = _scale(colour, 1.0 + 0.09 * _noise((x + y) * 0.35, z * 0.35, style))
    floors = max(int(height / 3.5 + 0.3), 1)
    storey = height / floors
    floor = int((z - box[2]) / storey)
    h = (z - box[2]) - storey * floor
    fashion = (style >> 8) % 3
    if height < 3.2:
        return colour
    if box[2] == 0.0 and floor == 0 and floors > 3:
        bay_width = 4.4
        low, high, left = 0.4, storey - 0.7, 0.55
    elif fashion == 0:  # single windows
        bay_width = 3.4
        low, high, left = 0.95, storey - 0.55, 0.80
    elif fashion == 1:  # bands of glass
        bay_width = 5.0
        low, high, left = 1.1, storey - 0.45, 0.25
    else:  # tall windows in a frame
        bay_width = 3.6
        low, high, left = 0.5, storey - 0.4, 0.50
    bays = max(int(length / bay_width + 0.2), 1)
    bay_width = length / bays
    bay = int(s / bay_width)
    glass = _inside(s - bay * bay_width, left, bay_width - left) * _inside(h, low, high)
    mood = _random(bay + 131 * floor, int(nx * 3.0), style)
    pane = _scale((0.105, 0.130, 0.160), 0.75 + 0.6 * mood)
    if mood > 0.86:
        pane = (0.38, 0.34, 0.27)
    if (style >> 12) % 2 == 0:  # a pale string course under every storey
        colour = _mix(colour, _scale((0.66, 0.64, 0.60), 1.0), 0.6 * _inside(h, -1.0, 0.35))
    return _mix(colour, pane, glass)


@njit
def flat_roof(x: float, y: float, box: Float64, style: int) -> tuple[float, float, float]:
    """Linear albedo of a flat roof: stained felt or gravel inside a pale parapet, sometimes skylights."""
    stain = _noise(x * 0.16, y * 0.16, style)
    colour = _scale(_pick(_FLAT_ROOFS, style >> 4), 1.0 + 0.17 * stain + 0.05 * _noise(x * 0.8, y * 0.8, style + 1))
    edge = min(min(x - box[0], box[3] - x), min(y - box[1], box[4] - y))
    if (style >> 14) % 3 == 0 and box[3] - box[0] > 9.0 and box[4] - box[1] > 9.0:
        sx, sy = x - box[0], y - box[1]
        light = _inside(sx - 4.5 * math.floor(sx / 4.5), 1.5, 3.0) * _inside(sy - 6.0 * math.floor(sy / 6.0), 1.8, 4.2)
        colour = _mix(colour, (0.22, 0.29, 0.36), light * _inside(edge, 1.6, 1e9))
    return _mix(_scale(_pick(_WALLS, style), 0.9), colour, _inside(edge, 0.65, 1e9))


@njit
def solid(
    x: float, y: float, z: float, nx: float, nz: float, box: Float64, material: int, style: int
) -> tuple[float, float, float]:
    """Linear albedo of everything that is neither ground nor a building's walls or flat roof."""
    if material == FOLIAGE:
        leaves = _noise((x + 0.6 * z) * 0.9, (y - 0.5 * z) * 0.9, style)
        share = (z - box[2]) / (box[5] - box[2])
        return _scale(_pick(_LEAVES, style), (0.62 + 0.45 * share) * (1.0 + 0.20 * leaves))
    if material == TILES:
        if nz < 0.1:
            return _pick(_WALLS, style)
        across = y if abs(nx) < 0.1 else x
        rows = 0.5 + 0.5 * math.cos(across * 5.2)
        return _scale(_pick(_TILES, style >> 6), 0.93 + 0.09 * rows + 0.13 * _noise(x * 0.4, y * 0.4, style))
    if material == CAR:
        return _pick(_CARS, style)
    if material == CABIN:
        return _scale(_pick(_CARS, style), 0.95) if nz > 0.5 else (0.10, 0.11, 0.12)
    if material == HEDGE:
        return _scale((0.085, 0.145, 0.055), 1.0 + 0.25 * _noise(x * 0.8 + z, y * 0.8, style))
    if material == METAL:
        return _scale((0.40, 0.40, 0.40), 0.75 + 0.5 * ((style % 64) / 64.0))
    return 0.12, 0.09, 0.065  # TRUNK


@njit
def sky(dx: float, dy: float, dz: float) -> tuple[float, float, float]:
    """Display colour of the sky in a unit direction: pale at the horizon, blue above, a soft glow at the sun."""
    up = math.sqrt(max(dz, 0.0))
    glow = max(dx * SUN_X + dy * SUN_Y + dz * SUN_Z, 0.0)
    glow = 0.18 * glow * glow * glow * glow
    return (
        min(0.84 - 0.42 * up + glow, 1.0),
        min(0.89 - 0.26 * up + 0.9 * glow, 1.0),
        min(0.94 - 0.08 * up + 0.6 * glow, 1.0),
    )


@njit
def display(
    albedo: tuple[float, float, float], nx: float, ny: float, nz: float, z: float, sunlit: float
) -> tuple[float, float, float]:
    """Display colour of a surface, the same from every side: bluish ambient light, and the sun where `sunlit` is 1."""
    # Streets see less of the sky than roofs do.
    ambient = (0.60 + 0.40 * nz) * (0.80 + 0.20 * min(z * 0.05, 1.0))
    sun = sunlit * max(nx * SUN_X + ny * SUN_Y + nz * SUN_Z, 0.0)
    return (
        math.sqrt(min(albedo[0] * (0.50 * ambient + 0.84 * sun), 1.0)),
        math.sqrt(min(albedo[1] * (0.53 * ambient + 0.80 * sun), 1.0)),
        math.sqrt(min(albedo[2] * (0.60 * ambient + 0.72 * sun), 1.0)),
    )
