//! Writes packets as pcapng (draft-ietf-opsawg-pcapng), which has room for a comment on each.
//!
//! The parts in use are a section header, one interface description for each interface that
//! packets came in by, and enhanced packet blocks with nanoseconds and a comment.

use std::io::{self, Write};

use api::capture::Frame;

const SECTION: u32 = 0x0a0d_0d0a;
const INTERFACE: u32 = 1;
const ENHANCED_PACKET: u32 = 6;

const OPTION_END: u16 = 0;
const OPTION_COMMENT: u16 = 1;
const OPTION_IF_NAME: u16 = 2;
const OPTION_IF_TSRESOL: u16 = 9;

/// Frames begin with an Ethernet header.
const LINKTYPE_ETHERNET: u16 = 1;
/// Time counts in 10^-9 seconds.
const NANOSECONDS: u8 = 9;

/// A file in the making.
pub(crate) struct Writer<W> {
    out: W,
    interfaces: Vec<String>,
}

/// Fills up to a multiple of four, as every part of a block is.
fn pad(bytes: &mut Vec<u8>) {
    bytes.resize(bytes.len().next_multiple_of(4), 0);
}

fn option(body: &mut Vec<u8>, code: u16, value: &[u8]) {
    // A comment is a line; one that is longer than a length can say is cut.
    let value = &value[..value.len().min(usize::from(u16::MAX))];
    body.extend(code.to_le_bytes());
    body.extend((value.len() as u16).to_le_bytes());
    body.extend(value);
    pad(body);
}

impl<W: Write> Writer<W> {
    /// Begins a file.
    pub(crate) fn new(out: W) -> io::Result<Self> {
        let mut writer = Self { out, interfaces: Vec::new() };
        let mut body = Vec::new();
        body.extend(0x1a2b_3c4d_u32.to_le_bytes()); // tells the byte order
        body.extend(1u16.to_le_bytes()); // major version
        body.extend(0u16.to_le_bytes()); // minor version
        body.extend(u64::MAX.to_le_bytes()); // length of the section: not known yet
        writer.block(SECTION, &body)?;
        // A file that takes nothing is known before there is a packet.
        writer.out.flush()?;
        Ok(writer)
    }

    fn block(&mut self, kind: u32, body: &[u8]) -> io::Result<()> {
        // Type, length, body, and the length again for those who read backwards.
        let length = (body.len() as u32 + 12).to_le_bytes();
        self.out.write_all(&kind.to_le_bytes())?;
        self.out.write_all(&length)?;
        self.out.write_all(body)?;
        self.out.write_all(&length)
    }

    fn interface(&mut self, name: &str) -> io::Result<u32> {
        if let Some(number) = self.interfaces.iter().position(|known| known == name) {
            return Ok(number as u32);
        }
        let mut body = Vec::new();
        body.extend(LINKTYPE_ETHERNET.to_le_bytes());
        body.extend(0u16.to_le_bytes()); // reserved
        body.extend(0u32.to_le_bytes()); // longest packet: no limit
        option(&mut body, OPTION_IF_NAME, name.as_bytes());
        option(&mut body, OPTION_IF_TSRESOL, &[NANOSECONDS]);
        option(&mut body, OPTION_END, &[]);
        self.block(INTERFACE, &body)?;
        self.interfaces.push(name.to_owned());
        Ok(self.interfaces.len() as u32 - 1)
    }

    /// Adds a packet with all that is known of it, and makes it visible to readers.
    pub(crate) fn frame(&mut self, frame: &Frame) -> io::Result<()> {
        let interface = self.interface(&frame.interface)?;
        let mut body = Vec::new();
        body.extend(interface.to_le_bytes());
        body.extend(((frame.time >> 32) as u32).to_le_bytes());
        body.extend((frame.time as u32).to_le_bytes());
        body.extend((frame.bytes.0.len() as u32).to_le_bytes());
        body.extend(frame.length.to_le_bytes());
        body.extend(&frame.bytes.0);
        pad(&mut body);
        option(&mut body, OPTION_COMMENT, frame.comment().as_bytes());
        option(&mut body, OPTION_END, &[]);
        self.block(ENHANCED_PACKET, &body)?;
        self.out.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use api::capture::{Bytes, PacketVerdict, Stage};
    use api::session::{ObjectRef, SessionId};
    use std::process::{Command, Stdio};

    /// An Ethernet frame with the beginning of a UDP datagram from 100.64.1.10.
    fn frames() -> [Frame; 2] {
        let mut bytes = vec![2, 0, 0, 0, 0, 2, 2, 0, 0, 0, 0, 1, 8, 0];
        bytes.extend([0x45, 0, 0, 33, 0, 1, 0, 0, 64, 17, 0, 0, 100, 64, 1, 10, 192, 0, 2, 7]);
        bytes.extend([0x9c, 0x40, 0, 53, 0, 13, 0, 0, b'h', b'e', b'l', b'l', b'o']);
        let before = Frame {
            time: 1_700_000_000_123_456_789,
            interface: "eth1".into(),
            stage: Stage::Before,
            verdict: PacketVerdict::Forwarded,
            reason: None,
            rule: Some(ObjectRef { id: 1, name: Some("dns".into()) }),
            session: Some(SessionId(0xabc)),
            length: 1047,
            bytes: Bytes(bytes),
        };
        let after = Frame { stage: Stage::After, interface: "eth0".into(), ..before.clone() };
        [before, after]
    }

    fn file() -> Vec<u8> {
        let mut bytes = Vec::new();
        let mut writer = Writer::new(&mut bytes).unwrap();
        for frame in frames().iter().chain(&frames()[..1]) {
            writer.frame(frame).unwrap();
        }
        bytes
    }

    #[test]
    fn blocks_follow_one_another_and_say_their_length_twice() {
        let bytes = file();
        let word = |at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap());
        let mut kinds = Vec::new();
        let mut at = 0;
        while at < bytes.len() {
            let length = word(at + 4) as usize;
            assert_eq!(length % 4, 0, "block at {at}");
            assert_eq!(word(at + length - 4) as usize, length, "block at {at}");
            kinds.push(word(at));
            at += length;
        }
        assert_eq!(at, bytes.len());
        // An interface is described once, before its first packet.
        assert_eq!(kinds, [SECTION, INTERFACE, ENHANCED_PACKET, INTERFACE, ENHANCED_PACKET, 6]);
    }

    #[test]
    fn tshark_reads_time_interface_lengths_and_comments() {
        let tshark = |arguments: &[&str]| {
            Command::new("tshark")
                .args(arguments)
                .stdin(Stdio::piped())
                .stdout(Stdio::piped())
                .stderr(Stdio::null())
                .spawn()
        };
        let fields = ["frame.time_epoch", "frame.interface_name", "frame.len", "frame.cap_len"];
        let mut arguments = vec!["-r", "-", "-T", "fields"];
        for field in fields.iter().chain(&["ip.src", "udp.dstport", "frame.comment"]) {
            arguments.extend(["-e", field]);
        }
        let Ok(mut child) = tshark(&arguments) else {
            println!(
                "SKIPPED: tshark_reads_time_interface_lengths_and_comments: tshark is not installed"
            );
            return;
        };
        child.stdin.take().unwrap().write_all(&file()).unwrap();
        let output = child.wait_with_output().unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        let line = |interface: &str, stage: &str| {
            format!(
                "1700000000.123456789\t{interface}\t1047\t47\t100.64.1.10\t53\t{stage} \
                 verdict=forwarded rule=dns session=0000000000000abc"
            )
        };
        let expected = [line("eth1", "before"), line("eth0", "after"), line("eth1", "before")];
        assert_eq!(text.lines().collect::<Vec<_>>(), expected);
    }
}
