"""TensorBoard is optional: without it the error says what to install, with it scalars and pictures are written."""

import sys
from pathlib import Path

import pytest
from api.api_models import TINY, ball_photos

from infnerf_tiles import InfNeRF, InfNeRFConfig, InfNeRFTrainer, InfNeRFTrainerConfig, TensorBoard
from infnerf_tiles.errors import SettingsError


def test_without_tensorboard_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(SettingsError, match=r"infnerf-tiles\[tensorboard\]"):
        TensorBoard(tmp_path)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_scalars_and_pictures_are_written(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    config = InfNeRFTrainerConfig(
        max_steps=4, rays_batch_size=64, log_freq=2, tensorboard=True, log_dir=str(tmp_path / "logs"),
        ckpt_dir=str(tmp_path / "checkpoints"),
    )  # fmt: skip
    InfNeRFTrainer(InfNeRF(InfNeRFConfig(**TINY)), ball_photos(), config).train()
    found = EventAccumulator(str(tmp_path / "logs"))
    found.Reload()
    assert [event.step for event in found.Scalars("train/total")] == [2, 4]
    assert len(found.Scalars("validation/psnr")) == 1
    assert found.Tags()["images"] == ["validation/picture"]
