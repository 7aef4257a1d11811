#!/bin/bash
#SBATCH --account=llm_team
#SBATCH --chdir=/home/me/.run/experiments/exp/exp_1/train
#SBATCH --comment=exp_1/train/1
#SBATCH --job-name=llm_team-team.train
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=4
#SBATCH --open-mode=append
#SBATCH --output=/home/me/.run/experiments/exp/exp_1/train/logs/slurm_%j.log
#SBATCH --requeue
#SBATCH --time=00:10:00

source ./slurm_job.sh || exit 126
export head_node_ip=$(address_of "$(first_host "$SLURM_JOB_NODELIST")")

member hello.sh srun \
    --output=/home/me/.run/experiments/exp/exp_1/train/logs/hello.sh_%t"$suffix".log \
    --kill-on-bad-exit=1 \
    --overlap \
    --nodes=2 \
    --ntasks=2 \
    --chdir=/home/me/code \
    bash /home/me/hello.sh server

srun=$(command -v srun)
member hello.sh_1 "$srun" \
    --output=/home/me/.run/experiments/exp/exp_1/train/logs/hello.sh_1_%t"$suffix".log \
    --kill-on-bad-exit=1 \
    --overlap \
    --nodes=1 \
    --ntasks=4 \
    --chdir=/home/me/code \
    bash /home/me/hello.sh client

finish 0
