// SPDX-License-Identifier: GPL-2.0 OR MIT

//! The tables for people.

use super::{Cell, Kind};
use std::fmt::Write as _;

/// The values of a field of the cells, each once, in the order of the run.
fn distinct<'a>(cells: &[&'a Cell], of: fn(&'a Cell) -> &'a str) -> Vec<&'a str> {
    let mut values = Vec::new();
    for cell in cells {
        let value = of(cell);
        if !values.contains(&value) {
            values.push(value);
        }
    }
    values
}

fn find<'a>(cells: &[&'a Cell], peer: &str, row: &str) -> Option<&'a Cell> {
    cells
        .iter()
        .find(|c| c.peer == peer && c.row == row)
        .copied()
}

/// A quotient of a peer and the best of others.
#[derive(Clone, Copy)]
struct Ratio {
    name: &'static str,
    of: &'static str,
    to: &'static [&'static str],
}

/// The quotients that the goals are about.
const RATIOS: [Ratio; 4] = [
    Ratio {
        name: "n'san/nbd",
        of: "neonsan",
        to: &["nbd"],
    },
    Ratio {
        name: "n'san/nvme",
        of: "neonsan",
        to: &["nvme"],
    },
    Ratio {
        name: "mem/best",
        of: "node-mem",
        to: &["nvme", "nbdkit-mem", "qemu-nbd-mem"],
    },
    Ratio {
        name: "file/best",
        of: "node-file",
        to: &["qemu-nbd-file"],
    },
];

impl Ratio {
    fn of(self, cells: &[&Cell], row: &str) -> Option<f64> {
        let of = find(cells, self.of, row)?.instructions_per_io;
        let to = self
            .to
            .iter()
            .filter_map(|to| find(cells, to, row))
            .map(|cell| cell.instructions_per_io)
            .min_by(f64::total_cmp)?;
        (to > 0.0).then_some(of / to)
    }
}

/// Everything.
pub fn render(cells: &[Cell]) -> String {
    let mut out = String::new();
    let mut jobs: Vec<u32> = cells.iter().map(|c| c.jobs).collect();
    jobs.sort_unstable();
    jobs.dedup();
    for jobs in jobs {
        let cells: Vec<&Cell> = cells.iter().filter(|c| c.jobs == jobs).collect();
        let (peers, rows) = (distinct(&cells, |c| &c.peer), distinct(&cells, |c| &c.row));
        let _ = writeln!(
            out,
            "\nguest instructions per I/O, jobs={jobs} (spread between windows)"
        );
        let _ = write!(out, "{:<16}", "");
        for peer in &peers {
            let _ = write!(out, "{peer:>20}");
        }
        let ratios: Vec<Ratio> = RATIOS
            .into_iter()
            .filter(|r| rows.iter().any(|row| r.of(&cells, row).is_some()))
            .collect();
        for ratio in &ratios {
            let _ = write!(out, "{:>12}", ratio.name);
        }
        let _ = writeln!(out);
        for row in &rows {
            let _ = write!(out, "{row:<16}");
            for peer in &peers {
                let value = match find(&cells, peer, row) {
                    Some(cell) => format!(
                        "{:.0} ({:.1}%)",
                        cell.instructions_per_io,
                        100.0 * cell.spread
                    ),
                    None => "-".to_owned(),
                };
                let _ = write!(out, "{value:>20}");
            }
            for ratio in &ratios {
                let value = ratio
                    .of(&cells, row)
                    .map_or("-".to_owned(), |r| format!("{r:.2}"));
                let _ = write!(out, "{value:>12}");
            }
            let _ = writeln!(out);
        }
        let _ = writeln!(out, "\nby kind of work, jobs={jobs}");
        let _ = write!(out, "{:<34}{:>9}", "", "switches");
        for kind in Kind::NAMES {
            let _ = write!(out, "{kind:>10}");
        }
        let _ = writeln!(out);
        for row in &rows {
            for peer in &peers {
                let Some(cell) = find(&cells, peer, row) else {
                    continue;
                };
                let name = format!("{row} {peer}");
                let _ = write!(out, "{name:<34}{:>9.2}", cell.switches_per_io);
                for kind in Kind::NAMES {
                    let _ = write!(out, "{:>10.0}", cell.kinds.get(kind).unwrap_or(&0.0));
                }
                let _ = writeln!(out);
            }
        }
    }
    out
}
