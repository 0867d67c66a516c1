//! Names against a server that says what a test wants it to.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use hickory_resolver::proto::op::{Message, OpCode, ResponseCode};
use hickory_resolver::proto::rr::rdata::{A, AAAA, CNAME, SOA};
use hickory_resolver::proto::rr::{Name, RData, Record, RecordType};
use smartgroups::Change;
use smartgroups_discovery::dns::{DnsName, Learned, Names, Rules, Settings};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, UdpSocket};
use tokio::sync::mpsc;
use tokio::time::timeout;

const SOON: Duration = Duration::from_secs(20);

/// What a server says of a name and a kind of record.
#[derive(Clone)]
enum Says {
    Records(Vec<RData>),
    /// More than fits, so only the beginning and that there is more.
    More(Vec<RData>),
    Fails,
    Silence,
}

type Zone = BTreeMap<(String, RecordType), Says>;

/// A server, until the runtime of its test ends.
#[derive(Clone, Default)]
struct Server {
    zone: Arc<Mutex<Zone>>,
    asked: Arc<Mutex<Vec<(String, RecordType)>>>,
    /// From which ports.
    ports: Arc<Mutex<Vec<u16>>>,
}

impl Server {
    async fn start() -> (Self, SocketAddr) {
        let server = Self::default();
        let tcp = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let address = tcp.local_addr().unwrap();
        let udp = UdpSocket::bind(address).await.unwrap();
        let (by_udp, by_tcp) = (server.clone(), server.clone());
        tokio::spawn(async move {
            let mut buffer = [0; 4_096];
            loop {
                let (length, from) = udp.recv_from(&mut buffer).await.unwrap();
                by_udp.ports.lock().unwrap().push(from.port());
                if let Some(answer) = by_udp.answer(&buffer[..length], false) {
                    udp.send_to(&answer, from).await.unwrap();
                }
            }
        });
        tokio::spawn(async move {
            loop {
                let (mut stream, _) = tcp.accept().await.unwrap();
                let server = by_tcp.clone();
                tokio::spawn(async move {
                    while let Ok(length) = stream.read_u16().await {
                        let mut question = vec![0; length.into()];
                        stream.read_exact(&mut question).await.unwrap();
                        if let Some(answer) = server.answer(&question, true) {
                            stream.write_u16(answer.len() as u16).await.unwrap();
                            stream.write_all(&answer).await.unwrap();
                        }
                    }
                });
            }
        });
        (server, address)
    }

    fn says(&self, name: &str, kind: RecordType, says: Says) {
        self.zone.lock().unwrap().insert((format!("{name}."), kind), says);
    }

    fn address(&self, name: &str, addresses: &[[u8; 4]]) {
        let addresses = addresses.iter().map(|one| RData::A(A((*one).into())));
        self.says(name, RecordType::A, Says::Records(addresses.collect()));
    }

    fn count(&self, name: &str, kind: RecordType) -> usize {
        let asked = self.asked.lock().unwrap();
        asked.iter().filter(|one| **one == (format!("{name}."), kind)).count()
    }

    /// TTLs are 5 s; what is not in the zone does not exist, for an hour.
    fn answer(&self, bytes: &[u8], has_room: bool) -> Option<Vec<u8>> {
        let question = Message::from_vec(bytes).unwrap();
        let query = question.queries[0].clone();
        let (name, kind) = (query.name().clone(), query.query_type());
        let asked = (name.to_string().to_ascii_lowercase(), kind);
        self.asked.lock().unwrap().push(asked.clone());
        let zone = self.zone.lock().unwrap();
        let mut answer = Message::response(question.metadata.id, OpCode::Query);
        answer.metadata.recursion_available = true;
        answer.add_query(query);
        let alias = || zone.get(&(asked.0.clone(), RecordType::CNAME));
        let says = zone.get(&asked).or_else(alias);
        match says.cloned() {
            Some(Says::Records(records)) => {
                answer.add_answers(
                    records.into_iter().map(|data| Record::from_rdata(name.clone(), 5, data)),
                );
            }
            Some(Says::More(records)) => {
                answer.metadata.truncation = !has_room;
                let room = if has_room { records.len() } else { 1 };
                let records = records.into_iter().take(room);
                answer.add_answers(records.map(|data| Record::from_rdata(name.clone(), 5, data)));
            }
            Some(Says::Fails) => answer.metadata.response_code = ResponseCode::ServFail,
            Some(Says::Silence) => return None,
            None => {
                let exists = zone.keys().any(|(known, _)| *known == asked.0);
                if !exists {
                    answer.metadata.response_code = ResponseCode::NXDomain;
                }
                let soa = SOA::new(name.clone(), name.clone(), 1, 3_600, 3_600, 3_600, 3_600);
                answer.add_authority(Record::from_rdata(name, 3_600, RData::SOA(soa)));
            }
        }
        Some(answer.to_vec().unwrap())
    }
}

struct Asked {
    names: Names,
    learned: mpsc::Receiver<Learned>,
    settings: Settings,
}

impl Asked {
    fn of(names: &[&str], server: SocketAddr) -> Self {
        let (sender, learned) = mpsc::channel(16);
        let settings = Settings {
            names: names.iter().map(|name| DnsName::new(name).unwrap()).collect(),
            servers: vec![server],
            rules: Rules {
                grace: Rules::GRACE,
                non_routable: vec!["100.64.0.0/10".parse().unwrap()],
            },
        };
        let names = Names::spawn(sender);
        assert_eq!(names.follow(&settings), []);
        Self { names, learned, settings }
    }

    fn addresses(&self, name: &str) -> Vec<String> {
        let change = self.names.change(&DnsName::new(name).unwrap());
        let Some(Change::Endpoint(endpoint)) = change else { panic!("{change:?}") };
        endpoint.addresses.iter().map(|prefix| prefix.addr().to_string()).collect()
    }

    /// Waits until a name has these addresses and no others, by what is said to have changed.
    async fn until(&mut self, name: &str, expected: &[&str]) {
        let wait = async {
            while self.addresses(name) != expected {
                let learned = self.learned.recv().await.unwrap();
                assert!(self.settings.names.contains(&learned.name));
            }
        };
        let done = timeout(SOON, wait).await;
        assert!(done.is_ok(), "{name} has {:?} instead of {expected:?}", self.addresses(name));
    }

    /// Waits until this is wrong with a name.
    async fn until_fault(&self, name: &str, expected: &str) {
        let fault = || {
            let status = self.names.status();
            status.into_iter().find(|one| one.name.as_str() == name).and_then(|one| one.fault)
        };
        let wait = async {
            while !fault().is_some_and(|fault| fault.contains(expected)) {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        assert!(timeout(SOON, wait).await.is_ok(), "{:?} is wrong, not {expected}", fault());
    }
}

#[tokio::test]
async fn addresses_of_both_families_are_learned_also_by_way_of_other_names() {
    let (server, address) = Server::start().await;
    let alias =
        |target: &str| Says::Records(vec![RData::CNAME(CNAME(Name::from_ascii(target).unwrap()))]);
    server.address("api.example", &[[192, 0, 2, 1], [192, 0, 2, 2]]);
    let six = RData::AAAA(AAAA("2001:db8::1".parse().unwrap()));
    server.says("api.example", RecordType::AAAA, Says::Records(vec![six]));
    server.says("www.example", RecordType::CNAME, alias("cdn.example."));
    server.says("cdn.example", RecordType::CNAME, alias("edge.example."));
    server.address("edge.example", &[[192, 0, 2, 9]]);
    let many: Vec<RData> = (0..200).map(|n| RData::A(A([192, 0, 2, n].into()))).collect();
    server.says("many.example", RecordType::A, Says::More(many));
    server.address("bad.example", &[[100, 64, 0, 1], [169, 254, 169, 254]]);
    let all = ["api.example", "www.example", "many.example", "bad.example"];
    let mut asked = Asked::of(&all, address);
    asked.until("api.example", &["192.0.2.1", "192.0.2.2", "2001:db8::1"]).await;
    asked.until("www.example", &["192.0.2.9"]).await;
    let many: Vec<String> = (0..200).map(|n| format!("192.0.2.{n}")).collect();
    asked.until("many.example", &many.iter().map(String::as_str).collect::<Vec<_>>()).await;
    asked.until_fault("bad.example", "100.64.0.1 is non-routable, 169.254.169.254 is").await;
    assert_eq!(asked.addresses("bad.example"), [""; 0]);
    let range = std::fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range").unwrap();
    let range: Vec<u16> = range.split_whitespace().map(|port| port.parse().unwrap()).collect();
    let ports = server.ports.lock().unwrap().clone();
    assert!(ports.len() >= 8, "{ports:?}");
    for port in ports {
        assert!((range[0]..=range[1]).contains(&port), "{port} may be lent to a flow");
    }
}

#[tokio::test]
async fn a_name_is_asked_again_when_its_ttl_ends_and_keeps_what_it_had() {
    let (server, address) = Server::start().await;
    server.address("api.example", &[[192, 0, 2, 1]]);
    let mut asked = Asked::of(&["api.example", "later.example"], address);
    asked.until("api.example", &["192.0.2.1"]).await;
    asked.until_fault("later.example", "DNS has no address for it").await;
    server.address("api.example", &[[192, 0, 2, 2]]);
    server.address("later.example", &[[192, 0, 2, 3]]);
    asked.until("api.example", &["192.0.2.1", "192.0.2.2"]).await;
    assert_eq!(server.count("api.example", RecordType::A), 2, "not before its TTL of 5 s");
    // That there was no such name was good for an hour, as its zone had it.
    asked.until("later.example", &["192.0.2.3"]).await;
    server.says("api.example", RecordType::A, Says::Fails);
    asked.until_fault("api.example", "IPv4: ").await;
    assert_eq!(asked.addresses("api.example"), ["192.0.2.1", "192.0.2.2"]);
    // One that is not asked for any more is gone, whoever answers yet.
    asked.settings.names.clear();
    let mut gone: Vec<_> = asked.names.follow(&asked.settings);
    gone.retain(|change| matches!(change, Change::Gone(_)));
    assert_eq!(gone.len(), 2);
    assert_eq!(asked.names.change(&DnsName::new("api.example").unwrap()), None);
}

#[tokio::test]
async fn a_server_that_says_nothing_holds_up_no_other_name() {
    let (server, address) = Server::start().await;
    server.says("slow.example", RecordType::A, Says::Silence);
    server.says("slow.example", RecordType::AAAA, Says::Silence);
    server.address("api.example", &[[192, 0, 2, 1]]);
    let mut asked = Asked::of(&["api.example", "slow.example"], address);
    asked.until("api.example", &["192.0.2.1"]).await;
    asked.until_fault("slow.example", "IPv4: ").await;
    assert_eq!(asked.addresses("api.example"), ["192.0.2.1"]);
}
