"""A scene from photos to pictures through the command line alone."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import imageio.v3 as iio
import numpy as np
import pytest
from click.testing import Result
from tiny_city import tiny

from infnerf_tiles.cli.progress import TrainingDisplay
from infnerf_tiles.store.scene_store import SceneStore
from infnerf_tiles.synthetic.capture import SyntheticDataset

Cli = Callable[..., Result]
CliJson = Callable[..., dict[str, Any]]


@pytest.fixture(scope="module")
def trained(city: SyntheticDataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A scene that the command line built and trained."""
    from click.testing import CliRunner

    from infnerf_tiles.cli import main

    scene = tmp_path_factory.mktemp("scenes") / "city.zarr"
    for arguments in (["build", str(city.root), str(scene), *tiny("training.passes=2.0")], ["train", str(scene)]):
        result = CliRunner().invoke(main, arguments)
        assert result.exit_code == 0, result.output
    return scene


@pytest.fixture
def scene(trained: Path, tmp_path: Path) -> Path:
    """A copy of the trained scene."""
    return Path(shutil.copytree(trained, tmp_path / "copy.zarr"))


def test_training_leaves_nothing_to_train_and_a_scene_that_info_describes(
    trained: Path, cli: Cli, cli_json: CliJson
) -> None:
    facts = cli_json("info", trained, "--treelets")
    assert facts["trained_treelets"] == facts["treelets"] == len(facts["regions"]) > 1
    assert facts["nodes"] == sum(level["nodes"] for level in facts["levels"])
    assert facts["trained_nodes"] == sum(region["trained_nodes"] for region in facts["regions"]) > 1
    assert [band["level"] for band in facts["bands"]] == [0, 1]
    assert all(region["state"] == "trained" and region["psnr"] > 5 for region in facts["regions"])
    assert facts["bytes"] == sum(path.stat().st_size for path in trained.rglob("*") if path.is_file())
    assert 0 < facts["smallest_working_set_bytes"] < 10_000_000
    assert facts["settings"]["field"]["hidden"] == 16
    again = cli_json("train", trained)
    assert (again["treelets"], again["skipped"]) == (0, facts["treelets"])
    assert "--redo L0/0-0-0" in cli("train", trained).stderr


def test_info_for_people_names_every_level_and_treelet(trained: Path, cli: Cli) -> None:
    result = cli("info", trained, "--treelets")
    assert result.exit_code == 0
    assert "L0/0-0-0" in result.stdout
    assert "smallest memory to draw from" in result.stdout
    assert "peak memory" in result.stderr
    assert "peak memory" not in result.stdout


def test_eval_scores_the_held_out_photos(trained: Path, city: SyntheticDataset, cli_json: CliJson) -> None:
    report = cli_json("eval", trained)
    assert report["split"] == "test"
    assert report["images"] == city.is_test.sum() == 2
    assert [level["pyramid"] for level in report["levels"]] == [0]
    score = report["levels"][0]
    assert 8 < score["psnr"] < 40
    assert score["lpips"] is None
    assert cli_json("eval", trained, "--limit", "1")["images"] == 1
    assert cli_json("eval", trained, "--split", "train", "--limit", "3")["images"] == 3


def test_eval_without_photos_is_3(trained: Path, tmp_path: Path, cli: Cli) -> None:
    result = cli("eval", trained, "--data", tmp_path)
    assert result.exit_code == 3
    assert str(tmp_path) in result.stderr


def test_render_draws_a_film_and_what_goes_with_it(trained: Path, tmp_path: Path, cli_json: CliJson) -> None:
    film = tmp_path / "film.mp4"
    size = ["--size", "34x26"]
    report = cli_json("render", trained, "-o", film, "--frames", "3", "--fps", "10", "--depth", "--levels", *size)
    assert report["outputs"] == [str(film), str(tmp_path / "film_depth.mp4"), str(tmp_path / "film_levels.mp4")]
    assert (report["frames"], report["size"]) == (3, [34, 26])
    for output in report["outputs"]:
        assert iio.imread(output, plugin="pyav").shape == (3, 26, 34, 3)
    assert iio.immeta(film, plugin="pyav")["fps"] == 10


def test_render_draws_what_a_photo_saw(
    trained: Path, tmp_path: Path, city: SyntheticDataset, cli: Cli, cli_json: CliJson
) -> None:
    drawn = tmp_path / "a.png"
    options = ["--photo", city.names[0], "--alpha", "--appearance", city.names[1]]
    assert cli_json("render", trained, "-o", drawn, *options)["size"] == [64, 48]
    picture = iio.imread(drawn).astype(float)
    photo = iio.imread(city.root / "images" / city.names[0]).astype(float)
    other = iio.imread(city.root / "images" / city.names[3]).astype(float)
    assert iio.imread(tmp_path / "a_alpha.png").max() > 0
    # after so short a training, only the colours on the whole are right
    assert np.abs(picture - photo).mean() < min(40.0, np.abs(other - photo).mean() + 10)
    for wrong in (["--photo", "photo_99.jpg"], ["--appearance", "photo_99.jpg"], ["--path", "loop"]):
        result = cli("render", trained, "-o", drawn, *wrong)
        assert result.exit_code == 2
        assert wrong[1] in result.stderr


def test_the_picture_does_not_depend_on_the_memory(trained: Path, tmp_path: Path, cli: Cli, cli_json: CliJson) -> None:
    smallest = cli_json("info", trained)["smallest_working_set_bytes"]
    few, many = tmp_path / "few.png", tmp_path / "many.png"
    size = ["--size", "48x36"]
    cli_json("render", trained, "-o", many, *size)
    cli_json("render", trained, "-o", few, "--memory-budget", 2 * smallest, *size)
    assert few.read_bytes() == many.read_bytes()
    result = cli("render", trained, "-o", few, "--memory-budget", smallest - 1)
    assert result.exit_code == 4
    assert "memory budget" in result.stderr


def test_drawing_settings_change_the_picture_and_others_are_refused(
    trained: Path, tmp_path: Path, cli: Cli, cli_json: CliJson
) -> None:
    output = ["-o", tmp_path / "a.png", "--size", "32x24"]
    fine = cli_json("render", trained, *output)
    coarse = cli_json("render", trained, *output, "--set", "rendering.step_size=4")
    assert coarse["samples"] < fine["samples"]
    result = cli("render", trained, *output, "--set", "training.passes=4")
    assert result.exit_code == 2
    assert "training.passes" in result.stderr


def test_a_path_file_keeps_its_speed_unless_told(trained: Path, tmp_path: Path, cli: Cli) -> None:
    poses = np.tile(np.eye(3, 4), (2, 1, 1))
    poses[:, 2, 3] = 200.0, 201.0
    camera = {"model": "PINHOLE", "width": 32, "height": 24, "params": [30.0, 30.0, 16.0, 12.0]}
    path = {"format": "infnerf-tiles camera path", "version": 1, "fps": 5, "camera": camera}
    file = tmp_path / "path.json"
    file.write_text(json.dumps({**path, "camera_to_world": poses.tolist()}))
    for options, fps in (([], 5), (["--fps", "8"], 8)):
        result = cli("render", trained, "-o", tmp_path / "a.mp4", "--path", file, *options)
        assert result.exit_code == 0, result.output
        assert iio.immeta(tmp_path / "a.mp4", plugin="pyav")["fps"] == fps


def test_changed_settings_need_consent(scene: Path, cli: Cli, cli_json: CliJson) -> None:
    result = cli("train", scene, "--set", "training.lr=0.001")
    assert result.exit_code == 2
    assert "--accept-changes" in result.stderr
    assert cli_json("train", scene, "--set", "training.lr=0.001", "--accept-changes")["treelets"] == 0


def test_redo_trains_a_region_again(scene: Path, cli: Cli, cli_json: CliJson) -> None:
    leaf = cli_json("info", scene, "--treelets")["regions"][-1]["treelet"]
    result = cli("train", scene, "--redo", leaf)
    assert result.exit_code == 0, result.output
    lines = [line for line in result.stderr.splitlines() if line.startswith("treelet ")]
    assert len(lines) == 1
    assert lines[0].startswith(f"treelet {leaf}: ")
    assert " dB" in lines[0]


def flip_a_bit_of_a_node(scene: Path) -> None:
    with SceneStore.open(scene) as store:
        slot = int(store.read_index().slots.max())
    row = scene / "params" / f"c.{slot}.0"
    content = bytearray(row.read_bytes())
    content[len(content) // 2] ^= 1
    row.write_bytes(content)


def test_damage_is_found_repaired_and_trained_again(scene: Path, cli: Cli, cli_json: CliJson) -> None:
    assert cli_json("verify", scene)["ok"]
    flip_a_bit_of_a_node(scene)
    result = cli("verify", scene, "--json")
    assert result.exit_code == 5
    found = json.loads(result.stdout)
    assert not found["ok"]
    assert [item["kind"] for item in found["damage"]] == ["node"]
    assert "--repair" in result.stderr
    repaired = cli_json("verify", scene, "--repair")["repaired"]
    assert repaired["planned_treelets"] == [found["damage"][0]["treelet"]]
    assert cli_json("train", scene)["treelets"] == 1
    assert cli("verify", scene).exit_code == 0


def test_gc_frees_what_redoing_left(scene: Path, cli_json: CliJson) -> None:
    cli_json("gc", scene)
    assert cli_json("gc", scene)["slots"] == 0
    stray = scene / "params" / "c.999999.0"
    stray.write_bytes(b"0" * 1000)
    freed = cli_json("gc", scene)
    assert (freed["slots"], freed["bytes"]) == (1, 1000)
    assert not stray.exists()


def test_quiet_says_nothing_and_the_log_file_says_all(scene: Path, tmp_path: Path, cli: Cli) -> None:
    log = tmp_path / "log.txt"
    result = cli("info", scene, "-q", "--log-file", log)
    assert (result.stdout, result.stderr) == ("", "")
    assert "peak memory" in log.read_text()
    result = cli("info", tmp_path / "none", "-q", "--log-file", log)
    assert result.exit_code == 5
    assert result.stderr.startswith("error: ")
    assert "Traceback" in log.read_text()
    assert "Traceback" not in result.stderr
    assert "Traceback" in cli("info", tmp_path / "none", "-vv").stderr


def test_an_interrupted_training_goes_on(
    city: SyntheticDataset, tmp_path: Path, cli: Cli, cli_json: CliJson, monkeypatch: pytest.MonkeyPatch
) -> None:
    scene = tmp_path / "scene"
    assert cli("build", city.root, scene, *tiny("octree.max_level=1", "octree.treelet_height=1")).exit_code == 0
    tell = TrainingDisplay.update

    def interrupt(display: TrainingDisplay, name: str, share: float, psnr: float) -> None:
        tell(display, name, share, psnr)
        if name.startswith("L1/"):
            raise KeyboardInterrupt

    monkeypatch.setattr(TrainingDisplay, "update", interrupt)
    result = cli("train", scene)
    assert result.exit_code == 130
    assert "interrupted" in result.stderr
    assert "goes on from there" in result.stderr
    monkeypatch.undo()
    planned = cli_json("info", scene)
    assert planned["trained_treelets"] == 1
    summary = cli_json("train", scene)
    assert summary["skipped"] == 1
    assert summary["treelets"] == planned["treelets"] - 1


@pytest.mark.slow
def test_ctrl_c_ends_a_training_that_then_goes_on(city: SyntheticDataset, tmp_path: Path, cli: Cli) -> None:
    scene = tmp_path / "scene"
    assert cli("build", city.root, scene, *tiny()).exit_code == 0
    environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
    command = [sys.executable, "-m", "infnerf_tiles", "train", str(scene)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment) as process:
        assert process.stderr is not None
        assert process.stderr.readline().startswith("seed stage: ")
        time.sleep(0.3)
        process.send_signal(signal.SIGINT)
        rest = process.stderr.read()
        assert process.wait(60) == 130
    assert "interrupted" in rest
    assert "Traceback" not in rest
    assert cli("train", scene).exit_code == 0
    assert cli("verify", scene).exit_code == 0


@pytest.mark.slow
def test_demo_makes_everything_and_uses_it_again(tmp_path: Path, cli_json: CliJson, cli: Cli) -> None:
    options = ["--photos", "10", "--size", "64x48", "--frames", "2", *tiny()]
    first = cli_json("demo", tmp_path / "demo", *options)
    film = tmp_path / "demo" / "orbit.mp4"
    assert len(iio.imread(film, plugin="pyav")) == 2
    assert iio.imread(tmp_path / "demo" / "compare.png").shape == (48, 3 * 64 + 8, 3)
    made = film.stat().st_mtime_ns
    again = cli_json("demo", tmp_path / "demo", *options)
    assert film.stat().st_mtime_ns == made
    assert again["eval"] == first["eval"]
    assert again["seconds"]["eval"] == pytest.approx(first["seconds"]["eval"])
    assert np.isfinite(first["eval"]["levels"][0]["psnr"])
    assert first["seconds_complete"]
    assert first["seconds"]["all"] == pytest.approx(sum(v for k, v in first["seconds"].items() if k != "all"))
    record = json.loads((tmp_path / "demo" / "demo.json").read_text())
    assert "running" not in record
    (tmp_path / "demo" / "demo.json").write_text(json.dumps({**record, "running": "train"}))
    assert not cli_json("demo", tmp_path / "demo", *options)["seconds_complete"]
    assert cli("demo", tmp_path / "demo", "--photos", "12").exit_code == 2
    assert cli("demo", tmp_path).exit_code == 2
