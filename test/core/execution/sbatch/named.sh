#!/bin/bash
#SBATCH --account=llm_team
#SBATCH --chdir=/home/me/.run/experiments/exp/exp_1/train
#SBATCH --comment="it is \"50%\" \\ done exp_1/train/1"
#SBATCH --constraint="[rack1*2&rack2*4]"
#SBATCH --job-name="é b"
#SBATCH --network=Instances=1
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --open-mode=truncate
#SBATCH --output="/scratch/my logs/sbatch_%x_%j.out"
#SBATCH --requeue
#SBATCH --time=00:10:00

source ./slurm_job.sh || exit 126

member train srun \
    --output=/home/me/.run/experiments/exp/exp_1/train/logs/train_%t"$suffix".log \
    --kill-on-bad-exit=1 \
    --chdir=/home/me/code \
    bash /home/me/hello.sh

finish 0
