//! Copies of packets as the datapath saw them, one JSON object a line.
//!
//! Every packet has a copy after its verdict and, before that, one as it came in. What was left
//! out is a line of its own, so that no one takes silence for absence.

use std::fmt;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use crate::session::{ObjectRef, SessionId};

/// The most packets that one capture may ask for.
pub const MOST_PACKETS: u64 = 100_000;
/// The longest that a capture may take, in seconds.
pub const MOST_SECONDS: u64 = 600;

/// Of so many packets at least one is copied.
pub const MOST_SAMPLE: u64 = 1_000_000;

/// Bytes, written as hexadecimal digits.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Bytes(pub Vec<u8>);

impl fmt::Display for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl Serialize for Bytes {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

fn from_hex(text: &str) -> Option<Vec<u8>> {
    let digit = |byte: u8| char::from(byte).to_digit(16);
    let (pairs, rest) = text.as_bytes().as_chunks::<2>();
    if !rest.is_empty() {
        return None;
    }
    pairs.iter().map(|[high, low]| Some((digit(*high)? << 4 | digit(*low)?) as u8)).collect()
}

impl<'de> Deserialize<'de> for Bytes {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        from_hex(&text).map(Self).ok_or_else(|| {
            de::Error::invalid_value(de::Unexpected::Str(&text), &"pairs of hexadecimal digits")
        })
    }
}

/// Whether a copy was made before or after translation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Stage {
    /// As it came in.
    Before,
    /// As it goes out.
    After,
}

/// What became of the packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum PacketVerdict {
    /// Sent on.
    Forwarded,
    /// Left to the kernel because it is not transit.
    Passed,
    /// Sent up untranslated for the kernel to route.
    Punted,
    /// Discarded.
    Dropped,
}

impl Stage {
    /// The word for it, as in JSON.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Before => "before",
            Self::After => "after",
        }
    }
}

impl PacketVerdict {
    /// The word for it, as in JSON.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Forwarded => "forwarded",
            Self::Passed => "passed",
            Self::Punted => "punted",
            Self::Dropped => "dropped",
        }
    }
}

/// A copy of one packet.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
pub struct Frame {
    /// When, in nanoseconds since 1970.
    pub time: u64,
    /// The interface that it came in by.
    pub interface: String,
    /// Before or after translation.
    pub stage: Stage,
    /// What became of it.
    pub verdict: PacketVerdict,
    /// Why, if it was dropped, by the name that counters use.
    pub reason: Option<String>,
    /// The rule that decided.
    pub rule: Option<ObjectRef>,
    /// The session that it belongs to.
    pub session: Option<SessionId>,
    /// The length of the whole frame.
    pub length: u32,
    /// Its first bytes, from the Ethernet header on.
    pub bytes: Bytes,
}

/// What a capture did not show.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
pub struct Lost {
    /// Packets that came faster than the capture was read.
    pub packets: u64,
    /// Copies that the datapath had no room for, because they came faster than the daemon took them.
    pub copies: u64,
}

/// What is said of a capture when it is over.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
pub struct End {
    /// Packets that were shown.
    pub packets: u64,
    /// One in so many was copied, of those that the datapath took for the filter.
    pub sample: u64,
    /// Everything that was left out, from the beginning.
    pub lost: Lost,
}

/// A line of the stream.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(untagged)]
pub enum Line {
    /// A copy.
    Frame(Frame),
    /// What is missing since the last line of this kind.
    Lost {
        /// How much.
        lost: Lost,
    },
    /// The last line.
    End {
        /// What there was.
        end: End,
    },
}

impl Frame {
    /// Everything that is not in the bytes, in one line.
    #[must_use]
    pub fn comment(&self) -> String {
        let mut text = format!("{} verdict={}", self.stage.as_str(), self.verdict.as_str());
        if let Some(reason) = &self.reason {
            text.push_str(&format!(" reason={reason}"));
        }
        if let Some(rule) = &self.rule {
            text.push_str(&format!(" rule={rule}"));
        }
        if let Some(session) = self.session {
            text.push_str(&format!(" session={session}"));
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_are_pairs_of_digits() {
        for (json, expected) in [
            ("\"\"", Some(vec![])),
            ("\"00ff7A\"", Some(vec![0x00, 0xff, 0x7a])),
            ("\"0\"", None),
            ("\"0g\"", None),
            ("\"ü\"", None),
        ] {
            let read = serde_json::from_str::<Bytes>(json).ok().map(|bytes| bytes.0);
            assert_eq!(read, expected, "{json}");
        }
        assert_eq!(serde_json::to_string(&Bytes(vec![0, 255])).unwrap(), "\"00ff\"");
    }

    #[test]
    fn a_comment_says_what_the_bytes_do_not() {
        let mut frame = Frame {
            time: 0,
            interface: "eth0".into(),
            stage: Stage::Before,
            verdict: PacketVerdict::Dropped,
            reason: Some("rule_denied".into()),
            rule: Some(ObjectRef { id: 1, name: Some("no-ssh".into()) }),
            session: None,
            length: 60,
            bytes: Bytes(vec![]),
        };
        assert_eq!(frame.comment(), "before verdict=dropped reason=rule_denied rule=no-ssh");
        frame.stage = Stage::After;
        frame.verdict = PacketVerdict::Forwarded;
        (frame.reason, frame.rule, frame.session) = (None, None, Some(SessionId(7)));
        assert_eq!(frame.comment(), "after verdict=forwarded session=0000000000000007");
    }

    #[test]
    fn a_line_is_a_copy_or_what_was_lost_or_the_end() {
        let lost = Lost { packets: 3, copies: 0 };
        for (line, json) in [
            (Line::Lost { lost }, r#"{"lost":{"packets":3,"copies":0}}"#),
            (
                Line::End { end: End { packets: 2, sample: 10, lost } },
                r#"{"end":{"packets":2,"sample":10,"lost":{"packets":3,"copies":0}}}"#,
            ),
        ] {
            assert_eq!(serde_json::to_string(&line).unwrap(), json);
            assert_eq!(serde_json::from_str::<Line>(json).unwrap(), line);
        }
        let json = r#"{"time":1,"interface":"eth0","stage":"after","verdict":"passed","reason":null,"rule":null,"session":null,"length":60,"bytes":"00"}"#;
        let line = serde_json::from_str::<Line>(json).unwrap();
        assert!(matches!(&line, Line::Frame(frame) if frame.time == 1), "{line:?}");
        assert_eq!(serde_json::to_string(&line).unwrap(), json);
    }

    #[test]
    fn words_are_the_same_in_comments_and_json() {
        for stage in [Stage::Before, Stage::After] {
            assert_eq!(serde_json::to_value(stage).unwrap(), stage.as_str());
        }
        for verdict in [
            PacketVerdict::Forwarded,
            PacketVerdict::Passed,
            PacketVerdict::Punted,
            PacketVerdict::Dropped,
        ] {
            assert_eq!(serde_json::to_value(verdict).unwrap(), verdict.as_str());
        }
    }
}
