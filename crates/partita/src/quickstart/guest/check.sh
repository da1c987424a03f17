# Sourced by the session: tells the host what this guest sees, and waits for the host to end it.
dmesg -n 1
read -r up _ </proc/uptime
read -r clock </sys/devices/system/clocksource/clocksource0/current_clocksource

# Writes a file, and reads it back from the disk rather than from memory.
proof=/root/proof
dd if=/dev/urandom of=$proof bs=64k count=32 conv=fsync 2>/dev/null
sum() { sha256sum <$proof | cut -d ' ' -f 1; }
written=$(sum)
sync
echo 3 >/proc/sys/vm/drop_caches
read=$(sum)

read -r tainted </proc/sys/kernel/tainted
problems='WARNING: (CPU|at|possible|suspicious)|BUG: |Oops|unchecked MSR|(detected|rcu.*) stall|lockup|blocked for more|Call Trace|general protection|segfault|Kernel panic|unstable|Firmware Bug|ACPI (BIOS )?Error|EXT4-fs (error|warning)|I/O error|hv_[a-z]*: .*(fail|error)'
driver() { basename "$(readlink "$1/driver")"; }
echo
echo '@@partita-check-begin@@'
echo "up=$up"
echo "kernel=$(uname -r)"
echo "hypervisor=$(dmesg | sed -n 's/.*Hypervisor detected: //p' | head -n 1)"
echo "clock=$clock"
echo "processors=$(nproc)"
echo "online=$(cat /sys/devices/system/cpu/online)"
echo "memory_kib=$(sed -n 's/^MemTotal: *\([0-9]*\) kB/\1/p' /proc/meminfo)"
echo "vmbus=$(dmesg | sed -n 's/.*hv_vmbus: Vmbus version:\([0-9.]*\).*/\1/p' | tail -n 1)"
for device in /sys/bus/vmbus/devices/*; do
  echo "device=$(driver "$device")"
done
echo "root=$(sed -n 's/^\(\/dev\/[^ ]*\) \/ .*/\1/p' /proc/mounts)"
echo "root_driver=$(driver "/sys/block/sda/device/../../..")"
echo "proof_bytes=$(wc -c <$proof)"
echo "proof_written=$written"
echo "proof_read=$read"
echo "tainted=$tainted"
dmesg | grep -E "$problems" | head -n 20 | sed 's/^/problem=/'
echo '@@partita-check-end@@'
while :; do sleep 3600; done
