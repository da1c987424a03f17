//! Other people's disk tools: `qemu-img`, `qemu-io`, and libvhdi in Python.
//!
//! What is not installed is fetched into Partita's cache folder, without root rights: Debian's
//! packages with everything that they depend on, the C library and its loader included, unpacked
//! and run from there; and libvhdi from PyPI. With `PARTITA_TEST_TOOLS=fetch` nothing installed is
//! used. Needs `apt-get` and `dpkg-deb`, or the tools installed; and a network, or the cache.

use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use rustix::fs::{FlockOperation, flock};

/// A command that starts `qemu-img`.
pub(crate) fn qemu_img() -> Command {
    qemu("qemu-img")
}

/// A command that starts `qemu-io`.
pub(crate) fn qemu_io() -> Command {
    qemu("qemu-io")
}

/// A command that starts a Python whose `pyvhdi` reads VHD and VHDX files.
pub(crate) fn python_with_libvhdi() -> Command {
    static FOUND: OnceLock<Vec<OsString>> = OnceLock::new();
    let words = FOUND.get_or_init(|| {
        let _turn = turn();
        installed_python()
            .or_else(|| {
                let root = Root::of(
                    "python",
                    &["python3-minimal", "libpython3-stdlib", PIP, CERTIFICATES],
                );
                fetched_python(&root)
            })
            .expect("libvhdi from PyPI: needs python3 with venv or apt-get, and a network")
    });
    command(words)
}

/// The package with pip as one file, which needs no installation.
const PIP: &str = "python3-pip-whl";
/// The package with the certificates that PyPI's is checked against.
const CERTIFICATES: &str = "ca-certificates";
const LIBVHDI: &str = "libvhdi-python";

fn qemu(name: &str) -> Command {
    static FETCHED: OnceLock<Root> = OnceLock::new();
    if runs(Command::new(name).arg("--version")) && !fetch_all() {
        return Command::new(name);
    }
    let root = FETCHED.get_or_init(|| {
        let _turn = turn();
        Root::of("qemu", &["qemu-utils"])
    });
    command(&root.run(&format!("usr/bin/{name}")))
}

fn fetch_all() -> bool {
    std::env::var_os("PARTITA_TEST_TOOLS").is_some_and(|v| v == "fetch")
}

fn command(words: &[OsString]) -> Command {
    let mut command = Command::new(&words[0]);
    command.args(&words[1..]);
    command
}

fn runs(command: &mut Command) -> bool {
    command.output().is_ok_and(|output| output.status.success())
}

pub(crate) fn folder() -> PathBuf {
    let absolute = |name| {
        std::env::var_os(name)
            .map(PathBuf::from)
            .filter(|path| path.is_absolute())
    };
    absolute("XDG_CACHE_HOME")
        .or_else(|| absolute("HOME").map(|home| home.join(".cache")))
        .unwrap_or_else(|| Path::new(env!("CARGO_TARGET_TMPDIR")).join("cache"))
        .join("partita/test-tools")
}

/// The right to fetch: tests of several processes may want the same tool.
pub(crate) fn turn() -> File {
    fs::create_dir_all(folder()).expect("a cache folder");
    let lock = File::create(folder().join("lock")).expect("a lock file in the cache folder");
    flock(&lock, FlockOperation::LockExclusive).expect("the lock can be taken");
    lock
}

/// The system's Python with libvhdi in an environment of its own.
fn installed_python() -> Option<Vec<OsString>> {
    if fetch_all() {
        return None;
    }
    let home = folder().join("venv");
    let python = home.join("bin/python");
    let ready = || runs(Command::new(&python).args(["-c", "import pyvhdi"]));
    let made = ready()
        || runs(
            Command::new("python3")
                .args(["-m", "venv", "--clear"])
                .arg(&home),
        ) && runs(Command::new(&python).args(["-m", "pip", "install", "--quiet", LIBVHDI]))
            && ready();
    made.then(|| vec![python.into_os_string()])
}

/// Debian's Python with libvhdi beside it.
fn fetched_python(root: &Root) -> Option<Vec<OsString>> {
    let site = root.path.join("libvhdi");
    let mut words: Vec<OsString> = vec!["env".into()];
    for (name, value) in [
        ("PYTHONHOME", root.path.join("usr")),
        ("PYTHONPATH", site.clone()),
    ] {
        words.push(assignment(name, &value));
    }
    words.extend(root.run("usr/bin/python3"));
    let ready = || runs(command(&words).args(["-c", "import pyvhdi"]));
    if ready() {
        return Some(words);
    }
    let wheels = root.path.join("usr/share/python-wheels");
    let pip = entries(&wheels)
        .into_iter()
        .find(|path| name_of(path).starts_with("pip-"))?;
    let certificates = certificates(&root.path)?;
    let installed = command(&words)
        .arg(pip.join("pip"))
        .args(["install", "--quiet", "--only-binary", ":all:", "--cert"])
        .arg(&certificates)
        .arg("--target")
        .arg(&site)
        .arg(LIBVHDI)
        .output();
    if let Ok(output) = &installed {
        eprint!("{}", String::from_utf8_lossy(&output.stderr));
    }
    ready().then_some(words)
}

fn assignment(name: &str, value: &Path) -> OsString {
    let mut text = OsString::from(format!("{name}="));
    text.push(value);
    text
}

/// The system's certificates, which may have some of a company's own; else the package's.
fn certificates(root: &Path) -> Option<PathBuf> {
    let system = Path::new("/etc/ssl/certs/ca-certificates.crt");
    if system.is_file() {
        return Some(system.to_owned());
    }
    let files = entries(&root.join("usr/share/ca-certificates/mozilla"));
    let texts = files.iter().filter_map(|file| fs::read(file).ok());
    let all: Vec<u8> = texts
        .flat_map(|text| [text, b"\n".to_vec()].concat())
        .collect();
    let path = root.join("certificates.pem");
    fs::write(&path, all).ok()?;
    Some(path)
}

fn entries(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    entries.map(|entry| entry.path()).collect()
}

fn name_of(path: &Path) -> String {
    path.file_name()
        .map(|name| name.to_string_lossy().into_owned())
        .unwrap_or_default()
}

/// Packages with all that they depend on, unpacked.
pub(crate) struct Root {
    /// The folder with their files.
    pub(crate) path: PathBuf,
}

impl Root {
    /// The packages of that name in the cache folder, fetched when they are not there yet.
    pub(crate) fn of(name: &str, packages: &[&str]) -> Self {
        let path = folder().join(name);
        if !path.join("complete").is_file() {
            // What an earlier attempt left may be half a file.
            let _ = fs::remove_dir_all(&path);
            fs::create_dir_all(&path).expect("a folder in the cache folder");
            for package in download(packages) {
                let unpacked = Command::new("dpkg-deb")
                    .arg("--extract")
                    .args([&package, &path])
                    .output()
                    .expect("dpkg-deb starts");
                assert!(unpacked.status.success(), "{package:?}: {unpacked:?}");
            }
            fs::write(path.join("complete"), "").expect("a file in the cache folder");
        }
        Self { path }
    }

    /// The words that run a program with the libraries beside it, by their own loader.
    pub(crate) fn run(&self, program: &str) -> Vec<OsString> {
        let loaders = ["lib64", "lib"].map(|folder| entries(&self.path.join(folder)));
        let loader = loaders
            .concat()
            .into_iter()
            .find(|path| name_of(path).starts_with("ld-linux"))
            .expect("the C library's loader");
        let folders = ["lib", "usr/lib"].map(|folder| entries(&self.path.join(folder)));
        let libraries: Vec<PathBuf> = folders
            .concat()
            .into_iter()
            .filter(|path| path.is_dir() && name_of(path).contains("-linux-gnu"))
            .collect();
        let libraries = libraries.iter().map(|path| path.as_os_str());
        let list = libraries.collect::<Vec<_>>().join(OsStr::new(":"));
        vec![
            loader.into(),
            "--library-path".into(),
            list,
            self.path.join(program).into(),
        ]
    }
}

/// Downloads packages with all that they depend on; gives their files.
fn download(packages: &[&str]) -> Vec<PathBuf> {
    let apt = folder().join("apt");
    let archives = apt.join("archives");
    let _ = fs::remove_dir_all(&archives);
    for sub in ["archives/partial", "lists/partial"] {
        fs::create_dir_all(apt.join(sub)).expect("a folder in the cache folder");
    }
    let fetch = |own_lists: bool| {
        apt_get(&apt, own_lists)
            .args([
                "install",
                "--download-only",
                "--no-install-recommends",
                "--yes",
            ])
            .args(packages)
            .output()
            .expect("apt-get starts; or install qemu-utils and python3-venv")
    };
    let mut output = fetch(false);
    if !output.status.success() {
        // The system's lists are missing or too old.
        let _ = apt_get(&apt, true).arg("update").output();
        output = fetch(true);
    }
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(
        output.status.success(),
        "apt-get could not fetch {packages:?}: {errors}"
    );
    let files = entries(&archives).into_iter();
    files
        .filter(|path| path.extension() == Some(OsStr::new("deb")))
        .collect()
}

/// The package tool, as if nothing were installed, writing only below `apt`.
pub(crate) fn apt_get(apt: &Path, own_lists: bool) -> Command {
    let mut command = Command::new("apt-get");
    command.env("LC_ALL", "C").arg("-q");
    let mut set = |name: &str, value: &Path| {
        command.arg("-o").arg(assignment(name, value));
    };
    set("Dir::State::status", Path::new("/dev/null"));
    set("Dir::Cache", apt);
    set("Dir::Cache::archives", &apt.join("archives"));
    if own_lists {
        set("Dir::State::lists", &apt.join("lists"));
    }
    command.args(["-o", "Debug::NoLocking=1", "-o", "APT::Sandbox::User=root"]);
    command
}
