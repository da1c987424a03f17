//! `partita disk` may be stopped or killed at any time: a new file appears whole or not at all, and
//! a disk that is changed stays valid and shows what it showed.

#[macro_use]
#[path = "support/disks.rs"]
#[allow(dead_code, reason = "each file of tests uses a part of it")]
mod disks;

use std::ffi::OsString;
use std::io::{BufRead, BufReader, Read};
use std::path::Path;
use std::process::{Child, Stdio};
use std::time::Duration;

use disks::{Folder, MIB, command, contents, done, fill, json};
use rustix::process::{Pid, Signal, kill_process};

/// Starts an operation that goes on for long, and waits until it tells of its progress.
fn start(arguments: &[OsString]) -> (Child, BufReader<std::process::ChildStderr>) {
    let mut child = command(arguments)
        .arg("--progress")
        .stderr(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("partita starts");
    let mut errors = BufReader::new(child.stderr.take().expect("standard error"));
    let mut line = String::new();
    errors.read_line(&mut line).expect("a line of progress");
    assert!(line.contains(" % of "), "no progress: {line}");
    (child, errors)
}

/// Sends a signal to a running operation; gives its exit status and last words.
fn stop(arguments: &[OsString], signal: Signal) -> (Option<i32>, String) {
    let (mut child, mut errors) = start(arguments);
    kill_process(Pid::from_child(&child), signal).expect("the signal is sent");
    let mut rest = String::new();
    errors.read_to_string(&mut rest).expect("text");
    let status = child.wait().expect("partita ends");
    let last = rest.lines().last().unwrap_or_default().to_owned();
    (status.code(), last)
}

/// The largest VHDX disk. It takes little space, and going through its blocks takes long.
fn largest(folder: &Folder, name: &str) -> std::path::PathBuf {
    let path = folder.path(name);
    done(&args![
        "create",
        path,
        "--size",
        "64T",
        "--block-size",
        "1M"
    ]);
    fill(&path, &[(0, 4096), (MIB, MIB), (9 * MIB, 4096)]);
    path
}

#[test]
fn a_conversion_that_is_stopped_leaves_nothing() {
    let folder = Folder::new();
    let source = largest(&folder, "a.vhdx");
    for (signal, status, name) in [(Signal::INT, 130, "SIGINT"), (Signal::TERM, 143, "SIGTERM")] {
        let target = folder.path("b.vhdx");
        let (code, last) = stop(&args!["convert", source, target], signal);
        assert_eq!(code, Some(status), "{last}");
        let expected = format!(
            "partita: stopped by {name}; {} was not made",
            target.display()
        );
        assert_eq!(last, expected);
        assert_eq!(folder.names(), ["a.vhdx"]);
    }
    assert_eq!(json(&args!["check", source])["clean"], true);
}

#[test]
fn a_conversion_that_is_killed_leaves_nothing() {
    let folder = Folder::new();
    let source = largest(&folder, "a.vhdx");
    let (code, _) = stop(
        &args!["convert", source, folder.path("b.vhdx")],
        Signal::KILL,
    );
    assert_eq!(code, None);
    // The file has no name before it is complete; other file systems keep a hidden one.
    let names = folder.names();
    let rest: Vec<_> = names
        .iter()
        .filter(|name| !name.ends_with(".partial"))
        .collect();
    assert_eq!(rest, ["a.vhdx"]);
}

#[test]
fn disks_that_are_changed_stay_valid_when_stopped() {
    let folder = Folder::new();
    let base = largest(&folder, "base.vhdx");
    let (child, other) = (folder.path("child.vhdx"), folder.path("other.vhdx"));
    let large_blocks = ["--block-size", "32M"];
    done(&args![
        "create",
        child,
        "--parent",
        base,
        large_blocks[0],
        large_blocks[1]
    ]);
    fill(&child, &[(4096, 4096), (20 * MIB, MIB)]);
    done(&args!["create", other, "--size", "64T"]);
    let start = |path: &Path| {
        let disk = disks::open(path);
        let mut bytes = vec![0; 32 * MIB as usize];
        disk.read(0, &mut [std::io::IoSliceMut::new(&mut bytes)])
            .expect("the disk can be read");
        bytes
    };
    let expected = start(&child);
    for (arguments, words) in [
        (
            args!["rebase", child, "--parent", other].to_vec(),
            "keeps its old parent",
        ),
        (args!["merge", child].to_vec(), "merge it again"),
    ] {
        let (code, last) = stop(&arguments, Signal::INT);
        assert_eq!(code, Some(130), "{last}");
        assert!(
            last.contains("stopped by SIGINT") && last.contains(words),
            "{last}"
        );
        assert_eq!(json(&args!["check", child])["clean"], true, "{arguments:?}");
        assert!(start(&child) == expected, "{arguments:?}");
    }
    assert_eq!(folder.names(), ["base.vhdx", "child.vhdx", "other.vhdx"]);
}

#[test]
fn compacting_that_is_stopped_can_be_done_again() {
    let folder = Folder::new();
    let file = folder.path("a.vhdx");
    done(&args![
        "create",
        file,
        "--size",
        "64T",
        "--block-size",
        "1M"
    ]);
    fill(&file, &[(0, 4096), (MIB, MIB), (9 * MIB, 4096)]);
    let (code, last) = stop(&args!["compact", file], Signal::INT);
    assert_eq!(code, Some(130), "{last}");
    assert!(
        last.contains("stopped by SIGINT") && last.contains("compact it again"),
        "{last}"
    );
    assert_eq!(json(&args!["check", file])["clean"], true);
}

/// Runs an operation and kills it after a while that `round` chooses; tells whether it had ended.
fn kill_after(arguments: &[OsString], round: u64) -> bool {
    let mut child = command(arguments)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("partita starts");
    std::thread::sleep(Duration::from_micros(round * round * 200));
    // It may have ended by itself.
    let _ = child.kill();
    child.wait().expect("partita ends").success()
}

const ROUNDS: u64 = 12;

/// A parent and a child that differs from it in many places.
fn family(folder: &Folder, extension: &str, size: u64) -> [std::path::PathBuf; 2] {
    let [base, child] = ["base", "child"].map(|name| folder.path(&format!("{name}.{extension}")));
    let size = format!("{}M", size / MIB);
    done(&args!["create", base, "--size", size, "--block-size", "1M"]);
    fill(&base, &[(0, 6 * MIB)]);
    done(&args![
        "create",
        child,
        "--parent",
        base,
        "--block-size",
        "1M"
    ]);
    let parts: Vec<_> = (0..20).map(|i| (i * MIB + i * 8192, 256 << 10)).collect();
    fill(&child, &parts);
    [base, child]
}

#[test]
fn a_merge_that_is_killed_can_be_done_again() {
    for extension in ["vhdx", "vhd"] {
        let (folder, fresh) = (Folder::new(), Folder::new());
        let templates = family(&fresh, extension, 24 * MIB);
        let expected = contents(&templates[1]);
        for round in 0..ROUNDS {
            let [base, child] = templates.each_ref().map(|template| {
                let copy = folder.path(&template.file_name().expect("a name").to_string_lossy());
                std::fs::copy(template, &copy).expect("a copy");
                copy
            });
            // Nothing may have happened when it is killed, or all of it; the child tells which.
            let ended = kill_after(&args!["merge", child], round);
            if !ended && is_clean(&child) {
                assert!(
                    contents(&child) == expected,
                    "round {round}: the child changed"
                );
                done(&args!["merge", child]);
            }
            assert!(is_clean(&base), "round {round}");
            assert!(contents(&base) == expected, "round {round}: the parent");
        }
    }
}

/// Whether a disk is clean and its parent the one that it was made from.
fn is_clean(path: &Path) -> bool {
    let output = disks::disk(&args!["check", path, "--json"]);
    let found: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
    found["clean"] == true
}

#[test]
fn a_rebase_that_is_killed_keeps_what_a_guest_sees() {
    for extension in ["vhdx", "vhd"] {
        let folder = Folder::new();
        let [_base, child] = family(&folder, extension, 24 * MIB);
        let expected = contents(&child);
        for round in 0..ROUNDS {
            let other = folder.path(&format!("other{round}.{extension}"));
            done(&args!["create", other, "--size", "24M"]);
            fill(&other, &[(round * MIB, 2 * MIB)]);
            kill_after(&args!["rebase", child, "--parent", other], round);
            assert_eq!(json(&args!["check", child])["clean"], true, "round {round}");
            assert!(contents(&child) == expected, "{extension}, round {round}");
        }
    }
}

#[test]
fn compacting_and_growing_that_are_killed_keep_what_a_guest_sees() {
    for extension in ["vhdx", "vhd"] {
        let folder = Folder::new();
        let file = folder.path(&format!("a.{extension}"));
        done(&args![
            "create",
            file,
            "--size",
            "24M",
            "--block-size",
            "1M"
        ]);
        fill(&file, &[(0, 20 * MIB)]);
        let mut size = 24;
        for round in 0..ROUNDS {
            let disk = disks::open(&file);
            let zeros = vec![0; MIB as usize];
            disk.write(round * MIB, &[std::io::IoSlice::new(&zeros)], false)
                .expect("write");
            drop(disk);
            let mut expected = contents(&file);
            kill_after(&args!["compact", file], round);
            assert_eq!(json(&args!["check", file])["clean"], true, "round {round}");
            assert!(
                contents(&file) == expected,
                "{extension}, round {round}: compacted"
            );
            kill_after(&args!["resize", file, format!("{}M", size + 1)], round);
            let checked = json(&args!["check", file]);
            assert_eq!(checked["clean"], true, "round {round}");
            let now = checked["info"]["virtual_size"].as_u64().expect("a size");
            assert!(now == size * MIB || now == (size + 1) * MIB, "{now}");
            size = now / MIB;
            expected.resize(now as usize, 0);
            assert!(
                contents(&file) == expected,
                "{extension}, round {round}: grown"
            );
        }
        let rest: Vec<_> = folder.names();
        assert_eq!(
            rest.iter().filter(|n| !n.ends_with(".partial")).count(),
            1,
            "{rest:?}"
        );
    }
}

#[test]
fn progress_is_told_only_where_someone_reads_it() {
    let folder = Folder::new();
    let source = largest(&folder, "a.vhdx");
    let target = folder.path("b.vhdx");
    let mut child = command(&args!["convert", source, target])
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .expect("partita starts");
    std::thread::sleep(Duration::from_millis(1500));
    kill_process(Pid::from_child(&child), Signal::TERM).expect("the signal is sent");
    let mut errors = String::new();
    let mut pipe = child.stderr.take().expect("standard error");
    pipe.read_to_string(&mut errors).expect("text");
    assert_eq!(child.wait().expect("partita ends").code(), Some(143));
    assert_eq!(errors.lines().count(), 1, "{errors}");
    assert!(
        errors.starts_with("partita: stopped by SIGTERM"),
        "{errors}"
    );
}
