"""build --add on the command line: what it says, and what it refuses with which exit code."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cli.tiny_city import tiny
from click.testing import Result
from training.small_scenes import photos_of, some_photos

from infnerf_tiles.synthetic.capture import SyntheticDataset


@pytest.fixture
def scene(city: SyntheticDataset, tmp_path: Path, cli: Callable[..., Result]) -> Path:
    """Built with eight of the ten photos."""
    former = some_photos(photos_of(city.root), np.arange(8), tmp_path / "former")
    assert cli("build", former, tmp_path / "scene.zarr", *tiny()).exit_code == 0
    return tmp_path / "scene.zarr"


def test_it_says_what_is_new_and_repeats_without_effect(
    city: SyntheticDataset, scene: Path, cli: Callable[..., Result], cli_json: Callable[..., dict[str, Any]]
) -> None:
    found = cli_json("build", "--add", city.root, scene)
    assert (found["photos"], found["new_photos"]) == (10, 2)
    assert found["marked"] == []  # nothing was trained
    assert found["kept"] == 0
    assert found["waiting"] > 0
    assert found["regions"]
    result = cli("build", "--add", city.root, scene)
    assert result.exit_code == 0
    text = " ".join(result.output.replace("│", " ").split())
    for line in ("new photos 0", "treelets to be trained again 0", "trained treelets kept 0", "photos 10"):
        assert line in text, text
    assert f"next: infnerf-tiles train {scene}" in text


def test_a_photo_that_went_is_refused(
    city: SyntheticDataset, scene: Path, cli: Callable[..., Result], tmp_path: Path
) -> None:
    fewer = some_photos(photos_of(city.root), np.arange(3, 10), tmp_path / "fewer")
    result = cli("build", "--add", fewer, scene)
    assert result.exit_code == 3
    assert "3 of them cannot be used" in result.stderr
    assert city.names[0] in result.stderr


@pytest.mark.parametrize(
    "option", [("--overwrite",), ("--bounds", "0,0,0,1,1,1"), ("--set", "octree.cells=16"), ("--ram", "4GiB")]
)
def test_what_was_fixed_at_build_is_a_usage_error(
    city: SyntheticDataset, scene: Path, cli: Callable[..., Result], option: tuple[str, ...]
) -> None:
    result = cli("build", "--add", *option, city.root, scene)
    assert result.exit_code == 2
    assert f"expected no {option[0]}" in " ".join(result.stderr.split())


def test_no_scene_to_add_to(city: SyntheticDataset, tmp_path: Path, cli: Callable[..., Result]) -> None:
    result = cli("build", "--add", city.root, tmp_path / "nowhere.zarr")
    assert result.exit_code == 5
    assert "no scene at" in result.stderr
