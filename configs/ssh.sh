#!/usr/bin/env bash
# Train on machines that you reach through ssh: `bash configs/ssh.sh SCENE HOST [HOST ...]`, on a machine that they reach.
# Scene and photos lie at the same path on all of them, and so does this environment. Every host gets one worker per GPU.
set -euo pipefail
scene=$1
shift
port=8786
address=tcp://$(hostname -f):$port
bin=$(dirname "$(command -v infnerf-tiles)")

"$bin/dask" scheduler --port "$port" --no-dashboard &
processes=($!)
trap 'kill "${processes[@]}" 2>/dev/null || true' EXIT
for host in "$@"; do
  gpus=$(ssh "$host" 'nvidia-smi -L 2>/dev/null | wc -l')
  for ((gpu = 0; gpu < (gpus > 0 ? gpus : 1); gpu++)); do
    resources=TRAIN=1
    [ "$gpus" = 0 ] || resources="TRAIN=1 GPU=1"
    # -tt: the worker ends with this script
    ssh -tt "$host" "CUDA_VISIBLE_DEVICES=$gpu $bin/dask worker $address --nthreads 2 --no-dashboard \
      --memory-limit 0 --resources '$resources'" </dev/null &
    processes+=($!)
  done
done
sleep 10
infnerf-tiles train "$scene" --scheduler "$address"
