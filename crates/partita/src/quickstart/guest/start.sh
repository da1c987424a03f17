#!/bin/sh
# Run once by init, from the disk.
export PATH=/bin
mkdir -p /dev/pts /dev/shm
mount -t devpts devpts /dev/pts
for folder in /dev/shm /tmp /run; do
  mount -t tmpfs tmpfs $folder
done
hostname partita
# The integration components.
modprobe hv_utils
