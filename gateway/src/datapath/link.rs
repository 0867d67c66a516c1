//! A link of a program as the kernel has it.
//!
//! A link may lose its interface without losing its pin: whoever may open the pin may detach it
//! (`bpftool link detach`), or put another program into it. So the kernel is asked what it is.

use std::ffi::CString;
use std::io;
use std::mem::{offset_of, size_of};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// `BPF_OBJ_GET`.
const GET: libc::c_int = 7;
/// `BPF_OBJ_GET_INFO_BY_FD`.
const INFO: libc::c_int = 15;

/// An open link; it lives for as long as this does, also without its pin.
#[derive(Debug)]
pub(super) struct Link(OwnedFd);

/// What the kernel says of a link: `struct bpf_link_info` of links for XDP and TC, as far as they
/// have it in common.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub(super) struct Info {
    kind: u32,
    id: u32,
    /// The number of the program in it.
    pub(super) program: u32,
    pad: u32,
    /// The number of its interface; zero: it was detached.
    pub(super) ifindex: u32,
}
const _: () = assert!(offset_of!(Info, ifindex) == 16);

impl Link {
    /// Opens a pinned link.
    pub(super) fn open(pin: &Path) -> io::Result<Self> {
        #[repr(C)]
        struct Request {
            path: u64,
            fd: u32,
            flags: u32,
        }
        let path = CString::new(pin.as_os_str().as_bytes())?;
        let request = Request { path: path.as_ptr() as u64, fd: 0, flags: 0 };
        // SAFETY: the request is what the command takes, and the path in it outlives the call.
        let fd =
            unsafe { libc::syscall(libc::SYS_bpf, GET, &raw const request, size_of::<Request>()) };
        let fd = i32::try_from(fd).map_err(io::Error::other)?;
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the kernel has just opened it for this call, and nobody else knows it.
        Ok(Self(unsafe { OwnedFd::from_raw_fd(fd) }))
    }

    /// Asks the kernel.
    pub(super) fn info(&self) -> io::Result<Info> {
        #[repr(C)]
        struct Request {
            fd: u32,
            length: u32,
            info: u64,
        }
        let mut info = Info::default();
        let request = Request {
            fd: self.0.as_raw_fd() as u32,
            length: size_of::<Info>() as u32,
            info: &raw mut info as u64,
        };
        // SAFETY: the request is what the command takes, and the kernel writes no more into `info`
        // than it is told that there is room for.
        let failed =
            unsafe { libc::syscall(libc::SYS_bpf, INFO, &raw const request, size_of::<Request>()) }
                != 0;
        if failed { Err(io::Error::last_os_error()) } else { Ok(info) }
    }
}
