//! Netlink messages as bytes: headers and attributes, nothing of what they mean.
//!
//! The daemon reads four families of netlink (routes, netfilter, socket diagnosis, generic)
//! and of each only a few attributes. A decoder of its own, that skips what it does not know,
//! is smaller than one crate for each of them, and cannot lose a whole message over one
//! attribute that a newer kernel grew. Every reader here accepts any bytes: what is cut short
//! ends the walk.

/// Length of `struct nlmsghdr`.
pub(super) const HEADER: usize = 16;

/// Length of `struct nlattr`.
const ATTRIBUTE_HEADER: usize = 4;

/// The bits of an attribute's kind that number it; the upper two are flags.
const KIND_MASK: u16 = libc::NLA_TYPE_MASK as u16;

const fn aligned(length: usize) -> usize {
    (length + 3) & !3
}

/// The first four bytes of `bytes` as the kernel's own number, if there are as many.
pub(super) fn native_u32(bytes: &[u8]) -> Option<u32> {
    Some(u32::from_ne_bytes(*bytes.first_chunk()?))
}

/// The first two bytes of `bytes` as the kernel's own number, if there are as many.
pub(super) fn native_u16(bytes: &[u8]) -> Option<u16> {
    Some(u16::from_ne_bytes(*bytes.first_chunk()?))
}

/// The first four bytes of `bytes` in network order, as netfilter writes its numbers.
pub(super) fn network_u32(bytes: &[u8]) -> Option<u32> {
    Some(u32::from_be_bytes(*bytes.first_chunk()?))
}

/// The text of a string attribute, up to its zero.
pub(super) fn text(bytes: &[u8]) -> String {
    let end = bytes.iter().position(|&byte| byte == 0).unwrap_or(bytes.len());
    String::from_utf8_lossy(&bytes[..end]).into_owned()
}

/// One message being written.
#[derive(Clone, Debug)]
pub(super) struct Request(Vec<u8>);

impl Request {
    /// Begins a message; `NLM_F_REQUEST` is always added to `flags`.
    pub(super) fn new(kind: u16, flags: i32) -> Self {
        let mut bytes = vec![0; HEADER];
        bytes[4..6].copy_from_slice(&kind.to_ne_bytes());
        let flags = (flags | libc::NLM_F_REQUEST) as u16;
        bytes[6..8].copy_from_slice(&flags.to_ne_bytes());
        Self(bytes)
    }

    /// Appends the fixed part that the family wants before the attributes.
    pub(super) fn fixed(mut self, bytes: &[u8]) -> Self {
        self.0.extend_from_slice(bytes);
        self.pad();
        self
    }

    /// Appends one attribute.
    pub(super) fn attribute(mut self, kind: u16, value: &[u8]) -> Self {
        let start = self.open(kind);
        self.0.extend_from_slice(value);
        self.close(start);
        self
    }

    /// Appends a string attribute with its closing zero.
    pub(super) fn string(mut self, kind: u16, value: &str) -> Self {
        let start = self.open(kind);
        self.0.extend_from_slice(value.as_bytes());
        self.0.push(0);
        self.close(start);
        self
    }

    /// Appends an attribute that holds attributes.
    pub(super) fn nested(mut self, kind: u16, inside: impl FnOnce(Self) -> Self) -> Self {
        let start = self.open(kind | libc::NLA_F_NESTED as u16);
        let mut whole = inside(self);
        whole.close(start);
        whole
    }

    /// The message under its number, as it goes into the socket.
    pub(super) fn finish(mut self, sequence: u32) -> Vec<u8> {
        let length = u32::try_from(self.0.len()).expect("requests are built here and small");
        self.0[0..4].copy_from_slice(&length.to_ne_bytes());
        self.0[8..12].copy_from_slice(&sequence.to_ne_bytes());
        self.0
    }

    fn open(&mut self, kind: u16) -> usize {
        let start = self.0.len();
        self.0.extend_from_slice(&[0; 2]);
        self.0.extend_from_slice(&kind.to_ne_bytes());
        start
    }

    fn close(&mut self, start: usize) {
        let length = u16::try_from(self.0.len() - start).expect("attributes are built here, small");
        self.0[start..start + 2].copy_from_slice(&length.to_ne_bytes());
        self.pad();
    }

    fn pad(&mut self) {
        self.0.resize(aligned(self.0.len()), 0);
    }
}

/// One message as it was received.
#[derive(Clone, Copy, Debug)]
pub(super) struct Message<'a> {
    /// What it is, in the numbers of its family.
    pub(super) kind: u16,
    /// The `NLM_F_` flags.
    pub(super) flags: u16,
    /// The number of the request that it answers; 0 in a notification.
    pub(super) sequence: u32,
    /// What follows the header.
    pub(super) payload: &'a [u8],
}

impl Message<'_> {
    /// Whether all bits of an `NLM_F_` flag are set.
    pub(super) fn has(&self, flag: i32) -> bool {
        i32::from(self.flags) & flag == flag
    }
}

/// The messages in one datagram.
pub(super) fn messages(mut bytes: &[u8]) -> impl Iterator<Item = Message<'_>> {
    std::iter::from_fn(move || {
        let length = native_u32(bytes)? as usize;
        if length < HEADER || length > bytes.len() {
            return None;
        }
        let message = Message {
            kind: native_u16(&bytes[4..])?,
            flags: native_u16(&bytes[6..])?,
            sequence: native_u32(&bytes[8..])?,
            payload: &bytes[HEADER..length],
        };
        bytes = &bytes[aligned(length).min(bytes.len())..];
        Some(message)
    })
}

/// The attributes in `bytes`, as (kind without flags, value).
pub(super) fn attributes(mut bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let length = usize::from(native_u16(bytes)?);
        if length < ATTRIBUTE_HEADER || length > bytes.len() {
            return None;
        }
        let attribute = (native_u16(&bytes[2..])? & KIND_MASK, &bytes[ATTRIBUTE_HEADER..length]);
        bytes = &bytes[aligned(length).min(bytes.len())..];
        Some(attribute)
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn message(bytes: &[u8]) -> Message<'_> {
        messages(bytes).next().unwrap()
    }

    #[test]
    fn a_message_is_read_as_it_was_written() {
        let bytes = Request::new(24, libc::NLM_F_ACK)
            .fixed(&[1, 2, 3])
            .attribute(7, &[9; 5])
            .nested(8, |inside| inside.string(1, "eth0").attribute(2, &[]))
            .finish(77);
        let read = message(&bytes);
        assert_eq!((read.kind, read.sequence), (24, 77));
        assert!(read.has(libc::NLM_F_ACK | libc::NLM_F_REQUEST));
        assert!(!read.has(libc::NLM_F_DUMP));
        assert_eq!(read.payload[..4], [1, 2, 3, 0]);
        let outer: Vec<_> = attributes(&read.payload[4..]).collect();
        assert_eq!(outer[0], (7, &[9; 5][..]));
        assert_eq!(outer[1].0, 8, "the nested flag is no part of the kind");
        let inner: Vec<_> = attributes(outer[1].1).collect();
        assert_eq!(inner, [(1, &b"eth0\0"[..]), (2, &[][..])]);
        assert_eq!(text(inner[0].1), "eth0");
    }

    #[test]
    fn a_length_beyond_the_datagram_ends_the_walk() {
        let mut bytes = Request::new(1, 0).finish(1);
        assert_eq!(messages(&bytes).count(), 1);
        bytes[0] += 1;
        assert_eq!(messages(&bytes).count(), 0, "one byte more than there is");
        bytes[0] -= 2;
        assert_eq!(messages(&bytes).count(), 0, "one byte less than a header");
        assert_eq!(attributes(&[4, 0, 1, 0]).count(), 1);
        assert_eq!(attributes(&[5, 0, 1, 0]).count(), 0);
        assert_eq!(attributes(&[3, 0, 1, 0]).count(), 0);
    }

    #[test]
    fn an_unpadded_last_attribute_is_still_read() {
        assert_eq!(attributes(&[5, 0, 1, 0, 42]).collect::<Vec<_>>(), [(1, &[42][..])]);
    }

    proptest! {
        #[test]
        fn any_bytes_can_be_walked(bytes in proptest::collection::vec(any::<u8>(), 0..256)) {
            let total: usize = messages(&bytes).map(|message| message.payload.len()).sum();
            prop_assert!(total <= bytes.len());
            let total: usize = attributes(&bytes).map(|(_, value)| value.len()).sum();
            prop_assert!(total <= bytes.len());
        }

        #[test]
        fn attributes_survive_the_way_there_and_back(
            written in proptest::collection::vec(
                (0u16..0x3fff, proptest::collection::vec(any::<u8>(), 0..40)), 0..8),
        ) {
            let bytes = written
                .iter()
                .fold(Request::new(1, 0), |request, (kind, value)| request.attribute(*kind, value))
                .finish(1);
            let read: Vec<_> = attributes(message(&bytes).payload)
                .map(|(kind, value)| (kind, value.to_vec()))
                .collect();
            prop_assert_eq!(read, written);
        }
    }
}
