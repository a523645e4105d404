#!/bin/bash
# Simulate a set of labelled tomograms on a cluster, in ten jobs. The same command goes on where jobs were stopped:
#     sbatch examples/slurm_simulate.sh SET CONFIG.json 1000
#SBATCH --job-name=faket-aug
#SBATCH --array=1-10
#SBATCH --cpus-per-task=4
#SBATCH --mem=16G
#SBATCH --time=24:00:00
#SBATCH --requeue
faket-aug simulate "$1" --config "$2" --count "$3" --threads 4 --shard "$SLURM_ARRAY_TASK_ID/10"
