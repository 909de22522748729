"""The Python API: a scene as an `nn.Module` (`InfNeRF`), its trainer and its renderers.

The names are those of the original InfNeRF package, on the same field, kernels, training rules and drawing that the
command line uses. `python -m infnerf_tiles.api.reference` prints all of it on one page.

    from infnerf_tiles import InfNeRF, InfNeRFRenderer, InfNeRFTrainer, InfNeRFTrainerConfig, config_for_photos

    model = InfNeRF(config_for_photos("photos"))
    InfNeRFTrainer(model, "photos", InfNeRFTrainerConfig(num_epochs=2)).train()
    picture = InfNeRFRenderer(model).render_image(camera_pose, intrinsics)["rgb"]

Frames and units: world units are the data's; poses are camera-to-world with OpenCV axes (x right, y down, z forward);
colours are sRGB in [0, 1]; focal lengths and sizes are pixels. Errors are those of `infnerf_tiles.errors`.
"""

from infnerf_tiles.api.callbacks import StopTraining, TensorBoard, TrainerCallback
from infnerf_tiles.api.config import (
    InfNeRFConfig,
    InfNeRFRendererConfig,
    InfNeRFTrainerConfig,
    VolumeRendererConfig,
)
from infnerf_tiles.api.fitting import config_for_photos
from infnerf_tiles.api.grid import OctreeGrid
from infnerf_tiles.api.model import InfNeRF
from infnerf_tiles.api.optimizer import FieldAdam
from infnerf_tiles.api.rays import PhotoArrays, PhotoSampler, RayBatch
from infnerf_tiles.api.renderer import InfNeRFRenderer, StreamingRenderer, render_demo_images
from infnerf_tiles.api.trainer import InfNeRFTrainer
from infnerf_tiles.api.volume import VolumeRenderer
from infnerf_tiles.data.dataset import PosedPhotos, read_dataset
from infnerf_tiles.rendering.camera_paths import CameraPath
from infnerf_tiles.rendering.scene import Scene

__all__ = [
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
]
