#!/bin/sh
# What runs on the serial console: the proofs or a shell.
export PATH=/bin HOME=/root
for word in $(cat /proc/cmdline); do
  case "$word" in
    partita.check) . /etc/partita/check ;;
    partita.rows=*) rows=${word#*=} ;;
    partita.columns=*) columns=${word#*=} ;;
  esac
done

# Kernel messages stay in the log from here on; they would tear the shell's lines.
dmesg -n 1
cd "$HOME"
[ -n "$rows" ] && [ -n "$columns" ] && stty rows "$rows" cols "$columns"
read -r up _ </proc/uptime
[ "$PARTITA_UNCLEAN" ] && echo && echo \
  "The disk was not let go in order the last time; --fresh makes a new one if it misbehaves."
cat <<END

Welcome to $(uname -sr) in a Partita child partition, up since $up s.
$(dmesg | sed -n 's/^\[[^]]*\] *\(Hypervisor detected.*\)/\1/p')
'poweroff' ends the VM and leaves its disk in order; Ctrl-A x pulls the plug.

END
sh -l
poweroff
