"""`save` and `from_scene`: nothing is lost between a model and a scene store."""

from pathlib import Path

import numpy as np
import pytest
import torch
import zarr
from api.api_models import TINY, some_rays, tiny_model
from rendering.random_scenes import CAMERA as MANY_CAMERA
from rendering.random_scenes import full_keys, make_scene, near_keys, pose
from torch import nn

from infnerf_tiles.api import InfNeRF, InfNeRFConfig, InfNeRFRenderer, InfNeRFRendererConfig, Scene, StreamingRenderer
from infnerf_tiles.api.scenes import settle
from infnerf_tiles.errors import SettingsError, StoreError
from infnerf_tiles.geometry.camera import Camera
from infnerf_tiles.geometry.rotation import look_at
from infnerf_tiles.store.scene_store import SceneStore

CAMERA = Camera("PINHOLE", 40, 30, (45.0, 45.0, 20.0, 15.0))
POSE = look_at(np.array([[2.4, 1.0, 0.9]]), np.zeros((1, 3)), np.array([0.0, 0.0, 1.0]))[0]


def _bits_equal(a: InfNeRF, b: InfNeRF) -> None:
    assert list(a.state_dict()) == list(b.state_dict())
    for name, value in a.state_dict().items():
        assert torch.equal(value, b.state_dict()[name]), name


def _trained(seed: int) -> InfNeRF:
    model = tiny_model(seed=seed, scene_bound=1.3)
    rng = np.random.default_rng(seed)
    model.lambda_max.copy_(torch.from_numpy(rng.uniform(0.0, 2.0, model.num_nodes).astype(np.float32)))
    model.occupancy.copy_(torch.from_numpy(rng.integers(0, 256, tuple(model.occupancy.shape)).astype(np.uint8)))
    return model


def test_a_saved_model_comes_back_bit_by_bit(tmp_path: Path) -> None:
    model = _trained(1)
    before = model.state_dict()["grid.tables"].clone()
    model.save(tmp_path / "a.zarr")
    again = InfNeRF.from_scene(tmp_path / "a.zarr")
    _bits_equal(model, again)
    assert again.root == model.root
    assert again.gsd_ref == model.gsd_ref
    # what a scene keeps is float16
    torch.testing.assert_close(model.grid.tables.detach(), before, rtol=1e-3, atol=1e-6)  # type: ignore[arg-type]
    again.save(tmp_path / "b.zarr")
    with SceneStore.open(tmp_path / "a.zarr") as a, SceneStore.open(tmp_path / "b.zarr") as b:
        ia, ib = a.read_index(), b.read_index()
        assert ia.same_as(ib)
        assert np.array_equal(a.read_base(0), b.read_base(0))
        for slot in ia.slots.tolist():
            assert np.array_equal(a.read_node(slot), b.read_node(slot))
            assert np.array_equal(a.read_occupancy(slot), b.read_occupancy(slot))


def test_settling_changes_nothing_to_see_and_nothing_at_all_the_second_time() -> None:
    model = _trained(2)
    with torch.no_grad():
        before = model(*some_rays(64), focal_length=40.0)
    settle(model)
    with torch.no_grad():
        after = model(*some_rays(64), focal_length=40.0)
    for name in ("rgb", "alpha"):
        torch.testing.assert_close(before[name], after[name], rtol=0.0, atol=5e-3)
    once = {name: value.clone() for name, value in model.state_dict().items()}
    settle(model)
    assert all(torch.equal(value, once[name]) for name, value in model.state_dict().items())


def test_model_and_scene_draw_the_same_picture(tmp_path: Path) -> None:
    model = _trained(3)
    model.save(tmp_path / "s.zarr")
    with Scene.open(tmp_path / "s.zarr") as scene:
        drawn = InfNeRFRenderer(model).render_image(POSE, CAMERA)
        with InfNeRFRenderer.from_checkpoint(tmp_path / "s.zarr") as renderer:
            streamed = renderer.render_image(POSE, CAMERA)
        with StreamingRenderer(scene, memory_budget="1MB") as streaming:
            tight = torch.from_numpy(streaming.render(CAMERA, POSE).rgb)
    for name in ("rgb", "alpha", "depth", "level"):
        assert torch.equal(drawn[name].nan_to_num(-1.0), streamed[name].nan_to_num(-1.0)), name
    assert torch.equal(tight, drawn["rgb"])
    assert float(drawn["alpha"].max()) > 0.1


def test_scenes_of_many_treelets_come_back_too() -> None:
    store = zarr.storage.MemoryStore()
    make_scene(store, keys=np.union1d(full_keys(2), near_keys(3, (0.0, 0.0, 0.0))), seed=4)
    model = InfNeRF.from_scene(store)
    assert len(model.top_keys) > 1
    copy = zarr.storage.MemoryStore()
    model.save(copy)
    _bits_equal(model, InfNeRF.from_scene(copy))
    # the hand-over between treelets included
    with Scene.open(copy) as scene, InfNeRFRenderer(scene) as renderer:
        view = pose((30.0, 22.0, 18.0))
        streamed = renderer.render_image(view, MANY_CAMERA)
        drawn = InfNeRFRenderer(model).render_image(view, MANY_CAMERA)
    assert torch.equal(streamed["rgb"], drawn["rgb"])
    assert float(drawn["alpha"].max()) > 0.1
    out = model(torch.tensor([[30.0, 22.0, 18.0]]).expand(50, 3), torch.randn(50, 3) - torch.tensor([10.0, 8.0, 6.0]),
                focal_length=60.0)  # fmt: skip
    out["rgb"].sum().backward()
    assert all(p.grad is not None and bool(torch.isfinite(p.grad).all()) for p in model.grid.parameters())


def test_custom_parts_and_taken_places_are_refused(tmp_path: Path) -> None:
    class Other(nn.Module):
        pass

    with pytest.raises(SettingsError, match="custom"):
        InfNeRF(InfNeRFConfig(**TINY), decoder=Other()).save(tmp_path / "x.zarr")
    assert not (tmp_path / "x.zarr").exists()
    tiny_model(seed=1).save(tmp_path / "y.zarr")
    with pytest.raises(StoreError, match="already"):
        tiny_model(seed=1).save(tmp_path / "y.zarr")
    with pytest.raises(SettingsError, match="photos"):
        tiny_model(seed=1, num_photos=4).save(tmp_path / "z.zarr")


@pytest.mark.parametrize("changes", [{"render_chunk_size": 7}, {"max_rays_per_batch": 100}, {"max_rays_per_batch": 13}])
def test_the_picture_does_not_depend_on_chunks_or_batches(changes: dict[str, int]) -> None:
    model = _trained(5)
    size = {"image_width": 40, "image_height": 30}
    whole = InfNeRFRenderer(model, InfNeRFRendererConfig(**{**size, "render_chunk_size": 4096}))  # type: ignore[arg-type]
    parts = InfNeRFRenderer(model, InfNeRFRendererConfig(**{**size, **changes}))  # type: ignore[arg-type]
    together, apart = whole.render_image(POSE, 45.0), parts.render_image(POSE, 45.0)
    for name, value in together.items():
        assert torch.equal(value.nan_to_num(-1.0), apart[name].nan_to_num(-1.0)), name
