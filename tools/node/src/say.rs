// SPDX-License-Identifier: GPL-2.0 OR MIT
//! What the program says beside its log. `println!` and `eprintln!` panic where nothing can be
//! written, as on a full disk: then nobody would learn by the exit status how the program ended.

use std::fmt::Arguments;
use std::io::{self, Write};
use std::process::ExitCode;

/// Says a line on standard error, if that can be.
pub(crate) fn complain(text: Arguments<'_>) {
    let mut out = io::stderr().lock();
    let _ = writeln!(out, "neonsan-node{text}").and_then(|()| out.flush());
}

/// Writes an answer to standard output: the end of the program, since an answer that nobody gets is
/// none. A reader that went away, as with `| head`, is no failure.
pub(crate) fn answer(text: &str) -> ExitCode {
    let mut out = io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            complain(format_args!(
                ": what was to be done is done, but standard output cannot be written: {error}"
            ));
            ExitCode::FAILURE
        }
        _ => ExitCode::SUCCESS,
    }
}
