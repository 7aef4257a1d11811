# What the scripts of services share; they source it.

# What is made once and takes long: images, downloads.
CACHE=${XDG_CACHE_HOME:-$HOME/.cache}/nemo_run

# Say why a service cannot be had.
give_up() {
    echo "cannot be had: $*"
    exit 1
}

# Wait for a command to succeed: await SECONDS COMMAND...
await() {
    local deadline=$((SECONDS + $1))
    shift
    until "$@" >/dev/null 2>&1; do
        ((SECONDS < deadline)) || return 1
        sleep 0.1
    done
}

# Install Debian packages that are missing.
install() {
    dpkg-query -W -f '${Status}\n' "$@" 2>/dev/null | grep -c 'ok installed' | grep -qx $# && return
    ((EUID == 0)) || give_up "$* must be installed, which takes root"
    command -v apt-get >/dev/null || give_up "$* must be installed, and there is no apt-get"
    export DEBIAN_FRONTEND=noninteractive
    local log
    log=$(mktemp)
    { apt-get install -y -qq --no-install-recommends "$@" \
        || { apt-get update -qq && apt-get install -y -qq --no-install-recommends "$@"; }; } \
        >"$log" 2>&1 </dev/null || give_up "apt-get install $*: $(tail -n 3 "$log")"
    rm -f "$log"
    echo "installed $*"
}

# Print the file of an image with Python, a minimal Debian, which is made from Debian's own packages once.
python_image() {
    local tar=$CACHE/debian-py-12.tar work
    if [[ ! -f $tar ]]; then
        install debootstrap >&2
        work=$(mktemp -d) && mkdir -p "$CACHE"
        debootstrap --variant=minbase --include=python3,ca-certificates bookworm "$work/root" >"$work/log" 2>&1 \
            || give_up "debootstrap: $(tail -n 3 "$work/log")"
        rm -rf "$work"/root/var/cache/apt/archives/*.deb "$work"/root/var/lib/apt/lists/*
        tar -C "$work/root" -cf "$tar.$$" . && mv "$tar.$$" "$tar"
        rm -rf "$work"
        echo "made $tar" >&2
    fi
    echo "$tar"
}
