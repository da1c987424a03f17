//! What was measured, row by row.

use std::collections::BTreeMap;

use serde::Serialize;

use crate::support::stats::median;
use crate::workloads::Workload;

/// Who runs a guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Side {
    Partita,
    Qemu,
}

impl Side {
    pub(crate) const ALL: [Self; 2] = [Self::Partita, Self::Qemu];

    /// Its name on the command line.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Partita => "partita",
            Self::Qemu => "qemu",
        }
    }
}

/// One run of a workload.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub(crate) struct Reading {
    /// Requests per second.
    pub(crate) requests: f64,
    /// Millions of bytes per second.
    pub(crate) megabytes: f64,
}

/// What became of a run.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Outcome {
    Done(Reading),
    Failed(String),
}

/// All runs of a workload.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Row {
    pub(crate) workload: Workload,
    sides: BTreeMap<Side, Vec<Outcome>>,
}

impl Row {
    fn readings(&self, side: Side) -> impl Iterator<Item = Reading> {
        let outcomes = self.sides.get(&side).into_iter().flatten();
        outcomes.filter_map(|outcome| match outcome {
            Outcome::Done(reading) => Some(*reading),
            Outcome::Failed(_) => None,
        })
    }

    /// The medians of a side.
    pub(crate) fn median(&self, side: Side) -> Option<Reading> {
        let of = |field: fn(Reading) -> f64| {
            let values: Vec<f64> = self.readings(side).map(field).collect();
            median(&values)
        };
        Some(Reading {
            requests: of(|reading| reading.requests)?,
            megabytes: of(|reading| reading.megabytes)?,
        })
    }

    /// How many times as fast Partita is as QEMU.
    pub(crate) fn ratio(&self) -> Option<f64> {
        let qemu = self.median(Side::Qemu)?.requests;
        let partita = self.median(Side::Partita)?.requests;
        (qemu > 0.0).then(|| partita / qemu)
    }

    /// What is wrong, one line each.
    pub(crate) fn problems(&self) -> Vec<String> {
        let name = &self.workload.name;
        let mut problems = Vec::new();
        for (side, outcomes) in &self.sides {
            for outcome in outcomes {
                if let Outcome::Failed(reason) = outcome {
                    problems.push(format!("{name}, {}: {reason}", side.name()));
                }
            }
        }
        problems
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
    pub(crate) fn new(workloads: &[Workload]) -> Self {
        let row = |workload: &Workload| Row {
            workload: workload.clone(),
            sides: BTreeMap::new(),
        };
        Self {
            rows: workloads.iter().map(row).collect(),
        }
    }

    /// Adds the outcome of one run.
    pub(crate) fn add(&mut self, side: Side, workload: &str, outcome: Outcome) {
        let mut rows = self.rows.iter_mut();
        if let Some(row) = rows.find(|row| row.workload.name == workload) {
            row.sides.entry(side).or_default().push(outcome);
        }
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
    use crate::workloads::tests::workload;

    /// A reading of requests of 4 KiB.
    pub(crate) fn done(requests: f64) -> Outcome {
        Outcome::Done(Reading {
            requests,
            megabytes: requests * 4096.0 / 1e6,
        })
    }

    #[test]
    fn ratios_are_of_medians() {
        let mut results = Results::new(&[workload("a", false, 4096, 1)]);
        for requests in [100.0, 900.0, 300.0] {
            results.add(Side::Partita, "a", done(requests));
        }
        assert_eq!(results.rows[0].ratio(), None);
        results.add(Side::Qemu, "a", done(200.0));
        results.add(Side::Qemu, "no-such-row", done(50.0));
        assert_eq!(results.rows[0].ratio(), Some(1.5));
        assert!(results.rows[0].problems().is_empty());
        results.add(Side::Qemu, "a", Outcome::Failed("no answer".into()));
        assert_eq!(results.rows[0].problems(), ["a, qemu: no answer"]);
        assert_eq!(results.rows[0].ratio(), Some(1.5));
    }
}
