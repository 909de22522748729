"""Several processes that train one model: gradients averaged after every step (gloo on the CPU, NCCL on CUDA)."""

import atexit
import datetime
import importlib
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
import torch.distributed as dist
from torch import Tensor, nn

from infnerf_tiles.errors import SettingsError, TrainingError
from infnerf_tiles.training.growth import Evidence

_VARIABLES = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


class Group:
    """The processes of a training; one alone does nothing here. Raises TrainingError when another one is lost."""

    def __init__(self, rank: int = 0, size: int = 1, device: torch.device | None = None):
        self.rank, self.size, self.device = rank, size, device or torch.device("cpu")
        self._owned = False

    @classmethod
    def join(cls, local_rank: int, device: torch.device, timeout: float) -> "Group":
        """Join the processes that `torchrun` started (or a group that is already there).

        SettingsError if torchrun's variables are missing, TrainingError if the others do not come in `timeout` seconds.
        """
        if not dist.is_available():
            raise SettingsError("distributed: expected a torch with torch.distributed, got one without it")
        owned = not dist.is_initialized()
        if owned:
            if missing := [name for name in _VARIABLES if name not in os.environ]:
                raise SettingsError(
                    f"distributed: expected the variables of torchrun, {', '.join(missing)} not set; start the script "
                    "with `torchrun --nproc-per-node=N script.py`"
                )
            if device.type == "cuda":
                torch.cuda.set_device(local_rank)
            backend = "nccl" if device.type == "cuda" else "gloo"
            # Its functions take the group that is there when it is imported as their default. An optimizer imports it:
            # afterwards nothing would free the group, and its threads would meet the end of the interpreter: an abort.
            importlib.import_module("torch.distributed.nn.functional")
            try:
                dist.init_process_group(backend, timeout=datetime.timedelta(seconds=timeout))
            except RuntimeError as error:  # DistStoreError among them
                raise TrainingError(
                    f"distributed: expected the other processes within {timeout:g} s, they did not come ({error})"
                ) from error
        group = cls(dist.get_rank(), dist.get_world_size(), device)
        group._owned = owned
        if owned and device.type == "cpu":
            # also where an error ends the process; NCCL needs no such help, and could wait for processes that are lost
            atexit.register(group.close)
        return group

    @property
    def is_first(self) -> bool:
        """Whether this process writes files."""
        return self.rank == 0

    def average_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Replace every gradient by the mean over the processes."""
        if self.size == 1:
            return
        with self._told():
            for parameter in parameters:
                if not parameter.requires_grad or not parameter.numel():
                    continue
                if parameter.grad is None:
                    parameter.grad = torch.zeros_like(parameter)
                dist.all_reduce(parameter.grad)
                parameter.grad /= self.size

    def mean(self, values: Tensor) -> Tensor:
        """The mean of a tensor over the processes."""
        if self.size == 1:
            return values
        total = values.detach().clone().to(self.device)
        with self._told():
            dist.all_reduce(total)
        return total / self.size

    def same_model(self, model: nn.Module) -> None:
        """Give every process the first one's parameters and buffers."""
        if self.size == 1:
            return
        with self._told():
            for value in model.state_dict().values():
                if isinstance(value, Tensor) and value.numel():
                    dist.broadcast(value, 0)

    def join_evidence(self, evidence: Evidence) -> None:
        """Bring together what the processes' samples asked for."""
        if self.size == 1:
            return
        with self._told():
            for name, op in (("seen", dist.ReduceOp.MAX), ("count", dist.ReduceOp.SUM)):
                self._reduce(getattr(evidence, name), op)
            # a bit per group of photos: a sum of bits would carry over
            places = torch.arange(63)
            bits = ((evidence.photos[..., None] >> places) & 1).int()
            self._reduce(bits, dist.ReduceOp.MAX)
            evidence.photos.copy_((bits.long() << places).sum(dim=-1))

    def join_levels(self, evidence: Evidence) -> None:
        """Bring together the finest levels that the processes' samples wanted."""
        if self.size > 1:
            with self._told():
                self._reduce(evidence.seen, dist.ReduceOp.MAX)

    def _reduce(self, values: Tensor, op: dist.ReduceOp.RedOpType) -> None:
        there = values.to(self.device)
        dist.all_reduce(there, op)
        values.copy_(there)

    def close(self) -> None:
        """Leave the group if this object joined it."""
        if self._owned and dist.is_initialized():
            dist.destroy_process_group()
        self._owned = False
        atexit.unregister(self.close)

    @contextmanager
    def _told(self) -> Iterator[None]:
        try:
            yield
        except RuntimeError as error:
            raise TrainingError(
                f"distributed: process {self.rank} of {self.size} lost another one ({error}); what was learned up to "
                "the last checkpoint is kept: start all of them again with `resume`"
            ) from error
