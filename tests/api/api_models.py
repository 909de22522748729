"""Small models, rays and data for the tests of the Python API."""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from infnerf_tiles.api import InfNeRF, InfNeRFConfig, PhotoArrays
from infnerf_tiles.api.adaptation import Adaptation
from infnerf_tiles.geometry.node_id import child_keys
from infnerf_tiles.geometry.rotation import look_at

TINY: dict[str, Any] = {
    "cells": 16,
    "log2_table_size": 8,
    "features": 4,
    "hidden_dim": 16,
    "geo_feat_dim": 3,
    "num_samples": 16,
    "max_depth": 3,
}


def tiny_model(seed: int = 0, levels: int = 3, **changes: Any) -> InfNeRF:
    """A model with random features on a few random nodes per level, thin enough to look through."""
    model = InfNeRF(InfNeRFConfig(**{**TINY, "seed": seed, **changes}))
    rng = np.random.default_rng(seed)
    keys = np.zeros(1, np.int64)
    last = keys
    for _ in range(levels - 1):
        last = np.sort(rng.choice(child_keys(last).ravel(), 4, replace=False))
        keys = np.concatenate([keys, last])
    Adaptation(model)._replace(keys, np.where(keys == 0, 0, -1))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.3 * torch.randn(parameter.shape, generator=generator).to(parameter.dtype)
    model.octree_changed()
    return model


def some_rays(count: int = 8, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Origins [Q, 3] outside the cube [-1, 1]^3 and directions [Q, 3] into it, float64."""
    rng = np.random.default_rng(seed)
    origins = rng.normal(size=(count, 3))
    origins *= 2.5 / np.linalg.norm(origins, axis=1, keepdims=True)
    return torch.from_numpy(origins), torch.from_numpy(rng.uniform(-0.6, 0.6, (count, 3)) - origins)


def ball_photos(count: int = 6, size: int = 24, test: int = 1) -> PhotoArrays:
    """Photos of a ball of radius 0.5 with a colour by its normal, on a dark background, from around it."""
    angle = np.linspace(0, 2 * np.pi, count, endpoint=False)
    eyes = np.stack([2.2 * np.cos(angle), 2.2 * np.sin(angle), np.linspace(-0.8, 0.8, count)], axis=1)
    poses = look_at(eyes, np.zeros_like(eyes), np.array([0.0, 0.0, 1.0]))
    v, u = np.mgrid[:size, :size] + 0.5
    images = []
    for pose in poses:
        local = np.stack([(u - size / 2) / size, (v - size / 2) / size, np.ones_like(u)], axis=-1)
        d = local @ pose[:, :3].T
        d /= np.linalg.norm(d, axis=-1, keepdims=True)
        along = -(d @ pose[:, 3])
        gap = along**2 - pose[:, 3] @ pose[:, 3] + 0.25
        normal = (pose[:, 3] + d * (along - np.sqrt(np.maximum(gap, 0)))[..., None]) / 0.5
        images.append(np.where(gap[..., None] > 0, 0.5 + 0.5 * normal, 0.05))
    held_out = np.arange(count) >= count - test
    return PhotoArrays(images, poses, float(size), is_test=held_out)
