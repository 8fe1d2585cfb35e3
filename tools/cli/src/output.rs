// SPDX-License-Identifier: GPL-2.0 OR MIT

//! Tables, JSON and warnings.

use crate::error::{Error, Kind, Result};
use serde::Serialize;
use std::borrow::Cow;
use std::io::Write;
use std::sync::{Mutex, PoisonError};

/// Warnings that wait for the command's end; `None` where they are shown at once. Of the process, since
/// they come up far below what knows of --json.
static KEPT: Mutex<Option<Vec<String>>> = Mutex::new(None);

/// From now on warnings wait: a command with --json that fails says one line on standard error.
pub fn keep_warnings() {
    *KEPT.lock().unwrap_or_else(PoisonError::into_inner) = Some(Vec::new());
}

/// The warnings that waited.
pub fn take_warnings() -> Vec<String> {
    let mut kept = KEPT.lock().unwrap_or_else(PoisonError::into_inner);
    kept.take().unwrap_or_default()
}

/// Writes to standard error. Where nothing can be written there, as on a disk that is full or to a reader that
/// has gone, what the command does goes on all the same: half of it done would be worse than silence, and its exit
/// code says how it ended.
pub fn say(text: &str) {
    let mut out = std::io::stderr().lock();
    let _ = out.write_all(text.as_bytes()).and_then(|()| out.flush());
}

/// Says on standard error what is no error, or keeps it: see [`keep_warnings`].
pub fn warn(text: &str) {
    match &mut *KEPT.lock().unwrap_or_else(PoisonError::into_inner) {
        Some(kept) => kept.push(text.to_owned()),
        None => show_warning(text),
    }
}

/// Says on standard error what is under way, to whoever waits for it: not with --json, where a failure is one
/// line.
pub fn note(text: &str) {
    let kept = KEPT.lock().unwrap_or_else(PoisonError::into_inner);
    if kept.is_none() {
        say(&format!("neonsan: {}\n", plain(text)));
    }
}

/// Shows a warning.
pub fn show_warning(text: &str) {
    say(&format!("neonsan: warning: {}\n", plain(text)));
}

/// Text without control characters, which could steer a terminal or forge lines: what a node says, for
/// one, goes to a person's terminal.
pub fn plain(text: &str) -> Cow<'_, str> {
    if !text.chars().any(char::is_control) {
        return Cow::Borrowed(text);
    }
    let shown = text.chars().map(|c| match c {
        '\n' | '\t' => ' ',
        c if c.is_control() => char::REPLACEMENT_CHARACTER,
        c => c,
    });
    Cow::Owned(shown.collect())
}

/// A word of the caller's, with control characters as a program's text has them: `\\r` and such.
pub fn readable(text: &str) -> Cow<'_, str> {
    if !text.chars().any(char::is_control) {
        return Cow::Borrowed(text);
    }
    let shown = text.chars().map(|c| match c.is_control() {
        true => c.escape_default().to_string(),
        false => c.to_string(),
    });
    Cow::Owned(shown.collect())
}

/// Writes to standard output. A reader that went away ends the program quietly, as with `| head`.
pub fn print(text: &str) -> Result<()> {
    let mut out = std::io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => std::process::exit(0),
        Err(error) => Err(Error::new(
            Kind::Other,
            format!("standard output cannot be written: {error}"),
        )),
        Ok(()) => Ok(()),
    }
}

/// Writes an object as indented JSON.
pub fn print_json(value: &impl Serialize) -> Result<()> {
    print(&json_text(value)?)
}

/// An object as indented JSON.
pub fn json_text(value: &impl Serialize) -> Result<String> {
    let text = serde_json::to_string_pretty(value)
        .map_err(|error| Error::new(Kind::Other, format!("the answer is no JSON: {error}")))?;
    Ok(format!("{text}\n"))
}

/// Writes an object as JSON on one line.
pub fn print_json_line(value: &impl Serialize) -> Result<()> {
    let text = serde_json::to_string(value)
        .map_err(|error| Error::new(Kind::Other, format!("the answer is no JSON: {error}")))?;
    print(&format!("{text}\n"))
}

/// Rows of text under headings, each column as wide as its widest cell.
pub fn table(headings: &[&str], rows: &[Vec<String>]) -> String {
    let rows: Vec<Vec<_>> = rows
        .iter()
        .map(|row| row.iter().map(|cell| plain(cell)).collect())
        .collect();
    let mut widths: Vec<usize> = headings.iter().map(|h| h.chars().count()).collect();
    for row in &rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let mut out = String::new();
    let headings: Vec<_> = headings.iter().map(|h| Cow::Borrowed(*h)).collect();
    for row in std::iter::once(&headings).chain(&rows) {
        let mut line = String::new();
        for (cell, width) in row.iter().zip(&widths) {
            line.push_str(cell);
            line.extend(std::iter::repeat_n(' ', width + 2 - cell.chars().count()));
        }
        out.push_str(line.trim_end());
        out.push('\n');
    }
    out
}

/// Names with values, the values in one column.
pub fn fields(pairs: &[(&str, String)]) -> String {
    let width = pairs.iter().map(|(name, _)| name.chars().count()).max();
    let width = width.unwrap_or(0) + 1;
    let mut out = String::new();
    for (name, value) in pairs {
        let name = format!("{name}:");
        out.push_str(format!("{name:width$}  {}", plain(value)).trim_end());
        out.push('\n');
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_as_wide_as_their_widest_cell() {
        let rows = [
            vec!["a".to_owned(), "é".to_owned()],
            vec!["long".into(), String::new()],
        ];
        assert_eq!(table(&["X", "Y"], &rows), "X     Y\na     é\nlong\n");
    }

    #[test]
    fn nothing_steers_the_terminal() {
        let hostile = "a\u{1b}]0;x\u{7}\u{9b}31m\nneonsan: b\r";
        let rows = [vec![hostile.to_owned()]];
        for shown in [table(&["X"], &rows), fields(&[("x", hostile.into())])] {
            assert!(
                !shown.chars().any(|c| c.is_control() && c != '\n'),
                "{shown:?}"
            );
            assert!(shown.lines().all(|line| !line.starts_with("neonsan")));
        }
        assert_eq!(plain("Größe 1\u{202f}GiB"), "Größe 1\u{202f}GiB");
    }

    #[test]
    fn values_stand_in_one_column() {
        assert_eq!(
            fields(&[("a", "1".into()), ("long", "2".into())]),
            "a:     1\nlong:  2\n"
        );
    }
}
