"""How the octree of an `InfNeRF` adapts while it trains: occupancy, growth, pruning, trained levels.

The rules are those of `training`: this holds the training state of the model's octree and hands the changes back.
"""

import copy
from typing import Any

import numpy as np
import torch
from torch import Tensor

from infnerf_tiles.api.grid import OctreeGrid
from infnerf_tiles.api.octree_model import UNLIMITED, OctreeModel
from infnerf_tiles.api.packets import on_host
from infnerf_tiles.api.rays import PhotoSource
from infnerf_tiles.arrays import Bool, Int64
from infnerf_tiles.data.observers import observers
from infnerf_tiles.errors import SettingsError
from infnerf_tiles.geometry.bounds import point_wanted_levels
from infnerf_tiles.geometry.node_id import NodeId
from infnerf_tiles.geometry.octree import grow_from_points
from infnerf_tiles.kernels.arena import Samples
from infnerf_tiles.training.growth import Evidence
from infnerf_tiles.training.refresh import refresh_occupancy, settle_levels
from infnerf_tiles.training.result import prune
from infnerf_tiles.training.state import Frame, ResidentNodes, TrainingState
from infnerf_tiles.volume.occupancy import cells_of_points

_DECAY = 0.6
_ROOT = NodeId(0, 0, 0, 0)
_GROUPS = 63
"""Groups of photos that evidence tells apart."""


class Adaptation:
    """Occupancy and growth of one model; made by its trainer."""

    def __init__(self, model: OctreeModel):
        if len(model.top_keys) != 1:
            raise SettingsError(
                f"InfNeRFTrainer: expected a model of one treelet, got {len(model.top_keys)}; train scenes of many "
                "with `infnerf-tiles train`"
            )
        self.model = model
        self.state = self._state_of(model.num_nodes)
        self.evidence = Evidence(model.num_nodes, model.shape.occupancy_cells)

    def _state_of(self, capacity: int) -> TrainingState:
        model = self.model
        keys = model.keys.cpu().numpy()
        state = TrainingState(model.shape, _ROOT, keys, capacity, ResidentNodes.none(model.shape))
        o, num = model.shape.occupancy_cells, len(keys)
        state.ema[:num] = model.density_ema.float().cpu().view(num, o, o, o)
        state.occupancy[:num] = model.occupancy.cpu()
        state.prior = np.float32(2.0 * model.config.pruning_threshold)
        state.relink()
        return state

    @property
    def frame(self) -> Frame:
        """The model's constants."""
        c = self.model.config
        march = self.model.lattice()
        return Frame(root=self.model.root, march=march, max_own_level=c.max_depth, can_go_below=False)

    def start_from_points(self, source: PhotoSource) -> bool:
        """Grow the octree of a fresh model to where the sparse points are; False if there are none."""
        model, points = self.model, source.points
        if points is None or not points.num_points or model.num_nodes > 1:
            return False
        seen = observers(points, source.cameras)
        good = np.flatnonzero(seen.reliable)
        if not len(good):
            return False
        unit = model.root.to_unit(points.xyz)
        wanted = point_wanted_levels(points.xyz, seen.offsets, seen.photos, source.cameras, model.config.gsd_root)
        c = model.config
        octree = grow_from_points(
            unit[good], wanted[good] + c.lod_bias, c.max_depth, c.sparse_point_threshold, cells_per_edge=c.cells
        )
        keys = octree.keys[: c.max_nodes]
        self._replace(keys, np.full(len(keys), -1, np.int64))
        cells = cells_of_points(
            unit[good], self.state.level, self.state.arena.children.numpy(), root=self.state.arena.root,
            occupancy_cells=model.shape.occupancy_cells,
        )  # fmt: skip
        self.state.start_occupancy(cells, 2.0 * c.pruning_threshold)
        self._hand_over()
        return True

    def _replace(self, keys: Int64, source: Int64) -> None:
        """Give the model these nodes; new ones fully occupied."""
        model, shape = self.model, self.model.shape
        old = torch.from_numpy(source).to(model.device)
        kept = (old >= 0)[:, None]
        full = torch.full((len(keys), shape.occupancy_bytes), 255, dtype=torch.uint8, device=model.device)
        prior = torch.full((len(keys), shape.occupancy_cells**3), float(2 * model.config.pruning_threshold))
        at = old.clamp(min=0)
        occupancy = torch.where(kept, model.occupancy[at], full)
        ema = torch.where(kept, model.density_ema[at], prior.to(model.density_ema))
        model.set_octree(keys, occupancy, ema, old)
        evidence = Evidence(len(keys), shape.occupancy_cells)
        for name in ("seen", "count", "photos", "reached"):
            target, have = getattr(evidence, name), getattr(self.evidence, name)
            target[torch.from_numpy(source >= 0)] = have[torch.from_numpy(source[source >= 0])]
        self.evidence = evidence
        self.state = self._state_of(len(keys))

    def _hand_over(self) -> None:
        """Write occupancy and its averages to the model."""
        model, state, num = self.model, self.state, self.state.num_own
        model.occupancy.copy_(state.occupancy[:num])
        model.density_ema.copy_(state.ema[:num].view(num, -1))
        model.octree_changed()

    def note(self, samples: Samples, weights: Tensor, photo: Tensor | None, rays_o: Tensor) -> None:
        """Take the samples of a step as evidence. Rays without photos count as seen from where they start."""
        if photo is None:
            # rays from one point are one view
            mixed = (rays_o.double() * torch.tensor([12.9898, 78.233, 37.719], dtype=torch.float64)).sum(dim=1)
            photo = torch.frac(torch.sin(mixed).abs() * 43758.5453).mul(_GROUPS).long()
        now = torch.zeros(1, dtype=torch.int32)
        weight = weights.detach().float().cpu()
        self.evidence.note(on_host(samples), weight, photo.cpu().long().contiguous(), self.state.arena, now)

    def refresh(self, rng: np.random.Generator) -> None:
        """Look at the density again and set the occupancy anew."""
        model = self.model
        refresh_occupancy(
            self.state, None, self.frame, rng,  # type: ignore[arg-type]  # the decoder is behind `density`
            threshold=model.config.pruning_threshold, decay=_DECAY, density=model.density_at,
        )  # fmt: skip
        self._hand_over()

    def grow(self) -> Int64 | None:
        """Add children where samples asked for finer levels; as `prune`."""
        c, before = self.model.config, self.model.num_nodes
        slots, octants = self.evidence.octants(c.sparse_point_threshold)
        self.evidence.forget()
        room = min(len(slots), c.max_nodes - before)
        if room <= 0:
            return None
        state = self._state_of(before + room)
        added = state.add_children(slots, octants, c.max_depth)
        if not added:
            return None
        total = before + added
        order = np.argsort(state.keys[:total], kind="stable")
        source = np.where(order < before, order, -1)
        rows = torch.from_numpy(order)
        occupancy, ema = state.occupancy[:total][rows], state.ema[:total][rows]
        self._replace(state.keys[:total][order], source)
        num = len(order)
        self.state.occupancy[:num] = occupancy
        self.state.ema[:num] = ema
        self.state.relink()
        self._hand_over()
        return source

    def prune(self) -> Int64 | None:
        """Drop leaves without matter. Returns the old slot of every node, or None if nothing changed."""
        state = self.state
        keys = state.keys[: state.num_own]
        useless: Bool = np.asarray(~state.occupied().reshape(len(keys), -1).any(axis=1))
        useless[keys == 0] = False
        keep = prune(keys, useless, np.empty(0, np.int64))
        if keep.all():
            return None
        source = np.flatnonzero(keep)
        self._replace(keys[source], source)
        return source

    def set_trained_levels(self) -> None:
        """Let drawing show every node only up to the level that it was trained at."""
        model = self.model
        level = self.state.level[: model.num_nodes].astype(np.float32)
        found = self.evidence.seen.numpy()
        seen = np.maximum(np.minimum(found, level), 0.0)
        # what finer nodes add to counts in full there, so it has to where this node draws as well
        carries: Bool = np.asarray((self.state.arena.children.numpy() >= 0).any(axis=1))
        seen = np.where(carries[: model.num_nodes], level, seen)
        if (found >= 0).any():
            known = torch.from_numpy(seen).to(model.lambda_max)
            # what was trained before this training counts too
            before = torch.where(model.lambda_max >= UNLIMITED, torch.zeros_like(known), model.lambda_max)
            model.lambda_max.copy_(torch.maximum(known, before))
            model.octree_changed()

    def settle(self) -> None:
        """At the end of a training: make the levels' occupancy agree where one hands over to the next."""
        model, state = self.model, self.state
        if not isinstance(model.grid, OctreeGrid) or model.dtype != torch.float32:
            return
        # the octree's state is on the processor, wherever the model is
        state.arena.tables, state.arena.dense = model.grid.tables.data.cpu(), model.grid.dense.data.cpu()
        threshold = model.config.pruning_threshold
        decoder: Any = model.decoder if model.device.type == "cpu" else copy.deepcopy(model.decoder).cpu()
        state.set_occupied(settle_levels(state, decoder, self.frame, state.occupied(), threshold))
        self._hand_over()

    def state_dict(self) -> dict[str, Tensor]:
        """The evidence as tensors."""
        return {n: getattr(self.evidence, n).clone() for n in ("seen", "count", "photos", "reached")}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take `state_dict`'s output for the model's present octree."""
        self.state = self._state_of(self.model.num_nodes)
        self.evidence = Evidence(self.model.num_nodes, self.model.shape.occupancy_cells)
        for name in ("seen", "count", "photos", "reached"):
            getattr(self.evidence, name).copy_(state[name])


