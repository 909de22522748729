"""verify: beside other processes, and of scenes that were never finished."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result
from training.small_scenes import build_scene

from infnerf_tiles.store import verify as verification
from infnerf_tiles.store.scene_store import SceneStore
from infnerf_tiles.synthetic.capture import SyntheticDataset

HOLDER = """
import sys
from infnerf_tiles.store.scene_store import SceneStore
with SceneStore.open(sys.argv[1], "r+") as store, store.exclusive():
    print("held", flush=True)
    sys.stdin.readline()
"""


@pytest.fixture
def scene(city: SyntheticDataset, tmp_path: Path) -> str:
    return build_scene(city.root, tmp_path / "scene.zarr")


def test_repair_wants_the_scene_for_itself(cli: Callable[..., Result], scene: str) -> None:
    command = [sys.executable, "-c", HOLDER, scene]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        result = cli("verify", scene, "--repair")
        assert result.exit_code == 5
        assert "another process" in result.stderr
        assert cli("verify", scene).exit_code == 0
        holder.communicate("\n")
    assert cli("verify", scene, "--repair").exit_code == 0


@pytest.mark.parametrize("repair", [False, True])
def test_nobody_changes_what_is_read_before_it_is_mended(
    cli: Callable[..., Result], scene: str, repair: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit = "import sys; from infnerf_tiles.store.scene_store import SceneStore\n"
    commit += "with SceneStore.open(sys.argv[1], 'r+') as store, store.exclusive(): store.commit(store.read_index())"
    codes = []
    real = verification._rows_to_read

    def beside(index: Any) -> Any:
        codes.append(subprocess.run([sys.executable, "-c", commit, scene], capture_output=True, check=False).returncode)
        return [("params", 10**6), *real(index)]

    monkeypatch.setattr(verification, "_rows_to_read", beside)
    monkeypatch.setattr(verification, "_read_row", lambda *_: verification.Damage(kind="journal", name="x", reason="y"))
    monkeypatch.setattr("infnerf_tiles.store.repair.drop_record", lambda *_: None)
    result = cli("verify", scene, *(["--repair"] if repair else []))
    if repair:
        assert codes == [1]  # it was kept out
        assert result.exit_code == 0
    else:
        assert codes == [0, 0, 0]
        assert result.exit_code == 5
        assert "another process kept changing the scene" in " ".join(result.stderr.split())


def test_a_scene_whose_build_was_interrupted_is_not_called_sound(
    cli: Callable[..., Result], city: SyntheticDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def die(*_: Any) -> None:
        raise ZeroDivisionError

    with monkeypatch.context() as patch:
        patch.setattr(SceneStore, "commit", die)
        with pytest.raises(ZeroDivisionError):
            build_scene(city.root, tmp_path / "scene.zarr")
    for command in (["verify"], ["verify", "--repair"], ["info"], ["train"], ["render", "-o", tmp_path / "a.png"]):
        result = cli(command[0], tmp_path / "scene.zarr", *command[1:])
        assert result.exit_code == 5, command
        assert "build it again" in " ".join(result.stderr.split())
    assert cli("build", city.root, tmp_path / "scene.zarr").exit_code == 0
    assert cli("verify", tmp_path / "scene.zarr").exit_code == 0
