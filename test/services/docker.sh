#!/usr/bin/env bash
# A Docker Engine that answers where clients look for one, with the image that the tests run in.
#
# No registry is needed: the image is a minimal Debian with Python, made from Debian's own packages once and
# kept as a tar. Without systemd the Engine is started as a plain process, which stays.
set -uo pipefail
source "$(dirname "$0")/common.sh"

IMAGE=debian-py:12
TAR=$CACHE/debian-py-12.tar
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

make_tar() {
    install debootstrap
    local work
    work=$(mktemp -d) && mkdir -p "$CACHE"
    debootstrap --variant=minbase --include=python3,ca-certificates bookworm "$work/root" >"$work/log" 2>&1 \
        || give_up "debootstrap: $(tail -n 3 "$work/log")"
    rm -rf "$work"/root/var/cache/apt/archives/*.deb "$work"/root/var/lib/apt/lists/*
    tar -C "$work/root" -cf "$TAR.$$" . && mv "$TAR.$$" "$TAR"
    rm -rf "$work"
    echo "made $TAR"
}

answers >/dev/null 2>&1 || start_engine
install docker-registry  # tests that push an image start one of their own
if ! docker image inspect "$IMAGE" >/dev/null 2>&1; then
    [[ -f $TAR ]] || make_tar
    docker import "$TAR" "$IMAGE" >/dev/null || give_up "$TAR cannot be imported"
    echo "imported $IMAGE"
fi
echo "Engine $(answers) answers at ${DOCKER_HOST:-unix:///var/run/docker.sock} and holds $IMAGE"
