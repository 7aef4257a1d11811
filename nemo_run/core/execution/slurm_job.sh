# Sourced by a job's batch script, in the job's folder: starts the members, sees them through, and leaves
# word of the job's beginning and end. It knows nothing that the batch script does not say.
umask 077
mkdir -p results artifacts
job_number=${nemorun_job:-$SLURM_JOB_ID}  # as the task of an array of equal jobs it knows its number
attempt=$((${SLURM_RESTART_COUNT:-0} + 1))
suffix=
((attempt > 1)) && suffix=.attempt$attempt
array=${SLURM_ARRAY_TASK_ID:+_$SLURM_ARRAY_TASK_ID}
started=$(date +%s)
signalled=
notice= grace= due= told=
members=() scripts=()
away='Unable to contact slurm controller'
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
    "{\"job\": \"$job_number\", \"attempt\": $attempt, \"started\": $started}"
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

# room_on SIGNAL SECONDS [NAME…]: Slurm sends this to the batch script when so many seconds are left at least. Tasks
# are to make room then, and the job is queued again. The members named are told by the signal, the others by a file.
room_on() {
    notice=$1 grace=$2
    shift 2
    scripts=("$@")
    export NEMORUN_CHECKPOINT=make_room$array$suffix NEMORUN_CHECKPOINT_SIGNAL=$notice
    rm -f "$NEMORUN_CHECKPOINT" "$NEMORUN_CHECKPOINT.saved"
    trap 'due=yes; tell' "$notice"
}

tell() {
    [ -z "$told" ] || return 0
    told=$SECONDS  # since when they know
    : >"$NEMORUN_CHECKPOINT"
    kill -s "$notice" "${members[@]}" 2>/dev/null
}

# member NAME COMMAND…: starts it in the background, in the environment that is its own.
member() {
    local number=${#members[@]} name=$1
    shift
    (
        said=logs/srun_$name$array$suffix.log ended=
        trap 'ended=yes; kill -TERM "$pid" 2>/dev/null' TERM
        [ -z "$notice" ] || trap : "$notice"
        for script in "${scripts[@]}"; do
            [ "$script" != "$name" ] || trap 'kill -s "$notice" "$pid" 2>/dev/null' "$notice"
        done
        while
            # In a shell of its own, for its variables may have the names of ours; arrays reach no process.
            (unset members scripts && source "./env/$name.sh" && exec "$@" || exit 126) 2>"$said" 3>&- &
            pid=$!
            wait "$pid"
            while kill -0 "$pid" 2>/dev/null; do wait "$pid"; done  # a signal to us ends a `wait` too
            wait "$pid"
            code=$?
            ((code)) && [ -z "$ended" ] && is_unheard "$said"
        do
            echo "$name has not begun: no controller answers; trying again" >&2
            sleep 2
            [ -z "$ended" ] || break
        done
        if ((code)); then
            # srun's own code is the highest of all tasks, those that were ended included.
            first=$(sed -n 's/.*Exited with exit code \([0-9]*\).*/\1/p' "$said" | head -n 1)
            code=${first:-$code}
            log=logs/${name}_${SLURM_ARRAY_TASK_ID:-0}$suffix.log
            [ -e "$log" ] || cp "$said" "$log"
        fi
        logs=(logs/"${name}"_*"$suffix".log)
        [ -z "$array" ] || logs=("logs/${name}$array$suffix.log")
        ! grep -q '^export NEMORUN_SECRETS=' "env/$name.sh" || mask "$name" "$said" "${logs[@]}"
        echo "$number $code" >&3
    ) &
    members+=($!)
}

# is_unheard FILE: whether srun has started nothing, for there was no controller to ask.
is_unheard() {
    grep -q "^srun: error: Unable to [a-z ]* for job [0-9]*: $away (connect failure)" "$1"
}

# mask NAME FILE…: puts stars in the place of a member's secrets, as many as they have bytes, for files are read by
# offset. No secret is an argument of a process, and a file without one is left alone.
mask() (
    SLURM_STEP_ID=none  # what the nodes expand is no secret
    set -- "$PATH" "$@"
    unset members scripts
    source "./env/$2.sh" || exit
    PATH=$1
    shift 2
    while (($#)); do
        if secret_lines | grep -qaF -f - "$1"; then
            secret_lines | LC_ALL=C awk '
                function hide(text, word,    done, at) {
                    while (at = index(text, word)) {
                        done = done substr(text, 1, at - 1) stars[word]
                        text = substr(text, at + length(word))
                    }
                    return done text
                }
                BEGIN { ORS = "" }
                NR == FNR { words[++count] = $0; line = $0; gsub(/./, "*", line); stars[$0] = line; next }
                FNR > 1 { print "\n" }
                { line = $0; for (at = 1; at <= count; at++) line = hide(line, words[at]); print line }
                END { if (closed) print "\n" }
            ' - closed="$([ -n "$(tail -c 1 "$1")" ] || echo 1)" "$1" >"$1.masked" && mv -f "$1.masked" "$1"
        fi
        shift
    done
) 2>/dev/null

# The lines of all secrets, the longest first; what is shorter than three letters would blank out half a log.
secret_lines() {
    LC_ALL=C awk 'BEGIN {
        count = split(ENVIRON["NEMORUN_SECRETS"], names, ",")
        for (at = 1; at <= count; at++) {
            lines = split(ENVIRON[names[at]], found, "\n")
            for (line = 1; line <= lines; line++)
                if (length(found[line]) > 2 && found[line] ~ /[^ \t]/) print length(found[line]) " " found[line]
        }
    }' </dev/null | sort -rn | cut -d ' ' -f 2-
}

# again RETRIES: queues the job again and does not come back, unless its RETRIES are spent; `why` says why not. What
# somebody cancels is left alone, though Slurm would take it; a job that is preempted has not used up a retry.
again() {
    local number=${SLURM_ARRAY_JOB_ID:+${SLURM_ARRAY_JOB_ID}_}${SLURM_ARRAY_TASK_ID:-$job_number} state used=0
    why='Slurm did not queue it again'
    # While no controller answers nobody else can have the nodes either.
    until state=$(timeout 10 scontrol show job --oneliner "$number" 2>&1); do
        if (($? == 124)) || [[ $state == *"$away"* ]] && [ -z "$signalled" ]; then sleep 2; else state= && break; fi
    done
    # A job whose time is over can be queued again. Of what else Slurm ends, it knows the reason.
    if [[ -z $notice || $state != *' Reason=TimeLimit '* ]]; then
        [[ -z $state || $state == *' JobState=RUNNING '* ]] || signalled=TERM
        [ -z "$signalled" ] || return 0
    fi
    if ! is_preempted "$state"; then
        [ ! -e "failures$array" ] || read -r used <"failures$array"
        if ((used >= $1)); then
            why='its retries are spent'
            return 0
        fi
        record "failures$array" "$((used + 1))"
    fi
    scontrol requeue "$number" || return 0
    # It is ended now, and comes back with another attempt number.
    sleep 60 &
    wait
    exit "$exit_code"
}

# is_preempted STATE: whether a job that has begun must make room for another; scontrol remembers earlier times.
is_preempted() {
    [[ $1 =~ \ StartTime=([^ ]*) ]] || return
    local started=${BASH_REMATCH[1]}
    [[ $1 =~ \ PreemptTime=([0-9][^ ]*) && ! ${BASH_REMATCH[1]} < $started ]]
}

# Whether Slurm has ended a step, so that a failure may be a preemption. Nobody else is kept waiting by a controller
# that does not answer.
is_ended_by_slurm() {
    grep -qs '^slurmstepd.* \*\*\* STEP .* CANCELLED AT ' logs/*"$array$suffix".log
}

# finish RETRIES [GRACE]: waits for all members; the first that fails ends the others, GRACE seconds later, or
# never if GRACE is `never`. A job that failed, or has made room, is queued again until its RETRIES are spent.
finish() {
    local left=${#members[@]} failed= exit_code=0 number code why=
    while ((left)); do
        if ! read -r -u 3 ${notice:+-t 1} number code; then  # a signal may have interrupted it
            # Who has not made room by now is ended with the job, and Slurm may end it without a word before.
            if [ -z "$why" ] && [[ -n $notice && -n $signalled || -n $told && $((SECONDS - told)) -ge $grace ]]; then
                again "$1"
            fi
            continue
        fi
        left=$((left - 1))
        if [ -n "$notice" ] && { ((code == 75)) || [ -e "$NEMORUN_CHECKPOINT.saved" ]; }; then
            : >"$NEMORUN_CHECKPOINT.saved"
            tell
        fi
        if ((code)) && [ -z "$failed" ]; then
            failed=$number exit_code=$code
            if ((left)) && [ -z "$told" ] && [ "${2:-0}" != never ]; then
                sleep "${2:-0}"
                kill -TERM "${members[@]}" 2>/dev/null
            fi
        fi
    done
    if grep -qs '^srun: error: Node failure on ' logs/srun_*"$array$suffix".log; then
        # To srun that may be a success; what becomes of the job is for Slurm to decide.
        signalled=${signalled:-NODE}
        ((exit_code)) || exit_code=1
    fi
    why=
    if [ -n "$notice" ] && [ -e "$NEMORUN_CHECKPOINT.saved" ]; then
        again "$1"
        ((exit_code)) || exit_code=75
    elif ((exit_code)) && { (($1)) || is_ended_by_slurm; }; then
        again "$1"
        [ -n "$due" ] || why=
    fi
    # Where this node was taken for dead another may have begun meanwhile.
    [[ $(<"begin$array.json") == *"\"attempt\": $attempt,"* ]] || exit "$exit_code"
    record "end$array.json" "{\"job\": \"$job_number\", \"attempt\": $attempt, \"started\": $started,\
 \"ended\": $(date +%s), \"exit_code\": $exit_code, \"member\": ${failed:-0}, \"signal\": \"$signalled\",\
 \"told\": \"${due:+$notice}\", \"again\": \"$why\"}"
    exit "$exit_code"
}
