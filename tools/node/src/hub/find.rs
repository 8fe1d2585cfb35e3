// SPDX-License-Identifier: GPL-2.0 OR MIT
//! Which engine has a volume.

use neonsan_api::VolumeName;
use neonsan_engine::{Error, ErrorKind};

use crate::shared::Shared;

/// The index of the engine which has the volume, damaged or not. Blocks.
///
/// An engine that cannot say whether it has the volume does not hide that another one has it.
pub fn find_engine(shared: &Shared, name: &VolumeName) -> neonsan_engine::Result<usize> {
    let answers = shared.engines.iter().map(|e| e.engine.exists(name));
    find_among(answers, name)
}

fn find_among(
    answers: impl Iterator<Item = neonsan_engine::Result<bool>>,
    name: &VolumeName,
) -> neonsan_engine::Result<usize> {
    let mut failed = None;
    for (index, answer) in answers.enumerate() {
        match answer {
            Ok(true) => return Ok(index),
            Ok(false) => {}
            Err(error) => match error.kind() {
                ErrorKind::Corrupt => return Ok(index),
                ErrorKind::NotFound => {}
                _ => failed = failed.or(Some(error)),
            },
        }
    }
    Err(failed.unwrap_or_else(|| {
        Error::new(
            ErrorKind::NotFound,
            format!("there is no volume {name} on this node"),
        )
    }))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn an_engine_that_fails_hides_no_volume_of_another() {
        let find = |answers: Vec<neonsan_engine::Result<bool>>| {
            find_among(answers.into_iter(), &"p/v".parse().unwrap()).map_err(|e| e.kind())
        };
        let fails = |kind| Err(Error::new(kind, "it fails"));
        let (here, absent) = (|| Ok(true), || Ok(false));
        assert_eq!(find(vec![absent(), here()]), Ok(1));
        assert_eq!(find(vec![absent(), absent()]), Err(ErrorKind::NotFound));
        assert_eq!(find(vec![fails(ErrorKind::Io), here()]), Ok(1));
        let failing = vec![
            absent(),
            fails(ErrorKind::Io),
            fails(ErrorKind::NoResources),
        ];
        assert_eq!(find(failing), Err(ErrorKind::Io));
        // A damaged volume is there.
        assert_eq!(find(vec![absent(), fails(ErrorKind::Corrupt)]), Ok(1));
    }
}
