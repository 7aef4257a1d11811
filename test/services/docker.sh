#!/usr/bin/env bash
# A Docker Engine that answers where clients look for one, with the image that the tests run in.
#
# No registry is needed: the image is a minimal Debian with Python, made from Debian's own packages once and
# kept as a tar. Without systemd the Engine is started as a plain process, which stays.
set -uo pipefail
source "$(dirname "$0")/common.sh"

IMAGE=debian-py:12
LOG=/var/log/nemo_run-dockerd.log

answers() { docker version --format '{{.Server.Version}}'; }

start_engine() {
    [[ -z ${DOCKER_HOST:-} ]] || give_up "DOCKER_HOST is $DOCKER_HOST, and no Engine answers there"
    ((EUID == 0)) || give_up 'no Engine answers, and to start one takes root'
    install docker.io iptables iproute2
    if [[ -d /run/systemd/system ]]; then
        systemctl start docker
    else
        setsid dockerd >>"$LOG" 2>&1 </dev/null &
    fi
    await 60 answers || give_up "the Engine was started and does not answer: $(tail -n 3 "$LOG" 2>/dev/null)"
    echo 'started the Engine'
}

answers >/dev/null 2>&1 || start_engine
install docker-registry  # tests that push an image start one of their own
if ! docker image inspect "$IMAGE" >/dev/null 2>&1; then
    tar=$(python_image) || give_up "$tar"
    docker import "$tar" "$IMAGE" >/dev/null || give_up "$tar cannot be imported"
    echo "imported $IMAGE"
fi
echo "Engine $(answers) answers at ${DOCKER_HOST:-unix:///var/run/docker.sock} and holds $IMAGE"
