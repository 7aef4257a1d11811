#!/bin/bash
#SBATCH --account=llm_team
#SBATCH --chdir=/home/me/.run/experiments/exp/exp_1/train
#SBATCH --comment=exp_1/train/1
#SBATCH --dependency=afterany:12:13
#SBATCH --job-name=llm_team-team.train
#SBATCH --kill-on-invalid-dep=yes
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --open-mode=append
#SBATCH --output=/home/me/.run/experiments/exp/exp_1/train/logs/slurm_%j.log
#SBATCH --requeue
#SBATCH --time=00:10:00

source ./slurm_job.sh || exit 126

member train srun \
    --output=/home/me/.run/experiments/exp/exp_1/train/logs/train_%t"$suffix".log \
    --kill-on-bad-exit=1 \
    --chdir=/home/me/code \
    bash /home/me/hello.sh

finish 0
