//! The rounds.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};
use tempfile::TempDir;

use crate::console::Transcript;
use crate::image;
use crate::initramfs::Contents;
use crate::machine;
use crate::modules;
use crate::options::Options;
use crate::report::Circumstances;
use crate::results::{Outcome, Results, Side};
use crate::support::guest::{Guest, Partita};
use crate::support::packages::{self, Fetched};
use crate::support::qemu::Qemu;
use crate::support::{host, process};
use crate::workloads::{Program, Workload};

/// How long a guest may print nothing, beyond the time that workloads run for.
const SILENCE: Duration = Duration::from_secs(60);

/// Everything that rounds need.
#[derive(Debug)]
pub(crate) struct Session {
    wanted: Vec<Workload>,
    sides: Vec<(Side, PathBuf)>,
    rounds: u32,
    milliseconds: u32,
    partita: Partita,
    qemu: Option<Qemu>,
    kernel: Fetched,
    disk: PathBuf,
    circumstances: Circumstances,
    /// Where all of this lies.
    _files: TempDir,
}

impl Session {
    /// Fetches and builds what the rounds need.
    pub(crate) fn prepare(
        options: &Options,
        program: &Program,
        wanted: &[Workload],
    ) -> Result<Self> {
        let built = Path::new(env!("CARGO_BIN_EXE_partita"));
        let partita = Partita::of(&options.common, built);
        let cache = packages::cache()?;
        let qemu = options
            .sides
            .contains(&Side::Qemu)
            .then(|| Qemu::find(&cache, options.common.fetch_qemu))
            .transpose()?;
        let kernel = packages::file(&cache, packages::CLOUD, built)?;
        let busybox = packages::file(&cache, packages::BUSYBOX, built)?;
        let files = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR"))?;
        let disk = files.path().join("disk.raw");
        image::create(&disk, options.disk << 20)
            .with_context(|| format!("{} cannot be written", disk.display()))?;
        let (busybox, executable) = (fs::read(&busybox.path)?, fs::read(&program.file)?);
        let names: Vec<&str> = wanted.iter().map(|w| w.name.as_str()).collect();
        let initrd = |&side: &Side| -> Result<(Side, PathBuf)> {
            let contents = Contents {
                busybox: &busybox,
                program: &executable,
                modules: &modules::of(&cache, &kernel, &side.modules())?,
                device: side.device(),
                names: &names,
                milliseconds: options.milliseconds(),
            };
            let path = files.path().join(side.name()).with_extension("cpio");
            fs::write(&path, contents.build()?)?;
            Ok((side, path))
        };
        let sides = options.sides.iter().map(initrd).collect::<Result<_>>()?;
        let circumstances = Circumstances {
            processor: host::processor(),
            kernel: kernel.package.clone(),
            qemu: qemu.as_ref().map(|qemu| qemu.version.clone()),
            processor_mode: options.common.processor_mode.clone(),
            rounds: options.common.rounds(),
            milliseconds: options.milliseconds(),
            disk: options.disk << 20,
        };
        Ok(Self {
            wanted: wanted.to_vec(),
            sides,
            rounds: options.common.rounds(),
            milliseconds: options.milliseconds(),
            partita,
            qemu,
            kernel,
            disk,
            circumstances,
            _files: files,
        })
    }

    /// What the results were measured with.
    pub(crate) fn circumstances(&self) -> Circumstances {
        self.circumstances.clone()
    }

    /// Runs all rounds. The sides take turns, each round beginning with another.
    pub(crate) fn run(&self) -> Result<Results> {
        let mut results = Results::new(&self.wanted);
        for round in 0..self.rounds {
            for step in 0..self.sides.len() {
                let (side, initrd) = &self.sides[(round as usize + step) % self.sides.len()];
                eprintln!("Round {} of {}: {}", round + 1, self.rounds, side.name());
                self.run_guest(*side, initrd, &mut results);
            }
        }
        Ok(results)
    }

    fn run_guest(&self, side: Side, initrd: &Path, results: &mut Results) {
        let guest = Guest {
            kernel: &self.kernel.path,
            initrd,
            cmdline: machine::KERNEL_COMMAND_LINE,
            processors: 1,
        };
        let mut command = match &self.qemu {
            Some(qemu) if side == Side::Qemu => qemu.run(guest),
            _ => self.partita.command(guest),
        };
        command.args(side.disk(&self.disk));
        let silence = SILENCE + 3 * Duration::from_millis(u64::from(self.milliseconds));
        let mut transcript = Transcript::default();
        let ended = process::run(&mut command, silence, |line, _| transcript.line(line));
        for workload in &self.wanted {
            let outcome = transcript.outcome(&workload.name).cloned();
            let outcome = outcome.unwrap_or_else(|| failure(&transcript, ended.as_ref().err()));
            results.add(side, &workload.name, outcome);
        }
    }
}

fn failure(transcript: &Transcript, error: Option<&anyhow::Error>) -> Outcome {
    let reason = match error {
        Some(error) => format!("{error:#}"),
        None if transcript.ended() => "it gave no result".to_owned(),
        None => "the guest ended too soon".to_owned(),
    };
    Outcome::Failed(format!("{reason}; last line: {}", transcript.last_line()))
}
