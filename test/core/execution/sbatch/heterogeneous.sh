#!/bin/bash
#SBATCH --account=llm_team
#SBATCH --chdir=/home/me/.run/experiments/exp/exp_1/train
#SBATCH --comment=exp_1/train/1
#SBATCH --gpus-per-node=2
#SBATCH --job-name=llm_team-team.train-0
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --open-mode=append
#SBATCH --output=/home/me/.run/experiments/exp/exp_1/train/logs/slurm_%j.log
#SBATCH --requeue
#SBATCH --time=00:10:00
#SBATCH hetjob
#SBATCH --account=llm_team
#SBATCH --chdir=/home/me/.run/experiments/exp/exp_1/train
#SBATCH --job-name=llm_team-team.train-1
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --time=00:10:00

source ./slurm_job.sh || exit 126
export het_group_host_0=$(first_host "$SLURM_JOB_NODELIST_HET_GROUP_0")
export het_group_host_1=$(first_host "$SLURM_JOB_NODELIST_HET_GROUP_1")
export head_node_ip=$(address_of "$(first_host "$SLURM_JOB_NODELIST")")

member hello.sh srun \
    --output=/home/me/.run/experiments/exp/exp_1/train/logs/hello.sh_%t"$suffix".log \
    --kill-on-bad-exit=1 \
    --het-group=0 \
    --overlap \
    --chdir=/home/me/code \
    bash /home/me/hello.sh big

member hello.sh_1 srun \
    --output=/home/me/.run/experiments/exp/exp_1/train/logs/hello.sh_1_%t"$suffix".log \
    --kill-on-bad-exit=1 \
    --het-group=1 \
    --overlap \
    --chdir=/home/me/code \
    bash /home/me/hello.sh small

member hello.sh_2 srun \
    --output=/home/me/.run/experiments/exp/exp_1/train/logs/hello.sh_2_%t"$suffix".log \
    --kill-on-bad-exit=1 \
    --het-group=1 \
    --overlap \
    --chdir=/home/me/code \
    bash /home/me/hello.sh beside

finish 0
