// SPDX-License-Identifier: GPL-2.0 OR MIT
//! Users of this machine that a setting names.

use std::collections::BTreeSet;
use std::sync::{Mutex, PoisonError};

use nix::libc;
use nix::unistd::{Group, User};

/// One entry of such a setting.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Named<'a> {
    /// `*`: every user.
    Everybody,
    /// A number.
    Uid(u32),
    /// A name.
    User(&'a str),
    /// `@name`: the members of a group, and the users whose own (primary) group it is.
    Group(&'a str),
}

impl<'a> Named<'a> {
    fn parse(text: &'a str) -> Result<Self, &'static str> {
        let is_name = |name: &str| {
            !name.is_empty()
                && !name.contains(|c: char| c.is_whitespace() || matches!(c, ':' | '/'))
        };
        match text.strip_prefix('@') {
            Some(group) if is_name(group) => Ok(Self::Group(group)),
            Some(_) => Err("there is no name of a group behind the '@'"),
            None if text == "*" => Ok(Self::Everybody),
            None if text.starts_with(|c: char| c.is_ascii_digit()) => text
                .parse()
                .map(Self::Uid)
                .map_err(|_| "it begins with a digit and is no number of a user"),
            None if is_name(text) => Ok(Self::User(text)),
            None => Err("it is no name of a user"),
        }
    }
}

/// Checks the form of an entry; whether the user exists is another question.
pub fn check(text: &str) -> Result<(), &'static str> {
    Named::parse(text).map(|_| ())
}

/// The users whose own (primary) group it is, as far as the system's databases list their users: a
/// directory service may know more of them than it lists. Reads all users, and blocks for that.
fn users_with_group(gid: u32) -> Vec<u32> {
    // The functions have one place of reading for the whole process.
    static READING: Mutex<()> = Mutex::new(());
    let _reading = READING.lock().unwrap_or_else(PoisonError::into_inner);
    let mut users = Vec::new();
    // SAFETY: nothing else in the process calls these functions, and this not twice at a time. An
    // entry is read before the next call, which may overwrite it.
    unsafe {
        libc::setpwent();
        while let Some(entry) = libc::getpwent().as_ref() {
            if entry.pw_gid == gid {
                users.push(entry.pw_uid);
            }
        }
        libc::endpwent();
    }
    users
}

/// Who may connect from this machine: root and the node's own user always, and whom a setting names.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LocalUsers {
    everybody: bool,
    uids: BTreeSet<u32>,
}

impl LocalUsers {
    /// Looks the entries of `setting` up in the system's databases. One that is not found lets nobody
    /// in, and the log says so: a directory service may be away for a moment, and the node serves all
    /// others.
    pub fn look_up(entries: &[String], setting: &str) -> Self {
        let mut users = Self::default();
        users.uids.insert(0);
        users.uids.insert(rustix::process::geteuid().as_raw());
        for entry in entries {
            let found = match Named::parse(entry) {
                Ok(Named::Everybody) => {
                    users.everybody = true;
                    Ok(())
                }
                Ok(Named::Uid(uid)) => {
                    users.uids.insert(uid);
                    Ok(())
                }
                Ok(Named::User(name)) => users.add_user(name),
                Ok(Named::Group(name)) => users.add_group(name),
                // `Config::check` has seen that there is none such.
                Err(reason) => Err(reason.to_owned()),
            };
            if let Err(reason) = found {
                tracing::error!(
                    "{setting} has {entry:?}, which lets nobody in: {reason}; correct it and reload"
                );
            }
        }
        users
    }

    fn add_user(&mut self, name: &str) -> Result<(), String> {
        match User::from_name(name) {
            Ok(Some(user)) => {
                self.uids.insert(user.uid.as_raw());
                Ok(())
            }
            Ok(None) => Err("there is no such user".to_owned()),
            Err(error) => Err(format!("the user cannot be looked up ({error})")),
        }
    }

    fn add_group(&mut self, name: &str) -> Result<(), String> {
        match Group::from_name(name) {
            Ok(Some(group)) => {
                // The list of a group leaves out those whose own group it is.
                self.uids.extend(users_with_group(group.gid.as_raw()));
                group
                    .mem
                    .iter()
                    .try_for_each(|member| self.add_user(member))
            }
            Ok(None) => Err("there is no such group".to_owned()),
            Err(error) => Err(format!("the group cannot be looked up ({error})")),
        }
    }

    /// Whether this user may connect.
    pub fn contains(&self, uid: u32) -> bool {
        self.everybody || self.uids.contains(&uid)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn root_and_the_nodes_user_are_always_let_in_and_others_by_name() {
        let nobody = User::from_name("nobody").unwrap().unwrap().uid.as_raw();
        let users = LocalUsers::look_up(&[], "x");
        assert!(users.contains(0));
        assert!(users.contains(rustix::process::geteuid().as_raw()));
        assert!(!users.contains(nobody));
        let more = [
            "nobody".to_owned(),
            "4242".to_owned(),
            "no-such-user".to_owned(),
        ];
        let users = LocalUsers::look_up(&more, "x");
        assert!(users.contains(nobody) && users.contains(4242));
        assert!(!users.contains(4243));
        assert!(LocalUsers::look_up(&["*".to_owned()], "x").contains(4243));
    }

    /// The list of its group's members has not this user.
    #[test]
    fn users_whose_own_group_it_is_are_among_its_members() {
        let nobody = User::from_name("nobody").unwrap().unwrap();
        let group = Group::from_gid(nobody.gid).unwrap().unwrap();
        assert!(!group.mem.contains(&nobody.name), "{group:?}");
        let users = LocalUsers::look_up(&[format!("@{}", group.name)], "x");
        assert!(users.contains(nobody.uid.as_raw()));
        assert!(!users.contains(4243));
        let users = LocalUsers::look_up(&["@root".to_owned()], "x");
        assert!(!users.contains(nobody.uid.as_raw()));
    }

    #[test]
    fn what_is_no_name_is_refused() {
        for good in ["*", "0", "1000", "libvirt-qemu", "@kvm", "a.b"] {
            check(good).unwrap();
        }
        for bad in ["", "@", "1000x", "4294967296", "a b", "a:b", "@a b"] {
            check(bad).unwrap_err();
        }
    }
}
