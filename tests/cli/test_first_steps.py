"""What people do who meet the program for the first time, and what it tells them."""

import shlex
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import Result
from tiny_city import tiny

from infnerf_tiles.synthetic.capture import SyntheticDataset

Cli = Callable[..., Result]


def after(result: Result, words: str) -> str:
    """What follows these words on their line."""
    return next(line.partition(words)[2] for line in result.output.splitlines() if words in line)


def test_the_next_command_can_be_pasted_whatever_the_names(
    cli: Cli, city: SyntheticDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    office = tmp_path / "mein Büro & Co"
    shutil.copytree(city.root, office / "Fotos ä")
    monkeypatch.chdir(office)
    scene = "stadt ö's"
    result = cli("build", "Fotos ä", scene, *tiny())
    assert shlex.split(after(result, "next: infnerf-tiles ")) == ["train", scene]
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    scene = str(office / scene)
    for _ in range(2):
        result = cli("train", scene)
        assert result.exit_code == 0, result.output
    assert shlex.split(after(result, "anew: infnerf-tiles ")) == ["train", scene, "--redo", "L0/0-0-0"]
    next((office / "stadt ö's" / "params").glob("c.*")).write_bytes(b"")
    result = cli("verify", scene)
    assert shlex.split(after(result, "damaged; infnerf-tiles ")) == ["verify", scene, "--repair"]
    result = cli("verify", scene, "--repair")
    assert shlex.split(after(result, "again: infnerf-tiles ")) == ["train", scene]


def test_a_map_that_cannot_be_written_is_told_before_the_work(
    cli: Cli, city: SyntheticDataset, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("mine")
    coverage = ("--coverage-map", tmp_path / "file" / "map.png")
    result = cli("build", city.root, tmp_path / "scene", *coverage, *tiny())
    assert (result.exit_code, (tmp_path / "scene").exists()) == (2, False)
    assert str(coverage[1]) in result.stderr
    assert cli("build", city.root, tmp_path / "scene", *tiny()).exit_code == 0
    before = (tmp_path / "scene" / "zarr.json").read_bytes()
    assert cli("build", "--add", city.root, tmp_path / "scene", *coverage).exit_code == 2
    assert (tmp_path / "scene" / "zarr.json").read_bytes() == before
