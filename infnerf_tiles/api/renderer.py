"""`InfNeRFRenderer`: pictures and films of a model, a checkpoint or a scene store; `StreamingRenderer`."""

from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

from infnerf_tiles.api.checkpoint import load_model
from infnerf_tiles.api.config import InfNeRFRendererConfig
from infnerf_tiles.api.drawing import ModelRenderer
from infnerf_tiles.api.model import InfNeRF
from infnerf_tiles.api.rays import as_camera, as_poses
from infnerf_tiles.arrays import Float64, check_shape
from infnerf_tiles.geometry.camera import Camera
from infnerf_tiles.rendering.camera_paths import CameraPath, default_orbit, orbit, spiral
from infnerf_tiles.rendering.renderer import Picture, Renderer
from infnerf_tiles.rendering.scene import Scene
from infnerf_tiles.rendering.sequence import Extras, render_sequence
from infnerf_tiles.units import parse_bytes

_FOCAL = 1.2  # of the demo's camera, in picture widths
_ORBIT_RADIUS, _ORBIT_HEIGHT = 0.3, 0.25  # of the demo's orbit, in edges of the root cube


class StreamingRenderer(Renderer):
    """Draws a scene store by reading only the nodes that a picture needs, within `memory_budget` bytes.

    The picture is the same to the last bit whatever the budget. See `rendering.renderer.Renderer` for `render`.
    """

    def __init__(self, scene: Scene, memory_budget: int | str | None = None, **options: Any) -> None:
        """memory_budget: bytes, or text such as "2GiB"; default: the scene's setting. options: as `Renderer`'s."""
        budget = parse_bytes(memory_budget) if isinstance(memory_budget, str) else memory_budget
        super().__init__(scene, budget, **options)


class InfNeRFRenderer:
    """Pictures and films, in the size and with the limits of an `InfNeRFRendererConfig`."""

    def __init__(self, model: InfNeRF | Scene, config: InfNeRFRendererConfig | None = None):
        """model: a model in memory, or an open scene that is streamed within `config.memory_budget` (then `close` it,
        or use the renderer as a context manager).

        Where photos have colour transforms of their own, their mean is applied.
        """
        self.config = config or InfNeRFRendererConfig()
        self.model = model
        self.source: ModelRenderer | StreamingRenderer
        self.affine: Float64 | None
        if isinstance(model, Scene):
            self.source = StreamingRenderer(model, self.config.memory_budget, read_ahead=True)
            self.affine = model.mean_affine
        else:
            self.source = ModelRenderer(model, self.config)
            affine = model.appearance.affine.detach().double().cpu().numpy()
            self.affine = affine.mean(axis=0) if len(affine) else None

    @classmethod
    def from_checkpoint(
        cls, path: str | Path, config: InfNeRFRendererConfig | None = None, *, model: InfNeRF | None = None
    ) -> Self:
        """The renderer of a checkpoint (`.pth`: tensors and plain data, nothing that runs code) or of a scene store.

        model: takes a checkpoint's parameters; needed where it has custom parts. Errors as `api.checkpoint.load_model`
        and `Scene.open`.
        """
        if str(path).endswith(".pth"):
            return cls(load_model(path, model=model), config)
        return cls(Scene.open(path), config)

    def render_image(self, camera_pose: Any, intrinsics: Any) -> dict[str, Tensor]:
        """One picture of `config.image_width` x `config.image_height` pixels.

        Args:
            camera_pose: [4, 4] or [3, 4], camera-to-world, OpenCV axes (x right, y down, z forward), world units.
            intrinsics: of that size: [3, 3], (fx, fy, cx, cy), a focal length in pixels, or a `Camera`, which brings
                its own size and distortion.

        Returns:
            float32 tensors on the CPU: "rgb" [h, w, 3], sRGB, not clipped; "depth" [h, w], mean distance along the ray,
            world units, inf where nothing is; "alpha" [h, w]; "level" [h, w], level of detail drawn, NaN where nothing
            is.
        """
        poses = as_poses(camera_pose)
        check_shape("camera_pose", poses, (1, 3, 4))
        return _tensors(self._draw(self._camera(intrinsics), poses[0]))

    def render_video(self, camera_trajectory: Any, intrinsics: Any, output_path: str | Path) -> list[Path]:
        """A film of a camera's way: one frame per pose.

        Args:
            camera_trajectory: n poses as in `render_image`, as a list or [n, 4, 4], or a `CameraPath`, which brings its
                own camera and speed.
            intrinsics: as in `render_image`. output_path: .mp4 is a film, .png or .jpg one picture, without a suffix a
                folder of PNGs, which may hold nothing but frames drawn before; those are replaced.

        Returns:
            The files or folders: colours first, then "_depth" and "_alpha" as the config asks.
        """
        path = camera_trajectory
        if not isinstance(path, CameraPath):
            poses = as_poses(camera_trajectory)
            times = np.arange(len(poses)) / self.config.fps
            path = CameraPath(camera=self._camera(intrinsics), camera_to_world=poses, times=times)
        extras = Extras(depth=self.config.save_depth, alpha=self.config.save_alpha)
        bias = 0.0 if isinstance(self.source, ModelRenderer) else self.config.lod_bias
        written = render_sequence(
            self.source, path, Path(output_path), extras=extras, affine=self.affine, lod_bias=bias
        )
        return list(written.outputs)

    def render_spiral_video(
        self,
        center: Any,
        radius: float,
        num_frames: int,
        intrinsics: Any,
        output_path: str | Path,
        *,
        height: float | None = None,
        turns: float = 2.0,
        zoom: float = 2.0,
        up: Any = (0.0, 0.0, 1.0),
    ) -> list[Path]:
        """A film on a spiral around `center` ([3], world) that looks at it and comes closer.

        radius: of the first frame, world units. height: above the centre along `up`, default half the radius; both
        shrink to 1 / `zoom` on the way. Other arguments and result as in `render_video`.
        """
        path = spiral(
            self._camera(intrinsics),
            centre=_vector(center),
            radius=float(radius),
            height=float(radius) / 2.0 if height is None else float(height),
            frames=num_frames,
            up=_vector(up),
            turns=turns,
            zoom=zoom,
            fps=self.config.fps,
        )
        return self.render_video(path, None, output_path)

    def demo_path(self, num_views: int) -> CameraPath:
        """An orbit of `num_views` around the scene: as far away as its photos, else around the root cube's middle."""
        size = (self.config.image_width, self.config.image_height)
        if isinstance(self.model, Scene) and self.model.cameras.num_photos:
            return default_orbit(self.model.cameras, frames=num_views, size=size)
        root = self.model.header.root if isinstance(self.model, Scene) else self.model.root
        return orbit(
            self._camera(_FOCAL * size[0]),
            centre=root.to_world(np.full(3, 0.5)),
            radius=_ORBIT_RADIUS * root.edge,
            height=_ORBIT_HEIGHT * root.edge,
            frames=num_views,
        )

    def close(self) -> None:
        """Let a scene store go; a model in memory stays as it is."""
        if isinstance(self.source, StreamingRenderer):
            self.source.close()
        if isinstance(self.model, Scene):
            self.model.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _draw(self, camera: Camera, pose: Float64) -> Picture:
        bias = 0.0 if isinstance(self.source, ModelRenderer) else self.config.lod_bias
        return self.source.render(camera, pose, affine=self.affine, lod_bias=bias)

    def _camera(self, intrinsics: Any) -> Camera:
        return as_camera(intrinsics, self.config.image_width, self.config.image_height)


def render_demo_images(
    renderer: InfNeRFRenderer, num_views: int = 8, output_dir: str | Path = "demo_renders"
) -> list[Path]:
    """Draw `num_views` pictures around the scene as frame_000000.png, … in `output_dir`; returns the files.

    With `save_depth` or `save_alpha` those go into folders beside it.
    """
    renderer.render_video(renderer.demo_path(num_views), None, output_dir)
    return sorted(Path(output_dir).glob("frame_*.png"))[:num_views]


def _vector(values: Any) -> Float64:
    vector = np.asarray(values.detach().cpu() if isinstance(values, torch.Tensor) else values, np.float64)
    check_shape("vector", vector, (3,))
    return vector


def _tensors(picture: Picture) -> dict[str, Tensor]:
    return {
        "rgb": torch.from_numpy(picture.rgb),
        "depth": torch.from_numpy(picture.depth),
        "alpha": torch.from_numpy(1.0 - picture.transmittance),
        "level": torch.from_numpy(picture.level),
    }
