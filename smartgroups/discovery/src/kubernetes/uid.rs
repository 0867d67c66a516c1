//! What tells an object from another of the same name, before or after it.

use smartgroups::Text;

/// The id of an object. It is compared and never shown, and of a hundred thousand pods in as few bytes
/// as it has.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Uid {
    /// It is not said.
    #[default]
    None,
    /// A UUID (RFC 9562), as API servers give them.
    Uuid([u8; 16]),
    /// Anything else.
    Other(Text),
}

impl Uid {
    pub(crate) fn new(text: &str) -> Self {
        match (text, uuid(text)) {
            ("", _) => Self::None,
            (_, Some(bytes)) => Self::Uuid(bytes),
            (_, None) => Self::Other(text.into()),
        }
    }
}

/// The bytes of a UUID in the one form of which two never mean the same.
fn uuid(text: &str) -> Option<[u8; 16]> {
    let groups: Vec<&str> = text.split('-').collect();
    let lengths = groups.iter().map(|group| group.len());
    if !lengths.eq([8, 4, 4, 4, 12]) {
        return None;
    }
    let digits: Vec<u8> = groups.concat().bytes().map(digit).collect::<Option<_>>()?;
    let mut bytes = [0; 16];
    for (byte, pair) in bytes.iter_mut().zip(digits.chunks_exact(2)) {
        *byte = pair[0] << 4 | pair[1];
    }
    Some(bytes)
}

fn digit(byte: u8) -> Option<u8> {
    match byte {
        b'0'..=b'9' => Some(byte - b'0'),
        b'a'..=b'f' => Some(byte - b'a' + 10),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_ids_are_the_same_if_and_only_if_their_texts_are() {
        const UUID: &str = "0f0e0d0c-0b0a-0908-0706-0123456789ab";
        assert!(matches!(Uid::new(UUID), Uid::Uuid([0x0f, 0x0e, .., 0xab])));
        let all = [
            "",
            "7",
            UUID,
            "0F0E0D0C-0B0A-0908-0706-0123456789AB",
            "0f0e0d0c0b0a090807060123456789ab",
            "0f0e0d0c-0b0a-0908-0706-0123456789ac",
            "0f0e0d0c-0b0a-0908-0706-0123456789a",
            "0f0e0d0c-0b0a-0908-07060-123456789ab",
            "0f0e0d0c-0b0a-0908-0706-0123456789ag",
        ];
        for one in all {
            for other in all {
                assert_eq!(Uid::new(one) == Uid::new(other), one == other, "{one} {other}");
            }
        }
    }
}
