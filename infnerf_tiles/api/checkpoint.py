"""Checkpoints: `.pth` files of tensors and plain data, written whole or not at all, loaded without running code."""

import os
import pickle
import zipfile
from collections.abc import Mapping
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from infnerf_tiles.api.config import InfNeRFConfig
from infnerf_tiles.api.model import InfNeRF
from infnerf_tiles.errors import DamagedStoreError, SceneNotFoundError, StorageFullError, StoreFormatError

_FORMAT = "infnerf-tiles checkpoint"
_VERSION = 1


def write_checkpoint(path: Path, model: InfNeRF, more: Mapping[str, Any] | None = None) -> None:
    """Write a model and further tensors and plain data. StorageFullError if the disk is full."""
    path.parent.mkdir(parents=True, exist_ok=True)
    document = {
        "format": _FORMAT,
        "version": _VERSION,
        "config": asdict(model.config),
        "custom": _custom_parts(model),
        "model": {name: value.detach() for name, value in model.state_dict().items()},
        **(more or {}),
    }
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    try:
        with partial.open("wb") as file:
            torch.save(document, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    except OSError as error:
        raise StorageFullError(f"{path}: the checkpoint could not be written ({error}); free some space") from error
    finally:
        partial.unlink(missing_ok=True)


def _custom_parts(model: InfNeRF) -> list[str]:
    plain = InfNeRF(model.config)
    parts = ("grid", "decoder", "background")
    return [name for name in parts if type(getattr(plain, name)) is not type(getattr(model, name))]


def read_checkpoint(path: Path) -> dict[str, Any]:
    """What `write_checkpoint` wrote, on the CPU.

    Nothing in the file can run code (`weights_only=True`). SceneNotFoundError if there is no file, DamagedStoreError if
    it is damaged or holds more than tensors and plain data, StoreFormatError if it is no checkpoint of this version.
    """
    if not path.is_file():
        raise SceneNotFoundError(f"no checkpoint at {path}; train one with InfNeRFTrainer")
    try:
        document = torch.load(path, map_location="cpu", weights_only=True)
    except (RuntimeError, ValueError, EOFError, OSError, KeyError, pickle.UnpicklingError, zipfile.BadZipFile) as error:
        raise DamagedStoreError(
            f"{path}: expected a checkpoint of tensors and plain data, got something else or a damaged file "
            f"({str(error).splitlines()[0] if str(error) else type(error).__name__}); take another checkpoint"
        ) from error
    if not isinstance(document, dict) or document.get("format") != _FORMAT or document.get("version") != _VERSION:
        found = document.get("version") if isinstance(document, dict) else type(document).__name__
        raise StoreFormatError(f"{path}: expected an {_FORMAT} of version {_VERSION}, got {found}")
    return document


def load_model(path: str | Path, *, model: InfNeRF | None = None, document: dict[str, Any] | None = None) -> InfNeRF:
    """The model of a checkpoint.

    Args:
        model: takes the parameters; needed where the checkpoint has a custom grid, decoder or background.

    StoreFormatError if the checkpoint does not fit the model; other errors as `read_checkpoint`.
    """
    path = Path(path)
    document = read_checkpoint(path) if document is None else document
    if model is None:
        if custom := document["custom"]:
            raise StoreFormatError(
                f"{path}: expected the model with its custom {', '.join(custom)}, got none; pass it as `model`"
            )
        known = {field.name for field in fields(InfNeRFConfig)}
        if unknown := sorted(document["config"].keys() - known):
            raise StoreFormatError(f"{path}: expected settings of this version, got {', '.join(unknown)} too")
        model = InfNeRF(InfNeRFConfig(**document["config"]))
    _check_octree(path, document["model"])
    try:
        model.load_state_dict(document["model"])
        model.arena()
    except (RuntimeError, ValueError) as error:
        raise StoreFormatError(f"{path}: the checkpoint does not fit the model ({error})") from error
    return model


def _check_octree(path: Path, state: Mapping[str, Any]) -> None:
    """StoreFormatError unless the octree's columns fit together: kernels index by them."""
    try:
        count = len(state["keys"])
        per_node = all(len(state[name]) == count for name in ("treelet", "occupancy", "density_ema", "lambda_max"))
        tables = state.get("grid.tables")
        good = per_node and (not isinstance(tables, Tensor) or len(tables) == count)
        treelet = state["treelet"]
        good &= bool(((treelet >= 0) & (treelet < len(state["top_keys"]))).all())
        good &= len(state["top_keys"]) == len(state["dense_grids"])
    except (KeyError, TypeError) as error:
        raise StoreFormatError(f"{path}: expected an octree with all its columns, {error} is missing") from None
    if not good:
        raise StoreFormatError(f"{path}: expected columns of the octree that fit together, got others")


def parameters_of(module: nn.Module) -> list[nn.Parameter]:
    """Parameters that learn, in a fixed order."""
    return [p for p in module.parameters() if p.requires_grad and p.numel()]
