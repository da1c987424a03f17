//! Disks and optical drives as the guest's own Hyper-V drivers see them, and the guest's root file
//! system on them.

#[allow(dead_code, reason = "each file of tests uses a part of it")]
mod support;

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use support::disks::{Folder, MIB, done, json as disk_json};
use support::iso;
use support::linux::{self, Linux};
use support::packages;
use support::tree::{Tree, e2fs};

/// What the bus offers to every guest: a SCSI controller, then the integration components.
const CLASSES: [&str; 7] = [
    "{0e0b6031-5213-4934-818b-38d90ced39db}",
    "{34d14be3-dee4-41c8-9ae7-6b174977c192}",
    "{35fa2e29-ea23-4236-96ae-3a6ebacba440}",
    "{57164f39-9115-4e78-ab55-382f3bd5422d}",
    "{9527e630-d0ae-497b-adce-e80ab0175caf}",
    "{a9a0f4e7-5a45-4d96-b827-8a841e8c03e6}",
    "{ba6163d9-04a1-4d29-b605-72e2ffb1dc7f}",
];
const ROOT_SIZE: u64 = 64 * MIB;

/// Files of an initial RAM disk, and of a root file system.
fn files(package: &str) -> Tree {
    let mut tree = linux::tree(package);
    tree.programs(&["sbin/e2fsck", "sbin/kexec", "sbin/mke2fs", "usr/bin/eject"]);
    tree
}

/// A raw disk with a root file system.
fn root_disk(folder: &Folder, package: &str) -> PathBuf {
    let path = folder.path("root.img");
    files(package).write_ext4(&path, ROOT_SIZE);
    path
}

/// Starts a kernel in its initial RAM disk.
fn start(folder: &Folder, package: &str, processors: u32, drives: &[(&str, &Path)]) -> Linux {
    let options = linux::options(processors, drives);
    Linux::start(package, &files(package), &folder.path(""), &options)
}

/// Checks the file system on the first disk and makes it the root.
fn enter(guest: &mut Linux) {
    guest.load_storage();
    guest.sh("e2fsck -f -n /dev/sda");
    guest.switch_to_disk();
}

/// Resets the guest, which comes back to what it has written.
fn reboot(guest: &mut Linux, sum: &str) {
    guest.type_line("mount -o remount,ro / && reboot -f");
    guest.wait_for_shell();
    assert_eq!(guest.control.get("")["resets"], 1);
    enter(guest);
    assert_eq!(checksum(guest, "/data"), sum);
}

/// Gives the host back what a file had. The host gets the space with the next flush.
fn trim(guest: &mut Linux) {
    guest.sh("rm /data && sync && fstrim / && echo trimmed >/note && sync");
}

/// The guest's end, after nothing that its kernel complained about.
fn end(mut guest: Linux, folder: &Folder, disk: &Path) {
    guest.expect_clean_log();
    guest.power_off();
    expect_whole(folder, disk);
}

/// Fails unless a disk that no VM uses is whole, and the file system on it.
fn expect_whole(folder: &Folder, path: &Path) {
    let checked = disk_json(&args!["check", path]);
    assert_eq!(checked["clean"], true, "{checked}");
    let copy = folder.path("checked.img");
    done(&args!["convert", path, &copy]);
    e2fs("sbin/e2fsck", &args!["-f", "-n", &copy]);
    fs::remove_file(copy).expect("the copy can be removed");
}

/// The guest's sectors of 512 bytes.
fn sectors(guest: &mut Linux, disk: &str) -> u64 {
    let text = guest.sh(&format!("cat /sys/block/{disk}/size"));
    text.trim().parse().expect("a number")
}

fn offers(guest: &mut Linux) {
    let classes = guest.sh("cat /sys/bus/vmbus/devices/*/class_id | sort");
    assert_eq!(classes.lines().collect::<Vec<_>>(), CLASSES);
}

/// Puts a file into the root file system and gives its checksum.
fn write_file(guest: &mut Linux, mebibytes: u32) -> String {
    guest.sh(&format!(
        "dd if=/dev/urandom of=/data bs=1M count={mebibytes} && sync"
    ));
    checksum(guest, "/data")
}

/// Reads a file from its disk.
fn checksum(guest: &mut Linux, path: &str) -> String {
    guest.sh("echo 3 >/proc/sys/vm/drop_caches");
    let line = guest.sh(&format!("md5sum {path}"));
    line.split_whitespace().next().expect("a sum").to_owned()
}

fn optical(guest: &Linux) -> Value {
    let drives = guest.control.get("/disks");
    let drives = drives.as_array().expect("a list");
    let found = drives.iter().find(|drive| drive["kind"] == "dvd");
    found.expect("an optical drive").clone()
}

fn resource(drive: &Value) -> String {
    format!("/disks/{}/{}", drive["controller"], drive["lun"])
}

/// A medium is read, locked, ejected from inside and from outside, and another inserted.
fn change_media(guest: &mut Linux, folder: &Folder) {
    let text = vec![b'x'; 5000];
    let second = folder.path("second.iso");
    fs::write(&second, iso::image("SECOND", &[("TWO.TXT", &text)])).expect("an image");
    guest.load(&["sr_mod", "isofs"]);
    guest.until("[ -b /dev/sr0 ]");
    guest.sh("mount -t iso9660 -o ro /dev/sr0 /mnt");
    assert_eq!(guest.sh("cat /mnt/one.txt"), "the first medium\n");
    let drive = resource(&optical(guest));
    let refused = guest
        .control
        .refused("POST", &format!("{drive}/eject"), None, 409);
    assert!(refused.contains("locked"), "{refused}");
    guest.sh("umount /mnt");
    guest.sh("eject /dev/sr0");
    assert_eq!(optical(guest)["path"], Value::Null);
    assert_ne!(guest.attempt("mount -t iso9660 -o ro /dev/sr0 /mnt").0, 0);
    let insert = format!("{drive}/insert");
    guest.control.post(&insert, json!({ "path": second }));
    guest.sh("mount -t iso9660 -o ro /dev/sr0 /mnt");
    assert_eq!(guest.sh("wc -c </mnt/two.txt"), "5000\n");
    guest.sh("umount /mnt");
    guest.control.post(&format!("{drive}/eject"), json!({}));
    assert_ne!(guest.attempt("dd if=/dev/sr0 of=/dev/null count=1").0, 0);
    let missing = guest.control.refused(
        "POST",
        &insert,
        Some(json!({ "path": folder.path("no.iso") })),
        400,
    );
    assert!(missing.contains("no.iso"), "{missing}");
}

/// A disk comes, grows, and goes while the guest runs.
fn change_disks(guest: &mut Linux, folder: &Folder) {
    let path = folder.path("second.vhdx");
    done(&args![
        "create",
        &path,
        "--size",
        "16M",
        "--block-size",
        "1M"
    ]);
    let place = guest.control.post("/disks", json!({ "path": path }));
    let drive = resource(&place);
    guest.until("[ -b /dev/sdb ]");
    assert_eq!(sectors(guest, "sdb"), 16 * MIB / 512);
    guest.sh(
        "/sbin/mke2fs -q -t ext4 /dev/sdb && mount /dev/sdb /mnt && cp -r /bin /mnt && umount /mnt",
    );
    guest.sh("/sbin/e2fsck -f -n /dev/sdb");
    let again = json!({ "path": path });
    let refused = guest.control.refused("POST", "/disks", Some(again), 409);
    assert!(refused.contains("second.vhdx"), "{refused}");
    guest.control.post(
        &format!("{drive}/resize"),
        json!({ "size_bytes": 48 * MIB }),
    );
    guest.until(&format!(
        "[ $(cat /sys/block/sdb/size) = {} ]",
        48 * MIB / 512
    ));
    // The new end can be written.
    guest.sh("dd if=/dev/urandom of=/dev/sdb bs=1M seek=47 count=1 conv=fsync");
    guest.control.delete(&drive);
    guest.until("[ ! -e /sys/block/sdb ]");
    guest.control.refused("DELETE", &drive, None, 404);
    let checked = disk_json(&args!["check", &path]);
    assert_eq!(checked["clean"], true, "{checked}");
}

on_every_kernel!(
    root_on_a_dynamic_vhdx,
    root_on_a_differencing_vhdx,
    root_on_a_vhd,
    drivers_and_kernels_come_again,
);

fn root_on_a_dynamic_vhdx(package: &str, processors: u32) {
    let folder = Folder::new();
    let raw = root_disk(&folder, package);
    let root = folder.path("root.vhdx");
    done(&args!["convert", raw, &root, "--block-size", "1M"]);
    let medium = folder.path("first.iso");
    let image = iso::image("FIRST", &[("ONE.TXT", b"the first medium\n")]);
    fs::write(&medium, image).expect("an image");
    let drives: [(&str, &Path); 2] = [("--disk", &root), ("--dvd", &medium)];
    let mut guest = start(&folder, package, processors, &drives);
    enter(&mut guest);
    offers(&mut guest);
    let blocks = |path: &Path| fs::metadata(path).expect("a file").blocks() * 512;
    let before = blocks(&root);
    let sum = write_file(&mut guest, 24);
    assert!(blocks(&root) >= before + 23 * MIB);
    change_media(&mut guest, &folder);
    change_disks(&mut guest, &folder);
    // Linux flushes a disk that is gone already.
    guest.expect_log(&["cmd 0x35 status: scsi 0x0 srb 0x20"]);
    reboot(&mut guest, &sum);
    trim(&mut guest);
    let after = blocks(&root);
    assert!(after <= before + 4 * MIB, "{before} became {after}");
    end(guest, &folder, &root);
}

fn root_on_a_differencing_vhdx(package: &str, processors: u32) {
    let folder = Folder::new();
    let raw = root_disk(&folder, package);
    let (parent, root) = (folder.path("parent.vhdx"), folder.path("child.vhdx"));
    done(&args!["convert", raw, &parent]);
    done(&args!["create", &root, "--parent", &parent]);
    let untouched = fs::read(&parent).expect("the parent can be read");
    let mut guest = start(&folder, package, processors, &[("--disk", &root)]);
    enter(&mut guest);
    offers(&mut guest);
    let sum = write_file(&mut guest, 8);
    assert_eq!(checksum(&mut guest, "/data"), sum);
    guest.expect_clean_log();
    reboot(&mut guest, &sum);
    trim(&mut guest);
    end(guest, &folder, &root);
    assert!(untouched == fs::read(&parent).expect("the parent can be read"));
}

fn root_on_a_vhd(package: &str, processors: u32) {
    let folder = Folder::new();
    let raw = root_disk(&folder, package);
    let root = folder.path("root.vhd");
    done(&args!["convert", raw, &root]);
    let mut guest = start(&folder, package, processors, &[("--disk", &root)]);
    enter(&mut guest);
    offers(&mut guest);
    let sum = write_file(&mut guest, 8);
    assert_eq!(checksum(&mut guest, "/data"), sum);
    guest.expect_clean_log();
    reboot(&mut guest, &sum);
    trim(&mut guest);
    end(guest, &folder, &root);
}

/// The drivers go, with all that the host had for them, and come again. That of the bus stays: with
/// it Linux would lose its synthetic timers, and does not turn to others. The bus is left and found
/// again by the next kernel.
fn reload_drivers(guest: &mut Linux) {
    guest.sh("umount /mnt");
    guest.sh("rmmod hv_storvsc && rmmod hv_utils");
    assert_eq!(guest.control.get("/components")["heartbeat"], false);
    guest.load_storage();
    guest.load(&["hv_utils"]);
    offers(guest);
    guest
        .control
        .wait_until("/heartbeat", |beat| beat["state"] == "ok");
    guest.sh("mount -t ext4 /dev/sda /mnt");
}

fn drivers_and_kernels_come_again(package: &str, processors: u32) {
    let folder = Folder::new();
    let (raw, disk) = (folder.path("empty.img"), folder.path("disk.vhdx"));
    let initrd = folder.path("initrd");
    files(package).write_initrd(&initrd);
    let mut next = Tree::default();
    for (name, path) in [("vmlinuz", &packages::kernel(package)), ("initrd", &initrd)] {
        next.file(name, 0o644, fs::read(path).expect("a file"));
    }
    next.write_ext4(&raw, ROOT_SIZE);
    done(&args!["convert", raw, &disk]);
    let options = linux::options(processors, &[("--disk", &disk)]);
    let mut guest = Linux::start_with(package, &initrd, &folder.path(""), &options);
    guest.load_storage();
    guest.load(&["hv_utils"]);
    guest.sh("mount -t ext4 /dev/sda /mnt");
    let sums = guest.sh("md5sum /mnt/vmlinuz /mnt/initrd");
    reload_drivers(&mut guest);
    assert_eq!(guest.sh("md5sum /mnt/vmlinuz /mnt/initrd"), sums);
    guest.expect_clean_log();

    guest.sh("kexec -s -l /mnt/vmlinuz --initrd=/mnt/initrd --reuse-cmdline");
    guest.sh("umount /mnt");
    guest.type_line("kexec -e");
    guest.wait_for_shell();
    // The VM itself was not reset.
    assert_eq!(guest.control.get("")["resets"], 0);
    guest.load_storage();
    guest.load(&["hv_utils"]);
    offers(&mut guest);
    guest.sh("mount -t ext4 /dev/sda /mnt");
    assert_eq!(guest.sh("md5sum /mnt/vmlinuz /mnt/initrd"), sums);
    guest.sh("umount /mnt && e2fsck -f -n /dev/sda");
    guest
        .control
        .wait_until("/heartbeat", |beat| beat["state"] == "ok");
    end(guest, &folder, &disk);
}
