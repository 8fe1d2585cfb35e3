// SPDX-License-Identifier: GPL-2.0 OR MIT

//! The report of a run: what the guest said, put together with what the plugin counted.
//!
//! The guest prints `@cell PEER ROW JOBS` before each measurement and `@window REQUESTS SWITCHES`
//! for each window after it, and `@value NAME NUMBER` for what needs no counting; the plugin writes one `window` for each pair of marks, in the same
//! order.

mod kinds;
mod symbols;
mod table;

use kinds::Kind;
use serde::Serialize;
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, BufRead as _, BufReader, BufWriter, Write as _};
use std::path::{Path, PathBuf};
use symbols::Symbols;

/// Options of `report`.
#[derive(Debug, clap::Args)]
pub struct Options {
    /// The guest's output.
    #[arg(long)]
    output: PathBuf,
    /// The plugin's file.
    #[arg(long)]
    counts: PathBuf,
    /// /proc/kallsyms of the guest.
    #[arg(long)]
    kallsyms: Option<PathBuf>,
    /// Where bench.json goes.
    #[arg(long)]
    json: Option<PathBuf>,
    /// Where the profiles go: a file for each cell.
    #[arg(long)]
    profiles: Option<PathBuf>,
}

/// One measurement.
#[derive(Clone, Debug, Serialize)]
pub struct Cell {
    /// Whose.
    peer: String,
    /// Which load.
    row: String,
    /// By how many threads.
    jobs: u32,
    /// Guest instructions per I/O: the median of the windows.
    instructions_per_io: f64,
    /// Those in the kernel.
    kernel_instructions_per_io: f64,
    /// Between the highest and the lowest window, as a fraction of the median.
    spread: f64,
    /// Context switches per I/O.
    switches_per_io: f64,
    /// Windows.
    windows: Vec<Window>,
    /// Instructions per I/O by kind of work.
    kinds: BTreeMap<&'static str, f64>,
    /// Instructions per I/O of the functions that take most.
    functions: Vec<(String, f64)>,
}

/// What bench.json has.
#[derive(Serialize)]
struct Report<'a> {
    cells: &'a [Cell],
    values: &'a BTreeMap<String, u64>,
}

/// One window of a measurement.
#[derive(Clone, Debug, Serialize)]
struct Window {
    requests: u64,
    switches: u64,
    instructions: u64,
    kernel_instructions: u64,
    #[serde(skip)]
    profile: Vec<(u64, u64)>,
}

fn bad(what: &str, line: &str) -> io::Error {
    io::Error::other(format!("{what} has a line that makes no sense: {line}"))
}

fn numbers<const N: usize>(text: &str) -> Option<[u64; N]> {
    let mut words = text.split_ascii_whitespace();
    let mut numbers = [0; N];
    for number in &mut numbers {
        *number = words.next()?.parse().ok()?;
    }
    words.next().is_none().then_some(numbers)
}

/// What the plugin counted, in its order.
fn read_counts(path: &Path) -> io::Result<Vec<Window>> {
    let mut windows: Vec<Window> = Vec::new();
    for line in BufReader::new(File::open(path)?).lines() {
        let line = line?;
        if let Some(rest) = line.strip_prefix("window ") {
            let [_, total, kernel] = numbers(rest).ok_or_else(|| bad("the counts", &line))?;
            windows.push(Window {
                requests: 0,
                switches: 0,
                instructions: total,
                kernel_instructions: kernel,
                profile: Vec::new(),
            });
        } else if !line.starts_with("done ") {
            let (address, count) = line
                .split_once(' ')
                .ok_or_else(|| bad("the counts", &line))?;
            let address = u64::from_str_radix(address, 16).ok();
            let count = count.parse().ok();
            if let (Some(address), Some(count), Some(window)) = (address, count, windows.last_mut())
            {
                window.profile.push((address, count));
            }
        }
    }
    Ok(windows)
}

/// The cells of the guest's output, with the windows that belong to them.
fn read_cells(path: &Path, counts: Vec<Window>) -> io::Result<(Vec<Cell>, BTreeMap<String, u64>)> {
    let mut counts = counts.into_iter();
    let mut cells: Vec<Cell> = Vec::new();
    let mut values = BTreeMap::new();
    // A serial port ends its lines with a carriage return; a broken program may print anything.
    for line in String::from_utf8_lossy(&std::fs::read(path)?).lines() {
        let line = line.trim_end();
        if let Some(rest) = line.strip_prefix("@cell ") {
            let words: Vec<&str> = rest.split_ascii_whitespace().collect();
            let [peer, row, jobs] = words[..] else {
                return Err(bad("the output", line));
            };
            cells.push(Cell {
                peer: peer.to_owned(),
                row: row.to_owned(),
                jobs: jobs.parse().map_err(|_| bad("the output", line))?,
                instructions_per_io: 0.0,
                kernel_instructions_per_io: 0.0,
                spread: 0.0,
                switches_per_io: 0.0,
                windows: Vec::new(),
                kinds: BTreeMap::new(),
                functions: Vec::new(),
            });
        } else if let Some(rest) = line.strip_prefix("@value ") {
            let (name, value) = rest
                .split_once(' ')
                .ok_or_else(|| bad("the output", line))?;
            let value = value.parse().map_err(|_| bad("the output", line))?;
            values.insert(name.to_owned(), value);
        } else if let Some(rest) = line.strip_prefix("@window ") {
            let [requests, switches] = numbers(rest).ok_or_else(|| bad("the output", line))?;
            let count = counts.next().ok_or_else(|| {
                io::Error::other("the plugin counted fewer windows than the guest")
            })?;
            let cell = cells.last_mut().ok_or_else(|| bad("the output", line))?;
            cell.windows.push(Window {
                requests,
                switches,
                ..count
            });
        }
    }
    if counts.next().is_some() {
        return Err(io::Error::other(
            "the plugin counted more windows than the guest: a load failed midway",
        ));
    }
    Ok((cells, values))
}

fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    match values.len() {
        0 => 0.0,
        n if n % 2 == 1 => values[n / 2],
        n => (values[n / 2 - 1] + values[n / 2]) / 2.0,
    }
}

impl Cell {
    fn summarize(&mut self, symbols: Option<&Symbols>) {
        let per = |f: fn(&Window) -> u64| -> Vec<f64> {
            self.windows
                .iter()
                .map(|w| f(w) as f64 / w.requests.max(1) as f64)
                .collect()
        };
        let mut all = per(|w| w.instructions);
        self.instructions_per_io = median(&mut all);
        if let (Some(low), Some(high)) = (all.first(), all.last()) {
            self.spread = (high - low) / self.instructions_per_io.max(1.0);
        }
        self.kernel_instructions_per_io = median(&mut per(|w| w.kernel_instructions));
        self.switches_per_io = median(&mut per(|w| w.switches));
        let Some(symbols) = symbols else {
            return;
        };
        let requests: u64 = self.windows.iter().map(|w| w.requests).sum();
        let mut functions: BTreeMap<&str, (Kind, u64)> = BTreeMap::new();
        for (address, count) in self.windows.iter().flat_map(|w| &w.profile) {
            let (name, module) = symbols.find(*address);
            let kind = Kind::of(*address, name, module);
            functions.entry(name).or_insert((kind, 0)).1 += count;
        }
        for (kind, count) in functions.values() {
            *self.kinds.entry(kind.name()).or_insert(0.0) += *count as f64 / requests.max(1) as f64;
        }
        self.functions = functions
            .iter()
            .map(|(name, (_, count))| ((*name).to_owned(), *count as f64 / requests.max(1) as f64))
            .collect();
        self.functions.sort_by(|a, b| b.1.total_cmp(&a.1));
    }

    fn write_profile(&self, dir: &Path) -> io::Result<()> {
        let name = format!("{}-{}-{}.txt", self.peer, self.row, self.jobs);
        let mut out = BufWriter::new(File::create(dir.join(name))?);
        writeln!(
            out,
            "{} {} jobs={}: {:.0} instructions per I/O, {:.2} context switches",
            self.peer, self.row, self.jobs, self.instructions_per_io, self.switches_per_io
        )?;
        for (name, count) in &self.kinds {
            writeln!(out, "{count:12.1}  {name}")?;
        }
        writeln!(out)?;
        for (name, count) in &self.functions {
            if *count >= 1.0 {
                writeln!(out, "{count:12.1}  {name}")?;
            }
        }
        out.flush()
    }
}

/// Makes the report.
pub fn run(options: &Options) -> io::Result<()> {
    let (mut cells, values) = read_cells(&options.output, read_counts(&options.counts)?)?;
    let symbols = match &options.kallsyms {
        Some(path) => Some(Symbols::read(path)?),
        None => None,
    };
    for cell in &mut cells {
        cell.summarize(symbols.as_ref());
    }
    // A peer that could not be set up has said so; it is no number.
    cells.retain(|cell| !cell.windows.is_empty());
    if let Some(dir) = &options.profiles {
        std::fs::create_dir_all(dir)?;
        for cell in &cells {
            cell.write_profile(dir)?;
        }
    }
    if let Some(path) = &options.json {
        for cell in &mut cells {
            cell.functions.truncate(40);
        }
        std::fs::write(
            path,
            serde_json::to_vec_pretty(&Report {
                cells: &cells,
                values: &values,
            })?,
        )?;
    }
    print!("{}", table::render(&cells));
    for (name, value) in &values {
        println!("{name}: {value}");
    }
    Ok(())
}
