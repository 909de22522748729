"""One browser: its controls, and the thread that draws for it – coarse at once, finer while the camera rests."""

import logging
import threading
import time
from contextlib import suppress
from dataclasses import dataclass
from functools import partial

import numpy as np
import viser

from infnerf_tiles.arrays import Float64, UInt8
from infnerf_tiles.errors import BudgetError, InfnerfError
from infnerf_tiles.rendering.appearance import appearance_of
from infnerf_tiles.rendering.camera_paths import flythrough
from infnerf_tiles.rendering.node_cache import Aborted
from infnerf_tiles.rendering.path_files import format_path_file
from infnerf_tiles.rendering.renderer import Picture
from infnerf_tiles.rendering.scene import Scene
from infnerf_tiles.rendering.video import depth_to_image, level_heat_map, to_uint8
from infnerf_tiles.units import format_bytes
from infnerf_tiles.viewer.overlays import Overlays
from infnerf_tiles.viewer.placement import Placement, page_camera
from infnerf_tiles.viewer.shared import SharedRenderer

MODES = ("colour", "depth", "level of detail")
BOXES = ("off", "by level", "by state")
_REDUCTIONS = (8, 4, 2, 1)  # of the picture's edges, from the answer at once to the full picture
_SETTLE_SECONDS = 0.05  # a camera that moved so recently is still moving
_RETRY_SECONDS = 5.0  # after a failure
_EXPORT_WIDTH = 1280
_FLY_SECONDS = 0.6
_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class View:
    """What a visitor wants to see. pose: float64[3, 4], world; fov: vertical, radians; aspect: width / height."""

    pose: Float64
    fov: float
    aspect: float
    width: int


def image_of(picture: Picture, mode: str, deepest: int) -> UInt8:
    """uint8[h, w, 3] of one of MODES."""
    if mode == "depth":
        return depth_to_image(picture.depth)
    if mode == "level of detail":
        return level_heat_map(picture.level, deepest)
    return to_uint8(picture.rgb)


class Visitor:
    """Controls and pictures of one client; `start` begins, `stop` ends."""

    def __init__(
        self, client: viser.ClientHandle, shared: SharedRenderer, placement: Placement, max_width: int
    ) -> None:
        self._client = client
        self._shared = shared
        self._placement = placement
        self._max_width = max_width
        self._overlays = Overlays(client, shared.scene, placement)
        self._keys: list[Float64] = []
        self._changes = threading.Condition()
        self._version = 0
        self._moved = 0.0
        self._ended = False
        self._thread = threading.Thread(target=self._run, name=f"visitor-{client.client_id}", daemon=True)
        self._add_controls()

    def start(self) -> None:
        """Begin to draw."""
        self._client.camera.on_update(lambda _: self._changed(moved=True))
        self._thread.start()

    def stop(self) -> None:
        """End drawing; returns at once."""
        with self._changes:
            self._ended = True
            self._version += 1
            self._changes.notify_all()

    @property
    def _scene(self) -> Scene:
        return self._shared.scene

    # --- controls -----------------------------------------------------------------------------------------------

    def _add_controls(self) -> None:
        gui = self._client.gui
        self._status = gui.add_markdown("*waiting for the first picture*")
        with gui.add_folder("Picture"):
            self._mode = gui.add_dropdown("Show", MODES, initial_value=MODES[0])
            self._bias = gui.add_slider(
                "Level of detail", min=-6.0, max=2.0, step=0.25, initial_value=0.0,
                hint="Added to the level that a pixel asks for; lower is coarser and faster.",
            )  # fmt: skip
            names = ("mean", "none", *self._scene.names[:100])
            self._appearance = gui.add_dropdown("Colours as in", names, initial_value="mean")
            self._width = gui.add_slider(
                "Largest width", min=160, max=self._max_width, step=16, initial_value=min(960, self._max_width)
            )
        with gui.add_folder("Nodes"):
            smallest, budget = self._shared.smallest / 2**20, self._shared.memory_budget / 2**20
            low, high = float(np.ceil(np.log2(smallest) * 4) / 4), float(np.ceil(np.log2(max(budget, smallest)) + 3))
            self._budget = gui.add_slider(
                "Memory, log2 MiB", min=low, max=max(high, low + 0.25), step=0.25,
                initial_value=float(np.clip(np.round(np.log2(budget) * 4) / 4, low, high)),
                hint="For the nodes of all visitors; the picture is the same with any.",
            )  # fmt: skip
            self._boxes = gui.add_dropdown("Boxes", BOXES, initial_value=BOXES[0])
            self._numbers = gui.add_markdown("")
        with gui.add_folder("Photos", expand_by_default=False):
            photos = gui.add_checkbox("Show the cameras", initial_value=False, hint="Click one to fly there.")
        for control in (self._mode, self._bias, self._appearance, self._width):
            control.on_update(lambda _: self._changed())
        self._boxes.on_update(lambda _: self._update_boxes())
        self._budget.on_update(lambda _: self._resize())
        photos.on_update(lambda _: self._toggle_photos(photos.value))
        self._add_path_controls()

    def _add_path_controls(self) -> None:
        gui = self._client.gui
        with gui.add_folder("Camera path", expand_by_default=False):
            gui.add_button("Add this view").on_click(lambda _: self._add_key())
            gui.add_button("Remove the last").on_click(lambda _: self._remove_keys(1))
            gui.add_button("Remove all").on_click(lambda _: self._remove_keys(len(self._keys)))
            self._loop = gui.add_checkbox("Closed", initial_value=False)
            self._loop.on_update(lambda _: self._draw_path())
            self._frames = gui.add_number("Frames", initial_value=120, min=1, max=100_000, step=1)
            gui.add_button("Fly along it").on_click(lambda _: self._preview())
            gui.add_button("Save for render --path").on_click(lambda _: self._export())

    def _changed(self, *, moved: bool = False) -> None:
        with self._changes:
            self._version += 1
            if moved:
                self._moved = time.monotonic()
            self._changes.notify_all()

    def _resize(self) -> None:
        try:
            self._shared.resize(max(int(2.0**self._budget.value * 2**20), self._shared.smallest))
        except BudgetError as error:
            self._client.add_notification("Memory", str(error), auto_close_seconds=8.0)
        self._changed()

    def _toggle_photos(self, shown: bool) -> None:
        if shown:
            self._overlays.show_photos(lambda photo: self._fly_to(self._scene.cameras.camera_to_world[photo]))
        else:
            self._overlays.hide_photos()

    def _update_boxes(self) -> None:
        if self._boxes.value == BOXES[0]:
            self._overlays.hide_boxes()
            return
        with self._shared.use() as renderer:
            resident, coming = renderer.cache.resident_keys, renderer.cache.coming_keys
        self._overlays.show_boxes(resident, coming, by_level=self._boxes.value == BOXES[1])

    # --- the camera ---------------------------------------------------------------------------------------------

    def _view(self) -> View | None:
        camera = self._client.camera
        try:
            aspect, fov = float(camera.aspect), float(camera.fov)
            pose = self._placement.pose(camera.wxyz, camera.position)
            wide = int(camera.image_width)
        except (AssertionError, ZeroDivisionError):  # the page has not told yet
            return None
        if not (0.05 < aspect < 20.0 and 0.01 < fov < 3.1 and np.isfinite(pose).all()):
            return None
        return View(pose=pose, fov=fov, aspect=aspect, width=max(16, min(int(self._width.value), wide or 960)))

    def _set_camera(self, pose: Float64) -> None:
        camera = self._client.camera
        wxyz, position = self._placement.page_pose(pose)
        ahead = float(np.linalg.norm(np.asarray(camera.look_at) - np.asarray(camera.position))) or 1.0
        with self._client.atomic():
            camera.position = position
            camera.wxyz = wxyz
            camera.look_at = position + pose[:, 2] * ahead

    def _fly_to(self, pose: Float64) -> None:
        view = self._view()
        if view is None:
            return
        self._fly(np.stack([view.pose, pose]), frames=12, seconds=_FLY_SECONDS)

    def _fly(self, keys: Float64, *, frames: int, seconds: float, loop: bool = False) -> None:
        for pose in flythrough(page_camera(1.0, 1.0, 16), keys, frames=frames, loop=loop).camera_to_world:
            self._set_camera(pose)
            self._client.flush()
            time.sleep(seconds / frames)

    # --- the camera path ----------------------------------------------------------------------------------------

    def _add_key(self) -> None:
        view = self._view()
        if view is not None:
            self._keys.append(view.pose)
            self._draw_path()

    def _remove_keys(self, number: int) -> None:
        del self._keys[len(self._keys) - number :]
        self._draw_path()

    def _draw_path(self) -> None:
        view = self._view()
        if view is not None:
            self._overlays.show_path(self._keys, view.fov, view.aspect, loop=self._loop.value)

    def _preview(self) -> None:
        if len(self._keys) > 1:
            frames = int(min(self._frames.value, 300))
            self._fly(np.array(self._keys), frames=frames, seconds=frames / 30.0, loop=self._loop.value)

    def _export(self) -> None:
        view = self._view()
        if view is None or not self._keys:
            self._client.add_notification("Camera path", "Add a view first.", auto_close_seconds=5.0)
            return
        camera = page_camera(view.fov, view.aspect, _EXPORT_WIDTH)
        frames, loop = int(self._frames.value), bool(self._loop.value)
        text = format_path_file(camera, np.array(self._keys), 30.0, frames=frames, loop=loop)
        self._client.send_file_download("path.json", text.encode(), save_immediately=True)

    # --- drawing ------------------------------------------------------------------------------------------------

    def _run(self) -> None:
        seen = -1
        while True:
            with self._changes:
                self._changes.wait_for(partial(self._differs, seen))
                if self._over():
                    return
                seen = self._version
            failed = ""
            try:
                self._draw(seen)
            except Aborted:
                if self._shared.wanted_back:
                    self._changed()
                continue
            except InfnerfError as error:  # a server that went away, for one: what is shown stays
                failed = str(error)
            except Exception as error:
                if self._over():  # the browser is gone
                    return
                _log.exception("viewer: a picture could not be drawn")
                failed = f"{type(error).__name__}: {error}"
            if failed:
                _log.warning("viewer: %s", failed)
                self._status.content = f"**cannot draw finer now:** {failed}"
                with self._changes:
                    if not self._changes.wait_for(partial(self._differs, seen), _RETRY_SECONDS):
                        self._version += 1

    def _draw(self, version: int) -> None:
        """Draw the view of now in all sizes, as long as nothing changes."""
        started = time.monotonic()
        for reduction in _REDUCTIONS:
            view = self._view()
            if view is None:
                return
            if reduction < _REDUCTIONS[0]:
                self._let_settle(version)
            camera = page_camera(view.fov, view.aspect, max(16, view.width // reduction))
            mode, bias = self._mode.value, float(self._bias.value)
            affine = appearance_of(self._scene, self._appearance.value)
            with self._shared.use() as renderer:
                began = time.monotonic()
                picture = renderer.render(
                    camera, view.pose, lod_bias=bias, affine=affine,
                    # the first answer is given even to a camera that moves on
                    abort=partial(self._outdated, version, reduction),
                )  # fmt: skip
                seconds = time.monotonic() - began
                counters, cache = renderer.cache.counters, renderer.cache
                budget = format_bytes(renderer.memory_budget)
                numbers = (
                    f"{cache.num_nodes:,} nodes, {format_bytes(cache.num_bytes)} of {budget}"
                    f" (peak {format_bytes(cache.peak_bytes)})  \n{format_bytes(counters.bytes_read)} read, "
                    f"hit rate {counters.hit_rate:.1%}, {counters.evictions:,} dropped"
                )
                damaged = len(cache.damaged_nodes)
            self._send(picture, mode)
            size = f"{camera.width}x{camera.height}"
            rest = "finer follows" if reduction > 1 else f"complete after {time.monotonic() - started:.1f} s"
            self._status.content = f"{size} in {seconds * 1000:.0f} ms, {picture.num_samples:,} samples; {rest}"
            self._numbers.content = numbers + (f"  \n**{damaged} damaged nodes**" if damaged else "")
            self._update_boxes()

    def _send(self, picture: Picture, mode: str) -> None:
        depth = np.where(np.isfinite(picture.depth), picture.depth * self._placement.scale, np.inf)
        self._client.scene.set_background_image(
            image_of(picture, mode, self._scene.octree.depth), format="jpeg", jpeg_quality=88, depth=depth
        )
        with suppress(Exception):  # a browser that has just gone
            self._client.flush()

    def _let_settle(self, version: int) -> None:
        with self._changes:
            rest = self._moved + _SETTLE_SECONDS - time.monotonic()
            if rest > 0:
                self._changes.wait_for(lambda: self._version != version, rest)
        if self._outdated(version, 1):
            raise Aborted

    def _differs(self, version: int) -> bool:
        return self._version != version or self._ended

    def _over(self) -> bool:
        return self._ended

    def _outdated(self, version: int, reduction: int) -> bool:
        if self._ended or self._shared.wanted_back:
            return True
        return reduction < _REDUCTIONS[0] and self._version != version
