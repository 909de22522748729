"""A trainer's state as arrays, so that a training goes on exactly where a killed process left it."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from infnerf_tiles.arrays import AnyArray
from infnerf_tiles.training.trainer import Trainer

_COUNTERS = ("step", "rays_done", "samples_done", "samples_per_ray", "growths", "coarse_until", "recent_error")


def save(trainer: Trainer) -> tuple[dict[str, AnyArray], dict[str, Any]]:
    """Arrays and JSON facts of a trainer between two steps (gradients are zero there and not kept).

    NonFiniteError rather than a state that cannot go on: the one kept before is the last good one.
    """
    state, moments, own = trainer.state, trainer.moments, trainer.state.num_own
    state.check_finite(trainer.step)
    dense = state.shape.training_dense_rows
    arrays: dict[str, AnyArray] = {
        "keys": state.keys[:own],
        "tables": state.tables[:own].numpy(),
        "first_tables": moments.first_tables[:own].numpy(),
        "second_tables": moments.second_tables[:own].numpy(),
        "dense": state.dense[:dense].numpy(),
        "first_dense": moments.first_dense.numpy(),
        "second_dense": moments.second_dense.numpy(),
        "ema": state.ema[:own],
        "occupancy": state.occupancy[:own].numpy(),
        "seen": trainer.evidence.seen[:own],
        "count": trainer.evidence.count[:own],
        "photos": trainer.evidence.photos[:own],
        "reached": trainer.evidence.reached[:own],
    }
    if trainer.optimizer is not None:
        for k, parameter in enumerate(trainer.shared.parameters()):
            arrays[f"shared_{k}"] = parameter.detach().numpy()
            moment = trainer.optimizer.state.get(parameter, {})
            for name in ("exp_avg", "exp_avg_sq", "step"):
                if name in moment:
                    arrays[f"shared_{k}_{name}"] = np.atleast_1d(moment[name].numpy())
    counters = {name: float(getattr(trainer, name)) for name in _COUNTERS}
    return arrays, counters


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
        target.copy_(torch.from_numpy(np.array(arrays[name])))

    put(state.tables[:own], "tables")
    put(moments.first_tables[:own], "first_tables")
    put(moments.second_tables[:own], "second_tables")
    put(state.dense[:dense], "dense")
    put(moments.first_dense, "first_dense")
    put(moments.second_dense, "second_dense")
    put(state.occupancy[:own], "occupancy")
    state.ema[:own] = arrays["ema"]
    evidence = trainer.evidence
    evidence.seen[:own], evidence.count[:own], evidence.photos[:own] = arrays["seen"], arrays["count"], arrays["photos"]
    evidence.reached[:own] = arrays["reached"]
    state.relink()
    for name in _COUNTERS:
        value = float(counters[name])
        setattr(trainer, name, value if name in ("samples_per_ray", "recent_error") else int(value))
    if trainer.optimizer is not None:
        for k, parameter in enumerate(trainer.shared.parameters()):
            with torch.no_grad():
                put(parameter, f"shared_{k}")
            if f"shared_{k}_step" in arrays:
                trainer.optimizer.state[parameter] = {
                    "step": torch.tensor(float(arrays[f"shared_{k}_step"][0])),
                    "exp_avg": torch.from_numpy(np.array(arrays[f"shared_{k}_exp_avg"])),
                    "exp_avg_sq": torch.from_numpy(np.array(arrays[f"shared_{k}_exp_avg_sq"])),
                }
