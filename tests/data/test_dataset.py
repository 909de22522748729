"""Reading whole data sets: what is used, what is rejected and why, what is refused.

One file, longer than others: each test is one rule of what makes a photo usable.
"""

import os
import shutil
import unicodedata
from pathlib import Path

import numpy as np
import pytest
from capture_files import (
    CAMERA,
    HEIGHT,
    PINHOLE,
    WIDTH,
    circle,
    opengl_matrix,
    texture,
    write_capture,
    write_jpeg,
    write_json,
    write_png,
)

from infnerf_tiles.arrays import Float64
from infnerf_tiles.data.checks import clean_poses
from infnerf_tiles.data.dataset import PosedPhotos, read_dataset
from infnerf_tiles.data.photos import PhotoCache
from infnerf_tiles.errors import DatasetError, SettingsError
from infnerf_tiles.geometry.camera import Camera


def reasons(photos: PosedPhotos) -> dict[str, str]:
    return {rejected.name: rejected.reason for rejected in photos.rejected}


def images_txt(folder: Path, *lines: str) -> None:
    """A text model's images: one line each, without observations."""
    (folder / "sparse/0/images.txt").write_text("\n\n".join(lines) + "\n\n", encoding="utf-8")


def test_a_capture_is_read_in_the_order_of_names(tmp_path: Path) -> None:
    names = ("b/2.JPG", "a/дом.jpg", "c.jpg", "a/1 x.jpg", "b/10.jpg")
    capture = write_capture(tmp_path, names=names)
    photos = read_dataset(tmp_path, test_every=2)
    assert photos.names == tuple(sorted(names))
    assert photos.rejected == ()
    assert photos.root == tmp_path
    order = [names.index(name) for name in photos.names]
    np.testing.assert_allclose(photos.cameras.camera_to_world, capture.cameras.camera_to_world[order], atol=1e-14)
    for row, old in enumerate(order):
        assert photos.cameras.camera(row) == capture.cameras.camera(old)
        assert photos.paths[row] == tmp_path / "images" / names[old]
    assert photos.is_test.tolist() == [True, False, True, False, True]
    assert photos.georeference is None
    assert photos.mask_paths == (None,) * 5


def test_tracks_follow_the_photos(tmp_path: Path) -> None:
    capture = write_capture(tmp_path, names=("d.jpg", "c.jpg", "b.jpg", "a.jpg"))
    (tmp_path / "images/c.jpg").unlink()
    photos = read_dataset(tmp_path)
    assert photos.names == ("a.jpg", "b.jpg", "d.jpg")
    assert photos.points is not None
    assert photos.points.num_points == capture.points.num_points
    seen_by_gone = 0
    for i in range(capture.points.num_points):
        before = capture.points.track_photos[slice(*capture.points.track_offsets[i : i + 2])]
        after = photos.points.track_photos[slice(*photos.points.track_offsets[i : i + 2])]
        old_names = [capture.names[j] for j in before]
        assert [photos.names[j] for j in after] == [name for name in old_names if name != "c.jpg"]
        seen_by_gone += "c.jpg" in old_names
    assert seen_by_gone > 0


def test_reduced_photos_fit_their_cameras(tmp_path: Path) -> None:
    write_capture(tmp_path)
    photos = read_dataset(tmp_path, downscale=7)
    assert photos.cameras.camera(0) == CAMERA.scaled_down(7)
    cache = PhotoCache(1 << 20)
    for i in range(photos.num_photos):
        assert cache.get(photos.photo_file(i)).rgb.shape == (HEIGHT // 7, WIDTH // 7, 3)
    assert photos.photo_file(1, alpha_as_mask=True).alpha_as_mask


def test_colmap_and_transforms_give_the_same_photos(tmp_path: Path) -> None:
    capture = write_capture(tmp_path / "colmap", cameras=(PINHOLE,))
    shutil.copytree(tmp_path / "colmap/images", tmp_path / "transforms/images")
    frames = [
        {"file_path": f"images/{name}", "transform_matrix": opengl_matrix(pose)}
        for name, pose in zip(capture.names, capture.cameras.camera_to_world, strict=True)
    ]
    write_json(tmp_path / "transforms/transforms.json", {"fl_x": 70, "w": WIDTH, "h": HEIGHT, "frames": frames})
    a, b = read_dataset(tmp_path / "colmap"), read_dataset(tmp_path / "transforms")
    np.testing.assert_allclose(a.cameras.camera_to_world, b.cameras.camera_to_world, atol=1e-14)
    assert a.cameras.cameras == b.cameras.cameras
    assert [f"images/{name}" for name in a.names] == list(b.names)
    np.testing.assert_array_equal(a.is_test, b.is_test)
    # with both in one folder, the model with tracks is taken
    shutil.copy(tmp_path / "transforms/transforms.json", tmp_path / "colmap")
    assert read_dataset(tmp_path / "colmap").points is not None


def test_photos_elsewhere_and_the_models_own_folder(tmp_path: Path) -> None:
    write_capture(tmp_path / "data")
    model = tmp_path / "data/sparse/0"
    assert read_dataset(model).paths[0] == (tmp_path / "data/images/photo_00.jpg")
    (tmp_path / "data/images").rename(tmp_path / "photos")
    with pytest.raises(DatasetError, match=r"data/images: expected a folder with the photos .*; give --images"):
        read_dataset(tmp_path / "data")
    assert read_dataset(tmp_path / "data", images=tmp_path / "photos").num_photos == 6
    with pytest.raises(DatasetError, match="nowhere: expected a folder with the photos, got none; check --images"):
        read_dataset(tmp_path / "data", images=tmp_path / "nowhere")


def test_without_checks_the_photos_need_not_exist(tmp_path: Path) -> None:
    write_capture(tmp_path, photos=False)
    photos = read_dataset(tmp_path, check_photos=False)
    assert photos.num_photos == 6
    assert photos.paths[0] == tmp_path / "images/photo_00.jpg"


def test_bad_photo_files_are_rejected_with_their_reason(tmp_path: Path) -> None:
    write_capture(tmp_path, names=tuple(f"{c}.jpg" for c in "abcdefg"), cameras=(PINHOLE,))
    images = tmp_path / "images"
    whole = (images / "a.jpg").read_bytes()
    (images / "a.jpg").write_bytes(whole[: len(whole) // 2])
    (images / "b.jpg").write_bytes(b"")
    (images / "c.jpg").write_bytes(b"no photo")
    (images / "d.jpg").unlink()
    write_jpeg(images / "e.jpg", WIDTH // 2, WIDTH // 2)
    write_jpeg(images / "f.jpg", HEIGHT, WIDTH)
    photos = read_dataset(tmp_path)
    assert photos.names == ("g.jpg",)
    got = reasons(photos)
    assert "truncated" in got["a.jpg"]
    assert "empty file" in got["b.jpg"]
    assert "damaged" in got["c.jpg"]
    assert got["d.jpg"] == f"the file does not exist: {images / 'd.jpg'}"
    assert got["e.jpg"].startswith("the photo is 40x40, its camera is 80x60, which is no common scale; use the photos")
    assert got["f.jpg"].startswith("the photo is 60x80, its camera is 80x60; the photo was rotated")


def test_bad_names_are_rejected_and_never_opened(tmp_path: Path) -> None:
    write_capture(tmp_path / "data", text=True)
    write_jpeg(tmp_path / "secret.jpg")
    bad = [
        "../../secret.jpg",
        "x/../../../secret.jpg",
        str(tmp_path / "secret.jpg"),
        "C:\\secret.jpg",
        "..\\..\\secret.jpg",
    ]
    good = "photo_00.jpg"
    images_txt(tmp_path / "data", *(f"{i} 1 0 0 0 0 0 {i} 1 {name}" for i, name in enumerate([*bad, good, good])))
    for check in (True, False):
        photos = read_dataset(tmp_path / "data", check_photos=check)
        assert photos.names == (good,)
        got = reasons(photos)
        assert set(got) == {*bad, good}
        assert got[good] == "it is listed more than once"
        assert all("absolute path" in got[name] for name in (bad[2], bad[3]))
        assert all("leaves its folder" in got[name] for name in (bad[0], bad[1], bad[4]))


def test_a_name_that_is_not_utf8_is_rejected(tmp_path: Path) -> None:
    write_capture(tmp_path, text=True)
    path = tmp_path / "sparse/0/images.txt"
    path.write_bytes(path.read_bytes().replace(b"photo_01", b"photo_\xff"))
    (rejected,) = read_dataset(tmp_path).rejected
    assert "not valid UTF-8" in rejected.reason


def test_other_spellings_of_the_same_name_are_found(tmp_path: Path) -> None:
    """Copying between systems changes the Unicode form, and Windows writes backslashes."""
    composed = unicodedata.normalize("NFC", "süd.jpg")
    decomposed = unicodedata.normalize("NFD", composed)
    assert composed != decomposed
    write_capture(tmp_path, text=True)
    images_txt(tmp_path, f"1 1 0 0 0 0 0 0 1 {composed}", "2 1 0 0 0 0 0 0 1 north\\a.jpg")
    paths = {write_jpeg(tmp_path / "images" / decomposed), write_jpeg(tmp_path / "images/north/a.jpg")}
    photos = read_dataset(tmp_path)
    assert photos.rejected == ()
    assert set(photos.paths) == paths


def test_bad_poses_are_rejected_and_rounded_ones_repaired(tmp_path: Path) -> None:
    poses = circle(6)
    matrices = [np.array(opengl_matrix(pose)) for pose in poses]
    matrices[0][0, 3] = np.nan
    matrices[1][1, 1] = np.inf
    matrices[2][:3, 0] *= -1
    matrices[3][:3, :3] *= 1.1
    matrices[4] = np.round(matrices[4], 3)
    assert np.abs(matrices[4][:3, :3] @ matrices[4][:3, :3].T - np.eye(3)).max() > 1e-4
    frames = [{"file_path": f"{i}.jpg", "transform_matrix": m.tolist()} for i, m in enumerate(matrices)]
    write_json(tmp_path / "transforms.json", {"fl_x": 70, "w": WIDTH, "h": HEIGHT, "frames": frames})
    for i in range(6):
        write_jpeg(tmp_path / f"{i}.jpg")
    photos = read_dataset(tmp_path)
    assert photos.names == ("4.jpg", "5.jpg")
    got = reasons(photos)
    assert "not finite" in got["0.jpg"]
    assert "not finite" in got["1.jpg"]
    assert "mirrored" in got["2.jpg"]
    assert "not a rotation (off by 0.21" in got["3.jpg"]
    rotation = photos.cameras.camera_to_world[0, :, :3]
    np.testing.assert_allclose(rotation @ rotation.T, np.eye(3), atol=1e-14)
    np.testing.assert_allclose(rotation, poses[4, :, :3], atol=2e-3)
    np.testing.assert_array_equal(photos.cameras.camera_to_world[1], poses[5])


def _posed(centres: Float64) -> Float64:
    """Poses without a turn at float64[n, 3] centres."""
    return np.concatenate([np.tile(np.eye(3), (len(centres), 1, 1)), centres[:, :, None]], axis=2)


@pytest.mark.parametrize(
    ("value", "told"),
    [
        (1e300, "a coordinate of 1e+300"),
        (-1e155, "coordinate"),
        (1e9, "away from the middle of all photos, nine in ten are within"),
    ],
)
@pytest.mark.parametrize("count", [3, 12, 200])
@pytest.mark.parametrize("offset", [0.0, 5.7e6])
def test_a_position_out_of_this_world_is_rejected_and_no_other(
    value: float, told: str, count: int, offset: float
) -> None:
    centres = np.random.default_rng(count).uniform(-3.0, 3.0, (count, 3)) + offset
    centres[1, 2] = value
    problems = clean_poses(_posed(centres))[1]
    assert told in str(problems[1])
    assert [i for i, problem in enumerate(problems) if problem] == [1]


def test_positions_of_one_place_or_of_a_line_are_no_reason() -> None:
    rng = np.random.default_rng(0)
    tripod = np.tile(np.array([5e5, 5.7e6, 100.0]), (40, 1))
    tripod[:2] += rng.uniform(5.0, 10.0, (2, 3))
    trembling = tripod + rng.uniform(-1e-9, 1e-9, (40, 3))
    road = np.stack([np.geomspace(0.01, 1e5, 60), np.zeros(60), np.zeros(60)], axis=1)
    for centres in (tripod, trembling, road, road[:1], road[:2], road[:0]):
        assert not any(clean_poses(_posed(centres))[1])


@pytest.mark.parametrize("quaternion", ["nan 0 0 0", "0 0 0 0", "inf 0 0 1"])
def test_a_quaternion_without_direction_is_rejected(tmp_path: Path, quaternion: str) -> None:
    write_capture(tmp_path, text=True)
    images_txt(tmp_path, f"1 {quaternion} 0 0 0 1 photo_00.jpg", "2 1 0 0 0 0 0 0 1 photo_01.jpg")
    photos = read_dataset(tmp_path)
    assert photos.names == ("photo_01.jpg",)
    assert "not finite" in reasons(photos)["photo_00.jpg"]


def test_cameras_that_cannot_be_used_reject_their_photos(tmp_path: Path) -> None:
    write_capture(tmp_path, text=True, names=("a.jpg", "b.jpg", "c.jpg"), cameras=(PINHOLE, PINHOLE, PINHOLE))
    (tmp_path / "sparse/0/cameras.txt").write_text(
        "1 PINHOLE 80 60 70 70 40 30\n2 THIN_PRISM_FISHEYE 80 60 70 70 40 30 0 0 0 0 0 0 0 0\n"
        "3 SIMPLE_RADIAL 80 60 40 40 30 -0.9\n"
    )
    photos = read_dataset(tmp_path)
    assert photos.names == ("a.jpg",)
    assert photos.cameras.cameras == (PINHOLE,)
    assert "'THIN_PRISM_FISHEYE'" in reasons(photos)["b.jpg"]
    assert "folds over" in reasons(photos)["c.jpg"]


def test_nothing_usable_is_refused_with_the_commonest_reasons(tmp_path: Path) -> None:
    write_capture(tmp_path)
    for i in range(4):
        (tmp_path / f"images/photo_0{i}.jpg").unlink()
    for i in (4, 5):
        write_jpeg(tmp_path / f"images/photo_0{i}.jpg", 40, 40)
    message = (
        r"got 0 of 6 listed; 4 x the file does not exist: .*images/photo_00\.jpg \(first: photo_00\.jpg\); "
        r"2 x the photo is 40x40, its camera is 80x60.*\(first: photo_04\.jpg\)"
    )
    with pytest.raises(DatasetError, match=message):
        read_dataset(tmp_path)
    write_json(tmp_path / "t/transforms.json", {"frames": []})
    with pytest.raises(DatasetError, match="got 0 of 0 listed; the file lists none"):
        read_dataset(tmp_path / "t")


def test_a_folder_without_a_data_set_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=r"expected a COLMAP model .*transforms\.json.* got none of them"):
        read_dataset(tmp_path)
    with pytest.raises(DatasetError, match="nowhere: expected a folder with posed photos, got none"):
        read_dataset(tmp_path / "nowhere")


def test_a_truncated_model_is_refused(tmp_path: Path) -> None:
    write_capture(tmp_path)
    path = tmp_path / "sparse/0/images.bin"
    path.write_bytes(path.read_bytes()[:-5])
    with pytest.raises(
        DatasetError, match=r"images\.bin: byte \d+: expected .* got .*; the file is truncated or damaged"
    ):
        read_dataset(tmp_path)


@pytest.mark.parametrize("downscale", [0, -1])
def test_a_wrong_downscale_is_refused(tmp_path: Path, downscale: int) -> None:
    with pytest.raises(SettingsError, match=f"data.downscale: expected an integer of at least 1, got {downscale}"):
        read_dataset(tmp_path, downscale=downscale)


def test_a_downscale_that_leaves_nothing_rejects_the_photo(tmp_path: Path) -> None:
    write_capture(tmp_path, names=("a.jpg", "b.jpg"), cameras=(PINHOLE, Camera("PINHOLE", 30, 20, (20, 20, 15, 10))))
    photos = read_dataset(tmp_path, downscale=21)
    assert photos.names == ("a.jpg",)
    assert reasons(photos) == {"b.jpg": "its camera is 30x20, less than one pixel at 1/21 size"}


def test_masks_by_convention(tmp_path: Path) -> None:
    names = ("north/a.jpg", "b.JPG", "c.jpg", "d.jpg")
    write_capture(tmp_path, names=names, cameras=(PINHOLE,))
    mask = np.full((HEIGHT, WIDTH), 255, np.uint8)
    mask[:7] = 0
    full = write_png(tmp_path / "masks/north/a.jpg.png", mask)
    stem = write_png(tmp_path / "masks/b.png", mask)
    write_png(tmp_path / "masks/d.png", mask[:, 1:])
    photos = read_dataset(tmp_path)
    assert photos.names == ("b.JPG", "c.jpg", "north/a.jpg")
    assert photos.mask_paths == (stem, None, full)
    assert reasons(photos) == {"d.jpg": "its mask is 79x60, the photo is 80x60"}
    got = PhotoCache(1 << 20).get(photos.photo_file(0)).mask
    assert got is not None
    np.testing.assert_array_equal(got, mask != 0)


def test_masks_of_transforms(tmp_path: Path) -> None:
    frames = [{"file_path": f"images/{i}.jpg", "transform_matrix": opengl_matrix(p)} for i, p in enumerate(circle(5))]
    frames[0]["mask_path"] = "masks/special/zero.png"
    frames[1]["mask_path"] = "masks/gone.png"
    frames[2]["mask_path"] = "../outside.png"
    write_json(tmp_path / "d/transforms.json", {"fl_x": 70, "w": WIDTH, "h": HEIGHT, "frames": frames})
    for i in range(5):
        write_jpeg(tmp_path / f"d/images/{i}.jpg")
    mask = texture()[:, :, 0]
    named = write_png(tmp_path / "d/masks/special/zero.png", mask)
    write_png(tmp_path / "outside.png", mask)
    by_stem = write_png(tmp_path / "d/masks/3.png", mask)
    by_name = write_png(tmp_path / "d/masks/images/4.jpg.png", mask)
    photos = read_dataset(tmp_path / "d")
    assert photos.names == ("images/0.jpg", "images/3.jpg", "images/4.jpg")
    assert photos.mask_paths == (named, by_stem, by_name)
    assert reasons(photos) == {
        "images/1.jpg": "its mask masks/gone.png does not exist",
        "images/2.jpg": "its mask ../outside.png does not exist",
    }


def blender(folder: Path, **counts: int) -> None:
    for part, count in counts.items():
        frames = [
            {"file_path": f"./{part}/r_{i}", "transform_matrix": opengl_matrix(p)} for i, p in enumerate(circle(count))
        ]
        write_json(folder / f"transforms_{part}.json", {"camera_angle_x": 1.0, "frames": frames})
        for i in range(count):
            alpha = np.full((HEIGHT, WIDTH), 255, np.uint8)
            alpha[:, : 5 + i] = 0
            write_png(folder / part / f"r_{i}.png", np.dstack([texture(), alpha]))


def test_blender_parts_become_the_split(tmp_path: Path) -> None:
    blender(tmp_path, train=4, val=2, test=3)
    photos = read_dataset(tmp_path, test_every=2)
    assert [name for name, test in zip(photos.names, photos.is_test, strict=True) if test] == [
        f"test/r_{i}.png" for i in range(3)
    ]
    assert photos.num_photos == 7
    assert set(reasons(photos)) == {"val/r_0.png", "val/r_1.png"}
    assert all("neither a training nor a test photo" in reason for reason in reasons(photos).values())
    # transparent pixels are white by default, as the benchmark has it
    cache = PhotoCache(1 << 20)
    on_white = cache.get(photos.photo_file(0))
    assert on_white.mask is None
    assert (on_white.rgb[:, 0] == 255).all()
    masked = cache.get(photos.photo_file(0, alpha_as_mask=True)).mask
    assert masked is not None
    np.testing.assert_array_equal(masked, np.arange(WIDTH) + np.zeros((HEIGHT, 1)) >= 5)


def test_only_test_photos_are_refused(tmp_path: Path) -> None:
    blender(tmp_path, test=2)
    with pytest.raises(DatasetError, match="expected photos to train on, got only test photos"):
        read_dataset(tmp_path)


def test_the_data_sets_own_split_wins_over_every_kth_and_a_list_over_both(tmp_path: Path) -> None:
    write_capture(tmp_path)
    write_json(tmp_path / "split.json", {"test": ["photo_03.jpg", "photo_99.jpg"]})
    assert np.flatnonzero(read_dataset(tmp_path, test_every=2).is_test).tolist() == [3]
    assert np.flatnonzero(read_dataset(tmp_path, test_every=0).is_test).tolist() == [3]
    path = tmp_path / "list.txt"
    path.write_text("photo_01.jpg\nphoto_05.jpg\n")
    assert np.flatnonzero(read_dataset(tmp_path, test_list=path).is_test).tolist() == [1, 5]
    path.write_text("photo_01.jpg\nphoto_77.jpg\n")
    with pytest.raises(
        DatasetError, match=r"list\.txt: expected names of photos in the data set, got 1 others: photo_77\.jpg"
    ):
        read_dataset(tmp_path, test_list=path)
    path.write_text("\n".join(f"photo_0{i}.jpg" for i in range(6)))
    with pytest.raises(DatasetError, match=r"list\.txt: expected photos to train on"):
        read_dataset(tmp_path, test_list=path)


def test_a_test_photo_that_is_rejected_is_no_error_unless_none_is_left(tmp_path: Path) -> None:
    write_capture(tmp_path)
    write_json(tmp_path / "split.json", {"test": ["photo_03.jpg", "photo_04.jpg"]})
    (tmp_path / "images/photo_03.jpg").unlink()
    photos = read_dataset(tmp_path)
    assert [photos.names[i] for i in np.flatnonzero(photos.is_test)] == ["photo_04.jpg"]
    (tmp_path / "images/photo_04.jpg").unlink()
    with pytest.raises(DatasetError, match=r"split\.json: expected at least one usable test photo, got none"):
        read_dataset(tmp_path)


def test_a_list_may_name_a_rejected_photo(tmp_path: Path) -> None:
    write_capture(tmp_path)
    (tmp_path / "images/photo_03.jpg").unlink()
    (tmp_path / "list.txt").write_text("photo_03.jpg\nphoto_04.jpg\n")
    photos = read_dataset(tmp_path, test_list=tmp_path / "list.txt")
    assert [photos.names[i] for i in np.flatnonzero(photos.is_test)] == ["photo_04.jpg"]


def test_photos_in_neither_list_of_the_split_are_left_out_unless_a_list_is_given(tmp_path: Path) -> None:
    write_capture(tmp_path)
    write_json(tmp_path / "split.json", {"test": ["photo_03.jpg"], "train": ["photo_00.jpg", "photo_01.jpg"]})
    photos = read_dataset(tmp_path)
    assert photos.names == ("photo_00.jpg", "photo_01.jpg", "photo_03.jpg")
    assert set(reasons(photos)) == {"photo_02.jpg", "photo_04.jpg", "photo_05.jpg"}
    (tmp_path / "list.txt").write_text("photo_02.jpg\n")
    assert read_dataset(tmp_path, test_list=tmp_path / "list.txt").num_photos == 6


def test_the_georeference(tmp_path: Path) -> None:
    write_capture(tmp_path)
    write_json(tmp_path / "geo.json", {"crs": "EPSG:32634", "origin": [500000, 5780000.5, 110]})
    geo = read_dataset(tmp_path).georeference
    assert geo is not None
    assert (geo.crs, geo.origin, geo.model_to_crs) == ("EPSG:32634", (500000.0, 5780000.5, 110.0), None)
    matrix = np.diag([2.0, 2, 2, 1])
    write_json(tmp_path / "geo.json", {"crs": "EPSG:32634", "origin": [1, 2, 3], "model_to_crs": matrix.tolist()})
    geo = read_dataset(tmp_path).georeference
    assert geo is not None
    assert geo.model_to_crs is not None
    np.testing.assert_array_equal(geo.model_to_crs, matrix)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([], "expected an object"),
        ({"origin": [1, 2, 3]}, "crs: expected a text"),
        ({"crs": "EPSG:1", "origin": [1, 2]}, "origin: expected 3 finite numbers"),
        ({"crs": "EPSG:1", "origin": [1, 2, float("nan")]}, "origin: expected 3 finite numbers"),
        ({"crs": "EPSG:1", "origin": "here"}, "origin: expected 3 finite numbers"),
        ({"crs": "EPSG:1", "origin": [1, 2, 3], "model_to_crs": [[1]]}, "model_to_crs: expected 4x4 finite numbers"),
        ({"crs": "EPSG:1", "origin": [1, 2, 3], "orign": 1}, "got also orign"),
    ],
)
def test_a_wrong_georeference_is_refused(tmp_path: Path, content: object, message: str) -> None:
    write_capture(tmp_path)
    write_json(tmp_path / "geo.json", content)
    with pytest.raises(DatasetError, match=rf"geo\.json: .*{message}"):
        read_dataset(tmp_path)


@pytest.mark.skipif(os.name == "nt", reason="needs a file system with permissions")
def test_a_photo_behind_a_link_is_used(tmp_path: Path) -> None:
    """Photo folders made of links are common; only names must not leave the folder."""
    write_capture(tmp_path / "data")
    (tmp_path / "data/images").rename(tmp_path / "store")
    (tmp_path / "data/images").symlink_to(tmp_path / "store", target_is_directory=True)
    assert read_dataset(tmp_path / "data").num_photos == 6
