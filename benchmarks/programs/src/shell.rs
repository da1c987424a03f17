//! Work that is done at a shell, by BusyBox.

use std::fs::{self, File};
use std::io;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use crate::catalogue::{Setting, Work};
use crate::data::{checksum, lines};

const AWK: &str = "{ count[$1] += $NF; words += NF; if ($0 ~ /timer.*page/) seen++ } \
    END { for (word in count) total += count[word] % 1009; print total, words, seen }";

const LOOP: &str = "i=0; s=0; while [ $i -lt 2000 ]; do i=$((i + 1)); \
    case $i in *7) s=$((s + i));; *) t=${i%5}; s=$((s ^ ${#t}));; esac; done; echo $s";

/// Runs a command with BusyBox on an input, its output in a file.
fn command(setting: &Setting, arguments: &[&str], input: &str) -> io::Result<Work> {
    let busybox = setting.busybox.clone();
    let arguments: Vec<String> = arguments.iter().map(|&word| word.to_owned()).collect();
    let [input_path, output_path] = ["input", "output"].map(|name| setting.folder.join(name));
    fs::write(&input_path, input)?;
    let mut checked = false;
    Ok(Box::new(move |operations| {
        for _ in 0..operations {
            run(&busybox, &arguments, &input_path, &output_path)?;
        }
        if checked {
            return Ok(0);
        }
        // Only the first time, which is not measured.
        checked = true;
        Ok(checksum(&fs::read(&output_path)?))
    }))
}

fn run(
    busybox: &PathBuf,
    arguments: &[String],
    input: &PathBuf,
    output: &PathBuf,
) -> io::Result<()> {
    let status = Command::new(busybox)
        .args(arguments)
        .env_clear()
        .stdin(File::open(input)?)
        .stdout(File::create(output)?)
        .stderr(Stdio::null())
        .status()?;
    if status.success() {
        Ok(())
    } else {
        let name = arguments.first().map_or("", String::as_str);
        Err(io::Error::other(format!("busybox {name} failed: {status}")))
    }
}

/// The first `length` bytes of as many lines as that needs.
fn text(length: usize, seed: u64) -> String {
    let mut text = lines(length / 16, seed);
    text.truncate(length);
    text
}

/// Compression.
pub(crate) fn gzip(setting: &Setting) -> io::Result<Work> {
    command(setting, &["gzip", "-c"], &text(128 << 10, 10))
}

/// Hashing.
pub(crate) fn sha256sum(setting: &Setting) -> io::Result<Work> {
    command(setting, &["sha256sum"], &text(512 << 10, 11))
}

/// Sorting of lines.
pub(crate) fn sort(setting: &Setting) -> io::Result<Work> {
    command(setting, &["sort"], &lines(4000, 12))
}

/// Counting in words and matching of patterns.
pub(crate) fn awk(setting: &Setting) -> io::Result<Work> {
    command(setting, &["awk", AWK], &lines(4000, 13))
}

/// The shell itself.
pub(crate) fn shell_loop(setting: &Setting) -> io::Result<Work> {
    command(setting, &["sh", "-c", LOOP], "")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_have_their_length() {
        assert_eq!(text(1000, 1).len(), 1000);
        assert_eq!(text(128 << 10, 10).len(), 128 << 10);
    }

    #[test]
    fn a_missing_busybox_is_an_error() {
        let folder = std::env::temp_dir().join(format!("shell-{}", std::process::id()));
        fs::create_dir_all(&folder).unwrap();
        let setting = Setting {
            busybox: "/nonexistent/busybox".into(),
            folder: folder.clone(),
        };
        let mut work = gzip(&setting).unwrap();
        assert!(work(1).is_err());
        fs::remove_dir_all(folder).unwrap();
    }
}
