//! A Linux guest whose shell does what a test says.

use std::ffi::OsString;
use std::path::Path;

use super::control::Control;
use super::modules::Modules;
use super::packages;
use super::tree::Tree;
use super::vm::{Ended, Vm};

/// Takes commands from the console, each behind a word that ends its answer.
const INIT: &str = "\
#!/bin/busybox sh
[ -e /bin/sh ] || /bin/busybox --install -s /bin
export PATH=/usr/sbin:/sbin:/usr/bin:/bin HOME=/root
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev
mount -t tmpfs tmpfs /run
dmesg -n 1
stty -echo -opost
trap 'sync; poweroff -f' USR2
trap 'sync; reboot -f' TERM
echo \"== shell $0 ==\"
while read -r word line; do
  eval \"$line\" </dev/null 2>&1
  echo \"== $word $? ==\"
done
";

/// What kernels say of a machine without PCI, as Hyper-V's second generation is too; and of a host
/// that did other work for a while.
const HARMLESS: &[&str] = &[
    "PCI: Fatal: No config space access function found",
    "PCI: System does not support PCI",
    "hrtimer: interrupt took",
];

/// A guest in a VM, which is ended when this is dropped.
pub(crate) struct Linux {
    vm: Vm,
    /// How much of the console has been dealt with, in bytes.
    seen: usize,
    words: u32,
    /// The control socket.
    pub(crate) control: Control,
}

/// Files of a guest: the first process that [`Linux`] needs, BusyBox, and the modules of the
/// package's kernel.
pub(crate) fn tree(package: &str) -> Tree {
    let mut tree = Tree::new();
    tree.file("init", 0o755, INIT.into());
    Modules::of(package).install(&mut tree);
    tree
}

/// Options of `partita run`: processors, and drives as pairs such as `--disk` and a file.
pub(crate) fn options(processors: u32, drives: &[(&str, &Path)]) -> Vec<OsString> {
    let mut words: Vec<OsString> = vec!["--processors".into(), processors.to_string().into()];
    for (name, path) in drives {
        words.extend([name.into(), path.into()]);
    }
    words
}

impl Linux {
    /// Starts a kernel with an initial RAM disk of a [`tree`], which is written into `folder`, and
    /// waits for its shell.
    pub(crate) fn start(package: &str, tree: &Tree, folder: &Path, options: &[OsString]) -> Self {
        let initrd = folder.join("initrd");
        tree.write_initrd(&initrd);
        Self::start_with(package, &initrd, folder, options)
    }

    /// The same with a RAM disk that is there.
    pub(crate) fn start_with(
        package: &str,
        initrd: &Path,
        folder: &Path,
        options: &[OsString],
    ) -> Self {
        let socket = folder.join("control");
        let mut arguments: Vec<OsString> = vec!["run".into()];
        for (name, value) in [
            ("--kernel", packages::kernel(package)),
            ("--initrd", initrd.to_owned()),
            ("--control", socket.clone()),
        ] {
            arguments.extend([name.into(), value.into()]);
        }
        arguments.extend_from_slice(options);
        let mut guest = Self {
            vm: Vm::start(arguments),
            seen: 0,
            words: 0,
            control: Control::at(&socket),
        };
        guest.wait_for_shell();
        guest
    }

    /// Waits for the first process, after a start or a switch to another root.
    pub(crate) fn wait_for_shell(&mut self) {
        self.next("== shell ");
        self.next("\n");
    }

    /// The console from what has been dealt with up to `end`, and deals with it.
    fn next(&mut self, end: &str) -> String {
        loop {
            let console = self.vm.console();
            if let Some(at) = console[self.seen..].find(end) {
                let text = console[self.seen..self.seen + at].to_owned();
                self.seen += at + end.len();
                return text;
            }
            let times = console.matches(end).count() + 1;
            self.vm.wait_for(end, times);
        }
    }

    /// Types a line that will not be answered.
    pub(crate) fn type_line(&mut self, line: &str) {
        assert!(!line.contains('\n') && line.len() < 4000, "{line}");
        self.vm.send(&format!("- {line}\n"));
    }

    /// Runs a line in the guest's shell; its status and what it printed.
    pub(crate) fn attempt(&mut self, line: &str) -> (i32, String) {
        self.words += 1;
        let word = format!("answer-{}", self.words);
        assert!(!line.contains('\n') && line.len() < 4000, "{line}");
        self.vm.send(&format!("{word} {line}\n"));
        let text = self.next(&format!("== {word} "));
        let status = self.next(" ==\n");
        let status = status.parse().unwrap_or_else(|_| panic!("{status:?}"));
        (status, text)
    }

    /// Runs a line, which must succeed, and gives what it printed.
    pub(crate) fn sh(&mut self, line: &str) -> String {
        let (status, text) = self.attempt(line);
        if status != 0 {
            let (_, log) = self.attempt("dmesg | tail -n 30");
            panic!("{line}: status {status}\n{text}\n{log}");
        }
        text
    }

    /// Waits until a line succeeds in the guest.
    pub(crate) fn until(&mut self, line: &str) {
        self.sh(&format!("until {line}; do sleep 0.1; done"));
    }

    /// Loads modules with what they need; some are part of the kernel itself.
    pub(crate) fn load(&mut self, modules: &[&str]) {
        for module in modules {
            let file = format!("/lib/modules/$(uname -r)/{module}.ko");
            self.sh(&format!("[ ! -e {file} ] || modprobe {module}"));
        }
    }

    /// Loads what disks and file systems need, and waits for the first disk.
    pub(crate) fn load_storage(&mut self) {
        self.load(&["hv_storvsc", "sd_mod", "crc32c_generic", "ext4"]);
        self.until("[ -b /dev/sda ]");
    }

    /// Leaves the initial RAM disk for the file system on the first disk.
    pub(crate) fn switch_to_disk(&mut self) {
        self.load_storage();
        self.sh("mount -t ext4 /dev/sda /mnt");
        // It mounts its own.
        self.sh("umount /sys /run");
        self.type_line("exec switch_root /mnt /init </dev/console >/dev/console");
        self.wait_for_shell();
    }

    /// Fails if the kernel's log has errors or warnings.
    pub(crate) fn expect_clean_log(&mut self) {
        self.expect_log(&[]);
    }

    /// Fails if the kernel's log has errors or warnings but lines with one of
    /// these parts.
    pub(crate) fn expect_log(&mut self, known: &[&str]) {
        let (_, log) = self.attempt("dmesg -r | grep '^<[0-4]>'");
        let known = |line: &str| HARMLESS.iter().chain(known).any(|part| line.contains(part));
        let bad = log.lines().filter(|line| !known(line));
        let bad: Vec<&str> = bad.collect();
        assert!(bad.is_empty(), "{}", bad.join("\n"));
    }

    /// Has the guest power off and waits for the end of the VM, which must be
    /// a good one without a message.
    pub(crate) fn power_off(mut self) {
        self.type_line("sync; poweroff -f");
        self.ended();
    }

    /// Waits for the end of the VM, which must be a good one without a message.
    pub(crate) fn ended(self) -> Ended {
        let ended = self.vm.ended().expect_code(0);
        assert_eq!(ended.messages, "", "{ended:#?}");
        ended
    }

    /// Waits until the console shows `text`, and deals with what comes before.
    pub(crate) fn wait_for(&mut self, text: &str) {
        self.next(text);
    }

    /// Ends the VM's process with SIGKILL, and gives all of the console.
    pub(crate) fn kill(self) -> String {
        self.vm.kill()
    }
}
