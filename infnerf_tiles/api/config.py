"""The settings of the Python API: four frozen dataclasses, checked when they are made."""

import math
from dataclasses import dataclass

from infnerf_tiles.errors import SettingsError
from infnerf_tiles.field.background import BackgroundKind
from infnerf_tiles.field.shape import FieldShape
from infnerf_tiles.geometry.node_id import MAX_LEVEL, RootCube


def _require(kind: str, name: str, value: object, good: bool, expected: str) -> None:
    if not good:
        raise SettingsError(f"{kind}.{name}: expected {expected}, got {value!r}")


def _at_least(kind: str, name: str, value: float, least: float) -> None:
    _require(kind, name, value, math.isfinite(value) and value >= least, f"a number of at least {least}")


def _above_zero(kind: str, name: str, value: float) -> None:
    _require(kind, name, value, math.isfinite(value) and value > 0, "a number above 0")


@dataclass(frozen=True, kw_only=True)
class InfNeRFConfig:
    """Shape and level of detail of an `InfNeRF`. SettingsError for a value that makes no field."""

    max_depth: int = 8
    """Deepest level that the octree may reach; the root is level 0."""
    hidden_dim: int = 64
    """Width of the decoder's hidden layers, neurons, a multiple of 16: with other widths, matrix products can change in
    the last bit with the place of a row, and pictures with the size of the chunks."""
    num_samples: int = 64
    """Most samples on one ray in `forward`; where more cells are occupied, they are thinned evenly."""
    scene_bound: float = 1.0
    """Half the edge of the root cube, world units: it spans [-scene_bound, scene_bound] on each axis."""
    root_origin: tuple[float, float, float] | None = None
    """Lowest corner of the root cube, world units, if it is not centred at the origin."""
    cells: int = 32
    """N, cells per node edge, a power of two of at least 16."""
    log2_table_size: int = 12
    """log2 of T, the rows of a node's feature table."""
    features: int = 8
    """F, feature channels per vertex, a power of two; channel 0 also adds to the log density."""
    geo_feat_dim: int = 15
    """Channels that the density half of the decoder hands to the colour half."""
    density_bias: float = 4.5
    """b: subtracted from the log density, so that a fresh scene is nearly transparent over a whole ray."""
    gsd_ref: float | None = None
    """Length that makes density dimensionless, world units; None: the GSD of level 2 (or of max_depth, if less)."""
    background: BackgroundKind = "sh"
    """What lies behind everything: spherical harmonics of the direction, or a fixed, learned or random colour."""
    num_photos: int = 0
    """Photos with a colour transform of their own; 0 for none."""
    lod_bias: float = 0.0
    """Added to the wanted level, in levels; positive is finer."""
    step_size: float = 1.5
    """Distance between samples in footprints while training."""
    render_step_size: float = 1.0
    """The same while drawing, and in `forward` after `eval()`."""
    use_pruning: bool = True
    """Whether leaves without matter are dropped while training."""
    pruning_threshold: float = 0.02
    """Optical depth per step below which a cell counts as empty."""
    sparse_point_threshold: int = 8
    """Content floor: samples or points in a cube, seen finely enough, that make it a node."""
    max_nodes: int = 4000
    """Most nodes that the octree may have."""
    seed: int = 0
    """Seed of the decoder's starting values."""

    def __post_init__(self) -> None:
        name = type(self).__name__
        _require(name, "max_depth", self.max_depth, 0 <= self.max_depth <= MAX_LEVEL, f"0 to {MAX_LEVEL}")
        _require(name, "hidden_dim", self.hidden_dim, self.hidden_dim % 16 == 0 < self.hidden_dim, "a multiple of 16")
        for field, least in (("num_samples", 4), ("geo_feat_dim", 1), ("num_photos", 0)):
            _at_least(name, field, getattr(self, field), least)
        for field, least in (("sparse_point_threshold", 1), ("max_nodes", 1), ("seed", 0)):
            _at_least(name, field, getattr(self, field), least)
        for field in ("scene_bound", "step_size", "render_step_size", "pruning_threshold"):
            _above_zero(name, field, getattr(self, field))
        _require(name, "log2_table_size", self.log2_table_size, 6 <= self.log2_table_size <= 22, "6 to 22")
        if self.gsd_ref is not None:
            _above_zero(name, "gsd_ref", self.gsd_ref)
        if self.root_origin is not None:
            # checkpoints and JSON bring a list
            object.__setattr__(self, "root_origin", tuple(float(v) for v in self.root_origin))
            _require(name, "root_origin", self.root_origin, len(self.root_origin) == 3, "three numbers")
        try:
            _ = self.shape, self.root
        except ValueError as error:
            raise SettingsError(f"{name}.{error}") from None

    @property
    def shape(self) -> FieldShape:
        """The sizes that fix every array."""
        return FieldShape(cells=self.cells, table_size=1 << self.log2_table_size, features=self.features)

    @property
    def root(self) -> RootCube:
        """The octree's cube, world units."""
        b = self.scene_bound
        return RootCube(self.root_origin or (-b, -b, -b), 2.0 * b)

    @property
    def gsd_root(self) -> float:
        """GSD of level 0, world units."""
        return self.root.edge / self.cells

    @property
    def gsd_finest(self) -> float:
        """GSD of the deepest level that may exist, world units."""
        return self.gsd_root / 2.0**self.max_depth


@dataclass(frozen=True, kw_only=True)
class InfNeRFTrainerConfig:
    """Length, rates and habits of a training. SettingsError for a value that makes none."""

    num_epochs: int = 100
    """Epochs; in each, as many rays are drawn as the data set has pixels in its pyramids."""
    lr_init: float = 1e-2
    """Adam's step size at the start; the networks take 0.3 of it."""
    lr_final: float = 1e-4
    """Adam's step size at the end, reached by exponential decay; at most `lr_init`."""
    rays_batch_size: int = 4096
    """Rays per batch and process."""
    mixed_precision: bool = True
    """bfloat16 for the decoder's products where the device is faster with it."""
    distributed: bool = False
    """Average gradients over the processes that `torchrun` started: they train one treelet, the same everywhere. Scenes
    of many treelets need no such traffic: `infnerf-tiles train` gives every worker treelets of its own."""
    local_rank: int = 0
    """Which of the processes on this machine this one is; on CUDA also the number of its device."""
    distributed_timeout: float = 600.0
    """Seconds after which a process gives up waiting for the others."""
    accumulate_grad_batches: int = 1
    """Batches whose gradients are averaged before one optimizer step."""
    gradient_checkpointing: bool = False
    """Compute the decoder again in the backward pass instead of keeping its inner values."""
    gradient_clip_val: float | None = None
    """Largest norm of the networks' gradient; None does not clip."""
    max_steps: int | None = None
    """Optimizer steps of the whole training, in place of what the epochs amount to."""
    eval_freq: int = 1
    """Epochs between validations; 0 for none."""
    val_photos: int = 4
    """Most held-out photos that a validation draws."""
    save_freq: int = 1
    """Epochs between checkpoints; 0 for the last one alone."""
    log_freq: int = 100
    """Steps between lines of the log and between TensorBoard scalars."""
    ckpt_dir: str = "checkpoints"
    """Folder of best.pth and last.pth."""
    log_dir: str = "logs"
    """Folder of TensorBoard's files."""
    tensorboard: bool = False
    """Write scalars and pictures for TensorBoard (`pip install "infnerf-tiles[tensorboard]"`)."""
    occupancy_every: int = 128
    """Steps between refreshes of the occupancy."""
    seed: int = 0
    """Seed of every random draw."""

    def __post_init__(self) -> None:
        name = type(self).__name__
        for field in ("num_epochs", "rays_batch_size", "accumulate_grad_batches", "occupancy_every", "log_freq"):
            _at_least(name, field, getattr(self, field), 1)
        for field in ("local_rank", "eval_freq", "save_freq", "val_photos", "seed"):
            _at_least(name, field, getattr(self, field), 0)
        for field in ("lr_init", "lr_final", "distributed_timeout"):
            _above_zero(name, field, getattr(self, field))
        if self.max_steps is not None:
            _at_least(name, "max_steps", self.max_steps, 1)
        if self.gradient_clip_val is not None:
            _above_zero(name, "gradient_clip_val", self.gradient_clip_val)
        _require(name, "lr_final", self.lr_final, self.lr_final <= self.lr_init, f"at most lr_init = {self.lr_init}")


@dataclass(frozen=True, kw_only=True)
class InfNeRFRendererConfig:
    """Pictures and the memory they may take. SettingsError for a value that makes no picture."""

    image_width: int = 800
    """Pixels."""
    image_height: int = 600
    """Pixels."""
    render_chunk_size: int = 1024
    """Rays marched and shaded together: bounds the memory for samples. Does not change the picture."""
    max_rays_per_batch: int = 8192
    """Rays whose state is held at once: bounds the memory for large pictures. Does not change the picture."""
    save_depth: bool = False
    """Write depth beside colour: a film or picture "_depth" of the same kind."""
    save_alpha: bool = False
    """Write opacity beside colour: a film or picture "_alpha" of the same kind."""
    lod_bias: float = 0.0
    """Added to the wanted level, in levels; negative is coarser and faster."""
    stop_transmittance: float = 1e-3
    """Transmittance below which a ray ends."""
    memory_budget: int | str | None = None
    """Bytes ("2GiB") for resident nodes when a scene store is drawn; None: the scene's own setting."""
    fps: float = 30.0
    """Frames per second of films."""

    def __post_init__(self) -> None:
        name = type(self).__name__
        for field in ("image_width", "image_height", "render_chunk_size", "max_rays_per_batch"):
            _at_least(name, field, getattr(self, field), 1)
        _at_least(name, "stop_transmittance", self.stop_transmittance, 0.0)
        _above_zero(name, "fps", self.fps)


@dataclass(frozen=True, kw_only=True)
class VolumeRendererConfig:
    """Weights of the loss terms and the background of `VolumeRenderer`. SettingsError for a negative weight."""

    lambda_rgb: float = 1.0
    """Weight of the colour term."""
    lambda_depth: float = 0.1
    """Weight of the depth term."""
    lambda_distortion: float = 0.01
    """Weight of the distortion term (in log distance)."""
    lambda_transparency: float = 1e-3
    """Weight of the term that asks random points to be transparent."""
    loss: str = "huber"
    """Shape of the colour term: "huber" or "mse"."""
    white_background: bool = False
    """Whether white lies behind what `volume_render` composites; otherwise black."""

    def __post_init__(self) -> None:
        name = type(self).__name__
        for field in ("lambda_rgb", "lambda_depth", "lambda_distortion", "lambda_transparency"):
            _at_least(name, field, getattr(self, field), 0.0)
        _require(name, "loss", self.loss, self.loss in ("huber", "mse"), '"huber" or "mse"')
