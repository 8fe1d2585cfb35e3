// SPDX-License-Identifier: GPL-2.0 OR MIT

//! The user-space end of the generic netlink family.

mod attrs;
mod socket;

pub use attrs::{Attrs, AttrsMut};
pub use socket::{Client, Event};
