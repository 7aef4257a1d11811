#!/bin/sh
# Print how many primes there are below --below=N, and the largest; a table of primes follows this text.
for word; do
    case "$word" in
        --below=*) below=${word#--below=} ;;
        --out=*) out=${word#--out=} ;;
    esac
done
sed '1,/^__TABLE__$/d' "$0" | awk -v below="$below" '
    $1 < below {count++; last = $1}
    END {printf "%d primes below %d, the largest %d\n", count, below, last}' | tee "$out"
exit
