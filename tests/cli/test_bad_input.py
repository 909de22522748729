"""What goes wrong is told in words, with the exit code that scripts go by, and without a traceback."""

import importlib.util
import json
import struct
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from click.testing import Result
from rendering.random_scenes import make_scene
from tiny_city import tiny

from infnerf_tiles.settings import load_settings
from infnerf_tiles.synthetic.capture import SyntheticDataset

Cli = Callable[..., Result]


def failed(result: Result, code: int, *words: str) -> None:
    """The command failed with this exit code and a message with these words, and nothing on stdout."""
    assert result.exit_code == code, result.output
    assert result.stdout == ""
    for word in words:
        assert word in result.stderr
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["paint"], ["No such command 'paint'"]),
        (["rendr"], ["No such command 'rendr'", "Did you mean 'render'?"]),
        (["build"], ["Missing argument 'DATA'"]),
        (["build", "data"], ["Missing argument 'SCENE'"]),
        (["build", "data", "scene", "--ram", "lots"], ["--ram"]),
        (["train", "scene", "--workers", "lots"], ["--workers"]),
        (["train", "scene", "--threads", "0"], ["--threads", "0 is not in the range"]),
        (["train", "scene", "--threads", "many"], ["--threads", "'many'"]),
        (["render", "scene"], ["Missing option '-o'"]),
        (["render", "scene", "-o", "a.mp4", "--size", "big"], ["--size", "1280x720", "'big'"]),
        (["render", "scene", "-o", "a.mp4", "--size", "0x5"], ["--size", "0x5"]),
        (["render", "scene", "-o", "a.mp4", "--memory-budget", "lots"], ["--memory-budget", "2GiB", "'lots'"]),
        (["render", "scene", "-o", "a.mp4", "--fps", "0"], ["--fps"]),
        (["render", "scene", "-o", "a.mp4", "--lod-bias", "9"], ["--lod-bias"]),
        (["render", "scene", "-o", "a.mp4", "--lod-bias", "nan"], ["--lod-bias", "finite"]),
        (["render", "scene", "-o", "a.mp4", "--fps", "nan"], ["--fps", "finite"]),
        (["eval", "scene", "--lod-bias", "nan"], ["--lod-bias", "finite"]),
        (["render", "scene", "-o", "a.mp4", "--photo", "a.jpg", "--path", "orbit"], ["--photo", "--path"]),
        (["render", "scene", "-o", "a.mp4", "--vram", "1GiB"], ["No such option", "--vram"]),
        (["eval", "scene", "--limit", "0"], ["--limit"]),
        (["eval", "scene", "--split", "all"], ["--split", "'test', 'train'"]),
        (["demo", "--photos", "3"], ["--photos"]),
        (["build", "data", "scene", "--bounds", "1,2,3"], ["--bounds", "x,y,z,X,Y,Z", "1,2,3"]),
        (["build", "data", "scene", "--bounds", "0,0,0,1,1,-1"], ["--bounds", "z < Z"]),
        (["build", "data", "scene", "--bounds", "0,0,0,1,1,inf"], ["--bounds", "inf"]),
        (["build", "data", "scene", "--bounds", "a,b,c,d,e,f"], ["--bounds", "a,b,c,d,e,f"]),
        (["build", "data", "scene", "--log-file", "/"], ["--log-file"]),
        (["build", "data", "scene", "--log-file", "/nowhere/at/all.txt"], ["--log-file", "/nowhere/at/all.txt"]),
        (["build", "data", "scene", "--set", "training.stepz=5"], ["training.stepz", "did you mean training.steps?"]),
        (["build", "data", "scene", "--set", "training.steps=many"], ["training.steps", "'many'"]),
        (["build", "data", "scene", "--set", "training.steps"], ["section.key=value"]),
        (["build", "data", "scene", "--config", "arial"], ["aerial", "did you mean aerial?"]),
        (["build", "data", "scene", "--config", "none.toml"], ["none.toml", "No such file"]),
    ],
)
def test_wrong_usage_is_2(cli: Cli, arguments: list[str], words: list[str]) -> None:
    failed(cli(*arguments), 2, *words)


EMPTY = [
    ["build", "", "scene"], ["build", "data", ""], ["build", "data", "scene", "--images", ""], ["plan", ""],
    ["train", ""], ["train", "scene", "--data="], ["train", "scene", "--set", ""], ["eval", " "],
    ["eval", "scene", "--data", ""], ["render", "", "-o", "a.png"], ["render", "scene", "-o", ""], ["view", ""],
    ["export", "", "a.ply"], ["export", "scene", ""], ["pack", "", "a.zip"], ["pack", "scene", ""], ["info", ""],
    ["verify", ""], ["gc", ""], ["demo", ""],
]  # fmt: skip


@pytest.mark.parametrize("arguments", EMPTY, ids=" ".join)
def test_an_empty_name_is_no_folder(
    cli: Cli, arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a variable that is not set gives it; the working folder, which it would stand for, may be a scene."""
    make_scene(tmp_path / "here").close()
    monkeypatch.chdir(tmp_path / "here")
    failed(cli(*arguments), 2, "Invalid value", "empty")
    assert cli(*arguments, "--help").exit_code == 0


def test_all_wrong_settings_are_told_at_once(cli: Cli, tmp_path: Path) -> None:
    config = tmp_path / "mine.toml"
    config.write_text("[octree]\ncells = 60\n[training]\nsteps = '5'\n", encoding="utf-8")
    result = cli("build", tmp_path, tmp_path / "scene", "--config", config, "--set", "field.appearance=1")
    failed(result, 2, "octree.cells", "training.steps", "field.appearance", "mine.toml")


def test_a_folder_without_poses_is_3(cli: Cli, tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    failed(cli("build", empty, tmp_path / "scene"), 3, str(empty), "COLMAP", "transforms.json")
    failed(cli("build", tmp_path / "missing", tmp_path / "scene"), 3, "missing", "expected a folder")
    assert not (tmp_path / "scene").exists()


def test_a_truncated_pose_file_is_3(cli: Cli, city: SyntheticDataset, tmp_path: Path) -> None:
    model = tmp_path / "photos" / "sparse" / "0"
    model.mkdir(parents=True)
    (tmp_path / "photos" / "images").mkdir()
    for file in (city.root / "sparse" / "0").iterdir():
        content = file.read_bytes()
        (model / file.name).write_bytes(content[: len(content) // 2] if file.name == "images.bin" else content)
    failed(cli("build", tmp_path / "photos", tmp_path / "scene"), 3, "images.bin", "expected", "got")
    assert not (tmp_path / "scene").exists()


def edit(path: Path, old: str, new: str, count: int = -1) -> None:
    text = path.read_text(encoding="utf-8")
    assert old in text
    path.write_text(text.replace(old, new, count), encoding="utf-8")


def test_an_unknown_camera_model_is_3_when_no_photo_is_left(cli: Cli, city_copy: Path, tmp_path: Path) -> None:
    cameras = city_copy / "sparse" / "0" / "cameras.txt"
    edit(cameras, "SIMPLE_RADIAL", "CRYSTAL_BALL")
    edit(cameras, "OPENCV", "CRYSTAL_BALL")
    failed(cli("build", city_copy, tmp_path / "scene"), 3, "CRYSTAL_BALL")


@pytest.fixture
def built(cli: Cli, city_copy: Path, tmp_path: Path) -> Callable[[], dict[str, str]]:
    """Builds the damaged copy with --json, which must succeed; the reasons why photos were left out, by name."""

    def build() -> dict[str, str]:
        result = cli("build", city_copy, tmp_path / "scene", "--json", *tiny())
        assert result.exit_code == 0, result.output
        report = json.loads(result.stdout)
        reasons = {item["name"]: item["reason"] for item in report["rejected"]}
        for name, reason in reasons.items():
            assert f"left out: {name}: {reason}" in result.stderr
        assert report["photos"] == 10 - len(reasons)
        return reasons

    return build


def test_a_truncated_photo_is_left_out_and_told(city_copy: Path, built: Callable[[], dict[str, str]]) -> None:
    photo = city_copy / "images" / "photo_0004.jpg"
    photo.write_bytes(photo.read_bytes()[:200])
    reasons = built()
    assert list(reasons) == ["photo_0004.jpg"]


def test_a_photo_of_another_size_is_left_out_and_told(city_copy: Path, built: Callable[[], dict[str, str]]) -> None:
    edit(city_copy / "sparse" / "0" / "cameras.txt", "2 OPENCV 64 48", "2 OPENCV 64 49")
    reasons = built()
    assert reasons
    assert all("64x48" in reason and "64x49" in reason for reason in reasons.values())


def test_a_photo_outside_the_folder_is_left_out_and_told(city_copy: Path, built: Callable[[], dict[str, str]]) -> None:
    (city_copy / "secret.jpg").write_bytes((city_copy / "images" / "photo_0003.jpg").read_bytes())
    edit(city_copy / "sparse" / "0" / "images.txt", "photo_0003.jpg", "../secret.jpg")
    assert list(built()) == ["../secret.jpg"]


def test_a_pose_with_nan_is_left_out_and_told(city_copy: Path, built: Callable[[], dict[str, str]]) -> None:
    images = city_copy / "sparse" / "0" / "images.txt"
    lines = images.read_text(encoding="utf-8").splitlines()
    at = next(i for i, line in enumerate(lines) if line.endswith("photo_0002.jpg"))
    words = lines[at].split()
    lines[at] = " ".join([*words[:5], "nan", *words[6:]])
    images.write_text("\n".join(lines) + "\n", encoding="utf-8")
    assert list(built()) == ["photo_0002.jpg"]


def test_more_nodes_than_allowed_is_4(cli: Cli, city: SyntheticDataset, tmp_path: Path) -> None:
    result = cli("build", city.root, tmp_path / "scene", *tiny("octree.max_nodes=2"))
    failed(result, 4, "octree.max_nodes = 2", "data.downscale")
    assert not (tmp_path / "scene").exists()


SCENE_COMMANDS = [["train"], ["eval"], ["render", "-o", "a.png"], ["info"], ["verify"], ["gc"]]


@pytest.mark.parametrize("command", SCENE_COMMANDS)
def test_no_scene_there_is_5(cli: Cli, command: list[str], tmp_path: Path) -> None:
    failed(cli(*command, tmp_path / "nothing"), 5, str(tmp_path / "nothing"), "build")
    (tmp_path / "empty").mkdir()
    failed(cli(*command, tmp_path / "empty"), 5, str(tmp_path / "empty"))


@pytest.mark.parametrize("command", SCENE_COMMANDS)
def test_a_scene_of_another_format_version_is_5(
    cli: Cli, city: SyntheticDataset, command: list[str], tmp_path: Path
) -> None:
    scene = tmp_path / "scene"
    assert cli("build", city.root, scene, *tiny()).exit_code == 0
    document = json.loads((scene / "zarr.json").read_text())
    document["attributes"]["format_version"] = 99
    (scene / "zarr.json").write_text(json.dumps(document))
    failed(cli(*command, scene), 5, "99", "version")


def test_what_is_there_is_never_replaced_unasked(cli: Cli, city: SyntheticDataset, tmp_path: Path) -> None:
    scene, other = tmp_path / "scene", tmp_path / "diary"
    assert cli("build", city.root, scene, *tiny()).exit_code == 0
    failed(cli("build", city.root, scene, *tiny()), 5, "--overwrite")
    assert cli("build", city.root, scene, "--overwrite", *tiny()).exit_code == 0
    other.mkdir()
    (other / "monday.txt").write_text("rain")
    result = cli("build", city.root, other, *tiny())
    failed(result, 5, "monday.txt", "another place")
    assert "--overwrite" not in result.stderr  # which would not help
    failed(cli("build", city.root, other, "--overwrite", *tiny()), 5, "other files")
    assert (other / "monday.txt").read_text() == "rain"


def test_an_untrained_scene_cannot_be_drawn(cli: Cli, city: SyntheticDataset, tmp_path: Path) -> None:
    scene, output = tmp_path / "scene", tmp_path / "film.mp4"
    assert cli("build", city.root, scene, *tiny()).exit_code == 0
    failed(cli("render", scene, "-o", output), 5, "train")
    failed(cli("eval", scene), 5, "train")
    for packed in ("p.zip", "p.zarr"):
        failed(cli("pack", scene, tmp_path / packed), 5, "run 'train' first")
        assert not (tmp_path / packed).exists()
    assert not output.exists()


def test_pack_makes_the_folders_above_and_names_what_it_cannot_write(cli: Cli, tmp_path: Path) -> None:
    make_scene(tmp_path / "scene").close()
    assert cli("pack", tmp_path / "scene", tmp_path / "new" / "p.zip").exit_code == 0
    (tmp_path / "file").write_text("mine")
    result = cli("pack", tmp_path / "scene", tmp_path / "file" / "p.zip")
    failed(result, 2, str(tmp_path / "file" / "p.zip"), "got a file")
    assert ".partial" not in result.stderr
    assert "--nodes-per-shard" not in result.stderr  # which has nothing to do with it
    failed(cli("pack", tmp_path / "scene", tmp_path / "p.tar.gz"), 2, "p.tar.gz", "name a .zip")
    result = cli("pack", tmp_path / "scene", tmp_path / "scene")
    failed(result, 5, str(tmp_path / "scene"), "another name")
    assert "delete" not in result.stderr
    failed(cli("pack", tmp_path / "scene", tmp_path / "scene" / "p.zip"), 2, "outside of scenes")


@pytest.mark.parametrize("place", ["s3://nope/x", "https://example.org/x", "x.zip", "X.ZIP"])
def test_build_refuses_places_that_are_no_folders(cli: Cli, city: SyntheticDataset, tmp_path: Path, place: str) -> None:
    scene = place if "://" in place else tmp_path / place
    failed(cli("build", city.root, scene, *tiny()), 2, str(scene), "folder")
    assert list(tmp_path.iterdir()) == []


def test_train_refuses_changes_of_what_build_fixed(cli: Cli, city: SyntheticDataset, tmp_path: Path) -> None:
    scene = tmp_path / "scene"
    assert cli("build", city.root, scene, *tiny()).exit_code == 0
    result = cli("train", scene, "--set", "field.hidden=32", "--config", "aerial")
    failed(result, 2, "field.hidden: 32 instead of 16", "octree.cells: 128 instead of 16", "build again")
    failed(cli("train", scene, "--set", "training.stepz=1"), 2, "training.stepz", "did you mean training.steps?")


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a CUDA device")
def test_a_device_that_is_not_there_is_2_and_changes_nothing(cli: Cli, city: SyntheticDataset, tmp_path: Path) -> None:
    scene = tmp_path / "scene"
    assert cli("build", city.root, scene, *tiny()).exit_code == 0
    before = (scene / "zarr.json").read_bytes()
    options = ["--set", "training.device=cuda", "--accept-changes"]
    failed(cli("train", scene, *options), 2, "device cuda", "training.device=auto")
    assert (scene / "zarr.json").read_bytes() == before
    failed(cli("demo", tmp_path / "demo", "--device", "cuda"), 2, "device cuda", "--device cpu or auto")
    assert not (tmp_path / "demo").exists()
    drawable = tmp_path / "drawable"
    make_scene(drawable).close()
    commands: list[list[str | Path]] = [["render", "-o", tmp_path / "a.png"], ["export", tmp_path / "a.ply"]]
    if importlib.util.find_spec("viser") is not None:
        commands.append(["view", "--port", "0"])
    for command in commands:
        failed(cli(command[0], drawable, *command[1:], "--device", "cuda"), 2, "device cuda", "--device cpu or auto")
    assert not (tmp_path / "a.png").exists()


def test_train_says_what_is_wrong_with_its_photos(cli: Cli, city_copy: Path, tmp_path: Path) -> None:
    scene = tmp_path / "scene"
    assert cli("build", city_copy, scene, *tiny()).exit_code == 0
    city_copy.rename(tmp_path / "moved")
    failed(cli("train", scene), 3, str(city_copy), "expected a folder with posed photos, got none", "--data")
    city_copy.mkdir()
    failed(cli("train", scene), 3, str(city_copy), "COLMAP model", "--data")
    city_copy.rmdir()
    failed(cli("train", scene, "--redo", "roof", "--data", tmp_path / "moved"), 2, "roof")
    failed(cli("train", scene, "--redo", "L3/7-7-7", "--data", tmp_path / "moved"), 2, "L3/7-7-7", "treelet")


def test_a_damaged_root_document_is_5_until_it_is_repaired(cli: Cli, city: SyntheticDataset, tmp_path: Path) -> None:
    scene = tmp_path / "scene"
    assert cli("build", city.root, scene, *tiny()).exit_code == 0
    document = scene / "zarr.json"
    document.write_bytes(document.read_bytes()[:-30] + struct.pack("30s", b""))
    for command in ("info", "verify", "gc", "train"):
        failed(cli(command, scene), 5, str(scene))
    assert cli("verify", scene, "--repair").exit_code == 0
    assert cli("info", scene).exit_code == 0


def test_the_demo_keeps_out_of_folders_that_are_not_its_own(cli: Cli, tmp_path: Path) -> None:
    folder = tmp_path / "holiday"
    folder.mkdir()
    (folder / "beach.jpg").write_bytes(b"sand")
    failed(cli("demo", folder), 2, str(folder), "another folder")
    (folder / "demo.json").write_text('{"form": "a demo of somebody else"}')
    failed(cli("demo", folder), 2, "demo.json", "another folder")
    failed(cli("demo", folder / "beach.jpg"), 2, "beach.jpg")
    assert sorted(path.name for path in folder.iterdir()) == ["beach.jpg", "demo.json"]


def test_the_demo_does_not_mix_two_demos(cli: Cli, tmp_path: Path) -> None:
    settings = load_settings("demo").model_dump(mode="json")
    parameters = {"photos": 48, "size": [320, 240], "blocks": [3, 3], "settings": settings}
    record = {"form": "infnerf-tiles demo", "parameters": parameters, "seconds": {}, "done": ["photos"]}
    (tmp_path / "demo.json").write_text(json.dumps(record))
    failed(cli("demo", tmp_path, "--photos", "12"), 2, str(tmp_path), "other options", "photos 12 instead of 48")
    failed(cli("demo", tmp_path, "--set", "training.passes=9"), 2, "training.passes 9.0 instead of")
    assert [path.name for path in tmp_path.iterdir()] == ["demo.json"]
