// SPDX-License-Identifier: GPL-2.0 OR MIT

//! `neonsan doctor`: looks at all that a host needs for its volumes, and says what is wrong and what to do.
//! It changes nothing, and needs no root to say what it can see.

mod kernel;
mod network;
mod system;

use crate::cli::{Common, Doctor};
use crate::error::{Error, Kind, Result};
use crate::output::{plain, print, print_json};
use crate::root::Root;
use serde::Serialize;
use std::io::Read as _;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// How a thing that was looked at is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
enum Level {
    /// As it should be.
    Ok,
    /// Works, and needs to be looked at; or could not be seen.
    Warning,
    /// Does not work.
    Problem,
}

impl Level {
    fn word(self) -> &'static str {
        match self {
            Level::Ok => "ok",
            Level::Warning => "warning",
            Level::Problem => "problem",
        }
    }
}

/// One thing that was looked at. The field names are those of the JSON output.
#[derive(Debug, Serialize)]
struct Finding {
    level: Level,
    /// What was looked at, in a word.
    area: &'static str,
    /// How it is.
    message: String,
    /// What to do.
    advice: Option<String>,
}

/// What was found so far.
#[derive(Debug, Default, Serialize)]
struct Report {
    findings: Vec<Finding>,
}

impl Report {
    fn ok(&mut self, area: &'static str, message: impl Into<String>) {
        self.add(Level::Ok, area, message.into(), None);
    }

    fn warning(&mut self, area: &'static str, message: impl Into<String>, advice: &str) {
        self.add(Level::Warning, area, message.into(), Some(advice));
    }

    fn problem(&mut self, area: &'static str, message: impl Into<String>, advice: &str) {
        self.add(Level::Problem, area, message.into(), Some(advice));
    }

    /// An error of another part of the program, with its own advice.
    fn error(&mut self, area: &'static str, error: &Error) {
        self.add(
            Level::Problem,
            area,
            error.message().to_owned(),
            error.hint(),
        );
    }

    fn add(&mut self, level: Level, area: &'static str, message: String, advice: Option<&str>) {
        self.findings.push(Finding {
            level,
            area,
            message,
            advice: advice.map(str::to_owned),
        });
    }

    fn count(&self, level: Level) -> usize {
        self.findings.iter().filter(|f| f.level == level).count()
    }

    /// A line for each finding.
    fn text(&self) -> String {
        let mut text = String::new();
        for finding in &self.findings {
            let (level, area) = (finding.level.word(), finding.area);
            text += &format!("{level:8} {area:8} {}", plain(&finding.message));
            if let Some(advice) = &finding.advice {
                text += &format!(" -> {}", plain(advice));
            }
            text.push('\n');
        }
        text
    }
}

/// Looks, and prints what was found. Fails if there is a problem.
pub fn run(common: &Common, args: &Doctor) -> Result<()> {
    let root = match &args.root {
        Some(directory) => Root::at(directory),
        None => Root::system(),
    };
    let is_here = args.root.is_none();
    let mut report = Report::default();
    kernel::look(&mut report, &root, is_here);
    system::look_at_rules(&mut report, &root);
    let config = system::look_at_config(&mut report, &root, common.config.as_deref());
    let mut here = system::states_here();
    let mut state_of = |unit: &str| is_here.then(|| here(unit)).flatten();
    let targets = system::look_at_units(&mut report, &root, &mut state_of);
    let of_devices = system::look_at_devices(&mut report, &root, is_here);
    let local = system::look_at_local_node(&mut report, &root, is_here, &mut state_of);
    let nodes = network::Nodes {
        given: &args.nodes,
        config: &config,
        targets: &targets,
        of_devices: &of_devices,
        is_one_here: local,
    };
    network::look(&mut report, &root, &nodes);
    system::look_at_clock(&mut report);
    let (problems, warnings) = (report.count(Level::Problem), report.count(Level::Warning));
    if common.json {
        print_json(&serde_json::json!({
            "findings": report.findings,
            "problems": problems,
            "warnings": warnings,
        }))?;
    } else {
        print(&report.text())?;
    }
    if problems == 0 {
        return Ok(());
    }
    let are = match problems {
        1 => "1 problem".to_owned(),
        several => format!("{several} problems"),
    };
    Err(Error::new(Kind::Other, format!("{are} found"))
        .with_hint("what to do about each stands behind it"))
}

/// How a program of the system ended.
enum Ended {
    /// By itself, having said this: whether it succeeded, its output, its errors.
    Itself(bool, String, String),
    /// It took too long.
    Late,
    /// There is none, or it could not be started.
    Absent,
}

/// Runs a program of the system for as long as that may take. What cannot be killed, since a disk hangs, is
/// not waited for.
fn run_program(program: &str, args: &[&str], limit: Duration) -> Ended {
    let path = std::env::var("PATH").unwrap_or_default();
    let started = Command::new(program)
        .args(args)
        .env(
            "PATH",
            format!("{path}:/usr/sbin:/usr/local/sbin:/sbin:/usr/bin:/bin"),
        )
        .env("LC_ALL", "C.UTF-8")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn();
    let Ok(mut child) = started else {
        return Ended::Absent;
    };
    let end = Instant::now() + limit;
    let status = loop {
        match child.try_wait() {
            Ok(Some(status)) => break status,
            Ok(None) if Instant::now() < end => {
                // What is asked for here is less than a pipe holds.
                std::thread::sleep(Duration::from_millis(10));
            }
            Ok(None) | Err(_) => {
                let _ = child.kill();
                return Ended::Late;
            }
        }
    };
    let (mut output, mut errors) = (Vec::new(), Vec::new());
    let read = child.stdout.take().map(|mut o| o.read_to_end(&mut output));
    let errors_read = child.stderr.take().map(|mut e| e.read_to_end(&mut errors));
    if !matches!((read, errors_read), (Some(Ok(_)), Some(Ok(_)))) {
        return Ended::Absent;
    }
    let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
    Ended::Itself(status.success(), text(output), text(errors))
}

/// What a program of the system prints; `None` if there is none, if it fails, or if it takes longer than
/// a moment.
fn output_of(program: &str, args: &[&str]) -> Option<String> {
    match run_program(program, args, Duration::from_secs(3)) {
        Ended::Itself(true, output, _) => Some(output),
        Ended::Itself(false, ..) | Ended::Late | Ended::Absent => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_that_hangs_is_not_waited_for() {
        let begun = Instant::now();
        let ended = run_program("sleep", &["300"], Duration::from_millis(200));
        assert!(matches!(ended, Ended::Late));
        assert!(begun.elapsed() < Duration::from_secs(60));
        let words = ["-c", "echo said; echo why >&2; exit 3"];
        match run_program("sh", &words, Duration::from_secs(60)) {
            Ended::Itself(false, output, errors) => {
                assert_eq!((output.trim(), errors.trim()), ("said", "why"));
            }
            _ => panic!("it has ended by itself"),
        }
        let absent = run_program("/nonexistent", &[], Duration::from_secs(60));
        assert!(matches!(absent, Ended::Absent));
    }
}
