//! A packet socket on one interface: every frame as it passes there, with its VLAN tag.
//!
//! The kernel takes the tag out of a frame before it shows it, and says beside it what it was, and
//! whether the checksum is still to be filled in. The safe wrappers know neither, so this file
//! talks to the kernel itself.

use std::ffi::CString;
use std::io;
use std::mem::{MaybeUninit, size_of, zeroed};
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd};
use std::ptr::from_mut;

use crate::frames::Frame;

/// How much the kernel keeps for a slow reader.
const BUFFER_BYTES: libc::c_int = 64 << 20;
/// The largest frame that a link can carry: a GSO packet of 64 KiB with its headers.
const LARGEST: usize = 65_536 + 256;
const ETHERTYPE_OFFSET: usize = 12;

/// A packet socket.
#[derive(Debug)]
pub(crate) struct PacketSocket {
    socket: OwnedFd,
    buffer: Box<[u8; LARGEST]>,
}

impl PacketSocket {
    /// Listens to an interface of the caller's network namespace.
    pub(crate) fn listen(interface: &str) -> io::Result<Self> {
        let name = CString::new(interface)?;
        // SAFETY: `name` is a string that ends in zero and lives through the call.
        let index = unsafe { libc::if_nametoindex(name.as_ptr()) };
        if index == 0 {
            return Err(io::Error::last_os_error());
        }
        // Protocol 0 delivers nothing until the socket is bound: no frame of another interface.
        let kind = libc::SOCK_RAW | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK;
        // SAFETY: no memory is passed.
        let socket = unsafe { libc::socket(libc::AF_PACKET, kind, 0) };
        if socket < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the descriptor was just made, and nothing else owns it.
        let socket = unsafe { OwnedFd::from_raw_fd(socket) };
        let listener = Self { socket, buffer: Box::new([0; LARGEST]) };
        listener.set(libc::SOL_SOCKET, libc::SO_RCVBUFFORCE, BUFFER_BYTES)?;
        listener.set(libc::SOL_PACKET, libc::PACKET_AUXDATA, 1)?;
        // SAFETY: all zeroes is a valid address of this kind: it has integers only.
        let mut address: libc::sockaddr_ll = unsafe { zeroed() };
        address.sll_family = libc::AF_PACKET as u16;
        address.sll_protocol = (libc::ETH_P_ALL as u16).to_be();
        address.sll_ifindex = index as i32;
        // SAFETY: the address lives through the call, and the length is its own.
        let bound = unsafe {
            libc::bind(
                listener.socket.as_raw_fd(),
                (&raw const address).cast(),
                size_of::<libc::sockaddr_ll>() as libc::socklen_t,
            )
        };
        if bound < 0 { Err(io::Error::last_os_error()) } else { Ok(listener) }
    }

    fn set(&self, level: libc::c_int, option: libc::c_int, value: libc::c_int) -> io::Result<()> {
        // SAFETY: `value` lives through the call, and the length is its own.
        let result = unsafe {
            libc::setsockopt(
                self.socket.as_raw_fd(),
                level,
                option,
                (&raw const value).cast(),
                size_of::<libc::c_int>() as libc::socklen_t,
            )
        };
        if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
    }

    /// Waits up to `milliseconds` for a frame to be there.
    pub(crate) fn wait(&self, milliseconds: libc::c_int) {
        let mut poll =
            libc::pollfd { fd: self.socket.as_raw_fd(), events: libc::POLLIN, revents: 0 };
        // SAFETY: one entry, which lives through the call. A failure is as good as a timeout.
        unsafe { libc::poll(from_mut(&mut poll), 1, milliseconds) };
    }

    /// The next frame, or none if there is none yet.
    pub(crate) fn next(&mut self) -> io::Result<Option<Frame>> {
        let mut part = libc::iovec { iov_base: self.buffer.as_mut_ptr().cast(), iov_len: LARGEST };
        // SAFETY: all zeroes is a valid address of this kind: it has integers only.
        let mut from: libc::sockaddr_ll = unsafe { zeroed() };
        // `u64` for the alignment that control messages ask for.
        let mut control = [0_u64; 16];
        // SAFETY: all zeroes is a valid header: null pointers with lengths of zero.
        let mut header: libc::msghdr = unsafe { zeroed() };
        header.msg_name = from_mut(&mut from).cast();
        header.msg_namelen = size_of::<libc::sockaddr_ll>() as libc::socklen_t;
        header.msg_iov = from_mut(&mut part);
        header.msg_iovlen = 1;
        header.msg_control = control.as_mut_ptr().cast();
        header.msg_controllen = size_of_val(&control);
        // SAFETY: every pointer in the header is to memory that outlives the call, with its length.
        let length = unsafe {
            libc::recvmsg(self.socket.as_raw_fd(), from_mut(&mut header), libc::MSG_TRUNC)
        };
        let Ok(length) = usize::try_from(length) else {
            let error = io::Error::last_os_error();
            // The last says that the interface went down; when it is up again, frames come again.
            let later =
                [io::ErrorKind::WouldBlock, io::ErrorKind::Interrupted, io::ErrorKind::NetworkDown];
            return if later.contains(&error.kind()) { Ok(None) } else { Err(error) };
        };
        let aux = auxiliary(&header);
        let mut bytes = self.buffer[..length.min(LARGEST)].to_vec();
        let mut partial = false;
        if let Some(aux) = aux {
            partial = aux.tp_status & libc::TP_STATUS_CSUMNOTREADY != 0;
            if aux.tp_status & libc::TP_STATUS_VLAN_VALID != 0 && bytes.len() >= ETHERTYPE_OFFSET {
                let protocol = match aux.tp_status & libc::TP_STATUS_VLAN_TPID_VALID {
                    0 => libc::ETH_P_8021Q as u16,
                    _ => aux.tp_vlan_tpid,
                };
                let tag = [protocol.to_be_bytes(), aux.tp_vlan_tci.to_be_bytes()];
                bytes.splice(ETHERTYPE_OFFSET..ETHERTYPE_OFFSET, tag.into_iter().flatten());
            }
        }
        let sent = from.sll_pkttype == libc::PACKET_OUTGOING;
        Ok(Some(Frame { bytes, sent, partial }))
    }

    /// Frames that the kernel had no room for since the last time it was asked.
    pub(crate) fn lost(&self) -> io::Result<u64> {
        let mut statistics = MaybeUninit::<libc::tpacket_stats>::zeroed();
        let mut length = size_of::<libc::tpacket_stats>() as libc::socklen_t;
        // SAFETY: the kernel writes at most `length` bytes, which is the size of the target.
        let result = unsafe {
            libc::getsockopt(
                self.socket.as_raw_fd(),
                libc::SOL_PACKET,
                libc::PACKET_STATISTICS,
                statistics.as_mut_ptr().cast(),
                from_mut(&mut length),
            )
        };
        if result < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: it was zeroed, and holds integers only.
        Ok(u64::from(unsafe { statistics.assume_init() }.tp_drops))
    }
}

/// What the kernel says beside the frame.
fn auxiliary(header: &libc::msghdr) -> Option<libc::tpacket_auxdata> {
    // SAFETY: the header was filled in by `recvmsg`, and its buffer is still there.
    let mut message = unsafe { libc::CMSG_FIRSTHDR(header) };
    while !message.is_null() {
        // SAFETY: the macro returns a message that lies wholly in the buffer, or null.
        let (level, kind) = unsafe { ((*message).cmsg_level, (*message).cmsg_type) };
        if level == libc::SOL_PACKET && kind == libc::PACKET_AUXDATA {
            // SAFETY: a message of this kind carries this structure, maybe without its alignment.
            return Some(unsafe {
                libc::CMSG_DATA(message).cast::<libc::tpacket_auxdata>().read_unaligned()
            });
        }
        // SAFETY: as for the first.
        message = unsafe { libc::CMSG_NXTHDR(header, message) };
    }
    None
}
