#!/bin/bash
#SBATCH --account=llm_team
#SBATCH --chdir=/home/me/.run/experiments/exp/exp_1/train
#SBATCH --comment=exp_1/train/1
#SBATCH --job-name=llm_team-team.train
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --open-mode=append
#SBATCH --output=/home/me/.run/experiments/exp/exp_1/train/logs/slurm_%j.log
#SBATCH --requeue
#SBATCH --time=00:10:00

source ./slurm_job.sh || exit 126
export head_node_ip=$(address_of "$(first_host "$SLURM_JOB_NODELIST")")

[ -e /home/me/.run/experiments/exp/exp_1/train/cache ] || mkdir -p /home/me/.run/experiments/exp/exp_1/train/cache
member train srun \
    --output=/home/me/.run/experiments/exp/exp_1/train/logs/train_%t"$suffix".log \
    --kill-on-bad-exit=1 \
    --container-image=nvcr.io/nvidia/nemo:24.07 \
    --container-mounts=/data:/data,/home/me/.run/experiments/exp/exp_1/train/cache:/cache,/home/me/.run/experiments/exp/exp_1/train:/nemo_run,/opt/nemo_run:/nemo_run_library/nemo_run \
    --container-workdir=/nemo_run \
    --container-env=PATH,LD_LIBRARY_PATH \
    --mpi=pmix \
    /bin/sh -c '. "$0" && exec "$@"' /nemo_run/env/train.sh bash /home/me/hello.sh

finish 0
