#!/bin/bash
#SBATCH --account=llm_team
#SBATCH --chdir=/scratch/me/runs/exp/exp_1/train
#SBATCH --comment=exp_1/train/1
#SBATCH --job-name=llm_team-team.train
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --open-mode=append
#SBATCH --output=/scratch/me/runs/exp/exp_1/train/logs/slurm_%j.log
#SBATCH --requeue
#SBATCH --time=00:10:00

source ./slurm_job.sh || exit 126
module load cuda

member train srun \
    --output=/scratch/me/runs/exp/exp_1/train/logs/train_%t"$suffix".log \
    --kill-on-bad-exit=1 \
    --chdir=/scratch/me/runs/exp/exp_1/train/code \
    python3 /scratch/me/runs/.nemo_run/library/VERSION/nemo_run/core/runner.py /scratch/me/runs/exp/exp_1/train train

finish 0
