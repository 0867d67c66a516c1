//! Frames through the gateway in memory, one after another.
//!
//! Each frame is an interface, a length and so many bytes; what the first of them opened, the
//! next may use. Most get a right header checksum, which nobody finds by trying, so that what
//! comes behind it is read too.

use xdp::memory::Sizes;
use xdp::pipeline::{Fate, Hook};

#[path = "../../../xdp/tests/scene/mod.rs"]
#[allow(missing_docs, clippy::wildcard_enum_match_arm, reason = "part of the core's own tests")]
mod scene;

use scene::wire::{repair, sent_to};
use scene::{Scene, TWO_CLUSTERS};

const RULES: &str = "
    local 203.0.113.1
    link 6 no-redirect
    attach odd spoke domain 1 on 6 address 100.64.255.9 sources 100.65.0.0/16
    deny any -> any tcp/23 log
    reject red -> any tcp/22 log
    permit any -> any all log
";

/// The interfaces where no non-routable source may leave.
const ROUTABLE: [u32; 2] = [4, 5];

/// Where the IP header of an IPv4 frame begins.
fn network(frame: &[u8]) -> Option<usize> {
    let at = if frame.get(12..14) == Some(&[0x81, 0x00]) { 18 } else { 14 };
    (frame.get(at - 2..at) == Some(&[0x08, 0x00])).then_some(at)
}

/// Makes the header checksum right, if there is a header.
fn mend(frame: &mut [u8]) {
    let Some(header) = network(frame).and_then(|at| frame.get_mut(at..)) else { return };
    let length = header.first().map_or(0, |first| usize::from(first & 15) * 4);
    if (20..=header.len()).contains(&length) {
        repair(header);
    }
}

/// Whether an IPv4 frame has a source in the non-routable space.
fn is_inside(frame: &[u8]) -> bool {
    let source = network(frame).and_then(|at| frame.get(at + 12..at + 14));
    source.is_some_and(|a| a[0] == 100 && a[1] & 0xc0 == 64)
}

pub(crate) fn frames(mut bytes: &[u8]) {
    let sizes = Sizes { slots: 32, records: 12, overflow: 4, bitmaps: 2, hops: 12, events: 64 };
    let mut lab = Scene::read(TWO_CLUSTERS).and(RULES).build_with(sizes, 1);
    while let Some(([head, length], rest)) = bytes.split_first_chunk() {
        let (frame, rest) = rest.split_at(rest.len().min(usize::from(*length)));
        bytes = rest;
        lab.gateway.hook = if head & 0x80 == 0 { Hook::Tc } else { Hook::Xdp };
        if head & 0x40 != 0 {
            lab.pass_seconds(200);
        }
        let ifindex = 2 + u32::from(head & 7);
        let mut frame = sent_to(ifindex, frame);
        if head & 0x20 == 0 {
            mend(&mut frame);
        }
        let frame = &frame[..];
        let output = lab.send(ifindex, frame);
        if output.egress.is_some_and(|egress| ROUTABLE.contains(&egress)) {
            assert!(!is_inside(&output.frame.bytes), "a leak: {:?}", output.fate);
        }
        if matches!(output.fate, Fate::Pass | Fate::Punt(_)) {
            assert_eq!(output.frame.bytes, frame, "what the kernel gets is untouched");
        }
    }
    lab.assert_books();
}
