//! Mistakes that a field has beside others.

use super::{Config, GOOD, edited, refused};
use crate::config::{accounts, clusters, convert, names};

#[test]
fn settings_have_to_fit_together() {
    refused(&[
        (
            "  name: gw-1",
            "  name: gw 1",
            &[(
                "name",
                "gateway.name",
                "`name` is \"gw 1\"; expected 1 to 253 letters, digits, `-`, `_`, `.` or `/`",
            )],
        ),
        (
            "non_routable: [100.64.0.0/10]",
            "non_routable: [100.64.0.0/10, 10.1.0.0/24, 10.2.0.0/24, 10.3.0.0/24, 10.4.0.0/24, \
             10.5.0.0/24, 10.6.0.0/24, 10.7.0.0/24, 10.8.0.0/24]",
            &[(
                "non_routable",
                "gateway.non_routable",
                "`non_routable` has 9 prefixes; expected at most 8",
            )],
        ),
        (
            "non_routable: [100.64.0.0/10]",
            "non_routable: [100.64.0.0/10, 100.64.0.0/10]",
            &[(
                "100.64.0.0/10]",
                "gateway.non_routable[1]",
                "`non_routable[1]` is 100.64.0.0/10, as in line 3; expected another one",
            )],
        ),
        (
            "flow_log: { path: /var/log/flows.jsonl }",
            "flow_log: { path: /run/sluice.sock }",
            &[(
                "path: /run/sluice.sock",
                "gateway.flow_log.path",
                "`path` is /run/sluice.sock, which is the `socket` too; expected a path of its own",
            )],
        ),
        (
            "  socket: /run/sluice.sock\n",
            // The default of another, and the same as each other.
            "  socket: /sys/fs/bpf/sluice\n  state_dir: /var/log//flows.jsonl\n",
            &[
                (
                    "path: /var/log/flows.jsonl",
                    "gateway.flow_log.path",
                    "`path` is /var/log/flows.jsonl, which is the `state_dir` too; expected a path of \
                     its own",
                ),
                (
                    "socket",
                    "gateway.socket",
                    "`socket` is /sys/fs/bpf/sluice, which is the `pin_path` too; expected a path of \
                     its own",
                ),
            ],
        ),
        (
            "  socket: /run/sluice.sock\n",
            "  pin_path: /sys/fs/bpf/\n",
            &[(
                "pin_path",
                "gateway.pin_path",
                "`pin_path` is /sys/fs/bpf, where others pin too; expected a directory below it, \
                 such as /sys/fs/bpf/sluice",
            )],
        ),
        (
            "name: internet, interface: eth0",
            "name: internet, interface: lo",
            &[(
                "interface: lo",
                "gateway.attachments[3].interface",
                "`interface` is lo, by which nobody else's packets come or go; expected one that \
                 leads to other machines",
            )],
        ),
        (
            "non_routable: [100.64.0.0/10]",
            "non_routable: []",
            &[(
                "non_routable",
                "gateway.non_routable",
                "`non_routable` is empty; expected the prefixes of pod networks, or leave the \
                 field out for 100.64.0.0/10",
            )],
        ),
        (
            "name: prod-us, number: 2",
            "name: prod-us, number: 1",
            &[(
                "number",
                "gateway.domains[1].number",
                "`number` is 1, as in line 5; expected another one",
            )],
        ),
        (
            "name: prod-us, number: 2",
            "name: prod-eu, number: 2",
            &[(
                "name",
                "gateway.domains[1].name",
                "`name` is prod-eu, as in line 5; expected another one",
            )],
        ),
        (
            "name: prod-us, number: 2",
            "name: fabric, number: 2",
            &[(
                "name",
                "gateway.domains[1].name",
                "`name` is fabric, which is built in; expected another one",
            )],
        ),
        (
            "name: internet, interface: eth0",
            "name: nodes, interface: eth0",
            &[(
                "name",
                "gateway.attachments[3].name",
                "`name` is nodes, as in line 16; expected another one",
            )],
        ),
        (
            "interface: eth0",
            "interface: an-interface-name",
            &[(
                "interface",
                "gateway.attachments[3].interface",
                "`interface` is \"an-interface-name\"; expected an interface name, up to 15 \
                 characters",
            )],
        ),
        (
            "      interface: eth1\n      vlan: 100",
            "      interface: interface-12\n      vlan: 1000",
            &[(
                "vlan",
                "gateway.attachments[0].vlan",
                "`vlan` has the device interface-12.1000, of 17 characters; expected at most 15, so \
                 a shorter name of the interface",
            )],
        ),
        (
            "      domain: prod-eu\n      sources",
            "      domain: prod-uk\n      sources",
            &[(
                "domain",
                "gateway.attachments[0].domain",
                "`domain` names domain `prod-uk`, which does not exist; did you mean `prod-us`?",
            )],
        ),
        (
            "sources: [10.10.0.0/24] }",
            "sources: [10.10.0.0/24, 100.64.0.0/16] }",
            &[(
                "100.64.0.0/16]",
                "gateway.attachments[1].sources[1]",
                "100.64.0.0/16 is among the sources of `pods` on eth1 VLAN 100 too; expected \
                     `sources` that tell the attachments apart",
            )],
        ),
        (
            "sources: [10.10.0.0/24] }",
            "sources: [10.10.0.0/24], routes: [100.64.0.0/16] }",
            &[(
                "100.64.0.0/16] }",
                "gateway.attachments[1].routes[0]",
                "100.64.0.0/16 is among the routes of `pods` on eth1 VLAN 100 too; expected \
                 `routes` that tell the attachments apart",
            )],
        ),
        (
            "interface: eth0, kind: internet",
            "interface: eth2, kind: internet",
            &[(
                "{ name: internet",
                "gateway.attachments[3]",
                "0.0.0.0/0 is among the sources of `transit` on eth2 too; expected `sources` that \
                 tell the attachments apart",
            )],
        ),
        (
            "sources: [10.10.0.0/24] }\n",
            "sources: [10.10.0.0/24], hook: xdp }\n    - { name: more, interface: eth1, kind: \
             spoke, sources: [10.11.0.0/24] }\n    - { name: most, interface: eth1, kind: spoke, \
             sources: [10.12.0.0/24], hook: tc }\n",
            &[(
                "hook: tc }",
                "gateway.attachments[3].hook",
                "`hook` is tc, and xdp in line 16 for eth1 too; expected one for the interface",
            )],
        ),
        (
            "      carries: []",
            "      carries: [100.64.0.0/16, 100.128.0.0/16]",
            &[(
                "100.128.0.0/16",
                "gateway.attachments[0].carries[1]",
                "`carries[1]` is 100.128.0.0/16; expected a part of non_routable (100.64.0.0/10)",
            )],
        ),
        (
            "sessions: 1048576",
            "sessions: 1048575",
            &[(
                "sessions",
                "gateway.tables.sessions",
                "`sessions` is 1048575; expected a power of two from 1024 to 16777216",
            )],
        ),
        (
            "sessions: 1048576",
            "sessions: 512",
            &[(
                "sessions",
                "gateway.tables.sessions",
                "`sessions` is 512; expected a power of two from 1024 to 16777216",
            )],
        ),
        (
            "rules: 16384",
            "rules: 16385",
            &[("rules", "gateway.tables.rules", "`rules` is 16385; expected 1 to 16384")],
        ),
        (
            "rules: 16384",
            "rules: 1",
            &[(
                "documents",
                "documents",
                "there are 2 rules in force; expected at most tables.rules = 1",
            )],
        ),
        (
            "flow_log: { path: /var/log/flows.jsonl }",
            "flow_log: { path: /var/log/flows.jsonl, keep: 1001 }",
            &[("keep", "gateway.flow_log.keep", "`keep` is 1001; expected 0 to 1000")],
        ),
        (
            "listen: 127.0.0.1:9464",
            "listen: 0.0.0.0:9464",
            &[(
                "listen",
                "gateway.metrics.listen",
                "`listen` is 0.0.0.0:9464, off loopback; expected `tls` and `token_file` beside \
                 it, or `insecure: true`, or 127.0.0.1:9464",
            )],
        ),
        (
            "listen: 127.0.0.1:9464",
            "listen: 10.0.0.1:1\n    tls: { certificate: /c, key: /k }",
            &[(
                "listen",
                "gateway.metrics.listen",
                "`listen` is 10.0.0.1:1, off loopback; expected `tls` and `token_file` beside it, \
                 or `insecure: true`, or 127.0.0.1:1",
            )],
        ),
        (
            "listen: 127.0.0.1:9464",
            "listen: 127.0.0.1:9464\n    token_file: token\n    tls: { certificate: c.pem, key: ./k }",
            &[
                (
                    "token_file",
                    "gateway.metrics.token_file",
                    "`token_file` is \"token\"; expected an absolute path",
                ),
                (
                    "certificate",
                    "gateway.metrics.tls.certificate",
                    "`certificate` is \"c.pem\"; expected an absolute path",
                ),
                ("key", "gateway.metrics.tls.key", "`key` is \"./k\"; expected an absolute path"),
            ],
        ),
        (
            "socket: /run/sluice.sock",
            "socket: sluice.sock",
            &[(
                "socket",
                "gateway.socket",
                "`socket` is \"sluice.sock\"; expected an absolute path",
            )],
        ),
        (
            "socket: /run/sluice.sock",
            "socket: \"\"",
            &[("socket", "gateway.socket", "`socket` is \"\"; expected an absolute path")],
        ),
        (
            "socket: /run/sluice.sock",
            "socket: /run/1-------10--------20--------30--------40--------50--------60--------70\
             --------80--------90------100.108",
            &[(
                "socket",
                "gateway.socket",
                "`socket` is a path of 108 bytes; expected at most 107",
            )],
        ),
        (
            "path: /var/log/flows.jsonl",
            "path: flows.jsonl",
            &[(
                "path",
                "gateway.flow_log.path",
                "`path` is \"flows.jsonl\"; expected an absolute path, or - for stdout",
            )],
        ),
    ]);
}

#[test]
fn documents_have_to_fit_together() {
    refused(&[
        (
            "      domain: prod-eu\n      addresses",
            "      domain: mars\n      addresses",
            &[(
                "domain",
                "documents[0].spec.domain",
                "`domain` names domain `mars`, which does not exist; expected `fabric`, `prod-eu` \
                 or `prod-us`",
            )],
        ),
        (
            "addresses: [100.64.1.10]",
            "addresses: []",
            &[(
                "addresses",
                "documents[0].spec.addresses",
                "`addresses` is empty; expected one address or more",
            )],
        ),
        (
            "{ cidr: 10.20.0.0/16, domain: fabric }",
            "{}",
            &[(
                "{}",
                "documents[1].spec.selectors[1]",
                "`selectors[1]` is empty; for every address name `anywhere`",
            )],
        ),
        (
            "sources: [payments]",
            "sources: [payment]",
            &[(
                "payment",
                "documents[2].spec.sources[0]",
                "`sources[0]` names group `payment`, which does not exist; did you mean `payments`?",
            )],
        ),
        (
            "{ name: prod-us, number: 2 }\n  attachments:\n    - name: pods\n      interface: eth1\n      \
             vlan: 100\n      kind: spoke\n      domain: prod-eu",
            "{ name: fabric, number: 2 }\n  attachments:\n    - name: pods\n      interface: eth1\n      \
             vlan: 100\n      kind: spoke\n      domain: zzz",
            &[
                (
                    "name: fabric",
                    "gateway.domains[1].name",
                    "`name` is fabric, which is built in; expected another one",
                ),
                (
                    "domain: zzz",
                    "gateway.attachments[0].domain",
                    "`domain` names domain `zzz`, which does not exist; expected `fabric` or `prod-eu`",
                ),
            ],
        ),
        (
            "ports: [443, \"8000-8100\"]",
            "ports: []",
            &[(
                "ports",
                "documents[2].spec.ports",
                "`ports` is empty; expected ports, or leave the field out for all of them",
            )],
        ),
        (
            "listen: 127.0.0.1:9464",
            "listen: 127.0.0.1:0",
            &[(
                "listen",
                "gateway.metrics.listen",
                "`listen` is 127.0.0.1:0; expected a port, 1 to 65535",
            )],
        ),
        (
            "type: k8s, labels: { team: payments }",
            "type: k8s, labels: {}",
            &[(
                "labels",
                "documents[1].spec.selectors[0].labels",
                "`labels` is empty; expected labels, or leave the field out for whatever they are",
            )],
        ),
        (
            "type: k8s, labels: { team: payments }",
            "group: paiments",
            &[(
                "group: paiments",
                "documents[1].spec.selectors[0].group",
                "`group` names group `paiments`, which does not exist; did you mean `payments`?",
            )],
        ),
        (
            "type: k8s, labels: { team: payments }",
            "site: berlin",
            &[(
                "site: berlin",
                "documents[1].spec.selectors[0].site",
                "`site` names site `berlin`, which does not exist; there is none",
            )],
        ),
        (
            "type: k8s, labels: { team: payments }",
            "group: anywhere, type: k8s",
            &[(
                "group: anywhere",
                "documents[1].spec.selectors[0].group",
                "`group` stands beside other fields; expected a selector of its own",
            )],
        ),
        (
            "        - { cidr: 10.20.0.0/16, domain: fabric }",
            "        - { cidr: 10.20.0.0/16, domain: fabric }\n      exclude: [{ group: payments }]",
            &[(
                "group: payments }]",
                "documents[1].spec.exclude[0].group",
                "smart group `payments` is a part of itself (payments -> payments)",
            )],
        ),
        (
            "        - { cidr: 10.20.0.0/16, domain: fabric }",
            "        - { cidr: 10.20.0.0/16, domain: fabric }\n      exclude: []",
            &[(
                "exclude",
                "documents[1].spec.exclude",
                "`exclude` is empty; expected selectors, or leave the field out for a group without \
                 exceptions",
            )],
        ),
        (
            "type: k8s, labels: { team: payments }",
            "type: k8s, match_expressions: []",
            &[(
                "match_expressions",
                "documents[1].spec.selectors[0].match_expressions",
                "`match_expressions` is empty; expected demands on labels, or leave the field out for \
                 whatever they are",
            )],
        ),
        (
            "type: k8s, labels: { team: payments }",
            "match_expressions: [{ key: team, operator: In }, { key: team, operator: Exists, \
             values: [a] }]",
            &[
                (
                    "{ key: team, operator: In }",
                    "documents[1].spec.selectors[0].match_expressions[0].values",
                    "`values` is missing or empty; expected one or more to compare the label with \
                     (`operator` is In)",
                ),
                (
                    "values: [a]",
                    "documents[1].spec.selectors[0].match_expressions[1].values",
                    "`values` is for In and NotIn; Exists has none",
                ),
            ],
        ),
        (
            "destinations: [payments]",
            "destinations: []",
            &[(
                "destinations",
                "documents[3].spec.destinations",
                "`destinations` is empty; expected groups, such as `anywhere`",
            )],
        ),
        (
            "  - kind: DefaultAction",
            "  - { kind: Namespace, name: a, spec: { namespace: shop, cluster: eu } }\n  - { kind: \
             Namespace, name: b, spec: { namespace: shop } }\n  - { kind: Namespace, name: c, spec: { \
             namespace: shop, cluster: eu } }\n  - kind: DefaultAction",
            &[(
                "namespace: shop, cluster: eu",
                "documents[6].spec.namespace",
                "`namespace` is shop of cluster eu, as in line 62; expected another one",
            )],
        ),
        (
            "    name: refuse",
            "    name: allow",
            &[(
                "name: allow",
                "documents[3].name",
                "`name` is allow, as in line 45; expected another one",
            )],
        ),
        (
            "priority: 200",
            "priority: 100",
            &[(
                "priority",
                "documents[3].spec.priority",
                "`priority` is 100, as in line 47; expected another one",
            )],
        ),
        (
            "order: 20",
            "order: 10",
            &[(
                "order",
                "documents[6].spec.order",
                "`order` is 10, as in line 68; expected another one",
            )],
        ),
        (
            "      protocol: tcp\n",
            "      protocol: icmp\n",
            &[(
                "ports",
                "documents[2].spec.ports",
                "`ports` needs `protocol` tcp or udp; here it is icmp",
            )],
        ),
        (
            "      log: start\n",
            "      log: start\n      mark: 9\n",
            &[("mark", "documents[3].spec.mark", "`mark` is for rules that permit; leave it out")],
        ),
        (
            "    name: payments\n",
            "    name: anywhere\n",
            &[
                (
                    "name: anywhere",
                    "documents[1].name",
                    "`name` is anywhere, which is built in; expected another one",
                ),
                (
                    "payments",
                    "documents[2].spec.sources[0]",
                    "`sources[0]` names group `payments`, which does not exist; expected \
                     `anywhere` or `public-internet`",
                ),
                (
                    "payments",
                    "documents[3].spec.destinations[0]",
                    "`destinations[0]` names group `payments`, which does not exist; expected \
                     `anywhere` or `public-internet`",
                ),
                (
                    "dst_group",
                    "documents[5].spec.dst_group",
                    "`dst_group` names group `payments`, which does not exist; expected \
                     `anywhere` or `public-internet`",
                ),
            ],
        ),
    ]);
}

#[test]
fn a_site_that_a_selector_names_is_stated_and_stands_alone() {
    let endpoint = |name: &str, kind: &str, address: &str| {
        format!(
            "  - {{ kind: Endpoint, name: {name}, spec: {{ type: {kind}, addresses: [{address}] }} }}\n"
        )
    };
    let with = |selector: &str, endpoint: &str| {
        edited("type: k8s, labels: { team: payments }", selector)
            .replace("documents:\n", &format!("documents:\n{endpoint}"))
    };
    let berlin = endpoint("berlin", "site", "192.168.7.0/24");
    let nothing_else = "`site` holds whoever is there, so nothing else is asked of them; expected \
                        `cidr` and `domain` at most beside it";
    for (selector, endpoint, said) in [
        ("site: berlin", &berlin, None),
        ("site: berlin, cidr: 192.168.7.0/25, domain: fabric", &berlin, None),
        ("site: berlin, type: vm", &berlin, Some(nothing_else)),
        ("site: berlin, labels: { a: b }", &berlin, Some(nothing_else)),
        (
            "site: berln",
            &berlin,
            Some("`site` names site `berln`, which does not exist; did you mean `berlin`?"),
        ),
        (
            "site: berlin",
            &endpoint("berlin", "vm", "192.168.7.1"),
            Some("`site` names site `berlin`, which does not exist; there is none"),
        ),
        // What was meant has been said.
        (
            "site: berlin",
            &endpoint("berlin", "sit", "192.168.7.1"),
            Some(
                "`type` is `sit`; expected `pod`, `node`, `service`, `vm`, `interface`, `subnet`, \
                 `vpc`, `site` or `external`; did you mean `site`?",
            ),
        ),
    ] {
        let errors = match Config::parse(&with(selector, endpoint), "f.yaml") {
            Ok(_) => Vec::new(),
            Err(errors) => errors,
        };
        let found: Vec<&str> = errors.iter().map(|error| error.message.as_str()).collect();
        assert_eq!(found, Vec::from_iter(said), "{selector}");
    }
    let config = Config::parse(&with("site: berlin", &berlin), "f.yaml").unwrap();
    let inputs = convert::inputs(&config.gateway, &config.documents);
    let members = smartgroups::members(&inputs.inventory, &inputs.groups, "payments").unwrap();
    assert_eq!(
        (members[0].prefix.to_string(), members[0].reason.to_string()),
        ("192.168.7.0/24".to_owned(), "site `berlin` meets selector 1 (site berlin)".to_owned())
    );
}

#[test]
fn a_name_that_a_selector_names_can_be_asked_for_and_stands_alone() {
    let nothing_else = "`fqdn` holds addresses of the fabric, of which nothing else is known; expected \
                        `cidr` at most beside it";
    for (selector, said) in [
        ("fqdn: api.example.com", None),
        ("fqdn: API.example.com., cidr: 10.0.0.0/8", None),
        ("fqdn: api.example.com, domain: fabric", Some(nothing_else)),
        ("fqdn: api.example.com, type: vm", Some(nothing_else)),
        (
            "fqdn: \"*.example.com\"",
            Some(
                "`fqdn` is \"*.example.com\", a wildcard, which DNS has no list of names for: what it \
                 stands for is seen in requests alone, and a gateway judges packets; expected each \
                 name by itself",
            ),
        ),
        (
            "fqdn: 10.0.0.1",
            Some("`fqdn` is \"10.0.0.1\", an address; expected a name, or `cidr` for an address"),
        ),
        (
            "fqdn: intranet",
            Some(
                "`fqdn` is \"intranet\", without a dot, and no search domain is tried; expected a \
                 whole name such as api.example.com",
            ),
        ),
        (
            "fqdn: \"https://example.com\"",
            Some(
                "`fqdn` is \"https://example.com\", no name because of `:`; expected letters, \
                 digits, `-`, `_` and dots, such as api.example.com",
            ),
        ),
    ] {
        let text = edited("type: k8s, labels: { team: payments }", selector);
        let errors = match Config::parse(&text, "f.yaml") {
            Ok(config) => {
                assert_eq!(config.warnings, [], "who is in it is learned later: {selector}");
                Vec::new()
            }
            Err(errors) => errors,
        };
        let found: Vec<(&str, &str)> =
            errors.iter().map(|one| (one.path.as_str(), one.message.as_str())).collect();
        let at = "documents[1].spec.selectors[0].fqdn";
        assert_eq!(found, Vec::from_iter(said.map(|said| (at, said))), "{selector}");
    }
}

#[test]
fn names_are_asked_for_as_the_file_has_it() {
    let selector = "fqdn: API.example.com.";
    let text = edited("type: k8s, labels: { team: payments }", selector);
    let with = |dns: &str| text.replace("  timers:\n", &format!("  dns: {{ {dns} }}\n  timers:\n"));
    let asked = |text: &str| {
        let config = Config::parse(text, "f.yaml").unwrap();
        names::asked(&config.gateway, &config.documents)
    };
    let plain = asked(&text);
    let called: Vec<&str> = plain.names.iter().map(|name| name.as_str()).collect();
    assert_eq!((called, plain.servers.len()), (vec!["api.example.com"], 0));
    assert_eq!(plain.rules.grace.as_secs(), 3_600);
    assert!(plain.rules.why_not("100.64.0.1".parse().unwrap()).is_some());
    let other = asked(&with("servers: [10.0.0.2, \"[fd00::2]:5353\"], grace: 10m"));
    assert_eq!(other.servers, ["10.0.0.2:53", "[fd00::2]:5353"].map(|one| one.parse().unwrap()));
    assert_eq!(other.rules.grace.as_secs(), 600);
    let right = "an address, with a port if it is not 53, such as 10.0.0.2 or 10.0.0.2:5353";
    for (servers, said) in [
        ("[dns.example]", format!("`servers[0]` is \"dns.example\"; expected {right}")),
        ("[\"10.0.0.2:0\"]", format!("`servers[0]` is \"10.0.0.2:0\"; expected {right}")),
        ("[0.0.0.0]", format!("`servers[0]` is \"0.0.0.0\"; expected {right}")),
        (
            "[10.0.0.2, \"10.0.0.2:53\"]",
            "`servers[1]` is 10.0.0.2:53, as in line 19; expected another one".to_owned(),
        ),
    ] {
        let errors = Config::parse(&with(&format!("servers: {servers}")), "f.yaml").unwrap_err();
        let found: Vec<&str> = errors.iter().map(|error| error.message.as_str()).collect();
        assert_eq!(found, [said], "{servers}");
    }
    // As many as there is room for, and one more.
    let many = |count: usize| {
        let selectors: Vec<String> =
            (0..count).map(|n| format!("{{ fqdn: n{n}.example }}")).collect();
        text.replace(&format!("{{ {selector} }}"), &selectors.join("\n        - "))
    };
    assert!(Config::parse(&many(1_000), "f.yaml").is_ok());
    let errors = Config::parse(&many(1_001), "f.yaml").unwrap_err();
    let found: Vec<&str> = errors.iter().map(|error| error.message.as_str()).collect();
    assert_eq!(found, ["selectors name 1001 names in DNS; expected at most 1000"]);
}

#[test]
fn the_growth_that_is_told_is_a_part_and_a_number_and_a_time() {
    let with = |alarms: &str| {
        GOOD.replace("  timers:\n", &format!("  group_alarms: {{ {alarms} }}\n  timers:\n"))
    };
    let config = Config::parse(&with("percent: 200, members: 0, within: 10m"), "f.yaml").unwrap();
    let growth = config.gateway.group_alarms.growth();
    assert_eq!((growth.percent, growth.members, growth.within.as_secs()), (200, 0, 600));
    for (alarms, said) in [
        ("percent: 0", "`percent` is 0; expected 1 to 10000"),
        ("percent: 10001", "`percent` is 10001; expected 1 to 10000"),
        (
            "within: 0s",
            "`within` is \"0s\"; expected a time from 1s to 8760h, such as 300s, 124m or 2h4m",
        ),
    ] {
        let errors = Config::parse(&with(alarms), "f.yaml").unwrap_err();
        let found: Vec<&str> = errors.iter().map(|error| error.message.as_str()).collect();
        assert_eq!(found, [said], "{alarms}");
    }
}

#[test]
fn snat_policies_have_to_hold_together() {
    refused(&[
        (
            "dst_group: payments",
            "dst_group: payments\n      dst_cidr: 10.0.0.0/8",
            &[(
                "dst_group",
                "documents[5].spec.dst_group",
                "`dst_group` stands beside `dst_cidr`; expected one of the two",
            )],
        ),
        (
            "dst_port: \"443\"",
            "dst_port: \"443\"\n      protocol: icmp",
            &[(
                "dst_port",
                "documents[5].spec.dst_port",
                "`dst_port` is for protocols with ports; icmp has none",
            )],
        ),
        (
            "connection: transit",
            "connection: transit\n      interface: eth2",
            &[(
                "interface",
                "documents[5].spec.interface",
                "`interface` stands beside `connection`; expected one of the two",
            )],
        ),
        (
            "      connection: transit\n",
            "",
            &[(
                "spec",
                "documents[5].spec",
                "neither `connection` nor `interface` is there; expected one of the two to say \
                 where the flow leaves",
            )],
        ),
        (
            "connection: transit",
            "connection: transitt",
            &[(
                "connection",
                "documents[5].spec.connection",
                "`connection` names connection `transitt`, which does not exist; did you mean \
                 `transit`?",
            )],
        ),
        (
            "connection: transit",
            "connection: internet",
            &[(
                "connection",
                "documents[5].spec.connection",
                "`connection` names attachment `internet` of kind internet; expected one of kind \
                 connection, or `interface`",
            )],
        ),
        (
            "      interface: eth2\n      no_nat",
            "      interface: ens5\n      no_nat",
            &[(
                "interface",
                "documents[6].spec.interface",
                "`interface` names interface of an attachment `ens5`, which does not exist; \
                 expected `eth0`, `eth1` or `eth2`",
            )],
        ),
        (
            "      snat_ips: [192.0.2.1, 192.0.2.8/29]\n",
            "",
            &[(
                "spec",
                "documents[5].spec.snat_ips",
                "`snat_ips` is missing; expected outside addresses, or `no_nat: true`",
            )],
        ),
        (
            "snat_ips: [192.0.2.1, 192.0.2.8/29]",
            "snat_ips: []",
            &[(
                "snat_ips",
                "documents[5].spec.snat_ips",
                "`snat_ips` is empty; expected outside addresses, or `no_nat: true`",
            )],
        ),
        (
            "no_nat: true",
            "no_nat: true\n      snat_ips: [192.0.2.1]\n      snat_ports: 1-2",
            &[
                (
                    "snat_ips",
                    "documents[6].spec.snat_ips",
                    "`snat_ips` stands beside `no_nat: true`, which lends nothing",
                ),
                (
                    "snat_ports",
                    "documents[6].spec.snat_ports",
                    "`snat_ports` stands beside `no_nat: true`, which lends nothing",
                ),
            ],
        ),
        (
            "192.0.2.8/29]",
            "100.127.255.255-100.128.0.3]",
            &[(
                "100.127",
                "documents[5].spec.snat_ips[1]",
                "`snat_ips[1]` is 100.127.255.255-100.128.0.3, inside non_routable 100.64.0.0/10; \
                 expected routable addresses",
            )],
        ),
        (
            "192.0.2.8/29]",
            "224.0.0.1]",
            &[(
                "224",
                "documents[5].spec.snat_ips[1]",
                "`snat_ips[1]` is 224.0.0.1, inside 224.0.0.0/3; expected unicast addresses",
            )],
        ),
        (
            "192.0.2.8/29]",
            "192.0.2.0/31]",
            &[(
                "192.0.2.0/31",
                "documents[5].spec.snat_ips[1]",
                "`snat_ips[1]` is 192.0.2.0-192.0.2.1, which overlaps 192.0.2.1; expected each \
                 address once",
            )],
        ),
        (
            "[192.0.2.1, 192.0.2.8/29]",
            "[192.0.2.1, 198.18.0.0/24]",
            &[(
                "snat_ips",
                "documents[5].spec.snat_ips",
                "`snat_ips` has 257 addresses; expected at most 256",
            )],
        ),
    ]);
}

#[test]
fn prefixes_of_one_list_that_overlap_are_warned_of() {
    for (old, new, said) in [
        (
            "non_routable: [100.64.0.0/10]",
            "non_routable: [100.64.0.0/16, 192.168.0.0/16, 100.64.0.0/10]",
            "f.yaml:3:49: gateway.non_routable[2]: `non_routable[2]` is 100.64.0.0/10, and \
             100.64.0.0/16 in line 3 overlaps it; one of them says nothing",
        ),
        (
            "sources: [10.10.0.0/24]",
            "sources: [10.10.0.0/24, 10.10.0.0/24]",
            "f.yaml:16:87: gateway.attachments[1].sources[1]: `sources[1]` is 10.10.0.0/24, and \
             10.10.0.0/24 in line 16 overlaps it; one of them says nothing",
        ),
        (
            "kind: connection, routes: [10.0.0.0/8]",
            "kind: connection, carries: [100.64.7.0/24, 100.64.0.0/16]",
            "f.yaml:17:84: gateway.attachments[2].carries[1]: `carries[1]` is 100.64.0.0/16, and \
             100.64.7.0/24 in line 17 overlaps it; one of them says nothing",
        ),
    ] {
        let config = Config::parse(&edited(old, new), "f.yaml").unwrap();
        let warnings: Vec<_> = config.warnings.iter().map(ToString::to_string).collect();
        assert_eq!(warnings, [said]);
    }
}

/// A file with a group that nobody of it is in.
fn of_nobody(text: &str) -> Config {
    let nobody = text
        .replace("labels: { team: payments } }\n        - {", "labels: { team: a } }\n        - {")
        .replace("        - { cidr: 10.20.0.0/16, domain: fabric }\n", "");
    assert!(nobody.contains("team: a"), "the sample has another form");
    Config::parse(&nobody, "f.yaml").unwrap()
}

#[test]
fn a_cluster_is_reached_in_one_way() {
    const AFTER: &str = "  timers:\n";
    let with = |clusters: &str| GOOD.replace(AFTER, &format!("  clusters:\n{clusters}{AFTER}"));
    let said = |clusters: &str| {
        let errors = Config::parse(&with(clusters), "f.yaml").map(|_| ()).unwrap_err();
        errors.iter().map(|error| format!("{}: {}", error.path, error.message)).collect::<Vec<_>>()
    };
    let one = |fields: &str| format!("    - {{ name: eu, domain: prod-eu{fields} }}\n");
    let at = "gateway.clusters[0]";
    let one_way = "a cluster is reached in one way; expected `kubeconfig`, or `server` and \
                   `token_file`, or `server` and `eks`, or `in_cluster: true`";
    for (fields, expected) in [
        ("", vec![format!("{at}: {one_way}")]),
        (", kubeconfig: /k, in_cluster: true", vec![format!("{at}: {one_way}")]),
        (", server: \"https://h\"", vec![format!("{at}: {one_way}")]),
        (
            ", in_cluster: true, context: c, ca_file: /ca",
            vec![
                format!("{at}.context: `context` belongs to `kubeconfig`, which is not stated"),
                format!("{at}.ca_file: `ca_file` belongs to `server`, which is not stated"),
            ],
        ),
        (
            ", server: \"http://h\", token_file: token",
            vec![
                format!(
                    "{at}.server: `server` is \"http://h\"; expected a URL with https, such as \
                     https://10.0.0.1:6443"
                ),
                format!("{at}.token_file: `token_file` is \"token\"; expected an absolute path"),
            ],
        ),
    ] {
        assert_eq!(said(&one(fields)), expected, "{fields}");
    }
    let server = ", server: \"https://h\", eks: ";
    for (eks, expected) in [
        (
            "{ cluster: prod, region: eu-central-1 }, token_file: /t",
            vec![format!("{at}: {one_way}")],
        ),
        (
            "{ cluster: \"a b\", region: eu-central, role: me, credentials_file: k, sts: h }",
            vec![
                format!(
                    "{at}.eks.cluster: `cluster` is \"a b\"; expected the name that it has in EKS: 1 \
                     to 100 letters, digits, `-` and `_`"
                ),
                format!(
                    "{at}.eks.region: \"eu-central\" is no region; expected one such as eu-central-1"
                ),
                format!(
                    "{at}.eks.role: `role` is \"me\"; expected the ARN of a role, such as \
                     arn:aws:iam::111122223333:role/sluice-discovery"
                ),
                format!(
                    "{at}.eks.credentials_file: `credentials_file` is \"k\"; expected an absolute path"
                ),
                format!(
                    "{at}.eks.sts: `sts` is \"h\"; expected a URL, such as \
                     https://vpce-1.example.com"
                ),
            ],
        ),
    ] {
        assert_eq!(said(&one(&format!("{server}{eks}"))), expected, "{eks}");
    }
    let elsewhere = one(", in_cluster: true").replace("prod-eu", "prod-ue");
    let hint = "`domain` names domain `prod-ue`, which does not exist; did you mean `prod-eu`?";
    assert_eq!(said(&elsewhere), [format!("{at}.domain: {hint}")]);
    let nowhere = one(", in_cluster: true").replace(", domain: prod-eu", "");
    let missing = "`domain` is missing; expected the name of a routing domain";
    assert_eq!(said(&nowhere), [format!("{at}.domain: {missing}")]);
    let twice = one(", in_cluster: true").repeat(2);
    assert!(said(&twice)[0].starts_with("gateway.clusters[1].name: `name` is eu, as in line "));
    let odd = one(", in_cluster: true").replace("name: eu", "name: \"e u\"");
    assert!(said(&odd)[0].starts_with(&format!("{at}.name: `name`: ")), "{:?}", said(&odd));

    let good = one(", kubeconfig: /etc/k, context: admin, max_staleness: 10m");
    let config = Config::parse(&with(&good), "f.yaml").unwrap();
    let watched = clusters::watched(&config.gateway);
    let [settings] = &watched[..] else { panic!("{watched:?}") };
    assert_eq!(settings.scope.cluster.as_str(), "eu");
    assert_eq!((settings.scope.pods.0, settings.scope.nodes.0), (1, 0));
    assert_eq!(settings.max_staleness, Some(std::time::Duration::from_secs(600)));
    let signed = |role: &str| {
        let eks = format!("{server}{{ cluster: prod, region: eu-central-1, role: {role} }}");
        let config = Config::parse(&with(&one(&eks)), "f.yaml").unwrap();
        clusters::watched(&config.gateway).remove(0)
    };
    let role = "\"arn:aws:iam::111122223333:role/a/b\"";
    assert_eq!(signed(role), signed(role), "a reload leaves it alone");
    assert_ne!(signed(role), signed(&role.replace("/b", "/c")), "and another role does not");
    assert_eq!(of_nobody(&with(&good)).warnings, [], "who is in it is learned later");
}

#[test]
fn a_cloud_account_is_entered_in_a_way_that_can_be_meant() {
    const AFTER: &str = "  timers:\n";
    let with = |all: &str| GOOD.replace(AFTER, &format!("  cloud_accounts:\n{all}{AFTER}"));
    let said = |all: &str| {
        let errors = Config::parse(&with(all), "f.yaml").map(|_| ()).unwrap_err();
        errors.iter().map(|error| format!("{}: {}", error.path, error.message)).collect::<Vec<_>>()
    };
    let one = |fields: &str| format!("    - {{ name: prod{fields} }}\n");
    let at = "gateway.cloud_accounts[0]";
    let regions = ", regions: [eu-central-1]";
    let arn = "\"arn:aws:iam::111122223333:role/sluice-discovery\"";
    for (fields, expected) in [
        (
            "",
            vec![format!(
                "{at}.regions: `regions` is missing; expected a list of regions, such as [eu-central-1]"
            )],
        ),
        (
            ", regions: []",
            vec![format!(
                "{at}.regions: `regions` is empty; expected regions, such as [eu-central-1]"
            )],
        ),
        (
            ", regions: [eu-central-1, eu-central-1a, frankfurt]",
            vec![
                format!(
                    "{at}.regions[1]: \"eu-central-1a\" is no region; expected one such as eu-central-1"
                ),
                format!(
                    "{at}.regions[2]: \"frankfurt\" is no region; expected one such as eu-central-1"
                ),
            ],
        ),
        (
            ", regions: [us-gov-west-1], external_id: x, session_name: yy, role: 111122223333",
            vec![format!("{at}.role: `role` is 111122223333; expected text")],
        ),
        (
            ", regions: [us-gov-west-1], external_id: x, session_name: \"y z\"",
            vec![
                format!("{at}.external_id: `external_id` belongs to `role`, which is not stated"),
                format!("{at}.session_name: `session_name` belongs to `role`, which is not stated"),
                format!(
                    "{at}.session_name: `session_name` is \"y z\"; expected 2 to 64 letters, digits \
                     and `_+=,.@-`"
                ),
            ],
        ),
        (
            ", regions: [eu-central-1], role: \"arn:aws:iam::1:role/x\", credentials_file: keys",
            vec![
                format!(
                    "{at}.role: `role` is \"arn:aws:iam::1:role/x\"; expected the ARN of a role, such \
                     as arn:aws:iam::111122223333:role/sluice-discovery"
                ),
                format!(
                    "{at}.credentials_file: `credentials_file` is \"keys\"; expected an absolute path"
                ),
            ],
        ),
        (
            ", regions: [eu-central-1], vpcs: [], endpoints: { ec2: host }",
            vec![
                format!(
                    "{at}.vpcs: `vpcs` is empty; expected ids of VPCs, or leave the field out for all VPCs"
                ),
                format!(
                    "{at}.endpoints.ec2: `ec2` is \"host\"; expected a URL, such as \
                     https://vpce-1.example.com"
                ),
            ],
        ),
        (
            ", regions: [eu-central-1], vpcs: [vpc-1], domains: { vpc-2: prod-eu, subnet-1: prod-ue }",
            vec![
                format!("{at}.domains.vpc-2: `vpc-2` is not among `vpcs`"),
                format!(
                    "{at}.domains.subnet-1: \"subnet-1\" is no id of a VPC, such as vpc-0a1b2c3d"
                ),
                format!(
                    "{at}.domains.subnet-1: `subnet-1` names domain `prod-ue`, which does not exist; \
                     did you mean `prod-eu`?"
                ),
                format!("{at}.domains.subnet-1: `subnet-1` is not among `vpcs`"),
            ],
        ),
    ] {
        assert_eq!(said(&one(fields)), expected, "{fields}");
    }
    let odd = one(regions).replace("name: prod", "name: \"a/b\"");
    assert!(said(&odd)[0].starts_with(&format!("{at}.name: `name`: ")), "{:?}", said(&odd));
    // The same machines, told by two, would be in conflict with themselves.
    let second = |fields: &str| format!("{}{}", one(regions), one(fields).replace("prod", "test"));
    let twice = "gateway.cloud_accounts[1]: it is entered as `prod` is, and has regions and VPCs in \
                 common with it; expected another `role` or other `regions`, or `vpcs` that keep them \
                 apart";
    assert_eq!(said(&second(regions)), [twice]);
    assert_eq!(said(&second(", regions: [eu-west-1, eu-central-1], vpcs: [vpc-1]")), [twice]);
    for apart in [", regions: [eu-west-1]", &format!("{regions}, role: {arn}")] {
        assert!(Config::parse(&with(&second(apart)), "f.yaml").is_ok(), "{apart}");
    }

    let good = one(&format!(
        "{regions}, role: {arn}, external_id: only-we-know, domains: {{ vpc-1: prod-eu }}, \
         interval: 30s, max_staleness: 10m"
    ));
    let config = Config::parse(&with(&good), "f.yaml").unwrap();
    assert!(!format!("{config:?}").contains("only-we-know"));
    let followed = accounts::followed(&config.gateway);
    let [settings] = &followed[..] else { panic!("{followed:?}") };
    assert_eq!(settings.scope.account.as_str(), "prod");
    assert_eq!(settings.scope.domain(Some("vpc-1")), smartgroups::DomainId(1));
    assert_eq!(settings.scope.domain(Some("vpc-2")), smartgroups::DomainId::FABRIC);
    assert_eq!(settings.interval.as_secs(), 30);
    assert_eq!(settings.network_interval.as_secs(), 3600);
    let role = settings.identity.role.as_ref().unwrap();
    assert_eq!(
        (role.external_id.as_deref(), &*role.session_name),
        (Some("only-we-know"), "sluice")
    );
    assert_eq!(of_nobody(&with(&good)).warnings, [], "who is in it is learned later");
    assert_ne!(of_nobody(GOOD).warnings, [], "nobody ever will be");
}

#[test]
fn what_attachments_state_has_to_fit_the_tables_of_places() {
    let list = |first: u32, count: u32| {
        let nets: Vec<String> = (first..first + count)
            .map(|n| format!("{}/32", std::net::Ipv4Addr::from(0x6440_0000 + 2 * n)))
            .collect();
        format!("[{}]", nets.join(", "))
    };
    let attachment = |n: u32, field: &str, prefixes: &str| {
        format!(
            "    - {{ name: a{n}, interface: eth{n}, kind: connection, {field}: {prefixes} }}\n"
        )
    };
    let with = |attachments: &str| edited("  timers:\n", &format!("{attachments}  timers:\n"));
    // Beside these the file has four routes, and nothing that is carried.
    for (field, counts, expected) in [
        ("carries", [4_000, 96], None),
        (
            "carries",
            [4_000, 97],
            Some((
                "gateway.attachments[5].carries",
                "`carries` brings all attachments together to 4097 prefixes; expected at most 4096",
            )),
        ),
        ("routes", [4_000, 92], None),
        (
            "routes",
            [4_000, 93],
            Some((
                "gateway.attachments[5].routes",
                "`routes` brings all attachments together to 4097 prefixes; expected at most 4096",
            )),
        ),
    ] {
        let [first, second] = counts;
        let text = with(
            &(attachment(7, &format!("sources: [10.7.0.0/24], {field}"), &list(0, first))
                + &attachment(
                    8,
                    &format!("sources: [10.8.0.0/24], {field}"),
                    &list(first, second),
                )),
        );
        let said = Config::parse(&text, "f.yaml").map(|_| ());
        let said: Vec<(String, String)> =
            said.err().unwrap_or_default().into_iter().map(|e| (e.path, e.message)).collect();
        let expected = expected.map(|(path, message)| (path.to_owned(), message.to_owned()));
        assert_eq!(said, Vec::from_iter(expected), "{field} {counts:?}");
    }
    const SOURCES: &str = "f.yaml:7:3: gateway.attachments: `attachments` need more than 3840 entries to tell sources apart: one for each \
                           of their `sources`, and at each place one for everything inside of these \
                           that another attachment of the domain states or that is non-routable; \
                           expected fewer, so fewer or wider `sources` and `routes`";
    // Every place says of each route ahead of another that its sources are not behind it.
    for (counts, fits) in [([700, 574], true), ([700, 575], false)] {
        let [first, second] = counts;
        let text = with(
            &(attachment(7, "routes", &list(0, first))
                + &attachment(8, "routes", &list(700, second))),
        );
        let said = Config::parse(&text, "f.yaml").map(|_| ()).err().unwrap_or_default();
        let said: Vec<String> = said.iter().map(ToString::to_string).collect();
        let expected = if fits { vec![] } else { vec![SOURCES] };
        assert_eq!(said, expected, "{counts:?}");
    }
}
