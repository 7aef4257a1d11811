#!/bin/bash
#SBATCH --account=llm_team
#SBATCH --chdir=/home/me/.run/experiments/exp/exp_1/train
#SBATCH --comment=exp_1/train/1
#SBATCH --gpus-per-node=2
#SBATCH --job-name=llm_team-team.train
#SBATCH --nodes=2
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
    /bin/sh -c 'exec /usr/bin/python3 -m torch.distributed.run --rdzv-backend c10d --rdzv-endpoint "$head_node_ip:29500" --rdzv-id 5225 --nnodes 2 --nproc-per-node 8 --node-rank "$SLURM_NODEID" --log-dir /dev/null --no-python /usr/bin/python3 /opt/nemo_run/core/runner.py /home/me/.run/experiments/exp/exp_1/train train RANK'

finish 0
