"""What a training tells others while it runs."""

from pathlib import Path
from typing import Any

from infnerf_tiles.errors import SettingsError


class TrainerCallback:
    """Override what you want to hear of; `trainer` is the `InfNeRFTrainer`.

    Raise `StopTraining` to end the training early, as if it were done.
    """

    def on_step(self, trainer: Any, losses: dict[str, float]) -> None:
        """After every optimizer step; `losses` as `train_step` returns them."""

    def on_epoch(self, trainer: Any, metrics: dict[str, float]) -> None:
        """After every epoch; `metrics` as `validate` returns them, empty where there was no validation."""

    def on_end(self, trainer: Any) -> None:
        """When the training is over, also when it fails."""


class StopTraining(Exception):  # a request, not a failure
    """Raised by a callback to end the training."""


class TensorBoard(TrainerCallback):
    """Scalars every `config.log_freq` steps, metrics and a held-out picture at every validation."""

    def __init__(self, log_dir: str | Path):
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise SettingsError(
                f'tensorboard: expected the package tensorboard, got none ({error}); pip install "infnerf-tiles'
                '[tensorboard]", or leave InfNeRFTrainerConfig.tensorboard off'
            ) from error
        self._writer: Any = SummaryWriter(str(log_dir))

    def on_step(self, trainer: Any, losses: dict[str, float]) -> None:
        """Losses, learning rate and the size of the octree."""
        if trainer.step % trainer.config.log_freq:
            return
        for name, value in losses.items():
            self._writer.add_scalar(f"train/{name}", value, trainer.step)
        self._writer.add_scalar("train/nodes", trainer.model.num_nodes, trainer.step)

    def on_epoch(self, trainer: Any, metrics: dict[str, float]) -> None:
        """Metrics and the picture that the validation drew last."""
        for name, value in metrics.items():
            self._writer.add_scalar(f"validation/{name}", value, trainer.step)
        if trainer.last_picture is not None:
            self._writer.add_image("validation/picture", trainer.last_picture, trainer.step, dataformats="HWC")
        self._writer.flush()

    def on_end(self, trainer: Any) -> None:
        """Close the file."""
        self._writer.close()
