"""`InfNeRFTrainer`: trains an `InfNeRF` on photos or rays, with any torch optimizer, on one process or many."""

import logging
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.optim import Optimizer

from infnerf_tiles.api.adaptation import Adaptation
from infnerf_tiles.api.callbacks import StopTraining, TensorBoard, TrainerCallback
from infnerf_tiles.api.checkpoint import load_model, parameters_of, read_checkpoint, write_checkpoint
from infnerf_tiles.api.config import InfNeRFRendererConfig, InfNeRFTrainerConfig, VolumeRendererConfig
from infnerf_tiles.api.distributed import Group
from infnerf_tiles.api.drawing import ModelRenderer
from infnerf_tiles.api.fitting import check_bounds
from infnerf_tiles.api.model import InfNeRF
from infnerf_tiles.api.optimizer import FieldAdam, remap_optimizer
from infnerf_tiles.api.rays import PhotoSampler, RayBatch, Sampler, photo_source
from infnerf_tiles.api.volume import VolumeRenderer
from infnerf_tiles.arrays import Float32, Int64
from infnerf_tiles.errors import NonFiniteError, SettingsError, StoreFormatError
from infnerf_tiles.metrics import psnr
from infnerf_tiles.training.schedule import GROWTH_FRACTIONS, directions_seen, learning_rate, refresh_due

_log = logging.getLogger(__name__)

LossTerm = Callable[[dict[str, Any], RayBatch], Tensor]
"""(outputs of `InfNeRF.forward`, batch) -> a scalar that is added to the loss as it is."""
_RANDOM_POINTS = 2048
_IDENTITY_PULL = 0.01
"""Weight that keeps the photos' colour transforms near the identity."""


class InfNeRFTrainer:
    """Trains a model; see `train`, `train_step`, `validate`.

    Random numbers follow from (seed, step) alone, so that a training that goes on from a checkpoint draws what it would
    have drawn: on the CPU the result is the same to the last bit.
    """

    def __init__(
        self,
        model: InfNeRF,
        dataset: Any,
        config: InfNeRFTrainerConfig | None = None,
        *,
        volume: VolumeRendererConfig | VolumeRenderer | None = None,
        sampler: Sampler | None = None,
        optimizer: Optimizer | Callable[[Iterable[Any]], Optimizer] | None = None,
        losses: Mapping[str, LossTerm] | None = None,
        callbacks: Sequence[TrainerCallback] = (),
    ):
        """Prepare a training.

        Args:
            model: of one treelet, on the device to train on.
            dataset: photos (`PosedPhotos`, the path of a data set's folder, `PhotoArrays`, or anything with `cameras`,
                `is_test`, `points` and `read_pyramid`), or a `Sampler` of rays. Held-out photos are validated on.
            volume: weights of the loss terms. sampler: draws rays in place of the photos' own.
            optimizer: any, or what makes one from `model.parameters()`; default: `FieldAdam.of_model`. Its groups'
                learning rates are the rates at the start.
            losses: further loss terms by name.

        SettingsError for a data set that is none of these or lies outside the model's cube; DatasetError if no photo is
        left to train on.
        """
        self.model, self.config = model, config or InfNeRFTrainerConfig()
        self.volume = volume if isinstance(volume, VolumeRenderer) else VolumeRenderer(volume)
        self.losses = dict(losses or {})
        self.source = photo_source(dataset)
        self.sampler = sampler or self._sampler_of(dataset)
        c = self.config
        self.group = Group(device=model.device)
        if c.distributed:
            self.group = Group.join(c.local_rank, model.device, c.distributed_timeout)
            self.group.same_model(model)
        self.adaptation = Adaptation(model)
        if self.source is not None:
            check_bounds(model.root, self.source)
            self.adaptation.start_from_points(self.source)
        made = optimizer or FieldAdam.of_model(model, c.lr_init)
        self.optimizer: Optimizer = made if isinstance(made, Optimizer) else made(model.parameters())
        self._first_rates = [float(group["lr"]) for group in self.optimizer.param_groups]
        self.callbacks = list(callbacks)
        if c.tensorboard and self.group.is_first:
            self.callbacks.append(TensorBoard(c.log_dir))
        self.step = 0
        """Optimizer steps done."""
        self.growths = 0
        self.best = -math.inf
        """Best validation PSNR so far, dB; without held-out photos that of the training rays."""
        self.recent_error = math.nan
        self.last_picture: Float32 | None = None
        """float32 [h, w, 3] in [0, 1], what the last validation drew last."""

    def _sampler_of(self, dataset: Any) -> Sampler:
        if self.source is not None:
            return PhotoSampler(self.source)
        if isinstance(dataset, Sampler):
            return dataset
        raise SettingsError(
            "dataset: expected photos (PosedPhotos, a folder, PhotoArrays) or an object with `sample(rng, count, "
            f"progress) -> RayBatch`, got {type(dataset).__name__}"
        )

    # --- the course of a training -------------------------------------------------------------------------------

    @property
    def rays_per_step(self) -> int:
        """Rays behind one optimizer step, over all processes."""
        return self.config.rays_batch_size * self.config.accumulate_grad_batches * self.group.size

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps in an epoch; for samplers that do not tell their `num_rays`, 1000."""
        rays = getattr(self.sampler, "num_rays", None)
        return 1000 if rays is None else max(1, math.ceil(int(rays) / self.rays_per_step))

    @property
    def total_steps(self) -> int:
        """Optimizer steps of the whole training."""
        return self.config.max_steps or self.config.num_epochs * self.steps_per_epoch

    @property
    def progress(self) -> float:
        """Share of the training that is done."""
        return min(1.0, self.step / self.total_steps)

    def train(self, *, steps: int | None = None, resume: str | Path | None = None) -> dict[str, float]:
        """Train to the end, or `steps` further steps of the same training; returns the last metrics.

        resume: checkpoint to go on from. Writes best.pth and last.pth in `config.ckpt_dir`.
        NonFiniteError if a loss is not finite (the checkpoints hold the last good state), TrainingError if another
        process was lost.
        """
        if resume is not None:
            self.load(resume)
        until = self.total_steps if steps is None else min(self.total_steps, self.step + steps)
        metrics: dict[str, float] = {}
        c = self.config
        try:
            while self.step < until:
                losses = self.train_step()
                for callback in self.callbacks:
                    callback.on_step(self, losses)
                if self.step % c.log_freq == 0:
                    _log.info("step %d of %d: %s", self.step, self.total_steps, _line(losses))
                if self.step % self.steps_per_epoch == 0 or self.step == self.total_steps:
                    metrics = self._end_epoch(math.ceil(self.step / self.steps_per_epoch)) or metrics
        except StopTraining:
            _log.info("training stopped by a callback at step %d", self.step)
        finally:
            for callback in self.callbacks:
                callback.on_end(self)
        self._share_levels()
        if self.step == self.total_steps:
            self.adaptation.settle()
        if self.group.is_first:
            self.save(Path(c.ckpt_dir) / "last.pth")
        return metrics

    def train_step(self, batch: RayBatch | Mapping[str, Any] | None = None) -> dict[str, float]:
        """One optimizer step; returns "total" and every loss term, averaged over batches and processes, and "psnr".

        batch: rays to learn from, in place of those of the sampler (each process is given its own).
        NonFiniteError, before anything is updated, if the loss is not finite.
        """
        c, model = self.config, self.model
        model.train()
        model.gradient_checkpointing = c.gradient_checkpointing
        rng = np.random.default_rng((c.seed, self.step))
        self.optimizer.zero_grad(set_to_none=True)
        sums: dict[str, float] = {}
        for _ in range(c.accumulate_grad_batches):
            for name, value in self._backward(batch, rng).items():
                sums[name] = sums.get(name, 0.0) + value / c.accumulate_grad_batches
        names = sorted(sums)
        means = self.group.mean(torch.tensor([sums[name] for name in names], dtype=torch.float64))
        losses = dict(zip(names, means.tolist(), strict=True))
        if not math.isfinite(losses["total"]):
            raise NonFiniteError(
                f"step {self.step}: the loss is {losses['total']} ({_line(losses)}); nothing was updated. Look for NaN "
                "in the rays and colours, or lower lr_init"
            )
        parameters = parameters_of(model)
        self.group.average_gradients(parameters)
        if c.gradient_clip_val is not None:
            grids = {id(p) for p in model.grid.parameters()}
            torch.nn.utils.clip_grad_norm_([p for p in parameters if id(p) not in grids], c.gradient_clip_val)
        factor = learning_rate(self.progress, c.lr_init, c.lr_final) / c.lr_init
        for group, rate in zip(self.optimizer.param_groups, self._first_rates, strict=True):
            group["lr"] = rate * factor
        self.optimizer.step()
        self.step += 1
        error = losses.pop("_error")
        self.recent_error = error if math.isnan(self.recent_error) else 0.98 * self.recent_error + 0.02 * error
        losses["psnr"] = -10.0 * math.log10(max(error, 1e-12))
        self._adapt(rng)
        return losses

    def _backward(self, given: RayBatch | Mapping[str, Any] | None, rng: np.random.Generator) -> dict[str, float]:
        """Add one batch's share of the gradient; its loss terms."""
        c, model, group = self.config, self.model, self.group
        if given is not None:
            batch = RayBatch.of(given)
            offset = torch.from_numpy(rng.random(batch.num_rays))
        else:
            # every process draws the batch of all and takes its share: the union is that of one process
            count = c.rays_batch_size * group.size
            batch = RayBatch.of(self.sampler.sample(rng, count, self.progress)).part(group.rank, group.size)
            offset = torch.from_numpy(rng.random(count))[group.rank :: group.size]
        generator = torch.Generator().manual_seed(int(rng.integers(1 << 62)))
        device = model.device.type
        with torch.autocast(device, dtype=torch.bfloat16, enabled=c.mixed_precision and _fast_bfloat16(model.device)):
            outputs = model(
                batch.rays_o, batch.rays_d, batch.near, batch.far, batch.focal_length, batch.pixel_width,
                photo=batch.photo if model.config.num_photos else None, offset=offset, generator=generator,
                directions=directions_seen(self.progress) if model.config.num_photos else 1.0,
            )  # fmt: skip
            if self.volume.config.lambda_transparency > 0:
                densities, gsd = model.random_densities(_RANDOM_POINTS, generator)
                outputs |= {"random_densities": densities, "random_gsd": gsd}
        if self.step == 0 and not outputs["samples"].count:
            raise SettingsError(
                f"dataset: expected rays that meet the model's cube {model.root}, none of {batch.num_rays} does; set "
                "scene_bound and root_origin (config_for_photos finds them)"
            )
        terms = self.volume.compute_losses(outputs, {"rgb": batch.rgb, "depth": batch.depth})
        loss = terms["total"]
        for name, term in self.losses.items():
            terms[name] = term(outputs, batch)
            loss = loss + terms[name]
        if model.config.num_photos:
            loss = loss + _IDENTITY_PULL * model.appearance.distance_from_identity()
        terms["total"] = loss
        if bool(torch.isfinite(loss)):
            (loss / c.accumulate_grad_batches).backward()  # type: ignore[no-untyped-call]
            self.adaptation.note(outputs["samples"], outputs["weights"], batch.photo, batch.rays_o.cpu())
        target = batch.rgb.to(model.device, model.dtype)
        error = ((outputs["rgb"].detach() - target) ** 2).mean()
        return {**{name: float(term.detach()) for name, term in terms.items()}, "_error": float(error)}

    # --- the octree ---------------------------------------------------------------------------------------------

    def _adapt(self, rng: np.random.Generator) -> None:
        if refresh_due(self.step, self.config.occupancy_every):
            self.adaptation.refresh(np.random.default_rng((self.config.seed, self.step, 1)))
        if self.growths < len(GROWTH_FRACTIONS) and self.progress >= GROWTH_FRACTIONS[self.growths]:
            self.growths += 1
            self.group.join_evidence(self.adaptation.evidence)
            self._changed("grown", self.adaptation.grow())
            if self.model.config.use_pruning:
                self._changed("pruned", self.adaptation.prune())

    def _changed(self, what: str, source: Int64 | None) -> None:
        if source is not None:
            remap_optimizer(self.optimizer, self.model, torch.from_numpy(source))
            _log.info("step %d: octree %s, %d nodes", self.step, what, self.model.num_nodes)

    def _share_levels(self) -> None:
        if self.group.size > 1:
            self.group.join_levels(self.adaptation.evidence)
        self.adaptation.set_trained_levels()

    # --- validation and checkpoints -----------------------------------------------------------------------------

    def validate(self) -> dict[str, float]:
        """Mean PSNR, dB, of held-out photos at full size ("psnr") and their number; {} where none is held out.

        With colour transforms per photo, pictures are drawn with their mean.
        """
        held_out = [] if self.source is None else np.flatnonzero(np.asarray(self.source.is_test)).tolist()
        if self.source is None or not held_out or not self.config.val_photos:
            return {}
        self.adaptation.set_trained_levels()
        affine = self.model.appearance.affine.detach().float().cpu().numpy()
        mean = affine.mean(axis=0) if len(affine) else None
        found = []
        renderer = ModelRenderer(self.model, InfNeRFRendererConfig())
        for photo in held_out[:: max(1, len(held_out) // self.config.val_photos)][: self.config.val_photos]:
            rgb, mask = self.source.read_pyramid(photo)[0]
            cameras = self.source.cameras
            picture = renderer.render(cameras.camera(photo), cameras.camera_to_world[photo], affine=mean)
            self.last_picture = np.clip(picture.rgb, 0.0, 1.0)
            found.append(psnr(self.last_picture, (rgb / np.float32(255.0)).astype(np.float32), mask))
        return {"psnr": float(np.mean(found)), "photos": float(len(found))}

    def _end_epoch(self, epoch: int) -> dict[str, float]:
        c = self.config
        metrics: dict[str, float] = {}
        self._share_levels()
        last = self.step == self.total_steps
        if self.group.is_first:
            if c.eval_freq and (epoch % c.eval_freq == 0 or last):
                metrics = self.validate()
                _log.info("epoch %d: %s", epoch, _line(metrics))
            score = metrics.get("psnr", -10.0 * math.log10(max(self.recent_error, 1e-12)))
            if score > self.best and (metrics or not c.eval_freq or not self._validates):
                self.best = score
                self.save(Path(c.ckpt_dir) / "best.pth")
            if c.save_freq and epoch % c.save_freq == 0:
                self.save(Path(c.ckpt_dir) / "last.pth")
        for callback in self.callbacks:
            callback.on_epoch(self, metrics)
        return metrics

    @property
    def _validates(self) -> bool:
        return self.source is not None and bool(np.asarray(self.source.is_test).any()) and self.config.val_photos > 0

    def save(self, path: str | Path) -> None:
        """Write a checkpoint: model, optimizer, octree evidence and counters."""
        counters = {"step": self.step, "growths": self.growths, "best": self.best, "recent_error": self.recent_error}
        more = {
            "trainer": counters,
            "trainer_config": asdict(self.config),
            "optimizer": self.optimizer.state_dict(),
            "optimizer_class": type(self.optimizer).__name__,
            "evidence": self.adaptation.state_dict(),
        }
        write_checkpoint(Path(path), self.model, more)

    def load(self, path: str | Path) -> None:
        """Go on from a checkpoint of the same model and data. Errors as `load_model`; StoreFormatError if it holds a
        model alone, or another optimizer's state."""
        path = Path(path)
        document = read_checkpoint(path)
        if "trainer" not in document or document["optimizer_class"] != type(self.optimizer).__name__:
            found = document.get("optimizer_class", "a model alone")
            raise StoreFormatError(f"{path}: expected a training with {type(self.optimizer).__name__}, got {found}")
        load_model(path, model=self.model, document=document)
        try:
            self.optimizer.load_state_dict(document["optimizer"])
            self.adaptation.load_state_dict(document["evidence"])
        except (KeyError, ValueError, RuntimeError) as error:
            raise StoreFormatError(f"{path}: its training does not fit this one ({error})") from error
        counters = document["trainer"]
        self.step, self.growths = int(counters["step"]), int(counters["growths"])
        self.best, self.recent_error = float(counters["best"]), float(counters["recent_error"])

    def close(self) -> None:
        """Leave the group of processes, if this trainer joined one."""
        self.group.close()


def _fast_bfloat16(device: torch.device) -> bool:
    """Whether the device multiplies bfloat16 in hardware; elsewhere it is slower than float32."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported())
    capability = getattr(torch.backends.cpu, "get_cpu_capability", lambda: "")()
    has = getattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)
    return "AVX512" in capability and bool(has())


def _line(values: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {value:.4g}" for name, value in values.items())

