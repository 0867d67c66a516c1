//! The page, out of a gateway in memory.

use super::*;
use crate::flows::testing::{self, TWO_CLUSTERS};
use controller::AlarmKind;
use smartgroups_discovery::dns::DnsName;
use std::sync::Arc;
use xdp::memory::Memory;

fn state(scene: &testing::Scene) -> State<Memory> {
    State::new(Arc::clone(&scene.memory), scene.in_force())
}

fn written(facts: &Facts) -> String {
    String::from_utf8(page(facts).unwrap()).unwrap()
}

#[test]
fn the_page_says_what_the_tables_say() {
    let mut scene = testing::scene(TWO_CLUSTERS);
    scene.open_tcp("100.64.1.10:40000", "198.51.100.9:443");
    scene.open_tcp("100.64.1.10:40001", "198.51.100.9:443");
    scene.syn(1, "100.64.1.10:40003", "198.51.100.9:22");
    let state = state(&scene);
    state.set_guard_dropped(3, 4);
    let text = written(&Facts::of(&state).unwrap());
    for line in [
        "sluice_build_info{gateway=\"gw-test\",version=\"0.1.0\"} 1",
        "sluice_received_packets_total 7",
        "sluice_received_bytes_total 378", // from the Ethernet header on
        "sluice_rule_bytes_total{rule=\"no-ssh\"} 40", // from the IP header on
        "sluice_packets_total{direction=\"original\"} 4",
        "sluice_packets_total{direction=\"reply\"} 2",
        "sluice_dropped_packets_total{direction=\"outbound\",reason=\"rule_denied\"} 1",
        "sluice_sessions 2",
        "sluice_sessions_begun_total 2",
        "sluice_session_table_fill_ratio 0.001953125",
        "sluice_table_entries{table=\"sessions\"} 2",
        "sluice_rule_hits_total{rule=\"web\"} 2",
        "sluice_rule_hits_total{rule=\"watch-web\"} 2",
        "sluice_rule_hits_total{rule=\"no-ssh\"} 1",
        "sluice_rules_left_out 0",
        "sluice_snat_port_fill_ratio{destination=\"198.51.100.9:443\",outside=\"203.0.113.1\",\
         policy=\"pods-out\",protocol=\"tcp\"} 0.000031001984126984125",
        "sluice_snat_allocation_failures_total 0",
        "sluice_policy_generation 1",
        "sluice_leaks_stopped_total 0",
        "sluice_guard_dropped_packets_total 3",
        "sluice_guard_unjudged_packets_total 4",
        "sluice_flow_events_lost_total 0",
        "sluice_ready 0",
    ] {
        assert!(text.lines().any(|found| found == line), "{line}\n---\n{text}");
    }
    assert!(!text.contains("no-telnet"), "a rule that was never hit");
    assert!(!text.contains("sluice_flow_records"), "there is no flow log");
    assert!(!text.contains("reason=\"no_route\""), "a reason that never occurred");
}

#[test]
fn contested_addresses_are_counted() {
    let rival = |domain: &str| {
        format!(
            "  - {{ kind: Endpoint, name: rival-{domain}, spec: {{ type: pod, domain: {domain}, \
             addresses: [100.64.1.10, 100.64.1.11] }} }}\n"
        )
    };
    let mut text = TWO_CLUSTERS.to_owned();
    for (count, domain) in ["red", "blue"].into_iter().enumerate() {
        let facts = Facts::of(&state(&testing::scene(&text))).unwrap();
        let line = format!("\nsluice_contested_addresses {count}\n");
        assert!(written(&facts).contains(&line), "{line}");
        text = format!("{}\n{}", text.trim_end(), rival(domain));
    }
}

#[test]
fn a_refused_reload_is_seen_and_does_not_move_the_last_success() {
    let scene = testing::scene(TWO_CLUSTERS);
    let mut facts = Facts::of(&state(&scene)).unwrap();
    facts.reload.succeeded = UNIX_EPOCH + Duration::from_secs(1_700_000_000);
    for (refused, value) in [(None, 1), (Some("sluice.yaml:3: no".to_owned()), 0)] {
        facts.reload.refused = refused;
        let text = written(&facts);
        for line in [
            &format!("sluice_config_last_reload_successful {value}")[..],
            "sluice_config_last_reload_success_timestamp_seconds 1700000000",
        ] {
            assert!(text.lines().any(|found| found == line), "{line}\n---\n{text}");
        }
    }
}

#[test]
fn names_end_in_a_unit_and_counters_in_total() {
    let scene = testing::scene(TWO_CLUSTERS);
    let mut facts = Facts::of(&state(&scene)).unwrap();
    facts.records = Some(Counted::default());
    let text = written(&facts);
    for line in text.lines().filter_map(|line| line.strip_prefix("# TYPE ")) {
        let (name, kind) = line.split_once(' ').unwrap();
        assert_eq!(name.ends_with("_total"), kind == "counter", "{line}");
        assert!(name.starts_with("sluice_"), "{line}");
    }
}

#[test]
fn rules_are_capped_and_the_page_says_how_many_are_left_out() {
    let scene = testing::scene(TWO_CLUSTERS);
    let mut facts = Facts::of(&state(&scene)).unwrap();
    for (number, left_out) in [(RULES, 0), (RULES + 1, 1), (RULES + 77, 77)] {
        facts.rules = (0..number)
            .map(|n| (format!("rule-{n}"), RuleCount { hits: 1 + n as u64, bytes: 60 }))
            .chain([("never".to_owned(), RuleCount::default())])
            .collect();
        let text = written(&facts);
        let shown = text.lines().filter(|l| l.starts_with("sluice_rule_hits_total{")).count();
        assert_eq!(shown, RULES);
        assert!(text.contains(&format!("sluice_rules_left_out {left_out}\n")));
        assert_eq!(text.contains("rule=\"rule-0\""), left_out == 0, "the least hit goes first");
    }
}

#[test]
fn records_are_counted_where_there_is_a_log() {
    let scene = testing::scene(TWO_CLUSTERS);
    let mut facts = Facts::of(&state(&scene)).unwrap();
    facts.records_fail = true;
    facts.records = Some(Counted { generated: 9, written: 7, dropped: 2, errors: 1, rotations: 4 });
    let text = written(&facts);
    for line in [
        "sluice_flow_records_generated_total 9",
        "sluice_flow_records_written_total 7",
        "sluice_flow_records_dropped_total 2",
        "sluice_flow_log_errors_total 1",
        "sluice_flow_log_rotations_total 4",
        "sluice_flow_log_failing 1",
    ] {
        assert!(text.lines().any(|found| found == line), "{line}");
    }
}

#[test]
fn connections_are_counted_by_server_and_limit() {
    let scene = testing::scene(TWO_CLUSTERS);
    let mut facts = Facts::of(&state(&scene)).unwrap();
    facts.connections[1].1 = Tallied { open: 3, refused_all: 1, refused_peer: 2 };
    let text = written(&facts);
    for line in [
        "sluice_http_connections{server=\"local\"} 0",
        "sluice_http_connections{server=\"metrics\"} 3",
        "sluice_http_connections_refused_total{limit=\"all\",server=\"metrics\"} 1",
        "sluice_http_connections_refused_total{limit=\"peer\",server=\"metrics\"} 2",
    ] {
        assert!(text.lines().any(|found| found == line), "{line}\n---\n{text}");
    }
}

#[test]
fn names_that_are_asked_for_are_counted_each() {
    let scene = testing::scene(TWO_CLUSTERS);
    let state = state(&scene);
    let plain = written(&Facts::of(&state).unwrap());
    assert!(!plain.contains("sluice_fqdn_") && !plain.contains("sluice_members_enforced"));
    let now = Instant::now();
    let status = |name: &str, addresses, confirmed| NameStatus {
        name: DnsName::new(name).unwrap(),
        addresses,
        confirmed,
        failures: 3,
        refused: 2,
        left_out: 1,
        fault: None,
    };
    let names = vec![status("a.example", 7, Some(now)), status("b.example", 0, None)];
    state.set_discovered(Discovered { names, ..Discovered::default() });
    let text = written(&Facts::of(&state).unwrap());
    for line in [
        "sluice_fqdn_names 2",
        "sluice_fqdn_addresses{fqdn=\"a.example\"} 7",
        "sluice_fqdn_addresses{fqdn=\"b.example\"} 0",
        "sluice_fqdn_staleness_seconds{fqdn=\"a.example\"} 0",
        "sluice_fqdn_failures_total{fqdn=\"a.example\"} 3",
        "sluice_fqdn_addresses_refused_total{fqdn=\"a.example\"} 2",
        "sluice_fqdn_addresses_left_out_total{fqdn=\"a.example\"} 1",
        "sluice_members_enforced_seconds_count 0",
    ] {
        assert!(text.lines().any(|one| one == line), "{line}:\n{text}");
    }
    assert!(!text.contains("staleness_seconds{fqdn=\"b.example\"}"), "nothing is known of it");
}

#[test]
fn what_groups_did_is_counted_by_group_and_kind() {
    let scene = testing::scene(TWO_CLUSTERS);
    let state = state(&scene);
    let counts =
        vec![("web".to_owned(), AlarmKind::Emptied, 2), ("web".to_owned(), AlarmKind::Grown, 1)];
    state.set_alarms(AlarmStatus { active: vec![], empty: 3, counts });
    let text = written(&Facts::of(&state).unwrap());
    for line in [
        "sluice_group_alarms_total{group=\"web\",kind=\"emptied\"} 2",
        "sluice_group_alarms_total{group=\"web\",kind=\"grown\"} 1",
        "sluice_empty_groups 3",
    ] {
        assert!(text.lines().any(|one| one == line), "{line}:\n{text}");
    }
}

#[test]
fn a_part_of_nothing_is_none() {
    assert_eq!((share(0, 0), share(5, 0), share(1, 4)), (0.0, 0.0, 0.25));
}

/// An account with two regions, of which one has a kind that cannot be fetched.
fn account() -> AccountStatus {
    let region = |region: &str, error: Option<&str>| smartgroups_aws::RegionStatus {
        region: region.into(),
        kinds: smartgroups_aws::Kind::ALL
            .into_iter()
            .map(|kind| smartgroups_aws::KindStatus {
                kind,
                known: true,
                error: error.filter(|_| kind == smartgroups_aws::Kind::Subnet).map(str::to_owned),
                since: Instant::now(),
                fetched: Some(Instant::now()),
                objects: 3,
                failures: 0,
            })
            .collect(),
    };
    AccountStatus {
        account: smartgroups_aws::AccountName::new("prod").unwrap(),
        id: Some("111122223333".into()),
        unidentified: None,
        regions: vec![region("eu-central-1", Some("it is refused")), region("eu-west-1", None)],
        endpoints: 7,
        credentials_expire: Some(UNIX_EPOCH + Duration::from_secs(1_800_000_000)),
        max_staleness: None,
        silence: Duration::from_secs(420),
    }
}

#[test]
fn accounts_are_shown_where_some_are_followed() {
    let state = state(&testing::scene(TWO_CLUSTERS));
    let text = written(&Facts::of(&state).unwrap());
    assert!(!text.contains("sluice_cloud_account") && !text.contains("sluice_members"), "{text}");
    let accounts = vec![account()];
    state.set_discovered(Discovered { accounts, ..Discovered::default() });
    let text = written(&Facts::of(&state).unwrap());
    for line in [
        "sluice_cloud_account_synced{account=\"prod\"} 1",
        "sluice_cloud_account_endpoints{account=\"prod\"} 7",
        "sluice_cloud_account_degraded_kinds{account=\"prod\",region=\"eu-central-1\"} 1",
        "sluice_cloud_account_degraded_kinds{account=\"prod\",region=\"eu-west-1\"} 0",
        "sluice_cloud_account_staleness_seconds{account=\"prod\"} 0",
        "sluice_cloud_account_credentials_expire_timestamp_seconds{account=\"prod\"} 1800000000",
        "sluice_members_enforced_seconds_count 0",
    ] {
        assert!(text.lines().any(|found| found == line), "{line}\n---\n{text}");
    }
}
