//! Builds the test guests and writes each as a multiboot-1 ELF32 image.
//!
//! `cargo run -p mkimage -- OUTPUT-FOLDER [IMAGE…]` compiles the images for the host's
//! target (no other Rust target is needed) without a C library, and rewrites the linked
//! ELF64 file as ELF32, the form that multiboot-1 loaders take.

mod elf;

use std::error::Error;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

const TARGET: &str = "x86_64-unknown-linux-gnu";
const RUSTFLAGS: &str =
    "-C relocation-model=static -C no-redzone=yes -C panic=abort -C force-frame-pointers=no";

fn main() -> ExitCode {
    let mut arguments = std::env::args_os().skip(1);
    let Some(output) = arguments.next() else {
        eprintln!("usage: mkimage OUTPUT-FOLDER [IMAGE…]");
        return ExitCode::from(2);
    };
    let names: Vec<String> = arguments
        .map(|name| name.to_string_lossy().into_owned())
        .collect();
    match build(Path::new(&output), &names) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("mkimage: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Compiles the images (all of them when `names` is empty) and converts them into `output`.
fn build(output: &Path, names: &[String]) -> Result<(), Box<dyn Error>> {
    let workspace = Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .ok_or("no workspace above mkimage")?;
    let built = output.join("build");
    std::fs::create_dir_all(&built)?;
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo
        .current_dir(workspace)
        .args([
            "build",
            "--release",
            "--quiet",
            "--package",
            "guest-images",
            "--target",
            TARGET,
        ])
        .arg("--target-dir")
        .arg(&built)
        .env("RUSTFLAGS", RUSTFLAGS)
        .env_remove("CARGO_ENCODED_RUSTFLAGS");
    if names.is_empty() {
        cargo.arg("--bins");
    }
    for name in names {
        cargo.args(["--bin", name]);
    }
    if !cargo.status()?.success() {
        return Err("the guests did not compile".into());
    }
    for linked in linked_images(&built.join(TARGET).join("release"), names)? {
        let name = linked.file_name().ok_or("an image without a name")?;
        let image = elf::to_elf32(&std::fs::read(&linked)?)
            .map_err(|reason| format!("{}: {reason}", linked.display()))?;
        // Written beside and renamed, so that tests running at the same time see whole files.
        let fresh = output.join(format!("{}.{}", name.to_string_lossy(), std::process::id()));
        std::fs::write(&fresh, image)?;
        std::fs::rename(&fresh, output.join(name))?;
    }
    Ok(())
}

/// The linked executables in `folder`: those named, or every file without an extension.
fn linked_images(folder: &Path, names: &[String]) -> Result<Vec<PathBuf>, Box<dyn Error>> {
    if !names.is_empty() {
        return Ok(names.iter().map(|name| folder.join(name)).collect());
    }
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder)? {
        let path = entry?.path();
        let plain = path.extension().is_none()
            && !path
                .file_name()
                .is_some_and(|name| name.to_string_lossy().starts_with('.'));
        if plain && path.is_file() {
            found.push(path);
        }
    }
    Ok(found)
}
