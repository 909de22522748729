"""Settings: what can be set, in which unit and range, and how files and overrides become one checked value.

`load_settings("aerial", ["training.steps=500"])` starts from the defaults below, applies the differences of one TOML
file, then the overrides in order. Values are never converted silently: a string is no number, 1.5 is no count.
"""

import difflib
import json
import logging
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator
from pydantic_core import ErrorDetails

from infnerf_tiles.errors import SettingsError
from infnerf_tiles.geometry.node_id import MAX_LEVEL
from infnerf_tiles.units import parse_bytes

_log = logging.getLogger(__name__)
_MAX_FILE_BYTES = 1 << 20  # a settings file is twenty lines; a larger one is some other file


class _Section(BaseModel):
    """Base of all sections: immutable, no unknown keys, no silent conversion, every field described."""

    model_config: ClassVar[ConfigDict] = ConfigDict(
        frozen=True, extra="forbid", strict=True, allow_inf_nan=False, use_attribute_docstrings=True
    )


class DataSettings(_Section):
    """How photos and poses are read."""

    downscale: int = Field(default=1, ge=1, le=64)
    """Integer factor by which every photo is box-filtered and reduced before anything else."""
    test_every: int = Field(default=8, ge=0)
    """Every n-th photo is held out for testing where the data set has no split of its own; 0 holds out none."""

    @field_validator("test_every")
    @classmethod
    def _leaves_photos_to_train(cls, value: int) -> int:
        if value == 1:
            raise ValueError("1 holds out every photo; use 2 or more, or 0 to hold out none")
        return value


class OctreeSettings(_Section):
    """Which nodes exist and how they are cut into treelets."""

    cells: int = Field(default=64, ge=16, le=512)
    """Cells per node edge N, a power of two."""
    treelet_height: int = Field(default=4, ge=1, le=8)
    """Levels per treelet, the unit of training and of memory."""
    max_level: int = Field(default=14, ge=0, le=MAX_LEVEL)
    """Deepest level that may exist; the root is level 0."""
    min_points: int = Field(default=8, ge=1)
    """Content floor: points in a cube, seen finely enough, that make it a node."""
    lod_bias: float = Field(default=0.0, ge=-4.0, le=4.0)
    """Added to the wanted level while the octree grows and trains, in levels; positive is finer."""
    max_nodes: int = Field(default=4000, ge=1, le=50_000_000)
    """Most nodes that the octree may have; a bound on the store, not on memory."""
    growth: float = Field(default=0.2, ge=0.0, le=16.0)
    """Nodes that training may add where it sees finer content, as a share of those that the points ask for."""
    reach: float = Field(default=16.0, ge=1.0, le=4096.0)
    """Edge of the root cube over the edge of the cameras' box, where there are no points to bound the scene."""

    @field_validator("cells")
    @classmethod
    def _is_power_of_two(cls, value: int) -> int:
        if value & (value - 1):
            raise ValueError("should be a power of two: 16, 32, 64, 128, 256 or 512")
        return value


class FieldSettings(_Section):
    """Shapes and starting values of the feature grids, the decoder and what surrounds them."""

    features: int = Field(default=8, ge=1, le=32)
    """Feature channels per grid vertex F; channel 0 also adds to the log density."""
    table_log2: int = Field(default=14, ge=6, le=22)
    """log2 of the entries in a node's feature table T."""
    # products of other widths give a row other last bits by its place in the batch: pictures would depend on the budget
    hidden: int = Field(default=64, ge=16, le=512, multiple_of=16)
    """Width of the decoder's hidden layers, in neurons; a multiple of 16."""
    geometry_features: int = Field(default=15, ge=1, le=128)
    """Channels that the density half of the decoder hands to the colour half."""
    density_bias: float = Field(default=3.5, ge=0.0, le=15.0)
    """Subtracted from the log density (in units of 1 / GSD), so that a fresh scene is nearly transparent."""
    background: Literal["sh", "white", "black", "constant", "random"] = "sh"
    """What a ray that hits nothing shows: spherical harmonics of its direction, or a fixed, learnt or random colour."""
    appearance: bool = True
    """Whether each photo has an affine colour transform (3x4) of its own."""


class TrainingSettings(_Section):
    """Length, size and losses of training."""

    seed: int = Field(default=0, ge=0, lt=2**63)
    """Seed of every random draw."""
    steps: int | None = Field(default=None, ge=1)
    """Optimiser steps per treelet; not set: derived from `passes`."""
    passes: float = Field(default=1.0, gt=0.0, le=1e4)
    """Times that every pixel of a treelet is drawn, on average, the seed stage's share included."""
    seed_share: float = Field(default=0.8, ge=0.0, lt=1.0)
    """Share of the passes that the seed stage takes over for the regions that it samples."""
    seed_nodes: int = Field(default=800, ge=1)
    """Most nodes that the seed stage trains together."""
    samples_per_step: Literal["auto"] | Annotated[int, Field(ge=256, le=2**26)] = "auto"
    """Samples along rays that one optimiser step holds, over all its rays; auto: 16384, on a GPU 524288."""
    samples_per_ray: int = Field(default=64, ge=4, le=4096)
    """Most samples on one ray while training; more occupied cells than that are thinned evenly."""
    lr: float = Field(default=2e-2, gt=0.0, le=1.0)
    """Adam's step size at the start."""
    lr_final: float = Field(default=3e-4, gt=0.0, le=1.0)
    """Adam's step size at the end, at most `lr`."""
    step_size: float = Field(default=1.5, gt=0.0, le=16.0)
    """Distance between samples C, in footprints."""
    occupancy_every: int = Field(default=128, ge=1)
    """Optimiser steps between refreshes of the occupancy."""
    occupancy_threshold: float = Field(default=0.02, gt=0.0, lt=1.0)
    """Optical depth per step below which a cell counts as empty."""
    lambda_rgb: float = Field(default=1.0, ge=0.0)
    """Weight of the colour loss."""
    lambda_distortion: float = Field(default=0.0, ge=0.0)
    """Weight of the distortion loss (in log distance), which pulls a ray's density together."""
    lambda_depth: float = Field(default=0.05, ge=0.0)
    """Weight of the loss on the depth of the data set's points."""
    lambda_transparency: float = Field(default=0.0, ge=0.0)
    """Weight of the loss that asks random points to be transparent."""
    loss: Literal["huber", "mse"] = "huber"
    """Shape of the colour loss."""
    checkpoint_seconds: float = Field(default=60.0, gt=0.0)
    """Least seconds between the states kept of a treelet in training; they take a twentieth of the time at most."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where training computes; auto takes a CUDA device where there is one."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """Number format of the decoder's products; auto takes bfloat16 where the device is faster with it."""

    @model_validator(mode="after")
    def _agrees(self) -> "TrainingSettings":
        if self.lr_final > self.lr:
            raise ValueError(f"lr_final ({self.lr_final:g}) should be at most lr ({self.lr:g})")
        if self.samples_per_ray > self.step_samples("cpu"):
            raise ValueError(
                f"samples_per_ray ({self.samples_per_ray}) should be at most samples_per_step ({self.samples_per_step})"
            )
        return self

    def step_samples(self, device: str) -> int:
        """Samples of a step on a device, "cpu" or "cuda"."""
        if self.samples_per_step == "auto":
            return 1 << 14 if device == "cpu" else 1 << 19
        return self.samples_per_step


class RenderingSettings(_Section):
    """How pictures are drawn from a trained scene."""

    step_size: float = Field(default=1.0, ge=1 / 64, le=16.0)
    """Distance between samples, in footprints; a picture takes as much longer as it is smaller."""
    memory_budget: str | int = "1GiB"
    """Memory for resident nodes, in bytes or with a unit (2GiB, 500MB); any value gives the same picture."""
    lod_bias: float = Field(default=0.0, ge=-18.0, le=4.0)
    """Added to the wanted level, in levels; negative is coarser and faster."""
    stop_transmittance: float = Field(default=1e-3, ge=0.0, lt=1.0)
    """Transmittance below which a ray ends."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where pictures are drawn; auto takes a CUDA device where there is one."""

    @field_validator("memory_budget", mode="before")
    @classmethod
    def _is_an_amount(cls, value: object) -> object:
        # Before the union is tried, so that a wrong value gives one message and not one per member.
        parse_bytes(value)  # type: ignore[arg-type]  # refuses every other type itself
        return value

    @property
    def memory_budget_bytes(self) -> int:
        """`memory_budget` in bytes."""
        return parse_bytes(self.memory_budget)


class Settings(_Section):
    """Everything that can be set for one scene; stored in the scene as `model_dump(mode="json")`."""

    data: DataSettings = DataSettings()
    """How photos and poses are read."""
    octree: OctreeSettings = OctreeSettings()
    """Which nodes exist and how they are cut into treelets."""
    field: FieldSettings = FieldSettings()
    """Shapes of the feature grids and the decoder."""
    training: TrainingSettings = TrainingSettings()
    """Length, size and losses of training."""
    rendering: RenderingSettings = RenderingSettings()
    """How pictures are drawn."""


def load_settings(
    config: str | Path | None = None, overrides: Sequence[str] = (), *, base: Settings | None = None
) -> Settings:
    """The settings `base` (None: the defaults), changed by one TOML file, then by overrides like "training.steps=500".

    `config` is the name of a file that ships with the package (see `config_names`) or a path; a string without a
    folder and without ".toml" is a name. An override's value is read as TOML, else as a plain string; `none` unsets.
    Raises SettingsError that lists every problem as "dotted.path: message".
    """
    values: dict[str, Any] = {} if base is None else base.model_dump(mode="json")
    if config is not None:
        _merge(values, _read_toml(_find_config(config)))
    problems = [problem for text in overrides if (problem := _apply_override(values, text))]
    source = "settings" if config is None else f"settings from {config}"
    return parse_settings(values, source=source, problems=problems)


def parse_settings(values: Mapping[str, Any], *, source: str = "settings", problems: Sequence[str] = ()) -> Settings:
    """Checked settings from nested plain values, such as those stored in a scene.

    `problems` are some already found, reported together with the new ones. Raises SettingsError.
    """
    found = list(problems)
    try:
        settings = Settings.model_validate(dict(values))
    except ValidationError as error:
        found += [_describe(details) for details in error.errors(include_url=False)]
    if found:
        raise SettingsError("\n  ".join([f"{source}: {len(found)} wrong", *found]))
    return settings


def parse_stored_settings(values: Mapping[str, Any], *, source: str) -> Settings:
    """Checked settings that a scene was stored with, maybe by a version that allowed more.

    Numbers in the section rendering, which say how to draw and not what was made, are brought to the nearest that is
    allowed now, with a warning. SettingsError for whatever else is wrong.
    """
    try:
        Settings.model_validate(dict(values))
    except ValidationError as error:
        for details in error.errors(include_url=False):
            limit = next((v for k, v in details.get("ctx", {}).items() if k in ("ge", "le")), None)
            if len(details["loc"]) == 2 and details["loc"][0] == "rendering" and limit is not None:
                key = str(details["loc"][1])
                _tell_once(f"rendering.{key}: {details['input']}, which is stored, is not allowed; {limit} is taken")
                values = {**values, "rendering": {**values["rendering"], key: limit}}
    return parse_settings(values, source=source)


@cache
def _tell_once(message: str) -> None:
    _log.warning("%s", message)


def config_names() -> tuple[str, ...]:
    """Names of the settings files that ship with the package, sorted."""
    folder = resources.files("infnerf_tiles.configs")
    return tuple(sorted(f.name.removesuffix(".toml") for f in folder.iterdir() if f.name.endswith(".toml")))


def setting_paths() -> tuple[str, ...]:
    """Dotted paths of all settings, in the order of definition."""
    return tuple(f"{section}.{key}" for section, model in _sections() for key in model.model_fields)


def describe_settings() -> Iterator[tuple[str, str, str]]:
    """(dotted path, default as TOML, meaning) of every setting, in the order of definition."""
    for section, model in _sections():
        for key, info in model.model_fields.items():
            default = info.get_default()
            text = "none" if default is None else json.dumps(default)
            yield f"{section}.{key}", text, info.description or ""


def _sections() -> Iterator[tuple[str, type[BaseModel]]]:
    for section, info in Settings.model_fields.items():
        if isinstance(info.annotation, type) and issubclass(info.annotation, BaseModel):
            yield section, info.annotation


def _find_config(config: str | Path) -> Traversable:
    path = Path(config)
    if isinstance(config, Path) or path.suffix == ".toml" or len(path.parts) != 1:
        return path
    if config in config_names():
        return resources.files("infnerf_tiles.configs") / f"{config}.toml"
    known = ", ".join(config_names())
    raise SettingsError(
        f"config {config!r}: expected one of {known}, or the path of a .toml file{_suggest(config, config_names())}"
    )


def _read_toml(file: Traversable) -> dict[str, Any]:
    try:
        with file.open("rb") as stream:
            raw = stream.read(_MAX_FILE_BYTES + 1)
    except OSError as error:
        raise SettingsError(f"config {file}: expected a readable TOML file, got: {error.strerror}") from error
    if len(raw) > _MAX_FILE_BYTES:
        raise SettingsError(f"config {file}: expected at most {_MAX_FILE_BYTES} bytes; is it a settings file?")
    try:
        return tomllib.loads(raw.decode("utf-8"))
    except (ValueError, RecursionError) as error:  # also bytes that are not UTF-8 and numbers without end
        raise SettingsError(f"config {file}: expected TOML in UTF-8, got: {error}") from error


def _merge(values: dict[str, Any], changes: Mapping[str, Any]) -> None:
    """Put `changes` into `values` (changed in place), section by section."""
    for key, value in changes.items():
        known = values.get(key)
        if isinstance(known, dict) and isinstance(value, dict):
            known.update(value)
        else:
            values[key] = value


def _apply_override(values: dict[str, Any], text: str) -> str | None:
    """Set one "a.b=v" in `values` (changed in place); the problem as text if it cannot be read."""
    path, equals, value = text.partition("=")
    keys = [key.strip() for key in path.split(".")]
    if not equals or not all(keys):
        return f"{text}: expected section.key=value, such as training.steps=500"
    node = values
    for depth, key in enumerate(keys[:-1], start=1):
        child = node.setdefault(key, {})
        if not isinstance(child, dict):
            return f"{'.'.join(keys[:depth])}: expected a section of settings, got {_short(child)}"
        node = child
    node[keys[-1]] = _parse_value(value.strip())
    return None


def _parse_value(text: str) -> Any:
    if text.lower() == "none":
        return None
    try:
        parsed = tomllib.loads(f"value = {text}")
    except (ValueError, RecursionError):
        return text  # a bare word: people do not quote on a command line
    return parsed["value"] if len(parsed) == 1 else text


def _describe(details: ErrorDetails) -> str:
    """One problem as "dotted.path: message", from pydantic's report of it."""
    path = ".".join(str(part) for part in details["loc"])
    if details["type"] == "extra_forbidden":
        sections = tuple(name for name, _ in _sections())
        known = setting_paths() if "." in path else sections + setting_paths()
        return f"{path}: unknown setting{_suggest(path, known)}"
    if details["type"] in ("model_type", "model_attributes_type"):
        return f"{path}: expected a section of settings, got {_short(details['input'])}"
    own_error = details.get("ctx", {}).get("error")
    message = str(own_error) if own_error is not None else details["msg"].removeprefix("Input ")
    if isinstance(details["input"], dict) or ", got " in message:
        return f"{path}: {message}"
    return f"{path}: {message}, got {_short(details['input'])}"


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def _suggest(name: str, known: Sequence[str]) -> str:
    """A hint at the nearest known name, or nothing; the same key in another section counts as nearest."""
    leaf = name.rpartition(".")[2]
    same_leaf = [other for other in known if other.rpartition(".")[2] == leaf]
    nearest = same_leaf or difflib.get_close_matches(name, known, n=1, cutoff=0.6)
    return f"; did you mean {nearest[0]}?" if nearest else ""
