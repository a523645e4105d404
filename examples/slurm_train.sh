#!/bin/bash
# Train on several machines with several GPUs each; arguments are those of train_deepfinder.py. Stopped, it goes on:
#     sbatch examples/slurm_train.sh --specimens model_0 model_1 --style my_tilts.mrc --output run
#SBATCH --nodes=2 --ntasks-per-node=1 --gpus-per-node=4 --cpus-per-task=32
#SBATCH --mem=128G --time=24:00:00 --requeue
export OMP_NUM_THREADS=1
head=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
srun torchrun --nnodes="$SLURM_NNODES" --nproc-per-node="$SLURM_GPUS_ON_NODE" \
    --rdzv-backend=c10d --rdzv-id="$SLURM_JOB_ID" --rdzv-endpoint="$head:29500" \
    examples/train_deepfinder.py --device cuda --workers 4 "$@"
