//! The `documents:` part: what has to hold between the documents, and between them and the
//! attachments.

use api::document::{
    ANYWHERE, Action, DefaultAction, Document, Endpoint, Enforcement, MatchExpression, Named,
    Namespace, Operator, PUBLIC_INTERNET, Rule, Selector, SmartGroup, SnatPolicy, SnatProtocol,
};
use api::value::{AddressRange, Prefix, ProtocolMatch};
use ipnet::{IpNet, Ipv4Net};
use serde::de::DeserializeOwned;
use smartgroups::{GroupId, Membership};
use xdp_abi::policy::{POOL_ADDRESSES, SNAT_POLICIES};

use super::check::{Checks, domain_names, intersection, is_endpoint_of, join};
use super::convert::Inputs;
use super::decode::{choice, decode, meant, suggestion};
use super::settings::{Attachment, AttachmentKind, Gateway};
use super::tree::{Fault, Node, Path, Tree, Value, at};
use super::{Findings, MOST_FAULTS, convert, reach};

/// How many outside addresses one policy may name.
const POLICY_ADDRESSES: u64 = 256;

/// Reads every document that can be read; the others are given up in the tree, so that indices
/// of what comes back are indices of the tree.
pub(super) fn read(tree: &mut Tree, faults: &mut Vec<Fault>) -> Vec<Document> {
    match tree.root.entry("documents").map(|entry| &entry.value.value) {
        None | Some(Value::List(_)) => {}
        Some(_) => {
            let message = "`documents` is no list; expected a list of kind, name and spec";
            faults.push(tree.fault(&at!["documents"], message.to_owned()));
        }
    }
    let count = tree.root.list("documents").len();
    let mut documents = Vec::new();
    for n in 0..count {
        if faults.len() > MOST_FAULTS {
            break;
        }
        documents.extend(read_one(tree, n, faults));
    }
    documents
}

fn nth(tree: &Tree, n: usize) -> &Node {
    &tree.root.list("documents")[n]
}

fn read_one(tree: &mut Tree, n: usize, faults: &mut Vec<Fault>) -> Option<Document> {
    let node = nth(tree, n);
    let id = node.id;
    let at = at!["documents", n];
    let kinds = choice(&Document::KINDS);
    let (path, message) = match node.entry("kind").map(|entry| (entry.value.id, &entry.value.value))
    {
        Some((kind_id, Value::Text(kind))) => {
            let kind = kind.clone();
            // It has been read, and what follows knows nothing of it.
            tree.hide(kind_id);
            match kind.as_str() {
                "Endpoint" => return named(tree, n, faults).map(Document::Endpoint),
                "Namespace" => return named(tree, n, faults).map(Document::Namespace),
                "SmartGroup" => return named(tree, n, faults).map(Document::SmartGroup),
                "Rule" => return named(tree, n, faults).map(Document::Rule),
                "DefaultAction" => return named(tree, n, faults).map(Document::DefaultAction),
                "SnatPolicy" => return named(tree, n, faults).map(Document::SnatPolicy),
                _ => {}
            }
            let hint = suggestion(&kind, Document::KINDS);
            (at.child("kind"), format!("`kind` is `{kind}`; expected {kinds}{hint}"))
        }
        Some(_) => (at.child("kind"), format!("`kind` is no text; expected {kinds}")),
        None => {
            if let Value::Map(entries) = &node.value {
                let close = entries.iter().find(|e| meant(&e.key, ["kind"]).is_some());
                match close {
                    Some(entry) => {
                        let (key, kind) = (entry.key.as_str(), entry.value.id);
                        let message = format!("unknown field `{key}`; did you mean `kind`?");
                        faults.push(tree.fault_as_written(&at.child(key), message));
                        tree.rename(kind, "kind");
                        return read_one(tree, n, faults);
                    }
                    None => (at.child("kind"), format!("`kind` is missing; expected {kinds}")),
                }
            } else {
                let field = at.field();
                (at, format!("`{field}` is no mapping; expected kind, name and spec"))
            }
        }
    };
    faults.push(tree.fault_as_written(&path, message));
    tree.give_up(id);
    None
}

fn named<T: DeserializeOwned>(
    tree: &mut Tree,
    n: usize,
    faults: &mut Vec<Fault>,
) -> Option<Named<T>> {
    decode(tree, |tree| nth(tree, n), faults)
}

/// Checks all that could be read; `gateway` is `None` if its part could not.
pub(super) fn check(
    tree: &Tree,
    gateway: Option<&Gateway>,
    documents: &[Document],
    findings: &mut Findings,
) {
    let mut groups = vec![ANYWHERE, PUBLIC_INTERNET];
    let stated = tree.root.list("documents");
    groups.extend(
        stated
            .iter()
            .filter(|node| node.text("kind") == Some("SmartGroup"))
            .filter_map(|node| node.text("name"))
            .filter(|name| ![ANYWHERE, PUBLIC_INTERNET].contains(name)),
    );
    let sites = stated.iter().filter(|node| is_endpoint_of(node, |kind| kind == Some("site")));
    let sites = sites.filter_map(|node| node.text("name")).collect();
    let domains = domain_names(tree);
    let checks = Checks { tree, findings };
    let resolved = None;
    let mut checks =
        DocumentChecks { checks, groups, sites, domains, gateway, documents, resolved };
    checks.names();
    checks.namespaces();
    checks.order();
    checks.default_action();
    checks.checks.fqdns(documents);
    let mut addresses = 0;
    for (n, document) in documents.iter().enumerate() {
        let at = at!["documents", n];
        match document {
            Document::Endpoint(Named { spec, .. }) => checks.endpoint(&at.child("spec"), spec),
            Document::Namespace(Named { spec: Namespace { .. }, .. }) => {}
            Document::SmartGroup(group) => checks.group(&at, group),
            Document::Rule(Named { spec, .. }) => checks.rule(&at.child("spec"), spec),
            Document::DefaultAction(Named { spec: DefaultAction { .. }, .. }) => {}
            Document::SnatPolicy(Named { spec, .. }) => {
                checks.snat(&at.child("spec"), spec);
                checks.pool(&at.child("spec"), spec, &mut addresses);
            }
        }
    }
}

struct DocumentChecks<'a> {
    checks: Checks<'a>,
    groups: Vec<&'a str>,
    sites: Vec<&'a str>,
    domains: Vec<&'a str>,
    gateway: Option<&'a Gateway>,
    documents: &'a [Document],
    /// The groups and who is in them, once somebody asked; nothing where they cannot be resolved.
    resolved: Option<Option<(Inputs, Membership)>>,
}

impl DocumentChecks<'_> {
    fn names(&mut self) {
        for (n, document) in self.documents.iter().enumerate() {
            self.checks.name(&at!["documents", n, "name"], document.name());
        }
        for kind in Document::KINDS {
            let of_kind = self.documents.iter().enumerate().filter(|(_, d)| d.kind() == kind);
            self.checks.unique(of_kind.map(|(n, d)| (at!["documents", n, "name"], d.name())));
        }
    }

    fn namespaces(&mut self) {
        let documents = self.documents.iter().enumerate();
        self.checks.unique(documents.filter_map(|(n, document)| {
            let Document::Namespace(Named { spec, .. }) = document else { return None };
            let cluster = spec
                .cluster
                .as_ref()
                .map_or(String::new(), |cluster| format!(" of cluster {cluster}"));
            let which = format!("{}{cluster}", spec.namespace);
            Some((at!["documents", n, "spec", "namespace"], which))
        }));
    }

    fn order(&mut self) {
        let documents = self.documents;
        self.checks.unique(documents.iter().enumerate().filter_map(|(n, document)| {
            let Document::Rule(rule) = document else { return None };
            Some((at!["documents", n, "spec", "priority"], rule.spec.priority))
        }));
        self.checks.unique(documents.iter().enumerate().filter_map(|(n, document)| {
            let Document::SnatPolicy(policy) = document else { return None };
            Some((at!["documents", n, "spec", "order"], policy.spec.order))
        }));
        let is_in_force = |document: &&Document| {
            matches!(document, Document::Rule(rule)
                if rule.spec.enforcement != Enforcement::Disabled)
        };
        let rules = documents.iter().filter(is_in_force).count();
        if let Some(room) = self.gateway.map(|gateway| gateway.tables.rules as usize)
            && rules > room
        {
            let message =
                format!("there are {rules} rules in force; expected at most tables.rules = {room}");
            self.checks.error(&at!["documents"], message);
        }
        let policies = documents.iter().filter(|d| matches!(d, Document::SnatPolicy(_))).count();
        if policies > SNAT_POLICIES {
            let message =
                format!("there are {policies} SNAT policies; expected at most {SNAT_POLICIES}");
            self.checks.error(&at!["documents"], message);
        }
    }

    fn default_action(&mut self) {
        let tree = self.checks.tree;
        let entry = tree.root.entry("documents");
        let is_list = entry.is_some_and(|entry| matches!(entry.value.value, Value::List(_)));
        let stated = tree.root.list("documents").iter().enumerate();
        let mut defaults =
            stated.filter(|(_, node)| node.text("kind") == Some("DefaultAction")).map(|(n, _)| n);
        // One whose kind is missing or mistyped may be it, and that has been said.
        let may_be_it = |node: &Node| {
            let kind = node.text("kind");
            kind.is_none_or(|kind| meant(kind, Document::KINDS) == Some("DefaultAction"))
        };
        match defaults.next() {
            None if tree.root.list("documents").iter().any(may_be_it) => {}
            None if is_list => {
                let message = "there is no DefaultAction; expected one document that says what \
                               happens where no rule matches";
                self.checks.error(&at!["documents"], message.to_owned());
            }
            None => {}
            Some(first) => {
                let (_, position, _) = tree.locate_as_written(&at!["documents", first]);
                for n in defaults {
                    let message = format!(
                        "a second DefaultAction, the first is in line {}; expected one",
                        position.line
                    );
                    let fault = tree.fault_as_written(&at!["documents", n, "kind"], message);
                    self.checks.findings.errors.push(fault);
                }
            }
        }
    }

    fn endpoint(&mut self, at: &Path, endpoint: &Endpoint) {
        self.checks.exists(&at.child("domain"), "domain", &endpoint.domain, &self.domains);
        if endpoint.addresses.is_empty() && !self.checks.tree.is_damaged(at) {
            let message = "`addresses` is empty; expected one address or more".to_owned();
            self.checks.error(&at.child("addresses"), message);
        }
        let is_v6 = |address: &Prefix| matches!(address.net(), IpNet::V6(_));
        if !endpoint.addresses.is_empty() && endpoint.addresses.iter().all(is_v6) {
            let message = "`addresses` has IPv6 alone, which is not forwarded yet; expected an \
                           IPv4 address, without which no packet is from or to the endpoint";
            self.checks.warning(&at.child("addresses"), message.to_owned());
        }
        let Some(gateway) = self.gateway else { return };
        let is_stated = self.states_domain(at);
        let addresses = endpoint.addresses.iter().enumerate();
        let doubt = addresses.map(|(n, one)| (at.child("addresses").child(n), *one)).find_map(
            |(path, address)| {
                let field = path.field();
                let doubt = reach::lost(gateway, is_stated, &field, address)
                    .or_else(|| reach::beyond(gateway, &endpoint.domain, &field, address));
                doubt.map(|message| (path, message))
            },
        );
        if let Some((path, message)) = doubt {
            self.checks.warning(&path, message);
        }
    }

    fn states_domain(&self, at: &Path) -> bool {
        self.checks.tree.locate(&at.child("domain")).2.is_some()
    }

    fn group(&mut self, at: &Path, group: &Named<SmartGroup>) {
        if [ANYWHERE, PUBLIC_INTERNET].contains(&group.name.as_str()) {
            let message =
                format!("`name` is {}, which is built in; expected another one", group.name);
            self.checks.error(&at.child("name"), message);
        }
        let selectors = at.child("spec").child("selectors");
        if group.spec.selectors.is_empty() && !self.checks.tree.is_damaged(at) {
            let message = "`selectors` is empty; expected one or more".to_owned();
            self.checks.error(&selectors, message);
        }
        self.selectors(&selectors, &group.spec.selectors, false);
        let exclude = at.child("spec").child("exclude");
        if group.spec.exclude.is_empty() && !self.checks.tree.is_damaged(at) {
            self.checks.no_empty(&exclude, "selectors", "a group without exceptions");
        }
        self.selectors(&exclude, &group.spec.exclude, true);
    }

    /// The selectors of a group, or those of what it excludes.
    fn selectors(&mut self, selectors: &Path, stated: &[Selector], excludes: bool) {
        for (n, selector) in stated.iter().enumerate() {
            let at = selectors.child(n);
            if let Some(group) = &selector.group {
                self.checks.exists(&at.child("group"), "group", group, &self.groups);
                let alone = Selector { group: selector.group.clone(), ..Selector::default() };
                if *selector != alone {
                    let message = "`group` stands beside other fields; expected a selector of its \
                                   own"
                    .to_owned();
                    self.checks.error(&at.child("group"), message);
                }
                continue;
            }
            if let Some(site) = &selector.site {
                self.checks.exists(&at.child("site"), "site", site, &self.sites);
                let part = Selector {
                    site: selector.site.clone(),
                    cidr: selector.cidr,
                    domain: selector.domain.clone(),
                    ..Selector::default()
                };
                if *selector != part {
                    let message =
                        "`site` holds whoever is there, so nothing else is asked of them; \
                                   expected `cidr` and `domain` at most beside it"
                            .to_owned();
                    self.checks.error(&at.child("site"), message);
                }
            }
            self.checks.fqdn(&at, selector);
            if *selector == Selector::default() && !self.checks.tree.is_damaged(&at) {
                let message =
                    format!("`{}` is empty; for every address name `{ANYWHERE}`", at.field());
                self.checks.error(&at, message);
            } else if !self.checks.tree.is_damaged(&at) {
                for (labels, field, expressions, demands) in [
                    (&selector.labels, "labels", &selector.match_expressions, "match_expressions"),
                    (
                        &selector.namespace_labels,
                        "namespace_labels",
                        &selector.namespace_match_expressions,
                        "namespace_match_expressions",
                    ),
                ] {
                    if labels.is_empty() {
                        self.checks.no_empty(&at.child(field), "labels", "whatever they are");
                    }
                    self.expressions(&at.child(demands), expressions);
                }
            }
            if let Some(domain) = &selector.domain {
                self.checks.exists(&at.child("domain"), "domain", domain, &self.domains);
            }
            if let (Some(cidr), Some(gateway)) = (selector.cidr, self.gateway)
                && let Some(message) =
                    reach::group(gateway, excludes, self.states_domain(&at), cidr)
            {
                self.checks.warning(&at.child("cidr"), message);
            }
        }
    }

    fn expressions(&mut self, at: &Path, expressions: &[MatchExpression]) {
        if expressions.is_empty() {
            self.checks.no_empty(at, "demands on labels", "whatever they are");
        }
        for (n, MatchExpression { operator, values, .. }) in expressions.iter().enumerate() {
            let at = at.child(n).child("values");
            let compares = matches!(operator, Operator::In | Operator::NotIn);
            if compares && values.is_empty() {
                let message = format!(
                    "`values` is missing or empty; expected one or more to compare the label with \
                     (`operator` is {operator:?})"
                );
                self.checks.error(&at, message);
            }
            if !compares && !values.is_empty() {
                let message = format!("`values` is for In and NotIn; {operator:?} has none");
                self.checks.error(&at, message);
            }
        }
    }

    fn rule(&mut self, at: &Path, rule: &Rule) {
        let damaged = self.checks.tree.is_damaged(at);
        for (field, groups) in [("sources", &rule.sources), ("destinations", &rule.destinations)] {
            let at = at.child(field);
            if groups.is_empty() && !damaged {
                let message = format!("`{field}` is empty; expected groups, such as `{ANYWHERE}`");
                self.checks.error(&at, message);
            }
            for (n, group) in groups.iter().enumerate() {
                self.checks.exists(&at.child(n), "group", group, &self.groups);
            }
        }
        if rule.ports.is_empty() && !damaged {
            self.checks.no_empty(&at.child("ports"), "ports", "all of them");
        }
        let has_ports = match rule.protocol {
            ProtocolMatch::Only(protocol) => protocol.has_ports(),
            ProtocolMatch::Any => false,
        };
        if !rule.ports.is_empty() && !has_ports && !damaged {
            let message =
                format!("`ports` needs `protocol` tcp or udp; here it is {}", rule.protocol);
            self.checks.error(&at.child("ports"), message);
        }
        match rule.action {
            Action::Deny | Action::Reject if rule.mark.is_some() => {
                let message = "`mark` is for rules that permit; leave it out".to_owned();
                self.checks.error(&at.child("mark"), message);
            }
            Action::Permit | Action::Deny | Action::Reject => {}
        }
    }

    fn snat(&mut self, at: &Path, policy: &SnatPolicy) {
        let damaged = self.checks.tree.is_damaged(at);
        for (cidr, group, is_cidr, name) in [
            ("src_cidr", "src_group", policy.src_cidr.is_some(), &policy.src_group),
            ("dst_cidr", "dst_group", policy.dst_cidr.is_some(), &policy.dst_group),
        ] {
            let Some(name) = name else { continue };
            self.checks.exists(&at.child(group), "group", name, &self.groups);
            if is_cidr {
                let message = format!("`{group}` stands beside `{cidr}`; expected one of the two");
                self.checks.error(&at.child(group), message);
            }
        }
        if policy.protocol == SnatProtocol::Icmp {
            for (field, port) in [("src_port", policy.src_port), ("dst_port", policy.dst_port)] {
                if port.is_some() {
                    let message = format!("`{field}` is for protocols with ports; icmp has none");
                    self.checks.error(&at.child(field), message);
                }
            }
        }
        match (&policy.connection, &policy.interface) {
            (None, None) if !damaged => {
                let message = "neither `connection` nor `interface` is there; expected one of the \
                               two to say where the flow leaves";
                self.checks.error(at, message.to_owned());
            }
            (Some(_), Some(_)) => {
                let message = "`interface` stands beside `connection`; expected one of the two";
                self.checks.error(&at.child("interface"), message.to_owned());
            }
            (None, None) | (Some(_), None) | (None, Some(_)) => {}
        }
        self.way_out(at, policy);
        if policy.no_nat {
            let given = [
                ("snat_ips", !policy.snat_ips.is_empty()),
                ("snat_ports", policy.snat_ports.is_some()),
            ];
            for (field, _) in given.into_iter().filter(|(_, given)| *given) {
                let message =
                    format!("`{field}` stands beside `no_nat: true`, which lends nothing");
                self.checks.error(&at.child(field), message);
            }
            if !damaged {
                self.carried(at, policy);
            }
        } else if policy.snat_ips.is_empty() && !damaged {
            let at = at.child("snat_ips");
            let is_stated = self.checks.tree.locate(&at).2.is_some();
            let found = if is_stated { "empty" } else { "missing" };
            let message =
                format!("`snat_ips` is {found}; expected outside addresses, or `no_nat: true`");
            self.checks.error(&at, message);
        }
    }

    /// The connection and the interface that a policy names have to be there.
    fn way_out(&mut self, at: &Path, policy: &SnatPolicy) {
        let tree = self.checks.tree;
        let stated = tree.locate(&at!["gateway"]).2.map_or(&[][..], |g| g.list("attachments"));
        if let Some(name) = &policy.connection {
            let at = at.child("connection");
            let other = stated.iter().find(|node| node.text("name") == Some(name.as_str()));
            let kind = other.and_then(|node| node.text("kind"));
            if let (Some(kind), true) = (kind, kind != Some("connection")) {
                let message = format!(
                    "`connection` names attachment `{name}` of kind {kind}; expected one of kind \
                     connection, or `interface`"
                );
                self.checks.error(&at, message);
            } else if other.is_none() {
                let connections: Vec<&str> = stated
                    .iter()
                    .filter(|node| node.text("kind") == Some("connection"))
                    .filter_map(|node| node.text("name"))
                    .collect();
                self.checks.exists(&at, "connection", name, &connections);
            }
        }
        if let Some(name) = &policy.interface {
            let at = at.child("interface");
            self.checks.interface(&at, name);
            let mut interfaces: Vec<&str> =
                stated.iter().filter_map(|node| node.text("interface")).collect();
            interfaces.sort_unstable();
            interfaces.dedup();
            self.checks.exists(&at, "interface of an attachment", name, &interfaces);
        }
    }

    /// No leak: what may be non-routable and is not translated has to be carried by every
    /// attachment that it may leave by.
    fn carried(&mut self, at: &Path, policy: &SnatPolicy) {
        let Some(gateway) = self.gateway else { return };
        let leaves_by = |attachment: &&Attachment| {
            let by_name = attachment.kind == AttachmentKind::Connection
                && policy.connection.as_ref() == Some(&attachment.name);
            by_name || policy.interface.as_ref() == Some(&attachment.interface)
        };
        let sources = self.sources(policy);
        let non_routable = || gateway.non_routable.iter().map(|prefix| prefix.net());
        for attachment in gateway.attachments.iter().filter(leaves_by) {
            if !attachment.is_fabric() {
                continue; // Non-routable addresses are at home there.
            }
            let carries: Vec<_> = attachment.carries.iter().map(|prefix| prefix.net()).collect();
            let carries = Ipv4Net::aggregate(&carries);
            let is_carried = |part: &Ipv4Net| carries.iter().any(|net| net.contains(part));
            let leak = sources
                .iter()
                .flat_map(|source| non_routable().filter_map(|net| intersection(*source, net)))
                .find(|part| !is_carried(part));
            let Some(leak) = leak else { continue };
            let carries = match attachment.carries.as_slice() {
                [] => "nothing".to_owned(),
                carries => join(carries),
            };
            let message = format!(
                "`no_nat` would let non-routable sources of {leak} leave by `{}`, which carries \
                 {carries}; expected `carries` there that hold {leak}, or a source that is routable",
                attachment.name
            );
            self.checks.error(&at.child("no_nat"), message);
            return;
        }
    }

    /// Prefixes that hold every source of a policy, of whatever domain.
    fn sources(&mut self, policy: &SnatPolicy) -> Vec<Ipv4Net> {
        match (&policy.src_cidr, &policy.src_group) {
            (Some(cidr), _) => vec![cidr.net()],
            (None, None) => vec![Ipv4Net::default()],
            (None, Some(group)) => self.held(group),
        }
    }

    /// What a group holds, or may hold as long as somebody is in doubt about it. Of groups that cannot be
    /// resolved nothing is said here: the compiler refuses them.
    fn held(&mut self, group: &str) -> Vec<Ipv4Net> {
        let (Some(gateway), documents) = (self.gateway, self.documents) else { return Vec::new() };
        let resolved = self.resolved.get_or_insert_with(|| {
            let inputs = convert::inputs(gateway, documents);
            let membership = smartgroups::resolve(&inputs.inventory, &inputs.groups, &[]).ok()?;
            Some((inputs, membership))
        });
        let Some((Inputs { groups, domains, .. }, membership)) = resolved else {
            return Vec::new();
        };
        let id = match group {
            ANYWHERE => Some(GroupId::ANYWHERE),
            PUBLIC_INTERNET => Some(GroupId::PUBLIC_INTERNET),
            _ => groups.iter().find(|one| one.name == group).map(|one| one.id),
        };
        let Some(id) = id else { return Vec::new() };
        let held = domains.iter().flat_map(|domain| membership.held_by(id, *domain));
        Ipv4Net::aggregate(&held.collect::<Vec<_>>())
    }

    /// What a policy lends has to be routable, and all policies together have to fit.
    fn pool(&mut self, at: &Path, policy: &SnatPolicy, total: &mut u64) {
        let before = *total;
        let at = at.child("snat_ips");
        let mut count = 0;
        for (n, range) in policy.snat_ips.iter().enumerate() {
            let at = at.child(n);
            let field = at.field();
            let overlap = |prefix: Ipv4Net| range.overlaps(AddressRange::from(prefix));
            let non_routable = self.gateway.map_or(&[][..], |gateway| &gateway.non_routable);
            if let Some(prefix) = non_routable.iter().find(|prefix| overlap(prefix.net())) {
                let message = format!(
                    "`{field}` is {range}, inside non_routable {prefix}; expected routable \
                     addresses"
                );
                self.checks.error(&at, message);
            } else if let Some(prefix) = convert::UNUSABLE.into_iter().find(|net| overlap(*net)) {
                let message =
                    format!("`{field}` is {range}, inside {prefix}; expected unicast addresses");
                self.checks.error(&at, message);
            }
            if let Some(other) = policy.snat_ips[..n].iter().find(|other| other.overlaps(*range)) {
                let message = format!(
                    "`{field}` is {range}, which overlaps {other}; expected each address once"
                );
                self.checks.error(&at, message);
            }
            count += range.count();
        }
        *total += count;
        if count > POLICY_ADDRESSES {
            let message =
                format!("`snat_ips` has {count} addresses; expected at most {POLICY_ADDRESSES}");
            self.checks.error(&at, message);
        } else if *total > u64::from(POOL_ADDRESSES) && before <= u64::from(POOL_ADDRESSES) {
            let message = format!(
                "`snat_ips` brings all policies together to {total} addresses; expected at most \
                 {POOL_ADDRESSES}"
            );
            self.checks.error(&at, message);
        }
    }
}
