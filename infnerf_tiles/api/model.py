"""`InfNeRF`: the model of the Python API."""

from typing import Self

from infnerf_tiles.api.octree_model import OctreeModel
from infnerf_tiles.api.scenes import load_scene, save_scene
from infnerf_tiles.data.dataset import PosedPhotos
from infnerf_tiles.store.location import Location


class InfNeRF(OctreeModel):
    """A scene in memory, for training and drawing from torch: an octree of feature grids and one decoder.

    `InfNeRF(config)` is empty: one node, nearly transparent. `forward` gives what rays see, with gradients for every
    parameter; `InfNeRFTrainer` trains it and lets its octree adapt; `InfNeRFRenderer` draws it.

    Parameters: `grid` (tables and dense base grids), `decoder`, `background`, `appearance`. Buffers: the octree, so
    that `state_dict` holds all there is; loading one resizes the octree. float32, or float64 after `.double()` (with
    the slow, plain torch kernels).

    `InfNeRF(config, decoder=…, grid=…, background=…)` replaces parts by any `nn.Module` with the calls of
    `field.decoder.Decoder` (`density(features)`, `forward(features, basis)`), `OctreeGrid`, `field.background`.
    """

    def save(self, scene: Location, dataset: PosedPhotos | None = None) -> None:
        """Write the model as a scene store, which every command and `StreamingRenderer` read.

        A scene keeps float16 and folded dense grids; the model itself is brought to that form first (features change by
        up to 0.05 %), so that nothing is lost between the two. `dataset`: its cameras and photo names go along.
        StoreError if there is a scene already; SettingsError for a custom grid, decoder or background.
        """
        save_scene(self, scene, dataset)

    @classmethod
    def from_scene(cls, scene: Location) -> Self:
        """The trained nodes of a scene store (folder, zip, URL, Zarr store) as a model on the CPU.

        Saving it again writes the same rows, bit by bit. It takes the scene's size in float32: draw large scenes with
        `StreamingRenderer`. Errors as `Scene.open`.
        """
        return load_scene(cls, scene)
