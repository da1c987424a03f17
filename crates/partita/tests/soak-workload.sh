# Rounds of work whose results depend on the round's number only.
# Usage: sh soak-workload.sh BUSYBOX FOLDER FIRST LAST [SECONDS]
# Stops behind round LAST, or when SECONDS have passed.
B=$1; D=$2; first=$3; last=$4; seconds=$5

say() {
    set -- "$1" $2
    printf 'SOAK %s %s %.16s\n' "$round" "$1" "$2"
}
sum() { say "$1" "$($B sha256sum)"; }

signals='n=0; trap "n=\$((n+1))" USR1; i=0
while [ $i -lt 60 ]; do kill -USR1 $$; i=$((i+1)); done; echo $n'

work() {
    $B awk -v s="$round" 'BEGIN {
        x = s + 1
        for (k = 0; k < 4000; k++) {
            x = (x * 16807) % 2147483647
            printf "%d %08d line %d\n", x, x % 9973, k
        }
    }' > "$D/text"
    sum text < "$D/text"
    $B gzip < "$D/text" > "$D/packed"
    sum gzip < "$D/packed"
    $B gunzip < "$D/packed" | sum gunzip
    $B bzip2 < "$D/text" | sum bzip2
    $B sha512sum < "$D/text" | sum sha512
    $B sort -n "$D/text" | sum sort
    $B sort -k 2 "$D/text" | $B uniq -c -f 1 | sum uniq
    $B sed 's/\([0-9]\)\([0-9]\)/\2\1/g; y/line/LINE/' "$D/text" | sum sed
    $B awk '{ a += $1 / 3 * ($2 + 0.5); b[$2 % 97] += $1 / 7; if ($1 ~ /77/) c++ }
        END { printf "%.9f %d", a, c; for (i = 0; i < 97; i++) printf " %.6f", b[i] }' \
        "$D/text" | sum awk
    i=0
    while [ $i -lt 40 ]; do
        ( echo "$i" > "$D/fork$i" ) &
        i=$((i+1))
    done
    wait
    $B cat "$D"/fork* | $B sort -n | sum forks
    $B sh -c "$signals" | sum signals
    for i in 1 2 3 4; do
        $B sort -r "$D/text" | $B gzip | $B md5sum > "$D/pipe$i" &
    done
    wait
    $B cat "$D"/pipe? | sum pipes
    $B tar -C "$D" -cf - text packed | $B tar -xOf - | sum tar
    if [ -n "$SORT" ]; then
        LC_ALL=C $SORT --parallel=4 -S 4M -k 3 "$D/text" "$D/text" | sum threads
    fi
    if [ -n "$PERL" ]; then
        $PERL -e '
            my %h; my $t = 0;
            while (<>) {
                my ($x, $y) = split;
                push @{$h{$y % 211}}, $x; $t += sqrt($x) * 1.5; s/(\d)(\D)/$2$1/g; $t += length;
            }
            printf "%.6f %s\n", $t, join ",", map { $_ . ":" . scalar(@{$h{$_}}) } sort { $a <=> $b } keys %h;
            for my $n (1 .. 8) { my $p = fork; if (!$p) { exit $n } waitpid $p, 0; print $? >> 8, "\n" }
        ' "$D/text" | sum perl
    fi
}

now() { read -r up _ < /proc/uptime; echo "${up%.*}"; }

start=$(now)
round=$first
while [ "$round" -le "$last" ]; do
    work
    round=$((round+1))
    if [ -n "$seconds" ] && [ $(($(now) - start)) -ge "$seconds" ]; then
        break
    fi
done
echo "SOAK end $((round-1))"
