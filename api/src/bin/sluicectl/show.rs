//! Answers as tables.

use api::explain::Explanation;
use api::policy::{Identities, Member, Rules, Snat, SnatPolicyStatus};
use api::session::{ClearResponse, ObjectRef, Party, Session, Sessions};
use api::status::{Amount, GroupAlarm, Maps, Programs, Stats, Status};
use serde::Serialize;

use crate::table::{Fit, Table, list, or_dash, span};

/// What can be shown to a person, in lines of at most `width` characters where that is possible.
pub(crate) trait Show {
    fn show(&self, width: usize) -> String;
}

/// The word that an enumeration has in JSON.
fn word(value: impl Serialize) -> String {
    match serde_json::to_value(value) {
        Ok(serde_json::Value::String(word)) => word,
        Ok(other) => other.to_string(),
        Err(error) => error.to_string(),
    }
}

/// Tables one below the other, each under a title; empty ones are left out.
fn sections(width: usize, tables: &[(&str, Table)]) -> String {
    let shown = tables.iter().filter(|(_, table)| !table.is_empty());
    let texts: Vec<String> =
        shown.map(|(title, table)| format!("{title}\n{}", table.render(width))).collect();
    texts.join("\n")
}

impl Show for Status {
    fn show(&self, width: usize) -> String {
        let health = if self.healthy { "healthy" } else { "not healthy" };
        let mut text = format!(
            "{} {}: {health}, up {}, generation {}, {}\n",
            self.name,
            self.version,
            span(self.uptime),
            self.generation,
            count(self.sessions)
        );
        for problem in &self.problems {
            text.push_str(&format!("problem: {problem}\n"));
        }
        if let Some(fault) = &self.reload_refused {
            text.push_str(&format!("the last reload was refused: {fault}\n"));
        }
        if let Some(fault) = &self.flow_log_fault {
            text.push_str(&format!("flow records cannot be written: {fault}\n"));
        }
        for GroupAlarm { group, kind, before, now, since } in &self.alarms {
            let since = span(*since);
            text.push_str(&match kind.as_str() {
                "emptied" => {
                    format!("alarm: group `{group}` has become empty, {since} ago, from {before}\n")
                }
                kind => format!(
                    "alarm: group `{group}` has {kind} suddenly, {since} ago, from {before} to {now}\n"
                ),
            });
        }
        let mut table = Table::new(["#", "NAME", "KIND", "DOMAIN", "INTERFACE", "VLAN", "HOOK"])
            .fit(Fit::Words, &["NAME", "DOMAIN"])
            .spare(&["#", "HOOK"]);
        for attachment in &self.attachments {
            table.row([
                attachment.number.to_string(),
                attachment.name.clone(),
                attachment.kind.clone(),
                attachment.domain.clone(),
                attachment.interface.clone(),
                or_dash(attachment.vlan),
                or_dash(attachment.hook.as_ref()),
            ]);
        }
        if !table.is_empty() {
            text.push_str(&table.render(width));
        }
        let head = ["CLUSTER", "KNOWN", "ENDPOINTS", "AGE", "CREDENTIALS FOR", "NOT FOLLOWED"];
        let mut table = Table::new(head).fit(Fit::Words, &["NOT FOLLOWED"]);
        for cluster in &self.clusters {
            table.row([
                cluster.name.clone(),
                if cluster.synced { "yes" } else { "not yet" }.to_owned(),
                cluster.endpoints.to_string(),
                or_dash(cluster.staleness.map(span)),
                or_dash(cluster.credentials_expire_in.map(span)),
                if cluster.faults.is_empty() { "-".to_owned() } else { cluster.faults.join("; ") },
            ]);
        }
        if !table.is_empty() {
            text.push('\n');
            text.push_str(&table.render(width));
        }
        let head =
            ["ACCOUNT", "NUMBER", "KNOWN", "ENDPOINTS", "AGE", "CREDENTIALS FOR", "NOT FOLLOWED"];
        let mut table = Table::new(head).fit(Fit::Words, &["NOT FOLLOWED"]);
        for account in &self.cloud_accounts {
            table.row([
                account.name.clone(),
                or_dash(account.id.as_ref()),
                if account.synced { "yes" } else { "not yet" }.to_owned(),
                account.endpoints.to_string(),
                or_dash(account.staleness.map(span)),
                or_dash(account.credentials_expire_in.map(span)),
                if account.faults.is_empty() { "-".to_owned() } else { account.faults.join("; ") },
            ]);
        }
        if !table.is_empty() {
            text.push('\n');
            text.push_str(&table.render(width));
        }
        let mut table =
            Table::new(["FQDN", "ADDRESSES", "AGE", "FAULT"]).fit(Fit::Words, &["FAULT"]);
        for name in &self.names {
            table.row([
                name.name.clone(),
                name.addresses.to_string(),
                or_dash(name.staleness.map(span)),
                or_dash(name.fault.as_ref()),
            ]);
        }
        if !table.is_empty() {
            text.push('\n');
            text.push_str(&table.render(width));
        }
        text
    }
}

/// The endpoint, else the groups.
fn who(party: &Party) -> String {
    match (&party.endpoint, &party.groups) {
        (Some(endpoint), _) => endpoint.clone(),
        (None, Some(groups)) => list(groups),
        (None, None) => format!("#{}", party.identity),
    }
}

fn outside(session: &Session) -> String {
    if session.outside == session.inside {
        return "-".to_owned();
    }
    if session.outside.source == session.inside.source {
        return format!("to {}", session.outside.destination);
    }
    session.outside.source.to_string()
}

/// So many sessions.
fn count(sessions: u64) -> String {
    format!("{sessions} {}", if sessions == 1 { "session" } else { "sessions" })
}

impl Show for Sessions {
    fn show(&self, width: usize) -> String {
        // An address means something in its domain only, so the domain stays to the last.
        let mut table = Table::new([
            "PROTO",
            "DOMAIN",
            "SOURCE",
            "DESTINATION",
            "OUTSIDE",
            "FROM",
            "TO",
            "RULE",
            "PHASE",
            "PACKETS",
            "BYTES",
            "IDLE",
            "EXPIRES",
            "ID",
        ])
        .fit(Fit::Words, &["FROM", "TO", "RULE"])
        .spare(&[
            "ID", "BYTES", "EXPIRES", "PHASE", "PACKETS", "IDLE", "TO", "FROM", "RULE", "PROTO",
            "OUTSIDE",
        ]);
        for session in &self.sessions {
            let Session { inside, original, reply, .. } = session;
            table.row([
                session.protocol.to_string(),
                session.domain.clone(),
                inside.source.to_string(),
                inside.destination.to_string(),
                outside(session),
                who(&session.source),
                who(&session.destination),
                session.rule.as_ref().map_or("(default)".to_owned(), ObjectRef::to_string),
                session.phase.as_str().to_owned(),
                format!("{}/{}", original.packets, reply.packets),
                format!("{}/{}", original.bytes, reply.bytes),
                span(session.idle),
                span(session.expires_in),
                session.id.to_string(),
            ]);
        }
        let shown = self.sessions.len() as u64;
        let mut text = if table.is_empty() { String::new() } else { table.render(width) };
        if shown == self.matched {
            text.push_str(&format!("{}\n", count(shown)));
        } else {
            let how = "--limit shows more, a FILTER those that are meant";
            text.push_str(&format!("{shown} of {} sessions; {how}\n", self.matched));
        }
        text
    }
}

impl Show for ClearResponse {
    fn show(&self, _width: usize) -> String {
        format!("{} ended\n", count(self.cleared))
    }
}

impl Show for Identities {
    fn show(&self, width: usize) -> String {
        let mut table = Table::new(["ID", "GROUPS", "HOSTS", "PREFIXES", "AMONG THEM"])
            .fit(Fit::Items, &["GROUPS", "AMONG THEM"])
            .spare(&["ID", "AMONG THEM"]);
        for identity in &self.identities {
            let members: Vec<String> = identity.members.iter().map(member).collect();
            let doubted = identity.doubted.iter().map(|group| format!("perhaps {group}"));
            let groups: Vec<String> = identity.groups.iter().cloned().chain(doubted).collect();
            table.row([
                identity.id.to_string(),
                list(&groups),
                identity.hosts.to_string(),
                identity.prefixes.to_string(),
                list(&members),
            ]);
        }
        table.render(width)
    }
}

/// An address and whose it is; `or` between those that contest it.
fn member(Member { domain, address, endpoint, claimants }: &Member) -> String {
    match (&claimants[..], endpoint) {
        ([], None) => format!("{domain}:{address}"),
        ([], Some(endpoint)) => format!("{domain}:{address} {endpoint}"),
        (claimants, _) => format!("{domain}:{address} contested: {}", claimants.join(" or ")),
    }
}

impl Show for Rules {
    fn show(&self, width: usize) -> String {
        let mut table = Table::new([
            "PRIORITY",
            "RULE",
            "ACTION",
            "FROM",
            "TO",
            "PROTO",
            "PORTS",
            "MODE",
            "HITS",
            "HIT BYTES",
        ])
        .fit(Fit::Words, &["RULE"])
        .fit(Fit::Items, &["FROM", "TO", "PORTS"])
        .spare(&["HIT BYTES", "MODE", "PRIORITY"]);
        for rule in &self.rules {
            table.row([
                rule.priority.to_string(),
                rule.name.clone(),
                word(rule.action),
                list(&rule.sources),
                list(&rule.destinations),
                rule.protocol.to_string(),
                list(&rule.ports),
                word(rule.enforcement),
                rule.hits.to_string(),
                rule.bytes.to_string(),
            ]);
        }
        let default = &self.default_action;
        let any = || "any".to_owned();
        table.row([
            "-".to_owned(),
            "(default)".to_owned(),
            word(default.action),
            any(),
            any(),
            any(),
            "-".to_owned(),
            "enforce".to_owned(),
            default.hits.to_string(),
            default.bytes.to_string(),
        ]);
        table.render(width)
    }
}

/// A connection, or an interface as `ip route` has it: the word may not cost the name its room.
fn way_out(policy: &SnatPolicyStatus) -> String {
    match (&policy.connection, &policy.interface) {
        (Some(connection), _) => connection.clone(),
        (None, Some(interface)) => format!("dev {interface}"),
        (None, None) => "-".to_owned(),
    }
}

/// A part of a whole in percent, rounded down: only what is full says 100%.
fn percent(used: u64, size: u64) -> String {
    match (used * 100).checked_div(size) {
        Some(percent) => format!("{percent}%"),
        None => "-".to_owned(),
    }
}

impl Show for Snat {
    fn show(&self, width: usize) -> String {
        let mut policies = Table::new([
            "ORDER",
            "POLICY",
            "FROM",
            "TO",
            "PROTO",
            "LEAVES BY",
            "LENDS",
            "SESSIONS",
        ])
        .fit(Fit::Words, &["POLICY"])
        .fit(Fit::Items, &["LENDS"])
        .spare(&["ORDER", "PROTO", "LEAVES BY"]);
        for policy in &self.policies {
            let lends = if policy.no_nat { "nothing".to_owned() } else { list(&policy.snat_ips) };
            policies.row([
                policy.order.to_string(),
                policy.name.clone(),
                policy.source.clone().unwrap_or_else(|| "any".to_owned()),
                policy.destination.clone().unwrap_or_else(|| "any".to_owned()),
                policy.protocol.to_string(),
                way_out(policy),
                lends,
                policy.sessions.to_string(),
            ]);
        }
        let mut pools = Table::new(["ADDRESS", "POLICY", "PORTS", "SHARED", "SESSIONS"])
            .fit(Fit::Words, &["POLICY"])
            .spare(&["SHARED"]);
        for pool in &self.pools {
            pools.row([
                pool.address.to_string(),
                pool.policy.clone(),
                pool.lendable.to_string(),
                if pool.shared_with_host { "with host" } else { "-" }.to_owned(),
                pool.sessions.to_string(),
            ]);
        }
        let mut fill =
            Table::new(["OUTSIDE", "DESTINATION", "PROTO", "POLICY", "USED", "PORTS", "FILL"])
                .fit(Fit::Items, &["POLICY"])
                .spare(&["PROTO", "PORTS", "USED"]);
        for pair in &self.fill {
            fill.row([
                pair.outside.to_string(),
                pair.destination.to_string(),
                pair.protocol.to_string(),
                list(&pair.policies),
                pair.used.to_string(),
                pair.lendable.to_string(),
                percent(pair.used.into(), pair.lendable.into()),
            ]);
        }
        sections(width, &[("policies", policies), ("addresses", pools), ("fullest", fill)])
    }
}

impl Show for Stats {
    fn show(&self, width: usize) -> String {
        let mut packets = Table::new(["PACKETS", "COUNT", "BYTES"]);
        let mut amount = |name: &str, Amount { packets: count, bytes }: Amount| {
            packets.row([name.to_owned(), count.to_string(), bytes.to_string()]);
        };
        amount("received", self.received);
        amount("forwarded, original", self.forwarded_original);
        amount("forwarded, reply", self.forwarded_reply);
        amount("passed to the host", self.passed);
        amount("punted", self.punted);
        amount("translated late", self.translated_late);
        let mut counts = Table::new(["EVENTS", "COUNT"]);
        for (name, count) in [
            ("generation", u64::from(self.generation)),
            ("answered", self.answered),
            ("sessions begun", self.sessions_begun),
            ("sessions ended", self.sessions_ended),
            ("judged again", self.judged_again),
            ("events lost", self.events_lost),
            ("events suppressed", self.events_suppressed),
            ("leaks stopped", self.leaks_stopped),
        ] {
            counts.row([name.to_owned(), count.to_string()]);
        }
        let mut drops = Table::new(["REASON", "DIRECTION", "PACKETS"]);
        for drop in &self.drops {
            let direction = drop.direction.as_str().to_owned();
            drops.row([drop.reason.clone(), direction, drop.packets.to_string()]);
        }
        let mut tables = Table::new(["TABLE", "USED", "SIZE", "FILL"]);
        for table in &self.tables {
            tables.row([
                table.name.clone(),
                table.used.to_string(),
                table.size.to_string(),
                percent(table.used, table.size),
            ]);
        }
        sections(
            width,
            &[("traffic", packets), ("totals", counts), ("dropped", drops), ("tables", tables)],
        )
    }
}

impl Show for Programs {
    fn show(&self, width: usize) -> String {
        let mut table = Table::new(["ID", "NAME", "HOOK", "INTERFACE", "TAG", "BYTES", "MEMORY"])
            .spare(&["TAG", "BYTES", "MEMORY"]);
        for program in &self.programs {
            let missing = if program.missing { " (missing)" } else { "" };
            table.row([
                program.id.to_string(),
                program.name.clone(),
                or_dash(program.hook.as_ref()) + missing,
                or_dash(program.interface.as_ref()),
                program.tag.clone(),
                program.bytes.to_string(),
                program.memory.to_string(),
            ]);
        }
        table.render(width)
    }
}

impl Show for Maps {
    fn show(&self, width: usize) -> String {
        let mut table =
            Table::new(["ID", "NAME", "TYPE", "KEY", "VALUE", "ENTRIES", "SIZE", "MEMORY", "PIN"])
                .spare(&["PIN", "KEY", "VALUE", "TYPE"]);
        for map in &self.maps {
            table.row([
                map.id.to_string(),
                map.name.clone(),
                map.kind.clone(),
                map.key_size.to_string(),
                map.value_size.to_string(),
                or_dash(map.entries),
                map.max_entries.to_string(),
                map.memory.to_string(),
                or_dash(map.pin.as_ref()),
            ]);
        }
        table.render(width)
    }
}

impl Show for Explanation {
    fn show(&self, width: usize) -> String {
        let mut table = Table::new(["", "STAGE", "FOUND"]).fit(Fit::Folds, &["FOUND"]);
        for step in &self.steps {
            let mark = if step.decisive { ">" } else { "" };
            table.row([mark.to_owned(), step.stage.clone(), step.text.clone()]);
        }
        let mut text = table.render(width);
        text.push_str(&format!("outcome: {}", self.outcome.as_str()));
        if let Some(reason) = &self.reason {
            text.push_str(&format!(", {reason}"));
        }
        if let Some(rule) = &self.rule {
            text.push_str(&format!(", rule {rule}"));
        }
        text.push_str(&format!(" (generation {})\n", self.generation));
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use api::explain::{Outcome, Step};
    use api::status::{Direction, Drops, TableFill};

    fn sessions() -> Sessions {
        let session = serde_json::json!({
            "id": "0000000000000001", "protocol": "tcp",
            "inside": { "source": "100.64.1.10:40000", "destination": "192.0.2.7:443" },
            "outside": { "source": "10.10.0.17:50000", "destination": "192.0.2.7:443" },
            "domain": "prod-eu", "destination_domain": "fabric",
            "ingress": "pods", "egress": "transit",
            "source": { "endpoint": "checkout/api", "groups": ["payments"], "identity": 1 },
            "destination": { "endpoint": null, "groups": ["s3", "public-internet"], "identity": 2 },
            "rule": { "id": 1, "name": "payments-to-s3" }, "would_match": null,
            "snat_policy": null, "mark": null, "phase": "tcp_established",
            "original": { "packets": 10, "bytes": 1000, "tcp_flags": "S" },
            "reply": { "packets": 9, "bytes": 90000, "tcp_flags": "SA" },
            "age": 61, "idle": 1, "expires_in": 7439, "generation": 3
        });
        Sessions { sessions: vec![serde_json::from_value(session).unwrap()], matched: 1 }
    }

    #[test]
    fn what_is_wrong_with_a_gateway_is_said_below_its_first_line() {
        let status = serde_json::json!({
            "name": "gw-1", "version": "0.1.0", "uptime": 61, "generation": 3, "healthy": false,
            "problems": ["eth1 is missing"], "reload_refused": "sluice.yaml:3: no",
            "flow_log_fault": "no storage space", "sessions": 1, "attachments": []
        });
        let status: Status = serde_json::from_value(status).unwrap();
        assert_eq!(
            status.show(usize::MAX),
            "gw-1 0.1.0: not healthy, up 1m1s, generation 3, 1 session\n\
             problem: eth1 is missing\n\
             the last reload was refused: sluice.yaml:3: no\n\
             flow records cannot be written: no storage space\n"
        );
    }

    #[test]
    fn a_cluster_says_how_well_it_is_known() {
        let cluster = |name, synced, age, faults: &[&str]| {
            serde_json::json!({
                "name": name, "synced": synced, "endpoints": 7, "staleness": age, "faults": faults
            })
        };
        let status = serde_json::json!({
            "name": "gw-1", "version": "0.1.0", "uptime": 61, "generation": 3, "healthy": true,
            "problems": [], "sessions": 0, "attachments": [],
            "clusters": [
                cluster("eu", true, Some(61), &[]),
                cluster("us", false, None, &["pods: no route", "nodes: no route"]),
            ]
        });
        let status: Status = serde_json::from_value(status).unwrap();
        let text = status.show(usize::MAX);
        let words = |line: &str| line.split_whitespace().collect::<Vec<_>>().join(" ");
        let lines: Vec<String> = text.lines().skip(2).map(words).collect();
        let head = "CLUSTER KNOWN ENDPOINTS AGE CREDENTIALS FOR NOT FOLLOWED";
        let us = "us not yet 7 - - pods: no route; nodes: no route";
        assert_eq!(lines, [head, "eu yes 7 1m1s - -", us], "{text}");
    }

    #[test]
    fn an_account_says_how_well_it_is_known() {
        let status = serde_json::json!({
            "name": "gw-1", "version": "0.1.0", "uptime": 61, "generation": 3, "healthy": true,
            "problems": [], "sessions": 0, "attachments": [],
            "cloud_accounts": [
                {"name": "prod", "id": "111122223333", "synced": true, "endpoints": 7,
                 "staleness": 61, "credentials_expire_in": 3600, "faults": []},
                {"name": "test", "synced": false, "endpoints": 0, "staleness": null,
                 "faults": ["eu-west-1: VPCs: no route (for 3 s)"]},
            ]
        });
        let status: Status = serde_json::from_value(status).unwrap();
        let text = status.show(usize::MAX);
        let words = |line: &str| line.split_whitespace().collect::<Vec<_>>().join(" ");
        let lines: Vec<String> = text.lines().skip(2).map(words).collect();
        let head = "ACCOUNT NUMBER KNOWN ENDPOINTS AGE CREDENTIALS FOR NOT FOLLOWED";
        let test = "test - not yet 0 - - eu-west-1: VPCs: no route (for 3 s)";
        assert_eq!(lines, [head, "prod 111122223333 yes 7 1m1s 1h0m -", test], "{text}");
    }

    #[test]
    fn alarms_stand_where_problems_do() {
        let status = serde_json::json!({
            "name": "gw-1", "version": "0.1.0", "uptime": 61, "generation": 3, "healthy": true,
            "problems": [], "sessions": 0, "attachments": [],
            "alarms": [
                { "group": "web", "kind": "emptied", "before": 12, "now": 0, "since": 61 },
                { "group": "db", "kind": "grown", "before": 10, "now": 200, "since": 7 },
            ]
        });
        let status: Status = serde_json::from_value(status).unwrap();
        assert_eq!(
            status.show(usize::MAX),
            "gw-1 0.1.0: healthy, up 1m1s, generation 3, 0 sessions\n\
             alarm: group `web` has become empty, 1m1s ago, from 12\n\
             alarm: group `db` has grown suddenly, 7s ago, from 10 to 200\n"
        );
    }

    #[test]
    fn a_name_says_how_well_it_is_known() {
        let status = serde_json::json!({
            "name": "gw-1", "version": "0.1.0", "uptime": 61, "generation": 3, "healthy": true,
            "problems": [], "sessions": 0, "attachments": [],
            "names": [
                { "name": "api.example.com", "addresses": 2, "staleness": 61, "fault": null },
                { "name": "b.example", "addresses": 0, "staleness": null, "fault": "IPv4: refused" },
            ]
        });
        let status: Status = serde_json::from_value(status).unwrap();
        let text = status.show(usize::MAX);
        let words = |line: &str| line.split_whitespace().collect::<Vec<_>>().join(" ");
        let lines: Vec<String> = text.lines().skip(2).map(words).collect();
        let (api, b) = ("api.example.com 2 1m1s -", "b.example 0 - IPv4: refused");
        assert_eq!(lines, ["FQDN ADDRESSES AGE FAULT", api, b], "{text}");
    }

    #[test]
    fn a_program_that_is_missing_is_marked_at_its_hook() {
        let row = |missing| {
            serde_json::json!({
                "id": 7, "name": "xdp_ingress", "hook": "xdp", "interface": "eth1",
                "missing": missing, "tag": "0", "bytes": 8, "memory": 9
            })
        };
        let programs = serde_json::json!({ "programs": [row(false), row(true)] });
        let programs: Programs = serde_json::from_value(programs).unwrap();
        let text = programs.show(usize::MAX);
        let hooks: Vec<_> = text.lines().map(|line| line.contains("xdp (missing)")).collect();
        assert_eq!(hooks, [false, false, true], "{text}");
    }

    #[test]
    fn a_session_is_a_line() {
        let mut sessions = sessions();
        let text = sessions.show(usize::MAX);
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines.len(), 3, "{text}");
        assert_eq!(
            lines[1].split_whitespace().collect::<Vec<_>>().join(" "),
            "tcp prod-eu 100.64.1.10:40000 192.0.2.7:443 10.10.0.17:50000 checkout/api s3, public-internet \
             payments-to-s3 tcp_established 10/9 1000/90000 1s 2h3m 0000000000000001"
        );
        assert_eq!(lines[2], "1 session");
        for width in [80, 90, 100, 110, 120, 140] {
            let text = sessions.show(width);
            assert!(text.lines().all(|line| line.chars().count() <= width), "{width}:\n{text}");
            for whole in
                ["tcp  ", "prod-eu", "100.64.1.10:40000", "192.0.2.7:443", "10.10.0.17:50000"]
            {
                assert!(text.contains(&format!("{whole} ")), "{width}: {whole}:\n{text}");
            }
        }
        sessions.matched = 2;
        assert!(
            sessions
                .show(120)
                .ends_with("1 of 2 sessions; --limit shows more, a FILTER those that are meant\n")
        );
    }

    /// The longest addresses there are, on terminals as wide as many.
    #[test]
    fn the_same_address_of_two_domains_is_told_apart_on_every_terminal() {
        let mut sessions = sessions();
        let session = &mut sessions.sessions[0];
        session.inside.source = "100.127.255.254:65535".parse().unwrap();
        session.inside.destination = "203.0.113.254:65535".parse().unwrap();
        session.outside.source = "198.51.100.254:65535".parse().unwrap();
        session.outside.destination = session.inside.destination;
        session.destination.endpoint = Some("s3-gateway/endpoint".into());
        let mut other = session.clone();
        other.domain = "prod-us".into();
        sessions.sessions.push(other);
        sessions.matched = 2;
        assert_eq!(
            sessions.show(100),
            "\
PROTO  DOMAIN   SOURCE                 DESTINATION          OUTSIDE               FROM      RULE
tcp    prod-eu  100.127.255.254:65535  203.0.113.254:65535  198.51.100.254:65535  checkou…  payment…
tcp    prod-us  100.127.255.254:65535  203.0.113.254:65535  198.51.100.254:65535  checkou…  payment…
not shown: ID, BYTES, EXPIRES, PHASE, PACKETS, IDLE, TO; -o wide shows all
2 sessions
"
        );
        assert_eq!(
            sessions.show(80),
            "\
PROTO  DOMAIN   SOURCE                 DESTINATION          OUTSIDE
tcp    prod-eu  100.127.255.254:65535  203.0.113.254:65535  198.51.100.254:65535
tcp    prod-us  100.127.255.254:65535  203.0.113.254:65535  198.51.100.254:65535
not shown: ID, BYTES, EXPIRES, PHASE, PACKETS, IDLE, TO, FROM, RULE; -o wide shows all
2 sessions
"
        );
        // Of a longer name no part is cut off either: two clusters often differ in the last letter.
        for (session, domain) in
            sessions.sessions.iter_mut().zip(["production-eu-a", "production-eu-b"])
        {
            session.domain = domain.to_owned();
        }
        let text = sessions.show(80);
        assert!(text.contains("production-eu-a  100.127.255.254:65535  203.0"), "{text}");
        assert!(text.lines().take(3).all(|line| line.chars().count() <= 80), "{text}");
    }

    #[test]
    fn the_interface_that_a_policy_is_for_is_whole_on_every_terminal() {
        let policy = |name: &str, interface: &str| {
            serde_json::json!({
                "id": 1, "name": name, "order": 10, "source": "100.64.0.0/16",
                "destination": null, "protocol": "any", "connection": null,
                "interface": interface, "snat_ips": ["192.0.2.1", "192.0.2.3-192.0.2.9"],
                "no_nat": false, "sessions": 4
            })
        };
        let policies =
            [policy("pods-to-internet", "eth0"), policy("nodes-to-internet", "enp129s0f0np0.100")];
        let snat = serde_json::json!({ "policies": policies, "pools": [], "fill": [] });
        let snat: Snat = serde_json::from_value(snat).unwrap();
        for width in [80, 100, 140] {
            let text = snat.show(width);
            assert!(text.contains("  dev eth0 "), "{text}");
            assert!(text.contains("  dev enp129s0f0np0.100 "), "{text}");
            assert!(text.lines().all(|line| line.chars().count() <= width), "{text}");
        }
    }

    #[test]
    fn what_is_not_translated_shows_no_outside() {
        let mut session = sessions().sessions.remove(0);
        session.outside = session.inside;
        assert_eq!(outside(&session), "-");
        session.outside.destination = "10.0.0.1:80".parse().unwrap();
        assert_eq!(outside(&session), "to 10.0.0.1:80");
    }

    #[test]
    fn a_contested_address_has_all_its_claimants_and_the_groups_in_doubt() {
        let answer = serde_json::json!({ "identities": [
            {
                "id": 1, "groups": ["shop"], "hosts": 2, "prefixes": 0,
                "members": [
                    { "domain": "red", "address": "100.64.0.1", "endpoint": "shop/a" },
                    { "domain": "red", "address": "100.64.0.2", "endpoint": null },
                ],
            },
            {
                "id": 2, "groups": ["shop"], "doubted": ["ads", "api"], "hosts": 1, "prefixes": 0,
                "members": [{
                    "domain": "red", "address": "100.64.0.3", "endpoint": "shop/b",
                    "claimants": ["shop/b", "shop/c"],
                }],
            },
        ] });
        let identities: Identities = serde_json::from_value(answer).unwrap();
        let text = identities.show(usize::MAX);
        let lines: Vec<String> =
            text.lines().map(|l| l.split_whitespace().collect::<Vec<_>>().join(" ")).collect();
        assert_eq!(
            lines[1..],
            [
                "1 shop 2 0 red:100.64.0.1 shop/a, red:100.64.0.2",
                "2 shop, perhaps ads, perhaps api 1 0 red:100.64.0.3 contested: shop/b or \
                 shop/c",
            ]
        );
    }

    #[test]
    fn an_explanation_marks_the_step_that_decided() {
        let step = |stage: &str, text: &str, decisive| Step {
            stage: stage.into(),
            text: text.into(),
            decisive,
        };
        let explanation = Explanation {
            outcome: Outcome::Drop,
            reason: Some("rule_denied".into()),
            rule: Some(ObjectRef { id: 1, name: Some("no-ssh".into()) }),
            generation: 4,
            steps: vec![
                step("source", "it is checkout/api", false),
                step("rule", "no-ssh matches", true),
            ],
        };
        assert_eq!(
            explanation.show(usize::MAX),
            "   STAGE   FOUND\n   source  it is checkout/api\n>  rule    no-ssh matches\n\
             outcome: drop, rule_denied, rule no-ssh (generation 4)\n"
        );
    }

    #[test]
    fn counters_come_in_sections_and_empty_ones_are_left_out() {
        let amount = Amount { packets: 1, bytes: 60 };
        let mut stats = Stats {
            generation: 1,
            received: amount,
            forwarded_original: amount,
            forwarded_reply: amount,
            passed: amount,
            punted: amount,
            translated_late: amount,
            answered: 0,
            sessions_begun: 0,
            sessions_ended: 0,
            judged_again: 0,
            events_lost: 0,
            events_suppressed: 0,
            leaks_stopped: 0,
            drops: vec![],
            tables: vec![TableFill { name: "sessions".into(), used: 1, size: 3 }],
        };
        let text = stats.show(80);
        assert!(!text.contains("REASON"), "{text}");
        assert!(text.ends_with("sessions  1     3     33%\n"), "{text}");
        let reason = "no_route".to_owned();
        stats.drops = vec![Drops { reason, direction: Direction::Outbound, packets: 5 }];
        assert!(stats.show(80).contains("no_route  outbound   5\n"), "{}", stats.show(80));
    }
}
