"""infnerf-tiles: level-of-detail octrees of small neural radiance fields, trained and rendered region by region."""

import os
from typing import TYPE_CHECKING, Any

# torch and numba bring an OpenMP pool each. By default idle threads spin and take the cores from the other pool:
# a training step with two threads on two busy cores took five times as long. The libraries read this when they load.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
# torch keeps a compiled product for each batch size that it has met, up to a thousand of several hundred kilobytes.
# Training meets a new size at every step: without these the process grew by a gigabyte.
os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "32")
os.environ.setdefault("LRU_CACHE_CAPACITY", "32")

if TYPE_CHECKING:
    from infnerf_tiles.api import CameraPath as CameraPath
    from infnerf_tiles.api import FieldAdam as FieldAdam
    from infnerf_tiles.api import InfNeRF as InfNeRF
    from infnerf_tiles.api import InfNeRFConfig as InfNeRFConfig
    from infnerf_tiles.api import InfNeRFRenderer as InfNeRFRenderer
    from infnerf_tiles.api import InfNeRFRendererConfig as InfNeRFRendererConfig
    from infnerf_tiles.api import InfNeRFTrainer as InfNeRFTrainer
    from infnerf_tiles.api import InfNeRFTrainerConfig as InfNeRFTrainerConfig
    from infnerf_tiles.api import OctreeGrid as OctreeGrid
    from infnerf_tiles.api import PhotoArrays as PhotoArrays
    from infnerf_tiles.api import PhotoSampler as PhotoSampler
    from infnerf_tiles.api import PosedPhotos as PosedPhotos
    from infnerf_tiles.api import RayBatch as RayBatch
    from infnerf_tiles.api import Scene as Scene
    from infnerf_tiles.api import StopTraining as StopTraining
    from infnerf_tiles.api import StreamingRenderer as StreamingRenderer
    from infnerf_tiles.api import TensorBoard as TensorBoard
    from infnerf_tiles.api import TrainerCallback as TrainerCallback
    from infnerf_tiles.api import VolumeRenderer as VolumeRenderer
    from infnerf_tiles.api import VolumeRendererConfig as VolumeRendererConfig
    from infnerf_tiles.api import config_for_photos as config_for_photos
    from infnerf_tiles.api import read_dataset as read_dataset
    from infnerf_tiles.api import render_demo_images as render_demo_images

__version__ = "0.1.0"

_API = (
    "CameraPath",
    "FieldAdam",
    "InfNeRF",
    "InfNeRFConfig",
    "InfNeRFRenderer",
    "InfNeRFRendererConfig",
    "InfNeRFTrainer",
    "InfNeRFTrainerConfig",
    "OctreeGrid",
    "PhotoArrays",
    "PhotoSampler",
    "PosedPhotos",
    "RayBatch",
    "Scene",
    "StopTraining",
    "StreamingRenderer",
    "TensorBoard",
    "TrainerCallback",
    "VolumeRenderer",
    "VolumeRendererConfig",
    "config_for_photos",
    "read_dataset",
    "render_demo_images",
)

__all__ = [*_API, "__version__"]


def __getattr__(name: str) -> Any:
    # on demand: the API brings torch and numba, which take seconds to load
    if name in _API:
        import importlib

        value = getattr(importlib.import_module(f"{__name__}.api"), name)
        globals()[name] = value
        return value
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_API})
