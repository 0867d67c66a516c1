//! Every mistake that a file can have, with its place and its message.

mod form;
mod reach;
mod sense;

use smartgroups::{DomainId, GroupId};

use super::*;

/// A file without a mistake; each test changes a line or two of it.
const GOOD: &str = "\
gateway:
  name: gw-1
  non_routable: [100.64.0.0/10]
  domains:
    - { name: prod-eu, number: 1 }
    - { name: prod-us, number: 2 }
  attachments:
    - name: pods
      interface: eth1
      vlan: 100
      kind: spoke
      domain: prod-eu
      sources: [100.64.0.0/16]
      routes: []
      carries: []
    - { name: nodes, interface: eth1, vlan: 100, kind: spoke, sources: [10.10.0.0/24] }
    - { name: transit, interface: eth2, kind: connection, routes: [10.0.0.0/8] }
    - { name: internet, interface: eth0, kind: internet }
  timers:
    udp: 300s
  tables:
    sessions: 1048576
    rules: 16384
  tcp_midstream: reset
  flow_log: { path: /var/log/flows.jsonl }
  metrics:
    listen: 127.0.0.1:9464
  socket: /run/sluice.sock
documents:
  - kind: Endpoint
    name: checkout/api
    spec:
      type: pod
      domain: prod-eu
      addresses: [100.64.1.10]
      account: \"111122223333\"
      labels: { team: payments }
  - kind: SmartGroup
    name: payments
    spec:
      selectors:
        - { type: k8s, labels: { team: payments } }
        - { cidr: 10.20.0.0/16, domain: fabric }
  - kind: Rule
    name: allow
    spec:
      priority: 100
      action: permit
      sources: [payments]
      destinations: [public-internet, anywhere]
      protocol: tcp
      ports: [443, \"8000-8100\"]
      mark: 7
  - kind: Rule
    name: refuse
    spec:
      priority: 200
      action: deny
      sources: [anywhere]
      destinations: [payments]
      log: start
  - kind: DefaultAction
    name: default
    spec: { action: deny, log: both }
  - kind: SnatPolicy
    name: out
    spec:
      order: 10
      src_cidr: 100.64.0.0/16
      dst_group: payments
      dst_port: \"443\"
      connection: transit
      snat_ips: [192.0.2.1, 192.0.2.8/29]
  - kind: SnatPolicy
    name: keep
    spec:
      order: 20
      src_cidr: 10.10.0.0/24
      interface: eth2
      no_nat: true
";

/// Text to replace, what to put there, and the mistakes: where they are (the text that stands
/// there), the path and the message.
type Case = (&'static str, &'static str, &'static [(&'static str, &'static str, &'static str)]);

fn edited(old: &str, new: &str) -> String {
    assert_eq!(GOOD.matches(old).count(), 1, "`{old}` must stand once in the good file");
    GOOD.replace(old, new)
}

#[track_caller]
fn place<'a>(text: &'a str, error: &ConfigError) -> &'a str {
    let line = text.lines().nth(error.line - 1).unwrap_or_else(|| panic!("{error}"));
    line.get(error.column - 1..).unwrap_or_else(|| panic!("{error}"))
}

#[track_caller]
fn refused(cases: &[Case]) {
    for (old, new, expected) in cases {
        let text = edited(old, new);
        let errors = Config::parse(&text, "f.yaml").map(|_| ()).unwrap_err();
        let all: Vec<String> = errors.iter().map(ToString::to_string).collect();
        assert_eq!(errors.len(), expected.len(), "{old} -> {new}: {all:#?}");
        for (error, (at, path, message)) in errors.iter().zip(*expected) {
            assert_eq!((error.path.as_str(), error.message.as_str()), (*path, *message));
            let found = place(&text, error);
            assert!(found.starts_with(at), "{error}\nexpected at `{at}`, found at `{found}`");
        }
    }
}

#[test]
fn the_good_file_is_good() {
    let config = Config::parse(GOOD, "f.yaml").unwrap();
    assert_eq!(config.documents.len(), 7);
    assert_eq!(
        config.summary(),
        "gateway `gw-1`: 4 attachments, 2 domains beside the fabric, 1 endpoint, 1 group, 2 rules, \
         2 SNAT policies"
    );
    assert_eq!(config.warnings, []);
}

#[test]
fn what_is_not_stated_has_its_default() {
    let text = "\
gateway:
  name: gw-1
  attachments:
    - { name: a, interface: eth0, kind: spoke, sources: [10.0.0.0/8] }
    - { name: b, interface: eth1, kind: connection }
documents:
  - { kind: DefaultAction, name: d, spec: { action: deny } }
";
    let Gateway { attachments, timers, tables, metrics, .. } =
        Config::parse(text, "f.yaml").unwrap().gateway;
    let texts = |prefixes: &[api::value::Prefix4]| check::join(prefixes);
    assert_eq!(attachments[0].domain, "fabric");
    assert_eq!(attachments[0].vlan, None);
    assert_eq!(attachments[0].hook, Hook::Auto);
    assert_eq!(texts(attachments[0].routes()), "10.0.0.0/8");
    assert_eq!(texts(&attachments[1].sources), "0.0.0.0/0");
    assert_eq!(texts(attachments[1].routes()), "0.0.0.0/0");
    let seconds =
        [timers.udp, timers.tcp_established, timers.tcp_transitory, timers.icmp, timers.port_rest];
    assert_eq!(seconds.map(Seconds::get), [300, 7440, 240, 60, 120]);
    assert_eq!((tables.sessions, tables.rules, tables.next_hops), (1_048_576, 16_384, 4_096));
    assert_eq!(metrics.listen.to_string(), "127.0.0.1:9464");
}

#[test]
fn a_hook_that_one_attachment_states_holds_for_its_interface() {
    let text = edited("      carries: []", "      carries: []\n      hook: tc");
    let Gateway { attachments, .. } = Config::parse(&text, "f.yaml").unwrap().gateway;
    let hooks: Vec<Hook> = attachments.iter().map(|attachment| attachment.hook).collect();
    assert_eq!(hooks, [Hook::Tc, Hook::Tc, Hook::Auto, Hook::Auto]);
}

#[test]
fn the_example_is_read_and_states_the_defaults() {
    let text = include_str!("../../../docs/sluice.example.yaml");
    let config = Config::parse(text, "sluice.example.yaml").unwrap();
    assert_eq!(config.warnings, []);
    assert_eq!(config.gateway.timers, Timers::default());
    assert_eq!(config.gateway.tables, Tables::default());
    assert_eq!(config.gateway.metrics, Metrics::default());
    assert_eq!(config.gateway.dns, names::Dns::default());
    assert_eq!(config.gateway.group_alarms, GroupAlarms::default());
    let mut kinds: Vec<&str> = config.documents.iter().map(Document::kind).collect();
    kinds.sort_unstable();
    kinds.dedup();
    assert_eq!(kinds.len(), Document::KINDS.len(), "an example of every kind");
}

#[test]
fn what_is_no_yaml_says_where_it_ends() {
    for (text, line, expected) in [
        ("", 1, "the file is empty; expected `gateway` and `documents`"),
        ("# nothing\n", 1, "the file is empty; expected `gateway` and `documents`"),
        ("gateway:\n  name: [a\ndocuments: []\n", 3, "this is not YAML: "),
        ("gateway:\n\tname: a\n", 2, "a tab stands here; expected spaces"),
        ("- a\n", 1, "expected a mapping with `gateway` and `documents`"),
        ("a: 1\n---\nb: 2\n", 2, "a second `---` begins here; expected one YAML document"),
        (
            "gateway: &a {}\n",
            1,
            "an anchor or alias stands here; write the value out in each place",
        ),
        ("gateway: !x {}\n", 1, "a tag (`!...`) stands here; expected a plain value"),
        ("[[[[[[[[[[[[[[[[[[]]]]]]]]]]]]]]]]]]", 1, "this is nested too deep; no field is so deep"),
        ("[a]: 1\n", 1, "a key is not plain text; expected `name: value`"),
    ] {
        let errors = Config::parse(text, "f.yaml").unwrap_err();
        assert!(errors[0].message.starts_with(expected), "{text}: {}", errors[0]);
        assert_eq!(errors[0].line, line, "{text}: {}", errors[0]);
        assert_eq!(errors.len(), 1, "{text}: {errors:?}");
    }
}

#[test]
fn an_error_is_one_line_with_its_place() {
    let text = edited("vlan: 100\n", "vlan: 5000\n");
    let errors = Config::parse(&text, "sluice.yaml").unwrap_err();
    assert_eq!(
        errors[0].to_string(),
        "sluice.yaml:10:7: gateway.attachments[0].vlan: `vlan` is 5000; expected 1 to 4094"
    );
}

#[test]
fn an_exception_from_nat_never_lets_a_non_routable_source_out() {
    const LEAK: &str = "which carries nothing; expected `carries` there that hold";
    for (source, carries, leak) in [
        ("src_cidr: 10.10.0.0/24", "[]", None),
        ("src_cidr: 100.64.0.0/16", "[]", Some("100.64.0.0/16")),
        ("src_cidr: 100.64.0.0/16", "[100.64.0.0/16]", None),
        ("src_cidr: 100.64.0.0/16", "[100.64.0.0/17, 100.64.128.0/17]", None),
        ("src_cidr: 100.64.0.0/15", "[100.64.0.0/16]", Some("100.64.0.0/15")),
        ("src_cidr: 100.0.0.0/8", "[]", Some("100.64.0.0/10")), // wider than non_routable
        ("src_cidr: 100.128.0.0/16", "[]", None),               // one past it
        ("dst_cidr: 10.0.0.0/8", "[]", Some("100.64.0.0/10")),  // any source
        ("src_group: anywhere", "[]", Some("100.64.0.0/10")),
        ("src_group: public-internet", "[]", None),
        ("src_group: payments", "[]", Some("100.64.1.10/32")), // a pod of the group
        ("src_group: payments", "[100.64.1.10]", None),
        ("src_group: public-internet, non_routable: 100.0.0.0/8", "[]", Some("100.0.0.0/10")),
        ("selectors: [{ group: public-internet }]", "[]", None),
        ("selectors: [{ group: anywhere }]", "[100.64.0.0/16]", Some("100.64.0.0/10")),
        ("selectors: [{ cidr: 100.0.0.0/8 }], exclude: [{ cidr: 100.64.0.0/10 }]", "[]", None),
        // The longest prefix that is not excluded.
        (
            "selectors: [{ cidr: 100.0.0.0/8 }], exclude: [{ cidr: 100.64.0.0/11 }]",
            "[]",
            Some("100.96.0.0/11"),
        ),
        // What is excluded of one domain is not of another.
        (
            "selectors: [{ group: anywhere }], exclude: [{ cidr: 100.64.0.0/10 }]",
            "[]",
            Some("100.64.0.0/10"),
        ),
        // Nothing is known of the namespace, so the pod may be in the group or not.
        ("selectors: [{ namespace_labels: { env: prod } }]", "[]", Some("100.64.1.10/32")),
        (
            "selectors: [{ k8s_pod: api }], exclude: [{ namespace_labels: { env: prod } }]",
            "[]",
            Some("100.64.1.10/32"),
        ),
    ] {
        let (source, wider) = source.split_once(", non_routable: ").unwrap_or((source, ""));
        let (source, group) = match source.starts_with("selectors") {
            true => (
                "src_group: g",
                format!("  - {{ kind: SmartGroup, name: g, spec: {{ {source} }} }}\n"),
            ),
            false => (source, String::new()),
        };
        let text = edited("src_cidr: 10.10.0.0/24", source).replace(
            "kind: connection, routes: [10.0.0.0/8]",
            &format!("kind: connection, routes: [10.0.0.0/8], carries: {carries}"),
        ) + &group;
        let text = text.replace("account:", "namespace: shop\n      account:");
        let text = match wider {
            "" => text,
            _ => text.replace("100.64.0.0/10]", &format!("{wider}]")),
        };
        for text in [
            text.clone(),
            text.replace("interface: eth2\n      no", "connection: transit\n      no"),
        ] {
            match (Config::parse(&text, "f.yaml"), leak) {
                (Ok(_), None) => {}
                (Err(errors), Some(leak)) => {
                    assert_eq!(errors.len(), 1, "{source} {carries}: {errors:?}");
                    assert_eq!(errors[0].path, "documents[6].spec.no_nat");
                    assert!(place(&text, &errors[0]).starts_with("no_nat"), "{}", errors[0]);
                    let message = &errors[0].message;
                    assert!(message.contains(&format!("sources of {leak} leave")), "{message}");
                    assert!(carries != "[]" || message.contains(LEAK), "{message}");
                }
                (result, _) => panic!("{source} {carries}: {result:?}"),
            }
        }
    }
}

#[test]
fn groups_that_name_one_another_by_many_ways_cost_what_their_text_does() {
    let group = |name: &str, parts: &[String]| {
        let parts: Vec<String> = parts.iter().map(|part| format!("{{ group: {part} }}")).collect();
        let selectors = parts.join(", ");
        format!("  - {{ kind: SmartGroup, name: {name}, spec: {{ selectors: [{selectors}] }} }}\n")
    };
    let named = |n: usize| format!("g{n}");
    let first =
        "  - { kind: SmartGroup, name: g0, spec: { selectors: [{ cidr: 100.64.0.0/16 }] } }\n";
    let chain: String = (1..=3_000).map(|n| group(&named(n), &[named(n - 1)])).collect();
    let twice: String = (1..=60)
        .map(|n| {
            let other = format!("h{n}");
            group(&other, &[named(n - 1)]) + &group(&named(n), &[named(n - 1), other])
        })
        .collect();
    let all: Vec<String> = (0..60).map(named).collect();
    let clique: String = all.iter().map(|name| group(name, &all)).collect();
    for (groups, last, expected) in [
        (
            first.to_owned() + &chain,
            3_000,
            "`no_nat` would let non-routable sources of 100.64.0.0/16 ",
        ),
        (
            first.to_owned() + &twice,
            60,
            "`no_nat` would let non-routable sources of 100.64.0.0/16 ",
        ),
        (clique, 59, "smart group `g0` is a part of itself (g0 -> g0)"),
    ] {
        let source = format!("src_group: g{last}");
        let text = edited("src_cidr: 10.10.0.0/24", &source) + &groups;
        let errors = Config::parse(&text, "f.yaml").map(|_| ()).unwrap_err();
        assert_eq!(errors.len(), 1, "{errors:?}");
        assert!(errors[0].message.starts_with(expected), "{}", errors[0]);
    }
}

#[test]
fn every_mistake_is_reported_at_once_and_in_order() {
    let text = GOOD
        .replace("vlan: 100\n", "vlan: 5000\n")
        .replace("udp: 300s", "udp: 0s")
        .replace("  tcp_midstream", "  tcp_midstraem")
        .replace("priority: 200", "priority: high")
        .replace("snat_ips: [192.0.2.1,", "snat_ips: [100.64.0.1,");
    let errors = Config::parse(&text, "f.yaml").unwrap_err();
    let paths: Vec<&str> = errors.iter().map(|error| error.path.as_str()).collect();
    assert_eq!(
        paths,
        [
            "gateway.attachments[0].vlan",
            "gateway.timers.udp",
            "gateway.tcp_midstraem",
            "documents[3].spec.priority",
            "documents[5].spec.snat_ips[0]",
        ]
    );
}

#[test]
fn of_very_many_mistakes_the_first_are_said_and_that_there_are_more() {
    let document = |n: usize, kind: &str, domain: &str| {
        let spec = format!("{{ type: {kind}, domain: {domain}, addresses: [10.0.0.{n}] }}");
        format!("  - {{ kind: Endpoint, name: e{n}, spec: {spec} }}\n")
    };
    for (kind, domain, known) in [("pot", "fabric", 1), ("vm", "fabrik", 50)] {
        for (count, more) in [(100, None), (150, Some(known))] {
            let many: String = (0..count).map(|n| document(n, kind, domain)).collect();
            let text = GOOD.replacen("documents:\n", &format!("documents:\n{many}"), 1);
            let faults = Config::parse(&text, "f.yaml").unwrap_err();
            let said = faults.get(100).map(|fault| fault.message.clone());
            let expected = more.map(|more| format!("and at least {more} more, from here on"));
            assert_eq!(
                (faults.len(), said),
                (100 + usize::from(more.is_some()), expected),
                "{kind}"
            );
            assert!(faults.is_sorted_by_key(|fault| fault.line));
        }
    }
}

#[test]
fn places_count_what_is_wrong_before_them() {
    // Of seven documents the first, the third and the fourth cannot be read, nor of the ports of
    // the rule that is put before them the first and the last.
    let text = GOOD
        .replace("type: pod\n", "type: pd\n")
        .replace("protocol: tcp\n", "protocol: tpc\n")
        .replace("log: start", "log: strat")
        .replace("name: out\n", "name: out out\n")
        .replace("192.0.2.1, 192.0.2.8/29]", "192.0.2.300, 127.0.0.1, x, 224.0.0.1]");
    let errors = Config::parse(&text, "f.yaml").unwrap_err();
    let paths: Vec<&str> = errors.iter().map(|error| error.path.as_str()).collect();
    assert_eq!(
        paths,
        [
            "documents[0].spec.type",
            "documents[2].spec.protocol",
            "documents[3].spec.log",
            "documents[5].name",
            "documents[5].spec.snat_ips[0]",
            "documents[5].spec.snat_ips[1]",
            "documents[5].spec.snat_ips[2]",
            "documents[5].spec.snat_ips[3]",
        ]
    );
}

#[test]
fn one_mistake_is_not_reported_twice() {
    // What names the thing with the mistake is not blamed for it.
    for (old, new, path) in [
        (
            "kind: connection, routes",
            "kind: connection, carries: 1, routes",
            "gateway.attachments[2].carries",
        ),
        ("name: prod-eu, number: 1", "name: prod-eu, number: 0", "gateway.domains[0].number"),
        ("- { cidr: 10.20.0.0/16, domain: fabric }", "- 7", "documents[1].spec.selectors[1]"),
        (
            "      selectors:\n",
            "      selectorss: []\n      selectors:\n",
            "documents[1].spec.selectorss",
        ),
        (
            "kind: DefaultAction\n    name: default\n    spec: { action: deny, log: both }",
            "kind: DefaultAction\n    name: default\n    spec: { action: dany }",
            "documents[4].spec.action",
        ),
    ] {
        let errors = Config::parse(&edited(old, new), "f.yaml").unwrap_err();
        let paths: Vec<&str> = errors.iter().map(|error| error.path.as_str()).collect();
        assert_eq!(paths, [path], "{new}: {errors:?}");
    }
    let (gateway, _) = GOOD.split_once("documents:").unwrap();
    let errors = Config::parse(&format!("{gateway}documents: {{}}\n"), "f.yaml").unwrap_err();
    let said = "`documents` is no list; expected a list of kind, name and spec";
    assert_eq!((errors.len(), errors[0].message.as_str()), (1, said), "{errors:?}");
    let (_, documents) = GOOD.split_once("documents:").unwrap();
    for (gateway, said) in [
        ("", "`gateway` is missing; expected a mapping of fields"),
        ("gateway:\n", "`gateway` is empty; expected a mapping of fields"),
    ] {
        let text = format!("{gateway}documents:{documents}");
        let errors = Config::parse(&text, "f.yaml").unwrap_err();
        assert_eq!((errors.len(), errors[0].message.as_str()), (1, said), "{errors:?}");
    }
}

#[test]
fn what_is_legal_and_risky_is_a_warning() {
    for (old, new, expected) in [
        (
            "udp: 300s",
            "udp: 119s",
            Some("gateway.timers.udp: `udp` is 119s, below the 120s of RFC 4787 REQ-5"),
        ),
        ("udp: 300s", "udp: 120s", None),
        (
            "udp: 300s",
            "tcp_established: 2h3m59s",
            Some(
                "gateway.timers.tcp_established: `tcp_established` is 7439s, below the 7440s of RFC 5382 REQ-5",
            ),
        ),
        ("udp: 300s", "tcp_established: 2h4m", None),
        (
            "udp: 300s",
            "port_rest: 1s",
            Some("gateway.timers.port_rest: `port_rest` is 1s, below the 120s of RFC 6888 REQ-8"),
        ),
        (
            "listen: 127.0.0.1:9464",
            "listen: 10.0.0.1:1\n    insecure: true",
            Some("gateway.metrics.listen: `listen` is 10.0.0.1:1: anybody can read the metrics"),
        ),
        ("listen: 127.0.0.1:9464", "listen: \"[::1]:9464\"", None),
        (
            "listen: 127.0.0.1:9464",
            "listen: 10.0.0.1:1\n    token_file: /t\n    tls: { certificate: /c, key: /k }",
            None,
        ),
    ] {
        let config = Config::parse(&edited(old, new), "f.yaml").unwrap();
        let warnings: Vec<String> = config
            .warnings
            .iter()
            .map(|warning| format!("{}: {}", warning.path, warning.message))
            .collect();
        assert_eq!(warnings, Vec::from_iter(expected), "{new}");
    }
}

#[test]
fn what_does_not_fit_the_tables_is_refused_with_the_field_and_what_would_fit() {
    let good = edited("addresses: [100.64.1.10]", "addresses: [100.64.1.10, 100.64.1.12]");
    let with = |tables: &str| Config::parse(&good.replace("rules: 16384", tables), "f.yaml");
    let Config { gateway, documents, .. } = with("rules: 16384").unwrap();
    let capacity = convert::capacity(&gateway.tables);
    let image = convert::compile(&gateway, &documents, &capacity).unwrap().image;
    let needs = [
        ("endpoints", image.hosts.len()),
        ("prefixes", image.prefixes.len()),
        ("identities", image.identities.len()),
        ("port_classes", image.port_classes.classes.len()),
    ];
    for (field, need) in needs {
        assert!(with(&format!("{field}: {need}")).is_ok(), "{field}: {need} is enough");
        let room = need - 1;
        let errors = with(&format!("{field}: {room}")).unwrap_err();
        let said: Vec<String> = errors.iter().map(ToString::to_string).collect();
        let expected = format!(
            "f.yaml:23:5: gateway.tables.{field}: `{field}` is {room}; expected {need} or more, \
             which the documents need"
        );
        assert_eq!(said, [expected]);
    }
    // All of them at once.
    let small = needs.map(|(field, _)| format!("{field}: 1")).join("\n    ");
    let errors = with(&small).unwrap_err();
    let paths: Vec<&str> = errors.iter().map(|error| error.path.as_str()).collect();
    assert_eq!(paths, needs.map(|(field, _)| format!("gateway.tables.{field}")));
}

#[test]
fn what_can_hardly_be_meant_is_a_warning_with_its_place() {
    const POD: &str = "  - kind: SmartGroup\n    name: payments\n";
    let pod = |name: &str, spec: &str| {
        format!("  - {{ kind: Endpoint, name: {name}, spec: {{ {spec} }} }}\n{POD}")
    };
    let group = |selector: &str| {
        format!("  - {{ kind: SmartGroup, name: g, spec: {{ selectors: [{selector}] }} }}\n{POD}")
    };
    for (old, new, expected) in [
        (POD, group("{ name: nobody }"), "38:42: documents[1].spec.selectors: smart group `g` is empty"),
        (
            "      action: deny\n      sources: [anywhere]\n",
            "      action: deny\n      sources: [payments]\n      protocol: tcp\n      ports: [443]\n"
                .to_owned(),
            "57:7: documents[3].spec.priority: rule `refuse` is shadowed: `allow` before it matches \
             all that it matches",
        ),
        (
            POD,
            pod("checkout/b", "type: pod, domain: prod-eu, addresses: [100.64.0.1, 100.64.1.10]"),
            "38:101: documents[1].spec.addresses[1]: `addresses[1]` is 100.64.1.10 in domain \
             prod-eu, as that of pod `checkout/api` in line 35; only one can have it, and \
             meanwhile what one of them may not is refused",
        ),
        (POD, pod("checkout/b", "type: pod, domain: prod-us, addresses: [100.64.1.10]"), ""),
    ] {
        let config = Config::parse(&edited(old, &new), "f.yaml").unwrap();
        let warnings: Vec<String> = config.warnings.iter().map(ToString::to_string).collect();
        let expected: Vec<String> =
            (!expected.is_empty()).then(|| format!("f.yaml:{expected}")).into_iter().collect();
        assert_eq!(warnings, expected, "{new}");
    }
}

#[test]
fn what_was_stated_reaches_the_compiler() {
    let config = Config::parse(GOOD, "f.yaml").unwrap();
    let inputs = convert::inputs(&config.gateway, &config.documents);
    let members = smartgroups::members(&inputs.inventory, &inputs.groups, "payments").unwrap();
    let members: Vec<String> = members.iter().map(|member| member.prefix.to_string()).collect();
    assert_eq!(members, ["100.64.1.10/32", "10.20.0.0/16"]);

    let selector = "{ type: k8s, k8s_workload: api, k8s_workload_kind: Deployment, \
                    namespace_labels: { env: prod }, namespace_match_expressions: [{ key: tier, \
                    operator: DoesNotExist }] }";
    let namespace = "  - { kind: Namespace, name: n, spec: { namespace: shop, cluster: eu, labels: { \
                     env: prod } } }\n";
    let pod = "account: \"111122223333\"\n      namespace: shop\n      cluster: eu\n      workload: { \
               kind: Deployment, name: api }";
    let text = GOOD
        .replace("{ type: k8s, labels: { team: payments } }", selector)
        .replace("account: \"111122223333\"", pod)
        .replace("documents:\n", &format!("documents:\n{namespace}"));
    for (text, expected) in [
        (text.clone(), &["100.64.1.10/32", "10.20.0.0/16"][..]),
        (text.replace("env: prod } } }", "env: dev } } }"), &["10.20.0.0/16"]),
        (text.replace("k8s_workload: api", "k8s_workload: web"), &["10.20.0.0/16"]),
    ] {
        let config = Config::parse(&text, "f.yaml").unwrap();
        let inputs = convert::inputs(&config.gateway, &config.documents);
        let members = smartgroups::members(&inputs.inventory, &inputs.groups, "payments").unwrap();
        let members: Vec<String> = members.iter().map(|member| member.prefix.to_string()).collect();
        assert_eq!(members, expected, "{text}");
    }
    let policy = convert::policy(&config.documents);
    let capacity = convert::capacity(&config.gateway.tables);
    let compiled = convert::compile(&config.gateway, &config.documents, &capacity);
    assert!(compiled.is_ok(), "{:?}", compiled.err());
    let policy_compiler::SnatAction::Snat { addresses, ports } = &policy.snat[0].action else {
        panic!("{:?}", policy.snat[0]);
    };
    assert_eq!((addresses.len(), ports), (9, &(1024..=65535)));
}

#[test]
fn an_operator_of_the_file_asks_for_what_its_name_says() {
    let namespace = "  - { kind: Namespace, name: n, spec: { namespace: shop, labels: { team: \
                     payments } } }\n";
    for (key, demand, expected) in [
        ("team", "In, values: [web, payments]", true),
        ("team", "In, values: [web, shop]", false),
        ("tier", "In, values: [web, payments]", false),
        ("team", "NotIn, values: [web, shop]", true),
        ("team", "NotIn, values: [web, payments]", false),
        ("tier", "NotIn, values: [payments]", true), // whoever has no such label
        ("team", "Exists", true),
        ("tier", "Exists", false),
        ("team", "DoesNotExist", false),
        ("tier", "DoesNotExist", true),
    ] {
        // The pod and its namespace have the same labels, and each is asked with the other.
        for (field, others) in [
            ("match_expressions", "namespace_match_expressions"),
            ("namespace_match_expressions", "match_expressions"),
        ] {
            let selector = format!(
                "{{ {field}: [{{ key: {key}, operator: {demand} }}], {others}: [{{ key: team, \
                 operator: Exists }}] }}"
            );
            let text = edited("{ type: k8s, labels: { team: payments } }", &selector)
                .replace("account:", "namespace: shop\n      account:")
                .replace("documents:\n", &format!("documents:\n{namespace}"));
            let config = Config::parse(&text, "f.yaml").unwrap();
            let inputs = convert::inputs(&config.gateway, &config.documents);
            let (domain, address) = (DomainId(1), "100.64.1.10".parse().unwrap());
            let membership = smartgroups::resolve(&inputs.inventory, &inputs.groups, &[]).unwrap();
            let set = membership.lookup(domain, address);
            assert_eq!(set.doubted, [], "{selector}");
            let held = set.groups.contains(&GroupId::of("payments"));
            assert_eq!(held, expected, "{selector}");
        }
    }
}

proptest::proptest! {
    /// Whatever stands in a file, every message has a place in it.
    #[test]
    fn a_damaged_file_is_refused_in_words(
        at in 0..GOOD.len(),
        length in 0..40usize,
        put in "[a-z0-9:{}\\[\\],&*!#'\" \n-]{0,6}",
    ) {
        let end = (at + length).min(GOOD.len());
        let text = format!("{}{put}{}", &GOOD[..at], &GOOD[end..]);
        if let Err(errors) = Config::parse(&text, "f.yaml") {
            proptest::prop_assert!(!errors.is_empty());
            for error in errors {
                let lines = text.lines().count().max(1);
                proptest::prop_assert!((1..=lines + 1).contains(&error.line), "{error}");
                proptest::prop_assert!(error.column >= 1 && !error.message.is_empty(), "{error}");
            }
        }
    }
}
