"""A trainer's state as arrays, so that a training goes on exactly where a killed process left it."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from infnerf_tiles.arrays import AnyArray
from infnerf_tiles.store.bundle import StoredArrays
from infnerf_tiles.training.trainer import Trainer

_COUNTERS = ("step", "rays_done", "samples_done", "samples_per_ray", "growths", "coarse_until", "recent_error")


def save(trainer: Trainer) -> tuple[dict[str, AnyArray], dict[str, Any]]:
    """Arrays and JSON facts of a trainer between two steps (gradients are zero there and not kept).

    NonFiniteError rather than a state that cannot go on: the one kept before is the last good one.
    """
    state, moments, own = trainer.state, trainer.moments, trainer.state.num_own
    state.check_finite(trainer.step)
    trainer.shared.check_finite(trainer.step)
    facts, more = trainer.stepper.save()
    dense = state.shape.training_dense_rows
    evidence = trainer.evidence
    tensors = {
        "tables": state.tables[:own],
        "first_tables": moments.first_tables[:own],
        "second_tables": moments.second_tables[:own],
        "dense": state.dense[:dense],
        "first_dense": moments.first_dense,
        "second_dense": moments.second_dense,
        "ema": state.ema[:own],
        "occupancy": state.occupancy[:own],
        "seen": evidence.seen[:own],
        "count": evidence.count[:own],
        "photos": evidence.photos[:own],
        "reached": evidence.reached[:own],
    }
    arrays: dict[str, AnyArray] = {"keys": state.keys[:own]}
    arrays |= {name: tensor.cpu().numpy() for name, tensor in tensors.items()}
    if trainer.shared.trainable:
        for k, parameter in enumerate(trainer.shared.parameters()):
            arrays[f"shared_{k}"] = parameter.detach().cpu().numpy()
    return arrays | more, {name: float(getattr(facts, name)) for name in _COUNTERS}


def restore(trainer: Trainer, arrays: Mapping[str, AnyArray], counters: Mapping[str, Any]) -> None:
    """Put `save`'s output back into a fresh trainer of the same treelet. ValueError if it is of another one."""
    state, moments = trainer.state, trainer.moments
    keys = arrays["keys"]
    if len(keys) > state.capacity or not np.array_equal(keys[: state.num_own], state.keys[: state.num_own]):
        raise ValueError(f"checkpoint of {state.top}: its nodes are not those of the treelet")
    own, dense = len(keys), state.shape.training_dense_rows
    state.keys[:own] = keys
    state.num_own = own

    def put(target: torch.Tensor, name: str) -> None:
        if isinstance(arrays, StoredArrays) and target.device.type == "cpu" and not target.requires_grad:
            arrays.read_into(name, target.numpy())  # these are as large as everything else together
        else:
            target.copy_(torch.from_numpy(np.array(arrays[name])))

    evidence = trainer.evidence
    for target, name in (
        (state.tables[:own], "tables"),
        (moments.first_tables[:own], "first_tables"),
        (moments.second_tables[:own], "second_tables"),
        (state.dense[:dense], "dense"),
        (moments.first_dense, "first_dense"),
        (moments.second_dense, "second_dense"),
        (state.occupancy[:own], "occupancy"),
        (state.ema[:own], "ema"),
        (evidence.seen[:own], "seen"),
        (evidence.count[:own], "count"),
        (evidence.photos[:own], "photos"),
        (evidence.reached[:own], "reached"),
    ):
        put(target, name)
    state.relink()
    state.publish()
    now = trainer.work.counters
    for name in _COUNTERS:
        value = float(counters[name])
        setattr(now, name, value if name in ("samples_per_ray", "recent_error") else int(value))
    if trainer.shared.trainable:
        for k, parameter in enumerate(trainer.shared.parameters()):
            with torch.no_grad():
                put(parameter, f"shared_{k}")
    trainer.stepper.load(arrays)
