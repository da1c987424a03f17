//! Results as a table for people, and as JSON.

use serde::Serialize;

use crate::results::{Reading, Results, Row, Side};
use crate::workloads::size;

/// What the results were measured with.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Circumstances {
    /// The host's processor.
    pub(crate) processor: String,
    /// The package of the guests' kernel.
    pub(crate) kernel: String,
    /// QEMU's version, if it took part.
    pub(crate) qemu: Option<String>,
    /// What Partita was told.
    pub(crate) processor_mode: Option<String>,
    /// Rounds of all sides.
    pub(crate) rounds: u32,
    /// Time for each workload in each round.
    pub(crate) milliseconds: u32,
    /// Bytes of the disk.
    pub(crate) disk: u64,
}

/// The medians of a row.
#[derive(Debug, Clone, PartialEq, Serialize)]
struct Summary {
    name: String,
    partita: Option<Reading>,
    qemu: Option<Reading>,
    /// How many times as fast Partita is.
    against_qemu: Option<f64>,
}

/// Everything to be told.
#[derive(Debug, Serialize)]
pub(crate) struct Report {
    circumstances: Circumstances,
    rows: Vec<Summary>,
    rounds: Results,
}

const HEADINGS: [&str; 7] = [
    "requests",
    "at once",
    "Partita, MB/s",
    "IOPS",
    "QEMU TCG, MB/s",
    "IOPS",
    "faster than QEMU",
];

impl Report {
    /// Summarises results.
    pub(crate) fn new(circumstances: Circumstances, results: Results) -> Self {
        let summary = |row: &Row| Summary {
            name: row.workload.name.clone(),
            partita: row.median(Side::Partita),
            qemu: row.median(Side::Qemu),
            against_qemu: row.ratio(),
        };
        Self {
            circumstances,
            rows: results.rows.iter().map(summary).collect(),
            rounds: results,
        }
    }

    /// What is wrong, one line each.
    pub(crate) fn problems(&self) -> Vec<String> {
        self.rounds.rows.iter().flat_map(Row::problems).collect()
    }

    /// For a terminal or a document: a table in Markdown, and what it was measured with.
    pub(crate) fn text(&self) -> String {
        format!("{}\n{}", self.table(), self.notes())
    }

    fn notes(&self) -> String {
        let c = &self.circumstances;
        let mode = match &c.processor_mode {
            Some(mode) => format!(", Partita with `--processor-mode {mode}`"),
            None => String::new(),
        };
        let qemu = c.qemu.as_ref().map_or(String::new(), |version| {
            format!(" QEMU {version} with `-accel tcg -cpu max`, virtio-blk, `cache=writeback`.")
        });
        format!(
            "Host: {}. Medians of {} round{} of {} ms for each row{mode}. O_DIRECT in the guest, \
             to a raw file of {} MiB in the host's page cache. Guest kernel: {}, one processor.\
             {qemu}\n",
            c.processor,
            c.rounds,
            if c.rounds == 1 { "" } else { "s" },
            c.milliseconds,
            c.disk >> 20,
            c.kernel,
        )
    }

    fn table(&self) -> String {
        let lines: Vec<[String; 7]> = self.rounds.rows.iter().map(line).collect();
        let headings = HEADINGS.map(str::to_owned);
        let width = |column: usize| {
            let cells = std::iter::once(&headings).chain(&lines);
            let widths = cells.map(|line| line[column].chars().count());
            widths.max().unwrap_or(0)
        };
        let widths: Vec<usize> = (0..HEADINGS.len()).map(width).collect();
        let rule: [String; 7] = std::array::from_fn(|column| {
            let end = if column == 0 { "-" } else { ":" };
            format!("{}{end}", "-".repeat(widths[column] - 1))
        });
        let mut text = String::new();
        for line in [&headings, &rule].into_iter().chain(&lines) {
            for (column, (cell, width)) in line.iter().zip(&widths).enumerate() {
                let padding = " ".repeat(width - cell.chars().count());
                text.push_str(&if column == 0 {
                    format!("| {cell}{padding} ")
                } else {
                    format!("| {padding}{cell} ")
                });
            }
            text.push_str("|\n");
        }
        text
    }
}

fn line(row: &Row) -> [String; 7] {
    let workload = &row.workload;
    let order = if workload.bytes > 4096 {
        "sequential"
    } else {
        "random"
    };
    let kind = if workload.write { "writes" } else { "reads" };
    let reading = |side| match row.median(side) {
        Some(reading) => [
            digits(reading.megabytes),
            format!("{:.0}", reading.requests),
        ],
        None => ["–".to_owned(), "–".to_owned()],
    };
    let ([a, b], [c, d]) = (reading(Side::Partita), reading(Side::Qemu));
    let ratio = row.ratio().map_or_else(|| "–".to_owned(), digits);
    let name = format!("{order} {kind} of {}", size(workload.bytes));
    [name, workload.depth.to_string(), a, b, c, d, ratio]
}

/// A value with three digits, at most two behind the point.
fn digits(value: f64) -> String {
    if value < 9.995 {
        format!("{value:.2}")
    } else if value < 99.95 {
        format!("{value:.1}")
    } else {
        format!("{value:.0}")
    }
}

#[cfg(test)]
#[allow(
    dead_code,
    unused_imports,
    reason = "tests need a harness: see unit.rs"
)]
mod tests {
    use super::*;
    use crate::results::Outcome;
    use crate::results::tests::done;
    use crate::workloads::tests::workload;

    fn report() -> Report {
        let mut results = Results::new(&[
            workload("random-read-32", false, 4096, 32),
            workload("sequential-write", true, 1 << 20, 1),
        ]);
        results.add(Side::Partita, "random-read-32", done(30_000.0));
        results.add(Side::Qemu, "random-read-32", done(10_000.0));
        results.add(Side::Qemu, "sequential-write", Outcome::Failed("no".into()));
        let circumstances = Circumstances {
            processor: "a processor".into(),
            kernel: "linux 6".into(),
            qemu: Some("7.2".into()),
            processor_mode: Some("interpret".into()),
            rounds: 1,
            milliseconds: 500,
            disk: 256 << 20,
        };
        Report::new(circumstances, results)
    }

    #[test]
    fn the_table_is_aligned_markdown() {
        let table = report().table();
        let lines: Vec<&str> = table.lines().collect();
        let width = lines[0].chars().count();
        let aligned = lines.iter().all(|line| line.chars().count() == width);
        assert!(aligned, "{table}");
        let cells: Vec<&str> = lines[2].split('|').map(str::trim).collect();
        let name = "random reads of 4 KiB";
        let expected = ["", name, "32", "123", "30000", "41.0", "10000", "3.00", ""];
        assert_eq!(cells, expected);
        assert!(lines[3].contains("sequential writes of 1 MiB"));
    }

    #[test]
    fn notes_and_problems_tell_the_rest() {
        let report = report();
        let text = report.text();
        assert!(text.contains("Medians of 1 round of 500 ms"), "{text}");
        assert!(text.contains("`--processor-mode interpret`"));
        assert_eq!(report.problems(), ["sequential-write, qemu: no"]);
        let value = serde_json::to_value(&report).unwrap();
        assert_eq!(value["rows"][0]["against_qemu"], 3.0);
        assert_eq!(
            value["rounds"][0]["sides"]["qemu"][0]["done"]["requests"],
            10_000.0
        );
    }
}
