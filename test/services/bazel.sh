#!/usr/bin/env bash
# Bazel, as Debian builds it, with rules for what tests make with it, none of which needs a network.
#
# Debian's rules_cc is too new for its Bazel, and Bazel wants one whatever is built; tests write a stub of it.
set -uo pipefail
source "$(dirname "$0")/common.sh"

install bazel-bootstrap bazel-rules-java
[[ -d /usr/share/bazel/rules/java ]] || give_up 'Debian keeps its bazel-rules-java elsewhere than expected'
echo "$(command -v bazel) is Debian's $(dpkg-query -W -f '${Version}' bazel-bootstrap)"
