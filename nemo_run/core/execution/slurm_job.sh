# Sourced by a job's batch script, in the job's folder: starts the members, sees them through, and leaves
# word of the job's beginning and end. It knows nothing that the batch script does not say.
umask 077
mkdir -p results artifacts
attempt=$((${SLURM_RESTART_COUNT:-0} + 1))
suffix=
((attempt > 1)) && suffix=.attempt$attempt
array=${SLURM_ARRAY_TASK_ID:+_$SLURM_ARRAY_TASK_ID}
started=$(date +%s)
signalled=
members=()
exec 3<> <(:)  # where members say how they ended

export NEMORUN_ATTEMPT=$attempt
unset NEMORUN_REPLICA
if [ -n "$array" ]; then export NEMORUN_REPLICA=$SLURM_ARRAY_TASK_ID; fi

# record NAME TEXT: a file that is there whole or not at all.
record() {
    printf '%s\n' "$2" >".$1.$$" && mv -f ".$1.$$" "$1"
}

# A job that runs again has not ended.
if [ -e "end$array.json" ]; then mv -f "end$array.json" "end$array.before$attempt.json"; fi
record "begin$array.json" \
    "{\"job\": \"$SLURM_JOB_ID\", \"attempt\": $attempt, \"started\": $started}"
trap 'signalled=TERM' TERM

# address_of HOST: how the other nodes reach it.
address_of() {
    local address
    address=$(scontrol show node --oneliner "$1" | sed -n 's/.* NodeAddr=\([^ ]*\).*/\1/p')
    getent ahostsv4 "${address:-$1}" | awk 'NR == 1 { print $1 } END { exit NR == 0 }' || echo "${address:-$1}"
}

# first_host NODELIST
first_host() {
    scontrol show hostnames "$1" | head -n 1
}

# member NAME COMMAND…: starts it in the background, in the environment that is its own.
member() {
    local number=${#members[@]} name=$1
    shift
    (
        source "./env/$name.sh" || exit 126
        said=logs/srun_$name$array$suffix.log
        "$@" 2>"$said" 3>&- &
        pid=$!
        trap 'kill -TERM "$pid" 2>/dev/null' TERM
        wait "$pid"
        code=$?
        while kill -0 "$pid" 2>/dev/null; do  # a signal to us ends a `wait` too
            wait "$pid"
            code=$?
        done
        if ((code)); then
            # srun's own code is the highest of all tasks, those that were ended included.
            first=$(sed -n 's/.*Exited with exit code \([0-9]*\).*/\1/p' "$said" | head -n 1)
            code=${first:-$code}
            log=logs/${name}_${SLURM_ARRAY_TASK_ID:-0}$suffix.log
            [ -e "$log" ] || cp "$said" "$log"
        fi
        echo "$number $code" >&3
    ) &
    members+=($!)
}

# finish RETRIES [GRACE]: waits for all members; the first that fails ends the others, GRACE seconds later, or
# never if GRACE is `never`. A job that failed is queued again until its RETRIES are spent.
finish() {
    local left=${#members[@]} failed= exit_code=0 number code failures=0
    while ((left)); do
        read -r -u 3 number code || continue  # a signal may have interrupted it
        left=$((left - 1))
        if ((code)) && [ -z "$failed" ]; then
            failed=$number exit_code=$code
            if ((left)) && [ "${2:-0}" != never ]; then
                sleep "${2:-0}"
                kill -TERM "${members[@]}" 2>/dev/null
            fi
        fi
    done
    if [ -n "$failed" ] && [ -z "$signalled" ] && (($1)); then
        [ -e "failures$array" ] && read -r failures <"failures$array"
        if ((failures < $1)); then
            record "failures$array" "$((failures + 1))"
            # It comes back with another attempt number, or goes on below if Slurm does not take it.
            if scontrol requeue "${SLURM_ARRAY_JOB_ID:+${SLURM_ARRAY_JOB_ID}_}${SLURM_ARRAY_TASK_ID:-$SLURM_JOB_ID}"; then
                sleep 60 &
                wait
                exit "$exit_code"
            fi
        fi
    fi
    record "end$array.json" "{\"job\": \"$SLURM_JOB_ID\", \"attempt\": $attempt, \"started\": $started,\
 \"ended\": $(date +%s), \"exit_code\": $exit_code, \"member\": ${failed:-0}, \"signal\": \"$signalled\"}"
    exit "$exit_code"
}
