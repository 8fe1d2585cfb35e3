// SPDX-License-Identifier: GPL-2.0

//! Requests from user space: one answered at a time, or a dump of all objects.

use super::attr::Attributes;
use super::message::{write_message, GenlMsg, NetlinkSkBuff};
use crate::net::Net;
use core::fmt::{self, Write as _};
use core::marker::PhantomData;
use core::ptr::NonNull;
use kernel::error::to_result;
use kernel::prelude::*;
use neonsan_bindings as bindings;

/// Answers one request.
pub trait Doit {
    /// Does what is asked; sends a reply if the operation has one. May sleep, and runs beside
    /// other operations. On `Ok` the core acknowledges the request.
    fn doit(request: &Request<'_>) -> Result<(), Refusal>;
}

/// Lists all objects.
pub trait Dumpit {
    /// Writes as many messages as there is room for and keeps its position in `dump`; called
    /// again until it writes none. May sleep, and runs beside other operations.
    fn dumpit(dump: &mut Dump<'_>) -> Result;
}

/// How many bytes of text a [`Refusal`] keeps. The core's own buffer would cut at 80, too little
/// for a node that says who holds a volume.
const REFUSAL_TEXT_BYTES: usize = 384;

/// Why a request is refused: a number for programs and a text for people, which becomes the
/// extended-ack message.
pub struct Refusal {
    error: Error,
    /// `None` if there was no memory for it; the number says what matters then.
    text: Option<KBox<Text>>,
}

impl Refusal {
    /// A refusal. The text says what is wrong and what to do; it is cut after 383 bytes.
    pub fn new(error: Error, text: fmt::Arguments<'_>) -> Self {
        let empty = Text {
            bytes: [0; REFUSAL_TEXT_BYTES],
            len: 0,
        };
        let mut buffer = KBox::new(empty, GFP_KERNEL).ok();
        if let Some(buffer) = &mut buffer {
            // Never fails: what does not fit is left out.
            let _ = buffer.write_fmt(text);
        }
        Refusal {
            error,
            text: buffer,
        }
    }

    /// The number for programs.
    pub fn error(&self) -> Error {
        self.error
    }
}

impl From<Error> for Refusal {
    /// For faults that need no explanation, such as no memory.
    fn from(error: Error) -> Self {
        if error == ENOMEM {
            Refusal::new(
                error,
                format_args!("the kernel has no memory left for this: try again"),
            )
        } else {
            Refusal::new(
                error,
                format_args!("the kernel answers with error {}", error.to_errno()),
            )
        }
    }
}

/// A text with a zero byte behind it.
///
/// # Invariants
///
/// `len < REFUSAL_TEXT_BYTES`, `bytes[..len]` is UTF-8 without zero bytes, all behind is zero.
struct Text {
    bytes: [u8; REFUSAL_TEXT_BYTES],
    len: usize,
}

impl fmt::Write for Text {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for part in text.split('\0') {
            // One byte is kept for the zero at the end.
            let room = REFUSAL_TEXT_BYTES - 1 - self.len;
            let mut len = part.len().min(room);
            while !part.is_char_boundary(len) {
                len -= 1;
            }
            let place = self.bytes.get_mut(self.len..self.len + len);
            if let (Some(place), Some(part)) = (place, part.as_bytes().get(..len)) {
                // INVARIANT: Whole characters without zero bytes, and `len` stays below the size.
                place.copy_from_slice(part);
                self.len += len;
            }
        }
        Ok(())
    }
}

/// One request, while its operation runs.
///
/// # Invariants
///
/// `skb` and `info` are those that the core gave the operation, valid while this lives.
pub struct Request<'a> {
    skb: NonNull<bindings::sk_buff>,
    info: NonNull<bindings::genl_info>,
    attributes: Attributes<'a>,
    _info: PhantomData<&'a bindings::genl_info>,
}

impl<'a> Request<'a> {
    /// # Safety
    ///
    /// Both must be what the core passes to a do operation, valid for `'a`.
    unsafe fn from_raw(
        skb: NonNull<bindings::sk_buff>,
        info: NonNull<bindings::genl_info>,
    ) -> Self {
        // SAFETY: By the requirements, `info` and the headers that it points to are valid.
        let (header, len) = unsafe {
            let header = (*info.as_ptr()).nlhdr;
            (header, (*header).nlmsg_len as usize)
        };
        let overhead = size_of::<bindings::nlmsghdr>() + size_of::<bindings::genlmsghdr>();
        let attributes = match len.checked_sub(overhead) {
            // SAFETY: The core has checked that the message lies within the buffer for its length;
            // the family has no header of its own, so attributes follow the generic one. Both
            // headers' sizes are multiples of netlink's alignment.
            Some(bytes) => unsafe {
                core::slice::from_raw_parts(header.cast::<u8>().add(overhead), bytes)
            },
            None => &[],
        };
        // INVARIANT: By the requirements.
        Request {
            skb,
            info,
            attributes: Attributes::new(attributes),
            _info: PhantomData,
        }
    }

    /// What came with the request.
    pub fn attributes(&self) -> Attributes<'a> {
        self.attributes
    }

    /// The network namespace of the socket that the request came through, whatever the caller's own is
    /// by now.
    pub fn net(&self) -> Net {
        // SAFETY: By the invariant; the socket, which waits for this request, keeps its namespace.
        unsafe {
            let net = bindings::genl_info_net(self.info.as_ptr());
            // Never null.
            Net::from_raw(NonNull::new_unchecked(net))
        }
    }

    /// Whether both the sender and who opened the socket have CAP_SYS_ADMIN in the initial user
    /// namespace.
    pub fn is_admin(&self) -> bool {
        // SAFETY: By the invariant it is a buffer that a user's socket sent.
        unsafe { bindings::netlink_capable(self.skb.as_ptr(), bindings::CAP_SYS_ADMIN as c_int) }
    }

    /// Sends a reply. `build` may be called several times, each time with more room.
    ///
    /// # Errors
    ///
    /// `EMSGSIZE` if 64 KiB are not enough, `ENOMEM`, and what `build` returns.
    pub fn reply(&self, cmd: u8, build: impl Fn(&mut GenlMsg<'_>) -> Result) -> Result {
        // SAFETY: By the invariant.
        let (portid, seq, family) = unsafe {
            let info = self.info.as_ref();
            (info.snd_portid, info.snd_seq, info.family)
        };
        for bytes in [4 << 10, 16 << 10, 64 << 10] {
            let mut skb = NetlinkSkBuff::new(bytes, bindings::GFP_KERNEL)?;
            match skb.write(portid, seq, family, 0, cmd, &build) {
                Ok(()) => {
                    // SAFETY: By the invariant, and the buffer is given away.
                    let sent =
                        unsafe { bindings::genlmsg_reply(skb.into_raw(), self.info.as_ptr()) };
                    return to_result(sent);
                }
                Err(error) if error == EMSGSIZE => {}
                Err(error) => return Err(error),
            }
        }
        Err(EMSGSIZE)
    }

    /// Makes room for a reply of up to `bytes`, to be sent when what it reports has been done and must
    /// not fail any more for want of memory.
    ///
    /// # Errors
    ///
    /// `ENOMEM`.
    pub fn prepare_reply(&self, bytes: usize) -> Result<Reply<'_, 'a>> {
        Ok(Reply {
            request: self,
            skb: NetlinkSkBuff::new(bytes, bindings::GFP_KERNEL)?,
        })
    }

    /// Acknowledges the request with an error and its text, in place of the core.
    ///
    /// The core's own acknowledgement carries a text of at most 80 bytes that was made for the occasion
    /// (`NL_SET_ERR_MSG_FMT`), or one that outlives the operation. What went wrong here is often a
    /// node's sentence with names and addresses in it, which neither holds.
    fn refuse(&self, refusal: &Refusal) {
        let mut extack: bindings::netlink_ext_ack = pin_init::zeroed();
        if let Some(text) = &refusal.text {
            extack._msg = text.bytes.as_ptr().cast();
        }
        // SAFETY: By the invariant the buffer and the header are those of the request. The extended
        // ack and its text (which ends with a zero byte by its invariant) live through the call,
        // which copies them.
        unsafe {
            let header = self.info.as_ref().nlhdr.cast_mut();
            bindings::netlink_ack(self.skb.as_ptr(), header, refusal.error.to_errno(), &extack);
        }
    }
}

/// Room for a reply, see [`Request::prepare_reply`].
pub struct Reply<'r, 'a> {
    request: &'r Request<'a>,
    skb: NetlinkSkBuff,
}

impl Reply<'_, '_> {
    /// Sends the reply.
    ///
    /// # Errors
    ///
    /// `EMSGSIZE` if there is no room for it, and where the caller's socket is gone or full.
    pub fn send(self, cmd: u8, build: impl FnOnce(&mut GenlMsg<'_>) -> Result) -> Result {
        let Reply { request, mut skb } = self;
        // SAFETY: By the invariant of the request.
        let (portid, seq, family) = unsafe {
            let info = request.info.as_ref();
            (info.snd_portid, info.snd_seq, info.family)
        };
        skb.write(portid, seq, family, 0, cmd, build)?;
        // SAFETY: By the invariant, and the buffer is given away.
        to_result(unsafe { bindings::genlmsg_reply(skb.into_raw(), request.info.as_ptr()) })
    }
}

/// # Safety
///
/// For the core alone, as `doit` of a [`super::SplitOps`].
pub(super) unsafe extern "C" fn doit_callback<T: Doit>(
    skb: *mut bindings::sk_buff,
    info: *mut bindings::genl_info,
) -> c_int {
    let (Some(skb), Some(info)) = (NonNull::new(skb), NonNull::new(info)) else {
        return EINVAL.to_errno();
    };
    // SAFETY: The core passes what belongs to this request, valid until this returns.
    let request = unsafe { Request::from_raw(skb, info) };
    match T::doit(&request) {
        Ok(()) => 0,
        Err(refusal) => {
            request.refuse(&refusal);
            // Tells the core that the acknowledgement was sent: its own could carry only a text
            // that outlives this function or has at most 80 bytes.
            EINTR.to_errno()
        }
    }
}

/// A dump in progress: one buffer of it.
///
/// # Invariants
///
/// `skb` and `callback` are those that the core gave the operation, valid while this lives.
pub struct Dump<'a> {
    skb: NonNull<bindings::sk_buff>,
    callback: NonNull<bindings::netlink_callback>,
    _callback: PhantomData<&'a mut bindings::netlink_callback>,
}

impl Dump<'_> {
    /// Where the dump goes on; 0 at first.
    pub fn position(&self) -> usize {
        // SAFETY: By the invariant; the words are ours for the whole dump, and zero at first.
        unsafe { self.callback.as_ref().__bindgen_anon_1.args[0] as usize }
    }

    /// Keeps where the next call goes on.
    pub fn set_position(&mut self, position: usize) {
        // SAFETY: As above.
        unsafe { self.callback.as_mut().__bindgen_anon_1.args[0] = position as c_long };
    }

    /// Whether who asks has CAP_SYS_ADMIN, as [`Request::is_admin`].
    pub fn is_admin(&self) -> bool {
        // SAFETY: By the invariant; the core keeps the buffer of the request for the whole dump.
        unsafe {
            let skb = self.callback.as_ref().skb;
            bindings::netlink_capable(skb, bindings::CAP_SYS_ADMIN as c_int)
        }
    }

    /// Whether this buffer has no message yet.
    pub fn is_empty(&self) -> bool {
        // SAFETY: By the invariant.
        unsafe { bindings::skb_len(self.skb.as_ptr()) == 0 }
    }

    /// Writes one message. `Ok(false)` if this buffer has no room for it.
    pub fn put(&mut self, cmd: u8, build: impl FnOnce(&mut GenlMsg<'_>) -> Result) -> Result<bool> {
        // SAFETY: By the invariant, with the info that the core keeps for each dump; this borrows
        // the buffer exclusively.
        let written = unsafe {
            let info = &*bindings::genl_info_dump(self.callback.as_ptr());
            let multipart = bindings::NLM_F_MULTI;
            write_message(
                self.skb,
                info.snd_portid,
                info.snd_seq,
                info.family,
                multipart,
                cmd,
                build,
            )
        };
        match written {
            Ok(()) => Ok(true),
            Err(error) if error == EMSGSIZE => Ok(false),
            Err(error) => Err(error),
        }
    }
}

/// # Safety
///
/// For the core alone, as `dumpit` of a [`super::SplitOps`].
pub(super) unsafe extern "C" fn dumpit_callback<T: Dumpit>(
    skb: *mut bindings::sk_buff,
    callback: *mut bindings::netlink_callback,
) -> c_int {
    let (Some(skb), Some(callback)) = (NonNull::new(skb), NonNull::new(callback)) else {
        return EINVAL.to_errno();
    };
    // INVARIANT: The core passes what belongs to this dump, valid until this returns.
    let mut dump = Dump {
        skb,
        callback,
        _callback: PhantomData,
    };
    match T::dumpit(&mut dump) {
        // The core calls again for as long as something was written.
        // SAFETY: The buffer is valid.
        Ok(()) => unsafe { bindings::skb_len(skb.as_ptr()) as c_int },
        Err(error) => error.to_errno(),
    }
}
