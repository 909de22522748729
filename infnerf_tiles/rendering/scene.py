"""A scene opened for drawing: everything but the nodes, which are read when a picture needs them."""

from dataclasses import dataclass
from functools import cached_property
from typing import Self

import numpy as np
import torch

from infnerf_tiles.arrays import Bool, Float32, Float64, check_shape
from infnerf_tiles.errors import DamagedStoreError, StoreError
from infnerf_tiles.field.background import Background
from infnerf_tiles.field.decoder import Decoder, decoder_shape
from infnerf_tiles.field.shape import FieldShape
from infnerf_tiles.geometry.camera import PosedCameras
from infnerf_tiles.geometry.footprint import gsd
from infnerf_tiles.geometry.octree import Octree
from infnerf_tiles.kernels.arena import MarchSettings
from infnerf_tiles.settings import Settings, parse_stored_settings
from infnerf_tiles.store.index import NO_SLOT, NodeState, SceneIndex
from infnerf_tiles.store.location import Location
from infnerf_tiles.store.scene_store import SceneStore
from infnerf_tiles.store.schema import SceneHeader

NEAR_IN_FINEST_GSD = 4.0
"""Where rays start, in GSDs of the finest level: no photo shows anything nearer in detail."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Scene:
    """The small parts of a scene store, as of one index generation.

    store: open for reading. index: all nodes, trained or not. octree: the nodes that can be drawn. affine: float32
    [n, 3, 4], colour transform per photo; known: bool[n], which of them were fitted. names, is_test: of the n photos.
    decoder and background are frozen.
    """

    store: SceneStore
    header: SceneHeader
    settings: Settings
    index: SceneIndex
    octree: Octree
    shape: FieldShape
    decoder: Decoder
    background: Background
    affine: Float32
    known: Bool
    cameras: PosedCameras
    names: tuple[str, ...]
    is_test: Bool

    @classmethod
    def open(cls, location: Location) -> Self:
        """Open a scene store (folder, zip, URL or Zarr store).

        SceneNotFoundError if there is none, StoreError if nothing in it is trained yet, DamagedStoreError if a part
        that every picture needs is damaged, StoreFormatError for another format version.
        """
        return cls.of_store(SceneStore.open(location))

    @classmethod
    def of_store(cls, store: SceneStore) -> Self:
        """The scene of a store that is already open; errors as in `open`."""
        store.check_built()
        header = store.header
        # what else is kept beside the settings (where the photos were) is no business of drawing
        sections = {name: header.settings[name] for name in Settings.model_fields if name in header.settings}
        settings = parse_stored_settings(sections, source=f"settings stored in {store.name}")
        index = store.read_index()
        octree = drawable_octree(index)
        if not octree.num_nodes:
            raise StoreError(f"scene {store.name}: expected trained nodes, got none yet; run 'train' first")
        cameras, names, is_test = store.read_cameras()
        affine, known = _read_appearance(store, cameras.num_photos)
        return cls(
            store=store,
            header=header,
            settings=settings,
            index=index,
            octree=octree,
            shape=_field_shape(store),
            decoder=_read_decoder(store, header, settings),
            background=_read_background(store, settings),
            affine=affine,
            known=known,
            cameras=cameras,
            names=names,
            is_test=is_test,
        )

    @property
    def gsd_root(self) -> float:
        """GSD of level 0, world units."""
        return float(gsd(self.header.root.edge, self.header.cells, 0))

    @property
    def gsd_finest(self) -> float:
        """GSD of the deepest level that growth may reach, world units."""
        return float(gsd(self.header.root.edge, self.header.cells, self.header.max_level))

    @cached_property
    def mean_affine(self) -> Float64:
        """float64[3, 4]: the mean of the known photos' colour transforms, the identity where none is known."""
        if not self.known.any():
            return np.eye(3, 4)
        mean: Float64 = self.affine[self.known].astype(np.float64).mean(axis=0)
        return mean

    def lattice(self, lod_bias: float = 0.0) -> MarchSettings:
        """Steps and level of detail of every ray; `lod_bias` is added to what the scene's settings say."""
        return MarchSettings(
            near=NEAR_IN_FINEST_GSD * self.gsd_finest,
            step=self.settings.rendering.step_size,
            gsd_root=self.gsd_root,
            lod_bias=self.settings.octree.lod_bias + self.settings.rendering.lod_bias + lod_bias,
        )

    def close(self) -> None:
        """Let the store go."""
        self.store.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def drawable_octree(index: SceneIndex) -> Octree:
    """The trained nodes all of whose ancestors are trained too.

    Those of a treelet that is to be trained again for photos that have come since are drawn until that is done.
    """
    drawn = (index.states == NodeState.TRAINED) & (index.slots != NO_SLOT)
    if index.num_nodes:
        drawn &= (index.base_slots != NO_SLOT)[index.treelets]
    # an index that was read is sorted and closed under parents already
    return Octree(index.keys).without_rows(~drawn)


def content_centre(scene: Scene) -> Float64:
    """float64[3], world: the median place of the finest nodes, which stand where the photos show most."""
    octree = scene.octree
    finest = octree.levels >= octree.depth - 1
    centres = (octree.xyz[finest] + 0.5) / np.exp2(octree.levels[finest].astype(np.float64))[:, None]
    return scene.header.root.to_world(np.median(centres, axis=0))


def _field_shape(store: SceneStore) -> FieldShape:
    header = store.header
    try:
        shape = FieldShape(cells=header.cells, table_size=header.table_size, features=header.features)
    except ValueError as error:
        raise DamagedStoreError(f"scene {store.name}: its header describes no field ({error})") from error
    expected, got = (shape.base_cells, shape.occupancy_cells), (header.base_cells, header.occupancy_cells)
    if got != expected:
        raise DamagedStoreError(
            f"scene {store.name}: expected {expected} base and occupancy cells for nodes of {header.cells}, got {got}; "
            "build the scene again"
        )
    return shape


def _read_decoder(store: SceneStore, header: SceneHeader, settings: Settings) -> Decoder:
    field = settings.field
    decoder = Decoder(
        decoder_shape(
            features=header.features,
            hidden=field.hidden,
            geometry_features=field.geometry_features,
            density_bias=field.density_bias,
            gsd_ref=header.gsd_ref,
            gsd_finest=float(gsd(header.root.edge, header.cells, header.max_level)),
        )
    )
    try:
        decoder.load_arrays(store.read_small("decoder"))
    except ValueError as error:
        raise DamagedStoreError(
            f"scene {store.name}: its decoder does not fit its settings ({error}); train the scene again"
        ) from error
    return decoder.requires_grad_(False).eval()


def _read_background(store: SceneStore, settings: Settings) -> Background:
    background = Background(settings.field.background)
    size = tuple(background.coefficients.shape)
    if size[0]:
        coefficients = store.read_small("background").get("coefficients")
        got = None if coefficients is None else tuple(coefficients.shape)
        if coefficients is None or got != size:
            raise DamagedStoreError(
                f"scene {store.name}: background: expected coefficients {size}, got {got}; train the scene again"
            )
        background.load_state_dict({"coefficients": torch.from_numpy(coefficients.astype(np.float32))})
    return background.requires_grad_(False).eval()


def _read_appearance(store: SceneStore, num_photos: int) -> tuple[Float32, Bool]:
    if not store.has_small("appearance"):
        return np.tile(np.eye(3, 4, dtype=np.float32), (num_photos, 1, 1)), np.zeros(num_photos, np.bool_)
    arrays = store.read_small("appearance")
    try:
        affine, known = arrays["affine"].astype(np.float32), arrays["known"].astype(np.bool_)
        check_shape("affine", affine, (None, 3, 4))
        check_shape("known", known, (len(affine),))
        if len(affine) < num_photos:
            raise ValueError(f"{len(affine)} transforms")
    except (KeyError, ValueError) as error:
        raise DamagedStoreError(
            f"scene {store.name}: its appearance does not fit its {num_photos} photos ({error!r}); fit it again with "
            "'train'"
        ) from error
    # further ones are of photos that are just being added
    return affine[:num_photos], known[:num_photos]
