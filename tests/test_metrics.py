"""Metrics against closed forms and a slow twin."""

import math

import numpy as np
import pytest

from infnerf_tiles.arrays import Float64
from infnerf_tiles.metrics import apply_affine, fit_affine, psnr, ssim


def test_psnr_of_a_constant_error_is_its_square_in_db() -> None:
    a = np.full((4, 5, 3), 0.5)
    assert psnr(a, a + 0.1) == pytest.approx(20.0)
    assert psnr((a + 0.01).astype(np.float32), a.astype(np.float32)) == pytest.approx(40.0, abs=1e-4)
    assert psnr(a, a) == math.inf


def test_psnr_counts_only_masked_pixels() -> None:
    a = np.zeros((2, 2, 3))
    b = a.copy()
    b[0, 0] = 1.0
    mask = np.ones((2, 2), dtype=np.bool_)
    assert psnr(a, b, mask) == pytest.approx(10 * math.log10(4))
    mask[0, 0] = False
    assert psnr(a, b, mask) == math.inf


def test_psnr_rejects_what_it_cannot_compare() -> None:
    a = np.zeros((2, 2, 3))
    with pytest.raises(ValueError, match="equal shapes"):
        psnr(a, np.zeros((2, 3, 3)))
    with pytest.raises(ValueError, match="no pixel is left"):
        psnr(a, a, np.zeros((2, 2), dtype=np.bool_))
    with pytest.raises(ValueError, match="mask: expected bool"):
        psnr(a, a, np.ones((2, 3), dtype=np.bool_))
    with pytest.raises(ValueError, match="divide by 255"):
        psnr(np.zeros((2, 2, 3), dtype=np.uint8), a)


def test_ssim_of_constant_images_is_the_luminance_term() -> None:
    a, b = np.full((12, 12, 3), 0.2), np.full((12, 12, 3), 0.6)
    expected = (2 * 0.2 * 0.6 + 1e-4) / (0.2**2 + 0.6**2 + 1e-4)
    assert ssim(a, b) == pytest.approx(expected)


def test_ssim_matches_a_window_by_window_twin() -> None:
    rng = np.random.default_rng(0)
    a = rng.random((14, 13, 3))
    b = np.clip(a + rng.normal(0, 0.2, a.shape), 0, 1)
    assert ssim(a, b) == pytest.approx(_slow_ssim(a, b), abs=1e-12)
    assert ssim(a[:, :, 0], b[:, :, 0]) == pytest.approx(_slow_ssim(a[:, :, :1], b[:, :, :1]), abs=1e-12)
    assert ssim(a, a) == pytest.approx(1.0)
    assert ssim(a, 1.0 - a) < 0.0


def test_ssim_needs_a_full_window() -> None:
    with pytest.raises(ValueError, match=">= 11"):
        ssim(np.zeros((10, 20, 3)), np.zeros((10, 20, 3)))


def _slow_ssim(a: Float64, b: Float64) -> float:
    offsets = np.arange(11) - 5
    weight = np.exp(-(offsets[:, None] ** 2 + offsets[None, :] ** 2) / (2 * 1.5**2))
    weight /= weight.sum()
    values = []
    for c in range(a.shape[2]):
        for i in range(a.shape[0] - 10):
            for j in range(a.shape[1] - 10):
                x, y = a[i : i + 11, j : j + 11, c], b[i : i + 11, j : j + 11, c]
                mx, my = (weight * x).sum(), (weight * y).sum()
                vx, vy = (weight * (x - mx) ** 2).sum(), (weight * (y - my) ** 2).sum()
                cov = (weight * (x - mx) * (y - my)).sum()
                values.append((2 * mx * my + 1e-4) * (2 * cov + 9e-4) / ((mx**2 + my**2 + 1e-4) * (vx + vy + 9e-4)))
    return float(np.mean(values))


def test_fit_affine_recovers_a_transform_exactly() -> None:
    rng = np.random.default_rng(1)
    source = rng.random((50, 3))
    affine = np.concatenate([np.eye(3) + rng.normal(0, 0.1, (3, 3)), rng.normal(0, 0.1, (3, 1))], axis=1)
    target = apply_affine(affine, source)
    np.testing.assert_allclose(fit_affine(source, target, 0.0), affine, atol=1e-10)


def test_fit_affine_ridge_is_the_closed_form_and_does_not_depend_on_the_number_of_pixels() -> None:
    source = np.zeros((1, 3))
    target = np.array([[0.1, 0.2, -0.3]])
    expected = np.eye(3, 4)
    expected[:, 3] = target[0] / (1 + 0.25)
    np.testing.assert_allclose(fit_affine(source, target, 0.25), expected, atol=1e-12)
    many = fit_affine(np.repeat(source, 100, axis=0), np.repeat(target, 100, axis=0), 0.25)
    np.testing.assert_allclose(many, expected, atol=1e-12)
    np.testing.assert_allclose(fit_affine(source, target, 1e9), np.eye(3, 4), atol=1e-8)


def test_fit_affine_of_degenerate_colours_stays_near_the_identity() -> None:
    grey = np.repeat(np.linspace(0.1, 0.9, 20)[:, None], 3, axis=1)
    np.testing.assert_allclose(fit_affine(grey, grey, 0.0), np.eye(3, 4), atol=1e-12)
    brighter = fit_affine(grey, 1.1 * grey, 0.0)
    np.testing.assert_allclose(apply_affine(brighter, grey), 1.1 * grey, atol=1e-10)
    # The gain is shared evenly by the three channels, which the data cannot tell apart.
    np.testing.assert_allclose(brighter[:, :3] - np.eye(3), np.full((3, 3), 0.1 / 3), atol=1e-10)


def test_fit_affine_rejects_bad_input() -> None:
    good = np.zeros((2, 3))
    with pytest.raises(ValueError, match="source: expected shape"):
        fit_affine(np.zeros((2, 4)), good, 0.0)
    with pytest.raises(ValueError, match="target: expected shape"):
        fit_affine(good, np.zeros((3, 3)), 0.0)
    with pytest.raises(ValueError, match="ridge"):
        fit_affine(good, good, -1.0)
    with pytest.raises(ValueError, match="at least one"):
        fit_affine(np.zeros((0, 3)), np.zeros((0, 3)), 1.0)
    with pytest.raises(ValueError, match="finite"):
        fit_affine(good, np.full((2, 3), np.nan), 1.0)


def test_apply_affine_keeps_the_image_shape_and_does_not_clip() -> None:
    affine = np.concatenate([2.0 * np.eye(3), [[0.0], [0.5], [-1.0]]], axis=1)
    image = np.full((4, 5, 3), 0.75, dtype=np.float32)
    np.testing.assert_allclose(apply_affine(affine, image), np.broadcast_to([1.5, 2.0, 0.5], (4, 5, 3)))
    with pytest.raises(ValueError, match="rgb"):
        apply_affine(affine, np.zeros((4, 4)))


def test_ssim_leaves_out_windows_that_hold_masked_pixels(rng: np.random.Generator) -> None:
    a = rng.random((40, 40, 3))
    b, mask = a.copy(), np.ones((40, 40), np.bool_)
    b[5:9, 30:], mask[5:9, 30:] = 0.0, False
    assert ssim(a, b) < 0.99
    assert ssim(a, b, mask) == pytest.approx(1.0, abs=1e-12)
    assert ssim(a, 1 - a, mask) == pytest.approx(ssim(a[20:, :], 1 - a[20:, :]), abs=0.05)
    with pytest.raises(ValueError, match="window"):
        ssim(a, b, np.zeros((40, 40), np.bool_))
