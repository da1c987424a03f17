//! What was measured, and whether the sides computed the same.

use std::collections::{BTreeMap, BTreeSet};

use serde::Serialize;

use crate::catalogue::Program;
use crate::support::stats::{median, spread};

/// Where a program runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Side {
    /// On the host itself.
    Native,
    /// In a guest of Partita's.
    Partita,
    /// In a guest of QEMU's, translated by TCG.
    Qemu,
}

impl Side {
    /// All sides, in the order of the table.
    pub(crate) const ALL: [Self; 3] = [Self::Native, Self::Partita, Self::Qemu];

    /// What people call it.
    pub(crate) fn title(self) -> &'static str {
        match self {
            Self::Native => "the host",
            Self::Partita => "Partita",
            Self::Qemu => "QEMU",
        }
    }

    /// The name on the command line.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Native => "native",
            Self::Partita => "partita",
            Self::Qemu => "qemu",
        }
    }
}

/// One run of one program.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Outcome {
    /// It ran.
    Done(Reading),
    /// It cannot run here, and says why.
    Skipped(String),
    /// It should have run, and did not.
    Failed(String),
}

/// A measurement.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(crate) struct Reading {
    /// Nanoseconds per operation.
    pub(crate) ns: f64,
    /// What the fixed work computed; a boot computes nothing.
    pub(crate) checksum: Option<String>,
    /// How long the program ran by its own clock and by the host's, in seconds.
    pub(crate) clocks: Option<(f64, f64)>,
}

/// One program on all sides.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Row {
    /// The program.
    #[serde(flatten)]
    pub(crate) program: Program,
    /// Every round of every side.
    pub(crate) sides: BTreeMap<Side, Vec<Outcome>>,
}

impl Row {
    fn readings(&self, side: Side) -> impl Iterator<Item = &Reading> {
        let outcomes = self.sides.get(&side).into_iter().flatten();
        outcomes.filter_map(|outcome| match outcome {
            Outcome::Done(reading) => Some(reading),
            Outcome::Skipped(_) | Outcome::Failed(_) => None,
        })
    }

    fn times(&self, side: Side) -> Vec<f64> {
        self.readings(side).map(|reading| reading.ns).collect()
    }

    /// The median of the rounds, in nanoseconds per operation.
    pub(crate) fn median(&self, side: Side) -> Option<f64> {
        median(&self.times(side))
    }

    /// How far the rounds lie apart, as a part of their median.
    pub(crate) fn spread(&self, side: Side) -> Option<f64> {
        spread(&self.times(side))
    }

    /// The median of one side divided by that of another.
    pub(crate) fn ratio(&self, of: Side, to: Side) -> Option<f64> {
        let (of, to) = (self.median(of)?, self.median(to)?);
        (of > 0.0 && to > 0.0).then_some(of / to)
    }

    /// Whether a side said that it cannot run the program.
    pub(crate) fn skipped(&self, side: Side) -> bool {
        let mut outcomes = self.sides.get(&side).into_iter().flatten();
        outcomes.any(|outcome| matches!(outcome, Outcome::Skipped(_)))
    }

    /// Why a side gave no results, each reason once.
    fn failures(&self, side: Side) -> BTreeSet<&str> {
        let outcomes = self.sides.get(&side).into_iter().flatten();
        outcomes
            .filter_map(|outcome| match outcome {
                Outcome::Failed(reason) => Some(reason.as_str()),
                Outcome::Done(_) | Outcome::Skipped(_) => None,
            })
            .collect()
    }

    /// A line about sides that computed different things.
    fn disagreement(&self) -> Option<String> {
        let mut seen: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
        for side in self.sides.keys() {
            for checksum in self.readings(*side).filter_map(|r| r.checksum.as_deref()) {
                seen.entry(checksum).or_default().insert(side.name());
            }
        }
        if seen.len() < 2 {
            return None;
        }
        let parts: Vec<String> = seen
            .iter()
            .map(|(checksum, sides)| {
                let sides: Vec<&str> = sides.iter().copied().collect();
                format!("{checksum} ({})", sides.join(", "))
            })
            .collect();
        let name = &self.program.name;
        Some(format!("{name}: results differ: {}", parts.join(", ")))
    }
}

/// All rows, and what was seen beside them.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Results {
    pub(crate) rows: Vec<Row>,
    /// What the kernels of guests do against flaws of the processor, by name of the flaw.
    pub(crate) mitigations: BTreeMap<Side, BTreeMap<String, String>>,
    /// The part of the host that other processes used meanwhile, from 0 to 1.
    pub(crate) used_by_others: Option<f64>,
    /// Guests that did not end as they should, though they may have given results.
    failed_guests: BTreeSet<(Side, String)>,
}

/// Furthest that a guest's clock may be from the host's, as a part of the time.
const CLOCK_TOLERANCE: f64 = 0.1;
/// Least time to judge a clock by, in seconds: a line may come late to a host that is busy.
const MIN_CLOCK_SECONDS: f64 = 5.0;
/// How many names of programs a line about what failed has.
const MAX_NAMES: usize = 4;

impl Results {
    /// Rows with nothing in them yet.
    pub(crate) fn new(programs: &[Program]) -> Self {
        let row = |program: &Program| Row {
            program: program.clone(),
            sides: BTreeMap::new(),
        };
        Self {
            rows: programs.iter().map(row).collect(),
            mitigations: BTreeMap::new(),
            used_by_others: None,
            failed_guests: BTreeSet::new(),
        }
    }

    /// Adds the outcome of one run. Programs that are no row are none of the table's business.
    pub(crate) fn add(&mut self, side: Side, program: &str, outcome: Outcome) {
        if let Some(row) = self.rows.iter_mut().find(|row| row.program.name == program) {
            row.sides.entry(side).or_default().push(outcome);
        }
    }

    /// Notes that a guest did not end as it should.
    pub(crate) fn add_failed_guest(&mut self, side: Side, reason: String) {
        self.failed_guests.insert((side, reason));
    }

    /// What is wrong, one line each.
    pub(crate) fn problems(&self) -> Vec<String> {
        let guests = self.failed_guests.iter();
        let mut failures: BTreeMap<(Side, &str), Vec<&str>> = guests
            .map(|(side, reason)| ((*side, reason.as_str()), Vec::new()))
            .collect();
        for row in &self.rows {
            for side in Side::ALL {
                for reason in row.failures(side) {
                    let names = failures.entry((side, reason)).or_default();
                    names.push(&row.program.name);
                }
            }
        }
        let lines = failures.into_iter().map(|((side, reason), names)| {
            let side = side.name();
            match names.len() {
                0 => format!("{side}: {reason}"),
                count if count > MAX_NAMES => {
                    let (some, more) = (names[..MAX_NAMES].join(", "), count - MAX_NAMES);
                    format!("{side}: {some} and {more} more: {reason}")
                }
                _ => format!("{side}: {}: {reason}", names.join(", ")),
            }
        });
        lines
            .chain(Side::ALL.into_iter().filter_map(|side| self.skew(side)))
            .chain(self.rows.iter().filter_map(Row::disagreement))
            .collect()
    }

    /// A line about a clock that does not go as the host's does.
    fn skew(&self, side: Side) -> Option<String> {
        let readings = self.rows.iter().flat_map(|row| row.readings(side));
        let clocks = readings.filter_map(|reading| reading.clocks);
        let (own, host) = clocks.fold((0.0, 0.0), |sum, clocks| {
            (sum.0 + clocks.0, sum.1 + clocks.1)
        });
        let speed: f64 = own / host;
        (host >= MIN_CLOCK_SECONDS && (speed - 1.0).abs() > CLOCK_TOLERANCE).then(|| {
            let side = side.name();
            format!("{side}: its clock went {speed:.2} times as fast as the host's")
        })
    }

    /// The names of the groups, in the order of their first rows.
    pub(crate) fn groups(&self) -> Vec<&str> {
        let mut groups: Vec<&str> = Vec::new();
        for row in &self.rows {
            if !groups.contains(&row.program.group.as_str()) {
                groups.push(&row.program.group);
            }
        }
        groups
    }

    /// The rows of a group.
    pub(crate) fn group<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a Row> {
        self.rows
            .iter()
            .filter(move |row| row.program.group == name)
    }
}

#[cfg(test)]
#[allow(
    dead_code,
    unused_imports,
    reason = "tests need a harness: see unit.rs"
)]
pub(crate) mod tests {
    use super::*;
    use crate::catalogue::tests::program;

    /// A reading with a checksum.
    pub(crate) fn done(ns: f64, checksum: &str) -> Outcome {
        Outcome::Done(Reading {
            ns,
            checksum: Some(checksum.into()),
            clocks: Some((1.0, 1.01)),
        })
    }

    #[test]
    fn ratios_are_of_medians() {
        let mut results = Results::new(&[program("crc32", "integer", 1)]);
        for ns in [10.0, 30.0, 20.0] {
            results.add(Side::Partita, "crc32", done(ns, "a"));
        }
        results.add(Side::Qemu, "crc32", done(50.0, "a"));
        results.add(Side::Qemu, "no-such-row", done(50.0, "a"));
        let row = &results.rows[0];
        assert_eq!(row.ratio(Side::Qemu, Side::Partita), Some(2.5));
        assert_eq!(row.ratio(Side::Partita, Side::Native), None);
        assert_eq!(row.spread(Side::Partita), Some(1.0));
        assert_eq!(results.problems(), Vec::<String>::new());
    }

    #[test]
    fn what_differs_fails_or_runs_askew_is_a_problem() {
        let mut results = Results::new(&[program("crc32", "integer", 1)]);
        results.add(Side::Native, "crc32", done(1.0, "aa"));
        results.add(Side::Qemu, "crc32", done(1.0, "aa"));
        results.add(Side::Partita, "crc32", done(1.0, "bb"));
        results.add(Side::Partita, "crc32", Outcome::Failed("no answer".into()));
        let skewed = Reading {
            ns: 1.0,
            checksum: None,
            clocks: Some((5.0, 10.0)),
        };
        results.add(Side::Qemu, "crc32", Outcome::Done(skewed));
        assert_eq!(
            results.problems(),
            [
                "partita: crc32: no answer",
                "qemu: its clock went 0.54 times as fast as the host's",
                "crc32: results differ: aa (native, qemu), bb (partita)",
            ]
        );
    }

    #[test]
    fn what_cannot_run_is_no_problem() {
        let mut results = Results::new(&[program("matrix-avx", "floating", 1)]);
        results.add(
            Side::Partita,
            "matrix-avx",
            Outcome::Skipped("no AVX2".into()),
        );
        let row = &results.rows[0];
        assert!(row.skipped(Side::Partita) && !row.skipped(Side::Native));
        assert!(results.problems().is_empty());
    }

    #[test]
    fn what_fails_together_is_told_together() {
        let names = ["a", "b", "c", "d", "e", "f"];
        let mut results = Results::new(&names.map(|name| program(name, "system", 1)));
        for name in names {
            results.add(
                Side::Partita,
                name,
                Outcome::Failed("exit status: 2".into()),
            );
        }
        results.add_failed_guest(Side::Partita, "exit status: 2".into());
        results.add_failed_guest(Side::Qemu, "exit status: 1".into());
        assert_eq!(
            results.problems(),
            [
                "partita: a, b, c, d and 2 more: exit status: 2",
                "qemu: exit status: 1",
            ]
        );
    }

    #[test]
    fn groups_come_in_the_order_of_rows() {
        let programs = [
            program("a", "system", 1),
            program("b", "integer", 1),
            program("c", "system", 1),
        ];
        let results = Results::new(&programs);
        assert_eq!(results.groups(), ["system", "integer"]);
        assert_eq!(results.group("system").count(), 2);
    }
}
