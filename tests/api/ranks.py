"""What each process of a distributed training runs in the tests; a script of its own."""

import json
import os
import sys
from pathlib import Path

from infnerf_tiles import InfNeRF, InfNeRFConfig, InfNeRFTrainer, InfNeRFTrainerConfig


def thread_names() -> list[str]:
    """Names of this process's threads, where Linux tells them."""
    return [(task / "comm").read_text().strip() for task in Path("/proc/self/task").glob("*")]


def train(folder: Path, *, distributed: bool, rays: int, steps: int, killed_at: int) -> list[float]:
    """Losses of every step. The process with rank 1 dies at step `killed_at`."""
    from api.api_models import TINY, ball_photos

    rank = int(os.environ.get("RANK", "0"))
    config = InfNeRFTrainerConfig(
        rays_batch_size=rays, max_steps=steps, eval_freq=0, distributed=distributed, local_rank=rank,
        ckpt_dir=str(folder), distributed_timeout=60.0, occupancy_every=64, lr_init=2e-2,
    )  # fmt: skip
    model = InfNeRF(InfNeRFConfig(**{**TINY, "background": "black", "seed": rank}))
    trainer = InfNeRFTrainer(model, ball_photos(8, 24), config)
    losses = []
    while trainer.step < steps:
        if rank == 1 and trainer.step == killed_at:
            os._exit(9)
        losses.append(trainer.train_step()["total"])
    trainer.close()
    if distributed:
        (folder / f"threads{rank}.json").write_text(json.dumps(thread_names()))
    (folder / f"nodes{rank}.json").write_text(json.dumps(model.keys.tolist()))
    return losses


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
    out, rays, steps, killed_at = sys.argv[1:]
    found = train(Path(out), distributed=True, rays=int(rays), steps=int(steps), killed_at=int(killed_at))
    (Path(out) / f"losses{os.environ.get('RANK', '0')}.json").write_text(json.dumps(found))
