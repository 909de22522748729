"""The city against an independent, slow twin of its geometry, and what it promises about seeds, size and light."""

import math
from itertools import pairwise

import numpy as np
import pytest

from infnerf_tiles.arrays import Float64
from infnerf_tiles.errors import SettingsError
from infnerf_tiles.geometry.camera import Camera
from infnerf_tiles.synthetic.capture import CityPhotographer
from infnerf_tiles.synthetic.layout import (
    BLOCK_EDGE,
    BOX,
    CURB,
    ELLIPSOID,
    GABLE_X,
    GABLE_Y,
    MAX_HEIGHT,
    PARK,
    WALL,
    block_kind,
    make_block,
)
from infnerf_tiles.synthetic.scene import City, block_bounds
from infnerf_tiles.synthetic.texture import SUN_X, SUN_Y, SUN_Z

Rays = tuple[Float64, Float64]


@pytest.fixture(scope="module")
def city() -> City:
    return City.generate((3, 3), 0)


def random_rays(num: int, seed: int) -> Rays:
    """Rays from above, between and beside the houses in all directions, some of them along an axis."""
    rng = np.random.default_rng(seed)
    origins = rng.uniform([-130, -130, 50], [130, 130, 150], (num, 3))
    origins[: num // 4, 2] = rng.uniform(0.1, 50.0, num // 4)
    directions = rng.normal(size=(num, 3))
    directions[num // 4 :, 2] = -np.abs(directions[num // 4 :, 2])
    directions[:50] = np.repeat(np.concatenate([np.eye(3), -np.eye(3)]), 9, axis=0)[:50]
    return origins, directions / np.linalg.norm(directions, axis=1, keepdims=True)


def half_spaces(box: Float64, shape: int) -> tuple[Float64, Float64]:
    """Normals [k, 3] and offsets [k] of the half-spaces n . x <= o whose intersection is a box or a gable roof."""
    normals = [np.eye(3), -np.eye(3)]
    offsets = [box[3:], -box[:3]]
    if shape in (GABLE_X, GABLE_Y):
        axis = 1 if shape == GABLE_X else 0
        half, rise = (box[axis + 3] - box[axis]) / 2, box[5] - box[2]
        for sign in (1.0, -1.0):
            normal = np.array([0.0, 0.0, half])
            normal[axis] = sign * rise
            ridge = np.array([(box[0] + box[3]) / 2, (box[1] + box[4]) / 2, box[5]])
            normals.append(normal[None])
            offsets.append(np.array([normal @ ridge]))
    return np.concatenate(normals), np.concatenate(offsets)


def slow_distance(city: City, origins: Float64, directions: Float64) -> tuple[Float64, Float64]:
    """(t, doubt) by trying every solid: distance to the first surface entered, and how near a miss any verdict was."""
    solids = city.solids()
    with np.errstate(divide="ignore", invalid="ignore"):
        best = np.where(directions[:, 2] < 0, -origins[:, 2] / directions[:, 2], np.inf)
        doubt = np.full(len(best), np.inf)
        for box, shape in zip(solids.boxes, solids.shape, strict=True):
            if shape == ELLIPSOID:
                radii = (box[3:] - box[:3]) / 2
                o, d = (origins - (box[3:] + box[:3]) / 2) / radii, directions / radii
                a, b, c = (d * d).sum(1), 2 * (o * d).sum(1), (o * o).sum(1) - 1
                root = b * b - 4 * a * c
                t = (-b - np.sqrt(np.maximum(root, 0))) / (2 * a)
                hit = (root >= 0) & (t >= 0)
                margin = np.abs(root)
            else:
                normals, offsets = half_spaces(box, int(shape))
                speed, room = directions @ normals.T, offsets - origins @ normals.T
                crossing = room / speed
                t = np.where(speed < 0, crossing, -np.inf).max(1)
                leave = np.where(speed > 0, crossing, np.inf).min(1)
                outside = ((speed == 0) & (room < 0)).any(1)
                hit = (t <= leave) & (t >= 0) & ~outside
                margin = np.abs(leave - t)
            doubt = np.minimum(doubt, margin)
            best = np.where(hit & (t < best), t, best)
    return best, doubt


def test_cast_finds_the_exact_first_surface(city: City) -> None:
    origins, directions = random_rays(6000, 1)
    expected, doubt = slow_distance(city, origins, directions)
    t, rgb = city.cast(origins, directions)
    sure = doubt > 1e-9  # a ray that touches an edge may go either way
    assert sure.mean() > 0.99
    np.testing.assert_array_equal(np.isinf(t[sure]), np.isinf(expected[sure]))
    finite = sure & np.isfinite(expected)
    np.testing.assert_allclose(t[finite], expected[finite], rtol=1e-10, atol=1e-8)
    assert np.isinf(t).any()
    assert rgb.dtype == np.float32
    assert 0.0 <= rgb.min() <= rgb.max() <= 1.0
    np.testing.assert_array_equal(city.distance(origins, directions), t)


def test_every_shape_is_hit_by_the_test_rays(city: City) -> None:
    """Otherwise the comparison with the twin says nothing about that shape."""
    solids = city.solids()
    origins, directions = random_rays(6000, 1)
    t = city.distance(origins, directions)
    points = origins[np.isfinite(t)] + t[np.isfinite(t), None] * directions[np.isfinite(t)]
    for shape in (BOX, GABLE_X, GABLE_Y, ELLIPSOID):
        boxes = solids.boxes[solids.shape == shape]
        near = (points[:, None] > boxes[:, :3] - 1e-6) & (points[:, None] < boxes[:, 3:] + 1e-6)
        assert near.all(2).any(1).sum() > 20


def test_straight_down_meets_the_ground_and_the_roofs(city: City) -> None:
    x0, _, _, y1 = city.bounds
    crossing = np.array([x0 + BLOCK_EDGE, y1 - BLOCK_EDGE, 100.0])  # the middle of a junction
    t, _ = city.cast(crossing[None], np.array([[0.0, 0.0, -1.0]]))
    assert t[0] == 100.0
    solids = city.solids()
    roofs = solids.boxes[(solids.material == WALL) & (solids.boxes[:, 5] > 12.0)]
    above = np.stack([roofs[:, 0] + 0.3, roofs[:, 1] + 0.3, np.full(len(roofs), 90.0)], axis=1)
    t = city.distance(above, np.tile([0.0, 0.0, -1.0], (len(roofs), 1)))
    assert (t <= 90.0 - roofs[:, 5] + 1e-9).all()
    assert (np.abs(t - (90.0 - roofs[:, 5])) < 1e-9).mean() > 0.5  # the others are under a pitched roof or a tree


def test_same_seed_same_city_whatever_the_order_of_the_rays(city: City) -> None:
    origins, directions = random_rays(3000, 2)
    t, rgb = city.cast(origins, directions)
    other = City.generate((3, 3), 0)
    t_back, rgb_back = other.cast(origins[::-1], directions[::-1])
    np.testing.assert_array_equal(t, t_back[::-1])
    np.testing.assert_array_equal(rgb, rgb_back[::-1])
    assert not np.array_equal(City.generate((3, 3), 1).distance(origins, directions), t)


def test_a_larger_city_contains_the_smaller_one(city: City) -> None:
    rng = np.random.default_rng(3)
    x0, y0, x1, y1 = city.bounds
    origins = rng.uniform([x0 + 1, y0 + 1, 60], [x1 - 1, y1 - 1, 60], (2000, 3))
    down = np.tile([0.0, 0.0, -1.0], (2000, 1))
    np.testing.assert_array_equal(City.generate((8, 7), 0).distance(origins, down), city.distance(origins, down))


def test_only_blocks_that_are_looked_at_are_built() -> None:
    city = City.generate((4000, 4000), 5)
    origins = np.tile([70_000.0, -50_000.0, 120.0], (500, 1))
    angles = np.linspace(0, 2 * math.pi, 500)
    directions = np.stack([np.cos(angles), np.sin(angles), np.full(500, -2.0)], axis=1) / math.sqrt(5)
    t, _ = city.cast(origins, directions)
    assert np.isfinite(t).all()
    assert 1 <= city.num_blocks_built <= 30
    with pytest.raises(SettingsError, match="nx \\* ny"):
        City.generate((5000, 5000), 0)
    with pytest.raises(SettingsError, match="nx, ny >= 1"):
        City.generate((0, 3), 0)


def test_sky_and_countryside_beyond_the_city(city: City) -> None:
    origins = np.array([[0.0, 0.0, 80.0], [0.0, 0.0, 80.0], [5000.0, 0.0, 80.0]])
    directions = np.array([[0.0, 0.0, 1.0], [math.cos(0.1), 0.0, math.sin(0.1)], [0.0, 0.0, -1.0]])
    t, rgb = city.cast(origins, directions)
    assert np.isinf(t[:2]).all()
    assert t[2] == 80.0
    assert rgb[0, 2] > rgb[0, 0]  # blue above
    assert rgb[1].sum() > rgb[0].sum()  # paler at the horizon
    a, b = (
        city.cast(origins[:1], np.array([[0.0, 0.6, 0.8]]))[1],
        city.cast(origins[2:], np.array([[0.0, 0.6, 0.8]]))[1],
    )
    np.testing.assert_array_equal(a, b)  # the sky depends on the direction alone


def test_colour_does_not_depend_on_the_side_it_is_seen_from(city: City) -> None:
    origins, directions = random_rays(4000, 4)
    t, rgb = city.cast(origins, directions)
    hit = np.isfinite(t) & (origins[:, 2] > MAX_HEIGHT)
    points = origins[hit] + t[hit, None] * directions[hit]
    other = origins[hit] + np.array([4.0, -7.0, 20.0])
    offset = points - other
    distance = np.linalg.norm(offset, axis=1)
    t_other, rgb_other = city.cast(other, offset / distance[:, None])
    same = np.abs(t_other - distance) < 1e-7
    assert same.sum() > 500
    difference = np.abs(rgb_other[same] - rgb[hit][same]).max(axis=1)
    assert np.quantile(difference, 0.99) < 1e-5  # all but points on the very edge of a shadow or a face


def test_asphalt_is_bright_exactly_where_the_sun_reaches_it(city: City) -> None:
    rng = np.random.default_rng(6)
    # Strips between the centre line and the parked cars, between the crossings, along two streets of three blocks.
    street, block = rng.integers(1, 3, 2000), rng.integers(0, 3, 2000)
    places = np.zeros((2000, 3))
    places[:, 0] = city.bounds[0] + BLOCK_EDGE * street + rng.uniform(1.0, 2.2, 2000)
    places[:, 1] = city.bounds[1] + BLOCK_EDGE * block + rng.uniform(15.0, 45.0, 2000)
    t, rgb = city.cast(places + np.array([0.0, 0.0, 60.0]), np.tile([0.0, 0.0, -1.0], (2000, 1)))
    open_sky = t == 60.0
    to_sun = np.tile([SUN_X, SUN_Y, SUN_Z], (2000, 1))
    expected, _ = slow_distance(city, places + np.array([0.0, 0.0, 1e-4]), to_sun)
    lit = np.isinf(expected)
    brightness = rgb.mean(axis=1)
    assert min((lit & open_sky).sum(), (~lit & open_sky).sum()) > 50
    assert brightness[lit & open_sky].min() > 1.2 * brightness[~lit & open_sky].max()


def test_supersampling_converges() -> None:
    city = City.generate((5, 5), 0)
    camera = Camera("PINHOLE", 40, 30, (34.0, 34.0, 20.0, 15.0))
    pose = np.array([[1.0, 0.0, 0.0, 3.0], [0.0, -1.0, 0.0, -4.0], [0.0, 0.0, -1.0, 136.0]])
    truth = CityPhotographer(city, 16).photo(camera, pose)
    errors = [
        float(np.sqrt(np.mean((CityPhotographer(city, k).photo(camera, pose) - truth) ** 2))) for k in (1, 2, 4, 8)
    ]
    assert truth.shape == (30, 40, 3)
    assert truth.std() > 0.05
    for coarse, fine in pairwise(errors):
        assert fine < 0.75 * coarse
    assert errors[-1] < 0.01


def test_a_photo_is_the_mean_of_its_rays(city: City) -> None:
    camera = Camera("PINHOLE", 6, 4, (5.0, 5.0, 3.0, 2.0))
    pose = np.array([[1.0, 0.0, 0.0, 3.0], [0.0, -1.0, 0.0, -4.0], [0.0, 0.0, -1.0, 136.0]])
    photo = CityPhotographer(city, 2).photo(camera, pose)
    y, x = 1, 4
    offsets = np.array([(i, j) for j in (0.25, 0.75) for i in (0.25, 0.75)])
    plane = (np.array([x, y]) + offsets - [3.0, 2.0]) / 5.0
    directions = np.concatenate([plane, np.ones((4, 1))], axis=1) @ pose[:, :3].T
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    _, rgb = city.cast(np.tile(pose[:, 3], (4, 1)), directions)
    np.testing.assert_allclose(photo[y, x], rgb.mean(axis=0), atol=1e-6)


def test_photographer_and_casts_reject_wrong_input(city: City) -> None:
    with pytest.raises(SettingsError, match="supersample"):
        CityPhotographer(city, 0)
    with pytest.raises(ValueError, match="directions"):
        city.cast(np.zeros((2, 3)), np.zeros((3, 3)))
    with pytest.raises(ValueError, match="group"):
        city.mean_colours(np.eye(3, 4), np.zeros((5, 3)), 2)


def test_blocks_keep_to_themselves_and_below_the_highest_roof() -> None:
    """The ray caster clips to MAX_HEIGHT and looks for a block's solids in that block alone."""
    kinds = set()
    for gx in range(-8, 8):
        for gy in range(-8, 8):
            block = make_block(7, gx, gy)
            kinds.add(block.kind)
            assert block.kind == block_kind(7, gx, gy)
            low = (np.array([gx, gy]) - 0.5) * BLOCK_EDGE
            assert (block.boxes[:, :2] >= low).all()
            assert (block.boxes[:, 3:5] <= low + BLOCK_EDGE).all()
            assert (block.boxes[:, 2] >= 0.0).all()
            assert (block.boxes[:, 5] <= MAX_HEIGHT).all()
            assert (block.boxes[:, 3:] > block.boxes[:, :3]).all()
            walls = block.boxes[block.material == WALL]
            assert (walls[:, :2] >= low + CURB - 1e-9).all()
            assert (block.kind == PARK) == (len(walls) == 0)
    assert len(kinds) == 5


def test_bounds_are_centred_on_the_origin_block() -> None:
    assert block_bounds((1, 1)) == (-30.0, -30.0, 30.0, 30.0)
    assert block_bounds((3, 2)) == (-90.0, -90.0, 90.0, 30.0)
