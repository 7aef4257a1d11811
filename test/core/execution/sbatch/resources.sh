#!/bin/bash
#SBATCH --account=llm_team
#SBATCH --chdir=/home/me/.run/experiments/exp/exp_1/train
#SBATCH --comment=exp_1/train/1
#SBATCH --cpus-per-task=2
#SBATCH --exclude=node3
#SBATCH --exclusive
#SBATCH --gpus-per-node=2
#SBATCH --job-name=llm_team-team.train
#SBATCH --mem=1536M
#SBATCH --nodelist=node[0-1]
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=2
#SBATCH --open-mode=append
#SBATCH --output=/home/me/.run/experiments/exp/exp_1/train/logs/slurm_%j.log
#SBATCH --requeue
#SBATCH --time=2

source ./slurm_job.sh || exit 126
export head_node_ip=$(address_of "$(first_host "$SLURM_JOB_NODELIST")")

member train srun \
    --output=/home/me/.run/experiments/exp/exp_1/train/logs/train_%t"$suffix".log \
    --kill-on-bad-exit=1 \
    --cpus-per-task=2 \
    --chdir=/home/me/code \
    bash /home/me/hello.sh

finish 0
