//! The few nftables expressions of which the guard is made, to and from the kernel's bytes.
//!
//! A rule is a list of expressions working on a register. What is read back is turned into the
//! same values as what is written, so that "is the guard as it should be" is one comparison.
//! Whatever the guard would never write becomes [`Expression::Foreign`], which equals nothing
//! that it writes.

use crate::net::wire::{self, Request, attributes, network_u32};

const NFTA_LIST_ELEM: u16 = 1;
const NFTA_EXPR_NAME: u16 = 1;
const NFTA_EXPR_DATA: u16 = 2;
const NFTA_DATA_VALUE: u16 = 1;
const NFTA_DATA_VERDICT: u16 = 2;
const NFTA_VERDICT_CODE: u16 = 1;
const NFTA_META_DREG: u16 = 1;
const NFTA_META_KEY: u16 = 2;
const NFTA_CMP_SREG: u16 = 1;
const NFTA_CMP_OP: u16 = 2;
const NFTA_CMP_DATA: u16 = 3;
const NFTA_PAYLOAD_DREG: u16 = 1;
const NFTA_PAYLOAD_BASE: u16 = 2;
const NFTA_PAYLOAD_OFFSET: u16 = 3;
const NFTA_PAYLOAD_LEN: u16 = 4;
const NFTA_BITWISE_SREG: u16 = 1;
const NFTA_BITWISE_DREG: u16 = 2;
const NFTA_BITWISE_LEN: u16 = 3;
const NFTA_BITWISE_MASK: u16 = 4;
const NFTA_BITWISE_XOR: u16 = 5;
const NFTA_BITWISE_OP: u16 = 6;
const NFTA_COUNTER_BYTES: u16 = 1;
const NFTA_COUNTER_PACKETS: u16 = 2;
const NFTA_OBJREF_TYPE: u16 = 1;
const NFTA_OBJREF_NAME: u16 = 2;
const NFTA_IMMEDIATE_DREG: u16 = 1;
const NFTA_IMMEDIATE_DATA: u16 = 2;

/// `NFT_OBJECT_COUNTER`.
pub(super) const COUNTER_OBJECT: u32 = 1;

/// The register that the verdict goes into.
const VERDICT_REGISTER: u32 = 0;
/// The register in which everything else happens.
const REGISTER: u32 = libc::NFT_REG_1 as u32;
/// Which address of an IPv4 header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Side {
    Source,
    Destination,
}

impl Side {
    const ALL: [Self; 2] = [Self::Source, Self::Destination];

    /// Where the address is in the header.
    fn offset(self) -> u32 {
        match self {
            Self::Source => 12,
            Self::Destination => 16,
        }
    }
}

const NETWORK_HEADER: u32 = libc::NFT_PAYLOAD_NETWORK_HEADER as u32;
const EQUAL: u32 = libc::NFT_CMP_EQ as u32;
const NOT_EQUAL: u32 = libc::NFT_CMP_NEQ as u32;

/// What is known of a packet beside its bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Meta {
    /// The family that hooked it.
    Family,
    /// The name of the interface it came in by, 16 bytes; all zeros: the machine's own.
    InputName,
    /// The name of the interface it leaves by, 16 bytes.
    OutputName,
    /// The number of that interface, in the byte order of the machine.
    OutputNumber,
    /// Its mark, in the byte order of the machine.
    Mark,
}

impl Meta {
    const ALL: [Self; 5] =
        [Self::Family, Self::InputName, Self::OutputName, Self::OutputNumber, Self::Mark];

    fn key(self) -> u32 {
        let key = match self {
            Self::Family => libc::NFT_META_NFPROTO,
            Self::InputName => libc::NFT_META_IIFNAME,
            Self::OutputName => libc::NFT_META_OIFNAME,
            Self::OutputNumber => libc::NFT_META_OIF,
            Self::Mark => libc::NFT_META_MARK,
        };
        key as u32
    }
}

/// What becomes of a packet that came this far in a rule.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    Accept,
    Drop,
}

impl Verdict {
    pub(super) fn code(self) -> u32 {
        let code = match self {
            Self::Accept => libc::NF_ACCEPT,
            Self::Drop => libc::NF_DROP,
        };
        code as u32
    }
}

/// Packets and their bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Traffic {
    /// How many packets.
    pub packets: u64,
    /// How many bytes they had, with their IP headers.
    pub bytes: u64,
}

impl Traffic {
    /// Writes the two numbers of a counter.
    pub(super) fn write(self, request: Request) -> Request {
        request
            .attribute(NFTA_COUNTER_BYTES, &self.bytes.to_be_bytes())
            .attribute(NFTA_COUNTER_PACKETS, &self.packets.to_be_bytes())
    }

    /// Reads the two numbers of a counter.
    pub(super) fn read(data: &[u8]) -> Option<Self> {
        let number = |kind| Some(u64::from_be_bytes(*find(data, kind)?.first_chunk()?));
        Some(Self { packets: number(NFTA_COUNTER_PACKETS)?, bytes: number(NFTA_COUNTER_BYTES)? })
    }
}

/// One step of a rule.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Expression {
    /// Loads what is known of the packet.
    Load(Meta),
    /// Loads the four bytes of an IPv4 address.
    LoadAddress(Side),
    /// Keeps the bits of the mask.
    Mask([u8; 4]),
    /// Ends the rule unless the register begins with these bytes.
    Equals(Vec<u8>),
    /// Ends the rule if it does.
    Differs(Vec<u8>),
    /// Counts the packet in the rule itself.
    Count(Traffic),
    /// Counts the packet in the counter of this name, which outlives the rule.
    CountIn(String),
    /// Decides.
    Decide(Verdict),
    /// Something that the guard never writes, by its name.
    Foreign(String),
}

impl Expression {
    fn name(&self) -> &str {
        match self {
            Self::Load(_) => "meta",
            Self::LoadAddress(_) => "payload",
            Self::Mask(_) => "bitwise",
            Self::Equals(_) | Self::Differs(_) => "cmp",
            Self::Count(_) => "counter",
            Self::CountIn(_) => "objref",
            Self::Decide(_) => "immediate",
            Self::Foreign(name) => name,
        }
    }

    /// Appends the expression to the list of a rule.
    pub(super) fn write(&self, list: Request) -> Request {
        list.nested(NFTA_LIST_ELEM, |element| {
            element
                .string(NFTA_EXPR_NAME, self.name())
                .nested(NFTA_EXPR_DATA, |data| self.write_data(data))
        })
    }

    fn write_data(&self, data: Request) -> Request {
        let number = |data: Request, kind, value: u32| data.attribute(kind, &value.to_be_bytes());
        match self {
            Self::Load(meta) => {
                let data = number(data, NFTA_META_KEY, meta.key());
                number(data, NFTA_META_DREG, REGISTER)
            }
            Self::LoadAddress(side) => {
                let data = number(data, NFTA_PAYLOAD_DREG, REGISTER);
                let data = number(data, NFTA_PAYLOAD_BASE, NETWORK_HEADER);
                let data = number(data, NFTA_PAYLOAD_OFFSET, side.offset());
                number(data, NFTA_PAYLOAD_LEN, 4)
            }
            Self::Mask(mask) => {
                let data = number(data, NFTA_BITWISE_SREG, REGISTER);
                let data = number(data, NFTA_BITWISE_DREG, REGISTER);
                number(data, NFTA_BITWISE_LEN, 4)
                    .nested(NFTA_BITWISE_MASK, |data| data.attribute(NFTA_DATA_VALUE, mask))
                    .nested(NFTA_BITWISE_XOR, |data| data.attribute(NFTA_DATA_VALUE, &[0; 4]))
            }
            Self::Equals(bytes) | Self::Differs(bytes) => {
                let data = number(data, NFTA_CMP_SREG, REGISTER);
                let equal = matches!(self, Self::Equals(_));
                number(data, NFTA_CMP_OP, if equal { EQUAL } else { NOT_EQUAL })
                    .nested(NFTA_CMP_DATA, |data| data.attribute(NFTA_DATA_VALUE, bytes))
            }
            Self::Count(traffic) => traffic.write(data),
            Self::CountIn(name) => {
                number(data, NFTA_OBJREF_TYPE, COUNTER_OBJECT).string(NFTA_OBJREF_NAME, name)
            }
            Self::Decide(verdict) => number(data, NFTA_IMMEDIATE_DREG, VERDICT_REGISTER).nested(
                NFTA_IMMEDIATE_DATA,
                |data| {
                    data.nested(NFTA_DATA_VERDICT, |data| {
                        number(data, NFTA_VERDICT_CODE, verdict.code())
                    })
                },
            ),
            Self::Foreign(_) => data,
        }
    }

    /// Reads the list of a rule.
    pub(super) fn read_list(list: &[u8]) -> Vec<Self> {
        attributes(list)
            .filter(|(kind, _)| *kind == NFTA_LIST_ELEM)
            .map(|(_, element)| Self::read(element))
            .collect()
    }

    fn read(element: &[u8]) -> Self {
        let name = find(element, NFTA_EXPR_NAME).map(wire::text).unwrap_or_default();
        let data = find(element, NFTA_EXPR_DATA).unwrap_or_default();
        Self::read_data(&name, data).unwrap_or(Self::Foreign(name))
    }

    /// `None` for everything that differs from what the guard writes.
    fn read_data(name: &str, data: &[u8]) -> Option<Self> {
        let number = |kind| network_u32(find(data, kind)?);
        let value = |kind| find(find(data, kind)?, NFTA_DATA_VALUE);
        let is = |kind, wanted| (number(kind)? == wanted).then_some(());
        match name {
            "meta" => {
                is(NFTA_META_DREG, REGISTER)?;
                let key = number(NFTA_META_KEY)?;
                Meta::ALL.into_iter().find(|meta| meta.key() == key).map(Self::Load)
            }
            "payload" => {
                is(NFTA_PAYLOAD_DREG, REGISTER)?;
                is(NFTA_PAYLOAD_BASE, NETWORK_HEADER)?;
                is(NFTA_PAYLOAD_LEN, 4)?;
                let offset = number(NFTA_PAYLOAD_OFFSET)?;
                Side::ALL.into_iter().find(|side| side.offset() == offset).map(Self::LoadAddress)
            }
            "bitwise" => {
                is(NFTA_BITWISE_SREG, REGISTER)?;
                is(NFTA_BITWISE_DREG, REGISTER)?;
                is(NFTA_BITWISE_LEN, 4)?;
                // Named since Linux 5.6; 0 is the only one that there was before.
                if number(NFTA_BITWISE_OP).is_some_and(|operation| operation != 0)
                    || value(NFTA_BITWISE_XOR)? != [0; 4]
                {
                    return None;
                }
                Some(Self::Mask(value(NFTA_BITWISE_MASK)?.try_into().ok()?))
            }
            "cmp" => {
                is(NFTA_CMP_SREG, REGISTER)?;
                let bytes = value(NFTA_CMP_DATA)?.to_vec();
                match number(NFTA_CMP_OP)? {
                    EQUAL => Some(Self::Equals(bytes)),
                    NOT_EQUAL => Some(Self::Differs(bytes)),
                    _ => None,
                }
            }
            "counter" => Traffic::read(data).map(Self::Count),
            "objref" => {
                is(NFTA_OBJREF_TYPE, COUNTER_OBJECT)?;
                Some(Self::CountIn(wire::text(find(data, NFTA_OBJREF_NAME)?)))
            }
            "immediate" => {
                is(NFTA_IMMEDIATE_DREG, VERDICT_REGISTER)?;
                let verdict = find(find(data, NFTA_IMMEDIATE_DATA)?, NFTA_DATA_VERDICT)?;
                let code = network_u32(find(verdict, NFTA_VERDICT_CODE)?)?;
                [Verdict::Accept, Verdict::Drop]
                    .into_iter()
                    .find(|verdict| verdict.code() == code)
                    .map(Self::Decide)
            }
            _ => None,
        }
    }
}

/// The value of the first attribute of this kind.
pub(super) fn find(bytes: &[u8], wanted: u16) -> Option<&[u8]> {
    attributes(bytes).find(|(kind, _)| *kind == wanted).map(|(_, value)| value)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::net::wire::messages;

    fn written(rule: &[Expression]) -> Vec<u8> {
        let list = Request::new(0, 0);
        rule.iter().fold(list, |list, expression| expression.write(list)).finish(0)
    }

    fn read_back(bytes: &[u8]) -> Vec<Expression> {
        Expression::read_list(messages(bytes).next().unwrap().payload)
    }

    fn any_expression() -> impl Strategy<Value = Expression> {
        prop_oneof![
            proptest::sample::select(&Meta::ALL[..]).prop_map(Expression::Load),
            Just(Expression::LoadAddress(Side::Source)),
            Just(Expression::LoadAddress(Side::Destination)),
            any::<[u8; 4]>().prop_map(Expression::Mask),
            proptest::collection::vec(any::<u8>(), 0..17).prop_map(Expression::Equals),
            proptest::collection::vec(any::<u8>(), 0..17).prop_map(Expression::Differs),
            (any::<u64>(), any::<u64>())
                .prop_map(|(packets, bytes)| Expression::Count(Traffic { packets, bytes })),
            "[a-z]{1,8}".prop_map(Expression::CountIn),
            proptest::sample::select(&[Verdict::Accept, Verdict::Drop][..])
                .prop_map(Expression::Decide),
        ]
    }

    proptest! {
        #[test]
        fn a_rule_is_read_as_it_was_written(
            rule in proptest::collection::vec(any_expression(), 0..10),
        ) {
            prop_assert_eq!(read_back(&written(&rule)), rule);
        }

        #[test]
        fn a_flipped_byte_never_panics_the_reader(
            rule in proptest::collection::vec(any_expression(), 1..5),
            place in any::<proptest::sample::Index>(),
            flip in 1u8..,
        ) {
            let bytes = written(&rule);
            let mut list = messages(&bytes).next().unwrap().payload.to_vec();
            let place = place.index(list.len());
            list[place] ^= flip;
            // A length that became shorter lets what lies inside be read as a list of its own.
            prop_assert!(Expression::read_list(&list).len() <= list.len() / 4);
        }

        #[test]
        fn any_bytes_can_be_read(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            prop_assert!(Expression::read_list(&bytes).len() <= bytes.len() / 4);
        }
    }

    #[test]
    fn what_the_guard_never_writes_is_foreign() {
        let number = |value: u32| value.to_be_bytes();
        let element = |name: &str, data: fn(Request) -> Request| {
            let list = Request::new(0, 0).nested(NFTA_LIST_ELEM, |element| {
                element.string(NFTA_EXPR_NAME, name).nested(NFTA_EXPR_DATA, data)
            });
            read_back(&list.finish(0)).remove(0)
        };
        assert_eq!(number(1), [0, 0, 0, 1], "the bytes below are in network order");
        for (name, data) in [
            ("limit", (|data| data) as fn(Request) -> Request),
            ("meta", |data| data.attribute(1, &[0, 0, 0, 2]).attribute(2, &[0, 0, 0, 3])),
            ("cmp", |data| {
                data.attribute(1, &[0, 0, 0, 1])
                    .attribute(2, &[0, 0, 0, 2]) // less
                    .nested(3, |data| data.attribute(1, &[2]))
            }),
            ("immediate", |data| {
                data.attribute(1, &[0; 4])
                    .nested(2, |data| data.nested(2, |data| data.attribute(1, &[0xff; 4])))
            }),
            ("counter", |data| data.attribute(1, &[0; 7])),
        ] {
            assert_eq!(element(name, data), Expression::Foreign(name.into()));
        }
    }
}
