//! The socket of the local API: for root and the group `sluice`.
//!
//! The file's mode keeps others out; that the kernel also tells who is at the other end is used as
//! a second lock, because a mode is easily changed by hand.

use std::fs::{self, DirBuilder, Permissions};
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, MetadataExt, PermissionsExt};
use std::os::unix::net::UnixStream as BlockingStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use axum::Router;
use axum::serve::Listener;
use nix::unistd::{Gid, Group, Uid, chown};
use tokio::net::unix::SocketAddr;
use tokio::net::{UnixListener, UnixStream};
use tracing::{debug, warn};

use crate::http::{Limits, Patience, Server, Tally};

/// Whoever is in it may ask.
const GROUP: &str = "sluice";

/// Far more than people and scripts need; apart from those of the metrics, so that neither takes the
/// other's.
const LIMITS: Limits = Limits { all: 128, peer: 32 };

/// Why there is no socket.
#[derive(Debug, thiserror::Error)]
pub enum SocketError {
    /// Another daemon has it.
    #[error("another sluice-gateway answers on {0}; stop it first")]
    Taken(PathBuf),
    /// Something that is no socket is in the way.
    #[error("{0} exists and is no socket; remove it, or name another `socket`")]
    NoSocket(PathBuf),
    /// The system refused.
    #[error("the socket {path} cannot be made: {source}")]
    Io {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

/// The file by which a socket is found.
#[derive(Clone, Debug)]
pub struct SocketFile {
    path: PathBuf,
    /// Its device and inode: somebody else's may come to have its name.
    made: (u64, u64),
}

impl SocketFile {
    fn of(path: &Path) -> io::Result<Self> {
        Ok(Self { path: path.to_owned(), made: identity(path)? })
    }

    /// Its path, if somebody has removed it or put another in its place: nobody finds the socket any
    /// more. What cannot be looked at is thought to be as it was.
    pub fn lost(&self) -> Option<&Path> {
        let is_lost = match identity(&self.path) {
            Ok(found) => found != self.made,
            Err(error) => error.kind() == io::ErrorKind::NotFound,
        };
        is_lost.then_some(&*self.path)
    }
}

fn identity(path: &Path) -> io::Result<(u64, u64)> {
    fs::symlink_metadata(path).map(|found| (found.dev(), found.ino()))
}

/// A listening socket; its file goes away with it.
#[derive(Debug)]
pub struct Socket {
    listener: UnixListener,
    file: SocketFile,
    group: Option<Gid>,
}

impl Socket {
    /// Makes the socket, in place of one that a dead daemon left.
    ///
    /// # Errors
    /// See [`SocketError`].
    pub fn open(path: &Path) -> Result<Self, SocketError> {
        let failed = |source| SocketError::Io { path: path.to_owned(), source };
        let group = Group::from_name(GROUP).ok().flatten().map(|group| group.gid);
        if let Some(directory) = path.parent().filter(|parent| !parent.exists()) {
            DirBuilder::new().recursive(true).mode(0o750).create(directory).map_err(failed)?;
            give(directory, group, 0o750).map_err(failed)?;
        }
        match fs::symlink_metadata(path) {
            Ok(found) if !found.file_type().is_socket() => {
                return Err(SocketError::NoSocket(path.to_owned()));
            }
            Ok(_) if BlockingStream::connect(path).is_ok() => {
                return Err(SocketError::Taken(path.to_owned()));
            }
            Ok(_) => fs::remove_file(path).map_err(failed)?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(failed(error)),
        }
        let listener = UnixListener::bind(path).map_err(failed)?;
        give(path, group, if group.is_some() { 0o660 } else { 0o600 }).map_err(failed)?;
        let file = SocketFile::of(path).map_err(failed)?;
        Ok(Self { listener, file, group })
    }

    /// The file by which it is found.
    pub fn file(&self) -> SocketFile {
        self.file.clone()
    }

    /// Answers until `end` comes.
    pub async fn serve(self, routes: Router, tally: Arc<Tally>, end: impl Future<Output = ()>) {
        let patience = Patience::default();
        let server = Server { routes, limits: LIMITS, patience, tally, refusal: CROWDED };
        // Who cannot be told is nobody's share but its own.
        let user =
            |stream: &UnixStream, _: &SocketAddr| stream.peer_cred().map_or(u32::MAX, |p| p.uid());
        server.serve(self, user, async |stream| Ok(stream), end).await;
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        // It may be gone already, or be somebody else's by now.
        if self.file.lost().is_none() {
            let _ = fs::remove_file(&self.file.path);
        }
    }
}

/// Sets owner group and mode. Without the right to give it away (a daemon in a test) it stays
/// with its maker.
fn give(path: &Path, group: Option<Gid>, mode: u32) -> io::Result<()> {
    if let Some(group) = group
        && let Err(error) = chown(path, None, Some(group))
    {
        debug!(path = %path.display(), %error, "not given to the group");
    }
    fs::set_permissions(path, Permissions::from_mode(mode))
}

impl Listener for Socket {
    type Io = UnixStream;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (UnixStream, SocketAddr) {
        loop {
            let (stream, address) = Listener::accept(&mut self.listener).await;
            match admitted(&stream, self.group) {
                Ok(true) => return (stream, address),
                Ok(false) => {
                    warn!("refused on the local socket: neither root nor in group {GROUP}");
                    // If it cannot be told, it sees a closed connection.
                    let _ = stream.try_write(FORBIDDEN);
                }
                Err(error) => debug!(%error, "a connection whose other end is unknown"),
            }
        }
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }
}

const FORBIDDEN: &[u8] = b"HTTP/1.1 403 Forbidden\r\ncontent-type: application/problem+json\r\n\
connection: close\r\n\r\n{\"title\":\"not for you\",\"status\":403,\"detail\":\"become root or a \
member of the group `sluice`\"}";

/// What a user with too many connections is told.
const CROWDED: &[u8] =
    b"HTTP/1.1 503 Service Unavailable\r\ncontent-type: application/problem+json\r\n\
connection: close\r\n\r\n{\"title\":\"too many connections\",\"status\":503,\"detail\":\"the local \
socket takes 32 connections of a user and 128 in all; end some\"}";

fn admitted(stream: &UnixStream, group: Option<Gid>) -> io::Result<bool> {
    let peer = stream.peer_cred()?;
    // SAFETY: the descriptor belongs to the stream, which lives longer than this borrow.
    let fd = unsafe { BorrowedFd::borrow_raw(stream.as_raw_fd()) };
    let mut groups = peer_groups(fd)?;
    groups.push(peer.gid());
    Ok(may_ask(peer.uid(), &groups, Uid::effective().as_raw(), group.map(Gid::as_raw)))
}

/// Whether a user with these groups may ask: root, whoever runs the daemon, the group.
fn may_ask(user: u32, groups: &[u32], own: u32, group: Option<u32>) -> bool {
    user == 0 || user == own || group.is_some_and(|group| groups.contains(&group))
}

/// The further groups of whoever is at the other end.
fn peer_groups(fd: BorrowedFd<'_>) -> io::Result<Vec<u32>> {
    let mut groups = vec![0u32; 64];
    loop {
        let mut length = (groups.len() * size_of::<u32>()) as libc::socklen_t;
        // SAFETY: the buffer is as long as it is said to be.
        let answer = unsafe {
            libc::getsockopt(
                fd.as_raw_fd(),
                libc::SOL_SOCKET,
                libc::SO_PEERGROUPS,
                groups.as_mut_ptr().cast(),
                &raw mut length,
            )
        };
        let error = io::Error::last_os_error();
        let needed = length as usize / size_of::<u32>();
        if answer == 0 {
            groups.truncate(needed);
            return Ok(groups);
        }
        if error.raw_os_error() != Some(libc::ERANGE) || needed <= groups.len() {
            return Err(error);
        }
        groups.resize(needed, 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn root_the_daemons_user_and_the_group_may_ask() {
        for (user, groups, group, expected) in [
            (0, vec![0], None, true),
            (1000, vec![1000], None, true), // runs the daemon
            (1001, vec![1001], None, false),
            (1001, vec![1001], Some(990), false),
            (1001, vec![1001, 990], Some(990), true),
            (1001, vec![0], Some(990), false), // root's group is not root
        ] {
            assert_eq!(may_ask(user, &groups, 1000, group), expected, "{user} {groups:?}");
        }
    }

    /// A directory that goes away with the test.
    struct Directory(PathBuf);

    impl Directory {
        fn new(name: &str) -> Self {
            let path = std::env::temp_dir().join(format!("sluice-{name}-{}", std::process::id()));
            let _ = fs::remove_dir_all(&path);
            fs::create_dir_all(&path).unwrap();
            Self(path)
        }
    }

    impl Drop for Directory {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    #[tokio::test]
    async fn a_socket_replaces_a_dead_one_and_no_live_one() {
        let directory = Directory::new("socket");
        let path = directory.0.join("deep/er/sluice.sock");
        let socket = Socket::open(&path).unwrap();
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        let expected = if socket.group.is_some() { 0o660 } else { 0o600 };
        assert_eq!(mode(&path), expected);
        assert_eq!(mode(path.parent().unwrap()), 0o750);
        let error = Socket::open(&path).unwrap_err();
        assert!(matches!(error, SocketError::Taken(_)), "{error}");
        drop(socket);
        assert!(!path.exists());
        // As a daemon that was killed leaves it.
        drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
        assert!(path.exists());
        Socket::open(&path).unwrap();
        fs::write(&path, "important").unwrap();
        let error = Socket::open(&path).unwrap_err();
        assert!(matches!(error, SocketError::NoSocket(_)), "{error}");
        assert_eq!(fs::read_to_string(&path).unwrap(), "important");
    }

    #[tokio::test]
    async fn a_socket_whose_file_is_gone_or_another_s_is_lost() {
        let directory = Directory::new("lost-socket");
        let path = directory.0.join("sluice.sock");
        let socket = Socket::open(&path).unwrap();
        let file = socket.file();
        assert_eq!(file.lost(), None);
        fs::rename(&path, directory.0.join("aside")).unwrap();
        assert_eq!(file.lost(), Some(&*path));
        fs::write(&path, "another's").unwrap();
        assert_eq!(file.lost(), Some(&*path));
        drop(socket);
        assert_eq!(fs::read_to_string(&path).unwrap(), "another's");
        fs::rename(directory.0.join("aside"), &path).unwrap();
        assert_eq!(file.lost(), None);
    }
}
