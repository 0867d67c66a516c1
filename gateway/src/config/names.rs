//! The names in DNS that selectors name, and who is asked for them.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::str::FromStr;

use api::document::{Document, Selector};
use ipnet::IpNet;
use serde::{Deserialize, Deserializer};
use smartgroups_discovery::dns::{DnsName, MOST_NAMES, Rules, Settings};

use super::check::Checks;
use super::decode::short;
use super::settings::{Gateway, Seconds, parsed};
use super::tree::{Path, at};

/// How names are asked for.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Dns {
    /// Who is asked; none stated: whom /etc/resolv.conf names.
    pub servers: Vec<DnsServer>,
    /// For how long after its TTL an address stays that was answered.
    pub grace: Seconds,
}

impl Default for Dns {
    fn default() -> Self {
        let grace = Seconds::new(Rules::GRACE.as_secs() as u32);
        Self { servers: Vec::new(), grace: grace.expect("an hour is from a second to a year") }
    }
}

/// A server of DNS, written with or without its port.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct DnsServer(pub SocketAddr);

const SERVER: &str = "an address, with a port if it is not 53, such as 10.0.0.2 or 10.0.0.2:5353";

impl FromStr for DnsServer {
    type Err = api::value::Expected;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let alone = || text.parse::<IpAddr>().map(|address| (address, 53).into());
        let server: SocketAddr =
            text.parse().or_else(|_| alone()).map_err(|_| api::value::Expected(SERVER))?;
        let is_host = !server.ip().is_unspecified() && !server.ip().is_multicast();
        if server.port() != 0 && is_host {
            Ok(Self(server))
        } else {
            Err(api::value::Expected(SERVER))
        }
    }
}

impl<'de> Deserialize<'de> for DnsServer {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        parsed(deserializer, SERVER)
    }
}

/// The names that selectors of the documents name.
pub(super) fn named(documents: &[Document]) -> BTreeSet<DnsName> {
    let groups = documents.iter().filter_map(|document| match document {
        Document::SmartGroup(group) => Some(&group.spec),
        Document::Endpoint(_)
        | Document::Namespace(_)
        | Document::Rule(_)
        | Document::DefaultAction(_)
        | Document::SnatPolicy(_) => None,
    });
    let selectors = groups.flat_map(|group| group.selectors.iter().chain(&group.exclude));
    selectors.filter_map(|selector| DnsName::new(selector.fqdn.as_deref()?).ok()).collect()
}

/// Which names are to be asked for, and how.
#[must_use]
pub fn asked(gateway: &Gateway, documents: &[Document]) -> Settings {
    Settings {
        names: named(documents),
        servers: gateway.dns.servers.iter().map(|server| server.0).collect(),
        rules: Rules {
            grace: gateway.dns.grace.duration(),
            non_routable: gateway
                .non_routable
                .iter()
                .map(|prefix| IpNet::V4(prefix.net()))
                .collect(),
        },
    }
}

impl Checks<'_> {
    pub(super) fn dns(&mut self, dns: &Dns) {
        let at = at!["gateway", "dns", "servers"];
        let servers = dns.servers.iter().enumerate();
        self.unique(servers.map(|(n, server)| (at.child(n), server.0)));
    }

    /// A name that a selector names can be asked for, and nothing is asked of what it has.
    pub(super) fn fqdn(&mut self, at: &Path, selector: &Selector) {
        let Some(text) = &selector.fqdn else { return };
        if let Err(wrong) = DnsName::new(text) {
            let message = format!("`fqdn` is \"{}\", {wrong}", short(text));
            self.error(&at.child("fqdn"), message);
        }
        let part =
            Selector { fqdn: selector.fqdn.clone(), cidr: selector.cidr, ..Selector::default() };
        if *selector != part {
            let message = "`fqdn` holds addresses of the fabric, of which nothing else is known; \
                           expected `cidr` at most beside it";
            self.error(&at.child("fqdn"), message.to_owned());
        }
    }

    pub(super) fn fqdns(&mut self, documents: &[Document]) {
        let count = named(documents).len();
        if count > MOST_NAMES {
            let message =
                format!("selectors name {count} names in DNS; expected at most {MOST_NAMES}");
            self.error(&at!["documents"], message);
        }
    }
}
