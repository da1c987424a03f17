#!/bin/busybox sh
# The first process of the quickstart guest.
/bin/busybox --install -s /bin
export PATH=/bin HOME=/root
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev
mkdir -p /dev/pts /dev/shm
mount -t devpts devpts /dev/pts
mount -t tmpfs tmpfs /tmp
hostname partita
# What the commands poweroff, reboot and halt send to process 1.
trap 'sync; poweroff -f' USR2
trap 'sync; reboot -f' TERM
trap 'sync; halt -f' USR1

for word in $(cat /proc/cmdline); do
  case "$word" in
    partita.check) . /etc/partita/check.sh ;;
    partita.rows=*) rows=${word#*=} ;;
    partita.columns=*) columns=${word#*=} ;;
  esac
done

# Kernel messages stay in the log from here on; they would tear the shell's lines.
dmesg -n 1
cd "$HOME"
[ -n "$rows" ] && [ -n "$columns" ] && stty rows "$rows" cols "$columns" </dev/console
read -r up _ </proc/uptime
cat <<END

Welcome to $(uname -sr) in a Partita child partition, up since $up s.
$(dmesg | sed -n 's/^\[[^]]*\] *\(Hypervisor detected.*\)/\1/p')
'poweroff' ends the VM; so does Ctrl-A x.

END
# In the foreground: a background job of this shell would ignore Ctrl-C.
setsid cttyhack sh -l </dev/console >/dev/console 2>&1
poweroff -f
