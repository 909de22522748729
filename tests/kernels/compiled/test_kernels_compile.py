"""Every Triton kernel compiled for GPUs that need not be there: what the interpreter takes, the compiler may refuse.

Kernels are called with tensors of the processor, compiled down to machine code and not run.
"""

import importlib
import pkgutil
import subprocess
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import pytest
import torch
from arenas import full_octree, random_arena, random_rays
from torch import Tensor

from infnerf_tiles.field.decoder import DENSITY_GAIN, direction_basis
from infnerf_tiles.field.shape import FieldShape
from infnerf_tiles.kernels.arena import Arena, Gradients, MarchSettings, PackedSamples, Rays, dense_rows
from infnerf_tiles.kernels.lanes import Lanes, RayTable

triton = pytest.importorskip("triton")
cuda = pytest.importorskip("infnerf_tiles.kernels.cuda")
from cuda_checks import buffers, halved  # noqa: E402  (these import triton)
from decode_checks import parameters_of, random_decoder  # noqa: E402

from infnerf_tiles.kernels.cuda.launch import DEFAULTS  # noqa: E402

TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
SHAPE = FieldShape(cells=64, table_size=1 << 12, features=8)
SETTINGS = MarchSettings(near=2.0, step=1.5, gsd_root=50 / 64, lod_bias=-2.0)
RAYS, ROWS = 64, 256
HERE = torch.device("cpu")

pytestmark = pytest.mark.skipif(not (TOOLS / "ptxas").exists(), reason="this triton brings no compiler for CUDA")


class AbsentGpu:
    """What Triton asks of a driver in order to compile."""

    def __init__(self, capability: int):
        self._capability = capability

    def get_current_target(self) -> Any:
        return importlib.import_module("triton.backends.compiler").GPUTarget("cuda", self._capability, 32)

    def get_current_device(self) -> int:
        # Triton keeps what it compiled by this number, which must not be that of another target or of a real device
        return 1000 + self._capability

    def get_current_stream(self, device: int) -> int:
        return 0


class Compiler:
    """In the place of `launch`: compiles the kernel for these arguments, and keeps what it uses of the processor."""

    def __init__(self, folder: Path, capability: int):
        self._folder = folder
        self.capability = capability
        self.spilled: dict[str, int] = {}

    def __call__(self, kernel: Any, programs: int, *args: Any, **options: Any) -> None:
        if programs <= 0:
            return
        compiled = kernel.warmup(*args, grid=(programs,), **{**DEFAULTS, **options})
        name, binary = kernel.fn.__name__, self._folder / "kernel.cubin"
        binary.write_bytes(compiled.asm["cubin"])
        usage = subprocess.run(
            [TOOLS / "cuobjdump", "-res-usage", binary], capture_output=True, text=True, check=True
        ).stdout
        words = dict(word.split(":", 1) for word in usage.split() if word.count(":") == 1)
        self.spilled[name] = max(self.spilled.get(name, 0), int(words["STACK"]) + int(words["LOCAL"]))

    def check(self, *kernels: str, spills: Mapping[str, int] = MappingProxyType({})) -> None:
        """Whether these were compiled, and hold all that they compute with in registers, or all but some bytes."""
        assert set(self.spilled) == set(kernels)
        assert all(size <= spills.get(name, 0) for name, size in self.spilled.items()), self.spilled


@pytest.fixture(params=[80, 90], ids=["sm_80", "sm_90"])
def compiler(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Compiler:
    runtime = importlib.import_module("triton.runtime").driver
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path / "cache"))
    # kept beside what was compiled for other GPUs
    monkeypatch.setattr(runtime, "_active", AbsentGpu(request.param))
    found = Compiler(tmp_path, request.param)
    for module in pkgutil.iter_modules(cuda.__path__, "infnerf_tiles.kernels.cuda."):
        loaded = importlib.import_module(module.name)
        if hasattr(loaded, "launch"):
            monkeypatch.setattr(loaded, "launch", found)
    monkeypatch.setattr(importlib.import_module("infnerf_tiles.kernels.cuda.decode"), "_processors", lambda device: 132)
    return found


@pytest.fixture
def arena(rng: np.random.Generator) -> Arena:
    """As a GPU trains: features in half precision."""
    return halved(random_arena(rng, full_octree(2), (0, 2), shape=SHAPE, fill=0.3))


@pytest.fixture
def rays(rng: np.random.Generator) -> Rays:
    return random_rays(rng, RAYS)


def packed() -> PackedSamples:
    return PackedSamples.allocate(rays=RAYS, capacity=ROWS, capacity_above=ROWS, device=HERE)


def one(value: int, dtype: torch.dtype = torch.int32) -> Tensor:
    return torch.full((1,), value, dtype=dtype)


def rows() -> tuple[Tensor, Tensor, Tensor]:
    """Positions, slots and weights of samples."""
    return torch.rand((ROWS, 3)), torch.zeros(ROWS, dtype=torch.int32), torch.ones(ROWS)


@pytest.mark.parametrize(("keep", "adapt"), [(16, True), (None, False)])
def test_march(compiler: Compiler, arena: Arena, rays: Rays, keep: int | None, adapt: bool) -> None:
    cuda.march_packed(rays, arena, SETTINGS, num_rays=one(RAYS), out=packed(), keep=keep, adapt=adapt)
    starts = torch.zeros(RAYS, dtype=torch.int64)
    cuda.march_packed(rays, arena, SETTINGS, num_rays=one(RAYS), out=packed(), start=starts, limit=8, adapt=adapt)
    compiler.check("_march_kernel", "_emit_kernel", "_sums_kernel", "_offsets_kernel", "_above_kernel", "_cap_kernel")


@pytest.mark.parametrize("features", [2, 8, 16])
def test_encode(compiler: Compiler, rng: np.random.Generator, features: int) -> None:
    shape = FieldShape(cells=64, table_size=1 << 12, features=features)
    arena = halved(random_arena(rng, full_octree(1), (0,), shape=shape))
    cuda.encode_into(*rows(), arena, torch.empty((ROWS, features)), count=one(ROWS))
    found = cuda.encode(*rows(), arena, buffers(arena, HERE), count=one(ROWS))
    found.sum().backward()
    compiler.check("_encode_kernel", "_backward_kernel")


def test_a_base_in_one_grid(compiler: Compiler, arena: Arena) -> None:
    base = torch.zeros((dense_rows(16, 3), 8))
    cuda.fold_dense(base, torch.empty((dense_rows(16, 1), 8), dtype=torch.float16), base_cells=16, grids=3)
    gradients = Gradients(1, SHAPE.table_size, base.shape[0], 8, device=HERE)
    cuda.spread_gradient(gradients, base_cells=16, grids=3)
    compiler.check("_fold_kernel", "_spread_kernel")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("learns", [False, True])
def test_decoder(compiler: Compiler, rng: np.random.Generator, dtype: torch.dtype, learns: bool) -> None:
    decoder = random_decoder(rng, 8, 64, 15).requires_grad_(learns)
    features = torch.zeros((ROWS, 8), requires_grad=True)
    ray, basis = torch.zeros(ROWS, dtype=torch.int32), torch.zeros((RAYS, 16))
    sigma, colour = cuda.decode(
        features, ray, basis, parameters_of(decoder), count=one(ROWS), gain=DENSITY_GAIN, bias=1.0, max_exponent=9.0,
        gsd_ref=1.0, dtype=dtype,
    )  # fmt: skip
    (sigma.sum() + colour.sum()).backward()
    with torch.no_grad():
        cuda.decode_into(decoder.weights(), features.detach(), basis, ray, sigma, colour, count=one(ROWS))
        cuda.decode_density(
            features, parameters_of(decoder), gain=DENSITY_GAIN, bias=1.0, max_exponent=9.0, gsd_ref=1.0, dtype=dtype
        )
    # the sums over all rows of a weight's gradient take more registers than there are; before Triton 3.9 many more
    learning = 1536 if compiler.capability >= 90 else 6144
    spills = {"_backward_kernel": learning if learns else 0, "_decode_kernel": 256}
    compiler.check("_forward_kernel", "_backward_kernel", "_decode_kernel", "_density_kernel", spills=spills)


def test_composite(compiler: Compiler) -> None:
    sigma, colour = torch.zeros(ROWS, requires_grad=True), torch.zeros((ROWS, 3), requires_grad=True)
    t, dt = torch.ones(ROWS), torch.ones(ROWS)
    starts, counts = torch.zeros(RAYS, dtype=torch.int64), torch.zeros(RAYS, dtype=torch.int32)
    found = cuda.composite(starts, sigma, colour, t, dt, stop=1e-3, ray_count=counts)
    sum(part.sum() for part in found).backward()
    compiler.check("_forward_kernel", "_backward_kernel")


def test_adam(compiler: Compiler) -> None:
    value, gradient, first, second = (torch.zeros((ROWS, 64)) for _ in range(4))
    touched = torch.zeros(ROWS, dtype=torch.uint8)
    half, scalars, enabled = value.half(), torch.zeros(3), one(1, torch.uint8)
    cuda.adam(value, gradient, first, second, touched, half=half, scalars=scalars, enabled=enabled)
    cuda.adam(value[:, :3], gradient[:, :3], first[:, :3], second[:, :3], touched, step=1, rate=0.1)
    compiler.check("_adam_kernel")


def test_note(compiler: Compiler, arena: Arena) -> None:
    position, slot, weight = rows()
    nodes = len(arena.level)
    cuda.note(
        slot, weight, weight, position, torch.zeros(RAYS, dtype=torch.int64), slot, arena, min_weight=0.1,
        seen=torch.zeros(nodes), wanting=torch.zeros((nodes, 8), dtype=torch.int32),
        photos=torch.zeros((nodes, 8), dtype=torch.int64),
        reached=torch.zeros((nodes, arena.occupancy_cells**3), dtype=torch.int32),
        now=one(1), count=one(ROWS), enabled=one(1, torch.uint8),
    )  # fmt: skip
    compiler.check("_note_kernel")


@pytest.mark.parametrize("end", [None, 9])
def test_lanes(compiler: Compiler, arena: Arena, rays: Rays, end: int | None) -> None:
    table = RayTable.fresh(rays.directions, direction_basis(rays.directions))
    lanes, out = Lanes.allocate(RAYS, HERE), packed()
    cuda.refill(table, torch.arange(RAYS, dtype=torch.int32), lanes, stop=1e-3, end=end)
    sigma, colour = torch.zeros(ROWS), torch.zeros((ROWS, 3))
    cuda.mix_above(out, sigma, colour, sigma, colour)
    cuda.accumulate(lanes, out, arena, SETTINGS, sigma, colour, stop=1e-3, end=end)
    compiler.check("_refill_kernel", "_fade_kernel", "_mix_kernel", "_accumulate_kernel")
