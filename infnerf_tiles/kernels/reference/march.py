"""March rays through the octree, step by step: every step of the lattice is tested, nothing is skipped."""

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from infnerf_tiles.kernels.arena import Arena, MarchSettings, Rays, Samples


@dataclass(frozen=True, kw_only=True)
class _Lattice:
    """The steps of one ray; t_i = near (1 + c)^i are their ends, `offset` shifts all."""

    origin: tuple[float, float, float]
    direction: tuple[float, float, float]
    footprint: float
    offset: float
    settings: MarchSettings

    @property
    def growth(self) -> float:
        """c: a step's length over the distance of its front end."""
        return self.settings.step * self.footprint

    @property
    def near_middle(self) -> float:
        """Middle of the step that begins at `near`."""
        return self.settings.near * (1.0 + 0.5 * self.growth)

    def middle(self, i: int) -> float:
        return self.near_middle * math.exp((i + self.offset) * math.log1p(self.growth))

    def length(self, middle: float, block: int) -> float:
        """Length of a block of steps, from the middle of its middle step."""
        if block == 1:
            return middle * self.growth / (1.0 + 0.5 * self.growth)
        front, log_q = middle / (1.0 + 0.5 * self.growth), math.log1p(self.growth)
        half = block // 2
        return front * (math.exp((block - half) * log_q) - math.exp(-half * log_q))

    def wanted(self, i: int) -> float:
        """Wanted level at the middle of step i."""
        at_near = math.log2(self.settings.gsd_root / (self.near_middle * self.footprint)) + self.settings.lod_bias
        return at_near - (i + self.offset) * self.levels_per_step

    @property
    def levels_per_step(self) -> float:
        """How much the wanted level falls from step to step."""
        return math.log1p(self.growth) * 1.4426950408889634

    def block(self, i: int, level: int) -> int:
        """Steps in the aligned block around step i that is drawn at a level coarser than wanted.

        The largest 2^k of half an octave at most at whose first step k levels are missing; 1 where none is at step i.
        """
        wanted = self.wanted(i)
        if wanted > level:
            for k in range(int(math.log2(max(1.0, 0.5 / self.levels_per_step))), 0, -1):
                at_first = wanted + (i % (1 << k)) * self.levels_per_step
                if math.ceil(at_first) - level >= k:
                    return 1 << k
        return 1

    def steps(self) -> range:
        """Steps whose middle lies in the unit cube."""
        enter, leave = 0.0, math.inf
        for o, d in zip(self.origin, self.direction, strict=True):
            if d != 0.0:
                low, high = sorted(((0.0 - o) / d, (1.0 - o) / d))
                enter, leave = max(enter, low), min(leave, high)
            elif not 0.0 <= o < 1.0:
                return range(0)
        if leave <= max(enter, self.near_middle):
            return range(0)
        first = 0 if enter <= self.near_middle else max(0, math.ceil(self._step_at(enter)))
        return range(first, math.ceil(self._step_at(leave)))

    def _step_at(self, t: float) -> float:
        return math.log(t / self.near_middle) / math.log1p(self.growth) - self.offset


@dataclass(kw_only=True)
class _Kept:
    """One sample before it is packed."""

    t: float
    length: float
    wanted: float
    slot: int
    unit: tuple[float, ...]


def march(
    rays: Rays,
    arena: Arena,
    settings: MarchSettings,
    *,
    start: Tensor | None = None,
    limit: int | None = None,
    keep: int | None = None,
    adapt: bool = False,
) -> Samples:
    """Emit the samples of each ray that lie in occupied cells, front to back.

    Args:
        rays: the packet, Q rays.
        arena: resident nodes.
        settings: lattice and level-of-detail constants.
        start: int64 [Q], lattice step to start from (what `next_step` returned); -1 leaves the ray out. None: all
            start at their first.
        limit: stop each ray after that many samples (to go on later from `next_step`). None goes to the end.
        keep: thin a ray evenly to at most that many samples (training): of each run of neighbours the middle one stays
            and takes the summed length of all. None keeps all.
        adapt: where the drawn node is k levels coarser than wanted, because nothing finer exists there, steps come in
            aligned blocks of 2^k (of half an octave of distance at most); a block's middle step stands for all of it.
            For training: most of the air over a scene is drawn by coarse nodes.
    """
    nodes = _Nodes(arena)
    per_ray: list[list[_Kept]] = []
    ends: list[int] = []
    begins = [0] * rays.origins.shape[0] if start is None else start.tolist()
    for origin, direction, footprint, offset, begin in zip(
        rays.origins.tolist(),
        rays.directions.tolist(),
        rays.footprint.tolist(),
        rays.offset.tolist(),
        begins,
        strict=True,
    ):
        lattice = _Lattice(
            origin=tuple(origin), direction=tuple(direction), footprint=footprint, offset=offset, settings=settings
        )
        found, end = _samples_of_ray(lattice, nodes, begin, limit, adapt)
        per_ray.append(found if keep is None else _thinned(found, keep))
        ends.append(end)
    return nodes.packed(per_ray, ends)


def _samples_of_ray(
    lattice: _Lattice, nodes: "_Nodes", begin: int, limit: int | None, adapt: bool
) -> tuple[list[_Kept], int]:
    """Samples from step `begin` on, and the step to go on from."""
    found: list[_Kept] = []
    if begin < 0:
        return found, -1
    steps = lattice.steps()
    i = max(steps.start, begin)
    while limit is None or len(found) < limit:
        if i >= steps.stop:
            return found, -1
        t, wanted = lattice.middle(i), lattice.wanted(i)
        unit = tuple(
            min(max(o + t * d, 0.0), 1.0 - 1e-12) for o, d in zip(lattice.origin, lattice.direction, strict=True)
        )
        slot = nodes.finest(unit, wanted)
        block = lattice.block(i, nodes.level[slot]) if adapt else 1
        if i % block == block // 2 and nodes.occupied(slot, unit):
            found.append(_Kept(t=t, length=lattice.length(t, block), wanted=wanted, slot=slot, unit=unit))
        i += 1
    return found, i


def _thinned(found: list[_Kept], keep: int) -> list[_Kept]:
    """At most `keep` of them: of each run of neighbours the middle one, as long as all together."""
    kept = min(keep, len(found))
    result = []
    for j in range(kept):
        run = found[j * len(found) // kept : (j + 1) * len(found) // kept]
        middle = run[(len(run) - 1) // 2]
        result.append(
            _Kept(
                t=middle.t,
                length=sum(s.length for s in run),
                wanted=middle.wanted,
                slot=middle.slot,
                unit=middle.unit,
            )
        )
    return result


class _Nodes:
    """An arena's topology on the host."""

    def __init__(self, arena: Arena):
        self.arena = arena
        self.level = arena.level.tolist()
        self.children = arena.children.tolist()
        self.occupancy = arena.occupancy.cpu().numpy()
        self.treelet = arena.treelet.tolist()
        self.lambda_max = arena.lambda_max.tolist()
        self.top_level = arena.top_level.tolist()
        self.top_xyz = arena.top_xyz.tolist()
        self.above = arena.above.tolist()

    def finest(self, unit: tuple[float, ...], wanted: float) -> int:
        """Slot of the coarsest node around a point whose level is at least `wanted`, or of the finest there is."""
        slot = self.arena.root
        while self.level[slot] < wanted:
            nodes_per_edge = 2.0 ** (self.level[slot] + 1)
            octant = [int(u * nodes_per_edge) & 1 for u in unit]
            below = self.children[slot][octant[0] + 2 * octant[1] + 4 * octant[2]]
            if below < 0:
                break
            slot = below
        return int(slot)

    def occupied(self, slot: int, unit: tuple[float, ...]) -> bool:
        """Whether a node's occupancy cell around a point is set."""
        edge = self.arena.occupancy_cells
        cx, cy, cz = (int(u * 2.0 ** self.level[slot] * edge) % edge for u in unit)
        bit = (cz * edge + cy) * edge + cx
        return bool(self.occupancy[slot, bit // 8] >> (bit % 8) & 1)

    def weights(self, sample: _Kept) -> tuple[float, float, int]:
        """(beta, blend, slot of the treelet above or -1) of a sample."""
        slot, wanted = sample.slot, sample.wanted
        level, tree = self.level[slot], self.treelet[slot]
        if level == 0:
            return 1.0, 1.0, -1
        beta = min(max(min(wanted, self.lambda_max[slot]) - (level - 1), 0.0), 1.0)
        if level == self.top_level[tree] and beta < 1.0 and self.above[tree] >= 0:
            # where the treelet above draws nothing, its field is unknown rather than empty
            other = self.above[tree]
            return 1.0, beta, other if self.occupied(other, sample.unit) else -1
        return beta, 1.0, -1

    def local(self, slot: int, unit: tuple[float, ...]) -> list[float]:
        """A point in the cube of a node's treelet root, rounded to the tables' format without leaving the node."""
        if slot < 0:
            return [0.0, 0.0, 0.0]
        tree = self.treelet[slot]
        nodes_per_edge = 2.0 ** (self.level[slot] - self.top_level[tree])
        round_to = np.float64 if self.arena.tables.dtype == torch.float64 else np.float32
        result = []
        for u, cell in zip(unit, self.top_xyz[tree], strict=True):
            exact = u * 2.0 ** self.top_level[tree] - cell
            face = (math.floor(exact * nodes_per_edge) + 1.0) / nodes_per_edge
            highest = np.nextafter(round_to(face), round_to(0.0))
            result.append(float(min(round_to(exact), highest)))
        return result

    def packed(self, per_ray: list[list[_Kept]], ends: list[int]) -> Samples:
        """Columns of all rays' samples."""
        device = self.arena.device
        # half precision is for features: places and distances would move
        dtype = torch.promote_types(self.arena.tables.dtype, torch.float32)
        flat = [(q, sample) for q, samples in enumerate(per_ray) for sample in samples]
        weights = [self.weights(s) for _, s in flat]
        local = [self.local(s.slot, s.unit) for _, s in flat]
        local_above = [self.local(above, s.unit) for (_, s), (_, _, above) in zip(flat, weights, strict=True)]

        def floats(values: list[float]) -> Tensor:
            return torch.tensor(values, dtype=torch.float64, device=device).to(dtype)

        def points(values: list[list[float]]) -> Tensor:
            return torch.tensor(values, dtype=torch.float64, device=device).to(dtype).reshape(-1, 3)

        def integers(values: list[int]) -> Tensor:
            return torch.tensor(values, dtype=torch.int32, device=device)

        counts = torch.tensor([0, *map(len, per_ray)], dtype=torch.int64, device=device)
        return Samples(
            ray_start=counts.cumsum(0),
            ray=integers([q for q, _ in flat]),
            t=floats([s.t for _, s in flat]),
            dt=floats([s.length for _, s in flat]),
            wanted=floats([s.wanted for _, s in flat]),
            slot=integers([s.slot for _, s in flat]),
            beta=floats([beta for beta, _, _ in weights]),
            position=points(local),
            blend=floats([blend for _, blend, _ in weights]),
            slot_above=integers([above for _, _, above in weights]),
            position_above=points(local_above),
            next_step=torch.tensor(ends, dtype=torch.int64, device=device),
        )
