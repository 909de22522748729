#!/usr/bin/env bash
# Train on a Slurm cluster: `bash configs/slurm.sh SCENE [JOBS]` on a login node; needs the extra "cluster".
# Every job is one worker process with one GPU; scene and photos lie on a file system that all nodes see. What is trained
# is kept whatever becomes of a job, and the same command goes on. Change what is in capitals to what your cluster has.
set -euo pipefail
script=$(mktemp --suffix .py)
trap 'rm -f "$script"' EXIT
cat >"$script" <<'PYTHON'
import sys

from dask_jobqueue import SLURMCluster
from infnerf_tiles.pipelines.cluster import Workplace
from infnerf_tiles.pipelines.train import train

PARTITION = "gpu"
CORES = 8
MEMORY = "64GB"
WALLTIME = "08:00:00"


def main() -> None:
    scene, jobs = sys.argv[1], int(sys.argv[2]) if len(sys.argv) > 2 else 2
    cluster = SLURMCluster(
        queue=PARTITION,
        cores=CORES,
        memory=MEMORY,
        walltime=WALLTIME,
        processes=1,  # one process per job: it owns the job's GPU
        job_extra_directives=["--gres=gpu:1"],
        # one treelet at a time; the other thread decodes photos meanwhile
        worker_extra_args=["--resources", "GPU=1", "--nthreads", "2", "--lifetime", "7h50m"],
    )
    with cluster:
        cluster.scale(jobs=jobs)
        cluster.wait_for_workers(1)
        summary = train(scene, place=Workplace(scheduler=cluster.scheduler_address, threads=CORES))
        sys.stdout.write(f"{summary.treelets} treelets trained, {summary.remaining} left\n")


if __name__ == "__main__":
    main()
PYTHON
python "$script" "$@"
