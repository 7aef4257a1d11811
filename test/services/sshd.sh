#!/usr/bin/env bash
# OpenSSH and rsync: only their packages, for each test starts a private server on a port of its own.
set -uo pipefail
source "$(dirname "$0")/common.sh"

install openssh-server openssh-client rsync util-linux

((EUID != 0)) || mkdir -p /run/sshd
# An account that is locked is refused by sshd whatever key is shown.
! grep -q "^$(id -un):!" /etc/shadow 2>/dev/null || give_up "the account $(id -un) is locked; give it a password"
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
ssh-keygen -q -t ed25519 -N '' -f "$work/key"
/usr/sbin/sshd -t -h "$work/key" -f /dev/null || give_up 'sshd does not accept a private configuration'
echo "$(ssh -V 2>&1 | cut -d, -f1) is installed; tests start servers of their own"
