//! The thin shell around the picture: two sockets and a task.
//!
//! One socket hears of changes, the other reads whole tables. The first is opened before the
//! second reads, so whatever changes during a reading is heard after it: the messages are
//! applied on top, and at the end of the queue the picture is right. When messages were lost,
//! the rest of the queue is thrown away *before* the tables are read anew, because an old
//! message on top of a new reading would stay wrong for good.
//!
//! Events go through a bounded channel. A listener that lags stops this task, the socket
//! overflows, and the listener gets one difference instead of a growing backlog.

use std::io;
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard};
use std::time::Duration;

use netlink_sys::{AsyncSocket, AsyncSocketExt, Socket, SocketAddr, TokioSocket};
use nix::sys::socket::{setsockopt, sockopt};
use tokio::sync::mpsc;
use tokio::task::{JoinError, JoinHandle, spawn_blocking};

use super::dialogue::{Dialogue, Family, NetlinkError};
use super::notice::{self, Table};
use super::picture::{NetworkEvent, NetworkState};
use super::wire::{self, Request};

/// What is listened to.
const GROUPS: [libc::c_uint; 7] = [
    libc::RTNLGRP_LINK,
    libc::RTNLGRP_IPV4_IFADDR,
    libc::RTNLGRP_IPV6_IFADDR,
    libc::RTNLGRP_IPV4_ROUTE,
    libc::RTNLGRP_IPV6_ROUTE,
    libc::RTNLGRP_NEIGH,
    libc::RTNLGRP_NEXTHOP,
];

/// Bytes asked for as receive buffer: some thousand messages, as when a link of many routes
/// goes down.
const RECEIVE_BUFFER: usize = 4 << 20;

/// Datagrams applied in one go before the events go out.
const DATAGRAMS_AT_ONCE: usize = 256;

/// The pause before the next attempt when the kernel could not be read at all.
const PAUSE_AFTER_FAILURE: Duration = Duration::from_secs(1);

/// Keeps a live picture of the network of the namespace in which it was started.
#[derive(Debug)]
pub struct Follower {
    state: Arc<RwLock<NetworkState>>,
    task: JoinHandle<()>,
}

impl Follower {
    /// Reads the network and begins to follow it. The first reading makes no events: it is what
    /// [`Self::state`] shows. `capacity` is how many events may wait for the listener.
    pub async fn start(
        capacity: usize,
    ) -> Result<(Self, mpsc::Receiver<NetworkEvent>), NetlinkError> {
        let (ears, mut dialogue) = open()?;
        let first = read(&mut dialogue, &Table::ALL)?;
        let state = Arc::new(RwLock::new(first));
        let (events, listener) = mpsc::channel(capacity);
        let shell = Shell { ears, dialogue: Some(dialogue), state: Arc::clone(&state), events };
        Ok((Self { state, task: tokio::spawn(shell.run()) }, listener))
    }

    /// The network as of now; events about it may still wait in the channel.
    pub fn state(&self) -> RwLockReadGuard<'_, NetworkState> {
        // The picture is whole after every message, also after one that panicked its task.
        self.state.read().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Follower {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// What came out of the listening socket.
enum Heard {
    Messages(Vec<Vec<u8>>),
    /// Messages were lost: the queue was full.
    Lost,
}

struct Shell {
    ears: TokioSocket,
    /// Absent after it failed, until it is opened anew.
    dialogue: Option<Dialogue>,
    state: Arc<RwLock<NetworkState>>,
    events: mpsc::Sender<NetworkEvent>,
}

impl Shell {
    async fn run(mut self) {
        loop {
            let heard = tokio::select! {
                () = self.events.closed() => return,
                heard = hear(&self.ears) => heard,
            };
            let listened = match heard {
                Ok(Heard::Messages(datagrams)) => self.apply(&datagrams).await,
                Ok(Heard::Lost) => {
                    tracing::info!("network messages lost, reading everything anew");
                    self.resync(false).await
                }
                Err(error) => {
                    tracing::warn!(%error, "network socket failed, opening it anew");
                    self.resync(true).await
                }
            };
            if listened.is_err() {
                return;
            }
        }
    }

    async fn apply(&mut self, datagrams: &[Vec<u8>]) -> Result<(), Deaf> {
        let mut events = Vec::new();
        let mut routes_in_doubt = false;
        self.change(|state| {
            let messages = datagrams.iter().flat_map(|bytes| wire::messages(bytes));
            for notice in messages.filter_map(|message| notice::decode(&message)) {
                let applied = state.apply(notice);
                events.extend(applied.events);
                routes_in_doubt |= applied.routes_in_doubt;
            }
        });
        self.tell(events).await?;
        if !routes_in_doubt {
            return Ok(());
        }
        match self.read_elsewhere(&[Table::Routes]).await {
            Ok(routes) => {
                let events = self.change(|state| state.become_routes(routes));
                self.tell(events).await
            }
            Err(error) => {
                tracing::warn!(%error, "routes cannot be read, reading everything anew");
                self.resync(true).await
            }
        }
    }

    /// Reads everything anew, until it succeeds.
    async fn resync(&mut self, mut reopen: bool) -> Result<(), Deaf> {
        loop {
            match self.try_resync(reopen).await {
                Ok(state) => {
                    let mut events = self.change(|now| now.become_state(state));
                    // Of these there is no picture to compare.
                    events.push(NetworkEvent::NexthopsChanged);
                    events.push(NetworkEvent::Resynced);
                    return self.tell(events).await;
                }
                Err(error) => {
                    tracing::warn!(%error, "network cannot be read, trying again");
                    tokio::time::sleep(PAUSE_AFTER_FAILURE).await;
                    reopen = true;
                }
            }
        }
    }

    async fn try_resync(&mut self, reopen: bool) -> Result<NetworkState, NetlinkError> {
        if reopen {
            let (ears, dialogue) = open()?;
            self.ears = ears;
            self.dialogue = Some(dialogue);
        } else {
            discard(self.ears.socket_ref());
        }
        self.read_elsewhere(&Table::ALL).await
    }

    /// Reads tables on a thread that may block: a large table takes many milliseconds.
    async fn read_elsewhere(
        &mut self,
        tables: &'static [Table],
    ) -> Result<NetworkState, NetlinkError> {
        let mut dialogue = match self.dialogue.take() {
            Some(dialogue) => dialogue,
            None => Dialogue::open(Family::Route)?,
        };
        let reading = spawn_blocking(move || {
            let state = barrier(&mut dialogue).and_then(|()| read(&mut dialogue, tables));
            (dialogue, state)
        });
        let (dialogue, state) = reading.await.map_err(broken_off)?;
        // After an error the rest of an answer may still be on its way: not kept.
        self.dialogue = state.is_ok().then_some(dialogue);
        state
    }

    fn change<T>(&self, change: impl FnOnce(&mut NetworkState) -> T) -> T {
        change(&mut self.state.write().unwrap_or_else(PoisonError::into_inner))
    }

    async fn tell(&self, events: Vec<NetworkEvent>) -> Result<(), Deaf> {
        for event in events {
            self.events.send(event).await.map_err(|_| Deaf)?;
        }
        Ok(())
    }
}

/// Nobody listens any more.
struct Deaf;

fn broken_off(error: JoinError) -> NetlinkError {
    let source = io::Error::other(error);
    NetlinkError::Receive { what: "read the network", source }
}

/// Opens the listening socket first, so that the other one reads nothing that it misses.
fn open() -> Result<(TokioSocket, Dialogue), NetlinkError> {
    let listen = || {
        let mut ears = TokioSocket::new(libc::NETLINK_ROUTE as isize)?;
        let socket = ears.socket_mut();
        // Beyond the system's limit only with the right to; losses are made up for anyway.
        if setsockopt(socket, sockopt::RcvBufForce, &RECEIVE_BUFFER).is_err() {
            setsockopt(socket, sockopt::RcvBuf, &RECEIVE_BUFFER)?;
        }
        socket.bind(&SocketAddr::new(0, 0))?;
        for group in GROUPS {
            socket.add_membership(group)?;
        }
        Ok(ears)
    };
    let ears = listen().map_err(|source| NetlinkError::Open { family: Family::Route, source })?;
    Ok((ears, Dialogue::open(Family::Route)?))
}

/// Waits until the kernel has finished the change of which a message just came: it tells first
/// that a link is down and takes the routes away afterwards, in the same section of its lock.
/// A single link is read under that lock, a dump of routes need not be.
fn barrier(dialogue: &mut Dialogue) -> Result<(), NetlinkError> {
    let mut loopback = [0; 16];
    loopback[4..8].copy_from_slice(&1i32.to_ne_bytes());
    let request = Request::new(libc::RTM_GETLINK, libc::NLM_F_ACK).fixed(&loopback);
    dialogue.perform("read the loopback link", request)
}

fn read(dialogue: &mut Dialogue, tables: &[Table]) -> Result<NetworkState, NetlinkError> {
    let mut state = NetworkState::default();
    for table in tables {
        let notices =
            dialogue.dump(table.purpose(), &table.request(), |notices: &mut Vec<_>, message| {
                notices.extend(notice::decode(message))
            })?;
        for notice in notices {
            state.gather(notice);
        }
    }
    Ok(state)
}

async fn hear(ears: &TokioSocket) -> io::Result<Heard> {
    let mut datagrams = Vec::new();
    let mut received = ears.recv_from_full().await;
    loop {
        match received {
            // Whoever may send to this socket, only the kernel is believed.
            Ok((bytes, sender)) if sender.port_number() == 0 => datagrams.push(bytes),
            Ok(_) => {}
            Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => return Ok(Heard::Lost),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
            Err(error) => return Err(error),
        }
        if datagrams.len() >= DATAGRAMS_AT_ONCE {
            break;
        }
        received = ears.socket_ref().recv_from_full();
    }
    Ok(Heard::Messages(datagrams))
}

/// Empties the queue, past errors about further losses.
fn discard(socket: &Socket) {
    loop {
        match socket.recv_from_full() {
            Ok(_) => {}
            Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => {}
            Err(_) => return,
        }
    }
}

#[cfg(test)]
#[expect(clippy::wildcard_enum_match_arm, reason = "a test waits for one kind of event")]
#[path = "follow_tests.rs"]
mod tests;
