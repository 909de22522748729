"""`InfNeRFTrainer`: learning, resuming, checkpoints, callbacks."""

from pathlib import Path
from typing import Any

import pytest
import torch
from api.api_models import TINY, ball_photos, some_rays, tiny_model

from infnerf_tiles.api import (
    InfNeRF,
    InfNeRFConfig,
    InfNeRFRenderer,
    InfNeRFTrainer,
    InfNeRFTrainerConfig,
    RayBatch,
    StopTraining,
    TrainerCallback,
)
from infnerf_tiles.api.checkpoint import load_model
from infnerf_tiles.api.optimizer import remap_optimizer
from infnerf_tiles.errors import DamagedStoreError, NonFiniteError, SettingsError, StoreFormatError

PHOTOS = ball_photos()


def _trainer(
    folder: Path, model: InfNeRF | None = None, options: dict[str, Any] | None = None, **changes: Any
) -> InfNeRFTrainer:
    config = InfNeRFTrainerConfig(
        **{"ckpt_dir": str(folder), "rays_batch_size": 64, "max_steps": 20, "eval_freq": 0, **changes}
    )
    return InfNeRFTrainer(model or InfNeRF(InfNeRFConfig(**TINY)), PHOTOS, config, **(options or {}))


def _same(a: InfNeRF, b: InfNeRF) -> bool:
    x, y = a.state_dict(), b.state_dict()
    return x.keys() == y.keys() and all(torch.equal(x[name], y[name]) for name in x)


def test_a_ball_is_learned_and_its_octree_grows(tmp_path: Path) -> None:
    photos = ball_photos(12, 32)
    model = InfNeRF(InfNeRFConfig(**{**TINY, "log2_table_size": 12, "num_samples": 48, "background": "black"}))
    config = InfNeRFTrainerConfig(max_steps=250, rays_batch_size=256, lr_init=2e-2, ckpt_dir=str(tmp_path))
    trainer = InfNeRFTrainer(model, photos, config)
    first = trainer.validate()["psnr"]
    metrics = trainer.train()
    assert metrics["psnr"] > first + 4.0
    assert metrics["psnr"] > 18.0
    assert model.num_nodes > 1
    occupied = torch.from_numpy(trainer.adaptation.state.occupied()).float()
    assert float(occupied[1:].mean()) < 0.9
    drawn = InfNeRFRenderer.from_checkpoint(tmp_path / "last.pth").render_image(
        photos.cameras.camera_to_world[0], photos.cameras.camera(0)
    )
    # the ball is in the middle of the picture, and nothing in its corners
    assert float(drawn["alpha"][13:19, 13:19].mean()) > 0.9
    assert float(drawn["alpha"][:6, :6].mean()) < 0.3


def test_two_hundred_steps_are_a_hundred_and_a_hundred_resumed(tmp_path: Path) -> None:
    length = {"max_steps": 200, "rays_batch_size": 24}
    straight = _trainer(tmp_path / "a", **length)
    straight.train()
    first = _trainer(tmp_path / "b", **length)
    first.train(steps=100)
    assert first.step == 100
    second = _trainer(tmp_path / "b", **length)
    second.train(resume=tmp_path / "b" / "last.pth")
    assert second.step == straight.step == 200
    assert straight.model.num_nodes > 1
    assert straight.growths == second.growths > 0
    assert _same(straight.model, second.model)
    for a, b in zip(straight.optimizer.state.values(), second.optimizer.state.values(), strict=True):
        assert all(torch.equal(torch.as_tensor(a[name]), torch.as_tensor(b[name])) for name in a)


def test_what_an_optimizer_keeps_follows_its_nodes() -> None:
    model = tiny_model(seed=3)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    model(*some_rays(64), focal_length=40.0)["rgb"].sum().backward()
    optimizer.step()
    tables: Any = model.grid.tables
    before = {name: optimizer.state[tables][name].clone() for name in ("exp_avg", "exp_avg_sq")}
    assert float(before["exp_avg_sq"].abs().amax(dim=(1, 2)).min()) > 0.0
    source = torch.tensor([0, 2, -1, 5])
    remap_optimizer(optimizer, model, source)
    for name, value in before.items():
        now = optimizer.state[tables][name]
        assert torch.equal(now[[0, 1, 3]], value[[0, 2, 5]])
        assert float(now[2].abs().max()) == 0.0


def test_accumulated_batches_are_one_larger_batch(tmp_path: Path) -> None:
    found = []
    batch = PHOTOS_BATCH
    for parts in (1, 2):
        model = tiny_model(seed=2)
        trainer = _trainer(tmp_path, model, options={"optimizer": torch.optim.SGD(model.parameters(), lr=0.1)},
                           accumulate_grad_batches=parts)  # fmt: skip
        trainer.train_step(batch)
        found.append(model.decoder.colour_out.weight.detach().clone())  # type: ignore[union-attr]
    # the same batch twice: the mean of equal gradients, but for the random shift of the steps
    torch.testing.assert_close(found[0], found[1], rtol=0.02, atol=1e-3)


PHOTOS_BATCH = {
    "rays_o": torch.tensor([[0.0, -2.0, 0.1]]).expand(64, 3),
    "rays_d": torch.nn.functional.normalize(torch.tensor([[0.0, 1.0, 0.0]]) + 0.3 * torch.randn(64, 3), dim=1),
    "rgb": torch.full((64, 3), 0.7),
    "focal_length": 24.0,
}


def test_the_network_clip_and_other_optimizers_work(tmp_path: Path) -> None:
    trainer = _trainer(tmp_path, options={"optimizer": torch.optim.AdamW}, gradient_clip_val=0.1,
                       gradient_checkpointing=True, max_steps=150)  # fmt: skip
    trainer.train()
    assert isinstance(trainer.optimizer, torch.optim.AdamW)
    assert trainer.optimizer.param_groups[0]["lr"] < 1e-3
    assert trainer.model.num_nodes > 1
    with pytest.raises(StoreFormatError, match="FieldAdam"):
        _trainer(tmp_path).load(tmp_path / "last.pth")


def test_a_loss_that_is_not_finite_updates_nothing(tmp_path: Path) -> None:
    trainer = _trainer(tmp_path)
    before = {name: value.clone() for name, value in trainer.model.state_dict().items()}
    bad = {**PHOTOS_BATCH, "rgb": torch.full((64, 3), float("nan"))}
    with pytest.raises(NonFiniteError, match="nothing was updated"):
        trainer.train_step(bad)
    assert all(torch.equal(value, before[name]) for name, value in trainer.model.state_dict().items())


def test_callbacks_hear_and_stop(tmp_path: Path) -> None:
    heard: list[str] = []

    class Ear(TrainerCallback):
        def on_step(self, trainer: InfNeRFTrainer, losses: dict[str, float]) -> None:
            assert {"total", "rgb", "psnr"} <= losses.keys()
            heard.append("step")
            if trainer.step == 7:
                raise StopTraining

        def on_end(self, trainer: InfNeRFTrainer) -> None:
            heard.append("end")

    trainer = _trainer(tmp_path, options={"callbacks": [Ear()]})
    trainer.train()
    assert heard == ["step"] * 7 + ["end"]
    assert trainer.step == 7
    assert (tmp_path / "last.pth").is_file()


def test_validation_keeps_the_best_checkpoint(tmp_path: Path) -> None:
    scores = iter([10.0, 30.0, 20.0, 5.0, 1.0, 2.0])
    trainer = _trainer(tmp_path, eval_freq=1, max_steps=None, num_epochs=3, rays_batch_size=2000)
    trainer.validate = lambda: {"psnr": next(scores)}  # type: ignore[method-assign]
    trainer.train()
    best = torch.load(tmp_path / "best.pth", weights_only=True)
    assert trainer.best == 30.0
    assert best["trainer"]["step"] == 2 * trainer.steps_per_epoch
    assert sorted(p.name for p in tmp_path.iterdir()) == ["best.pth", "last.pth"]


def test_checkpoints_that_are_none_are_refused(tmp_path: Path) -> None:
    trainer = _trainer(tmp_path, max_steps=1)
    trainer.train()
    good = (tmp_path / "last.pth").read_bytes()
    (tmp_path / "cut.pth").write_bytes(good[: len(good) // 2])
    with pytest.raises(DamagedStoreError, match=r"cut\.pth"):
        load_model(tmp_path / "cut.pth")
    torch.save({"model": print}, tmp_path / "code.pth")
    with pytest.raises(DamagedStoreError, match=r"code\.pth"):
        load_model(tmp_path / "code.pth")
    torch.save({"weights": torch.zeros(2)}, tmp_path / "other.pth")
    with pytest.raises(StoreFormatError, match=r"other\.pth"):
        load_model(tmp_path / "other.pth")
    document = torch.load(tmp_path / "last.pth", weights_only=True)
    document["model"]["treelet"] += 5
    torch.save(document, tmp_path / "bent.pth")
    with pytest.raises(StoreFormatError, match="fit together"):
        load_model(tmp_path / "bent.pth")


def test_data_sets_that_are_none_are_refused(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="dataset"):
        InfNeRFTrainer(tiny_model(), [1, 2, 3])
    with pytest.raises(SettingsError, match="batch"):
        RayBatch.of({"rays_o": torch.zeros(1, 3), "origin": torch.zeros(3)})
    with pytest.raises(SettingsError, match="lr_final"):
        InfNeRFTrainerConfig(lr_init=1e-4, lr_final=1e-3)
