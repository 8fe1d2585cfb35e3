// SPDX-License-Identifier: GPL-2.0 OR MIT
//! Which engine has a volume.

use neonsan_api::VolumeName;
use neonsan_engine::{Error, ErrorKind, VolumeStat};

use crate::shared::Shared;

/// The index of the engine which has the volume, damaged or not. Blocks.
///
/// An engine that cannot say whether it has the volume does not hide that another one has it.
pub fn find_engine(shared: &Shared, name: &VolumeName) -> neonsan_engine::Result<usize> {
    let stats = shared.engines.iter().map(|e| e.engine.stat(name));
    find_among(stats, name)
}

fn find_among(
    stats: impl Iterator<Item = neonsan_engine::Result<VolumeStat>>,
    name: &VolumeName,
) -> neonsan_engine::Result<usize> {
    let mut failed = None;
    for (index, stat) in stats.enumerate() {
        match stat {
            Ok(_) => return Ok(index),
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
        let find = |stats: Vec<neonsan_engine::Result<VolumeStat>>| {
            find_among(stats.into_iter(), &"p/v".parse().unwrap()).map_err(|e| e.kind())
        };
        let stat = || {
            Ok(VolumeStat {
                id: [1; 16],
                size_bytes: 512,
                logical_block_size: 512,
                physical_block_size: 512,
                allocated_bytes: 0,
                created_unix_s: 0,
                parent: None,
            })
        };
        let fails = |kind| Err(Error::new(kind, "it fails"));
        let absent = || fails(ErrorKind::NotFound);
        assert_eq!(find(vec![absent(), stat()]), Ok(1));
        assert_eq!(find(vec![absent(), absent()]), Err(ErrorKind::NotFound));
        assert_eq!(find(vec![fails(ErrorKind::Io), stat()]), Ok(1));
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
