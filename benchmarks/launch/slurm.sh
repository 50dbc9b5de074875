#!/usr/bin/env bash
# sgjax on two nodes of eight GPUs, one process a GPU: sbatch benchmarks/launch/slurm.sh
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=8
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=8
#SBATCH --time=01:00:00
# sgjax reads srun's variables: the processes find each other, and each takes the GPU of its place.
# The folder must be one that all nodes see.
srun sgjax train influenza_1978 --folder "$SLURM_SUBMIT_DIR/run-$SLURM_JOB_ID" --batch-size 65536
