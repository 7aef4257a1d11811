#!/usr/bin/env bash
# zsh, in which completion is tested as it is in bash.
set -uo pipefail
source "$(dirname "$0")/common.sh"

install zsh
echo "$(zsh --version) is installed"
