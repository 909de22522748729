"""Ctrl-C: the first one lets the treelet in hand finish, the second one stops at once."""

import importlib
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result
from tiny_city import tiny

from infnerf_tiles.cli.progress import TrainingDisplay
from infnerf_tiles.synthetic.capture import SyntheticDataset


@pytest.mark.skipif(os.name == "nt", reason="a process cannot send itself Ctrl-C there")
@pytest.mark.parametrize("times", [1, 2])
def test_ctrl_c(
    times: int, city: SyntheticDataset, tmp_path: Path, cli: Callable[..., Result],
    cli_json: Callable[..., dict[str, Any]], monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    scene = tmp_path / "scene"
    settings = tiny("octree.treelet_height=2", "training.passes=2.0")
    assert cli("build", city.root, scene, *settings).exit_code == 0
    tell = TrainingDisplay.update
    left = times

    def press(display: TrainingDisplay, name: str, share: float, psnr: float) -> None:
        nonlocal left
        tell(display, name, share, psnr)
        if name.startswith("L0/") and left:
            left -= 1
            os.kill(os.getpid(), signal.SIGINT)

    before = signal.getsignal(signal.SIGINT)
    monkeypatch.setattr(TrainingDisplay, "update", press)
    result = cli("train", scene)
    assert signal.getsignal(signal.SIGINT) == before
    assert result.exit_code == 130
    assert "Ctrl-C again stops at once" in result.stderr
    assert "without any --redo, goes on from there" in result.stderr  # which would begin anew
    assert cli_json("info", scene)["trained_treelets"] == (1 if times == 1 else 0)
    monkeypatch.undo()
    assert cli_json("train", scene)["remaining"] == 0


def test_a_request_for_what_there_is_not_is_an_error(
    city: SyntheticDataset, tmp_path: Path, cli: Callable[..., Result]
) -> None:
    scene = tmp_path / "scene"
    assert cli("build", city.root, scene, *tiny()).exit_code == 0
    result = cli("train", scene, "--workers", "1", "--request", "GPU=2")
    assert result.exit_code == 4
    assert "GPU 2" in result.stderr
    assert cli("train", scene, "--request", "GPU").exit_code == 2
    result = cli("train", scene, "--scheduler", "nonsense")
    assert result.exit_code == 2
    assert "nonsense" in result.stderr


def test_ctrl_c_while_a_command_is_loaded_is_130(cli: Callable[..., Result], monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(name: str) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(importlib, "import_module", interrupted)
    result = cli("info", "scene")
    assert result.exit_code == 130
    assert "interrupted" in result.stderr
