// SPDX-License-Identifier: GPL-2.0 OR MIT

//! `neonsan detach`

use super::{find_index, get_devices};
use crate::cli::{Common, Detach};
use crate::error::{Error, Result};
use crate::netlink::{AttrsMut, Client};
use crate::output::print_json;
use crate::root::Root;
use crate::uapi::{attr, cmd};
use crate::users;
use serde_json::json;
use std::time::{Duration, Instant};

/// Pause between two tries on a device that is open.
const PAUSE: Duration = Duration::from_millis(50);

/// Detaches devices. The first that refuses ends the command; those before it stay detached.
pub fn run(common: &Common, args: &Detach) -> Result<()> {
    let mut client = Client::connect()?;
    let indices = if args.all {
        let devices = get_devices(&mut client)?;
        devices.iter().map(|device| device.index).collect()
    } else {
        let found = args
            .devices
            .iter()
            .map(|name| find_index(&mut client, name));
        found.collect::<Result<Vec<_>>>()?
    };
    // One time for all of them.
    let end = Instant::now() + Duration::from_millis(args.wait.into());
    let mut detached = Vec::new();
    for index in indices {
        detach(&mut client, index, args.force, end)?;
        detached.push(format!("neonsan{index}"));
    }
    if common.json {
        print_json(&json!({ "detached": detached }))?;
    }
    Ok(())
}

/// Detaches one. A device that is busy is tried again until the end, then whoever uses it is named.
pub(super) fn detach(client: &mut Client, index: u32, force: bool, end: Instant) -> Result<()> {
    let mut request = AttrsMut::default();
    request.u32(attr::device::INDEX, index);
    if force {
        request.flag(attr::device::FORCE);
    }
    let name = format!("neonsan{index}");
    let what = format!("{name} cannot be detached");
    until(end, || client.request_or_busy(cmd::DETACH, &request, &what))?
        .map(drop)
        .map_err(|busy| with_users(busy, &Root::system(), &name))
}

/// Tries until it is not busy any more, or until the end.
fn until<T>(
    end: Instant,
    mut attempt: impl FnMut() -> Result<std::result::Result<T, Error>>,
) -> Result<std::result::Result<T, Error>> {
    loop {
        match attempt()? {
            Err(_) if Instant::now() < end => std::thread::sleep(PAUSE),
            result => return Ok(result),
        }
    }
}

/// A refusal with those who have the device open.
fn with_users(busy: Error, root: &Root, name: &str) -> Error {
    match users::sentence(&users::of_device(root, name)) {
        Some(users) => busy.with_more(users),
        None => busy,
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::error::Kind;
    use crate::users::tests::Machine;

    fn busy() -> Error {
        Error::new(Kind::Busy, "neonsan0 is open (1 times): unmount it")
    }

    #[test]
    fn a_device_that_is_open_for_a_moment_is_waited_for() {
        let mut left = 3;
        let end = Instant::now() + Duration::from_secs(60);
        let tried = until(end, || {
            left -= 1;
            Ok(if left > 0 { Err(busy()) } else { Ok(()) })
        });
        assert!(tried.unwrap().is_ok());
        // Without time it is tried once.
        let mut tries = 0;
        let tried = until(Instant::now(), || {
            tries += 1;
            Ok(Err::<(), _>(busy()))
        });
        assert_eq!((tried.unwrap().unwrap_err().kind(), tries), (Kind::Busy, 1));
        // What will not change by waiting ends it.
        let end = Instant::now() + Duration::from_secs(60);
        let gone = || Err::<std::result::Result<(), _>, _>(Error::new(Kind::NotFound, "gone"));
        assert_eq!(until(end, gone).unwrap_err().kind(), Kind::NotFound);
    }

    #[test]
    fn the_refusal_names_who_has_it_open() {
        let machine = Machine::new();
        machine.write("/sys/block/neonsan0/dev", "259:0\n");
        let mounted = "36 21 259:0 / /srv rw - ext4 /dev/neonsan0 rw\n";
        machine.write("/proc/self/mountinfo", mounted);
        let error = with_users(busy(), &machine.root(), "neonsan0");
        assert_eq!(error.kind(), Kind::Busy);
        let said = error.to_string();
        assert!(said.contains("open (1 times)"), "{said}");
        assert!(said.contains("neonsan0 is mounted at /srv"), "{said}");
        let nobody = with_users(busy(), &machine.root(), "neonsan1");
        assert_eq!(nobody.to_string(), busy().to_string());
    }
}
