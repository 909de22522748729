"""A smooth curve through camera poses, followed at constant speed.

Positions and orientations are cubic Hermite curves over one set of knots, with the derivatives of the parabolas through
neighbouring keys, so that both are continuously differentiable and each key shapes only the curve next to it.
Orientations are curves through unit quaternions of one hemisphere, normalised: through the keys exactly, smooth
everywhere, and without the kinks that piecewise spherical interpolation has at its keys.
"""

import numpy as np

from infnerf_tiles.arrays import Float64, check_shape
from infnerf_tiles.geometry.rotation import quaternions_from_rotations, rotations_from_quaternions

# A camera that turns a quarter of a circle takes at least as long as one that flies the whole path, and a path takes
# longer over turns that are more than four times as fast as its average: else turning on the spot would be a cut.
_QUARTER_TURN = np.pi / 2
_TURN_EXCESS = 4.0


def follow_keys(keys: Float64, frames: int, *, loop: bool = False) -> Float64:
    """Poses float64[frames, 3, 4] along a smooth curve through the key poses float64[k, 3, 4] (camera-to-world).

    Constant speed by arc length, slower only where the camera would turn much faster than on average. The first and
    the last frame are the first and the last key; with `loop` the curve returns to the first key and the frames are
    evenly spaced over the closed curve, so that a repeated video does not stutter.
    """
    check_shape("keys", keys, (None, 3, 4))
    positions, quaternions, knots = _extended_keys(keys, loop)
    if len(knots) == 1:
        return np.repeat(keys[:1], frames, axis=0)
    inner = knots[1:-1]
    # 64 steps a segment place a frame within 1e-3 of its step; more where there are more frames than that.
    steps = max(64, -(-4 * frames // (len(inner) - 1)))
    fine = np.interp(np.arange((len(inner) - 1) * steps + 1) / steps, np.arange(len(inner)), inner)
    costs = _step_costs(_hermite(positions, knots, fine), _hermite(quaternions, knots, fine))
    cost = np.concatenate([[0.0], np.cumsum(costs)])
    wanted = np.linspace(0.0, cost[-1], frames, endpoint=not loop)
    at = np.interp(wanted, cost, fine)
    orientation = rotations_from_quaternions(_hermite(quaternions, knots, at))
    return np.concatenate([orientation, _hermite(positions, knots, at)[:, :, None]], axis=2)


def _extended_keys(keys: Float64, loop: bool) -> tuple[Float64, Float64, Float64]:
    """Positions float64[k+2, 3], quaternions float64[k+2, 4] and knots float64[k+2] (the second is 0) of the distinct
    keys with one more at each end, which shapes the curve's ends; a single key comes back alone.
    """
    position, quaternion = keys[:, :, 3], quaternions_from_rotations(keys[:, :, :3])
    if loop:
        position, quaternion = (np.concatenate([a, a[:1]]) for a in (position, quaternion))
    # Two equal keys in a row would leave no room between their knots.
    same = np.abs(np.einsum("ni,ni->n", quaternion[1:], quaternion[:-1])) > 1 - 1e-14
    moved = np.concatenate([[True], ~(same & (position[1:] == position[:-1]).all(axis=1))])
    position, quaternion = position[moved], _same_hemisphere(quaternion[moved])
    lengths, angles = _step_lengths(position), _step_angles(quaternion)
    mean = lengths.mean() if lengths.any() else 1.0
    # Square roots of the distances (centripetal knots): no loops and no overshoot between unevenly spaced keys.
    width = np.sqrt(lengths / mean + angles / np.pi)
    if len(width) == 0:
        return position, quaternion, np.zeros(1)
    if loop:
        # The key before the first is the last but one, the key after the last is the second, both a period away.
        sign = np.sign(quaternion[-1] @ quaternion[0])
        quaternion = np.concatenate([sign * quaternion[-2:-1], quaternion, sign * quaternion[1:2]])
        position = np.concatenate([position[-2:-1], position, position[1:2]])
        width = np.concatenate([width[-1:], width, width[:1]])
    else:
        # Mirrored at the ends, so that the curve leaves them straight.
        position, quaternion = (
            np.concatenate([2 * a[:1] - a[1:2], a, 2 * a[-1:] - a[-2:-1]]) for a in (position, quaternion)
        )
        width = np.concatenate([width[:1], width, width[-1:]])
    return position, quaternion, np.concatenate([[0.0], np.cumsum(width)]) - width[0]


def _hermite(values: Float64, knots: Float64, at: Float64) -> Float64:
    """The curve through float64[k+2, c] values at float64[k+2] knots, evaluated at float64[n] places inside."""
    width = np.diff(knots)[:, None]
    slope = np.diff(values, axis=0) / width
    # Row i: the derivative at knot i + 1.
    tangent = (width[:-1] * slope[1:] + width[1:] * slope[:-1]) / (width[:-1] + width[1:])
    i = np.clip(np.searchsorted(knots, at, side="right") - 1, 1, len(knots) - 3)
    h = width[i]
    s = (at[:, None] - knots[i][:, None]) / h
    from_start = (1 + 2 * s) * values[i] + s * h * tangent[i - 1]
    to_end = (3 - 2 * s) * values[i + 1] - (1 - s) * h * tangent[i]
    curve: Float64 = (1 - s) ** 2 * from_start + s**2 * to_end
    return curve


def _step_costs(positions: Float64, quaternions: Float64) -> Float64:
    """Time that each step of a finely sampled curve takes, float64[n-1], in parts of the whole path."""
    lengths = _step_lengths(positions)
    angles = _step_angles(quaternions / np.linalg.norm(quaternions, axis=1, keepdims=True))
    total = lengths.sum()
    # A curve through one place moves by rounding errors only.
    stands = total <= 1e-9 * np.abs(positions).max()
    moving = np.zeros_like(lengths) if stands else lengths / total
    turning = angles / max(_TURN_EXCESS * angles.sum(), _QUARTER_TURN)
    costs: Float64 = np.maximum(moving, turning)
    return costs


def _step_lengths(positions: Float64) -> Float64:
    lengths: Float64 = np.linalg.norm(np.diff(positions, axis=0), axis=1)
    return lengths


def _step_angles(quaternions: Float64) -> Float64:
    """Angle in radians from each unit quaternion to the next, float64[n-1]; accurate for small angles too."""
    chord = np.minimum(
        np.linalg.norm(quaternions[1:] - quaternions[:-1], axis=1),
        np.linalg.norm(quaternions[1:] + quaternions[:-1], axis=1),
    )
    angles: Float64 = 4 * np.arcsin(np.clip(chord / 2, 0.0, 1.0))
    return angles


def _same_hemisphere(quaternions: Float64) -> Float64:
    """Each quaternion or its negative (the same rotation), whichever is nearer to the one before."""
    flips = np.einsum("ni,ni->n", quaternions[1:], quaternions[:-1]) < 0
    signs = np.concatenate([[1.0], np.where(np.cumsum(flips) % 2 == 1, -1.0, 1.0)])
    aligned: Float64 = quaternions * signs[:, None]
    return aligned
