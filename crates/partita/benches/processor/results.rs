//! What was measured, and whether the sides computed the same.

use std::collections::{BTreeMap, BTreeSet};

use serde::Serialize;

use crate::catalogue::Program;
use crate::stats::{median, spread};

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
    /// How fast the guest's clock went by the host's: 1 is right.
    pub(crate) clock: Option<f64>,
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

/// Furthest that a guest's clock may be from the host's while a program runs.
const CLOCK_TOLERANCE: f64 = 0.1;

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

    /// What is wrong with this row, one line each.
    pub(crate) fn problems(&self) -> Vec<String> {
        let name = &self.program.name;
        let mut problems = Vec::new();
        for (side, outcomes) in &self.sides {
            let failures = outcomes.iter().filter_map(|outcome| match outcome {
                Outcome::Failed(reason) => Some(reason.as_str()),
                Outcome::Done(_) | Outcome::Skipped(_) => None,
            });
            for reason in failures.collect::<BTreeSet<_>>() {
                problems.push(format!("{name}, {}: {reason}", side.name()));
            }
            let clocks = self.readings(*side).filter_map(|reading| reading.clock);
            if let Some(clock) = clocks
                .max_by(|a, b| (a - 1.0).abs().total_cmp(&(b - 1.0).abs()))
                .filter(|clock| (clock - 1.0).abs() > CLOCK_TOLERANCE)
            {
                problems.push(format!(
                    "{name}, {}: the guest's clock went {clock:.2} times as fast as the host's",
                    side.name()
                ));
            }
        }
        problems.extend(self.disagreement());
        problems
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

/// All rows.
#[derive(Debug, Clone, Serialize)]
#[serde(transparent)]
pub(crate) struct Results {
    pub(crate) rows: Vec<Row>,
}

impl Results {
    /// Rows with nothing in them yet.
    pub(crate) fn new(programs: &[Program]) -> Self {
        let row = |program: &Program| Row {
            program: program.clone(),
            sides: BTreeMap::new(),
        };
        Self {
            rows: programs.iter().map(row).collect(),
        }
    }

    /// Adds the outcome of one run. Programs that are no row are none of the table's business.
    pub(crate) fn add(&mut self, side: Side, program: &str, outcome: Outcome) {
        if let Some(row) = self.rows.iter_mut().find(|row| row.program.name == program) {
            row.sides.entry(side).or_default().push(outcome);
        }
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
            clock: Some(1.0),
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
        assert_eq!(row.problems(), Vec::<String>::new());
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
            clock: Some(0.5),
        };
        results.add(Side::Qemu, "crc32", Outcome::Done(skewed));
        assert_eq!(
            results.rows[0].problems(),
            [
                "crc32, partita: no answer",
                "crc32, qemu: the guest's clock went 0.50 times as fast as the host's",
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
        assert!(row.problems().is_empty());
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
