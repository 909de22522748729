"""Colour outside the field: per-photo transforms and the background."""

import numpy as np
import pytest
import torch

from infnerf_tiles.field.appearance import Appearance, mean_affine
from infnerf_tiles.field.background import Background
from infnerf_tiles.field.decoder import direction_basis


def test_a_fresh_photo_shows_the_scenes_colours(rng: np.random.Generator) -> None:
    appearance = Appearance(5)
    rgb = torch.from_numpy(rng.random((40, 3))).float()
    photo = torch.from_numpy(rng.integers(0, 5, 40))
    torch.testing.assert_close(appearance(photo, rgb).detach(), rgb)
    assert appearance.distance_from_identity().item() == 0.0


def test_each_photo_has_its_own_transform(rng: np.random.Generator) -> None:
    appearance = Appearance(4)
    affine = rng.normal(size=(4, 3, 4)).astype(np.float32)
    with torch.no_grad():
        appearance.affine.copy_(torch.from_numpy(affine))
    rgb, photo = rng.random((30, 3)).astype(np.float32), rng.integers(0, 4, 30)
    expected = np.einsum("qij,qj->qi", affine[photo, :, :3], rgb) + affine[photo, :, 3]
    shown = appearance(torch.from_numpy(photo), torch.from_numpy(rgb))
    np.testing.assert_allclose(shown.detach().numpy(), expected, atol=1e-5)
    distance = np.mean((affine - np.eye(3, 4)) ** 2)
    assert appearance.distance_from_identity().item() == pytest.approx(distance, rel=1e-5)
    np.testing.assert_allclose(mean_affine(affine), affine.mean(axis=0), atol=1e-6)
    assert mean_affine(affine).dtype == np.float32


def test_only_photos_in_the_batch_get_a_gradient(rng: np.random.Generator) -> None:
    appearance = Appearance(3)
    torch.autograd.backward(appearance(torch.tensor([1, 1]), torch.from_numpy(rng.random((2, 3))).float()).sum())
    assert appearance.affine.grad is not None
    assert appearance.affine.grad[1].any()
    assert not appearance.affine.grad[[0, 2]].any()


@pytest.mark.parametrize(
    ("kind", "value"), [("white", 1.0), ("black", 0.0), ("constant", 0.5), ("sh", 0.5), ("random", 0.0)]
)
def test_backgrounds_start_plain(kind: str, value: float) -> None:
    basis = direction_basis(torch.eye(3))
    assert Background(kind)(basis).tolist() == [[value] * 3] * 3  # type: ignore[arg-type]


def test_learned_backgrounds(rng: np.random.Generator) -> None:
    directions = rng.normal(size=(20, 3))
    basis = direction_basis(torch.from_numpy(directions / np.linalg.norm(directions, axis=1, keepdims=True)))
    for kind, num in (("constant", 1), ("sh", 9)):
        background = Background(kind)  # type: ignore[arg-type]
        with torch.no_grad():
            background.coefficients.copy_(torch.from_numpy(rng.normal(size=(num, 3))))
        colour = background(basis)
        assert ((colour > 0) & (colour < 1)).all()
        same = torch.allclose(colour, colour[:1].expand_as(colour))
        assert same == (kind == "constant")
        torch.autograd.backward(colour.sum())
        assert background.coefficients.grad is not None


def test_random_background_follows_its_generator() -> None:
    basis = direction_basis(torch.eye(3))
    background = Background("random")
    draws = [background(basis, torch.Generator().manual_seed(seed)) for seed in (1, 1, 2)]
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])
