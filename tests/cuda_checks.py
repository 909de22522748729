"""What the Triton kernels must do, against their torch twins: run by Triton's interpreter and on a GPU alike.

A subclass says where (`device`) and how large (`scale`).
"""

from dataclasses import fields, replace
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from arenas import (
    full_octree,
    random_arena,
    random_octree,
    random_points,
)
from torch import Tensor

from infnerf_tiles.field.decoder import Decoder, decoder_shape, direction_basis
from infnerf_tiles.field.shape import FieldShape
from infnerf_tiles.kernels import cuda, reference
from infnerf_tiles.kernels.arena import (
    VERTEX_BLOCK,
    Arena,
    Gradients,
    dense_rows,
)
from infnerf_tiles.kernels.decoder_weights import DecoderWeights

# (N + 1)^3 is 4,913: the first table is dense, the second hashed, the third hashed with heavy collisions
DENSE = FieldShape(cells=16, table_size=8192, features=4)
HASHED = FieldShape(cells=16, table_size=1024, features=8)
SHAPES = [
    DENSE,
    HASHED,
    FieldShape(cells=32, table_size=64, features=2),
    FieldShape(cells=16, table_size=64, features=16),
]
MARCHED = FieldShape(cells=16, table_size=64, features=2)


def moved(thing: Any, device: torch.device) -> Any:
    """A dataclass of tensors on a device."""
    changes = {
        f.name: getattr(thing, f.name).to(device)
        for f in fields(thing)
        if isinstance(getattr(thing, f.name), Tensor)
    }  # fmt: skip
    return replace(thing, **changes)


def halved(arena: Arena) -> Arena:
    """The arena in float16, and in `reference` terms the same values in float64."""
    return replace(arena, tables=arena.tables.half(), dense=arena.dense.half())


def exact(arena: Arena) -> Arena:
    """The same values as float64 leaves of autograd."""
    tables = arena.tables.double().nan_to_num_(0.0).requires_grad_()
    return replace(arena, tables=tables, dense=arena.dense.double().requires_grad_())


def buffers(arena: Arena, device: torch.device, *, slots: int | None = None) -> Gradients:
    slots = arena.tables.shape[0] if slots is None else slots
    return Gradients(slots, arena.table_size, arena.dense.shape[0], arena.features, device=device)


def packet(rng: np.random.Generator, rays: int, *, longest: int = 23) -> tuple[Tensor, ...]:
    """ray_start, sigma, colour, t, dt of rays with 0 to `longest` samples, some empty, some opaque."""
    counts = rng.integers(0, longest + 1, rays) * (rng.random(rays) > 0.2)
    start = torch.from_numpy(np.concatenate([[0], np.cumsum(counts)]).astype(np.int64))
    m = int(start[-1])
    dt = rng.uniform(0.05, 0.2, m)
    sigma = rng.exponential(0.15, m) / dt
    kind = rng.random(m)
    sigma[kind < 0.2] = 0.0
    sigma[kind > 0.98] = 1e4
    return start, *(torch.from_numpy(c).float() for c in (sigma, rng.random((m, 3)), 5.0 + np.cumsum(dt), dt))


def clear_of_stop(start: Tensor, sigma: Tensor, dt: Tensor, stop: float) -> Tensor:
    """bool [Q]: rays whose T never comes within rounding of `stop`, where twins may end at different samples."""
    clear = torch.ones(len(start) - 1, dtype=torch.bool)
    for q in range(len(clear)):
        own = slice(int(start[q]), int(start[q + 1]))
        trans = torch.exp(-torch.cumsum(sigma[own].double() * dt[own].double(), 0))
        clear[q] = not bool(((trans - stop).abs() < 1e-5).any())
    return clear


class EncodeChecks:
    device: ClassVar[torch.device]
    scale: ClassVar[int]

    @pytest.mark.parametrize("shape", SHAPES, ids=["dense", "hashed", "collisions", "wide"])
    @pytest.mark.parametrize("half", [False, True])
    def test_features_are_the_twins(self, rng: np.random.Generator, shape: FieldShape, half: bool) -> None:
        arena = random_arena(rng, random_octree(rng, 4), (0, 2), shape=shape)
        arena = halved(arena) if half else arena
        for count in (0, 1, 77 * self.scale):
            samples = random_points(rng, arena, count)
            out = torch.full((count, shape.features), torch.nan, device=self.device)
            cuda.encode_into(*(s.to(self.device) for s in samples), moved(arena, self.device), out)
            want = reference.encode(*samples, exact(arena), None)
            torch.testing.assert_close(out.cpu().double(), want.detach(), atol=2e-5, rtol=0.0)

    @pytest.mark.parametrize("shape", SHAPES, ids=["dense", "hashed", "collisions", "wide"])
    def test_gradients_are_autograds(self, rng: np.random.Generator, shape: FieldShape) -> None:
        arena = random_arena(rng, random_octree(rng, 3), (0, 2), shape=shape)
        count = 101 * self.scale
        samples = random_points(rng, arena, count)
        leaf = exact(arena)
        towards = torch.from_numpy(rng.normal(size=(count, shape.features))).float()
        towards[rng.random(count) < 0.2] = 0.0
        torch.autograd.backward(reference.encode(*samples, leaf, None), towards.double())
        assert leaf.tables.grad is not None
        assert leaf.dense.grad is not None
        gradients = buffers(arena, self.device)
        features = cuda.encode(*(s.to(self.device) for s in samples), moved(arena, self.device), gradients)
        torch.autograd.backward(features, towards.to(self.device))
        room = 2e-6 * max(1.0, float(leaf.tables.grad.abs().max()), float(leaf.dense.grad.abs().max()))
        tables, dense = gradients.tables.cpu(), gradients.dense.cpu()
        torch.testing.assert_close(tables.double(), leaf.tables.grad, atol=room, rtol=1e-5)
        torch.testing.assert_close(dense.double(), leaf.dense.grad, atol=room, rtol=1e-5)
        marked = gradients.mark_tables.cpu().repeat_interleave(VERTEX_BLOCK, dim=1)
        assert (marked[tables.abs().sum(dim=2) > 0] == 1).all()
        marked_dense = gradients.mark_dense.cpu().repeat_interleave(VERTEX_BLOCK)[: dense.shape[0]]
        assert (marked_dense[dense.abs().sum(dim=1) > 0] == 1).all()
        assert int(gradients.mark_tables.max()) == 1
        # a block without any gradient is not marked: where all towards are zero, none is
        quiet = buffers(arena, self.device)
        features = cuda.encode(*(s.to(self.device) for s in samples), moved(arena, self.device), quiet)
        torch.autograd.backward(features, torch.zeros_like(features))
        assert not quiet.mark_tables.any()
        assert not quiet.mark_dense.any()

    def test_rows_behind_the_count_are_zero_and_teach_nothing(self, rng: np.random.Generator) -> None:
        arena = random_arena(rng, random_octree(rng, 3), shape=HASHED)
        samples = random_points(rng, arena, 150)
        on_device = moved(arena, self.device)
        for used in (0, 1, 150):
            rows = [s.clone() for s in samples]
            rows[0][used:] = torch.nan
            rows[1][used:] = -7
            count = torch.tensor([used], dtype=torch.int32, device=self.device)
            many, few = buffers(arena, self.device), buffers(arena, self.device)
            part = [s[:used].to(self.device) for s in samples]
            packed = cuda.encode(*(r.to(self.device) for r in rows), on_device, many, count=count)
            alone = cuda.encode(*part, on_device, few)
            assert torch.equal(packed[:used], alone)
            assert not packed[used:].any()
            torch.autograd.backward(packed.sum())
            torch.autograd.backward(alone.sum())
            torch.testing.assert_close(many.tables, few.tables, atol=1e-5, rtol=1e-5)
            torch.testing.assert_close(many.dense, few.dense, atol=1e-4, rtol=1e-5)
            assert torch.equal(many.mark_tables, few.mark_tables)
            # the twins take the same argument
            clean = replace(arena, tables=arena.tables.nan_to_num(0.0))
            slow = reference.encode(*samples, clean, None, count=count.cpu())
            torch.testing.assert_close(packed.detach().cpu(), slow, atol=2e-5, rtol=0.0)

    def test_frozen_samples_teach_nothing(self, rng: np.random.Generator) -> None:
        arena = random_arena(rng, full_octree(2), (0, 1), shape=HASHED, max_grids=1)
        samples = random_points(rng, arena, 200)
        slots = arena.tables.shape[0] // 2
        gradients, everything = buffers(arena, self.device, slots=slots), buffers(arena, self.device)
        on_device, own = moved(arena, self.device), samples[1] < slots
        features = cuda.encode(*(s.to(self.device) for s in samples), on_device, gradients)
        torch.autograd.backward(features.sum())
        only = cuda.encode(*(s[own].to(self.device) for s in samples), on_device, everything)
        torch.autograd.backward(only.sum())
        # chains of random slots cross the border: nodes behind it learn nothing either
        torch.testing.assert_close(gradients.tables, everything.tables[:slots], atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(gradients.dense, everything.dense, atol=1e-4, rtol=1e-5)

    def test_formats_of_the_features(self, rng: np.random.Generator) -> None:
        arena = moved(halved(random_arena(rng, random_octree(rng, 2), shape=HASHED)), self.device)
        samples = [s.to(self.device) for s in random_points(rng, moved(arena, torch.device("cpu")), 40)]
        full = cuda.encode(*samples, arena, buffers(arena, self.device))
        for dtype in (torch.float16, torch.bfloat16):
            gradients = buffers(arena, self.device)
            small = cuda.encode(*samples, arena, gradients, dtype=dtype)
            assert small.dtype == dtype
            torch.testing.assert_close(small.float(), full.detach(), atol=2e-2, rtol=1e-2)
            torch.autograd.backward(small.sum())
            assert gradients.tables.abs().sum() > 0

    def test_known_features_are_passed_on(self, rng: np.random.Generator) -> None:
        arena = moved(random_arena(rng, random_octree(rng, 2), shape=HASHED), self.device)
        samples = [s.to(self.device) for s in random_points(rng, moved(arena, torch.device("cpu")), 40)]
        gradients, known = buffers(arena, self.device), torch.rand((40, 8), device=self.device)
        features = cuda.encode(*samples, arena, gradients, known)
        assert torch.equal(features, known)
        torch.autograd.backward(features.sum())
        assert gradients.mark_tables.any()


class NestedChecks:
    device: ClassVar[torch.device]
    scale: ClassVar[int]

    @pytest.mark.parametrize("grids", [1, 2, 3])
    def test_a_folded_base_is_the_sum_of_its_grids(self, rng: np.random.Generator, grids: int) -> None:
        shape, rows = HASHED, dense_rows(HASHED.base_cells, grids)
        dense = torch.from_numpy(rng.normal(size=(rows, 8))).float()
        slow, fast = (torch.full((shape.base_rows, 8), 7.0) for _ in range(2))
        reference.fold_dense(dense, slow, base_cells=8, grids=grids)
        fast = fast.to(self.device)
        cuda.fold_dense(dense.to(self.device), fast, base_cells=8, grids=grids)
        torch.testing.assert_close(fast.cpu(), slow, atol=1e-6, rtol=0.0)
        half = torch.zeros((shape.base_rows, 8), dtype=torch.float16, device=self.device)
        cuda.fold_dense(dense.to(self.device), half, base_cells=8, grids=grids)
        torch.testing.assert_close(half[:729].float().cpu(), slow[:729], atol=1e-2, rtol=1e-3)
        # what every sample sees: encoding all grids, and the folded one alone
        arena = random_arena(rng, full_octree(1), shape=shape, max_grids=1)
        many = replace(arena, dense=dense, dense_grids=torch.full_like(arena.dense_grids, grids))
        one = replace(arena, dense=slow, dense_grids=torch.ones_like(arena.dense_grids))
        samples = random_points(rng, arena, 100)
        both = [reference.encode(*samples, replace(a, tables=a.tables.nan_to_num(0.0)), None) for a in (many, one)]
        torch.testing.assert_close(both[0], both[1], atol=1e-5, rtol=0.0)

    def test_spreading_is_what_encoding_every_grid_gives(self, rng: np.random.Generator) -> None:
        grids, rows = 3, dense_rows(8, 3)
        arena = random_arena(rng, full_octree(1), shape=HASHED, max_grids=1)
        dense = torch.from_numpy(rng.normal(size=(rows, 8))).float()
        many = replace(arena, dense=dense, dense_grids=torch.full_like(arena.dense_grids, grids))
        one = replace(arena, dense=dense, dense_grids=torch.ones_like(arena.dense_grids))
        samples = random_points(rng, arena, 150)
        towards = torch.from_numpy(rng.normal(size=(150, 8))).float()
        direct, slow = buffers(many, torch.device("cpu")), buffers(many, torch.device("cpu"))
        fast = buffers(many, self.device)
        torch.autograd.backward(reference.encode(*samples, many, direct), towards)
        torch.autograd.backward(reference.encode(*samples, one, slow), towards)
        fast.dense.copy_(slow.dense)
        fast.mark_dense.copy_(slow.mark_dense)
        reference.spread_gradient(slow, base_cells=8, grids=grids)
        cuda.spread_gradient(fast, base_cells=8, grids=grids)
        for spread in (slow, fast):
            got = spread.dense.cpu()
            torch.testing.assert_close(got, direct.dense, atol=1e-4, rtol=1e-4)
            marked = spread.mark_dense.cpu().repeat_interleave(VERTEX_BLOCK)[:rows]
            assert (marked[got.abs().sum(dim=1) > 0] == 1).all()


class CompositeChecks:
    device: ClassVar[torch.device]
    scale: ClassVar[int]
    near: ClassVar[float] = 2e-5
    """How far gradients may be off."""

    @pytest.mark.parametrize("stop", [0.0, 1e-4, 0.2])
    def test_results_and_gradients_are_the_twins(self, rng: np.random.Generator, stop: float) -> None:
        for rays in (1, 2, 45 * self.scale):
            start, *columns = packet(rng, rays)
            if not len(columns[0]):
                continue
            clear = clear_of_stop(start, columns[0], columns[3], stop)
            ray = torch.repeat_interleave(start.diff())
            towards = [torch.from_numpy(rng.normal(size=s)) for s in ((rays, 3), (rays,), (rays,), (len(ray),))]
            for k in range(3):
                towards[k][~clear] = 0.0
            towards[3][~clear[ray]] = 0.0
            slow = [c.double() for c in columns]
            slow_leaves = slow[0].requires_grad_(), slow[1].requires_grad_()
            want = reference.composite(start, *slow, stop=stop)
            torch.autograd.backward(want, towards)
            fast = [c.to(self.device) for c in columns]
            leaves = fast[0].requires_grad_(), fast[1].requires_grad_()
            got = cuda.composite(start.to(self.device), *fast, stop=stop)
            torch.autograd.backward(got, [t.float().to(self.device) for t in towards])
            for k, scale in enumerate((1.0, 1.0, 10.0)):
                torch.testing.assert_close(
                    got[k].detach().cpu().double()[clear], want[k].detach()[clear], atol=3e-6 * scale, rtol=1e-6
                )
            torch.testing.assert_close(
                got[3].detach().cpu().double()[clear[ray]], want[3].detach()[clear[ray]], atol=3e-6, rtol=0.0
            )
            for leaf, exact_leaf in zip(leaves, slow_leaves, strict=True):
                assert leaf.grad is not None
                assert exact_leaf.grad is not None
                torch.testing.assert_close(
                    leaf.grad.cpu().double()[clear[ray]], exact_leaf.grad[clear[ray]], atol=self.near, rtol=1e-4
                )

    def test_no_rays_and_no_samples(self) -> None:
        empty = torch.zeros(0, device=self.device)
        for rays in (0, 3):
            start = torch.zeros(rays + 1, dtype=torch.int64, device=self.device)
            colour, trans, depth, weights = cuda.composite(
                start, empty, torch.zeros((0, 3), device=self.device), empty, empty, stop=1e-4
            )
            assert colour.tolist() == [[0.0] * 3] * rays
            assert trans.tolist() == [1.0] * rays
            assert depth.tolist() == [0.0] * rays
            assert weights.shape == (0,)

    @pytest.mark.parametrize("stop", [0.0, 0.05])
    def test_going_on_is_bit_equal_to_one_go(self, rng: np.random.Generator, stop: float) -> None:
        rays = 40 * self.scale
        start, *columns = packet(rng, rays)
        whole = cuda.composite(start.to(self.device), *(c.to(self.device) for c in columns), stop=stop)
        cut = start[:-1] + (torch.from_numpy(rng.random(rays)) * (start.diff() + 1)).long()
        ray, rank = torch.repeat_interleave(start.diff()), torch.arange(len(columns[0]))
        state = {
            "colour_out": torch.zeros((rays, 3), device=self.device),
            "transmittance_out": torch.ones(rays, device=self.device),
            "depth_out": torch.zeros(rays, device=self.device),
        }
        all_weights = torch.zeros(len(rank), device=self.device)
        for chosen in (rank < cut[ray], rank >= cut[ray]):
            counts = torch.zeros(rays + 1, dtype=torch.int64)
            counts[1:] = torch.bincount(ray[chosen], minlength=rays)
            parts = [c[chosen].to(self.device) for c in columns]
            weights = torch.full((len(parts[0]),), torch.nan, device=self.device)
            cuda.composite_into(counts.cumsum(0).to(self.device), *parts, stop, **state, weights_out=weights)
            all_weights[chosen.to(self.device)] = weights
        for got, want in zip((*state.values(), all_weights), whole, strict=True):
            assert torch.equal(got, want)

    def test_packed_rays(self, rng: np.random.Generator) -> None:
        """Rays given by (start, count) in buffers with room behind them, one ray left out."""
        start, *columns = packet(rng, 37)
        room = 50
        starts, counts = start[:-1].clone(), start.diff().int()
        counts[-1], m = 0, int(start[-2])
        filled = [torch.cat([c[:m], torch.full((room, *c.shape[1:]), torch.nan)]).to(self.device) for c in columns]
        leaves = filled[0].requires_grad_(), filled[1].requires_grad_()
        ray_start, ray_count = starts.to(self.device), counts.to(self.device)
        got = cuda.composite(ray_start, *filled, stop=1e-4, ray_count=ray_count)
        plain = [c[:m].to(self.device) for c in columns]
        plain_leaves = plain[0].requires_grad_(), plain[1].requires_grad_()
        csr = torch.cat([starts, starts[-1:]]).to(self.device)
        want = cuda.composite(csr, *plain, stop=1e-4)
        slow = reference.composite(starts, *(f.detach().cpu() for f in filled), stop=1e-4, ray_count=counts)
        for k in range(3):
            assert torch.equal(got[k], want[k])
            torch.testing.assert_close(got[k].detach().cpu(), slow[k], atol=1e-4, rtol=1e-5)
        assert torch.equal(got[3][:m], want[3])
        assert not got[3][m:].any()
        torch.autograd.backward([got[0].sum(), got[1].sum()])
        torch.autograd.backward([want[0].sum(), want[1].sum()])
        for leaf, other in zip(leaves, plain_leaves, strict=True):
            assert leaf.grad is not None
            assert other.grad is not None
            assert torch.equal(leaf.grad[:m], other.grad)
            assert not leaf.grad[m:].any()


class DecodeIntoChecks:
    device: ClassVar[torch.device]
    scale: ClassVar[int]

    @pytest.mark.parametrize(("features", "hidden", "geometry"), [(8, 64, 15), (4, 16, 7), (32, 48, 20)])
    def test_the_decoder_is_the_module(
        self, rng: np.random.Generator, features: int, hidden: int, geometry: int
    ) -> None:
        shape = decoder_shape(
            features=features, hidden=hidden, geometry_features=geometry, density_bias=2.0, gsd_ref=0.5, gsd_finest=0.1
        )
        decoder = Decoder(shape, torch.Generator().manual_seed(int(rng.integers(1 << 30))))
        for layer in (decoder.density_out, decoder.colour_in, decoder.colour_mid, decoder.colour_out):
            torch.nn.init.uniform_(layer.bias, -0.3, 0.3)
        weights = moved_weights(decoder.weights(), self.device)
        for num in (0, 1, 200 * self.scale):
            x = torch.from_numpy(rng.normal(0.0, 0.7, (num, features))).float()
            basis = direction_basis(torch.nn.functional.normalize(torch.from_numpy(rng.normal(size=(9, 3))), dim=1))
            ray = torch.from_numpy(rng.integers(0, 9, num)).int()
            with torch.no_grad():
                sigma, colour = decoder(x, basis[ray.long()])
            slow_sigma, slow_colour = torch.empty(num), torch.empty(num, 3)
            reference.decode_into(decoder.weights(), x, basis, ray, slow_sigma, slow_colour)
            torch.testing.assert_close(slow_sigma, sigma, rtol=1e-5, atol=1e-6)
            torch.testing.assert_close(slow_colour, colour, rtol=1e-5, atol=1e-6)
            used = num // 2
            place = {"device": self.device}
            got_sigma, got_colour = torch.full((num,), -1.0, **place), torch.full((num, 3), -1.0, **place)
            inputs = [t.to(self.device) for t in (x, basis, ray)]
            count = torch.tensor([used], dtype=torch.int32, **place)
            cuda.decode_into(weights, *inputs, got_sigma, got_colour, count=count)
            assert (got_sigma[used:] == -1).all()
            assert (got_colour[used:] == -1).all()
            some = got_sigma[:used].clone()
            cuda.decode_into(weights, *inputs, got_sigma, got_colour)
            assert torch.equal(got_sigma[:used], some)
            # float16 products: a share of the density, a part of a colour step
            torch.testing.assert_close(got_sigma.cpu(), sigma, rtol=2e-2, atol=1e-3)
            torch.testing.assert_close(got_colour.cpu(), colour, rtol=0.0, atol=5e-3)


def moved_weights(weights: DecoderWeights, device: torch.device) -> DecoderWeights:
    layers = {
        f.name: tuple(t.to(device) for t in getattr(weights, f.name))
        for f in fields(weights)
        if isinstance(getattr(weights, f.name), tuple)
    }
    return replace(weights, **layers)
