#!/bin/bash
#SBATCH --account=llm_team
#SBATCH --chdir=/home/me/.run/experiments/exp/exp_1/train
#SBATCH --comment=exp_1/train/1
#SBATCH --job-name=llm_team-team.train
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --open-mode=append
#SBATCH --output=/home/me/.run/experiments/exp/exp_1/train/logs/slurm_%j.log
#SBATCH --requeue
#SBATCH --time=00:10:00

source ./slurm_job.sh || exit 126
export head_node_ip=$(address_of "$(first_host "$SLURM_JOB_NODELIST")")

member train srun \
    --output=/home/me/.run/experiments/exp/exp_1/train/logs/train_%t"$suffix".log \
    --kill-on-bad-exit=1 \
    --chdir=/home/me/code \
    /bin/sh -c 'export RANK="$SLURM_PROCID"
exec bash /home/me/hello.sh "$SLURM_NODEID" "${head_node_ip}:1" : "${SLURM_NODEID}" SLURM_NNODES "${het_group_host_1}"'

finish 0
