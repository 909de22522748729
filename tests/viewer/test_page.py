"""The viewer's page in headless Chromium."""

import io
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from rendering.random_scenes import make_scene, near_keys

pytest.importorskip("viser")
from viewer.chromium import PROGRAM, Page, chromium
from web_servers import serving

from infnerf_tiles.rendering.scene import Scene
from infnerf_tiles.store.remote import Patience, open_remote
from infnerf_tiles.viewer.app import Viewer

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(PROGRAM is None, reason="no Chromium here"),
    # of the page server's own libraries
    pytest.mark.filterwarnings("default"),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("page") / "scene.zarr"
    make_scene(place, keys=near_keys(3, (2.0, 2.0, 2.0), 1.5), density=1.0, fill=0.3).close()
    return place


@pytest.fixture(scope="module")
def viewer(folder: Path) -> Iterator[Viewer]:
    with Scene.open(folder) as scene, Viewer(scene, port=0, threads=1, max_width=320) as running:
        yield running


def picture(page: Page) -> np.ndarray:
    """float32[h, w, 3] of the left part of the window, which the controls do not cover."""
    image = np.asarray(Image.open(io.BytesIO(page.screenshot())).convert("RGB"), np.float32)
    return image[100:500, 330:560]


def finished(page: Page) -> np.ndarray:
    page.wait_for_text("complete after", 90)
    page.run("new Promise(done => setTimeout(done, 500))")
    return picture(page)


def status(page: Page) -> str:
    return next(line for line in page.text().splitlines() if "samples" in line)


def test_the_page_shows_the_scene_and_follows_slider_and_mouse(viewer: Viewer) -> None:
    with chromium() as page:
        page.open(viewer.url)
        page.wait_for_text("samples", 90)
        first = finished(page)
        assert first.std() > 10.0, "the picture is empty"
        assert viewer.num_visitors == 1
        # the level-of-detail slider is the first one; two levels down
        before = status(page)
        page.run("document.querySelectorAll('[role=slider]')[0].focus()")
        page.press("ArrowLeft", 37, times=12)
        page.wait(f"!document.body.innerText.includes({before!r})")
        coarse = finished(page)
        assert np.abs(coarse - first).mean() > 2.0, "the slider changed nothing"
        # other samples make a coarser picture
        samples = [int(text.split(" ms, ")[1].split(" ")[0].replace(",", "")) for text in (before, status(page))]
        assert samples[1] != samples[0]
        page.drag((420.0, 300.0), (480.0, 330.0))
        page.run("new Promise(done => setTimeout(done, 700))")
        turned = finished(page)
        assert np.abs(turned - coarse).mean() > 2.0, "the mouse changed nothing"


def test_visitors_share_one_cache(viewer: Viewer) -> None:
    with chromium() as one, chromium() as two:
        one.open(viewer.url)
        finished(one)
        with viewer.shared.use() as renderer:
            read = renderer.cache.counters.bytes_read
        two.open(viewer.url)
        second = finished(two)
        assert second.std() > 10.0
        with viewer.shared.use() as renderer:
            assert renderer.cache.counters.bytes_read == read
        assert viewer.num_visitors == 2


def test_a_server_that_goes_away_leaves_the_coarse_picture(tmp_path: Path) -> None:
    folder = tmp_path / "scene.zarr"
    # thin matter: behind opaque one nobody would miss the finer nodes
    make_scene(folder, keys=near_keys(3, (2.0, 2.0, 2.0), 1.5), density=-2.0, fill=0.3).close()
    hasty = Patience(attempts=2, pause=0.01, stall=0.3)
    with serving(folder) as server:
        scene = Scene.open(open_remote(server.url, "far away", patience=hasty))
        viewer = Viewer(scene, port=0, threads=1, max_width=320)
        with viewer.shared.use() as renderer:  # as much as a first answer needs
            keys = scene.octree.keys[scene.octree.levels < 2]
            renderer.cache.ensure(keys)
    with viewer, chromium() as page:
        page.open(viewer.url)
        page.wait_for_text("cannot draw finer now", 60)
        assert "far away" in page.text()
        # a coarser level is in memory, and shown
        page.run("document.querySelectorAll('[role=slider]')[0].focus()")
        page.press("Home", 36)
        assert finished(page).std() > 5.0
    scene.close()


def test_the_token_is_asked_for_beyond_this_machine(folder: Path) -> None:
    with Scene.open(folder) as scene, Viewer(scene, host="0.0.0.0", port=0, threads=1, max_width=320) as viewer:
        address = viewer.url.replace("0.0.0.0", "127.0.0.1")
        with chromium() as page:
            page.open(address.split("?")[0])
            page.wait_for_text("needs the token")
            page.open(address)
            assert finished(page).std() > 10.0
            assert "token" not in page.run("location.href")


def test_chromium_was_found() -> None:
    assert PROGRAM is not None
    assert shutil.which(PROGRAM)


def test_nobody_opens_a_tunnel(viewer: Viewer, caplog: pytest.LogCaptureFixture) -> None:
    assert viewer._server.request_share_url() is None
    assert "refused" in caplog.text


def test_photos_path_and_boxes_reach_the_page(viewer: Viewer) -> None:
    """What a click does, called as the click would: fly to a photo, keep key views, lay boxes over the picture."""
    with chromium() as page:
        page.open(viewer.url)
        first = finished(page)
        visitor = max(viewer._visitors.items())[1]
        visitor._toggle_photos(True)
        visitor._boxes.value = "by level"
        visitor._update_boxes()
        visitor._add_key()
        photo = viewer.shared.scene.cameras.camera_to_world[2]
        visitor._fly_to(photo)
        page.run("new Promise(done => setTimeout(done, 1500))")
        finished(page)
        view = visitor._view()
        assert view is not None
        np.testing.assert_allclose(view.pose, photo, atol=1e-3)
        visitor._add_key()
        assert len(visitor._keys) == 2
        assert np.abs(picture(page) - first).mean() > 2.0
        visitor._toggle_photos(False)
        visitor._remove_keys(2)
        assert visitor._keys == []
