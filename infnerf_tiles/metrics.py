"""Image metrics and the per-photo affine colour fit, on numpy arrays with values in [0, 1]."""

import math

import numpy as np

from infnerf_tiles.arrays import AnyArray, Bool, Float64, check_shape

# Wang et al. 2004: 11x11 Gaussian window of sigma 1.5, constants for a dynamic range of 1.
_SSIM_RADIUS = 5
_SSIM_SIGMA = 1.5
_SSIM_C1 = 0.01**2
_SSIM_C2 = 0.03**2


def psnr(a: AnyArray, b: AnyArray, mask: Bool | None = None) -> float:
    """Peak signal-to-noise ratio in dB for a peak of 1.

    `a`, `b`: float [h, w, c] (or any equal shapes); `mask`: bool over the leading axes, True = counted.
    Returns inf for identical images. Raises ValueError on different shapes or when nothing is counted.
    """
    _check_same_shape(a, b)
    _check_float("a", a)
    _check_float("b", b)
    error = np.square(a.astype(np.float64) - b.astype(np.float64))
    if mask is not None:
        if mask.dtype != np.bool_ or mask.shape != a.shape[: mask.ndim]:
            raise ValueError(f"mask: expected bool over the leading axes of {a.shape}, got {mask.dtype} {mask.shape}")
        error = error[mask]
    if error.size == 0:
        raise ValueError("psnr: no pixel is left to compare; expected at least one, check the mask")
    mean = float(error.mean())
    return math.inf if mean == 0.0 else -10.0 * math.log10(mean)


def ssim(a: AnyArray, b: AnyArray, mask: Bool | None = None) -> float:
    """Structural similarity, mean over the fully covered windows and the channels.

    `a`, `b`: float [h, w] or [h, w, c], both sides at least 11 pixels; `mask`: bool [h, w], True = counted: windows
    that hold any other pixel are left out. Raises ValueError otherwise, or when no window is left.
    """
    _check_same_shape(a, b)
    _check_float("a", a)
    _check_float("b", b)
    window = 2 * _SSIM_RADIUS + 1
    if a.ndim not in (2, 3) or min(a.shape[:2]) < window:
        raise ValueError(f"ssim: expected [h, w] or [h, w, c] with h, w >= {window}, got {a.shape}")
    x = a.astype(np.float64)
    y = b.astype(np.float64)
    mean_x, mean_y = _gaussian(x), _gaussian(y)
    var_x = _gaussian(x * x) - mean_x * mean_x
    var_y = _gaussian(y * y) - mean_y * mean_y
    covariance = _gaussian(x * y) - mean_x * mean_y
    luminance = (2 * mean_x * mean_y + _SSIM_C1) / (mean_x * mean_x + mean_y * mean_y + _SSIM_C1)
    structure = (2 * covariance + _SSIM_C2) / (var_x + var_y + _SSIM_C2)
    similarity = luminance * structure
    if mask is not None:
        check_shape("mask", mask, a.shape[:2])
        similarity = similarity[_gaussian((~mask).astype(np.float64)) == 0.0]
        if not similarity.size:
            raise ValueError(f"ssim: expected a window of {window}x{window} counted pixels, got none; check the mask")
    return float(similarity.mean())


def fit_affine(source: AnyArray, target: AnyArray, ridge: float) -> Float64:
    """Affine colour transform that takes `source` to `target`, drawn towards the identity.

    Minimises mean_i |A [s_i; 1] - t_i|^2 + ridge |A - [I 0]|^2. The mean makes `ridge` (>= 0, in squared colour units)
    independent of the number of pixels. With ridge 0 and degenerate colours the solution nearest the identity is
    returned.

    `source`, `target`: float [n, 3], n >= 1, finite. Returns float64 [3, 4]. Raises ValueError otherwise.
    """
    check_shape("source", source, (None, 3))
    check_shape("target", target, (source.shape[0], 3))
    if not (math.isfinite(ridge) and ridge >= 0.0):
        raise ValueError(f"ridge: expected a finite number >= 0, got {ridge}")
    num = source.shape[0]
    if num == 0:
        raise ValueError("source: expected at least one colour, got none")
    s = source.astype(np.float64)
    difference = target.astype(np.float64) - s
    if not np.isfinite(difference).all():
        raise ValueError("fit_affine: expected finite colours, got NaN or infinity")
    homogeneous = np.concatenate([s, np.ones((num, 1))], axis=1)
    # Stacking the ridge as rows keeps the condition number of the least-squares problem, which normal equations square.
    rows = np.concatenate([homogeneous / math.sqrt(num), math.sqrt(ridge) * np.eye(4)])
    right = np.concatenate([difference / math.sqrt(num), np.zeros((4, 3))])
    delta, *_ = np.linalg.lstsq(rows, right, rcond=None)
    identity = np.eye(3, 4)
    return np.asarray(identity + delta.T, dtype=np.float64)


def apply_affine(affine: Float64, rgb: AnyArray) -> Float64:
    """`affine` [3, 4] applied to colours `rgb` float [..., 3]; the result is float64 [..., 3] and is not clipped."""
    check_shape("affine", affine, (3, 4))
    if rgb.ndim == 0 or rgb.shape[-1] != 3:
        raise ValueError(f"rgb: expected shape (..., 3), got {rgb.shape}")
    colours = rgb.astype(np.float64)
    return np.asarray(colours @ affine[:, :3].T + affine[:, 3], dtype=np.float64)


def _gaussian(image: Float64) -> Float64:
    """Gaussian-weighted window means over the first two axes, fully covered windows only."""
    offsets = np.arange(-_SSIM_RADIUS, _SSIM_RADIUS + 1)
    weights = np.exp(-0.5 * np.square(offsets / _SSIM_SIGMA))
    weights /= weights.sum()
    for axis in (0, 1):
        image = np.lib.stride_tricks.sliding_window_view(image, len(weights), axis=axis) @ weights
    return image


def _check_same_shape(a: AnyArray, b: AnyArray) -> None:
    if a.shape != b.shape:
        raise ValueError(f"images: expected equal shapes, got {a.shape} and {b.shape}")


def _check_float(name: str, image: AnyArray) -> None:
    if not np.issubdtype(image.dtype, np.floating):
        raise ValueError(f"{name}: expected float values in [0, 1], got {image.dtype}; divide by 255 first")
