//! The page that Prometheus reads.

use std::collections::{BTreeMap, HashMap};
use std::time::{Duration, Instant, UNIX_EPOCH};

use api::policy::PairFill;
use api::status::TableFill;
use controller::AlarmStatus;
use flow_export::Counted;
use prometheus::{
    Encoder, Gauge, GaugeVec, Histogram, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts,
    Registry, TextEncoder,
};
use smartgroups_aws::AccountStatus;
use smartgroups_discovery::dns::NameStatus;
use smartgroups_discovery::kubernetes::ClusterStatus;
use xdp_abi::count::{Amount, Counters, RuleCount};
use xdp_abi::reason::Reason;

use crate::flows::{Census, Directory, Live};
use crate::http::Tallied;
use crate::serve::policy::{FULLEST, fill, hits};
use crate::serve::status::{DIRECTIONS, live_sessions, tables};
use crate::serve::{Discovered, Reload, State};

/// Rules that are shown; `sluicectl rules` shows all.
const RULES: usize = 500;
/// How old the count of sessions may be.
const FRESH: Duration = Duration::from_secs(10);

/// Everything that the page is made of.
#[derive(Clone, Debug)]
pub struct Facts {
    /// The gateway's name.
    pub gateway: String,
    /// The policy generation in force.
    pub generation: u32,
    /// Whether packets are served as configured.
    pub ready: bool,
    /// What became of the configuration file.
    pub reload: Reload,
    /// Seconds since the daemon started.
    pub uptime: u64,
    /// What became of packets.
    pub counters: Counters,
    /// Sessions whose port rests.
    pub resting: u64,
    /// What rules counted, by name; the default action is apart.
    pub rules: Vec<(String, RuleCount)>,
    /// What the default action counted.
    pub default_action: RuleCount,
    /// How full the tables are; `sessions` among them.
    pub tables: Vec<TableFill>,
    /// The fullest pairs of outside address and destination.
    pub fill: Vec<PairFill>,
    /// The worst number of steps of one port allocation.
    pub port_steps_max: u64,
    /// Packets that the last guard, outside the datapath, dropped.
    pub guard_dropped: u64,
    /// Transit that it dropped because no program had judged it.
    pub guard_unjudged: u64,
    /// Programs that somebody took off and that were put back.
    pub attached_again: u64,
    /// Addresses that more endpoints claim than can have them.
    pub contested: usize,
    /// How well those are known who are discovered.
    pub discovered: Discovered,
    /// What is to be told of groups.
    pub alarms: AlarmStatus,
    /// How long changes of members took to be in force.
    pub enforced: Histogram,
    /// Records of the flow log, if there is one.
    pub records: Option<Counted>,
    /// Whether they cannot be written.
    pub records_fail: bool,
    /// The connections of the daemon's servers, by their names.
    pub connections: [(&'static str, Tallied); 2],
}

impl Facts {
    /// Reads them from a gateway.
    ///
    /// # Errors
    /// The kernel did not give its counters.
    pub fn of<L: Live>(state: &State<L>) -> std::io::Result<Self> {
        let tables_now = &*state.live;
        let census: &Census = &state.census.no_older_than(FRESH, tables_now, tables_now.now());
        let mut hits = hits(tables_now)?;
        let default_action = hits.remove(&0).unwrap_or_default();
        let in_force = state.in_force();
        Ok(Self {
            gateway: in_force.config.gateway.name.clone(),
            generation: state.generation(),
            ready: state.problems().is_empty(),
            reload: state.reload(),
            uptime: state.uptime(),
            counters: tables_now.counters()?,
            resting: census.resting,
            rules: named(hits, &state.directories.current()),
            default_action,
            tables: tables(state, census),
            fill: fill(&state.directories.current(), census, FULLEST),
            port_steps_max: tables_now.shared().port_steps_max.load(),
            guard_dropped: state.guard_dropped(),
            guard_unjudged: state.guard_unjudged(),
            attached_again: state.attached_again(),
            contested: state.directories.current().inventory().contested(),
            discovered: state.discovered(),
            alarms: state.alarms(),
            enforced: state.enforced().clone(),
            records: state.records().map(flow_export::Counts::read),
            records_fail: state.records().is_some_and(|counts| counts.fault().is_some()),
            connections: [
                ("local", state.connections.local.read()),
                ("metrics", state.connections.metrics.read()),
            ],
        })
    }
}

fn named(hits: HashMap<u32, RuleCount>, names: &Directory) -> Vec<(String, RuleCount)> {
    let name = |id| names.rule(id).map_or_else(|| format!("#{id}"), |name| name.to_string());
    hits.into_iter().map(|(id, count)| (name(id), count)).collect()
}

/// Writes the page.
///
/// # Errors
/// Two metrics of one name, or a label that is missing: mistakes in this file.
pub fn page(facts: &Facts) -> prometheus::Result<Vec<u8>> {
    let page = Page(Registry::new());
    whole(&page, facts)?;
    packets(&page, &facts.counters)?;
    sessions(&page, facts)?;
    rules(&page, facts)?;
    ports(&page, facts)?;
    records(&page, facts)?;
    connections(&page, facts)?;
    discovery(&page, facts)?;
    groups(&page, &facts.alarms)?;
    let mut text = Vec::new();
    TextEncoder::new().encode(&page.0.gather(), &mut text)?;
    Ok(text)
}

/// A page that is being written.
struct Page(Registry);

impl Page {
    fn counter(&self, name: &str, help: &str, value: u64) -> prometheus::Result<()> {
        let counter = IntCounter::new(name, help)?;
        counter.inc_by(value);
        self.0.register(Box::new(counter))
    }

    fn gauge(&self, name: &str, help: &str, value: u64) -> prometheus::Result<()> {
        let gauge = IntGauge::new(name, help)?;
        gauge.set(i64::try_from(value).unwrap_or(i64::MAX));
        self.0.register(Box::new(gauge))
    }

    fn ratio(&self, name: &str, help: &str, used: u64, size: u64) -> prometheus::Result<()> {
        let gauge = Gauge::new(name, help)?;
        gauge.set(share(used, size));
        self.0.register(Box::new(gauge))
    }

    fn counters<const N: usize>(
        &self,
        name: &str,
        help: &str,
        labels: [&str; N],
        rows: impl IntoIterator<Item = ([String; N], u64)>,
    ) -> prometheus::Result<()> {
        let counters = IntCounterVec::new(Opts::new(name, help), &labels)?;
        for (values, count) in rows {
            counters.get_metric_with_label_values(&values)?.inc_by(count);
        }
        self.0.register(Box::new(counters))
    }

    fn gauges<const N: usize>(
        &self,
        name: &str,
        help: &str,
        labels: [&str; N],
        rows: impl IntoIterator<Item = ([String; N], u64)>,
    ) -> prometheus::Result<()> {
        let gauges = IntGaugeVec::new(Opts::new(name, help), &labels)?;
        for (values, value) in rows {
            let gauge = gauges.get_metric_with_label_values(&values)?;
            gauge.set(i64::try_from(value).unwrap_or(i64::MAX));
        }
        self.0.register(Box::new(gauges))
    }
}

/// Nothing where nobody is discovered.
fn discovery(page: &Page, facts: &Facts) -> prometheus::Result<()> {
    let (Discovered { clusters, accounts, names }, now) = (&facts.discovered, Instant::now());
    if !facts.discovered.is_empty() {
        page.0.register(Box::new(facts.enforced.clone()))?;
    }
    if !clusters.is_empty() {
        of_clusters(page, clusters, now)?;
    }
    if !accounts.is_empty() {
        of_accounts(page, accounts, now)?;
    }
    if !names.is_empty() {
        of_names(page, names, now)?;
    }
    Ok(())
}

fn of_accounts(page: &Page, all: &[AccountStatus], now: Instant) -> prometheus::Result<()> {
    let of = |value: &dyn Fn(&AccountStatus) -> Option<u64>| {
        let rows =
            all.iter().filter_map(|one| Some(([one.account.as_str().to_owned()], value(one)?)));
        rows.collect::<Vec<_>>()
    };
    page.gauges(
        "sluice_cloud_account_synced",
        "1 if it was known once in all regions of the account who is behind which address.",
        ["account"],
        of(&|one| Some(one.is_synced().into())),
    )?;
    page.gauges(
        "sluice_cloud_account_endpoints",
        "Endpoints that are known of the account.",
        ["account"],
        of(&|one| Some(one.endpoints as u64)),
    )?;
    let kinds = |one: &AccountStatus| {
        let account = one.account.as_str().to_owned();
        let degraded = one.degraded(now).map(|(region, _)| region.to_string());
        let mut counts: BTreeMap<String, u64> =
            one.regions.iter().map(|region| (region.region.to_string(), 0)).collect();
        for region in degraded {
            *counts.entry(region).or_default() += 1;
        }
        counts.into_iter().map(move |(region, count)| ([account.clone(), region], count))
    };
    page.gauges(
        "sluice_cloud_account_degraded_kinds",
        "Kinds of facts of the account that cannot be fetched at present, by region.",
        ["account", "region"],
        all.iter().flat_map(kinds).collect::<Vec<_>>(),
    )?;
    page.gauges(
        "sluice_cloud_account_staleness_seconds",
        "How old what is known of the account may be; groups are frozen, not emptied.",
        ["account"],
        of(&|one| one.staleness(now).map(|age| age.as_secs())),
    )?;
    page.gauges(
        "sluice_cloud_account_credentials_expire_timestamp_seconds",
        "Until when the credentials for the account are good, where they end, since 1970.",
        ["account"],
        of(&|one| {
            let expire = one.credentials_expire?;
            Some(expire.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs())
        }),
    )
}

fn of_clusters(page: &Page, all: &[ClusterStatus], now: Instant) -> prometheus::Result<()> {
    let of = |value: &dyn Fn(&ClusterStatus) -> Option<u64>| {
        let rows =
            all.iter().filter_map(|one| Some(([one.cluster.as_str().to_owned()], value(one)?)));
        rows.collect::<Vec<_>>()
    };
    page.gauges(
        "sluice_cluster_synced",
        "1 if all kinds of objects of the cluster were heard of.",
        ["cluster"],
        of(&|one| Some(one.is_synced().into())),
    )?;
    page.gauges(
        "sluice_cluster_endpoints",
        "Endpoints that are known of the cluster.",
        ["cluster"],
        of(&|one| Some(one.endpoints as u64)),
    )?;
    page.gauges(
        "sluice_cluster_degraded_kinds",
        "Kinds of objects of the cluster that are not followed at present.",
        ["cluster"],
        of(&|one| Some(one.degraded(now).count() as u64)),
    )?;
    page.gauges(
        "sluice_cluster_staleness_seconds",
        "How old what is known of the cluster may be; groups are frozen, not emptied.",
        ["cluster"],
        of(&|one| one.staleness(now).map(|age| age.as_secs())),
    )?;
    page.gauges(
        "sluice_cluster_credentials_expire_timestamp_seconds",
        "Until when the credentials for the cluster are good, where that is known, since 1970.",
        ["cluster"],
        of(&|one| {
            let expire = one.credentials_expire?;
            Some(expire.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs())
        }),
    )
}

fn groups(page: &Page, alarms: &AlarmStatus) -> prometheus::Result<()> {
    page.counters(
        "sluice_group_alarms_total",
        "How often a group became empty or grew suddenly, by the group and by which (emptied, grown).",
        ["group", "kind"],
        alarms
            .counts
            .iter()
            .map(|(group, kind, count)| ([group.clone(), kind.as_str().to_owned()], *count)),
    )?;
    page.gauge(
        "sluice_empty_groups",
        "Groups that no address is in at present.",
        alarms.empty as u64,
    )
}

fn of_names(page: &Page, all: &[NameStatus], now: Instant) -> prometheus::Result<()> {
    let of = |value: &dyn Fn(&NameStatus) -> Option<u64>| {
        let rows = all.iter().filter_map(|one| Some(([one.name.as_str().to_owned()], value(one)?)));
        rows.collect::<Vec<_>>()
    };
    page.gauge(
        "sluice_fqdn_names",
        "Names in DNS that selectors name and that are asked for.",
        all.len() as u64,
    )?;
    page.gauges(
        "sluice_fqdn_addresses",
        "Addresses that the name has, or had a moment ago.",
        ["fqdn"],
        of(&|one| Some(one.addresses as u64)),
    )?;
    page.gauges(
        "sluice_fqdn_staleness_seconds",
        "How old what is known of the name may be; its addresses are kept, whatever fails.",
        ["fqdn"],
        of(&|one| one.staleness(now).map(|age| age.as_secs())),
    )?;
    page.counters(
        "sluice_fqdn_failures_total",
        "Answers for the name that failed, or were empty although it had addresses.",
        ["fqdn"],
        of(&|one| Some(one.failures)),
    )?;
    page.counters(
        "sluice_fqdn_addresses_refused_total",
        "Answered addresses that no name makes a member of: pod prefixes, loopback, link-local, ...",
        ["fqdn"],
        of(&|one| Some(one.refused)),
    )?;
    page.counters(
        "sluice_fqdn_addresses_left_out_total",
        "Answered addresses for which the name has too many others.",
        ["fqdn"],
        of(&|one| Some(one.left_out)),
    )
}

/// A part of a whole; of nothing it is none.
fn share(used: u64, size: u64) -> f64 {
    if size == 0 { 0.0 } else { used as f64 / size as f64 }
}

fn whole(page: &Page, facts: &Facts) -> prometheus::Result<()> {
    page.gauges(
        "sluice_build_info",
        "The version of the daemon and the name of the gateway; always 1.",
        ["version", "gateway"],
        [([env!("CARGO_PKG_VERSION").to_owned(), facts.gateway.clone()], 1)],
    )?;
    page.gauge("sluice_uptime_seconds", "Since the daemon started.", facts.uptime)?;
    page.gauge(
        "sluice_ready",
        "1 if packets are served as configured; /readyz says why not.",
        facts.ready.into(),
    )?;
    page.gauge(
        "sluice_config_last_reload_successful",
        "1 if the configuration file is in force, 0 if it was refused when it was last read.",
        facts.reload.refused.is_none().into(),
    )?;
    // A clock before 1970 is none.
    let succeeded = facts.reload.succeeded.duration_since(UNIX_EPOCH).unwrap_or_default();
    page.gauge(
        "sluice_config_last_reload_success_timestamp_seconds",
        "When a configuration file last came into force, since 1970.",
        succeeded.as_secs(),
    )?;
    page.gauge(
        "sluice_policy_generation",
        "The policy generation in force; 0 means that none is.",
        facts.generation.into(),
    )?;
    page.gauge(
        "sluice_contested_addresses",
        "Addresses that several endpoints claim although only one can have them: what one of them \
         may not is refused. `sluicectl identities` names them.",
        facts.contested as u64,
    )
}

fn packets(page: &Page, counters: &Counters) -> prometheus::Result<()> {
    let amounts = |packets: (&str, &str), bytes: (&str, &str), amount: Amount| {
        page.counter(packets.0, packets.1, amount.packets)?;
        page.counter(bytes.0, bytes.1, amount.bytes)
    };
    amounts(
        ("sluice_received_packets_total", "Packets that reached an ingress hook."),
        (
            "sluice_received_bytes_total",
            "Bytes that reached an ingress hook, from the Ethernet header on.",
        ),
        counters.received,
    )?;
    let [original, reply] = counters.forwarded;
    let by_direction = |original: u64, reply: u64| {
        [(["original".to_owned()], original), (["reply".to_owned()], reply)]
    };
    page.counters(
        "sluice_packets_total",
        "Packets sent on: from who began a session, and the answers.",
        ["direction"],
        by_direction(original.packets, reply.packets),
    )?;
    page.counters(
        "sluice_bytes_total",
        "Bytes sent on, from the Ethernet header on: from who began a session, and the answers.",
        ["direction"],
        by_direction(original.bytes, reply.bytes),
    )?;
    amounts(
        ("sluice_passed_packets_total", "Packets left to the kernel: they are not transit."),
        ("sluice_passed_bytes_total", "Bytes left to the kernel, from the Ethernet header on."),
        counters.passed,
    )?;
    amounts(
        ("sluice_punted_packets_total", "Packets sent up for the kernel to route."),
        (
            "sluice_punted_bytes_total",
            "Bytes sent up for the kernel to route, from the Ethernet header on.",
        ),
        counters.punted,
    )?;
    amounts(
        ("sluice_translated_late_packets_total", "Packets translated where the kernel sends."),
        (
            "sluice_translated_late_bytes_total",
            "Bytes translated where the kernel sends, from the Ethernet header on.",
        ),
        counters.translated_late,
    )?;
    page.counter(
        "sluice_answered_packets_total",
        "Dropped packets whose sender was told (RST, ICMP).",
        counters.answered,
    )?;
    let drops = DIRECTIONS.into_iter().flat_map(|(place, direction)| {
        Reason::ALL.into_iter().map(move |reason| (place, direction, reason))
    });
    let drops = drops.filter_map(|(place, direction, reason)| {
        let count = counters.drops[place][reason as usize];
        let labels = [reason.name().to_owned(), direction.as_str().to_owned()];
        (count > 0).then_some((labels, count))
    });
    page.counters(
        "sluice_dropped_packets_total",
        "Packets dropped, by reason and direction.",
        ["reason", "direction"],
        drops,
    )
}

fn sessions(page: &Page, facts: &Facts) -> prometheus::Result<()> {
    let counters = &facts.counters;
    page.gauge("sluice_sessions", "Live sessions.", live_sessions(counters))?;
    page.gauge(
        "sluice_resting_ports",
        "Ports of ended sessions that are not lent again yet.",
        facts.resting,
    )?;
    page.counter("sluice_sessions_begun_total", "Sessions begun.", counters.sessions_begun)?;
    page.counter("sluice_sessions_ended_total", "Sessions ended.", counters.sessions_ended)?;
    page.counter(
        "sluice_sessions_judged_again_total",
        "Live sessions judged again, because the policy, an identity or a route changed.",
        counters.judged_again,
    )?;
    if let Some(table) = facts.tables.iter().find(|table| table.name == "sessions") {
        page.ratio(
            "sluice_session_table_fill_ratio",
            "Sessions, live or resting, of those that there is room for.",
            table.used,
            table.size,
        )?;
    }
    let used = facts.tables.iter().map(|table| ([table.name.clone()], table.used));
    page.gauges("sluice_table_entries", "Entries in use.", ["table"], used)?;
    let size = facts.tables.iter().map(|table| ([table.name.clone()], table.size));
    page.gauges("sluice_table_size_entries", "Entries that there is room for.", ["table"], size)?;
    page.counter(
        "sluice_leaks_stopped_total",
        "Packets with a non-routable source that the datapath's guards stopped; must stay 0.",
        counters.leaks_stopped,
    )?;
    page.counter(
        "sluice_guard_dropped_packets_total",
        "Packets that the last guard, outside the datapath, stopped; must stay 0.",
        facts.guard_dropped,
    )?;
    page.counter(
        "sluice_guard_unjudged_packets_total",
        "Packets from or to an attached interface that the kernel would have forwarded unjudged.",
        facts.guard_unjudged,
    )?;
    page.counter(
        "sluice_programs_attached_again_total",
        "Programs that somebody took off their interface and that were put back.",
        facts.attached_again,
    )
}

fn rules(page: &Page, facts: &Facts) -> prometheus::Result<()> {
    let mut hit: Vec<&(String, RuleCount)> =
        facts.rules.iter().filter(|(_, count)| count.hits > 0).collect();
    hit.sort_by(|a, b| b.1.hits.cmp(&a.1.hits).then_with(|| a.0.cmp(&b.0)));
    let left_out = hit.len().saturating_sub(RULES);
    hit.truncate(RULES);
    page.counters(
        "sluice_rule_hits_total",
        "Flows that a rule permitted, each once, or packets that it refused; only rules that were \
         hit.",
        ["rule"],
        hit.iter().map(|(name, count)| ([name.clone()], count.hits)),
    )?;
    page.counters(
        "sluice_rule_bytes_total",
        "Bytes of the packets counted as hits, from the IP header on: of a permitted flow only the \
         first packet.",
        ["rule"],
        hit.iter().map(|(name, count)| ([name.clone()], count.bytes)),
    )?;
    page.gauge(
        "sluice_rules_left_out",
        "Rules that were hit and are not shown here; `sluicectl rules` shows all.",
        left_out as u64,
    )?;
    page.counter(
        "sluice_default_action_hits_total",
        "Flows that were permitted because no rule matched, each once, or packets refused so.",
        facts.default_action.hits,
    )
}

fn ports(page: &Page, facts: &Facts) -> prometheus::Result<()> {
    let fill = GaugeVec::new(
        Opts::new(
            "sluice_snat_port_fill_ratio",
            "Ports lent or resting, of those that the policy may lend of the outside address towards \
             the destination: the fullest.",
        ),
        &["policy", "outside", "destination", "protocol"],
    )?;
    for pair in &facts.fill {
        let labels = [
            pair.policies.join(","),
            pair.outside.to_string(),
            pair.destination.to_string(),
            pair.protocol.to_string(),
        ];
        let ratio = share(pair.used.into(), pair.lendable.into());
        // Two domains may show the same addresses: the fuller one counts.
        let gauge = fill.get_metric_with_label_values(&labels)?;
        gauge.set(gauge.get().max(ratio));
    }
    page.0.register(Box::new(fill))?;
    let exhausted = Reason::PortsExhausted as usize;
    page.counter(
        "sluice_snat_allocation_failures_total",
        "New flows refused because every port towards their destination is lent.",
        facts.counters.drops.iter().map(|by_reason| by_reason[exhausted]).sum(),
    )?;
    page.gauge(
        "sluice_snat_allocation_steps_max",
        "The most steps that one port allocation took.",
        facts.port_steps_max,
    )
}

fn records(page: &Page, facts: &Facts) -> prometheus::Result<()> {
    page.counter(
        "sluice_flow_events_lost_total",
        "Events that did not fit into the ring between kernel and daemon.",
        facts.counters.events_lost,
    )?;
    page.counter(
        "sluice_flow_events_suppressed_total",
        "Events that a rate limit held back.",
        facts.counters.events_suppressed,
    )?;
    let Some(Counted { generated, written, dropped, errors, rotations }) = facts.records else {
        return Ok(());
    };
    for (name, help, value) in [
        ("sluice_flow_records_generated_total", "Flow records made.", generated),
        ("sluice_flow_records_written_total", "Flow records written.", written),
        ("sluice_flow_records_dropped_total", "Flow records that found no room.", dropped),
        ("sluice_flow_log_errors_total", "Failed attempts to write or rotate.", errors),
        ("sluice_flow_log_rotations_total", "Files of the flow log put aside.", rotations),
    ] {
        page.counter(name, help, value)?;
    }
    page.gauge(
        "sluice_flow_log_failing",
        "1 if flow records cannot be written; `sluicectl status` says why.",
        facts.records_fail.into(),
    )
}

fn connections(page: &Page, facts: &Facts) -> prometheus::Result<()> {
    let open = facts.connections.iter();
    page.gauges(
        "sluice_http_connections",
        "Connections of the local socket and of the metrics server.",
        ["server"],
        open.map(|(server, tallied)| ([(*server).to_owned()], tallied.open)),
    )?;
    let refused = facts.connections.iter().flat_map(|(server, tallied)| {
        [("all", tallied.refused_all), ("peer", tallied.refused_peer)]
            .map(|(limit, count)| ([(*server).to_owned(), limit.to_owned()], count))
    });
    page.counters(
        "sluice_http_connections_refused_total",
        "Connections that were closed at once: there were too many in all, or of their peer.",
        ["server", "limit"],
        refused,
    )
}

#[cfg(test)]
mod tests;
