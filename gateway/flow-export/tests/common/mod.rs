//! Records to export.
#![allow(dead_code, reason = "each test file uses its part")]

use flow_export::{
    End, EventKind, FlowRecord, Named, Protocol, SessionId, TcpFlags, Timestamp, Traffic, Tuple,
    Verdict,
};
use std::sync::Arc;

fn groups(names: &[&str]) -> Option<Arc<[Arc<str>]>> {
    Some(names.iter().map(|name| Arc::from(*name)).collect())
}

/// A pod that talked to an object store, over.
pub(crate) fn ended() -> FlowRecord {
    FlowRecord {
        time: "2026-01-31T12:00:09.500Z".parse().unwrap(),
        gateway: "gw-1".into(),
        event: EventKind::End,
        session: Some(SessionId(0x0000_0007_0000_002a)),
        verdict: Verdict::Permit,
        reason: Some("closed".into()),
        protocol: Protocol::TCP,
        source: End {
            address: "100.64.1.10".parse().unwrap(),
            port: 40_000,
            domain: "prod-eu".into(),
            endpoint: Some("checkout/api-7f9c".into()),
            cluster: Some("prod-eu".into()),
            namespace: Some("checkout".into()),
            service: Some("api".into()),
            groups: groups(&["payments", "pods"]),
            identity: 77,
        },
        destination: End {
            address: "192.0.2.7".parse().unwrap(),
            port: 443,
            domain: "fabric".into(),
            endpoint: None,
            cluster: None,
            namespace: None,
            service: None,
            groups: groups(&["public-internet"]),
            identity: 5,
        },
        translated: Some(Tuple {
            source_address: "10.10.0.17".parse().unwrap(),
            source_port: 50_000,
            destination_address: "192.0.2.7".parse().unwrap(),
            destination_port: 443,
        }),
        rule: Some(Named { id: 100, name: Some("payments-to-s3".into()) }),
        would_match: Some(Named { id: 101, name: None }),
        snat_policy: Some(Named { id: 9, name: Some("pods-to-transit".into()) }),
        mark: Some(7),
        ingress: Some("prod-eu-pods".into()),
        egress: Some("transit".into()),
        start: "2026-01-31T12:00:00.000Z".parse().unwrap(),
        last_seen: "2026-01-31T12:00:09.250Z".parse().unwrap(),
        duration_ms: 9_250,
        original: Traffic { packets: 10, bytes: 1_200, tcp_flags: Some(TcpFlags(0x1b)) },
        reply: Traffic { packets: 8, bytes: 90_000, tcp_flags: Some(TcpFlags(0x13)) },
        suppressed: 0,
        generation: 3,
    }
}

/// Something unknown that was refused by the default action, the eleventh time.
pub(crate) fn denied() -> FlowRecord {
    let time: Timestamp = "2026-01-31T12:00:10.000Z".parse().unwrap();
    let ended = ended();
    FlowRecord {
        time,
        event: EventKind::Deny,
        session: None,
        verdict: Verdict::Deny,
        reason: Some("default_denied".into()),
        protocol: Protocol(47),
        source: End { port: 0, ..ended.source },
        destination: End { port: 0, ..ended.destination },
        translated: None,
        rule: None,
        would_match: None,
        snat_policy: None,
        mark: None,
        egress: None,
        start: time,
        last_seen: time,
        duration_ms: 0,
        original: Traffic { packets: 1, bytes: 84, tcp_flags: None },
        reply: Traffic::default(),
        suppressed: 10,
        ..ended
    }
}
