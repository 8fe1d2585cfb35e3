// SPDX-License-Identifier: GPL-2.0 OR MIT
//! Which engine has a volume.

use neonsan_api::VolumeName;
use neonsan_engine::{Error, ErrorKind};

use crate::engines::of_engine;
use crate::shared::Shared;

/// The index of the engine which has the volume, damaged or not. Blocks, for a few seconds at most.
///
/// An engine that cannot say whether it has the volume does not hide that another one has it; those that
/// are known not to answer are asked last.
///
/// # Errors
///
/// [`ErrorKind::NotFound`] if no engine has it; [`ErrorKind::Unavailable`] if none of those
/// has it that can say, and one cannot: the volume may be there again in a moment.
pub fn find_engine(shared: &Shared, name: &VolumeName) -> neonsan_engine::Result<usize> {
    let (silent, speaking): (Vec<_>, Vec<_>) = shared
        .engines
        .iter()
        .enumerate()
        .partition(|(_, e)| e.supervised.is_silent());
    let answers = speaking
        .into_iter()
        .chain(silent)
        .map(|(index, e)| (index, e.name.as_str(), e.has(name)));
    find_among(answers, name)
}

/// The same for what cannot be taken back: it is refused where more than one engine has a volume of the
/// name, as when an engine's directory was copied into another one's. Asks every engine. Blocks, for
/// a few seconds at most for each.
///
/// # Errors
///
/// As [`find_engine`]; [`ErrorKind::Conflict`], with the engines that have it.
pub fn find_sole_engine(shared: &Shared, name: &VolumeName) -> neonsan_engine::Result<usize> {
    let answers: Vec<_> = shared
        .engines
        .iter()
        .map(|e| (e.name.as_str(), e.has(name)))
        .collect();
    check_sole(&answers, name)?;
    let answers = answers.into_iter().enumerate();
    find_among(answers.map(|(index, (e, answer))| (index, e, answer)), name)
}

fn check_sole(
    answers: &[(&str, neonsan_engine::Result<bool>)],
    name: &VolumeName,
) -> neonsan_engine::Result<()> {
    let has_it = |answer: &neonsan_engine::Result<bool>| match answer {
        Ok(found) => *found,
        Err(error) => error.kind() == ErrorKind::Corrupt,
    };
    let engines: Vec<&str> = answers
        .iter()
        .filter(|(_, answer)| has_it(answer))
        .map(|(engine, _)| *engine)
        .collect();
    if engines.len() < 2 {
        return Ok(());
    }
    Err(Error::new(
        ErrorKind::Conflict,
        format!(
            "there is a volume {name} in each of the engines {}, so which one is meant cannot be \
             said: stop the node and give the directory of one of them another name",
            engines.join(", ")
        ),
    ))
}

fn find_among<'a>(
    answers: impl Iterator<Item = (usize, &'a str, neonsan_engine::Result<bool>)>,
    name: &VolumeName,
) -> neonsan_engine::Result<usize> {
    let mut failed = None;
    for (index, engine, answer) in answers {
        match answer {
            Ok(true) => return Ok(index),
            Ok(false) => {}
            Err(error) => match error.kind() {
                ErrorKind::Corrupt => return Ok(index),
                ErrorKind::NotFound => {}
                ErrorKind::Unavailable => {
                    failed = failed.or_else(|| {
                        Some(Error::new(
                            ErrorKind::Unavailable,
                            of_engine(engine, &error),
                        ))
                    });
                }
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
            let answers = ["a", "b", "c"].into_iter().zip(answers).enumerate();
            let answers = answers.map(|(index, (engine, answer))| (index, engine, answer));
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

    #[test]
    fn what_cannot_be_taken_back_is_not_done_to_one_of_two() {
        let check = |answers: Vec<neonsan_engine::Result<bool>>| {
            let answers: Vec<_> = ["a", "b", "c"].into_iter().zip(answers).collect();
            check_sole(&answers, &"p/v".parse().unwrap()).map_err(|e| (e.kind(), e.to_string()))
        };
        let damaged = || Err(Error::new(ErrorKind::Corrupt, "it is damaged"));
        let down = || Err(Error::new(ErrorKind::Unavailable, "it is down"));
        assert_eq!(check(vec![Ok(true), Ok(false), down()]), Ok(()));
        assert_eq!(check(vec![Ok(false), damaged()]), Ok(()));
        for answers in [
            vec![Ok(true), Ok(false), Ok(true)],
            vec![Ok(true), Ok(false), damaged()],
        ] {
            let (kind, text) = check(answers).unwrap_err();
            assert_eq!(kind, ErrorKind::Conflict);
            assert!(text.contains("engines a, c"), "{text}");
        }
    }
}
