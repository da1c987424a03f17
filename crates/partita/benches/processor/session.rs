//! The rounds.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};
use tempfile::TempDir;

use crate::catalogue::{BOOT, BOOT_CLOUD, BOOT_GENERIC, Program, Programs};
use crate::console::Transcript;
use crate::initramfs;
use crate::load::Load;
use crate::options::Options;
use crate::report::Circumstances;
use crate::results::{Outcome, Reading, Results, Side};
use crate::support::guest::{Guest, Partita};
use crate::support::packages::{self, Fetched};
use crate::support::qemu::Qemu;
use crate::support::{host, process};

/// How long a guest or a program may print nothing, beyond the time that programs run for. A
/// kernel under a slow translator is silent for some seconds.
const SILENCE: Duration = Duration::from_secs(60);

/// A panic ends the guest; mitigations are as the kernel chooses.
const KERNEL_COMMAND_LINE: &str = "console=ttyS0 earlyprintk=ttyS0,115200 panic=-1";

/// A guest to be started: a kernel, and the programs that run in it.
#[derive(Debug)]
struct Boot {
    kernel: Fetched,
    processors: u32,
    /// The row that the start of the kernel counts for.
    row: Option<&'static str>,
    programs: Vec<String>,
    initrd: PathBuf,
}

/// Everything that rounds need.
#[derive(Debug)]
pub(crate) struct Session {
    wanted: Vec<Program>,
    sides: Vec<Side>,
    rounds: u32,
    milliseconds: u32,
    programs: PathBuf,
    busybox: PathBuf,
    partita: Partita,
    qemu: Option<Qemu>,
    boots: Vec<Boot>,
    circumstances: Circumstances,
    /// Where initial RAM disks and BusyBox lie.
    _files: TempDir,
    /// Where programs on the host have their files: in memory, as in the guests.
    scratch: TempDir,
}

impl Session {
    /// Fetches and builds what the rounds need.
    pub(crate) fn prepare(
        options: &Options,
        programs: &Programs,
        wanted: &[Program],
    ) -> Result<Self> {
        let built = Path::new(env!("CARGO_BIN_EXE_partita"));
        let partita = Partita::of(&options.common, built);
        let cache = packages::cache()?;
        let qemu = options
            .sides
            .contains(&Side::Qemu)
            .then(|| Qemu::find(&cache, options.common.fetch_qemu))
            .transpose()?;
        let busybox = packages::file(&cache, packages::BUSYBOX, built)?;
        let files = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR"))?;
        let executable = files.path().join("busybox");
        fs::copy(&busybox.path, &executable)
            .with_context(|| format!("{} cannot be copied", busybox.path.display()))?;
        fs::set_permissions(&executable, fs::Permissions::from_mode(0o755))?;
        let boots = Planner {
            cache: &cache,
            built,
            programs: fs::read(&programs.file)?,
            busybox: fs::read(&executable)?,
            folder: files.path(),
            milliseconds: options.milliseconds(),
        }
        .boots(wanted)?;
        let circumstances = Circumstances {
            processor: host::processor(),
            kernels: boots
                .iter()
                .map(|boot| boot.kernel.package.clone())
                .collect(),
            qemu: qemu.as_ref().map(|qemu| qemu.version.clone()),
            processor_mode: options.common.processor_mode.clone(),
            rounds: options.common.rounds(),
            milliseconds: options.milliseconds(),
            sides: options.sides.clone(),
        };
        Ok(Self {
            wanted: wanted.to_vec(),
            sides: options.sides.clone(),
            rounds: options.common.rounds(),
            milliseconds: options.milliseconds(),
            programs: programs.file.clone(),
            busybox: executable,
            partita,
            qemu,
            boots,
            circumstances,
            _files: files,
            scratch: scratch()?,
        })
    }

    /// What the results were measured with.
    pub(crate) fn circumstances(&self) -> Circumstances {
        self.circumstances.clone()
    }

    /// Runs all rounds. The sides take turns, each round beginning with another.
    pub(crate) fn run(&self) -> Result<Results> {
        let mut results = Results::new(&self.wanted);
        let before = Load::now();
        for round in 0..self.rounds {
            for step in 0..self.sides.len() {
                let side = self.sides[(round as usize + step) % self.sides.len()];
                eprintln!("Round {} of {}: {}", round + 1, self.rounds, side.name());
                match side {
                    Side::Native => self.run_natively(&mut results),
                    Side::Partita | Side::Qemu => self.run_guests(side, &mut results),
                }
            }
        }
        results.used_by_others = Load::now()
            .zip(before)
            .and_then(|(now, before)| now.of_others_since(before));
        Ok(results)
    }

    fn silence(&self) -> Duration {
        SILENCE + 20 * Duration::from_millis(u64::from(self.milliseconds))
    }

    fn run_natively(&self, results: &mut Results) {
        for program in self.wanted.iter().filter(|program| program.group != BOOT) {
            let mut command = Command::new(&self.programs);
            command.args(["run", &program.name, &self.milliseconds.to_string()]);
            command.arg(&self.busybox).arg(self.scratch.path());
            let mut transcript = Transcript::default();
            let ended = process::run(&mut command, self.silence(), |line, time| {
                transcript.line(line, time);
            });
            let outcome = outcome(&transcript, &program.name, ended.as_ref().err());
            results.add(Side::Native, &program.name, outcome);
        }
    }

    fn run_guests(&self, side: Side, results: &mut Results) {
        for boot in &self.boots {
            let guest = Guest {
                kernel: &boot.kernel.path,
                initrd: &boot.initrd,
                cmdline: KERNEL_COMMAND_LINE,
                processors: boot.processors,
            };
            let mut command = match &self.qemu {
                Some(qemu) if side == Side::Qemu => qemu.run(guest),
                _ => self.partita.command(guest),
            };
            let mut transcript = Transcript::default();
            let ended = process::run(&mut command, self.silence(), |line, time| {
                transcript.line(line, time);
            });
            let error = ended.as_ref().err();
            if error.is_some() {
                results.add_failed_guest(side, reason(&transcript, error));
            }
            if !transcript.mitigations().is_empty() {
                let seen = transcript.mitigations().clone();
                results.mitigations.insert(side, seen);
            }
            if let Some(row) = boot.row {
                results.add(side, row, boot_outcome(&transcript, error));
            }
            for name in &boot.programs {
                results.add(side, name, outcome(&transcript, name, error));
            }
        }
    }
}

/// What became of a program, from what it printed and how its process or guest ended.
fn outcome(transcript: &Transcript, program: &str, error: Option<&anyhow::Error>) -> Outcome {
    transcript
        .outcome(program)
        .cloned()
        .unwrap_or_else(|| Outcome::Failed(reason(transcript, error)))
}

fn boot_outcome(transcript: &Transcript, error: Option<&anyhow::Error>) -> Outcome {
    match transcript.boot() {
        Some(ns) if transcript.ended() => Outcome::Done(Reading {
            ns,
            checksum: None,
            clocks: None,
        }),
        _ => Outcome::Failed(reason(transcript, error)),
    }
}

/// Why something gave no result.
fn reason(transcript: &Transcript, error: Option<&anyhow::Error>) -> String {
    let reason = error.map_or_else(|| "it gave no result".to_owned(), |e| format!("{e:#}"));
    match transcript.last_line() {
        "" => reason,
        line => format!("{reason}; its last line: {line}"),
    }
}

/// Makes the boots that programs need.
#[derive(Debug)]
struct Planner<'a> {
    cache: &'a Path,
    built: &'a Path,
    programs: Vec<u8>,
    busybox: Vec<u8>,
    folder: &'a Path,
    milliseconds: u32,
}

impl Planner<'_> {
    /// The cloud kernel with one processor, and with two, and the generic kernel, as far as
    /// programs are wanted that need them.
    fn boots(&self, wanted: &[Program]) -> Result<Vec<Boot>> {
        let has = |name: &str| wanted.iter().any(|program| program.name == name);
        let on = |processors| -> Vec<String> {
            let programs = wanted.iter().filter(|program| program.group != BOOT);
            programs
                .filter(|program| program.processors == processors)
                .map(|program| program.name.clone())
                .collect()
        };
        let mut boots = Vec::new();
        let (one, two) = (on(1), on(2));
        let cloud = has(BOOT_CLOUD).then_some(BOOT_CLOUD);
        if cloud.is_some() || !one.is_empty() {
            boots.push(self.boot(packages::CLOUD, 1, cloud, one)?);
        }
        if !two.is_empty() {
            boots.push(self.boot(packages::CLOUD, 2, None, two)?);
        }
        if has(BOOT_GENERIC) {
            boots.push(self.boot(packages::GENERIC, 1, Some(BOOT_GENERIC), Vec::new())?);
        }
        Ok(boots)
    }

    fn boot(
        &self,
        package: &str,
        processors: u32,
        row: Option<&'static str>,
        programs: Vec<String>,
    ) -> Result<Boot> {
        let kernel = packages::file(self.cache, package, self.built)?;
        let names: Vec<&str> = programs.iter().map(String::as_str).collect();
        let archive = initramfs::build(&self.busybox, &self.programs, &names, self.milliseconds)?;
        let initrd = self.folder.join(format!("{package}-{processors}.cpio"));
        fs::write(&initrd, archive)?;
        Ok(Boot {
            kernel,
            processors,
            row,
            programs,
            initrd,
        })
    }
}

/// A folder in memory, or if there is none, on the disk.
fn scratch() -> Result<TempDir> {
    let in_memory = tempfile::tempdir_in("/dev/shm");
    in_memory
        .or_else(|_| tempfile::tempdir())
        .context("no folder for temporary files")
}
