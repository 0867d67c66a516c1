//! Mistakes that a field has by itself.

use super::{Config, GOOD, edited, place, refused};

#[test]
fn fields_that_do_not_exist_are_refused() {
    refused(&[
        (
            "  tcp_midstream: reset",
            "  tcp_midstraem: reset",
            &[(
                "tcp_midstraem",
                "gateway.tcp_midstraem",
                "unknown field `tcp_midstraem`; did you mean `tcp_midstream`?",
            )],
        ),
        (
            "      vlan: 100",
            "      color: 100",
            &[(
                "color",
                "gateway.attachments[0].color",
                "unknown field `color`; expected `name`, `interface`, `vlan`, `kind`, `domain`, \
                 `sources`, `routes`, `carries` or `hook`",
            )],
        ),
        (
            "  - kind: DefaultAction",
            "  - kindd: DefaultAction",
            &[("kindd", "documents[4].kindd", "unknown field `kindd`; did you mean `kind`?")],
        ),
        (
            "spec: { action: deny, log: both }",
            "spec: { action: deny, logs: both }",
            &[("logs", "documents[4].spec.logs", "unknown field `logs`; did you mean `log`?")],
        ),
        (
            "    name: refuse\n",
            "    name: refuse\n    slot: a\n",
            &[(
                "slot",
                "documents[3].slot",
                "unknown field `slot`; expected `kind`, `name` or `spec`",
            )],
        ),
        (
            "documents:\n",
            "dokuments:\n",
            &[("dokuments", "dokuments", "unknown field `dokuments`; did you mean `documents`?")],
        ),
        (
            "  attachments:\n",
            "  atachments:\n",
            &[(
                "atachments",
                "gateway.atachments",
                "unknown field `atachments`; did you mean `attachments`?",
            )],
        ),
        (
            "      interface: eth1\n",
            "      interfaces: eth1\n",
            &[(
                "interfaces",
                "gateway.attachments[0].interfaces",
                "unknown field `interfaces`; did you mean `interface`?",
            )],
        ),
        (
            "    name: refuse\n",
            "    nam: refuse\n",
            &[("nam", "documents[3].nam", "unknown field `nam`; did you mean `name`?")],
        ),
        (
            "documents:\n",
            "document: 1\ndocuments:\n",
            &[("document", "document", "unknown field `document`; did you mean `documents`?")],
        ),
        (
            "{ cidr: 10.20.0.0/16, domain: fabric }",
            "{ cdir: 10.20.0.0/16, domain: fabric }",
            &[(
                "cdir",
                "documents[1].spec.selectors[1].cdir",
                "unknown field `cdir`; did you mean `cidr`?",
            )],
        ),
    ]);
}

#[test]
fn of_each_field_that_has_to_be_there_it_is_said_what_would_be_right() {
    for (old, field) in [
        ("      kind: spoke\n", "kind"),
        (", number: 1", "number"),
        ("{ path: /var/log/flows.jsonl }", "path"),
        ("      type: pod\n", "type"),
        ("      addresses: [100.64.1.10]\n", "addresses"),
        ("      action: deny\n", "action"),
        ("      sources: [anywhere]\n", "sources"),
        ("      destinations: [payments]\n", "destinations"),
        ("    spec: { action: deny, log: both }\n", "spec"),
        ("      order: 10\n", "order"),
        ("      labels: { team: payments }\n", "kind"),
        ("{ type: k8s, labels: { team: payments } }", "key"),
        ("{ type: k8s, labels: { team: payments } }", "operator"),
    ] {
        let new = match field {
            "key" => "{ match_expressions: [{ operator: Exists }] }",
            "operator" => "{ namespace_match_expressions: [{ key: team, values: [web] }] }",
            "path" => "{}",
            "kind" if old.contains("labels") => "      workload: { name: api }\n",
            _ => "",
        };
        let errors = Config::parse(&edited(old, new), "f.yaml").unwrap_err();
        let said: Vec<&str> = errors.iter().map(|error| error.message.as_str()).collect();
        let start = format!("`{field}` is missing; expected ");
        assert!(said.len() == 1 && said[0].starts_with(&start), "{old}: {said:?}");
    }
    // Of words there are as many as the field takes.
    for (old, wrong, field) in [
        ("      kind: spoke\n", "      kind: nothing\n", "kind"),
        ("      type: pod\n", "      type: nothing\n", "type"),
        ("      action: deny\n", "      action: nothing\n", "action"),
    ] {
        let [missing, wrong] = ["", wrong].map(|new| {
            let errors = Config::parse(&edited(old, new), "f.yaml").unwrap_err();
            let (_, expected) = errors[0].message.split_once("; expected ").unwrap();
            expected.to_owned()
        });
        assert!(wrong.starts_with(&missing), "{field}: {missing} is not {wrong}");
    }
    let [missing, wrong] = ["", ", operator: Nothing"].map(|operator| {
        let demand = format!("{{ match_expressions: [{{ key: team{operator} }}] }}");
        let text = edited("{ type: k8s, labels: { team: payments } }", &demand);
        let errors = Config::parse(&text, "f.yaml").unwrap_err();
        errors[0].message.split_once("; expected ").unwrap().1.to_owned()
    });
    assert!(wrong.starts_with(&missing), "operator: {missing} is not {wrong}");
}

#[test]
fn what_is_missing_or_stands_twice_is_refused() {
    refused(&[
        (
            "  name: gw-1\n",
            "",
            &[("gateway", "gateway.name", "`name` is missing; expected a name of its own")],
        ),
        (
            "      interface: eth1\n",
            "",
            &[(
                "name: pods",
                "gateway.attachments[0].interface",
                "`interface` is missing; expected the name of an interface",
            )],
        ),
        (
            "      priority: 200\n",
            "",
            &[(
                "spec",
                "documents[3].spec.priority",
                "`priority` is missing; expected a number of its own; the lowest that matches decides",
            )],
        ),
        // What names it may be right.
        (
            "{ name: internet, interface: eth0, kind: internet }",
            "{ name: internet, kind: internet }",
            &[(
                "{ name: internet",
                "gateway.attachments[3].interface",
                "`interface` is missing; expected the name of an interface",
            )],
        ),
        (
            "{ name: transit, interface",
            "{ interface",
            &[(
                "{ interface",
                "gateway.attachments[2].name",
                "`name` is missing; expected a name of its own",
            )],
        ),
        (
            "{ name: prod-eu, number: 1 }",
            "{ number: 1 }",
            &[(
                "{ number",
                "gateway.domains[0].name",
                "`name` is missing; expected a name of its own",
            )],
        ),
        (
            "    name: payments\n",
            "",
            &[("kind", "documents[1].name", "`name` is missing; expected a name of its own")],
        ),
        (
            "      log: start\n",
            "      log: start\n      action: permit\n",
            &[(
                "action: permit",
                "documents[3].spec.action",
                "`action` stands twice, first in line 58; expected it once",
            )],
        ),
        (
            "  - kind: DefaultAction\n    name: default\n",
            "  - name: default\n",
            &[(
                "name: default",
                "documents[4].kind",
                "`kind` is missing; expected `Endpoint`, `Namespace`, `SmartGroup`, `Rule`, `DefaultAction` \
                     or `SnatPolicy`",
            )],
        ),
        (
            "  - kind: DefaultAction\n    name: default\n    spec: { action: deny, log: both }\n",
            "",
            &[(
                "documents",
                "documents",
                "there is no DefaultAction; expected one document that says what happens where no \
                 rule matches",
            )],
        ),
        (
            "      priority: 200\n",
            "      prio: 200\n",
            &[("prio", "documents[3].spec.prio", "unknown field `prio`; did you mean `priority`?")],
        ),
        (
            // Nobody meant the one by the other.
            "      interface: eth1\n",
            "      colour: eth1\n",
            &[
                (
                    "name: pods",
                    "gateway.attachments[0].interface",
                    "`interface` is missing; expected the name of an interface",
                ),
                (
                    "colour",
                    "gateway.attachments[0].colour",
                    "unknown field `colour`; expected `name`, `interface`, `vlan`, `kind`, \
                     `domain`, `sources`, `routes`, `carries` or `hook`",
                ),
            ],
        ),
        (
            "  - kind: DefaultAction\n    name: default\n    spec: { action: deny, log: both }\n",
            "  - { kind: DefaultAction, name: a, spec: { action: deny } }\n  \
             - { kind: DefaultAction, name: b, spec: { action: deny } }\n",
            &[(
                "kind: DefaultAction, name: b",
                "documents[5].kind",
                "a second DefaultAction, the first is in line 62; expected one",
            )],
        ),
    ]);
}

#[test]
fn values_of_the_wrong_kind_are_refused() {
    refused(&[
        (
            "vlan: 100\n",
            "vlan: \"100\"\n",
            &[("vlan", "gateway.attachments[0].vlan", "`vlan` is \"100\"; expected 1 to 4094")],
        ),
        (
            "vlan: 100\n",
            "vlan: 4095\n",
            &[("vlan", "gateway.attachments[0].vlan", "`vlan` is 4095; expected 1 to 4094")],
        ),
        (
            "vlan: 100\n",
            "vlan: 0\n",
            &[("vlan", "gateway.attachments[0].vlan", "`vlan` is 0; expected 1 to 4094")],
        ),
        (
            "number: 2",
            "number: 0",
            &[("number", "gateway.domains[1].number", "`number` is 0; expected 1 to 65535")],
        ),
        (
            "number: 2",
            "number: 65536",
            &[("number", "gateway.domains[1].number", "`number` is 65536; expected 1 to 65535")],
        ),
        (
            "      kind: spoke\n",
            "      kind: spok\n",
            &[(
                "kind",
                "gateway.attachments[0].kind",
                "`kind` is `spok`; expected `spoke`, `connection` or `internet`; did you mean \
                 `spoke`?",
            )],
        ),
        (
            "      sources: [100.64.0.0/16]",
            "      sources: 100.64.0.0/16",
            &[(
                "sources",
                "gateway.attachments[0].sources",
                "`sources` is \"100.64.0.0/16\"; expected a list",
            )],
        ),
        (
            "      sources: [100.64.0.0/16]",
            "      sources: [100.64.0.0/16, 100.65.0.1/16]",
            &[(
                "100.65.0.1/16",
                "gateway.attachments[0].sources[1]",
                "`sources[1]` is \"100.65.0.1/16\"; expected a prefix without bits after its length",
            )],
        ),
        (
            "      sources: [100.64.0.0/16]",
            "      sources: [100.064.0.0/16]",
            &[(
                "100.064.0.0/16",
                "gateway.attachments[0].sources[0]",
                "`sources[0]` is \"100.064.0.0/16\"; expected an IPv4 address or a prefix such as \
                 10.20.0.0/16, without leading zeros",
            )],
        ),
        (
            "udp: 300s",
            "udp: 0s",
            &[(
                "udp",
                "gateway.timers.udp",
                "`udp` is \"0s\"; expected a time from 1s to 8760h, such as 300s, 124m or 2h4m",
            )],
        ),
        (
            "udp: 300s",
            "udp: 300",
            &[(
                "udp",
                "gateway.timers.udp",
                "`udp` is 300; expected a time from 1s to 8760h, such as 300s, 124m or 2h4m",
            )],
        ),
        (
            "  timers:\n    udp: 300s\n",
            "  timers:\n",
            &[("timers", "gateway.timers", "`timers` is empty; expected a mapping of fields")],
        ),
        (
            "sessions: 1048576",
            "sessions: many",
            &[(
                "sessions",
                "gateway.tables.sessions",
                "`sessions` is \"many\"; expected a power of two from 1024 to 16777216",
            )],
        ),
        (
            "sessions: 1048576",
            "sessions: 1099511627776",
            &[(
                "sessions",
                "gateway.tables.sessions",
                "`sessions` is 1099511627776; expected a power of two from 1024 to 16777216",
            )],
        ),
        (
            "rules: 16384",
            "rules: 0\n    next_hops: 4294967296\n    endpoints: -1",
            &[
                ("rules", "gateway.tables.rules", "`rules` is 0; expected 1 to 16384"),
                (
                    "next_hops",
                    "gateway.tables.next_hops",
                    "`next_hops` is 4294967296; expected 1 to 65536",
                ),
                (
                    "endpoints",
                    "gateway.tables.endpoints",
                    "`endpoints` is -1; expected 1 to 16777216",
                ),
            ],
        ),
        (
            "vlan: 100\n",
            "vlan: 1.0\n",
            &[("vlan", "gateway.attachments[0].vlan", "`vlan` is 1.0; expected 1 to 4094")],
        ),
        (
            "number: 2",
            "number: 1e0",
            &[("number", "gateway.domains[1].number", "`number` is 1e0; expected 1 to 65535")],
        ),
        (
            "flow_log: { path: /var/log/flows.jsonl }",
            "flow_log: { path: /var/log/flows.jsonl, keep: -1, rotate_bytes: 99999999999999999999 }",
            &[
                ("keep", "gateway.flow_log.keep", "`keep` is -1; expected 0 to 1000"),
                (
                    "rotate_bytes",
                    "gateway.flow_log.rotate_bytes",
                    "`rotate_bytes` is 99999999999999999999; expected 4096 to 18446744073709551615",
                ),
            ],
        ),
        (
            "listen: 127.0.0.1:9464",
            "listen: localhost",
            &[(
                "listen",
                "gateway.metrics.listen",
                "`listen` is \"localhost\"; expected an address and port such as 127.0.0.1:9464",
            )],
        ),
        (
            "account: \"111122223333\"",
            "account: 111122223333",
            &[("account", "documents[0].spec.account", "`account` is 111122223333; expected text")],
        ),
        (
            "labels: { team: payments }\n  - kind: SmartGroup",
            "labels: { team: yes, tier: true }\n  - kind: SmartGroup",
            &[("tier", "documents[0].spec.labels.tier", "`tier` is true; expected text")],
        ),
        (
            "  - kind: DefaultAction",
            "  - kind: Default",
            &[(
                "kind: Default",
                "documents[4].kind",
                "`kind` is `Default`; expected `Endpoint`, `Namespace`, `SmartGroup`, `Rule`, \
                     `DefaultAction` or `SnatPolicy`; did you mean `DefaultAction`?",
            )],
        ),
        (
            "ports: [443, \"8000-8100\"]",
            "ports: [70000, 443, \"8100-8000\"]",
            &[
                (
                    "70000",
                    "documents[2].spec.ports[0]",
                    "`ports[0]` is 70000; expected a port from 1 to 65535, or a range such as \
                     \"8000-8100\"",
                ),
                (
                    "\"8100-8000\"",
                    "documents[2].spec.ports[2]",
                    "`ports[2]` is \"8100-8000\"; expected a port from 1 to 65535, or a range such \
                     as \"8000-8100\"",
                ),
            ],
        ),
        (
            "      protocol: tcp\n",
            "      protocol: tpc\n",
            &[(
                "protocol",
                "documents[2].spec.protocol",
                "`protocol` is \"tpc\"; expected any, tcp, udp, icmp or a number from 0 to 255",
            )],
        ),
        (
            "mark: 7",
            "mark: 0",
            &[("mark", "documents[2].spec.mark", "`mark` is 0; expected 1 to 65535")],
        ),
        (
            "192.0.2.8/29]",
            "192.0.2.9-192.0.2.8]",
            &[(
                "192.0.2.9-192.0.2.8",
                "documents[5].spec.snat_ips[1]",
                "`snat_ips[1]` is \"192.0.2.9-192.0.2.8\"; expected an IPv4 address, a range such \
                 as 192.0.2.1-192.0.2.9 or a prefix such as 192.0.2.0/28",
            )],
        ),
    ]);
}

/// The fields of a struct have an order as well, and a list must never be read by it: `[permit]`
/// would be a default action.
#[test]
fn a_list_is_no_mapping() {
    const FIELDS: &str = "expected a mapping of fields";
    for (old, new, at, path, message) in [
        ("  timers:\n    udp: 300s\n", "  timers: [300s]\n", "timers", "gateway.timers", FIELDS),
        (
            "  tables:\n    sessions: 1048576\n    rules: 16384\n",
            "  tables: [1048576]\n",
            "tables",
            "gateway.tables",
            FIELDS,
        ),
        (
            "flow_log: { path: /var/log/flows.jsonl }",
            "flow_log: [/var/log/flows.jsonl]",
            "flow_log",
            "gateway.flow_log",
            FIELDS,
        ),
        (
            "  metrics:\n    listen: 127.0.0.1:9464\n",
            "  metrics: [127.0.0.1:9464]\n",
            "metrics",
            "gateway.metrics",
            FIELDS,
        ),
        (
            "    listen: 127.0.0.1:9464\n",
            "    tls: [/etc/cert.pem, /etc/key.pem]\n",
            "tls",
            "gateway.metrics.tls",
            FIELDS,
        ),
        ("{ name: prod-us, number: 2 }", "[prod-us, 2]", "[prod-us", "gateway.domains[1]", FIELDS),
        (
            "{ name: internet, interface: eth0, kind: internet }",
            "[internet, eth0, 7, internet]",
            "[internet",
            "gateway.attachments[3]",
            FIELDS,
        ),
        (
            "    spec:
      type: pod
      domain: prod-eu
      addresses: [100.64.1.10]
      account: \"111122223333\"
      labels: { team: payments }
",
            "    spec: [pod, prod-eu, [100.64.1.10]]\n",
            "spec",
            "documents[0].spec",
            FIELDS,
        ),
        (
            "labels: { team: payments }\n  - kind: SmartGroup",
            "labels: [team, payments]\n  - kind: SmartGroup",
            "labels",
            "documents[0].spec.labels",
            "expected a mapping",
        ),
        (
            "    spec:
      selectors:
        - { type: k8s, labels: { team: payments } }
        - { cidr: 10.20.0.0/16, domain: fabric }
",
            "    spec: [[{ cidr: 10.20.0.0/16, domain: fabric }]]\n",
            "spec",
            "documents[1].spec",
            FIELDS,
        ),
        (
            "{ cidr: 10.20.0.0/16, domain: fabric }",
            "[10.20.0.0/16]",
            "[10.20",
            "documents[1].spec.selectors[1]",
            FIELDS,
        ),
        (
            "    spec:
      priority: 200
      action: deny
      sources: [anywhere]
      destinations: [payments]
      log: start
",
            "    spec: [200, permit, [anywhere], [payments]]\n",
            "spec",
            "documents[3].spec",
            FIELDS,
        ),
        (
            "spec: { action: deny, log: both }",
            "spec: [permit, both]",
            "spec",
            "documents[4].spec",
            FIELDS,
        ),
        (
            "    spec:
      order: 20
      src_cidr: 10.10.0.0/24
      interface: eth2
      no_nat: true
",
            "    spec: [20, 10.10.0.0/24]\n",
            "spec",
            "documents[6].spec",
            FIELDS,
        ),
    ] {
        let text = edited(old, new);
        let errors = Config::parse(&text, "f.yaml").map(|_| ()).unwrap_err();
        let [error] = &errors[..] else { panic!("{new}: {errors:#?}") };
        assert_eq!(error.path, path);
        let field = path.rsplit_once('.').map_or(path, |(_, field)| field);
        assert_eq!(error.message, format!("`{field}` is a list; {message}"));
        assert!(place(&text, error).starts_with(at), "{error}");
    }
    let errors = Config::parse("gateway: [gw-1]\ndocuments: []\n", "f.yaml").unwrap_err();
    assert_eq!(errors[0].message, format!("`gateway` is a list; {FIELDS}"));
}

#[test]
fn whatever_stands_there_the_message_is_one_short_line() {
    let long = "x".repeat(5_000);
    let cut = "x".repeat(80);
    for (old, new, path, message) in [
        (
            "name: gw-1",
            "name: \"gw\\n\\e[31m\"".to_owned(),
            "gateway.name".to_owned(),
            "`name` is \"gw\\n\\u{1b}[31m\"; expected 1 to 253 letters, digits, `-`, `_`, `.` or `/`"
                .to_owned(),
        ),
        (
            // Turned around by a terminal, or not seen at all.
            "name: gw-1",
            "name: \"gw\u{202e}1\u{200b}\"".to_owned(),
            "gateway.name".to_owned(),
            "`name` is \"gw\\u{202e}1\\u{200b}\"; expected 1 to 253 letters, digits, `-`, `_`, `.` or `/`"
                .to_owned(),
        ),
        (
            "name: gw-1",
            format!("name: {long}"),
            "gateway.name".to_owned(),
            format!("`name` is \"{cut}…\"; expected 1 to 253 letters, digits, `-`, `_`, `.` or `/`"),
        ),
        (
            "udp: 300s",
            format!("udp: {long}"),
            "gateway.timers.udp".to_owned(),
            format!(
                "`udp` is \"{cut}…\"; expected a time from 1s to 8760h, such as 300s, 124m or 2h4m"
            ),
        ),
        (
            "log: start",
            format!("log: start\n      \"{}\\n\": 1", &long[..200]),
            format!("documents[3].spec.{cut}…"),
            format!(
                "unknown field `{cut}…`; expected `priority`, `action`, `sources`, `destinations`, \
                 `protocol`, `ports`, `log`, `enforcement`, `mark` or `description`"
            ),
        ),
        (
            "sources: [payments]",
            format!("sources: [{long}]"),
            "documents[2].spec.sources[0]".to_owned(),
            format!(
                "`sources[0]` names group `{cut}…`, which does not exist; expected `anywhere`, \
                 `public-internet` or `payments`"
            ),
        ),
    ] {
        let errors = Config::parse(&edited(old, &new), "f.yaml").unwrap_err();
        let said: Vec<_> = errors.iter().map(|e| (e.path.as_str(), e.message.as_str())).collect();
        assert_eq!(said, [(path.as_str(), message.as_str())]);
    }
}

#[test]
fn bytes_that_are_no_text_are_refused_with_their_place() {
    let error = |bytes: &[u8]| Config::parse_bytes(bytes, "f.yaml").unwrap_err();
    for (put, place) in [(0, "f.yaml:1:1: "), (10, "f.yaml:2:2: "), (GOOD.len(), "f.yaml:81:1: ")] {
        let bytes = [&GOOD.as_bytes()[..put], b"\xfe", &GOOD.as_bytes()[put..]].concat();
        let errors = error(&bytes);
        assert_eq!(errors.len(), 1, "{errors:?}");
        let said = format!("{place}the byte 0xfe is not UTF-8; expected text in UTF-8");
        assert_eq!(errors[0].to_string(), said);
    }
    assert!(Config::parse_bytes(GOOD.as_bytes(), "f.yaml").is_ok());
    // A column is a character, not a byte.
    assert_eq!(error("# ä\u{20ac}".as_bytes().split_last().unwrap().1)[0].column, 4);
}

#[test]
fn a_tab_is_named_where_spaces_were_meant() {
    for (text, place) in [
        ("gateway:\n  name:\tgw-1\n", "f.yaml:2:8"),
        ("gateway:\n\tname: gw-1\n", "f.yaml:2:1"),
        ("gateway:\n  name: a text\n\t{", "f.yaml:3:1"),
        ("gateway:\n  pri\n\t{", "f.yaml:3:1"),
    ] {
        let errors = Config::parse(text, "f.yaml").unwrap_err();
        let said: Vec<_> = errors.iter().map(ToString::to_string).collect();
        assert_eq!(said, [format!("{place}: a tab stands here; expected spaces")]);
    }
}
