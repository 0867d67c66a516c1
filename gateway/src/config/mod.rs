//! The configuration file: one YAML file with this machine's settings and the documents.
//!
//! Whoever edits a firewall's file has to learn of every mistake at once, with the line of the
//! field and with what would be right, before anything is touched. So the file is read into a
//! tree that knows positions (`yaml`, `tree`), typed without stopping at the first mistake (`decode`),
//! and checked for what has to hold between its parts (`check`, `documents`). [`convert`] hands
//! what was stated to the crates that compile it, and `compile` does so before the file is accepted:
//! a [`Config`] has its image already, and whoever enforces it compiles nothing.

pub mod accounts;
mod check;
pub mod clusters;
mod compile;
pub mod convert;
mod decode;
mod documents;
mod files;
pub mod names;
mod positions;
mod reach;
mod room;
mod settings;
#[cfg(test)]
mod tests;
mod tree;
mod yaml;

use std::fmt;
use std::sync::Arc;

use api::document::Document;
use controller::Wanted;
use policy_compiler::Image;
use smartgroups::Inventory;

pub use settings::{
    Attachment, AttachmentKind, Domain, FlowLog, Gateway, GroupAlarms, Hook, Metrics, SNAT_PORTS,
    Seconds, Tables, TcpMidstream, Timers, Tls, Vlan,
};

use convert::Compiled;
use positions::Positions;
use tree::{Fault, Path, Tree, at};

/// A file that says what it should.
#[derive(Clone, Debug)]
pub struct Config {
    /// This machine's settings.
    pub gateway: Gateway,
    /// What is to be enforced, in the order of the file.
    pub documents: Vec<Document>,
    /// What the documents compile to.
    pub image: Arc<Image>,
    /// Who there is.
    pub inventory: Inventory,
    /// What is accepted and still worth a look.
    pub warnings: Vec<ConfigError>,
    positions: Positions,
}

/// Who is to be followed by a configuration, and which names are to be asked for.
#[must_use]
pub fn wanted(gateway: &Gateway, documents: &[Document]) -> Wanted {
    Wanted {
        clusters: clusters::watched(gateway),
        accounts: accounts::followed(gateway),
        names: names::asked(gateway, documents),
    }
}

/// How many faults of a file are said; nobody mends more of them at once.
const MOST_FAULTS: usize = 100;

/// Something wrong in the file, and what would be right.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{file}:{line}:{column}: {}{message}", Prefix(path))]
pub struct ConfigError {
    /// The file, as it was named.
    pub file: String,
    /// The line of the field, from 1.
    pub line: usize,
    /// Its column, from 1.
    pub column: usize,
    /// The way to the field, such as `documents[3].spec.ports[0]`; empty for the file as a whole.
    pub path: String,
    /// What is wrong and what would be right.
    pub message: String,
}

struct Prefix<'a>(&'a str);

impl fmt::Display for Prefix<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_empty() { Ok(()) } else { write!(f, "{}: ", self.0) }
    }
}

/// What is said about a file while it is checked.
#[derive(Default)]
struct Findings {
    errors: Vec<Fault>,
    warnings: Vec<Fault>,
}

impl Config {
    /// Reads the text of a file; `file_name` is only for messages.
    ///
    /// # Errors
    /// Everything that is wrong, in the order of the file.
    pub fn parse(text: &str, file_name: &str) -> Result<Self, Vec<ConfigError>> {
        let mut findings = Findings::default();
        match read(text, file_name, &mut findings) {
            Some((gateway, documents, Compiled { image, inventory, .. }, positions)) => Ok(Self {
                gateway,
                documents,
                image: Arc::new(image),
                inventory,
                warnings: in_order(findings.warnings, file_name),
                positions,
            }),
            None => Err(in_order(findings.errors, file_name)),
        }
    }

    /// Reads the bytes of a file, which have to be text first.
    ///
    /// # Errors
    /// As [`Self::parse`].
    pub fn parse_bytes(bytes: &[u8], file_name: &str) -> Result<Self, Vec<ConfigError>> {
        let error = match std::str::from_utf8(bytes) {
            Ok(text) => return Self::parse(text, file_name),
            Err(error) => error,
        };
        let (good, bad) = bytes.split_at(error.valid_up_to());
        let line = good.rsplit(|byte| *byte == b'\n').next().unwrap_or_default();
        Err(vec![ConfigError {
            file: file_name.to_owned(),
            line: 1 + good.iter().filter(|byte| **byte == b'\n').count(),
            column: 1 + String::from_utf8_lossy(line).chars().count(),
            path: String::new(),
            message: format!("the byte 0x{:02x} is not UTF-8; expected text in UTF-8", bad[0]),
        }])
    }

    /// A message about a setting of this machine, such as `gateway.tables.rules`, that its file
    /// alone does not call for.
    #[must_use]
    pub fn fault(&self, path: &str, message: String) -> ConfigError {
        self.positions.fault(path, on_one_line(&message))
    }

    /// What the file says, in one line.
    #[must_use]
    pub fn summary(&self) -> String {
        let Gateway { name, attachments, domains, .. } = &self.gateway;
        let of = |kind| self.documents.iter().filter(|document| document.kind() == kind).count();
        format!(
            "gateway `{name}`: {}, {}, {}, {}, {}, {}",
            count(attachments.len(), "attachment", "attachments"),
            count(domains.len(), "domain beside the fabric", "domains beside the fabric"),
            count(of("Endpoint"), "endpoint", "endpoints"),
            count(of("SmartGroup"), "group", "groups"),
            count(of("Rule"), "rule", "rules"),
            count(of("SnatPolicy"), "SNAT policy", "SNAT policies"),
        )
    }
}

fn count(number: usize, one: &str, many: &str) -> String {
    format!("{number} {}", if number == 1 { one } else { many })
}

/// Faults in the order of the file; of too many the first, and how many more are known of: what
/// could not be read may not have been looked for to the end.
fn in_order(mut faults: Vec<Fault>, file: &str) -> Vec<ConfigError> {
    faults.sort_by_key(|fault| fault.position);
    if let Some(first) = faults.get(MOST_FAULTS) {
        let message = format!("and at least {} more, from here on", faults.len() - MOST_FAULTS);
        let more = Fault { position: first.position, path: Path::default(), message };
        faults.truncate(MOST_FAULTS);
        faults.push(more);
    }
    faults
        .into_iter()
        .map(|Fault { position, path, message }| ConfigError {
            file: file.to_owned(),
            line: position.line,
            column: position.column,
            path: on_one_line(&path.to_string()),
            message: on_one_line(&message),
        })
        .collect()
}

/// What a file says is repeated to a terminal and to logs, where a line has to stay one, and what
/// is not seen, or turns the rest around, must not pass for something else.
fn on_one_line(text: &str) -> String {
    let mut line = String::with_capacity(text.len());
    for c in text.chars() {
        let is_seen = c.escape_debug().len() == 1 || ['"', '\'', '\\'].contains(&c);
        if is_seen { line.push(c) } else { line.extend(c.escape_default()) }
    }
    line
}

/// `None` if there are errors among the findings.
fn read(
    text: &str,
    file_name: &str,
    findings: &mut Findings,
) -> Option<(Gateway, Vec<Document>, Compiled, Positions)> {
    let mut tree = match Tree::read(text, &mut findings.errors) {
        Ok(tree) => tree,
        Err(fault) => {
            findings.errors.push(fault);
            return None;
        }
    };
    top(&mut tree, &mut findings.errors)?;
    let gateway = tree
        .root
        .entry("gateway")
        .is_some()
        .then(|| decode::decode::<Gateway>(&mut tree, gateway_node, &mut findings.errors));
    let gateway = gateway.flatten();
    let documents = documents::read(&mut tree, &mut findings.errors);
    if findings.errors.len() > MOST_FAULTS {
        return None; // it was not read to its end
    }
    if let Some(gateway) = &gateway {
        check::check(&tree, gateway, findings);
    }
    // Without any settings each name in the documents would be one that does not exist.
    let settings = tree.root.entry("gateway").map(|entry| &entry.value.value);
    if matches!(settings, Some(tree::Value::Map(_))) {
        documents::check(&tree, gateway.as_ref(), &documents, findings);
    }
    let mut gateway = gateway?;
    check::share_hooks(&tree, &mut gateway);
    if findings.errors.is_empty() {
        room::check(&tree, &gateway, &mut findings.errors);
    }
    if !findings.errors.is_empty() {
        return None;
    }
    let compiled = compile::compile(&tree, &gateway, &documents, findings)?;
    Some((gateway, documents, compiled, Positions::of(&tree, file_name)))
}

fn gateway_node(tree: &Tree) -> &tree::Node {
    tree.root.entry("gateway").map_or(&tree.root, |entry| &entry.value)
}

/// The two parts that a file has.
fn top(tree: &mut Tree, errors: &mut Vec<Fault>) -> Option<()> {
    const PARTS: [&str; 2] = ["gateway", "documents"];
    let tree::Value::Map(entries) = &tree.root.value else {
        let message = "expected a mapping with `gateway` and `documents`".to_owned();
        errors.push(tree.fault(&at![], message));
        return None;
    };
    let mut mistyped = Vec::new();
    for entry in entries.iter().filter(|entry| !PARTS.contains(&entry.key.as_str())) {
        let hint = match decode::meant(&entry.key, PARTS) {
            Some(part) => {
                mistyped.push((entry.value.id, part));
                format!("; did you mean `{part}`?")
            }
            None => "; expected `gateway` or `documents`".to_owned(),
        };
        let message = format!("unknown field `{}`{hint}", entry.key);
        errors.push(tree.fault(&at![entry.key.as_str()], message));
    }
    for (id, part) in mistyped {
        if tree.root.entry(part).is_none() {
            tree.rename(id, part);
        }
    }
    for part in PARTS.into_iter().filter(|part| tree.root.entry(part).is_none()) {
        let right = match part {
            "documents" => "a list of kind, name and spec",
            _ => "a mapping of fields",
        };
        errors.push(tree.fault(&at![part], format!("`{part}` is missing; expected {right}")));
    }
    Some(())
}
