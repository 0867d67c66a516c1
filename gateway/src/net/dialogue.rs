//! Questions to the kernel and its answers, over one netlink socket.
//!
//! The kernel works on a request inside the `send` that brings it, and writes the next part of
//! a dump inside the `recv` that fetches the last one. So an answer is there or will never be:
//! the socket does not block, and silence is an error instead of a hang. For the same reason
//! these calls are plain functions: they take as long as a system call.

use std::io;

use netlink_sys::{Socket, SocketAddr};
use nix::sys::socket::{setsockopt, sockopt};

use super::wire::{self, HEADER, Message, Request};

/// How often a dump is begun again because the tables changed under it.
const DUMP_ATTEMPTS: usize = 16;

/// Bytes asked for as buffer each way: a batch goes out as one datagram, and all its refusals
/// wait to be read.
const BUFFER: usize = 1 << 20;

/// The attribute of an extended acknowledgement that holds the kernel's words.
const NLMSGERR_ATTR_MSG: u16 = 1;

/// Which part of the kernel is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    /// Links, addresses, routes, neighbours.
    Route,
    /// Packet filter tables.
    Netfilter,
    /// Sockets of this host.
    SocketDiagnosis,
    /// Families that are numbered at run time.
    Generic,
}

impl Family {
    fn protocol(self) -> isize {
        let number = match self {
            Self::Route => libc::NETLINK_ROUTE,
            Self::Netfilter => libc::NETLINK_NETFILTER,
            Self::SocketDiagnosis => libc::NETLINK_SOCK_DIAG,
            Self::Generic => libc::NETLINK_GENERIC,
        };
        number as isize
    }
}

/// Why the kernel was not asked or did not answer.
#[derive(Debug, thiserror::Error)]
pub enum NetlinkError {
    /// No socket.
    #[error("cannot open a netlink socket ({family:?})")]
    Open {
        /// Which part of the kernel was to be asked.
        family: Family,
        /// What the system said.
        source: io::Error,
    },
    /// The request did not leave.
    #[error("cannot send a netlink request to {what}")]
    Send {
        /// What the request was for.
        what: &'static str,
        /// What the system said.
        source: io::Error,
    },
    /// The answer did not arrive whole.
    #[error("cannot read the netlink answer to the request to {what}")]
    Receive {
        /// What the request was for.
        what: &'static str,
        /// What the system said.
        source: io::Error,
    },
    /// The kernel answered no.
    #[error("the kernel refused to {what}{}{words}", if words.is_empty() { "" } else { ": " })]
    Refused {
        /// What the request was for.
        what: &'static str,
        /// The kernel's own explanation, empty if it gave none.
        words: String,
        /// The error number.
        source: io::Error,
    },
    /// The tables changed under every attempt to read them.
    #[error("the tables changed under {DUMP_ATTEMPTS} attempts to {what}")]
    Restless {
        /// What the request was for.
        what: &'static str,
    },
}

impl NetlinkError {
    /// Whether the kernel refused with this error number.
    pub(super) fn is_refusal(&self, number: i32) -> bool {
        matches!(self, Self::Refused { source, .. } if source.raw_os_error() == Some(number))
    }
}

/// A socket to one part of the kernel, for requests.
#[derive(Debug)]
pub(super) struct Dialogue {
    socket: Socket,
    sequence: u32,
}

impl Dialogue {
    /// Opens a socket in the network namespace of this thread.
    pub(super) fn open(family: Family) -> Result<Self, NetlinkError> {
        let open = || {
            let mut socket = Socket::new(family.protocol())?;
            socket.bind_auto()?;
            socket.connect(&SocketAddr::new(0, 0))?;
            socket.set_non_blocking(true)?;
            socket.set_ext_ack(true)?;
            socket.set_cap_ack(true)?;
            setsockopt(&socket, sockopt::RcvBuf, &BUFFER)?;
            // Beyond the system's limit only with the right to.
            if setsockopt(&socket, sockopt::SndBufForce, &BUFFER).is_err() {
                setsockopt(&socket, sockopt::SndBuf, &BUFFER)?;
            }
            Ok(socket)
        };
        let socket = open().map_err(|source| NetlinkError::Open { family, source })?;
        Ok(Self { socket, sequence: 0 })
    }

    /// Sends a request that only wants to be done.
    pub(super) fn perform(
        &mut self,
        what: &'static str,
        request: Request,
    ) -> Result<(), NetlinkError> {
        self.exchange(what, request, |_| ()).map(|_| ())
    }

    /// Sends a request and hands on each message of the answer. The request has to ask for an
    /// acknowledgement (`NLM_F_ACK`), or nothing marks the end of the answer.
    pub(super) fn ask(
        &mut self,
        what: &'static str,
        request: Request,
        each: impl FnMut(&Message<'_>),
    ) -> Result<(), NetlinkError> {
        self.exchange(what, request, each).map(|_| ())
    }

    /// Reads a whole table into `T`, beginning again when it changed meanwhile: a dump that was
    /// interrupted may have skipped what did not change.
    pub(super) fn dump<T: Default>(
        &mut self,
        what: &'static str,
        request: &Request,
        mut each: impl FnMut(&mut T, &Message<'_>),
    ) -> Result<T, NetlinkError> {
        for _ in 0..DUMP_ATTEMPTS {
            let mut gathered = T::default();
            let whole =
                self.exchange(what, request.clone(), |message| each(&mut gathered, message))?;
            if whole {
                return Ok(gathered);
            }
        }
        Err(NetlinkError::Restless { what })
    }

    /// Sends several requests as one datagram and reports the first refusal. The kernel answers
    /// a batch with its refusals only, so that no answer at all is success.
    pub(super) fn batch(
        &mut self,
        what: &'static str,
        requests: Vec<Request>,
    ) -> Result<(), NetlinkError> {
        let first = self.sequence.wrapping_add(1);
        let mut datagram = Vec::new();
        for request in requests {
            self.sequence = self.sequence.wrapping_add(1);
            datagram.extend(request.finish(self.sequence));
        }
        let count = self.sequence.wrapping_sub(first);
        self.send(what, &datagram)?;
        let mut refusal = None;
        while let Some(answer) = self.receive(what)? {
            for message in wire::messages(&answer) {
                if message.sequence.wrapping_sub(first) > count
                    || i32::from(message.kind) != libc::NLMSG_ERROR
                {
                    continue;
                }
                if let Err(error) = acknowledged(what, &message) {
                    refusal.get_or_insert(error);
                }
            }
        }
        refusal.map_or(Ok(()), Err)
    }

    /// Sends one request and reads up to the end of its answer. False: the answer is of a table
    /// that changed meanwhile.
    fn exchange(
        &mut self,
        what: &'static str,
        request: Request,
        mut each: impl FnMut(&Message<'_>),
    ) -> Result<bool, NetlinkError> {
        self.sequence = self.sequence.wrapping_add(1);
        self.send(what, &request.finish(self.sequence))?;
        let mut whole = true;
        loop {
            let Some(answer) = self.receive(what)? else {
                let source = io::Error::new(io::ErrorKind::UnexpectedEof, "no answer");
                return Err(NetlinkError::Receive { what, source });
            };
            for message in wire::messages(&answer) {
                // What is left of an earlier request that ended in an error.
                if message.sequence != self.sequence {
                    continue;
                }
                whole &= !message.has(libc::NLM_F_DUMP_INTR);
                match i32::from(message.kind) {
                    libc::NLMSG_ERROR => {
                        acknowledged(what, &message)?;
                        return Ok(whole);
                    }
                    libc::NLMSG_DONE => {
                        refused(what, &message, 4)?;
                        return Ok(whole);
                    }
                    _ => each(&message),
                }
            }
        }
    }

    fn send(&self, what: &'static str, bytes: &[u8]) -> Result<(), NetlinkError> {
        match self.socket.send(bytes, 0) {
            Ok(_) => Ok(()),
            Err(source) => Err(NetlinkError::Send { what, source }),
        }
    }

    /// The next datagram, or `None` if there is none.
    fn receive(&self, what: &'static str) -> Result<Option<Vec<u8>>, NetlinkError> {
        match self.socket.recv_from_full() {
            Ok((bytes, _)) => Ok(Some(bytes)),
            Err(source) if source.kind() == io::ErrorKind::WouldBlock => Ok(None),
            Err(source) => Err(NetlinkError::Receive { what, source }),
        }
    }
}

/// Reads an acknowledgement: an error number, 0 for none, and the words after the header of the
/// request, which is all that a capped acknowledgement repeats of it.
fn acknowledged(what: &'static str, message: &Message<'_>) -> Result<(), NetlinkError> {
    refused(what, message, 4 + HEADER)
}

fn refused(what: &'static str, message: &Message<'_>, words: usize) -> Result<(), NetlinkError> {
    let Some(number) = message.payload.first_chunk().map(|bytes| i32::from_ne_bytes(*bytes)) else {
        let source = io::Error::new(io::ErrorKind::InvalidData, "an answer without a number");
        return Err(NetlinkError::Receive { what, source });
    };
    if number >= 0 {
        return Ok(());
    }
    let words = wire::attributes(message.payload.get(words..).unwrap_or_default())
        .find(|(kind, _)| *kind == NLMSGERR_ATTR_MSG)
        .map(|(_, value)| wire::text(value))
        .unwrap_or_default();
    let source = io::Error::from_raw_os_error(number.saturating_neg());
    Err(NetlinkError::Refused { what, words, source })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(payload: &[u8]) -> Vec<u8> {
        Request::new(libc::NLMSG_ERROR as u16, 0).fixed(payload).finish(1)
    }

    fn read(bytes: &[u8]) -> Result<(), NetlinkError> {
        acknowledged("test", &wire::messages(bytes).next().unwrap())
    }

    #[test]
    fn a_refusal_carries_the_number_and_the_words_of_the_kernel() {
        let mut payload = (-libc::EEXIST).to_ne_bytes().to_vec();
        payload.extend([0; HEADER]);
        let plain = read(&answer(&payload)).unwrap_err();
        assert!(plain.is_refusal(libc::EEXIST));
        assert!(!plain.is_refusal(libc::ENOENT));
        assert_eq!(plain.to_string(), "the kernel refused to test");
        payload.extend([8, 0, 1, 0, b'n', b'o', b'!', 0]);
        let explained = read(&answer(&payload)).unwrap_err();
        assert_eq!(explained.to_string(), "the kernel refused to test: no!");
    }

    #[test]
    fn an_acknowledgement_is_zero_and_has_four_bytes() {
        assert!(read(&answer(&[0; 4])).is_ok());
        assert!(matches!(
            acknowledged(
                "test",
                &Message { kind: 2, flags: 0, sequence: 1, payload: &[0xff, 0xff, 0xff] }
            ),
            Err(NetlinkError::Receive { .. })
        ));
    }

    #[test]
    fn the_least_error_number_does_not_overflow() {
        assert!(read(&answer(&i32::MIN.to_ne_bytes())).is_err());
    }

    #[test]
    fn a_refused_request_leaves_the_dialogue_usable() {
        let mut dialogue = Dialogue::open(Family::Route).unwrap();
        let link = |ifindex: i32| {
            let mut header = [0; 16];
            header[4..8].copy_from_slice(&ifindex.to_ne_bytes());
            Request::new(libc::RTM_GETLINK, libc::NLM_F_ACK).fixed(&header)
        };
        let refusal = dialogue.perform("read a link", link(i32::MAX)).unwrap_err();
        assert!(refusal.is_refusal(libc::ENODEV), "{refusal}");
        let mut answers = 0;
        dialogue.ask("read a link", link(1), |_| answers += 1).unwrap();
        assert_eq!(answers, 1, "the loopback interface is always number 1");
    }
}
