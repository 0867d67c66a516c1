//! A name that DNS can be asked for.

use std::fmt;
use std::net::IpAddr;

use smartgroups::{Endpoint, Text};

/// A whole name in DNS: in small letters, without a dot at its end.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DnsName(Text);

/// Why something is no such name; a sentence that goes on after the text itself.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DnsNameError {
    /// `10.0.0.1`.
    #[error("an address; expected a name, or `cidr` for an address")]
    Address,
    /// `*.example.com`.
    #[error(
        "a wildcard, which DNS has no list of names for: what it stands for is seen in requests \
         alone, and a gateway judges packets; expected each name by itself"
    )]
    Wildcard,
    /// `intranet`.
    #[error(
        "without a dot, and no search domain is tried; expected a whole name such as api.example.com"
    )]
    Part,
    /// `bücher.example`.
    #[error("not in the letters of DNS; expected the form of the name that begins with xn--")]
    International,
    /// `https://example.com/`.
    #[error(
        "no name because of `{0}`; expected letters, digits, `-`, `_` and dots, such as api.example.com"
    )]
    Character(char),
    /// `a..example.com`.
    #[error("no name: between two dots are 1 to 63 characters, the first and the last no `-`")]
    Label,
    /// More than DNS has room for.
    #[error("longer than the 253 characters that a name has at most")]
    Long,
}

impl DnsName {
    /// As many bytes as RFC 1035 has room for, less those that are not written.
    const LONGEST: usize = 253;
    const LONGEST_LABEL: usize = 63;

    /// Takes a name that is one, with or without a dot at its end and in any letters.
    ///
    /// # Errors
    ///
    /// When it is none, or none that can be asked for.
    pub fn new(text: &str) -> Result<Self, DnsNameError> {
        let name = text.strip_suffix('.').unwrap_or(text).to_ascii_lowercase();
        let is_number =
            |label: &str| !label.is_empty() && label.bytes().all(|b| b.is_ascii_digit());
        // As resolvers read it: no top-level domain is a number (RFC 3696).
        if text.parse::<IpAddr>().is_ok() || name.rsplit('.').next().is_some_and(is_number) {
            return Err(DnsNameError::Address);
        }
        if name.contains('*') {
            return Err(DnsNameError::Wildcard);
        }
        if !name.is_ascii() {
            return Err(DnsNameError::International);
        }
        let fits = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
        if let Some(odd) = name.chars().find(|c| !fits(*c)) {
            return Err(DnsNameError::Character(odd));
        }
        if name.len() > Self::LONGEST {
            return Err(DnsNameError::Long);
        }
        let is_label = |label: &str| {
            (1..=Self::LONGEST_LABEL).contains(&label.len())
                && !label.starts_with('-')
                && !label.ends_with('-')
        };
        if !name.split('.').all(is_label) {
            return Err(DnsNameError::Label);
        }
        if !name.contains('.') {
            return Err(DnsNameError::Part);
        }
        Ok(Self(name.into()))
    }

    /// The name of an endpoint, if that has the addresses of a name in DNS.
    pub fn of(endpoint: &Endpoint) -> Option<Self> {
        Self::new(endpoint.fqdn()?).ok()
    }

    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for DnsName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_taken_in_one_form_and_what_is_none_is_refused_for_what_it_is() {
        let long = |length: usize| format!("{}.example", "a".repeat(length));
        let whole = |length: usize| {
            let labels = format!("{}.", "a".repeat(63)).repeat(3);
            format!("{labels}{}", "b".repeat(length - labels.len()))
        };
        for (text, expected) in [
            ("api.example.com", Ok("api.example.com")),
            ("API.Example.com.", Ok("api.example.com")),
            ("_sip.a-b.9.example", Ok("_sip.a-b.9.example")),
            ("xn--bcher-kva.example", Ok("xn--bcher-kva.example")),
            (&long(63), Ok(&long(63))),
            (&long(64), Err(DnsNameError::Label)),
            (&whole(253), Ok(&whole(253))),
            (&whole(254), Err(DnsNameError::Long)),
            ("10.0.0.1", Err(DnsNameError::Address)),
            ("10.0.1", Err(DnsNameError::Address)), // as some programs read it
            ("2001:db8::1", Err(DnsNameError::Address)),
            ("*.example.com", Err(DnsNameError::Wildcard)),
            ("api*.example.com", Err(DnsNameError::Wildcard)),
            ("intranet", Err(DnsNameError::Part)),
            ("intranet.", Err(DnsNameError::Part)),
            ("bücher.example", Err(DnsNameError::International)),
            ("https://example.com", Err(DnsNameError::Character(':'))),
            ("example.com/", Err(DnsNameError::Character('/'))),
            ("10.0.0.0/8", Err(DnsNameError::Character('/'))),
            ("a b.example", Err(DnsNameError::Character(' '))),
            ("", Err(DnsNameError::Label)),
            (".", Err(DnsNameError::Label)),
            ("a..example", Err(DnsNameError::Label)),
            ("a.example..", Err(DnsNameError::Label)),
            ("-a.example", Err(DnsNameError::Label)),
            ("a-.example", Err(DnsNameError::Label)),
        ] {
            let found = DnsName::new(text);
            assert_eq!(found.as_ref().map(DnsName::as_str), expected.as_ref().copied(), "{text}");
        }
    }
}
