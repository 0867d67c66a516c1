//! Asking DNS.
//!
//! hickory asks, over UDP and, where an answer does not fit, over TCP, and follows names that stand for
//! other names. Nothing is kept by it: how long an answer is good is for the [`super::Book`] to say. It
//! is asked for whole names, so no search domain is tried, and never by way of /etc/hosts: what is meant
//! is what DNS says.

use std::collections::HashSet;
use std::net::SocketAddr;
use std::time::Duration;

use hickory_resolver::TokioResolver;
use hickory_resolver::config::{
    ConnectionConfig, NameServerConfig, ResolveHosts, ResolverConfig, ResolverOpts,
};
use hickory_resolver::net::runtime::TokioRuntimeProvider;
use hickory_resolver::proto::rr::{Name, RData, Record, RecordType};
use hickory_resolver::system_conf::parse_resolv_conf;

use super::{Answer, Family, Question};

/// Where the machine says which servers it asks.
const RESOLV_CONF: &str = "/etc/resolv.conf";
/// For how long one server is waited for.
const A_SERVER: Duration = Duration::from_secs(3);
/// How often each is asked before the question has failed.
const ATTEMPTS: usize = 2;
/// For how long a question is waited for, however many servers and names there are on the way.
const A_QUESTION: Duration = Duration::from_secs(15);

/// Who is asked.
#[derive(Default)]
pub(super) struct Asker {
    /// What the resolver was made from.
    from: Option<Source>,
    resolver: Option<Result<TokioResolver, String>>,
}

#[derive(PartialEq, Eq)]
enum Source {
    Stated(Vec<SocketAddr>),
    File(Vec<u8>),
}

impl Asker {
    /// Who is to be asked now: these servers or, if there are none, those of the machine, which may have
    /// changed since it was looked last.
    pub(super) fn resolver(&mut self, servers: &[SocketAddr]) -> Result<TokioResolver, String> {
        let from = if servers.is_empty() {
            let read = std::fs::read(RESOLV_CONF);
            Source::File(read.map_err(|failed| format!("cannot read {RESOLV_CONF}: {failed}"))?)
        } else {
            Source::Stated(servers.to_vec())
        };
        if self.from.as_ref() != Some(&from) {
            self.resolver = Some(made(&from));
            self.from = Some(from);
        }
        self.resolver.clone().unwrap_or_else(|| Err("no server is known".to_owned()))
    }
}

fn made(from: &Source) -> Result<TokioResolver, String> {
    let config = match from {
        Source::Stated(servers) => {
            ResolverConfig::from_name_servers(servers.iter().copied().map(server).collect())
        }
        Source::File(text) => {
            let read = parse_resolv_conf(text);
            read.map_err(|wrong| format!("{RESOLV_CONF} cannot be used: {wrong}"))?.0
        }
    };
    let provider = TokioRuntimeProvider::default();
    let mut builder = TokioResolver::builder_with_config(config, provider);
    *builder.options_mut() = options();
    builder.build().map_err(|failed| failed.to_string())
}

fn server(address: SocketAddr) -> NameServerConfig {
    let connections = [ConnectionConfig::udp(), ConnectionConfig::tcp()];
    let connections = connections.map(|mut connection| {
        connection.port = address.port();
        connection
    });
    NameServerConfig::new(address.ip(), true, connections.into())
}

fn options() -> ResolverOpts {
    let mut options = ResolverOpts::default();
    options.timeout = A_SERVER;
    options.attempts = ATTEMPTS;
    options.cache_size = 0;
    options.use_hosts_file = ResolveHosts::Never;
    // By the kernel, from the ports that are the machine's own: a gateway lends all others to flows, and
    // an answer to one of those would be another flow's.
    options.os_port_selection = true;
    options
}

/// Asks, and waits for what becomes of it.
pub(super) async fn ask(resolver: TokioResolver, question: Question) -> Answer {
    // It was checked to be one.
    let Ok(mut name) = Name::from_ascii(question.name.as_str()) else { return Answer::Nothing };
    name.set_fqdn(true);
    let kind = match question.family {
        Family::V4 => RecordType::A,
        Family::V6 => RecordType::AAAA,
    };
    match tokio::time::timeout(A_QUESTION, resolver.lookup(name.clone(), kind)).await {
        Ok(Ok(lookup)) => read(&name, lookup.answers()),
        Ok(Err(none)) if none.is_no_records_found() || none.is_nx_domain() => Answer::Nothing,
        Ok(Err(failed)) => Answer::Failed(failed.to_string()),
        Err(_) => Answer::Failed(format!("no answer within {} s", A_QUESTION.as_secs())),
    }
}

/// The addresses that records give for a name, directly or by names that it stands for; what they say
/// of others is not asked for.
fn read(name: &Name, records: &[Record]) -> Answer {
    let mut names = HashSet::from([name.clone()]);
    let mut ttl = u32::MAX;
    // In whatever order they are: each round finds the next name, or was the last.
    loop {
        let before = names.len();
        for record in records {
            if let RData::CNAME(target) = &record.data
                && names.contains(&record.name)
                && names.insert(target.0.clone())
            {
                ttl = ttl.min(record.ttl);
            }
        }
        if names.len() == before {
            break;
        }
    }
    let mut addresses = Vec::new();
    for record in records.iter().filter(|record| names.contains(&record.name)) {
        if let Some(address) = record.data.ip_addr() {
            addresses.push(address);
            ttl = ttl.min(record.ttl);
        }
    }
    if addresses.is_empty() {
        return Answer::Nothing;
    }
    Answer::Addresses { addresses, ttl: Duration::from_secs(ttl.into()) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use hickory_resolver::proto::rr::rdata::{A, CNAME, TXT};

    fn name(text: &str) -> Name {
        Name::from_ascii(text).unwrap()
    }

    fn address(of: &str, ttl: u32, address: [u8; 4]) -> Record {
        Record::from_rdata(name(of), ttl, RData::A(A(address.into())))
    }

    fn stands_for(of: &str, ttl: u32, target: &str) -> Record {
        Record::from_rdata(name(of), ttl, RData::CNAME(CNAME(name(target))))
    }

    #[test]
    fn the_addresses_of_a_name_are_those_that_it_leads_to() {
        let found = |addresses: &[[u8; 4]], ttl| Answer::Addresses {
            addresses: addresses.iter().map(|address| (*address).into()).collect(),
            ttl: Duration::from_secs(ttl),
        };
        let text =
            Record::from_rdata(name("a.example."), 1, RData::TXT(TXT::new(vec!["x".into()])));
        for (records, expected) in [
            (vec![], Answer::Nothing),
            (vec![text.clone()], Answer::Nothing),
            (vec![address("a.example.", 60, [192, 0, 2, 1]), text], found(&[[192, 0, 2, 1]], 60)),
            (vec![address("A.Example.", 60, [192, 0, 2, 1])], found(&[[192, 0, 2, 1]], 60)),
            (vec![address("b.example.", 60, [192, 0, 2, 1])], Answer::Nothing),
            (
                vec![
                    address("a.example.", 60, [192, 0, 2, 1]),
                    address("a.example.", 30, [192, 0, 2, 2]),
                    address("b.example.", 1, [192, 0, 2, 3]),
                ],
                found(&[[192, 0, 2, 1], [192, 0, 2, 2]], 30),
            ),
            // The way, and not its end alone, says for how long.
            (
                vec![
                    address("c.example.", 60, [192, 0, 2, 1]),
                    stands_for("b.example.", 20, "c.example."),
                    stands_for("a.example.", 300, "b.example."),
                    stands_for("x.example.", 1, "y.example."),
                ],
                found(&[[192, 0, 2, 1]], 20),
            ),
            (
                vec![
                    stands_for("a.example.", 300, "b.example."),
                    stands_for("b.example.", 300, "a.example."),
                ],
                Answer::Nothing,
            ),
        ] {
            assert_eq!(read(&name("a.example."), &records), expected, "{records:?}");
        }
    }

    #[test]
    fn servers_are_those_that_are_stated_else_those_of_the_machine() {
        let mut asker = Asker::default();
        let stated = "127.0.0.1:5353".parse().unwrap();
        assert!(asker.resolver(&[stated]).is_ok());
        assert!(matches!(&asker.from, Some(Source::Stated(servers)) if *servers == [stated]));
        let said = made(&Source::File(b"search example\n".to_vec())).map(drop).unwrap_err();
        assert!(said.starts_with("/etc/resolv.conf cannot be used: "), "{said}");
        assert!(made(&Source::File(b"nameserver 10.0.0.2\n".to_vec())).is_ok());
    }
}
