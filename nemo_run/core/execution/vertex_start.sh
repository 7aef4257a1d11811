# Starts a task of nemo_run in a container of Vertex AI. Above this line stand: stage, the job's folder in the
# bucket, as it is mounted here; rundir; the archives; and where there are several replicas first_pool, the first
# of the role's pools, and others, all replicas but the primary one.
set -e
workdir=$1
shift

# So that the files are read from a disk and what the task leaves is in the bucket as soon as it is written.
mkdir -p "$rundir" "$stage/results" "$stage/artifacts"
for archive in $archives; do
    mkdir -p "$rundir/${archive%%=*}"
    tar -xzf "$bucket/${archive#*=}" -C "$rundir/${archive%%=*}"
done
ln -sfn "$stage/results" "$rundir/results"
ln -sfn "$stage/artifacts" "$rundir/artifacts"
mkdir -p "$workdir"
cd "$workdir"

# Who we are among the replicas, from the one line of JSON that Vertex AI gives to each.
told() {
    printf '%s' "$CLUSTER_SPEC" | tr '\n' ' ' | sed -n "s/.*$1.*/\1/p"
}
if [ -n "$first_pool" ] && [ -n "${CLUSTER_SPEC:-}" ]; then
    pool=$(told '"type" *: *"workerpool\([0-9]*\)"')
    index=$(told '"index" *: *"*\([0-9]*\)')
    # The one port that is known to be open between replicas is the one that is told.
    MASTER_ADDR=$(told "\"workerpool$first_pool\" *: *\[ *\"\([^\":]*\)")
    MASTER_PORT=$(told "\"workerpool$first_pool\" *: *\[ *\"[^\":]*:\([0-9]*\)")
    NODE_RANK=$index
    [ "$pool" = "$first_pool" ] || NODE_RANK=$((index + 1))
    # To the first node its own name there may be an address that leads elsewhere first.
    [ "$NODE_RANK" != 0 ] || MASTER_ADDR=localhost
    NEMORUN_REPLICA=$NODE_RANK
    export MASTER_ADDR MASTER_PORT NODE_RANK NEMORUN_REPLICA
    me=workerpool$pool-$index
fi

# A child, as the first process of a container would not feel most signals; with one stream of what is printed,
# which keeps its order.
[ -z "$others" ] || rm -f "$stage/ended/$me"
"$@" 2>&1 </dev/null &
child=$!
trap 'kill -TERM "$child" 2>/dev/null' TERM INT
set +e
while :; do
    wait "$child"
    code=$?
    kill -0 "$child" 2>/dev/null || break
done
# Vertex AI ends all replicas when the primary one ends well, and a job is done when all of them are.
if [ "$code" = 0 ] && [ -n "$others" ]; then
    mkdir -p "$stage/ended"
    : >"$stage/ended/$me"
    if [ "$me" = workerpool0-0 ]; then
        for other in $others; do
            until [ -e "$stage/ended/$other" ]; do sleep 0.2 2>/dev/null || sleep 1; done
        done
    fi
fi
exit "$code"
