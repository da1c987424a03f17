#!/bin/busybox sh
# The first process, in the initial RAM disk: brings up the disk, puts the system on it if it is
# blank, and hands over to the init there.
/bin/busybox --install -s /bin
export PATH=/bin
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev
disk=/dev/sda

fail() {
  echo "partita: $1"
  case " $(cat /proc/cmdline) " in
    *' partita.check '*) ;;
    *) setsid cttyhack sh ;;
  esac
  poweroff -f
}

# A number of two bytes in the superblock of ext2 and its successors.
superblock() {
  dd if=$disk bs=1 skip=$((1024 + $1)) count=2 2>/dev/null | hexdump -e '/2 "%04x"'
}

# Whether the disk has what an identity file stands for; such a file is written last.
current() {
  cmp -s "$1" "/new$1"
}

install_system() {
  for folder in bin dev etc etc/partita lib lib/modules mnt proc root run sys tmp var; do
    mkdir -p /new/$folder
  done
  chmod 700 /new/root
  [ -e /new/sbin ] || ln -s bin /new/sbin
  cp /bin/busybox /new/bin/busybox.new && mv /new/bin/busybox.new /new/bin/busybox
  busybox --install -s /new/bin
  cp /etc/inittab /new/etc/
  cp /etc/partita/start /etc/partita/session /etc/partita/check /etc/partita/stop /new/etc/partita/
  # These may have been changed by whoever works in the VM.
  for file in passwd group profile; do
    [ -e /new/etc/$file ] || cp /etc/$file /new/etc/
  done
  cp /etc/partita/system /new/etc/partita/
}

install_modules() {
  folder=/lib/modules/$(uname -r)
  rm -rf /new$folder
  cp -a $folder /new/lib/modules/
  cp /etc/partita/modules /new/etc/partita/
}

modprobe -a -q hv_storvsc sd_mod crc32c_generic ext4
tries=0
until [ -b $disk ]; do
  tries=$((tries + 1))
  [ $tries -lt 500 ] || fail "there is no $disk"
  usleep 20000
done

case $(superblock 56) in
  ef53)
    # Bit 0 of the state: unmounted as it should be. The session tells if not.
    [ $((0x$(superblock 58) & 1)) = 1 ] || export PARTITA_UNCLEAN=1
    ;;
  0000)
    mke2fs -F -b 4096 -i 65536 -m 0 -L partita $disk >/dev/null ||
      fail "no file system can be made on $disk"
    ;;
  *) fail "$disk has no file system that is known here; --fresh makes a new disk" ;;
esac
mount -t ext4 $disk /new || fail "$disk cannot be mounted; --fresh makes a new disk"
current /etc/partita/system || install_system
current /etc/partita/modules || install_modules
for folder in dev proc sys; do
  mount -o move /$folder /new/$folder
done
exec switch_root /new /bin/init
