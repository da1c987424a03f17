//! `partita disk`: what it prints, what it refuses, and what its exit status tells.

#[macro_use]
#[path = "support/disks.rs"]
#[allow(dead_code, reason = "each file of tests uses a part of it")]
mod disks;

use std::ffi::OsStr;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};
use std::path::Path;

use disks::{Folder, MIB, contents, disk, done, fill, json};

const ERROR: i32 = 1;
const USAGE: i32 = 2;

/// Runs `partita disk` and expects `status` and one line that contains all of `parts`.
fn refused<S: AsRef<OsStr>>(arguments: &[S], status: i32, parts: &[&str]) {
    let output = disk(arguments);
    let words: Vec<_> = arguments.iter().map(AsRef::as_ref).collect();
    let errors = String::from_utf8(output.stderr).expect("text");
    assert_eq!(output.status.code(), Some(status), "{words:?}: {errors}");
    assert!(errors.starts_with("partita: "), "{errors}");
    assert_eq!(errors.lines().count(), 1, "not one line: {errors}");
    for part in parts {
        assert!(errors.contains(part), "{part:?} is not in: {errors}");
    }
    assert!(output.stdout.is_empty());
}

#[test]
fn create_tells_what_was_made() {
    let folder = Folder::new();
    let text = done(&args!["create", folder.path("a.vhdx"), "--size", "10G"]);
    for part in ["VHDX, dynamic", "10 GiB (10737418240 bytes)", "32 MiB"] {
        assert!(text.contains(part), "{part:?} is not in: {text}");
    }
    let made = json(&args![
        "create",
        folder.path("b.vhdx"),
        "--size",
        "64M",
        "--type",
        "fixed",
        "--block-size",
        "1M",
        "--logical-sector-size",
        "4096",
        "--physical-sector-size",
        "4096",
    ]);
    assert_eq!(
        (&made["format"], &made["kind"]),
        (&"vhdx".into(), &"fixed".into())
    );
    assert_eq!(made["virtual_size"], 64 * MIB);
    assert_eq!(made["block_size"], MIB);
    assert_eq!(made["logical_sector_size"], 4096);
    assert!(made["allocated_size"].as_u64() >= Some(64 * MIB), "{made}");
    let made = json(&args!["create", folder.path("c.vhd"), "--size", "1G"]);
    assert_eq!(
        (&made["format"], &made["kind"]),
        (&"vhd".into(), &"dynamic".into())
    );
    let made = json(&args![
        "create",
        folder.path("d"),
        "--format",
        "raw",
        "--size",
        "1536B"
    ]);
    assert_eq!(
        (&made["format"], &made["virtual_size"]),
        (&"raw".into(), &1536.into())
    );
    assert_eq!(folder.names(), ["a.vhdx", "b.vhdx", "c.vhd", "d"]);
}

#[test]
fn a_chain_is_described_and_its_disks_found_after_a_move() {
    let folder = Folder::new();
    for name in ["old", "new"] {
        std::fs::create_dir(folder.path(name)).expect("a folder");
    }
    done(&args![
        "create",
        folder.path("old/base.vhdx"),
        "--size",
        "8M"
    ]);
    done(&args![
        "create",
        folder.path("old/mid.vhdx"),
        "--parent",
        folder.path("old/base.vhdx")
    ]);
    done(&args![
        "create",
        folder.path("old/top.vhdx"),
        "--parent",
        folder.path("old/mid.vhdx")
    ]);
    for name in ["base", "mid", "top"] {
        let from = folder.path(&format!("old/{name}.vhdx"));
        std::fs::rename(from, folder.path(&format!("new/{name}.vhdx"))).expect("moved");
    }
    let top = folder.path("new/top.vhdx");
    let chain = json(&args!["info", top, "--chain"]);
    let parents = chain["parents"].as_array().expect("parents");
    let files: Vec<_> = parents
        .iter()
        .map(|p| p["file"].as_str().expect("a file"))
        .collect();
    assert_eq!(parents.len(), 2, "{chain}");
    assert!(
        files[0].ends_with("new/mid.vhdx") && files[1].ends_with("new/base.vhdx"),
        "{files:?}"
    );
    assert_eq!(chain["parent"]["relative_path"], ".\\mid.vhdx");
    assert_eq!(chain["parent"]["linkage"], parents[0]["data_identity"]);
    let text = done(&args!["info", top, "--chain"]);
    assert_eq!(text.matches("Format:").count(), 3, "{text}");
    // Without --chain the parents need not be there.
    std::fs::remove_file(folder.path("new/base.vhdx")).expect("removed");
    assert_eq!(json(&args!["info", top])["kind"], "differencing");
    refused(
        &args!["info", top, "--chain"],
        ERROR,
        &["base.vhdx", "not found"],
    );
}

#[test]
fn check_finds_what_is_wrong_and_says_where() {
    let folder = Folder::new();
    let file = folder.path("a.vhdx");
    done(&args![
        "create",
        file,
        "--size",
        "64M",
        "--block-size",
        "1M"
    ]);
    fill(&file, &[(0, 4096), (9 * MIB, 4096)]);
    let clean = json(&args!["check", file]);
    assert_eq!(
        (&clean["clean"], &clean["allocated_blocks"]),
        (&true.into(), &2.into())
    );
    let text = done(&args!["check", file]);
    assert!(
        text.contains("2 of 64 blocks") && text.contains("is clean"),
        "{text}"
    );

    // An entry of the block allocation table that points past the end of the file.
    let bytes = std::fs::File::options()
        .write(true)
        .open(&file)
        .expect("open");
    bytes
        .write_all_at(&(6 | (77 * MIB)).to_le_bytes(), 3 * MIB)
        .expect("write");
    let before = std::fs::read(&file).expect("read");
    let output = disk(&args!["check", file]);
    let text = String::from_utf8(output.stdout).expect("text");
    assert_eq!(output.status.code(), Some(ERROR), "{text}");
    assert!(
        text.starts_with("Error: ") && text.contains("has 1 error"),
        "{text}"
    );
    assert!(text.contains("0x4d00000"), "the offset is not in: {text}");
    let output = disk(&args!["check", file, "--json"]);
    let found: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
    assert_eq!(output.status.code(), Some(ERROR));
    assert_eq!(
        (&found["clean"], found["errors"].as_array().map(Vec::len)),
        (&false.into(), Some(1))
    );
    assert!(
        std::fs::read(&file).expect("read") == before,
        "the check wrote to the file"
    );
    refused(
        &args!["info", file, "--chain"],
        ERROR,
        &["a.vhdx", "0x4d00000"],
    );
}

#[test]
fn check_finds_a_parent_that_changed() {
    let folder = Folder::new();
    for extension in ["vhdx", "vhd"] {
        let (base, child) = (
            folder.path(&format!("base.{extension}")),
            folder.path(&format!("child.{extension}")),
        );
        done(&args!["create", base, "--size", "8M"]);
        done(&args!["create", child, "--parent", base]);
        assert_eq!(json(&args!["check", child])["clean"], true);
        if extension == "vhdx" {
            fill(&base, &[(0, 512)]);
        } else {
            // A VHD's identity lasts; another disk in its place is what can be noticed.
            std::fs::remove_file(&base).expect("removed");
            done(&args!["create", base, "--size", "8M"]);
        }
        let output = disk(&args!["check", child]);
        let text = String::from_utf8(output.stdout).expect("text");
        assert_eq!(output.status.code(), Some(ERROR), "{text}");
        assert!(text.contains("was changed since"), "{text}");
    }
}

#[test]
fn convert_and_back_keeps_every_byte() {
    let folder = Folder::new();
    let parts = [(0, 4096), (5 * MIB + 512, 3 * MIB), (40 * MIB - 512, 512)];
    let raw = folder.raw("a.raw", 40 * MIB, &parts);
    let expected = std::fs::read(&raw).expect("read");
    let mut from = raw.clone();
    for (name, kind) in [
        ("1.vhdx", "dynamic"),
        ("2.vhd", "fixed"),
        ("3.vhdx", "fixed"),
        ("4.vhd", "dynamic"),
        ("5.raw", "fixed"),
    ] {
        let to = folder.path(name);
        let made = json(&args!["convert", from, to, "--type", kind]);
        assert_eq!(
            (&made["kind"], &made["virtual_size"]),
            (&kind.into(), &(40 * MIB).into())
        );
        assert!(contents(&to) == expected, "{name}");
        from = to;
    }
    // Zeros take no space where the format need not keep them.
    let sparse = std::fs::metadata(folder.path("5.raw")).expect("metadata");
    assert!(
        sparse.blocks() * 512 < 8 * MIB,
        "{} bytes",
        sparse.blocks() * 512
    );
}

#[test]
fn convert_flattens_a_chain_and_may_enlarge() {
    let folder = Folder::new();
    let raw = folder.raw("base.raw", 20 * MIB, &[(MIB, MIB)]);
    let (base, child, flat) = (
        folder.path("base.vhdx"),
        folder.path("child.vhdx"),
        folder.path("flat.vhdx"),
    );
    done(&args!["convert", raw, base, "--block-size", "1M"]);
    done(&args!["create", child, "--parent", base]);
    fill(&child, &[(MIB + 512, 1024), (12 * MIB, 4096)]);
    let made = json(&args![
        "convert",
        child,
        flat,
        "--size",
        "24M",
        "--logical-sector-size",
        "4096"
    ]);
    assert_eq!(made["logical_sector_size"], 4096);
    let mut expected = contents(&child);
    expected.resize(24 * MIB as usize, 0);
    assert!(contents(&flat) == expected);
    refused(
        &args!["convert", child, folder.path("small.vhdx"), "--size", "16M"],
        ERROR,
        &["small.vhdx", "smaller than the source"],
    );
}

#[test]
fn a_raw_file_that_ends_inside_a_sector_is_not_cut_silently() {
    let folder = Folder::new();
    let raw = folder.raw("odd.raw", 4096 + 100, &[(0, 4196)]);
    refused(
        &args!["convert", raw, folder.path("odd.vhdx")],
        ERROR,
        &["odd.raw", "inside a sector", "truncate --size=%512"],
    );
    assert_eq!(folder.names(), ["odd.raw"]);
}

#[test]
fn resize_grows_to_a_size_or_by_one() {
    let folder = Folder::new();
    for (name, kind) in [
        ("a.vhdx", "dynamic"),
        ("b.vhdx", "fixed"),
        ("c.vhd", "dynamic"),
        ("d.vhd", "fixed"),
        ("e.raw", "fixed"),
    ] {
        let file = folder.path(name);
        done(&args!["create", file, "--size", "20M", "--type", kind]);
        fill(&file, &[(20 * MIB - 4096, 4096)]);
        let mut expected = contents(&file);
        assert_eq!(
            json(&args!["resize", file, "30M"])["virtual_size"],
            30 * MIB,
            "{name}"
        );
        assert_eq!(
            json(&args!["resize", file, "+2M"])["virtual_size"],
            32 * MIB,
            "{name}"
        );
        assert_eq!(json(&args!["check", file])["clean"], true, "{name}");
        expected.resize(32 * MIB as usize, 0);
        assert!(contents(&file) == expected, "{name}");
        refused(
            &args!["resize", file, "10M"],
            ERROR,
            &[name, "of 32 MiB cannot shrink to 10 MiB"],
        );
    }
}

#[test]
fn compact_gives_back_what_is_zero_or_trimmed() {
    let folder = Folder::new();
    for name in ["a.vhdx", "b.vhd"] {
        let file = folder.path(name);
        done(&args![
            "create",
            file,
            "--size",
            "64M",
            "--block-size",
            "1M"
        ]);
        fill(&file, &[(0, 32 * MIB)]);
        let disk = disks::open(&file);
        disk.unmap(4 * MIB, 8 * MIB).expect("unmap");
        let zeros = vec![0; 8 * MIB as usize];
        disk.write(20 * MIB, &[std::io::IoSlice::new(&zeros)], false)
            .expect("write");
        disk.close().expect("close");
        drop(disk);
        std::fs::set_permissions(&file, PermissionsExt::from_mode(0o640)).expect("mode");
        let expected = contents(&file);
        let result = json(&args!["compact", file]);
        let size = |name: &str| result[name].as_u64().expect("a number");
        assert!(
            size("file_size") + 12 * MIB <= size("file_size_before"),
            "{result}"
        );
        assert_eq!(
            std::fs::metadata(&file).expect("metadata").len(),
            size("file_size")
        );
        let mode = std::fs::metadata(&file).expect("metadata").mode();
        assert_eq!(mode & 0o777, 0o640, "{name}");
        assert!(contents(&file) == expected, "{name}");
        assert_eq!(json(&args!["check", file])["clean"], true);
        let text = done(&args!["compact", file]);
        assert!(text.contains(name) && text.contains("went from"), "{text}");
    }
    assert_eq!(folder.names(), ["a.vhdx", "b.vhd"]);
}

#[test]
fn merge_writes_into_the_parent_and_rebase_finds_a_new_one() {
    let folder = Folder::new();
    for extension in ["vhdx", "vhd"] {
        let path = |name: &str| folder.path(&format!("{name}.{extension}"));
        let (base, mid, top, other) = (path("base"), path("mid"), path("top"), path("other"));
        done(&args!["create", base, "--size", "16M"]);
        fill(&base, &[(0, 2 * MIB)]);
        done(&args!["create", mid, "--parent", base]);
        fill(&mid, &[(MIB, 4096), (9 * MIB, 512)]);
        done(&args!["create", top, "--parent", mid]);
        fill(&top, &[(3 * MIB, 1536)]);
        let (seen_mid, seen_top) = (contents(&mid), contents(&top));

        let result = json(&args!["merge", mid, "--delete"]);
        assert_eq!(result["deleted"], true);
        assert!(!mid.exists() && contents(&base) == seen_mid, "{extension}");
        if extension == "vhdx" {
            // The merged disk's contents live on in its parent, so its children may move there.
            done(&args!["rebase", top, "--parent", base, "--reference-only"]);
            assert!(contents(&top) == seen_top);
            done(&args!["create", other, "--size", "16M"]);
            fill(&other, &[(5 * MIB, 2 * MIB)]);
            let info = json(&args!["rebase", top, "--parent", other]);
            assert_eq!(info["parent"]["relative_path"], ".\\other.vhdx");
            assert!(contents(&top) == seen_top);
            std::fs::remove_file(&base).expect("removed");
            assert_eq!(json(&args!["check", top])["clean"], true);
        }
    }
    refused(
        &args!["merge", folder.path("other.vhdx")],
        ERROR,
        &["other.vhdx", "no parent"],
    );
}

#[test]
fn a_disk_in_use_is_refused() {
    let folder = Folder::new();
    let file = folder.path("a.vhdx");
    done(&args!["create", file, "--size", "8M"]);
    let held = disks::open(&file);
    for arguments in [
        args!["info", file].to_vec(),
        args!["check", file].to_vec(),
        args!["resize", file, "+1M"].to_vec(),
        args!["compact", file].to_vec(),
        args!["convert", file, folder.path("b.vhdx")].to_vec(),
        args!["create", folder.path("c.vhdx"), "--parent", file].to_vec(),
    ] {
        refused(&arguments, ERROR, &["a.vhdx", "in use by another process"]);
    }
    drop(held);
    done(&args!["check", file]);
    assert_eq!(folder.names(), ["a.vhdx"]);
}

#[test]
fn nothing_is_ever_replaced() {
    let folder = Folder::new();
    let raw = folder.raw("a.raw", MIB, &[(0, MIB)]);
    let (target, link) = (folder.path("b.vhdx"), folder.path("c.vhdx"));
    std::fs::write(&target, "precious").expect("write");
    std::os::unix::fs::symlink("nowhere", &link).expect("a link");
    for file in [&target, &link] {
        let name = file.to_str().expect("text");
        refused(
            &args!["create", *file, "--size", "1M"],
            ERROR,
            &[name, "exists"],
        );
        refused(&args!["convert", raw, *file], ERROR, &[name, "exists"]);
    }
    assert_eq!(std::fs::read(&target).expect("read"), b"precious");
    assert_eq!(folder.names(), ["a.raw", "b.vhdx", "c.vhdx"]);
}

#[test]
fn wrong_usage_names_the_option() {
    let folder = Folder::new();
    let (vhdx, vhd, raw) = (
        folder.path("a.vhdx"),
        folder.path("a.vhd"),
        folder.path("a.raw"),
    );
    let create = |file: &Path, words: &[&str]| {
        let mut all = args!["create", *file].to_vec();
        all.extend(words.iter().map(Into::into));
        all
    };
    for (arguments, parts) in [
        (create(&vhdx, &[]), ["--size 10G"].as_slice()),
        (create(&vhdx, &["--size", "10"]), &["--size", "10G", "10B"]),
        (create(&vhdx, &["--size", "65T"]), &["--size", "64 TiB"]),
        (create(&vhd, &["--size", "3T"]), &["--size", "2040 GiB"]),
        (create(&vhdx, &["--size", "100B"]), &["--size", "512 bytes"]),
        (
            create(&vhdx, &["--size", "1G", "--block-size", "3M"]),
            &["--block-size", "1M to 256M"],
        ),
        (
            create(&vhd, &["--size", "1G", "--block-size", "1G"]),
            &["--block-size", "64K to 256M"],
        ),
        (
            create(&raw, &["--size", "1G", "--block-size", "1M"]),
            &["--block-size", "raw"],
        ),
        (
            create(&raw, &["--size", "1G", "--type", "dynamic"]),
            &["--type dynamic", "raw"],
        ),
        (
            create(&vhdx, &["--size", "1G", "--type", "thick"]),
            &["--type", "fixed, dynamic"],
        ),
        (
            create(&vhdx, &["--type", "differencing"]),
            &["--parent FILE"],
        ),
        (
            create(&vhdx, &["--parent", "x.vhdx", "--type", "fixed"]),
            &["--parent", "--type fixed"],
        ),
        (
            create(&vhdx, &["--size", "1G", "--logical-sector-size", "520"]),
            &["512 or 4096"],
        ),
        (
            create(&vhd, &["--size", "1G", "--logical-sector-size", "4096"]),
            &["--logical-sector-size", "512-byte"],
        ),
        (
            create(&folder.path("a.qcow2"), &["--size", "1G"]),
            &["a.qcow2", "--format vhdx, vhd or raw"],
        ),
        (
            create(&vhdx, &["--size", "1G", "--format", "qcow2"]),
            &["--format", "vhdx, vhd or raw"],
        ),
        (args!["info", "disk"].to_vec(), &["disk", "--format"]),
        (
            args!["convert", "disk", vhdx].to_vec(),
            &["disk", "--source-format"],
        ),
        (args!["resize", vhdx, "big"].to_vec(), &["<SIZE>", "10G"]),
        (args!["rebase", vhdx].to_vec(), &["--parent"]),
        (args!["shrink"].to_vec(), &["shrink"]),
        (Vec::new(), &["subcommand", "create"]),
    ] {
        refused(&arguments, USAGE, parts);
    }
    assert_eq!(folder.names(), [""; 0]);
}

#[test]
fn files_that_are_not_what_they_should_be() {
    let folder = Folder::new();
    let missing = folder.path("missing.vhdx");
    for command in ["info", "check", "compact", "merge"] {
        refused(
            &args![command, missing],
            ERROR,
            &["missing.vhdx", "No such file or directory"],
        );
    }
    let text = folder.path("text.vhdx");
    std::fs::write(&text, "x".repeat(100_000)).expect("write");
    refused(&args!["info", text], ERROR, &["text.vhdx", "offset"]);
    std::fs::create_dir(folder.path("folder.vhd")).expect("a folder");
    refused(
        &args!["info", folder.path("folder.vhd")],
        ERROR,
        &["folder.vhd"],
    );
    refused(
        &args!["create", folder.path("none/a.vhdx"), "--size", "1G"],
        ERROR,
        &["none/a.vhdx", "No such file or directory"],
    );
    let raw = folder.raw("base.raw", MIB, &[]);
    refused(
        &args!["create", folder.path("child.vhdx"), "--parent", raw],
        ERROR,
        &["base.raw"],
    );
}

#[test]
fn every_command_shows_examples() {
    for command in [
        "create", "info", "check", "convert", "resize", "compact", "merge", "rebase",
    ] {
        let text = done(&[command, "--help"]);
        let example = format!("partita disk {command} ");
        assert!(
            text.contains("Examples:") && text.contains(&example),
            "{text}"
        );
        assert!(text.contains("--json"), "{text}");
    }
    assert!(done(&["--help"]).contains("Exit status:"));
}
