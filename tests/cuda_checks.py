"""What the Triton kernels must do, against their torch twins: run by Triton's interpreter and on a GPU alike.

A subclass says where (`device`) and how large (`scale`).
"""

from dataclasses import fields, replace
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from arenas import (
    chain_octree,
    full_octree,
    make_rays,
    node_corners,
    random_arena,
    random_octree,
    random_points,
    random_rays,
)
from torch import Tensor

from infnerf_tiles.field.decoder import Decoder, decoder_shape, direction_basis
from infnerf_tiles.field.shape import FieldShape
from infnerf_tiles.kernels import cuda, reference
from infnerf_tiles.kernels.arena import (
    VERTEX_BLOCK,
    Arena,
    Gradients,
    MarchSettings,
    PackedSamples,
    Rays,
    Samples,
    adam_scalars,
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
EDGE = 50.0
MARCHED = FieldShape(cells=16, table_size=64, features=2)
SETTINGS = MarchSettings(near=2.0, step=1.5, gsd_root=EDGE / MARCHED.cells, lod_bias=-2.0)
PER_SAMPLE = ["ray", "t", "dt", "wanted", "slot", "beta", "position", "blend", "slot_above", "position_above"]


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
    return Gradients(slots, arena.table_size, arena.dense.shape[0], arena.features, 8, 8, device=device)


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


class NoteChecks:
    device: ClassVar[torch.device]
    scale: ClassVar[int]

    @pytest.mark.parametrize("counted", [False, True])
    def test_evidence_sample_by_sample(self, rng: np.random.Generator, counted: bool) -> None:
        arena = random_arena(rng, random_octree(rng, 3), (0, 2), shape=MARCHED)
        num, slots, edge = 150 * self.scale, arena.level.shape[0] - 2, MARCHED.occupancy_cells
        position, slot, _ = random_points(rng, arena, num)
        wanted = (arena.level[slot.long()] + torch.from_numpy(rng.uniform(-1.0, 1.5, num))).float()
        weight = torch.from_numpy(np.maximum(rng.uniform(-0.3, 0.3, num), 0.0)).float()
        ray, photo = torch.from_numpy(rng.integers(0, 9, num)).int(), torch.from_numpy(rng.integers(0, 200, 9))
        used = num - 20 if counted else num
        want = {
            "seen": torch.full((slots,), -1.0), "wanting": torch.zeros((slots, 8), dtype=torch.int32),
            "photos": torch.zeros((slots, 8), dtype=torch.int64),
            "reached": torch.full((slots, edge**3), 3, dtype=torch.int32),
        }  # fmt: skip
        got = {name: t.to(self.device) for name, t in want.items()}
        columns = [c.to(self.device) for c in (slot, wanted, weight, position, photo, ray)]
        now = torch.tensor([7], dtype=torch.int32, device=self.device)
        count = torch.tensor([used], dtype=torch.int32, device=self.device) if counted else None
        off, on = (torch.tensor([flag], dtype=torch.uint8, device=self.device) for flag in (0, 1))
        for enabled in (off, on):
            before = {name: t.clone() for name, t in got.items()}
            cuda.note(
                *columns, moved(arena, self.device), min_weight=0.1, **got, now=now, count=count, enabled=enabled
            )
            assert enabled is on or all(torch.equal(got[name], before[name]) for name in got)
        for m in range(used):
            s = int(slot[m])
            if s >= slots or (counted and weight[m] <= 0):
                continue
            nodes = 2.0 ** int(arena.level[s] - arena.top_level[arena.treelet[s]])
            x, y, z = (int(p * nodes * edge) % edge for p in position[m].tolist())
            want["reached"][s, (z * edge + y) * edge + x] = 7
            if weight[m] < 0.1:
                continue
            want["seen"][s] = torch.maximum(want["seen"][s], wanted[m])
            if wanted[m] >= arena.level[s] + 0.5:
                half = edge // 2
                octant = x // half + 2 * (y // half) + 4 * (z // half)
                want["wanting"][s, octant] += 1
                want["photos"][s, octant] |= 1 << int(photo[int(ray[m])] % 63)
        for name in want:
            assert torch.equal(got[name].cpu(), want[name]), name


class AdamChecks:
    device: ClassVar[torch.device]
    scale: ClassVar[int]

    def _state(self, rng: np.random.Generator, shape: tuple[int, int]) -> list[Tensor]:
        """value, gradient, first, second, touched: some blocks untouched, some entries without gradient."""
        value = rng.normal(size=shape)
        gradient = 10.0 ** rng.uniform(-7, 2, shape) * rng.choice([-1.0, 0.0, 1.0], shape)
        gradient[rng.random(shape[0]) < 0.2] = 0.0
        first, second = rng.normal(size=shape) * 0.1, rng.random(shape)
        touched = torch.from_numpy((rng.random(shape[0]) < 0.6).astype(np.uint8))
        return [*(torch.from_numpy(a).float() for a in (value, gradient, first, second)), touched]

    @pytest.mark.parametrize("shape", [(0, 8), (1, 1), (77, 64), (45, 16), (7, 3), (300, 8), (33, 24)])
    def test_updates_are_the_twins(self, rng: np.random.Generator, shape: tuple[int, int]) -> None:
        slow = self._state(rng, shape)
        fast = [t.clone().to(self.device) for t in slow]
        waiting = slow[1].clone()
        reference.adam(*slow, step=3, rate=1e-2)
        cuda.adam(*fast, step=3, rate=1e-2)
        for name, a, b in zip(("value", "gradient", "first", "second", "touched"), fast, slow, strict=True):
            torch.testing.assert_close(a.cpu(), b, atol=1e-7, rtol=3e-6, msg=name)
        assert waiting.numel() == 0 or not fast[4].any()

    def test_half_copies_and_device_scalars(self, rng: np.random.Generator) -> None:
        slow = self._state(rng, (50, 32))
        fast = [t.clone().to(self.device) for t in slow]
        touched = slow[4] != 0
        half = fast[0].half()
        before = half.clone()
        scalars = torch.tensor(adam_scalars(5, 3e-3), device=self.device)
        reference.adam(*slow, step=5, rate=3e-3)
        cuda.adam(*fast, half=half, scalars=scalars)
        torch.testing.assert_close(fast[0].cpu(), slow[0], atol=1e-7, rtol=3e-6)
        assert torch.equal(half, fast[0].half())
        assert torch.equal(half.cpu()[~touched], before.cpu()[~touched])
        assert not torch.equal(half, before)

    def test_a_disabled_step_only_clears(self, rng: np.random.Generator) -> None:
        slow = self._state(rng, (50, 32))
        fast = [t.clone().to(self.device) for t in slow]
        fast[1][3, 5], fast[4][3] = torch.nan, 1
        half = fast[0].half()
        before = [t.clone() for t in (*fast[:1], *fast[2:4], half)]
        touched = fast[4] != 0
        off = torch.zeros(1, dtype=torch.uint8, device=self.device)
        cuda.adam(*fast, step=1, rate=0.1, half=half, enabled=off)
        for now, then in zip((*fast[:1], *fast[2:4], half), before, strict=True):
            assert torch.equal(now, then)
        assert not fast[1][touched].any()
        assert not fast[4].any()
        reference.adam(*slow, step=1, rate=0.1, enabled=off.cpu())
        assert torch.equal(slow[0], before[0].cpu())
        assert not slow[4].any()
        on = torch.ones(1, dtype=torch.uint8, device=self.device)
        again = [t.to(self.device) for t in self._state(rng, (50, 32))]
        value = again[0].clone()
        cuda.adam(*again, step=1, rate=0.1, enabled=on)
        assert not torch.equal(again[0], value)


class MarchChecks:
    device: ClassVar[torch.device]
    scale: ClassVar[int]
    differ: ClassVar[float]
    """Share of rays that may differ from the twin's by rounding."""

    def compare(self, rays: Rays, arena: Arena, settings: MarchSettings = SETTINGS, **options: Any) -> Samples:
        """The kernel's samples, after checking that they are the twin's."""
        here = {name: v.to(self.device) if isinstance(v, Tensor) else v for name, v in options.items()}
        found = cuda.march(moved(rays, self.device), moved(arena, self.device), settings, **here)
        got = moved(found, torch.device("cpu"))
        want = reference.march(rays, arena, settings, **options)
        same_rays(got, want, self.differ)
        return got

    @pytest.mark.parametrize(
        ("cells", "depth", "bands", "fill", "lod_bias"),
        [(16, 0, (0,), 0.3, 0.0), (16, 5, (0, 2, 4), 0.3, -1.0), (64, 3, (0, 1, 2, 3), 0.05, -1.5)],
    )
    @pytest.mark.parametrize("adapt", [False, True])
    def test_samples_are_the_twins(
        self, rng: np.random.Generator, cells: int, depth: int, bands: tuple[int, ...], fill: float, lod_bias: float,
        adapt: bool,
    ) -> None:  # fmt: skip
        shape = FieldShape(cells=cells, table_size=64, features=2)
        settings = replace(SETTINGS, gsd_root=EDGE / cells, lod_bias=lod_bias)
        arena = random_arena(rng, random_octree(rng, depth), bands, shape=shape, fill=fill)
        rays = random_rays(rng, 33 * self.scale, edge=EDGE, footprint=0.05)
        self.compare(rays, arena, settings, adapt=adapt)

    def test_thinned_and_limited(self, rng: np.random.Generator) -> None:
        arena = random_arena(rng, full_octree(2), (0, 2), shape=MARCHED, fill=0.6, empty_nodes=0.0)
        rays = random_rays(rng, 20 * self.scale, edge=EDGE, footprint=0.06)
        thin = self.compare(rays, arena, keep=7, adapt=True)
        assert int(thin.ray_start.diff().max()) == 7
        start = reference.march(rays, arena, SETTINGS, limit=5).next_step
        start[::3] = -1
        self.compare(rays, arena, start=start, limit=4)

    def test_edge_cases(self, rng: np.random.Generator) -> None:
        arena = random_arena(rng, random_octree(rng, 3), shape=MARCHED, fill=0.3)
        self.compare(random_rays(rng, 0), arena)
        self.compare(random_rays(rng, 1, edge=EDGE, footprint=0.08), arena)
        nothing = random_arena(rng, random_octree(rng, 3), shape=MARCHED, fill=0.0)
        assert self.compare(random_rays(rng, 9, edge=EDGE, footprint=0.08), nothing).count == 0
        past = make_rays(np.array([[2.0, 0.5, 0.5]]), np.array([[1.0, 0.1, 0.0]]), edge=EDGE, footprint=0.04)
        assert self.compare(past, arena).count == 0

    def test_faces_and_deepest_level(self, rng: np.random.Generator) -> None:
        arena = random_arena(rng, random_octree(rng, 4, children=6.0), (0, 2), shape=MARCHED, fill=0.5, empty_nodes=0.1)
        grid = np.array([0.0, 1 / 64, 0.5, 1 - 2.0**-53])
        faces = np.stack(np.meshgrid(grid, grid), axis=-1).reshape(-1, 2)
        axis = int(rng.integers(0, 3))
        origins = np.insert(faces, axis, rng.choice([-0.25, 0.0, 0.375, 1.0], len(faces)), axis=1)
        directions = np.zeros_like(origins)
        directions[:, axis] = np.where(origins[:, axis] > 0.5, -1.0, 1.0)
        self.compare(make_rays(origins, directions, edge=EDGE, footprint=0.08), arena)
        point = (rng.integers(2**16, 2**17, 3) + 0.5) / 2**18  # the middle of a node
        deep = random_arena(rng, chain_octree(18, point), (0, 15), shape=MARCHED, fill=1.0, empty_nodes=0.0)
        directions = rng.normal(size=(8, 3))
        directions /= np.linalg.norm(directions, axis=1, keepdims=True)
        rays = make_rays(point - directions * 1e-5, directions, edge=EDGE, footprint=0.05)
        samples = self.compare(rays, deep, replace(SETTINGS, near=1e-5, lod_bias=0.0), limit=70)
        assert int(deep.level[samples.slot.long()].max()) == 18

    def test_positions_stay_in_their_nodes(self, rng: np.random.Generator) -> None:
        arena = random_arena(rng, random_octree(rng, 4), (0, 2), shape=MARCHED, fill=0.5)
        rays = random_rays(rng, 32 * self.scale, edge=EDGE, footprint=0.06)
        samples = moved(
            cuda.march(moved(rays, self.device), moved(arena, self.device), SETTINGS), torch.device("cpu")
        )
        corner, edge = (torch.from_numpy(a) for a in node_corners(arena))
        slot = samples.slot.long()
        inside = (samples.position.double() - corner[slot]) / edge[slot][:, None]
        assert ((inside >= 0) & (inside < 1)).all()


def same_rays(got: Samples, want: Samples, differ: float) -> None:
    """Column by column, ray by ray; `differ` is the share of rays that may be different."""
    num = len(want.next_step)
    same = (got.ray_start.diff() == want.ray_start.diff()) & (got.next_step == want.next_step)
    for q in torch.nonzero(same).flatten().tolist():
        mine = slice(int(got.ray_start[q]), int(got.ray_start[q + 1]))
        theirs = slice(int(want.ray_start[q]), int(want.ray_start[q + 1]))
        for name in PER_SAMPLE:
            a, b = getattr(got, name)[mine], getattr(want, name)[theirs]
            same[q] &= torch.allclose(a.double(), b.double(), rtol=1e-6, atol=1e-6)
    assert int((~same).sum()) <= differ * num, f"{int((~same).sum())} of {num} rays differ"
    assert got.ray.dtype == torch.int32
    assert torch.equal(got.ray, torch.repeat_interleave(got.ray_start.diff()).int())


class PackedChecks:
    device: ClassVar[torch.device]
    scale: ClassVar[int]

    def _scene(self, rng: np.random.Generator) -> tuple[Arena, Rays]:
        arena = random_arena(rng, full_octree(3), (0, 1, 2, 3), shape=MARCHED, fill=0.5, empty_nodes=0.0)
        return arena, random_rays(rng, 40 * self.scale, edge=EDGE, footprint=0.08)

    @pytest.mark.parametrize(("share", "above"), [(2.0, 1.0), (0.6, 0.3), (0.0, 0.0)])
    def test_buffers_hold_the_samples_that_fit(self, rng: np.random.Generator, share: float, above: float) -> None:
        arena, rays = self._scene(rng)
        used = 31 * self.scale
        whole = cuda.march(moved(rays, self.device), moved(arena, self.device), SETTINGS, keep=6, adapt=True)
        capacity = int(share * float(whole.ray_start[used])) + 1
        mixed = int((whole.slot_above >= 0).sum())
        num = rays.origins.shape[0]
        out = PackedSamples.allocate(
            rays=num, capacity=capacity, capacity_above=int(above * mixed) + 1, device=self.device
        )
        slow = PackedSamples.allocate(rays=num, capacity=capacity, capacity_above=int(above * mixed) + 1)
        # a second go over what the first one left
        for n in (num, used):
            num_rays = torch.tensor([n], dtype=torch.int32)
            cuda.march_packed(
                moved(rays, self.device), moved(arena, self.device), SETTINGS,
                num_rays=num_rays.to(self.device), out=out, keep=6, adapt=True,
            )  # fmt: skip
        reference.march_packed(rays, arena, SETTINGS, num_rays=num_rays, out=slow, keep=6, adapt=True)
        out = moved(out, torch.device("cpu"))
        for name in ("ray_start", "ray_count", "ray_kept", "next_step", "count", "demand", "above_count"):
            assert torch.equal(getattr(out, name), getattr(slow, name)), name
        m, a = int(out.count), int(out.above_count)
        assert m <= capacity
        assert bool(out.ray_kept[:used].all()) == (share >= 1.0)
        for name in ("ray", "t", "dt", "wanted", "slot", "beta", "position"):
            torch.testing.assert_close(getattr(out, name)[:m], getattr(slow, name)[:m], rtol=1e-6, atol=1e-6)
        # the second evaluations: each sample once, with what it needs; the others are drawn without
        chosen = out.above_sample[:a].long()
        assert len(chosen.unique()) == a
        wants = torch.zeros(m, dtype=torch.bool)
        wants[chosen] = True
        assert torch.equal(out.slot_above[:m] >= 0, wants)
        whole = moved(whole, torch.device("cpu"))
        wanted = whole.slot_above[:m] >= 0
        assert torch.equal(wants & wanted, wants)
        assert (out.blend[:m][wanted & ~wants] == 1).all()
        assert torch.equal(out.blend[:m][wants | ~wanted], whole.blend[:m][wants | ~wanted])
        assert torch.equal(out.above_slot[:a], out.slot_above[chosen])
        assert torch.equal(out.above_position[:a], out.position_above[chosen])
        if above >= 1.0:
            # everything fits, so the twins agree on all of it
            torch.testing.assert_close(out.blend[:m], slow.blend[:m], rtol=1e-6, atol=1e-6)
            assert torch.equal(out.slot_above[:m], slow.slot_above[:m])

    def test_rounds_carry_on_where_rays_did_not_fit(self, rng: np.random.Generator) -> None:
        """Rays marched in rounds through small buffers give the samples of one march."""
        arena, rays = self._scene(rng)
        there, on_device = moved(rays, self.device), moved(arena, self.device)
        whole = cuda.march(there, on_device, SETTINGS)
        num = rays.origins.shape[0]
        total = int(whole.ray_start[-1])
        # a third of what there is, however little these rays meet; a ray's share of a round (`limit`) has to fit
        capacity = max(20, total // 3)
        out = PackedSamples.allocate(rays=num, capacity=capacity, capacity_above=9, device=self.device)
        start = torch.zeros(num, dtype=torch.int64, device=self.device)
        num_rays = torch.tensor([num], dtype=torch.int32, device=self.device)
        found: list[list[float]] = [[] for _ in range(num)]
        rounds = 0
        while (start >= 0).any():
            cuda.march_packed(there, on_device, SETTINGS, num_rays=num_rays, out=out, start=start, limit=20)
            for q, t in zip(out.ray[: int(out.count)].tolist(), out.t[: int(out.count)].tolist(), strict=True):
                found[q].append(t)
            start = out.next_step.clone()
            rounds += 1
            assert rounds < 1000
        assert rounds > 1 or total <= capacity
        assert [t for ray in found for t in ray] == whole.t.tolist()
