# Sourced by init: tells the host what this guest sees, then powers off.
dmesg -n 1
read -r up _ </proc/uptime
read -r clock </sys/devices/system/clocksource/clocksource0/current_clocksource
read -r tainted </proc/sys/kernel/tainted
problems='WARNING: (CPU|at|possible|suspicious)|BUG: |Oops|unchecked MSR|(detected|rcu.*) stall|lockup|blocked for more|Call Trace|general protection|segfault|Kernel panic|unstable|Firmware Bug|ACPI (BIOS )?Error'
echo
echo '@@partita-check-begin@@'
echo "up=$up"
echo "kernel=$(uname -r)"
echo "hypervisor=$(dmesg | sed -n 's/.*Hypervisor detected: //p' | head -n 1)"
echo "clock=$clock"
echo "processors=$(nproc)"
echo "online=$(cat /sys/devices/system/cpu/online)"
echo "memory_kib=$(sed -n 's/^MemTotal: *\([0-9]*\) kB/\1/p' /proc/meminfo)"
echo "tainted=$tainted"
dmesg | grep -E "$problems" | head -n 20 | sed 's/^/problem=/'
echo '@@partita-check-end@@'
poweroff -f
