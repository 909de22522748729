"""Small data sets and scenes for the tests of the command line."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from infnerf_tiles.cli import main
from infnerf_tiles.data.colmap import write_colmap
from infnerf_tiles.synthetic.capture import SyntheticDataset, write_city_dataset


@pytest.fixture(scope="session")
def city(tmp_path_factory: pytest.TempPathFactory) -> SyntheticDataset:
    """Ten photos of 64 x 48 pixels of one block."""
    return write_city_dataset(
        tmp_path_factory.mktemp("city") / "photos", blocks=(1, 1), num_photos=10, size=(64, 48), seed=3, supersample=1
    )


@pytest.fixture
def city_copy(city: SyntheticDataset, tmp_path: Path) -> Path:
    """A copy of the city's folder with its COLMAP model as text, to be damaged."""
    folder = tmp_path / "photos"
    shutil.copytree(city.root, folder, ignore=shutil.ignore_patterns("sparse"))
    write_colmap(folder / "sparse" / "0", names=city.names, cameras=city.cameras, points=city.points, text=True)
    return folder


@pytest.fixture
def cli() -> Callable[..., Result]:
    """Runs a command line; the result has its exit code, stdout and stderr. Bugs come through as exceptions."""

    def run(*arguments: object) -> Result:
        result = CliRunner().invoke(main, [str(argument) for argument in arguments], prog_name="infnerf-tiles")
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        return result

    return run


@pytest.fixture
def cli_json(cli: Callable[..., Result]) -> Callable[..., dict[str, Any]]:
    """Runs a command line with --json that must succeed; the object that it prints."""

    def run(*arguments: object) -> dict[str, Any]:
        result = cli(*arguments, "--json")
        assert result.exit_code == 0, result.output
        found = json.loads(result.stdout)
        assert isinstance(found, dict)
        return found

    return run
