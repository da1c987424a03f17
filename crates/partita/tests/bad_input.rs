//! Wrong input ends `partita` with one clear line and the right status, before anything runs.

use std::path::Path;
use std::process::{Command, Output, Stdio};

const ERROR: i32 = 1;
const USAGE: i32 = 2;

fn partita(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_partita"))
        .args(arguments)
        .stdin(Stdio::null())
        .output()
        .unwrap()
}

/// Runs `partita` and expects `status` and one line that contains all of `parts`.
fn refused(arguments: &[&str], status: i32, parts: &[&str]) {
    let output = partita(arguments);
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert_eq!(
        output.status.code(),
        Some(status),
        "{arguments:?}: {stderr}"
    );
    assert!(stderr.starts_with("partita: "), "{stderr}");
    assert_eq!(stderr.lines().count(), 1, "not one line: {stderr}");
    for part in parts {
        assert!(stderr.contains(part), "{part:?} is not in: {stderr}");
    }
    assert!(output.stdout.is_empty());
}

/// A bzImage whose compressed kernel is not all there.
fn truncated_bzimage(path: &Path) {
    let mut image = vec![0u8; 2048];
    image[0x1f1] = 1;
    image[0x1fe..0x200].copy_from_slice(&[0x55, 0xaa]);
    image[0x201] = 0x6a;
    image[0x202..0x206].copy_from_slice(b"HdrS");
    image[0x206..0x208].copy_from_slice(&0x020fu16.to_le_bytes());
    image[0x211] = 1;
    image[0x24c..0x250].copy_from_slice(&0x10_0000u32.to_le_bytes());
    std::fs::write(path, image).unwrap();
}

/// A 64-bit ELF file that loads 16 bytes at 1 MiB.
fn tiny_kernel(path: &Path) {
    let mut file = b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0\x02\0\x3e\0\x01\0\0\0".to_vec();
    for word in [0x10_0000u64, 64, 0] {
        file.extend_from_slice(&word.to_le_bytes());
    }
    file.extend_from_slice(&[0, 0, 0, 0, 64, 0, 56, 0, 1, 0, 0, 0, 0, 0, 0, 0]);
    file.extend_from_slice(&[1, 0, 0, 0, 7, 0, 0, 0]);
    for word in [120u64, 0x10_0000, 0x10_0000, 16, 16, 4096] {
        file.extend_from_slice(&word.to_le_bytes());
    }
    file.extend_from_slice(&[0xf4; 16]);
    std::fs::write(path, file).unwrap();
}

struct Files {
    folder: tempfile::TempDir,
}

impl Files {
    fn new() -> Self {
        Self {
            folder: tempfile::tempdir().unwrap(),
        }
    }

    fn path(&self, name: &str) -> String {
        self.folder.path().join(name).to_str().unwrap().to_owned()
    }

    fn kernel(&self) -> String {
        let path = self.path("kernel");
        tiny_kernel(Path::new(&path));
        path
    }
}

#[test]
fn a_missing_kernel() {
    let path = Files::new().path("nowhere");
    refused(
        &["run", "--kernel", &path],
        ERROR,
        &["--kernel", &path, "no such file"],
    );
}

#[test]
fn a_log_that_cannot_be_written() {
    let files = Files::new();
    let (kernel, log) = (files.kernel(), files.path("no/folder"));
    let arguments = ["run", "--kernel", &kernel, "--log", &log];
    refused(&arguments, ERROR, &["--log", &log, "No such file"]);
}

#[test]
fn a_missing_initrd() {
    let files = Files::new();
    let (kernel, initrd) = (files.kernel(), files.path("nowhere"));
    let arguments = ["run", "--kernel", &kernel, "--initrd", &initrd];
    refused(&arguments, ERROR, &["--initrd", &initrd, "no such file"]);
}

#[test]
fn a_folder_as_kernel() {
    let folder = Files::new();
    let path = folder.path(".");
    refused(
        &["run", "--kernel", &path],
        ERROR,
        &["--kernel", &path, "directory"],
    );
}

#[test]
fn a_file_that_is_no_kernel() {
    let files = Files::new();
    let path = files.path("text");
    std::fs::write(&path, "hello").unwrap();
    refused(
        &["run", "--kernel", &path],
        ERROR,
        &[&path, "not a kernel", "bzImage"],
    );
}

#[test]
fn a_truncated_kernel() {
    let files = Files::new();
    let path = files.path("vmlinuz");
    truncated_bzimage(Path::new(&path));
    refused(&["run", "--kernel", &path], ERROR, &[&path, "truncated"]);
}

#[test]
fn an_initrd_larger_than_memory() {
    let files = Files::new();
    let (kernel, initrd) = (files.kernel(), files.path("initrd"));
    // A file with a hole: it costs nothing.
    std::fs::File::create(&initrd)
        .unwrap()
        .set_len(64 << 20)
        .unwrap();
    let arguments = [
        "run", "--kernel", &kernel, "--initrd", &initrd, "--memory", "32M",
    ];
    refused(
        &arguments,
        ERROR,
        &["--initrd", &initrd, "does not fit", "--memory"],
    );
}

#[test]
fn an_endless_initrd() {
    let kernel_file = Files::new();
    let kernel = kernel_file.kernel();
    let arguments = [
        "run",
        "--kernel",
        &kernel,
        "--initrd",
        "/dev/zero",
        "--memory",
        "32M",
    ];
    refused(&arguments, ERROR, &["--initrd", "/dev/zero"]);
}

#[test]
fn a_command_line_that_is_too_long() {
    let files = Files::new();
    let (kernel, text) = (files.kernel(), "x".repeat(5000));
    let arguments = ["run", "--kernel", &kernel, "--cmdline", &text];
    refused(&arguments, ERROR, &["--cmdline", "at most 2047"]);
}

#[test]
fn too_little_memory() {
    refused(
        &["run", "--kernel", "x", "--memory", "1M"],
        USAGE,
        &["--memory", "1M", "at least 16M"],
    );
}

#[test]
fn a_memory_size_that_is_none() {
    refused(
        &["run", "--kernel", "x", "--memory", "lots"],
        USAGE,
        &["--memory", "lots", "512M"],
    );
}

#[test]
fn no_and_too_many_processors() {
    for count in ["0", "17", "-1", "two", "99999999999"] {
        let flag = format!("--processors={count}");
        refused(
            &["run", "--kernel", "x", &flag],
            USAGE,
            &["--processors", count, "1 to 16"],
        );
    }
}

#[test]
fn an_unknown_platform() {
    let arguments = ["run", "--kernel", "x", "--platform", "xen"];
    refused(
        &arguments,
        USAGE,
        &["--platform", "xen", "auto or software"],
    );
}

#[test]
fn a_control_socket_in_use() {
    let files = Files::new();
    let (kernel, socket) = (files.kernel(), files.path("control"));
    let _listener = std::os::unix::net::UnixListener::bind(&socket).unwrap();
    let arguments = ["run", "--kernel", &kernel, "--control", &socket];
    refused(&arguments, ERROR, &["--control", &socket, "in use"]);
}

#[test]
fn a_control_socket_where_none_can_be() {
    let files = Files::new();
    let (kernel, socket) = (files.kernel(), files.path("no/such/folder/control"));
    let arguments = ["run", "--kernel", &kernel, "--control", &socket];
    refused(&arguments, ERROR, &["--control", &socket, "no such file"]);
}

#[test]
fn wrong_usage() {
    refused(&[], USAGE, &["no command"]);
    refused(&["run"], USAGE, &["--kernel"]);
    refused(&["walk"], USAGE, &["walk"]);
    refused(
        &["run", "--kernel", "x", "--frobnicate"],
        USAGE,
        &["--frobnicate"],
    );
    refused(&["quickstart", "--json"], USAGE, &["--check"]);
    refused(
        &["quickstart", "--kernel-package", "../x"],
        USAGE,
        &["--kernel-package", "../x"],
    );
    refused(
        &["quickstart", "--memory", "1M"],
        USAGE,
        &["--memory", "at least 16M"],
    );
    refused(&["quickstart", "--timeout", "0"], USAGE, &["--timeout"]);
}

#[test]
fn quickstart_without_the_package_tool_names_the_other_way() {
    let files = Files::new();
    let cache = files.path("cache");
    let output = Command::new(env!("CARGO_BIN_EXE_partita"))
        .args(["quickstart", "--check", "--cache", &cache])
        .env("PATH", files.path("empty"))
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(ERROR), "{stderr}");
    assert_eq!(stderr.lines().count(), 1, "{stderr}");
    assert!(
        stderr.contains("apt-get") && stderr.contains("partita run --kernel"),
        "{stderr}"
    );
}

#[test]
fn a_cache_folder_that_cannot_be_made() {
    let arguments = ["quickstart", "--check", "--cache", "/proc/nothing/here"];
    refused(&arguments, ERROR, &["--cache", "/proc/nothing/here"]);
}

#[test]
fn help_and_version_go_to_standard_output() {
    for (arguments, part) in [
        (["run", "--help"].as_slice(), "Exit status:"),
        (&["quickstart", "--help"], "Examples:"),
        (&["--help"], "quickstart"),
        (&["--version"], "partita "),
    ] {
        let output = partita(arguments);
        assert_eq!(output.status.code(), Some(0));
        assert!(String::from_utf8(output.stdout).unwrap().contains(part));
        assert!(output.stderr.is_empty());
    }
}
