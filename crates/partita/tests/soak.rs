//! A guest that works for a while: what it computes is what the host computes.
//!
//! `PARTITA_SOAK_SECONDS` is how long the guest works, 8 by default.

#[allow(dead_code, reason = "each file of tests uses a part of it")]
mod support;

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use support::packages::{self, CLOUD};
use support::vm::Vm;
use vmwp::cpio::Archive;

const WORKLOAD: &str = include_str!("soak-workload.sh");
const INIT: &str = "\
#!/bin/busybox sh
/bin/busybox mount -t proc proc /proc
/bin/busybox mount -t devtmpfs devtmpfs /dev
/bin/busybox mount -t tmpfs tmpfs /tmp
/bin/busybox dmesg -n 1
";
const DEFAULT_SECONDS: u64 = 8;

/// Programs of the host that the guest runs, too, where there are any: the
/// variable of the workload, and the program.
const PROGRAMS: [(&str, &str); 2] = [("SORT", "/usr/bin/sort"), ("PERL", "/usr/bin/perl")];

/// A program and the shared objects that it takes.
fn with_libraries(program: &str) -> Option<Vec<PathBuf>> {
    if !Path::new(program).exists() {
        return None;
    }
    let output = Command::new("ldd").arg(program).output().ok()?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let libraries = text
        .split_whitespace()
        .filter(|word| word.starts_with('/'))
        .map(PathBuf::from);
    Some(libraries.chain([PathBuf::from(program)]).collect())
}

fn add(archive: &mut Archive, known: &mut BTreeSet<PathBuf>, file: &Path) {
    let inside = file.strip_prefix("/").expect("an absolute path");
    let folders: Vec<&Path> = inside.ancestors().skip(1).collect();
    for folder in folders.into_iter().rev() {
        if !folder.as_os_str().is_empty() && known.insert(folder.into()) {
            archive
                .directory(folder.to_str().expect("a name"), 0o755)
                .unwrap();
        }
    }
    if known.insert(inside.into()) {
        let bytes = fs::read(file).expect("a program can be read");
        archive
            .file(inside.to_str().expect("a name"), 0o755, &bytes)
            .unwrap();
    }
}

/// The RAM disk, and the variables that the workload gets.
fn initrd(path: &Path, seconds: u64) -> Vec<(&'static str, &'static str)> {
    let mut archive = Archive::new();
    let mut known = BTreeSet::new();
    for folder in ["bin", "dev", "proc", "tmp"] {
        archive.directory(folder, 0o755).unwrap();
        known.insert(PathBuf::from(folder));
    }
    archive.char_device("dev/console", 0o600, 5, 1).unwrap();
    let busybox = fs::read(packages::busybox()).expect("BusyBox can be read");
    archive.file("bin/busybox", 0o755, &busybox).unwrap();
    archive
        .file("workload", 0o644, WORKLOAD.as_bytes())
        .unwrap();
    let mut variables = Vec::new();
    for (name, program) in PROGRAMS {
        if let Some(files) = with_libraries(program) {
            files
                .iter()
                .for_each(|file| add(&mut archive, &mut known, file));
            variables.push((name, program));
        }
    }
    let exports: String = variables
        .iter()
        .map(|(name, program)| format!("export {name}={program}\n"))
        .collect();
    let run = format!(
        "/bin/busybox sh /workload /bin/busybox /tmp 1 1000000 {seconds}\n/bin/busybox poweroff -f\n"
    );
    let init = format!("{INIT}{exports}{run}");
    archive.file("init", 0o755, init.as_bytes()).unwrap();
    fs::write(path, archive.finish()).expect("the RAM disk can be written");
    variables
}

fn results(text: &str) -> Vec<&str> {
    text.lines()
        .filter(|line| line.starts_with("SOAK "))
        .collect()
}

/// The same work here.
fn natively(folder: &Path, rounds: u64, variables: &[(&str, &str)]) -> String {
    let script = folder.join("workload");
    fs::write(&script, WORKLOAD).unwrap();
    let work = folder.join("work");
    fs::create_dir(&work).unwrap();
    let busybox = folder.join("busybox");
    fs::copy(packages::busybox(), &busybox).expect("BusyBox can be copied");
    fs::set_permissions(&busybox, fs::Permissions::from_mode(0o755)).unwrap();
    let output = Command::new(&busybox)
        .arg("sh")
        .args([&script, &busybox, &work])
        .args(["1".to_owned(), rounds.to_string()])
        .envs(variables.iter().copied())
        .output()
        .expect("BusyBox runs");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

#[test]
fn a_guest_that_works_computes_what_the_host_does() {
    let seconds = std::env::var("PARTITA_SOAK_SECONDS").ok();
    let seconds = seconds.map_or(DEFAULT_SECONDS, |text| {
        text.parse().expect("PARTITA_SOAK_SECONDS is a number")
    });
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("initrd");
    let variables = initrd(&path, seconds);
    let kernel = packages::kernel(CLOUD);
    let vm = Vm::start([
        "run".as_ref(),
        "--kernel".as_ref(),
        kernel.as_os_str(),
        "--initrd".as_ref(),
        path.as_os_str(),
    ]);
    vm.wait_for("SOAK ", 1);
    std::thread::sleep(std::time::Duration::from_secs(seconds));
    let ended = vm.ended().expect_code(0);
    let seen = results(&ended.console);
    let rounds = seen.last().and_then(|line| line.strip_prefix("SOAK end "));
    let rounds: u64 = rounds
        .and_then(|text| text.parse().ok())
        .expect(&ended.console);
    let native = natively(folder.path(), rounds, &variables);
    let expected = results(&native);
    for (seen, expected) in seen.iter().zip(&expected) {
        assert_eq!(seen, expected);
    }
    assert_eq!(seen.len(), expected.len());
    println!(
        "{rounds} rounds, {} results in {seconds} s, as on the host",
        seen.len()
    );
}
