//! EC2 and STS that fail on command.
//!
//! The real ones page when they like, throttle when somebody else was greedy, and refuse one action of
//! ten. This one does so when a test needs it, for several accounts and regions, and writes down what it
//! was asked. It does not look at signatures, only at whose key they were made with: tests/moto.rs has a
//! server that does.

#![allow(dead_code, reason = "each test binary uses a part of it")]

mod signature;

use std::collections::{BTreeMap, BTreeSet};
use std::convert::Infallible;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, SystemTime};

use http_body_util::{BodyExt as _, Full};
use hyper::body::{Bytes, Incoming};
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use smartgroups_aws::{Endpoints, Identity, Role};
use tokio::net::TcpListener;
use tokio::task::JoinSet;

/// The account whose keys the gateway has.
pub(crate) const BASE: &str = "999999999999";
/// What must never be said.
pub(crate) const SECRETS: [&str; 4] =
    ["base-secret", "session-secret", "session-token", "our-external-id"];
const BASE_KEY: &str = "AKIABASE";
const SESSION_KEY: &str = "ASIA";

/// What becomes of a question.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    /// It is not allowed.
    Denied,
    /// It is throttled, so many times.
    Throttled(u32),
    /// The first page is told, and the second fails.
    AfterFirstPage,
    /// The answer breaks off in the middle.
    CutOff,
    /// There is never an answer.
    Silent,
}

/// Account, region, action; of routes also the table.
type Place = (String, String, String);

#[derive(Default)]
struct State {
    /// The items of each list.
    lists: BTreeMap<Place, Vec<String>>,
    faults: BTreeMap<Place, Fault>,
    page: usize,
    asked: Vec<Place>,
    /// External ids that roles ask for, by account.
    external_ids: BTreeMap<String, String>,
    /// Accounts whose role trusts nobody.
    distrustful: BTreeSet<String>,
    /// How long sessions live.
    session: Duration,
    /// Which session of an account is the last.
    sessions: BTreeMap<String, u32>,
    session_names: BTreeSet<String>,
}

/// The server; gone when dropped.
pub(crate) struct Fake {
    state: Arc<Mutex<State>>,
    address: SocketAddr,
    credentials: PathBuf,
    _tasks: JoinSet<()>,
}

impl Fake {
    pub(crate) async fn start() -> Self {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let name = format!("sluice-aws-{}-{number}", std::process::id());
        let credentials = std::env::temp_dir().join(name);
        let keys = format!(
            "[default]\naws_access_key_id = {BASE_KEY}\naws_secret_access_key = {}\n",
            SECRETS[0]
        );
        std::fs::write(&credentials, keys).unwrap();
        let session = Duration::from_secs(3600);
        let state = Arc::new(Mutex::new(State { page: 100, session, ..State::default() }));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let mut tasks = JoinSet::new();
        let shared = Arc::clone(&state);
        tasks.spawn(async move {
            let mut connections = JoinSet::new();
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let shared = Arc::clone(&shared);
                connections.spawn(async move {
                    let service = service_fn(|request| answer(Arc::clone(&shared), request));
                    // Whoever goes away in the middle of an answer is not missed.
                    let _ = hyper::server::conn::http1::Builder::new()
                        .serve_connection(TokioIo::new(stream), service)
                        .await;
                });
            }
        });
        Self { state, address, credentials, _tasks: tasks }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    pub(crate) fn endpoints(&self) -> Endpoints {
        // With the region in it, as private endpoints may have.
        let url = |service| Some(format!("http://{}/{service}/{{region}}", self.address));
        Endpoints { ec2: url("ec2"), sts: url("sts") }
    }

    /// Somebody of an account: by a role, unless it is the account of the keys.
    pub(crate) fn identity(&self, account: &str) -> Identity {
        let role = Role {
            external_id: Some(SECRETS[3].to_owned()),
            session_name: "gw-test".to_owned(),
            ..Role::new(format!("arn:aws:iam::{account}:role/sluice-discovery"))
        };
        Identity {
            credentials_file: Some(self.credentials.clone()),
            role: (account != BASE).then_some(role),
        }
    }

    /// States a list.
    pub(crate) fn set(&self, account: &str, region: &str, action: &str, items: Vec<String>) {
        self.state().lists.insert(place(account, region, action), items);
    }

    pub(crate) fn fault(&self, account: &str, region: &str, action: &str, fault: Fault) {
        self.state().faults.insert(place(account, region, action), fault);
    }

    /// From now on everything is answered.
    pub(crate) fn heal(&self) {
        self.state().faults.clear();
    }

    /// How much a page holds.
    pub(crate) fn page(&self, items: usize) {
        self.state().page = items;
    }

    /// The role of an account asks for an external id.
    pub(crate) fn ask_for(&self, account: &str, external_id: &str) {
        self.state().external_ids.insert(account.to_owned(), external_id.to_owned());
    }

    /// The role of an account trusts us no more, or again.
    pub(crate) fn trust(&self, account: &str, trusts: bool) {
        let mut state = self.state();
        if trusts {
            state.distrustful.remove(account);
        } else {
            state.distrustful.insert(account.to_owned());
        }
    }

    /// How long sessions live that begin from now on.
    pub(crate) fn sessions_live(&self, time: Duration) {
        self.state().session = time;
    }

    /// How many sessions of an account there were.
    pub(crate) fn sessions(&self, account: &str) -> u32 {
        self.state().sessions.get(account).copied().unwrap_or_default()
    }

    pub(crate) fn session_names(&self) -> Vec<String> {
        self.state().session_names.iter().cloned().collect()
    }

    /// Whose token it is, as an API server finds out that is called so: it asks STS what the token says.
    pub(crate) fn token_of(&self, token: &str, cluster: &str) -> Result<String, &'static str> {
        let text = token.strip_prefix("k8s-aws-v1.").ok_or("it is no token of EKS")?;
        let padding = "=".repeat((4 - text.len() % 4) % 4);
        let text = text.replace('-', "+").replace('_', "/") + &padding;
        let url = aws_smithy_types::base64::decode(text).map_err(|_| "it is not encoded")?;
        let url = String::from_utf8(url).map_err(|_| "it is no text")?;
        let (host, query) =
            url.strip_prefix("https://").and_then(|url| url.split_once("/?")).unwrap();
        let query: Vec<(String, String)> = query
            .split('&')
            .map(|pair| pair.split_once('=').unwrap())
            .map(|(name, value)| (name.to_owned(), value.to_owned()))
            .collect();
        let get = |wanted: &str| {
            let pair = query.iter().find(|(name, _)| name == wanted);
            decoded(&pair.unwrap_or_else(|| panic!("{wanted} is missing")).1)
        };
        assert_eq!(
            (get("Action").as_str(), get("X-Amz-Expires").as_str()),
            ("GetCallerIdentity", "60")
        );
        assert_eq!(get("X-Amz-SignedHeaders"), "host;x-k8s-aws-id");
        let credential = get("X-Amz-Credential");
        let (key, scope) = credential.split_once('/').unwrap();
        let account = account(&self.state(), key).ok_or("the session is over")?;
        let is_session = account != BASE;
        if is_session {
            assert_eq!(get("X-Amz-Security-Token"), SECRETS[2]);
        }
        let headers = [("host", host), ("x-k8s-aws-id", cluster)];
        let (secret, date) = (SECRETS[usize::from(is_session)], get("X-Amz-Date"));
        if signature::of_query(&query, &headers, secret, scope, &date) == get("X-Amz-Signature") {
            Ok(account)
        } else {
            Err("the signature does not fit")
        }
    }

    /// What was asked since the last time this was asked.
    pub(crate) fn asked(&self) -> Vec<Place> {
        std::mem::take(&mut self.state().asked)
    }
}

impl Drop for Fake {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.credentials);
    }
}

fn place(account: &str, region: &str, action: &str) -> Place {
    (account.to_owned(), region.to_owned(), action.to_owned())
}

/// In which element the answers to an action have their items.
fn element(action: &str) -> &'static str {
    match action {
        "DescribeVpcs" => "vpcSet",
        "DescribeSubnets" => "subnetSet",
        "DescribeNetworkInterfaces" => "networkInterfaceSet",
        "DescribeInstances" => "reservationSet",
        "DescribeVpcPeeringConnections" => "vpcPeeringConnectionSet",
        "DescribeTransitGateways" => "transitGatewaySet",
        "DescribeTransitGatewayAttachments" => "transitGatewayAttachments",
        "DescribeTransitGatewayPeeringAttachments" => "transitGatewayPeeringAttachments",
        "DescribeTransitGatewayRouteTables" => "transitGatewayRouteTables",
        "SearchTransitGatewayRoutes" => "routeSet",
        other => panic!("nobody should ask for {other}"),
    }
}

/// The parameters of a question.
fn parameters(body: &str) -> BTreeMap<String, String> {
    let pairs = body.split('&').filter_map(|pair| pair.split_once('='));
    pairs.map(|(key, value)| (decoded(key), decoded(value))).collect()
}

fn decoded(text: &str) -> String {
    let mut bytes = Vec::new();
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        bytes.push(match byte {
            b'+' => b' ',
            b'%' => {
                let digits = [rest.next().unwrap(), rest.next().unwrap()];
                u8::from_str_radix(std::str::from_utf8(&digits).unwrap(), 16).unwrap()
            }
            other => other,
        });
    }
    String::from_utf8(bytes).unwrap()
}

fn said(code: u16, body: String) -> Response<Full<Bytes>> {
    let response = Response::builder().status(code).header("content-type", "text/xml");
    response.body(Full::new(Bytes::from(body))).unwrap()
}

/// An error of EC2.
fn failed(code: u16, name: &str) -> Response<Full<Bytes>> {
    let body = format!(
        "<Response><Errors><Error><Code>{name}</Code><Message>as told</Message></Error></Errors>\
         <RequestID>r-1</RequestID></Response>"
    );
    said(code, body)
}

async fn answer(
    shared: Arc<Mutex<State>>,
    request: Request<Incoming>,
) -> Result<Response<Full<Bytes>>, Infallible> {
    let (head, body) = request.into_parts();
    let body = body.collect().await.unwrap().to_bytes();
    let asked = parameters(std::str::from_utf8(&body).unwrap());
    let signed = head.headers.get("authorization").map(|text| text.to_str().unwrap());
    // AWS4-HMAC-SHA256 Credential=KEY/DATE/REGION/SERVICE/aws4_request, ...
    let scope = signed.and_then(|text| text.split("Credential=").nth(1)).unwrap_or_default();
    let scope: Vec<&str> = scope.split('/').collect();
    let &[key, _, region, service, ..] = scope.as_slice() else {
        return Ok(failed(403, "AuthFailure"));
    };
    let path = head.uri.path().trim_end_matches('/');
    assert!(path.ends_with(region), "{} is asked for {region}", head.uri);
    let answer = match service {
        "sts" => sts(&mut shared.lock().unwrap(), key, &asked),
        "ec2" => ec2(&mut shared.lock().unwrap(), key, region, &asked),
        other => panic!("nobody should ask {other}"),
    };
    match answer {
        Some(answer) => Ok(answer),
        None => std::future::pending().await,
    }
}

/// Whose key it is; `None` for a session that is over.
fn account(state: &State, key: &str) -> Option<String> {
    if key == BASE_KEY {
        return Some(BASE.to_owned());
    }
    let (account, session) = key.strip_prefix(SESSION_KEY)?.split_once('S')?;
    let last = state.sessions.get(account).copied().unwrap_or_default();
    (last.to_string() == session).then(|| account.to_owned())
}

fn sts(
    state: &mut State,
    key: &str,
    asked: &BTreeMap<String, String>,
) -> Option<Response<Full<Bytes>>> {
    let refused = |why: &str| {
        let body = format!(
            "<ErrorResponse><Error><Type>Sender</Type><Code>AccessDenied</Code><Message>{why}</Message>\
             </Error><RequestId>r-1</RequestId></ErrorResponse>"
        );
        Some(said(403, body))
    };
    let Some(account) = account(state, key) else { return refused("the session is over") };
    let action = asked["Action"].as_str();
    state.asked.push(place(&account, "sts", action));
    if action == "GetCallerIdentity" {
        let body = format!(
            "<GetCallerIdentityResponse><GetCallerIdentityResult><Account>{account}</Account>\
             <Arn>arn:aws:iam::{account}:x</Arn><UserId>u</UserId></GetCallerIdentityResult>\
             </GetCallerIdentityResponse>"
        );
        return Some(said(200, body));
    }
    assert_eq!(action, "AssumeRole");
    // arn:aws:iam::ACCOUNT:role/NAME
    let role = asked["RoleArn"].clone();
    let target = role.split(':').nth(4).unwrap().to_owned();
    let wanted = state.external_ids.get(&target);
    let fits = wanted.is_none_or(|wanted| asked.get("ExternalId") == Some(wanted));
    if account != BASE || state.distrustful.contains(&target) || !fits {
        return refused("not trusted");
    }
    state.session_names.insert(asked["RoleSessionName"].clone());
    let session = state.sessions.entry(target.clone()).or_default();
    *session += 1;
    let body = format!(
        "<AssumeRoleResponse><AssumeRoleResult><Credentials><AccessKeyId>{SESSION_KEY}{target}S{session}\
         </AccessKeyId><SecretAccessKey>{}</SecretAccessKey><SessionToken>{}</SessionToken>\
         <Expiration>{}</Expiration></Credentials><AssumedRoleUser><AssumedRoleId>x:y</AssumedRoleId>\
         <Arn>{role}</Arn></AssumedRoleUser></AssumeRoleResult></AssumeRoleResponse>",
        SECRETS[1],
        SECRETS[2],
        date(SystemTime::now() + state.session),
    );
    Some(said(200, body))
}

/// A time as AWS writes it.
fn date(time: SystemTime) -> String {
    let time = aws_smithy_types::DateTime::from(time);
    time.fmt(aws_smithy_types::date_time::Format::DateTime).unwrap()
}

fn ec2(
    state: &mut State,
    key: &str,
    region: &str,
    asked: &BTreeMap<String, String>,
) -> Option<Response<Full<Bytes>>> {
    let Some(account) = account(state, key) else { return Some(failed(401, "AuthFailure")) };
    let action = asked["Action"].as_str();
    state.asked.push(place(&account, region, action));
    let table = asked.get("TransitGatewayRouteTableId");
    let list = table.map_or_else(|| action.to_owned(), |table| format!("{action}/{table}"));
    let place = place(&account, region, &list);
    let start: usize = asked.get("NextToken").map_or(0, |token| token.parse().unwrap());
    let fault = state.faults.get_mut(&place);
    match fault {
        Some(Fault::Denied) => return Some(failed(403, "UnauthorizedOperation")),
        Some(Fault::Throttled(times)) if *times > 0 => {
            *times -= 1;
            return Some(failed(503, "RequestLimitExceeded"));
        }
        Some(Fault::AfterFirstPage) if start > 0 => return Some(failed(400, "InvalidState")),
        Some(Fault::Silent) => return None,
        Some(Fault::Throttled(_) | Fault::AfterFirstPage | Fault::CutOff) | None => {}
    }
    let is_cut = matches!(fault, Some(Fault::CutOff));
    let vpc = asked.get("Filter.1.Name").filter(|name| *name == "vpc-id");
    let vpc = vpc.map(|_| format!("<vpcId>{}</vpcId>", asked["Filter.1.Value.1"]));
    let all = state.lists.get(&place).map(Vec::as_slice).unwrap_or_default();
    let all: Vec<&String> =
        all.iter().filter(|item| vpc.as_ref().is_none_or(|vpc| item.contains(vpc))).collect();
    let most = asked.get("MaxResults").map_or(usize::MAX, |most| most.parse().unwrap());
    let end = all.len().min(start + most.min(state.page));
    let items: String = all[start..end].iter().map(|item| format!("<item>{item}</item>")).collect();
    let next =
        if end < all.len() { format!("<nextToken>{end}</nextToken>") } else { String::new() };
    let element = element(action);
    let mut body = format!(
        "<{action}Response><requestId>r-1</requestId><{element}>{items}</{element}>{next}</{action}Response>"
    );
    if is_cut {
        body.truncate(body.len() / 2);
    }
    Some(said(200, body))
}

/// Tags as they stand in an item.
pub(crate) fn tags(tags: &[(&str, &str)]) -> String {
    let tag = |(key, value): &(&str, &str)| {
        format!("<item><key>{key}</key><value>{value}</value></item>")
    };
    format!("<tagSet>{}</tagSet>", tags.iter().map(tag).collect::<String>())
}

/// A VPC.
pub(crate) fn vpc(id: &str, cidrs: &[(&str, &str)]) -> String {
    let association = |(cidr, state): &(&str, &str)| {
        format!(
            "<item><cidrBlock>{cidr}</cidrBlock><cidrBlockState><state>{state}</state>\
             </cidrBlockState></item>"
        )
    };
    let all: String = cidrs.iter().map(association).collect();
    format!(
        "<vpcId>{id}</vpcId><cidrBlock>{}</cidrBlock><cidrBlockAssociationSet>{all}\
         </cidrBlockAssociationSet>",
        cidrs[0].0
    )
}

/// A subnet.
pub(crate) fn subnet(id: &str, vpc: &str, cidr: &str) -> String {
    format!(
        "<subnetId>{id}</subnetId><vpcId>{vpc}</vpcId><cidrBlock>{cidr}</cidrBlock>\
         <availabilityZone>eu-central-1-ham-1a</availabilityZone>\
         <availabilityZoneId>euc1-ham1-az1</availabilityZoneId>"
    )
}

/// An instance of a reservation of its own.
pub(crate) fn instance(id: &str, owner: &str, labels: &[(&str, &str)]) -> String {
    format!(
        "<ownerId>{owner}</ownerId><instancesSet><item><instanceId>{id}</instanceId>\
         <vpcId>vpc-1</vpcId>{}</item></instancesSet>",
        tags(labels)
    )
}

/// An interface of an instance with one address.
pub(crate) fn interface(id: &str, instance: &str, address: &str) -> String {
    format!(
        "<networkInterfaceId>{id}</networkInterfaceId><vpcId>vpc-1</vpcId>\
         <interfaceType>interface</interfaceType>\
         <attachment><instanceId>{instance}</instanceId></attachment>\
         <privateIpAddressesSet><item><privateIpAddress>{address}</privateIpAddress>\
         <primary>true</primary></item></privateIpAddressesSet>"
    )
}

/// A route of a Transit Gateway.
pub(crate) fn route(to: &str, attachment: &str) -> String {
    format!(
        "<destinationCidrBlock>{to}</destinationCidrBlock><type>propagated</type><state>active</state>\
         <transitGatewayAttachments><item><transitGatewayAttachmentId>{attachment}\
         </transitGatewayAttachmentId><resourceType>vpc</resourceType><resourceId>vpc-9</resourceId>\
         </item></transitGatewayAttachments>"
    )
}
