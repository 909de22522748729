"""The four kernels beside their torch twins."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from infnerf_tiles.field.decoder import Decoder, decoder_shape, direction_basis
from infnerf_tiles.field.linking import link
from infnerf_tiles.field.shape import FieldShape
from infnerf_tiles.geometry.node_id import encode_keys
from infnerf_tiles.kernels import for_device, reference
from infnerf_tiles.kernels.arena import Arena, Gradients, MarchSettings, PackedSamples, dense_grid_rows
from infnerf_tiles.kernels.reference.encode import _around, _dense_row, _table_row, _trilinear
from tests.bench.measure import Bench, Case, Result, attempt
from tests.bench.surfaces import EDGE, aerial_rays, arena_of, ground_arena

_STEP = 1.5


def encode_chain(bench: Bench) -> list[Result]:
    """16 grids of 2 features: a treelet's dense grids and a chain of nodes, points all over the treelet's cube.

    On the processor all nested dense grids of a training treelet (4 or 5) and 12 or 11 nodes; on a GPU, where the dense
    ones are folded into one, the base and 15 nodes. Every node is read at a place of its own, which is harder on the
    caches than samples along rays.
    """
    results = []
    for table_log2, cells in ((14, 64), (19, 128)):
        shape = FieldShape(cells=cells, table_size=1 << table_log2, features=2)
        grids = 1 if bench.on_gpu else shape.num_corrections
        arena = _chain_arena(shape, 16 - grids, bench.device, grids)
        # fewer would not fill a GPU
        count = 50_000 if bench.quick else 1 << 20 if bench.on_gpu else 200_000
        results.append(_encode(bench, f"encode 16x2 T 2^{table_log2}", arena, count, levels=16 - grids))
    return results


def encode_field(bench: Bench) -> list[Result]:
    """The default GPU field: 8 features, N 128, T 2^16, four nodes and the folded base; samples along rays."""
    if not bench.on_gpu:
        return []
    shape = FieldShape(cells=128, table_size=1 << 16, features=8)
    arena = ground_arena(shape, 4, bench.device)
    samples = _march_for(bench, arena, 1 << 19, depth=4)
    count = samples.count
    rows = [t[: int(count)] for t in (samples.position, samples.slot, samples.beta)]
    return _field_cases(bench, arena, rows)


def _field_cases(bench: Bench, arena: Arena, rows: list[Tensor]) -> list[Result]:
    kernels, num = for_device(bench.device), rows[0].shape[0]
    gradients = _gradients(arena)
    out = torch.empty((num, arena.features), device=bench.device)
    towards = torch.randn_like(out)
    chain = float((arena.level[rows[1].long()] + 1).float().mean())
    forward = bench.time(lambda: kernels.encode_into(*rows, arena, out))
    features = kernels.encode(*rows, arena, gradients)
    backward = bench.time(lambda: torch.autograd.backward(features, towards, retain_graph=True))
    slow = replace(arena, tables=arena.tables.float(), dense=arena.dense.float())
    twin = bench.time(lambda: reference.encode_into(*rows, slow, out))
    read = num * (chain + 1) * 8 * arena.features * 2 + num * (20 + 4 * arena.features)
    written = num * (chain + 1) * 8 * arena.features * 8 + num * (20 + 4 * arena.features)
    note = f"{chain:.2f} nodes a sample, {int(arena.level.shape[0])} nodes"
    results = []
    for what, seconds, traffic in (("forward", forward, read), ("backward", backward, written)):
        result = Result(
            bench=f"encode F 8 {what}", items=num, unit="samples",
            ours=Case(name="kernel", seconds=seconds, note=note),
        )  # fmt: skip
        if what == "forward":
            result.add("torch twin, float32", twin)
        result.add("copy of as many bytes", bench.copy_seconds(traffic), f"{traffic / 1e6:.0f} MB")
        results.append(result)
    return results


def _encode(bench: Bench, name: str, arena: Arena, count: int, *, levels: int) -> Result:
    kernels = for_device(bench.device)
    slow = replace(arena, tables=arena.tables.float(), dense=arena.dense.float())
    rng = np.random.default_rng(0)
    position = torch.from_numpy(rng.random((count, 3), np.float32)).to(bench.device)
    slot = torch.full((count,), levels - 1, dtype=torch.int32, device=bench.device)
    beta = torch.full((count,), 0.5, device=bench.device)
    towards = torch.randn((count, arena.features), device=bench.device)
    gradients = _gradients(arena)

    def step(module: Any, of: Arena) -> None:
        torch.autograd.backward(module.encode(position, slot, beta, of, gradients), towards)

    result = Result(
        bench=name, items=count, unit="points",
        ours=Case(
            name="kernel, forward and backward",
            seconds=bench.time(lambda: step(kernels, arena)),
            note=f"{int(arena.dense_grids[0])} dense grids, {levels} nodes, "
            + str(arena.tables.dtype).removeprefix("torch."),
        ),
    )  # fmt: skip
    result.add("torch twin", bench.time(lambda: step(reference, slow), at_most=4.0), "float32")
    grids = int(arena.dense_grids[0])
    compiled = bench.compiled(_fixed_chain)
    if isinstance(compiled, str):
        result.add("torch.compile of the twin", None, compiled)
    else:
        tables = slow.tables.view(-1, arena.features).clone().requires_grad_()
        dense = slow.dense.clone().requires_grad_()

        def compiled_step() -> None:
            tables.grad = dense.grad = None
            torch.autograd.backward(compiled(tables, dense, position, beta, slow, levels, grids), towards)

        result.add("torch.compile of the twin", *attempt(lambda: bench.time(compiled_step, at_most=4.0)))
    traffic = count * 16 * 8 * arena.features * (arena.tables.element_size() + 8)
    result.add("copy of as many bytes", bench.copy_seconds(traffic), f"{traffic / 1e6:.0f} MB")
    return result


def _fixed_chain(
    tables: Tensor, dense: Tensor, position: Tensor, beta: Tensor, arena: Arena, levels: int, grids: int
) -> Tensor:
    """The torch twin for samples that all have one whole chain: no shape depends on values, so it compiles whole."""
    cells = arena.cells
    total = torch.zeros((position.shape[0], tables.shape[1]), device=position.device)
    first = 0
    for grid in range(grids):
        n = arena.base_cells >> grid
        scaled = position * n
        corner = scaled.floor().clamp(max=n - 1)
        weights = torch.stack(_trilinear(scaled - corner), dim=1)
        rows = torch.stack([_dense_row(c, n) for c in _around(corner.long())], dim=1)
        total = total + (weights[:, :, None] * dense[first + rows]).sum(dim=1)
        first += dense_grid_rows(n)
    for level in range(levels):
        scaled = position * float(cells << level)
        corner = scaled.floor()
        weights = torch.stack(_trilinear(scaled - corner), dim=1)
        if level == levels - 1:
            weights = weights * beta[:, None]
        inside = corner.long() % cells
        rows = torch.stack([_table_row(c, cells, arena.table_size) for c in _around(inside)], dim=1)
        total = total + (weights[:, :, None] * tables[level * arena.table_size + rows]).sum(dim=1)
    return total


def _chain_arena(shape: FieldShape, nodes: int, device: torch.device, grids: int) -> Arena:
    keys = np.concatenate([encode_keys(level, np.zeros((1, 3), np.int64)) for level in range(nodes)])
    links = link(keys, np.zeros(nodes, np.int32), np.zeros(1, np.int64))
    bits = np.full((nodes, shape.occupancy_bytes), 255, np.uint8)
    return arena_of(shape, links, bits, device, grids=grids)


def _gradients(arena: Arena) -> Gradients:
    slots, rows = arena.tables.shape[0], arena.dense.shape[0]
    return Gradients(slots, arena.table_size, rows, arena.features, device=arena.device)


def march(bench: Bench) -> list[Result]:
    """Rays over a ground, as a training step marches them."""
    shape = FieldShape(cells=128 if bench.on_gpu else 64, table_size=64, features=2)
    depth = 4
    arena = ground_arena(shape, depth, bench.device)
    num = (1 << 15) if bench.on_gpu else 1 << 12
    settings, rays = _lattice(shape, depth, num, bench.device)
    kernels = for_device(bench.device)
    out = PackedSamples.allocate(rays=num, capacity=num * 64, capacity_above=0, device=bench.device)
    num_rays = torch.tensor([num], dtype=torch.int32, device=bench.device)

    def run(module: Any, used: Tensor) -> None:
        module.march_packed(rays, arena, settings, num_rays=used, out=out, keep=64, adapt=True)

    seconds = bench.time(lambda: run(kernels, num_rays))
    found = int(out.count)
    note = f"{found / num:.1f} samples a ray, {num} rays"
    result = Result(
        bench="march", items=found, unit="samples", ours=Case(name="kernel, packed", seconds=seconds, note=note)
    )
    few = 16
    per_ray = bench.time(lambda: run(reference, num_rays.new_tensor([few])), at_most=1.0) / few
    result.add("torch twin", per_ray * num, f"timed on {few} rays")
    result.add("torch.compile of the twin", None, "skipped: the twin walks ray by ray in Python")
    traffic = found * 44.0
    result.add("copy of as many bytes", bench.copy_seconds(traffic), f"{traffic / 1e6:.0f} MB")
    return [result]


def _lattice(shape: FieldShape, depth: int, num: int, device: torch.device) -> tuple[MarchSettings, Any]:
    gsd_root = EDGE / shape.cells
    footprint = gsd_root / 2**depth / 500.0
    settings = MarchSettings(near=10.0, step=_STEP, gsd_root=gsd_root, lod_bias=0.0)
    return settings, aerial_rays(num, footprint, device)


def _march_for(bench: Bench, arena: Arena, capacity: int, *, depth: int) -> PackedSamples:
    num = capacity // 8
    shape = FieldShape(cells=arena.cells, table_size=arena.table_size, features=arena.features)
    settings, rays = _lattice(shape, depth, num, bench.device)
    out = PackedSamples.allocate(rays=num, capacity=capacity, capacity_above=0, device=bench.device)
    num_rays = torch.tensor([num], dtype=torch.int32, device=bench.device)
    for_device(bench.device).march_packed(rays, arena, settings, num_rays=num_rays, out=out, keep=64, adapt=True)
    return out


def composite(bench: Bench) -> list[Result]:
    """Rays of 0 to 40 samples, forward and backward."""
    rng = np.random.default_rng(0)
    rays = 25_000 if bench.on_gpu else 5_000
    counts = rng.integers(0, 41, rays)
    start = torch.from_numpy(np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)).to(bench.device)
    m = int(start[-1])
    values = (rng.exponential(0.1, m), rng.random((m, 3)), rng.uniform(1, 2, m), rng.uniform(0.5, 1.5, m))
    sigma, colour, t, dt = (torch.from_numpy(v).float().to(bench.device) for v in values)
    sigma.requires_grad_()
    colour.requires_grad_()

    def run(module: Any) -> None:
        rgb, trans, _, _ = module.composite(start, sigma, colour, t, dt, stop=1e-4)
        torch.autograd.backward((rgb.sum(), trans.sum()))

    result = Result(
        bench="composite", items=m, unit="samples",
        ours=Case(
            name="kernel, forward and backward", seconds=bench.time(lambda: run(for_device(bench.device))),
            note=f"{rays} rays",
        ),
    )  # fmt: skip
    result.add("torch twin", bench.time(lambda: run(reference)))
    result.add("torch.compile of the twin", None, "skipped: its loop is as long as the longest ray")
    traffic = m * (2 * 24.0 + 4 + 28)
    result.add("copy of as many bytes", bench.copy_seconds(traffic), f"{traffic / 1e6:.0f} MB")
    return [result]


def decode(bench: Bench) -> list[Result]:
    """The default decoder without gradient; on the processor there is no kernel of it."""
    if not bench.on_gpu:
        return []
    num, rays = 1 << 20, 1 << 16
    shape = decoder_shape(
        features=8, hidden=64, geometry_features=15, density_bias=3.5, gsd_ref=1.0, gsd_finest=1.0 / 16
    )
    decoder = Decoder(shape, torch.Generator().manual_seed(0)).to(bench.device).requires_grad_(False)
    features = torch.randn((num, 8), device=bench.device)
    directions = torch.nn.functional.normalize(torch.randn((rays, 3), device=bench.device), dim=1)
    basis = direction_basis(directions)
    ray = torch.arange(num, device=bench.device).int() // (num // rays)
    sigma, colour = torch.empty(num, device=bench.device), torch.empty((num, 3), device=bench.device)
    weights = decoder.weights()

    def run(module: Any) -> None:
        module.decode_into(weights, features, basis, ray, sigma, colour)

    result = Result(
        bench="decoder, no gradient", items=num, unit="samples",
        ours=Case(name="kernel", seconds=bench.time(lambda: run(for_device(bench.device)))),
    )  # fmt: skip
    result.add("torch twin, float32", bench.time(lambda: run(reference)))
    low = torch.bfloat16

    def autocast(call: Callable[..., Any]) -> None:
        with torch.autocast(bench.device.type, dtype=low):
            call(features, basis[ray.long()])

    result.add("module under bfloat16", bench.time(lambda: autocast(decoder)))
    compiled = bench.compiled(decoder)
    if isinstance(compiled, str):
        result.add("torch.compile of the module", None, compiled)
    else:
        result.add("torch.compile of the module", *attempt(lambda: bench.time(lambda: autocast(compiled))))
    traffic = num * (32.0 + 4 + 16)
    result.add("copy of as many bytes", bench.copy_seconds(traffic), f"{traffic / 1e6:.0f} MB")
    return [result]


def adam(bench: Bench) -> list[Result]:
    """Tables of many nodes of which a step touches a third of the vertex blocks, half of their rows."""
    features = 8
    blocks = (800 << 16) // 8 if bench.on_gpu else (100 << 14) // 8
    width = 8 * features
    value, gradient, first, second = (torch.zeros((blocks, width), device=bench.device) for _ in range(4))
    half = torch.zeros((blocks, width), dtype=torch.float16, device=bench.device) if bench.on_gpu else None
    touched = (torch.rand(blocks, device=bench.device) < 0.33).to(torch.uint8)
    rows = (torch.rand((blocks, 8, 1), device=bench.device) < 0.5) & (touched != 0)[:, None, None]
    pattern = rows.float().expand(blocks, 8, features).reshape(blocks, width)
    marks = touched.clone()

    def prepare() -> None:
        gradient.copy_(pattern)
        marks.copy_(touched)

    def run(update: Callable[..., None]) -> None:
        update(value, gradient, first, second, marks, step=3, rate=1e-3, half=half)

    kernels = for_device(bench.device)
    entries = float(rows.sum()) * features
    result = Result(
        bench="adam", items=entries, unit="entries",
        ours=Case(
            name="kernel", seconds=bench.time(lambda: run(kernels.adam), prepare=prepare),
            note=f"{blocks * width / 1e6:.0f} M in all",
        ),
    )  # fmt: skip
    result.add(*("torch twin", *attempt(lambda: bench.time(lambda: run(reference.adam), prepare=prepare))))
    compiled = bench.compiled(reference.adam)
    if isinstance(compiled, str):
        result.add("torch.compile of the twin", None, compiled)
    else:
        result.add(
            "torch.compile of the twin", *attempt(lambda: bench.time(lambda: run(compiled), prepare=prepare))
        )
    traffic = entries * (32 + (2 if bench.on_gpu else 0)) + 0.33 * blocks * width * 2 + blocks
    result.add("copy of as many bytes", bench.copy_seconds(traffic), f"{traffic / 1e6:.0f} MB")
    return [result]
