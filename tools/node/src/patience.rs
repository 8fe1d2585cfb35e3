// SPDX-License-Identifier: GPL-2.0 OR MIT
//! Looking at what lies at a path, by those who cannot wait for ever: a file system that hangs answers
//! nobody, and a look at it does not come back.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{self, Receiver};
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

/// How long a look may take.
const PATIENCE: Duration = Duration::from_secs(2);

/// Where a look has not come back yet. There is one at each path at most: a reload that is asked for
/// again and again must not leave a thread each time.
static OUT: Mutex<BTreeSet<PathBuf>> = Mutex::new(BTreeSet::new());

/// A look that has begun.
pub(crate) struct Look<T> {
    answer: Option<Receiver<T>>,
    deadline: Instant,
}

/// Begins to look at a path, on a thread of its own.
pub(crate) fn begin<T: Send + 'static>(
    path: &Path,
    look: impl FnOnce(&Path) -> T + Send + 'static,
) -> Look<T> {
    let path = path.to_owned();
    let out = || OUT.lock().unwrap_or_else(PoisonError::into_inner);
    let deadline = Instant::now() + PATIENCE;
    if !out().insert(path.clone()) {
        let answer = None;
        return Look { answer, deadline };
    }
    let (send, answer) = mpsc::channel();
    let for_thread = path.clone();
    let spawned = thread::Builder::new()
        .name("look".to_owned())
        .spawn(move || {
            let found = look(&for_thread);
            OUT.lock()
                .unwrap_or_else(PoisonError::into_inner)
                .remove(&for_thread);
            // Nobody waits any more when it comes too late.
            let _ = send.send(found);
        });
    if spawned.is_err() {
        out().remove(&path);
    }
    Look {
        answer: Some(answer),
        deadline,
    }
}

impl<T> Look<T> {
    /// What was found; `None`: nobody answers there.
    pub(crate) fn wait(self) -> Option<T> {
        let left = self.deadline.saturating_duration_since(Instant::now());
        self.answer?.recv_timeout(left).ok()
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_look_that_does_not_come_back_is_not_waited_for_nor_repeated() {
        let path = Path::new("/a path of this test");
        let (go_on, wait) = mpsc::channel::<()>();
        let hangs = begin(path, move |_| wait.recv().is_err());
        assert_eq!(hangs.wait(), None);
        let begun = Instant::now();
        assert_eq!(begin(path, |_| 1).wait(), None);
        assert!(begun.elapsed() < PATIENCE, "it is known to hang");
        drop(go_on);
        let deadline = Instant::now() + Duration::from_secs(20);
        while begin(path, |_| 1).wait().is_none() {
            assert!(Instant::now() < deadline, "it is well again");
            thread::sleep(Duration::from_millis(5));
        }
    }
}
