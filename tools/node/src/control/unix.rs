// SPDX-License-Identifier: GPL-2.0 OR MIT
//! The control API's Unix socket: its place in the file system, and who may use it.

use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd};
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _, PermissionsExt as _};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::libc;
use rustix::fs::{flock, FlockOperation};
use rustix::io::Errno;
use rustix::net::{
    bind, connect, listen, socket_with, AddressFamily, SocketAddrUnix, SocketFlags, SocketType,
};
use tokio::net::UnixStream;

use crate::config::MAX_SOCKET_PATH as MAX_PATH;
use crate::listen::BACKLOG;

/// A socket that listens at a path, which is removed at the end.
#[derive(Debug)]
pub(super) struct UnixSocket {
    path: PathBuf,
    /// Which file it is: another one at the path is not removed.
    file: (u64, u64),
    /// The group of the file.
    gid: u32,
    /// Its permissions.
    mode: u32,
}

/// Who is at the other end of a connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Caller {
    /// User.
    pub(super) uid: u32,
    /// Group, and the others that the process is in.
    gids: Vec<u32>,
    /// Process; 0 for one that the node's PID namespace does not have.
    pub(super) pid: i32,
}

fn other(text: String) -> io::Error {
    io::Error::other(text)
}

fn socket() -> io::Result<std::os::fd::OwnedFd> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    Ok(socket_with(
        AddressFamily::UNIX,
        SocketType::STREAM,
        flags,
        None,
    )?)
}

/// Makes way for a socket at `path`: one to which nobody listens is left over from a node that died.
/// Nothing else is removed.
fn make_way(path: &Path, address: &SocketAddrUnix) -> io::Result<()> {
    let metadata = match fs::symlink_metadata(path) {
        Ok(metadata) => metadata,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
    };
    if !metadata.file_type().is_socket() {
        return Err(other(
            "there is a file there that is no socket, and the node does not remove it: move it \
             away, or change control.listen"
                .to_owned(),
        ));
    }
    match connect(socket()?, address) {
        Err(Errno::CONNREFUSED) => fs::remove_file(path),
        // Its queue may be full, but somebody has it.
        Ok(()) | Err(Errno::AGAIN) => Err(other(
            "another neonsan-node listens there: stop that, or give this one a control.listen of \
             its own"
                .to_owned(),
        )),
        Err(error) => Err(other(format!(
            "there is a socket there, and whether somebody listens to it cannot be seen ({error}): \
             see what it is and remove it, or change control.listen"
        ))),
    }
}

/// How long another node is waited for that is at the same directory.
const TURN_PATIENCE: Duration = Duration::from_secs(5);

/// One node at a time makes way and listens in a directory: the socket of one that has bound it and does
/// not listen yet looks like a leftover, and so does that of one which has just made way for itself. The
/// directory is locked for that, which leaves nothing behind. Nobody can keep a node from starting by that:
/// where it cannot be locked, it is not.
fn take_turn(path: &Path) -> Option<File> {
    let directory = File::open(path.parent()?).ok()?;
    let end = Instant::now() + TURN_PATIENCE;
    loop {
        match flock(&directory, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => return Some(directory),
            Err(Errno::AGAIN | Errno::INTR) if Instant::now() < end => {
                std::thread::sleep(Duration::from_millis(10));
            }
            Err(_) => return None,
        }
    }
}

/// Makes the directory of the default socket. Under systemd the unit has made it.
fn make_directory(path: &Path) -> io::Result<()> {
    let Some(directory) = path.parent().filter(|directory| !directory.exists()) else {
        return Ok(());
    };
    let hint =
        "let systemd start the node, which makes it, make it for the node's user, or change \
                control.listen";
    if path != Path::new(neonsan_api::DEFAULT_CONTROL_SOCKET) {
        let text = format!("there is no directory {}: {hint}", directory.display());
        return Err(other(text));
    }
    fs::create_dir(directory)
        .or_else(|error| match error.kind() {
            io::ErrorKind::AlreadyExists => Ok(()),
            _ => Err(error),
        })
        .map_err(|error| {
            let directory = directory.display();
            other(format!(
                "cannot make the directory {directory} ({error}): {hint}"
            ))
        })
}

impl UnixSocket {
    /// Listens at `path`; nobody can connect before the socket has its permissions.
    ///
    /// # Errors
    ///
    /// With what to do, where there is something at the path, or no directory.
    pub(super) fn listen(path: &Path, mode: u32) -> io::Result<(UnixListener, Self)> {
        make_directory(path)?;
        let len = path.as_os_str().len();
        if len > MAX_PATH {
            return Err(other(format!(
                "the path has {len} bytes, and that of a socket at most {MAX_PATH}: give \
                 control.listen a shorter one, such as {}",
                neonsan_api::DEFAULT_CONTROL_SOCKET
            )));
        }
        let address = SocketAddrUnix::new(path)?;
        let _turn = take_turn(path);
        make_way(path, &address)?;
        let socket = socket()?;
        bind(&socket, &address).map_err(|error| match error {
            Errno::ACCESS | Errno::PERM => other(format!(
                "{error}: the node's user must be able to write in its directory: make that the \
                 user's, let systemd start the node, or change control.listen"
            )),
            _ => error.into(),
        })?;
        fs::set_permissions(path, fs::Permissions::from_mode(mode))?;
        listen(&socket, BACKLOG)?;
        let metadata = fs::symlink_metadata(path)?;
        let socket_file = Self {
            path: path.to_owned(),
            file: (metadata.dev(), metadata.ino()),
            gid: metadata.gid(),
            mode,
        };
        Ok((socket.into(), socket_file))
    }

    /// Whether a caller may use the control API: root, the node's user, and whom the permissions of
    /// the configuration let in. The file has the same permissions; this holds also if somebody has
    /// given it others.
    pub(super) fn allows(&self, caller: &Caller) -> bool {
        let others = self.mode & 0o002 != 0;
        let group = self.mode & 0o020 != 0;
        let own = rustix::process::geteuid().as_raw();
        others || caller.uid == 0 || caller.uid == own || (group && caller.gids.contains(&self.gid))
    }
}

impl Drop for UnixSocket {
    fn drop(&mut self) {
        let is_ours = fs::symlink_metadata(&self.path)
            .is_ok_and(|metadata| (metadata.dev(), metadata.ino()) == self.file);
        // If it cannot be removed, the next node finds that nobody listens to it.
        if is_ours {
            let _ = fs::remove_file(&self.path);
        }
    }
}

impl Caller {
    /// Who connected to a Unix socket: as of the moment when they did.
    pub(super) fn of(socket: &UnixStream) -> io::Result<Self> {
        let credentials = socket.peer_cred()?;
        let mut gids = groups_of(socket.as_fd())?;
        gids.push(credentials.gid());
        Ok(Self {
            uid: credentials.uid(),
            gids,
            pid: credentials.pid().unwrap_or(0),
        })
    }
}

/// The supplementary groups of the peer of a Unix socket (`SO_PEERGROUPS`), for which no library has a
/// safe call.
fn groups_of(socket: BorrowedFd<'_>) -> io::Result<Vec<u32>> {
    let mut groups: Vec<libc::gid_t> = vec![0; 64];
    loop {
        let mut len = libc::socklen_t::try_from(groups.len() * size_of::<libc::gid_t>())
            .map_err(|_| io::ErrorKind::InvalidData)?;
        // SAFETY: the descriptor is open while it is borrowed, `groups` is writable for `len` bytes,
        // and both are not used otherwise during the call.
        let result = unsafe {
            libc::getsockopt(
                socket.as_raw_fd(),
                libc::SOL_SOCKET,
                libc::SO_PEERGROUPS,
                groups.as_mut_ptr().cast(),
                &mut len,
            )
        };
        let needed = len as usize / size_of::<libc::gid_t>();
        if result == 0 {
            groups.truncate(needed);
            return Ok(groups);
        }
        let error = io::Error::last_os_error();
        // More than there is room for: it says how many.
        if error.raw_os_error() != Some(libc::ERANGE) || needed <= groups.len() {
            return Err(error);
        }
        groups.resize(needed, 0);
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    fn directory() -> tempfile::TempDir {
        tempfile::tempdir().unwrap()
    }

    #[test]
    fn nothing_but_a_socket_that_nobody_listens_to_is_removed() {
        let dir = directory();
        let path = dir.path().join("control.sock");
        fs::write(&path, "precious").unwrap();
        let error = UnixSocket::listen(&path, 0o660).unwrap_err().to_string();
        assert!(
            error.contains("no socket") && error.contains("control.listen"),
            "{error}"
        );
        assert_eq!(fs::read_to_string(&path).unwrap(), "precious");

        // Nor what a link leads to, nor the link.
        let link = dir.path().join("link");
        std::os::unix::fs::symlink(&path, &link).unwrap();
        UnixSocket::listen(&link, 0o660).unwrap_err();
        assert!(link.is_symlink() && path.exists());

        // A socket of another kind is somebody's.
        let datagram = dir.path().join("datagram");
        let _held = std::os::unix::net::UnixDatagram::bind(&datagram).unwrap();
        UnixSocket::listen(&datagram, 0o660).unwrap_err();
        assert!(datagram.exists());

        fs::remove_file(&path).unwrap();
        drop(UnixListener::bind(&path).unwrap());
        let (_listener, socket) = UnixSocket::listen(&path, 0o640).unwrap();
        let metadata = fs::symlink_metadata(&path).unwrap();
        assert_eq!(metadata.permissions().mode() & 0o777, 0o640);
        let error = UnixSocket::listen(&path, 0o660).unwrap_err().to_string();
        assert!(error.contains("another neonsan-node"), "{error}");
        drop(socket);
        assert!(!path.exists());
    }

    #[test]
    fn of_two_nodes_that_start_at_once_one_has_the_socket() {
        let dir = directory();
        let path = dir.path().join("control.sock");
        for round in 0..300 {
            // Left over from a node that died.
            drop(UnixListener::bind(&path).unwrap());
            let start = std::sync::Barrier::new(2);
            let node = || {
                start.wait();
                UnixSocket::listen(&path, 0o660)
            };
            let (a, b) = std::thread::scope(|scope| {
                let a = scope.spawn(node);
                let b = scope.spawn(node);
                (a.join().unwrap(), b.join().unwrap())
            });
            assert!(a.is_ok() != b.is_ok(), "round {round}: {a:?}, {b:?}");
            std::os::unix::net::UnixStream::connect(&path).unwrap();
        }
    }

    #[test]
    fn the_socket_of_another_node_stays() {
        let dir = directory();
        let path = dir.path().join("control.sock");
        let (_listener, socket) = UnixSocket::listen(&path, 0o660).unwrap();
        fs::remove_file(&path).unwrap();
        let _other = UnixListener::bind(&path).unwrap();
        drop(socket);
        assert!(path.exists());
    }

    #[test]
    fn a_missing_directory_is_named() {
        let dir = directory();
        let path = dir.path().join("nowhere/control.sock");
        let error = UnixSocket::listen(&path, 0o660).unwrap_err().to_string();
        assert!(
            error.contains("nowhere") && error.contains("control.listen"),
            "{error}"
        );
    }

    #[test]
    fn a_path_that_is_too_long_is_said_to_be() {
        let dir = directory();
        let len = dir.path().as_os_str().len() + 1;
        let longest = dir.path().join("s".repeat(MAX_PATH - len));
        UnixSocket::listen(&longest, 0o660).unwrap();
        let longer = dir.path().join("s".repeat(MAX_PATH + 1 - len));
        let error = UnixSocket::listen(&longer, 0o660).unwrap_err().to_string();
        assert!(
            error.contains("108 bytes") && error.contains("control.listen"),
            "{error}"
        );
    }

    #[test]
    fn callers_are_let_in_by_user_and_group() {
        let socket = |mode| UnixSocket {
            path: PathBuf::new(),
            file: (0, 0),
            gid: 4711,
            mode,
        };
        let caller = |uid, gids: &[u32]| Caller {
            uid,
            gids: gids.to_vec(),
            pid: 1,
        };
        let group = socket(0o660);
        assert!(group.allows(&caller(0, &[0])));
        assert!(group.allows(&caller(65534, &[7, 4711])));
        assert!(!group.allows(&caller(65534, &[7])));
        assert!(!socket(0o600).allows(&caller(65534, &[4711])));
        assert!(socket(0o666).allows(&caller(65534, &[])));
        assert!(socket(0o600).allows(&caller(rustix::process::geteuid().as_raw(), &[])));
    }

    #[tokio::test]
    async fn the_caller_is_who_connected() {
        let (ours, _theirs) = UnixStream::pair().unwrap();
        let caller = Caller::of(&ours).unwrap();
        assert_eq!(caller.uid, rustix::process::geteuid().as_raw());
        assert!(caller.gids.contains(&rustix::process::getegid().as_raw()));
        assert_eq!(caller.pid, i32::try_from(std::process::id()).unwrap());
    }
}
