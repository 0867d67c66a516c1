//! Frames that pass an interface, kept until somebody looks at them.

use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use ipnet::Ipv4Net;

use crate::frames::Frame;
use crate::netns::{Background, Netns};
use crate::packet_socket::PacketSocket;

/// What a capture keeps at most; frames beyond count as lost.
const MOST_BYTES: usize = 256 << 20;
/// How many faults an error lists.
const LISTED: usize = 5;
/// How much of a frame an error shows: all of a short one, so that its sum can be done again.
const LISTED_BYTES: usize = 160;

/// Which frames of an interface to keep.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Watch {
    /// Both ways.
    All,
    /// Only what arrives.
    Received,
}

/// A capture that goes on. Stopped when dropped.
#[derive(Debug)]
#[must_use = "it stops when it is dropped"]
pub struct Capture {
    place: String,
    thread: Background<Captured>,
}

/// What a capture saw.
#[derive(Debug, Default)]
pub struct Captured {
    /// Where: namespace and interface.
    pub place: String,
    /// The frames, in order.
    pub frames: Vec<Frame>,
    /// Frames that passed but were not kept.
    pub lost: u64,
}

/// How much a clean bill rests on. Zero frames prove nothing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Looked {
    /// Frames of any kind.
    pub frames: usize,
    /// IPv4 packets among them.
    pub ipv4: usize,
    /// IPv4 packets whose segment had no checksum to look at yet, because the link leaves it to a
    /// device. Zero on links without offloads.
    pub partial: usize,
    /// Frames that passed unseen.
    pub lost: u64,
}

impl Capture {
    /// Starts to listen; every frame from now on is kept.
    ///
    /// # Errors
    ///
    /// When there is no such interface.
    pub fn start(netns: &Netns, interface: &str, watch: Watch) -> Result<Self> {
        let place = format!("{}/{interface}", netns.name());
        let mut socket = netns.enter(|| {
            PacketSocket::listen(interface).with_context(|| format!("cannot listen at {place}"))
        })?;
        let thread = netns.background(move |stop| {
            let mut captured = Captured::default();
            let mut room = MOST_BYTES;
            loop {
                // Asked before the socket is emptied, so that what was there by then is kept.
                let last = stop.told();
                while let Some(frame) = socket.next().context("cannot read from the interface")? {
                    if frame.sent && watch == Watch::Received {
                        continue;
                    }
                    match room.checked_sub(frame.bytes.len()) {
                        Some(rest) => {
                            room = rest;
                            captured.frames.push(frame);
                        }
                        None => captured.lost += 1,
                    }
                }
                if last {
                    break;
                }
                socket.wait(50);
            }
            captured.lost += socket.lost().context("the kernel does not say what was lost")?;
            Ok(captured)
        });
        Ok(Self { place, thread })
    }

    /// Stops and returns what passed. Waits a moment, for what is still under way.
    ///
    /// # Errors
    ///
    /// When the interface could not be read.
    pub fn stop(self) -> Result<Captured> {
        std::thread::sleep(Duration::from_millis(20));
        let captured = self.thread.stop().with_context(|| format!("capture at {}", self.place))?;
        Ok(Captured { place: self.place, ..captured })
    }
}

impl Captured {
    /// Looks at every frame, and says at how many.
    ///
    /// # Errors
    ///
    /// When a frame has a source in `non_routable` or a wrong checksum; the first few are listed.
    pub fn assert_clean(&self, non_routable: &[Ipv4Net]) -> Result<Looked> {
        let mut looked = Looked { frames: self.frames.len(), lost: self.lost, ..Looked::default() };
        let (mut faults, mut faulty) = (String::new(), 0);
        for (number, frame) in self.frames.iter().enumerate() {
            if matches!(frame.ipv4(), Ok(Some(_))) {
                looked.ipv4 += 1;
                looked.partial += usize::from(frame.partial);
            }
            let found = frame.faults(non_routable);
            faulty += usize::from(!found.is_empty());
            for fault in found.iter().take_while(|_| faulty <= LISTED) {
                let bytes = &frame.bytes[..frame.bytes.len().min(LISTED_BYTES)];
                let hex = bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
                faults += &format!("\n  frame {number}: {fault}: {hex}");
            }
        }
        if faulty > 0 {
            bail!(
                "{faulty} of {} frames at {} are not clean:{faults}",
                self.frames.len(),
                self.place,
            );
        }
        Ok(looked)
    }
}
