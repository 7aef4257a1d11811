#!/usr/bin/env bash
# Slurm with accounting: only its packages, for each test process starts a private cluster of its own.
set -uo pipefail
source "$(dirname "$0")/common.sh"

install slurm-wlm munge slurmdbd mariadb-server libslurm-dev gcc libc6-dev util-linux

plugin=$(mktemp --suffix=.so)
gcc -shared -fPIC -o "$plugin" pyxis_double.c || give_up 'the double of Pyxis cannot be compiled'
rm -f "$plugin"
/usr/sbin/slurmctld -V >/dev/null || give_up 'slurmctld does not start'
/usr/sbin/mariadbd --version >/dev/null || give_up 'mariadbd does not start'
echo "$(/usr/sbin/slurmctld -V) with slurmdbd is installed; tests start clusters of their own"
