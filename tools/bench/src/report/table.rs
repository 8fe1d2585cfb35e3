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

/// The quotient of two peers in a row, or a dash.
fn ratio(cells: &[&Cell], row: &str, of: &str, to: &str) -> String {
    match (find(cells, of, row), find(cells, to, row)) {
        (Some(of), Some(to)) if to.instructions_per_io > 0.0 => {
            format!("{:.2}", of.instructions_per_io / to.instructions_per_io)
        }
        _ => "-".to_owned(),
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
        let _ = writeln!(out, "{:>12}{:>12}", "n'san/nbd", "n'san/nvme");
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
            let _ = writeln!(
                out,
                "{:>12}{:>12}",
                ratio(&cells, row, "neonsan", "nbd"),
                ratio(&cells, row, "neonsan", "nvme")
            );
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
