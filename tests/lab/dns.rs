//! As much of DNS as the lab needs: one question, one answer.
//!
//! Every name under `lab` has the address 198.51.100.10, and `whoami.lab` has a text with the
//! address and port of whoever asks. What a [`Zone`] says can be changed while it is asked.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};

use crate::plan::INTERNET_SERVERS;

const HEADER: usize = 12;
const TYPE_A: u16 = 1;
const TYPE_TXT: u16 = 16;
const CLASS_IN: u16 = 1;
/// This is an answer, and it is the name's own server that gives it.
const ANSWER: u16 = 0x8400;
const NO_SUCH_NAME: u16 = 3;
const SERVER_FAILURE: u16 = 2;
/// How long an answer of a zone is good, in seconds.
const TTL: u32 = 5;

/// What a name has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Record {
    /// An address.
    Address(Ipv4Addr),
    /// A text.
    Text(String),
}

/// A question for a name: its text if that is `whoami.lab`, else its address.
pub fn question(id: u16, name: &str) -> Vec<u8> {
    let mut bytes = header(id, 0x0100, 0);
    for label in name.split('.') {
        // A label of a name in this lab is far below 63 bytes.
        bytes.push(label.len() as u8);
        bytes.extend(label.as_bytes());
    }
    bytes.push(0);
    let kind = if name == "whoami.lab" { TYPE_TXT } else { TYPE_A };
    bytes.extend(kind.to_be_bytes());
    bytes.extend(CLASS_IN.to_be_bytes());
    bytes
}

/// Names and their IPv4 addresses, which a test changes.
#[derive(Clone, Debug, Default)]
pub struct Zone(Arc<Mutex<BTreeMap<String, Option<Vec<Ipv4Addr>>>>>);

impl Zone {
    /// From now on a name has these addresses.
    pub fn set(&self, name: &str, addresses: &[Ipv4Addr]) {
        self.put(name, Some(addresses.to_vec()));
    }

    /// From now on a question for the name fails.
    pub fn fail(&self, name: &str) {
        self.put(name, None);
    }

    fn put(&self, name: &str, addresses: Option<Vec<Ipv4Addr>>) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).insert(name.to_owned(), addresses);
    }

    /// The answer to a question; none to what is no question.
    pub fn answer(&self, question: &[u8]) -> Option<Vec<u8>> {
        let (name, end) = name(question)?;
        let asked = question.get(HEADER..end + 4)?;
        let kind = u16::from_be_bytes([asked[asked.len() - 4], asked[asked.len() - 3]]);
        let id = u16::from_be_bytes([question[0], question[1]]);
        let names = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let (code, addresses) = match names.get(&name) {
            Some(Some(addresses)) if kind == TYPE_A => (0, addresses.as_slice()),
            Some(Some(_)) => (0, &[][..]),
            Some(None) => (SERVER_FAILURE, &[][..]),
            None => (NO_SUCH_NAME, &[][..]),
        };
        let mut bytes = header(id, ANSWER | code, addresses.len() as u16);
        bytes.extend(asked);
        for address in addresses {
            bytes.extend([0xc0, HEADER as u8]);
            bytes.extend(TYPE_A.to_be_bytes());
            bytes.extend(CLASS_IN.to_be_bytes());
            bytes.extend(TTL.to_be_bytes());
            bytes.extend([0, 4]);
            bytes.extend(address.octets());
        }
        Some(bytes)
    }
}

/// The answer to a question; none to what is no question.
pub fn answer(question: &[u8], from: SocketAddr) -> Option<Vec<u8>> {
    let (name, end) = name(question)?;
    let asked = question.get(HEADER..end + 4)?;
    let kind = u16::from_be_bytes([asked[asked.len() - 4], asked[asked.len() - 3]]);
    let data = match kind {
        TYPE_TXT if name == "whoami.lab" => {
            let text = from.to_string().into_bytes();
            [vec![text.len() as u8], text].concat()
        }
        TYPE_A if name.ends_with(".lab") => INTERNET_SERVERS[0].octets().to_vec(),
        _ => Vec::new(),
    };
    let id = u16::from_be_bytes([question[0], question[1]]);
    if data.is_empty() {
        return Some([header(id, ANSWER | NO_SUCH_NAME, 0), asked.to_vec()].concat());
    }
    let mut bytes = [header(id, ANSWER, 1), asked.to_vec()].concat();
    // The name is the one asked for, which begins right behind the header.
    bytes.extend([0xc0, HEADER as u8]);
    bytes.extend(kind.to_be_bytes());
    bytes.extend(CLASS_IN.to_be_bytes());
    bytes.extend([0; 4]);
    bytes.extend((data.len() as u16).to_be_bytes());
    bytes.extend(data);
    Some(bytes)
}

/// What an answer says; none if it answers another question, or says that there is no such name.
pub fn record(answer: &[u8], question: &[u8]) -> Option<Record> {
    let asked = question.get(HEADER..)?;
    let same = answer.get(..2)? == &question[..2] && answer.get(HEADER..question.len())? == asked;
    // Pointer to the name, type, class, time to live, length.
    let data = answer.get(question.len() + 12..)?;
    match u16::from_be_bytes([asked[asked.len() - 4], asked[asked.len() - 3]]) {
        _ if !same => None,
        TYPE_A => Some(Record::Address(<[u8; 4]>::try_from(data).ok()?.into())),
        TYPE_TXT => Some(Record::Text(String::from_utf8(data.get(1..)?.to_vec()).ok()?)),
        _ => None,
    }
}

fn header(id: u16, flags: u16, answers: u16) -> Vec<u8> {
    [id, flags, 1, answers, 0, 0].iter().flat_map(|word| word.to_be_bytes()).collect()
}

/// The name in a question, and where it ends.
fn name(question: &[u8]) -> Option<(String, usize)> {
    let (mut labels, mut at) = (Vec::new(), HEADER);
    loop {
        let length = usize::from(*question.get(at)?);
        at += 1;
        match length {
            0 => return Some((labels.join("."), at)),
            1..=63 => {
                labels.push(String::from_utf8_lossy(question.get(at..at + length)?).into_owned())
            }
            _ => return None,
        }
        at += length;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_question_gets_the_record_of_its_name() {
        let from = SocketAddr::from(([192, 0, 2, 1], 40_000));
        for (name, expected) in [
            ("store.lab", Some(Record::Address(INTERNET_SERVERS[0]))),
            ("whoami.lab", Some(Record::Text("192.0.2.1:40000".to_owned()))),
            ("store.example", None), // not under `lab`
        ] {
            let question = question(7, name);
            let answer = answer(&question, from).unwrap();
            assert_eq!(record(&answer, &question), expected, "{name}");
        }
    }

    #[test]
    fn a_zone_says_what_it_was_told_last() {
        let (zone, asked) = (Zone::default(), question(7, "store.example"));
        let code = |zone: &Zone| zone.answer(&asked).unwrap()[3] & 0xf;
        assert_eq!(u16::from(code(&zone)), NO_SUCH_NAME);
        for address in INTERNET_SERVERS {
            zone.set("store.example", &[address]);
            let answer = zone.answer(&asked).unwrap();
            assert_eq!(record(&answer, &asked), Some(Record::Address(address)));
        }
        zone.fail("store.example");
        assert_eq!(u16::from(code(&zone)), SERVER_FAILURE);
    }

    #[test]
    fn an_answer_to_another_question_is_none() {
        let from = SocketAddr::from(([192, 0, 2, 1], 40_000));
        let asked = question(7, "store.lab");
        let answered = answer(&asked, from).unwrap();
        assert_eq!(record(&answered, &question(8, "store.lab")), None, "another id");
        assert_eq!(record(&answered, &question(7, "stone.lab")), None, "another name");
    }

    #[test]
    fn a_torn_question_gets_no_answer() {
        let from = SocketAddr::from(([192, 0, 2, 1], 40_000));
        let whole = question(7, "store.lab");
        for length in 0..whole.len() {
            assert_eq!(answer(&whole[..length], from), None, "{length} bytes");
        }
    }
}
