// SPDX-License-Identifier: GPL-2.0 OR MIT
//! Which engine has a volume.

use neonsan_api::VolumeName;
use neonsan_engine::{Error, ErrorKind};

use crate::shared::Shared;

/// The index of the engine which has the volume, damaged or not. Blocks.
///
/// An engine that cannot say whether it has the volume does not hide that another one has it.
///
/// # Errors
///
/// [`ErrorKind::NotFound`] if no engine has it; [`ErrorKind::Unavailable`] if none of those
/// has it that can say, and one cannot: the volume may be there again in a moment.
pub fn find_engine(shared: &Shared, name: &VolumeName) -> neonsan_engine::Result<usize> {
    let answers = shared
        .engines
        .iter()
        .map(|e| (e.name.as_str(), e.engine.exists(name)));
    find_among(answers, name)
}

fn find_among<'a>(
    answers: impl Iterator<Item = (&'a str, neonsan_engine::Result<bool>)>,
    name: &VolumeName,
) -> neonsan_engine::Result<usize> {
    let mut failed = None;
    for (index, (engine, answer)) in answers.enumerate() {
        match answer {
            Ok(true) => return Ok(index),
            Ok(false) => {}
            Err(error) => match error.kind() {
                ErrorKind::Corrupt => return Ok(index),
                ErrorKind::NotFound => {}
                ErrorKind::Unavailable => failed = failed.or(Some(error)),
                _ => {
                    failed = failed.or_else(|| {
                        let text = format!(
                            "the engine {engine} cannot say whether it has the volume {name}: {error}"
                        );
                        Some(Error::new(ErrorKind::Unavailable, text))
                    });
                }
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
            let answers = ["a", "b", "c"].into_iter().zip(answers);
            find_among(answers, &"p/v".parse().unwrap()).map_err(|e| e.kind())
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
        assert_eq!(find(failing), Err(ErrorKind::Unavailable));
        let down = || fails(ErrorKind::Unavailable);
        assert_eq!(find(vec![down(), here()]), Ok(1));
        assert_eq!(
            find(vec![down(), absent()]),
            Err(ErrorKind::Unavailable),
            "not that there is no such volume"
        );
        // A damaged volume is there.
        assert_eq!(find(vec![absent(), fails(ErrorKind::Corrupt)]), Ok(1));
    }
}
