//! What has to hold between the settings of this machine.

use std::collections::HashMap;
use std::fmt::Display;
use std::hash::Hash;
use std::net::Ipv4Addr;

use api::document::FABRIC;
use api::value::Prefix4;
use ipnet::Ipv4Net;
use xdp_abi::config::NON_ROUTABLE;
use xdp_abi::forward::ATTACHMENTS;

use super::decode::{meant, short, suggestion};
use super::settings::{Gateway, Metrics, Seconds, Timers};
use super::tree::{Node, Path, Tree, at};
use super::{Attachment, AttachmentKind, Findings, Hook};

/// Where everybody's BPF file system is mounted.
const BPFFS: &str = "/sys/fs/bpf";

/// The longest path of a socket: what `sun_path` has room for beside its closing zero (unix(7)).
const SOCKET_PATH: usize = 107;

pub(super) fn check(tree: &Tree, gateway: &Gateway, findings: &mut Findings) {
    let mut checks = Checks { tree, findings };
    checks.name(&at!["gateway", "name"], &gateway.name);
    checks.non_routable(&gateway.non_routable);
    checks.domains(gateway);
    checks.attachments(gateway);
    checks.clusters(gateway);
    checks.cloud_accounts(gateway);
    checks.dns(&gateway.dns);
    checks.timers(&gateway.timers);
    checks.metrics(&gateway.metrics);
    for (field, value) in [
        ("socket", &gateway.socket),
        ("pin_path", &gateway.pin_path),
        ("state_dir", &gateway.state_dir),
    ] {
        checks.absolute(&at!["gateway", field], value);
    }
    if gateway.pin_path == std::path::Path::new(BPFFS) {
        let message = format!(
            "`pin_path` is {BPFFS}, where others pin too; expected a directory below it, such as \
             {BPFFS}/sluice"
        );
        checks.error(&at!["gateway", "pin_path"], message);
    }
    let length = gateway.socket.as_os_str().len();
    if length > SOCKET_PATH {
        let message =
            format!("`socket` is a path of {length} bytes; expected at most {SOCKET_PATH}");
        checks.error(&at!["gateway", "socket"], message);
    }
    checks.paths(gateway);
    if let Some(log) = &gateway.flow_log {
        let at = at!["gateway", "flow_log"];
        if log.path.as_os_str() != "-" && !log.path.is_absolute() {
            let found = log.path.display().to_string();
            let found = short(&found);
            let message =
                format!("`path` is \"{found}\"; expected an absolute path, or - for stdout");
            checks.error(&at.child("path"), message);
        }
    }
}

/// What one attachment states of the hook holds for its interface, so also for the attachments
/// there that do not state any.
pub(super) fn share_hooks(tree: &Tree, gateway: &mut Gateway) {
    let is_stated = |n| tree.locate(&at!["gateway", "attachments", n, "hook"]).2.is_some();
    let attachments = gateway.attachments.iter().enumerate();
    let stated: HashMap<String, Hook> = attachments
        .filter(|(n, _)| is_stated(*n))
        .map(|(_, attachment)| (attachment.interface.clone(), attachment.hook))
        .collect();
    for attachment in &mut gateway.attachments {
        if let Some(hook) = stated.get(&attachment.interface) {
            attachment.hook = *hook;
        }
    }
}

/// Whether every address of `inner` is in one of `outer`, or in several of them together.
pub(super) fn is_covered(inner: Ipv4Net, outer: &[Prefix4]) -> bool {
    let outer: Vec<Ipv4Net> = outer.iter().map(|prefix| prefix.net()).collect();
    Ipv4Net::aggregate(&outer).iter().any(|net| net.contains(&inner))
}

/// The part of a prefix that lies in another: of two prefixes one contains the other, or they
/// share nothing.
pub(super) fn intersection(a: Ipv4Net, b: Ipv4Net) -> Option<Ipv4Net> {
    if a.contains(&b) {
        Some(b)
    } else if b.contains(&a) {
        Some(a)
    } else {
        None
    }
}

/// `a, b, c`.
pub(super) fn join<T: Display>(items: &[T]) -> String {
    items.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}

/// Checks that share a tree and what was found so far.
pub(super) struct Checks<'a> {
    pub(super) tree: &'a Tree,
    pub(super) findings: &'a mut Findings,
}

impl Checks<'_> {
    pub(super) fn error(&mut self, path: &Path, message: String) {
        self.findings.errors.push(self.tree.fault(path, message));
    }

    pub(super) fn warning(&mut self, path: &Path, message: String) {
        self.findings.warnings.push(self.tree.fault(path, message));
    }

    /// A field without which all are meant may not be stated as none: whoever has a list written by
    /// a program, and it comes out empty, did not ask for all.
    pub(super) fn no_empty(&mut self, path: &Path, some: &str, all: &str) {
        if self.tree.locate(path).2.is_some() {
            let message = format!(
                "`{}` is empty; expected {some}, or leave the field out for {all}",
                path.field()
            );
            self.error(path, message);
        }
    }

    pub(super) fn absolute(&mut self, path: &Path, file: &std::path::Path) {
        if !file.is_absolute() {
            let (field, found) = (path.field(), file.display().to_string());
            let message = format!("`{field}` is \"{}\"; expected an absolute path", short(&found));
            self.error(path, message);
        }
    }

    /// Each path is something else's: a log that is written into a socket or a directory is none.
    fn paths(&mut self, gateway: &Gateway) {
        let log = gateway.flow_log.as_ref().map(|log| &log.path);
        let paths = [
            (at!["gateway", "socket"], Some(&gateway.socket)),
            (at!["gateway", "pin_path"], Some(&gateway.pin_path)),
            (at!["gateway", "state_dir"], Some(&gateway.state_dir)),
            (at!["gateway", "flow_log", "path"], log),
        ];
        let mut seen: HashMap<&std::path::Path, Path> = HashMap::new();
        for (at, path) in paths.into_iter().filter_map(|(at, path)| Some((at, path?))) {
            let Some(other) = seen.insert(path, at.clone()) else { continue };
            // One of them may be a default.
            let (at, other) =
                if self.tree.locate(&at).2.is_some() { (at, other) } else { (other, at) };
            let found = path.display().to_string();
            let message = format!(
                "`{}` is {}, which is the `{}` too; expected a path of its own",
                at.field(),
                short(&found),
                other.field()
            );
            self.error(&at, message);
        }
    }

    /// Of two prefixes that overlap one says nothing, which is hardly what was meant.
    fn overlapping(&mut self, at: &Path, prefixes: &[Prefix4]) {
        for (n, prefix) in prefixes.iter().enumerate() {
            let overlap =
                |(_, other): &(usize, &Prefix4)| intersection(prefix.net(), other.net()).is_some();
            let Some((first, other)) = prefixes[..n].iter().enumerate().find(overlap) else {
                continue;
            };
            let (_, position, _) = self.tree.locate(&at.child(first));
            let path = at.child(n);
            let message = format!(
                "`{}` is {prefix}, and {other} in line {} overlaps it; one of them says nothing",
                path.field(),
                position.line
            );
            self.warning(&path, message);
        }
    }

    /// Names go into filters, metrics and file names: short, and without spaces.
    pub(super) fn name(&mut self, path: &Path, name: &str) {
        let fits = |c: char| c.is_ascii_alphanumeric() || "-_./".contains(c);
        if name.is_empty() || name.len() > 253 || !name.chars().all(fits) {
            let message = format!(
                "`{}` is \"{}\"; expected 1 to 253 letters, digits, `-`, `_`, `.` or `/`",
                path.field(),
                short(name)
            );
            self.error(path, message);
        }
    }

    /// Reports whatever stands a second time; the message names the line of the first.
    pub(super) fn unique<T: Hash + Eq + Display>(
        &mut self,
        values: impl IntoIterator<Item = (Path, T)>,
    ) {
        let mut seen: HashMap<T, Path> = HashMap::new();
        for (path, value) in values {
            match seen.get(&value) {
                Some(first) => {
                    let (_, position, _) = self.tree.locate(first);
                    let message = format!(
                        "`{}` is {value}, as in line {}; expected another one",
                        path.field(),
                        position.line
                    );
                    self.error(&path, message);
                }
                None => {
                    seen.insert(value, path);
                }
            }
        }
    }

    fn non_routable(&mut self, prefixes: &[Prefix4]) {
        let at = at!["gateway", "non_routable"];
        let is_stated = |path| self.tree.locate(path).2.is_some();
        if prefixes.len() > NON_ROUTABLE {
            let found = prefixes.len();
            let message =
                format!("`non_routable` has {found} prefixes; expected at most {NON_ROUTABLE}");
            self.error(&at, message);
        } else if prefixes.is_empty() && is_stated(&at) && !self.tree.is_damaged(&at) {
            let message = "`non_routable` is empty; expected the prefixes of pod networks, or \
                           leave the field out for 100.64.0.0/10";
            self.error(&at, message.to_owned());
        }
        for (n, prefix) in prefixes.iter().enumerate() {
            if prefix.net().prefix_len() == 0 {
                let message =
                    format!("`{}` is 0.0.0.0/0; expected a part of it", at.child(n).field());
                self.error(&at.child(n), message);
            }
        }
        self.unique(prefixes.iter().enumerate().map(|(n, prefix)| (at.child(n), *prefix)));
        self.overlapping(&at, prefixes);
    }

    fn domains(&mut self, gateway: &Gateway) {
        let at = |n: usize, field: &str| at!["gateway", "domains", n, field];
        for (n, domain) in gateway.domains.iter().enumerate() {
            self.name(&at(n, "name"), &domain.name);
            if domain.name == FABRIC {
                let message =
                    format!("`name` is {FABRIC}, which is built in; expected another one");
                self.error(&at(n, "name"), message);
            }
        }
        let domains = || gateway.domains.iter().enumerate();
        self.unique(domains().map(|(n, domain)| (at(n, "name"), &domain.name)));
        self.unique(domains().map(|(n, domain)| (at(n, "number"), domain.number)));
    }

    fn attachments(&mut self, gateway: &Gateway) {
        let all = at!["gateway", "attachments"];
        let attachments = || gateway.attachments.iter().enumerate();
        if gateway.attachments.is_empty() && !self.tree.is_damaged(&all) {
            let message = "`attachments` is empty; expected one or more".to_owned();
            self.error(&all, message);
        }
        if gateway.attachments.len() >= ATTACHMENTS as usize {
            let found = gateway.attachments.len();
            let message =
                format!("`attachments` has {found}; expected at most {}", ATTACHMENTS - 1);
            self.error(&all, message);
        }
        self.unique(attachments().map(|(n, a)| (all.child(n).child("name"), &a.name)));
        let domains = domain_names(self.tree);
        for (n, attachment) in attachments() {
            let at = all.child(n);
            self.name(&at.child("name"), &attachment.name);
            self.interface(&at.child("interface"), &attachment.interface);
            if attachment.interface == "lo" {
                let message = "`interface` is lo, by which nobody else's packets come or go; expected \
                               one that leads to other machines";
                self.error(&at.child("interface"), message.to_owned());
            }
            let device = attachment.device();
            if attachment.vlan.is_some() && device.len() > 15 && attachment.interface.len() <= 15 {
                let message = format!(
                    "`vlan` has the device {device}, of {} characters; expected at most 15, so a \
                     shorter name of the interface",
                    device.len()
                );
                self.error(&at.child("vlan"), message);
            }
            self.exists(&at.child("domain"), "domain", &attachment.domain, &domains);
            if attachment.sources.is_empty() && !self.tree.is_damaged(&at) {
                let message = "`sources` is empty; expected prefixes, or leave the field out for \
                               every source";
                self.error(&at.child("sources"), message.to_owned());
            }
            self.overlapping(&at.child("sources"), &attachment.sources);
            self.overlapping(&at.child("carries"), &attachment.carries);
            for (n, prefix) in attachment.carries.iter().enumerate() {
                if !is_covered(prefix.net(), &gateway.non_routable) {
                    let at = at.child("carries").child(n);
                    let message = format!(
                        "`{}` is {prefix}; expected a part of non_routable ({})",
                        at.field(),
                        join(&gateway.non_routable)
                    );
                    self.error(&at, message);
                }
            }
        }
        self.hooks(&all, &gateway.attachments);
        self.ambiguous(&all, &gateway.attachments, "sources", |attachment| &attachment.sources);
        self.ambiguous(&all, &gateway.attachments, "routes", Attachment::routes);
    }

    /// An interface is served by one hook, so all of its attachments that state one mean the same.
    fn hooks(&mut self, all: &Path, attachments: &[Attachment]) {
        let mut first = HashMap::new();
        for (n, attachment) in attachments.iter().enumerate() {
            let at = all.child(n).child("hook");
            if self.tree.locate(&at).2.is_none() || self.tree.is_damaged(&at) {
                continue;
            }
            let stated = (at.clone(), attachment.hook);
            let (other, hook) = first.entry(&attachment.interface).or_insert(stated);
            if *hook != attachment.hook {
                let (_, position, _) = self.tree.locate(other);
                let message = format!(
                    "`hook` is {}, and {} in line {} for {} too; expected one for the interface",
                    attachment.hook.as_str(),
                    hook.as_str(),
                    position.line,
                    attachment.interface
                );
                self.error(&at, message);
            }
        }
    }

    /// A packet has to belong to one attachment: on one interface and VLAN, no two may have the
    /// same prefix behind or ahead of them.
    fn ambiguous<'a>(
        &mut self,
        all: &Path,
        attachments: &'a [Attachment],
        field: &str,
        prefixes: impl Fn(&'a Attachment) -> &'a [Prefix4],
    ) {
        let follows_sources = |attachment: &&Attachment| {
            attachment.kind == AttachmentKind::Spoke && attachment.stated_routes.is_empty()
        };
        let mut seen = HashMap::new();
        for (n, attachment) in attachments.iter().enumerate() {
            let at = all.child(n);
            if self.tree.is_damaged(&at) {
                continue;
            }
            for (index, prefix) in prefixes(attachment).iter().enumerate() {
                let key = (&attachment.interface, attachment.vlan, *prefix);
                let first: &Attachment = seen.entry(key).or_insert(attachment);
                // A spoke's routes are its sources unless stated, and those were compared before.
                let is_known = field == "routes" && [first, attachment].iter().all(follows_sources);
                if std::ptr::eq(first, attachment) || is_known {
                    continue;
                }
                // Where the prefix is a default there is no element to point at.
                let element = at.child(field).child(index);
                let at = match self.tree.locate(&element).2 {
                    Some(_) => element,
                    None => at.clone(),
                };
                let place = match attachment.vlan {
                    Some(vlan) => format!("{} VLAN {}", attachment.interface, vlan.get()),
                    None => attachment.interface.clone(),
                };
                let message = format!(
                    "{prefix} is among the {field} of `{}` on {place} too; expected `{field}` \
                     that tell the attachments apart",
                    first.name
                );
                self.error(&at, message);
            }
        }
    }

    pub(super) fn interface(&mut self, path: &Path, name: &str) {
        // As the kernel has it: IFNAMSIZ with the closing zero, and no path.
        let fits = |c: char| c.is_ascii_graphic() && c != '/' && c != ':';
        let dots = name == "." || name == "..";
        if name.is_empty() || name.len() > 15 || dots || !name.chars().all(fits) {
            let message = format!(
                "`interface` is \"{}\"; expected an interface name, up to 15 characters",
                short(name)
            );
            self.error(path, message);
        }
    }

    /// Reports a name that nothing has.
    pub(super) fn exists(&mut self, path: &Path, what: &str, name: &str, known: &[&str]) -> bool {
        let exists = known.contains(&name);
        if !exists && !self.has_nameless(what) {
            let hint = match suggestion(name, known.iter().copied()) {
                hint if hint.is_empty() && known.is_empty() => "; there is none".to_owned(),
                hint if hint.is_empty() && known.len() <= 8 => {
                    format!("; expected {}", super::decode::choice(known))
                }
                hint if hint.is_empty() => format!("; expected the name of a {what}"),
                hint => hint,
            };
            let (field, name) = (path.field(), short(name));
            let message = format!("`{field}` names {what} `{name}`, which does not exist{hint}");
            self.error(path, message);
        }
        exists
    }

    /// Whether one of what is named has lost its name, or all of it is missing, which has been said: it
    /// may be the one meant.
    fn has_nameless(&self, what: &str) -> bool {
        let nameless = |node: &Node| node.text("name").is_none();
        let gateway = self.tree.locate(&at!["gateway"]).2;
        let attachments = gateway.map_or(&[][..], |node| node.list("attachments"));
        match what {
            "domain" => gateway.is_some_and(|node| node.list("domains").iter().any(nameless)),
            "connection" | "interface of an attachment" if attachments.is_empty() => true,
            "connection" => attachments.iter().any(nameless),
            "interface of an attachment" => {
                attachments.iter().any(|node| node.text("interface").is_none())
            }
            "site" => {
                // One whose type is missing or mistyped may be it, and that has been said.
                let may_be =
                    |kind: Option<&str>| kind.is_none_or(|kind| meant(kind, ["site"]).is_some());
                let is_doubtful = |node: &Node| {
                    let is_site = is_endpoint_of(node, |kind| kind == Some("site"));
                    is_endpoint_of(node, may_be) && (!is_site || nameless(node))
                };
                self.tree.root.list("documents").iter().any(is_doubtful)
            }
            "group" => {
                let is_group = |node: &&Node| node.text("kind") == Some("SmartGroup");
                self.tree.root.list("documents").iter().filter(is_group).any(nameless)
            }
            _ => false,
        }
    }

    fn timers(&mut self, timers: &Timers) {
        for (field, value, floor, source) in [
            ("udp", timers.udp, 120, "RFC 4787 REQ-5"),
            ("tcp_established", timers.tcp_established, 7_440, "RFC 5382 REQ-5"),
            ("tcp_transitory", timers.tcp_transitory, 240, "RFC 5382 REQ-5"),
            ("icmp", timers.icmp, 60, "RFC 5508 REQ-1"),
            ("port_rest", timers.port_rest, 120, "RFC 6888 REQ-8"),
        ] {
            let floor = Seconds::new(floor).expect("floors are from a second to a year");
            if value < floor {
                let message = format!("`{field}` is {value}, below the {floor} of {source}");
                self.warning(&at!["gateway", "timers", field], message);
            }
        }
    }

    fn metrics(&mut self, metrics: &Metrics) {
        let files = [
            ("token_file", at!["gateway", "metrics"], metrics.token_file.as_ref()),
            (
                "certificate",
                at!["gateway", "metrics", "tls"],
                metrics.tls.as_ref().map(|tls| &tls.certificate),
            ),
            ("key", at!["gateway", "metrics", "tls"], metrics.tls.as_ref().map(|tls| &tls.key)),
        ];
        for (field, at, file) in files {
            if let Some(file) = file {
                self.absolute(&at.child(field), file);
            }
        }
        let at = at!["gateway", "metrics", "listen"];
        if metrics.listen.port() == 0 {
            let message = format!("`listen` is {}; expected a port, 1 to 65535", metrics.listen);
            self.error(&at, message);
        }
        if metrics.listen.ip().is_loopback() || self.tree.is_damaged(&at!["gateway", "metrics"]) {
            return;
        }
        if metrics.insecure {
            let message = format!("`listen` is {}: anybody can read the metrics", metrics.listen);
            self.warning(&at, message);
        } else if metrics.tls.is_none() || metrics.token_file.is_none() {
            let local = Ipv4Addr::LOCALHOST;
            let message = format!(
                "`listen` is {}, off loopback; expected `tls` and `token_file` beside it, or \
                 `insecure: true`, or {local}:{}",
                metrics.listen,
                metrics.listen.port()
            );
            self.error(&at, message);
        }
    }
}

/// Whether a document states an endpoint of such a type, as far as the type can be read.
pub(super) fn is_endpoint_of(node: &Node, is_meant: impl Fn(Option<&str>) -> bool) -> bool {
    let spec = node.entry("spec").map(|entry| &entry.value);
    node.text("kind") == Some("Endpoint") && is_meant(spec.and_then(|spec| spec.text("type")))
}

/// The names of all domains that the file means to have, also of those with a mistake in them.
pub(super) fn domain_names(tree: &Tree) -> Vec<&str> {
    let stated = tree.locate(&at!["gateway"]).2.map_or(&[][..], |node| node.list("domains"));
    let mut names = vec![FABRIC];
    for name in stated.iter().filter_map(|node| node.text("name")) {
        // One that stands twice is a mistake of its own.
        if !names.contains(&name) {
            names.push(name);
        }
    }
    names
}
