"""How far a ray goes inside a cube: never a step too far, however near a face it passes, and seldom one too few."""

import math
from collections.abc import Iterator

import numpy as np
import pytest

from infnerf_tiles.arrays import Float64
from infnerf_tiles.kernels.cpu.lattice import FIXED_BITS, Ray, fixed, place_at, ray_of, steps_inside, until, ways_of


def middle(ray: Ray, i: int) -> float:
    return ray.mid_near * math.exp((i + ray.offset) * ray.log_q)


def cube_of(ray: Ray, i: int, shift: int) -> tuple[int, ...]:
    """Cube of 2^shift fixed-point units that step i lies in."""
    return tuple(fixed(u) >> shift for u in place_at(ray, middle(ray, i)))


def ahead(ray: Ray, i: int, shift: int) -> int:
    t = middle(ray, i)
    fx, fy, fz = (fixed(u) for u in place_at(ray, t))
    return steps_inside(ways_of(ray), t, fx, fy, fz, shift)


def some_ray(rng: np.random.Generator, origin: Float64, direction: Float64) -> Ray:
    return ray_of(
        tuple(origin), tuple(direction), 10.0 ** rng.uniform(-4, -1.5), rng.uniform(), 0.05, 1.5, 0.01, rng.normal()
    )  # fmt: skip


def random_lattices(rng: np.random.Generator, count: int) -> Iterator[Ray]:
    """Rays from inside, beside and far away, some of them along one or two axes or nearly so."""
    while count:
        direction = rng.normal(size=3) * rng.choice([0.0, 1e-40, 1e-9, 1.0, 1.0, 1.0], 3)
        if not np.abs(direction).max() > 1e-3:
            continue
        direction /= np.linalg.norm(direction)
        back = rng.choice([0.0, 0.3, 30.0]) * rng.uniform()
        ray = some_ray(rng, rng.uniform(0.0, 1.0, 3) - back * direction, direction)
        if ray.last > ray.first:
            count -= 1
            yield ray


def test_steps_ahead_lie_in_the_same_cube_and_are_nearly_all_that_do(rng: np.random.Generator) -> None:
    found = missed = 0
    for ray in random_lattices(rng, 300):
        for i in rng.integers(ray.first, ray.last, 4).tolist():
            # cubes the ray takes a few steps through, up to the whole root cube
            near = math.log2(middle(ray, i) * ray.c * 2.0**FIXED_BITS)
            shift = int(np.clip(near + rng.integers(0, 8), 16, FIXED_BITS))
            inside = ahead(ray, i, shift)
            own = cube_of(ray, i, shift)
            assert all(cube_of(ray, j, shift) == own for j in range(i + 1, min(i + 1 + inside, ray.last)))
            behind = i + 1 + inside
            found += inside
            missed += behind < ray.last and cube_of(ray, behind, shift) == own
    assert found > 1000
    # where a cube is large for its distance, the rest of its steps takes a second go
    assert missed < 30


@pytest.mark.parametrize("sign", [-1.0, 1.0])
def test_steps_on_faces_are_not_passed_over(rng: np.random.Generator, sign: float) -> None:
    """The ray is moved so that one of its steps lies on a face, to the last bits."""
    on_face = 0
    for _ in range(3000):
        direction = sign * rng.uniform(0.1, 1.0, 3) * rng.choice([1e-6, 1e-3, 1.0], 3)
        shift = FIXED_BITS - int(rng.integers(3, 22))
        origin, axis = rng.uniform(0.2, 0.8, 3), int(rng.integers(0, 3))
        direction[axis] = sign * rng.uniform(0.3, 1.0)
        ray = some_ray(rng, origin, direction)
        k = int(rng.integers(ray.first, ray.last))
        face = round((origin[axis] + middle(ray, k) * direction[axis]) * 2.0 ** (FIXED_BITS - shift))
        origin[axis] = face * 2.0 ** (shift - FIXED_BITS) - middle(ray, k) * direction[axis]
        for _ in range(int(rng.integers(0, 3))):
            origin[axis] = np.nextafter(origin[axis], rng.choice([-9.0, 9.0]))
        ray = ray._replace(ox=origin[0], oy=origin[1], oz=origin[2])
        for i in range(k - 3, k):
            if ahead(ray, i, shift) > 0:
                own = cube_of(ray, i, shift)
                steps = range(i + 1, i + 1 + ahead(ray, i, shift))
                assert all(cube_of(ray, j, shift) == own for j in steps)
            on_face += cube_of(ray, i, shift) != cube_of(ray, k, shift)
    assert on_face > 100


def test_level_lasts_until_it_does_not(rng: np.random.Generator) -> None:
    for ray in random_lattices(rng, 100):
        i = int(rng.integers(ray.first, ray.last))
        wanted = ray.lambda_near - (i + ray.offset) * ray.log2_q
        level = max(0, math.ceil(wanted) - int(rng.integers(0, 3)))
        if level > 0 and wanted <= level - 1:
            continue
        stop = until(ray, i, level)
        assert i < stop <= ray.last
        last = ray.lambda_near - (stop - 1 + ray.offset) * ray.log2_q
        assert level == 0 or last > level - 1
        assert stop == ray.last or last - 2.001 * ray.log2_q <= level - 1
