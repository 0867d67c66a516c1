//! What only the compiler can say of a file: whether its documents fit the tables, and what in
//! them can hardly be meant.
//!
//! A file that `check` accepts and `run` refuses is found out about at the worst moment. So the
//! documents are compiled here, once everything else is right, to the very image that the engine
//! puts into force, and what the compiler says gets the place of the document that it speaks of.

use std::collections::HashMap;

use api::document::{Document, FABRIC};
use api::value::Prefix;
use policy_compiler::{Capacity, CompileError, Diagnostic, Side, Table};
use smartgroups::{Conflict, DomainId, ResolveError};

use super::convert::Compiled;
use super::settings::{Gateway, MOST};
use super::tree::{Path, Tree, at};
use super::{Findings, convert, wanted};

/// `None` if it does not fit; then that is among the errors.
pub(super) fn compile(
    tree: &Tree,
    gateway: &Gateway,
    documents: &[Document],
    findings: &mut Findings,
) -> Option<Compiled> {
    let mut capacity = convert::capacity(&gateway.tables);
    loop {
        match convert::compile(gateway, documents, &capacity) {
            // Of a file that is refused for its size nothing else is said.
            Ok(_) if !findings.errors.is_empty() => return None,
            Ok(compiled) => {
                let places = Places::of(tree, gateway, documents);
                // Who is discovered may be in a group that nobody of the file is in.
                let all_is_stated = wanted(gateway, documents).is_empty();
                let is_known =
                    |diagnostic: &&Diagnostic| all_is_stated || !is_about_nobody(diagnostic);
                let said = compiled.diagnostics.iter().filter(is_known);
                let said = said.map(|diagnostic| places.place(diagnostic));
                findings.warnings.extend(said.map(|(path, message)| tree.fault(&path, message)));
                return Some(compiled);
            }
            // The compiler stops at the first table; with room there it comes to the next.
            Err(CompileError::NoRoom { table, need, .. }) if widen(&mut capacity, table, need) => {
                let (path, message) = too_small(gateway, table, need);
                findings.errors.push(tree.fault(&path, message));
            }
            Err(refused) => {
                let place = if let CompileError::Groups(ResolveError::Cycle { path }) = &refused {
                    naming(documents, path)
                } else {
                    None
                };
                let place = place.unwrap_or_else(|| at!["documents"]);
                findings.errors.push(tree.fault(&place, refused.to_string()));
                return None;
            }
        }
    }
}

fn is_about_nobody(diagnostic: &Diagnostic) -> bool {
    match diagnostic {
        Diagnostic::EmptyGroup { .. }
        | Diagnostic::RuleNeverMatches { .. }
        | Diagnostic::SnatNeverMatches { .. }
        | Diagnostic::Shadowed { .. }
        | Diagnostic::Redundant { .. } => true,
        Diagnostic::Contested(_) => false,
    }
}

/// Where the first group of a way around names the second.
fn naming(documents: &[Document], path: &[String]) -> Option<Path> {
    let [first, second, ..] = path else { return None };
    documents.iter().enumerate().find_map(|(n, document)| {
        let Document::SmartGroup(group) = document else { return None };
        let spec = Some(&group.spec).filter(|_| group.name == *first)?;
        [("selectors", &spec.selectors), ("exclude", &spec.exclude)].into_iter().find_map(
            |(field, selectors)| {
                let at = selectors.iter().position(|one| one.group.as_ref() == Some(second))?;
                Some(at!["documents", n, "spec", field, at, "group"])
            },
        )
    })
}

/// Makes room; says whether that was possible.
fn widen(capacity: &mut Capacity, table: Table, need: usize) -> bool {
    let room = match table {
        Table::Rules => &mut capacity.rules,
        Table::Identities => &mut capacity.identities,
        Table::Hosts => &mut capacity.hosts,
        Table::Prefixes => &mut capacity.prefixes,
        Table::PortClasses => &mut capacity.port_classes,
        Table::SnatPolicies => return false,
    };
    std::mem::replace(room, need) < need
}

fn too_small(gateway: &Gateway, table: Table, need: usize) -> (Path, String) {
    let field = table.to_string();
    let stated = convert::capacity(&gateway.tables);
    let room = match table {
        Table::Rules => stated.rules,
        Table::Identities => stated.identities,
        Table::Hosts => stated.hosts,
        Table::Prefixes => stated.prefixes,
        Table::PortClasses => stated.port_classes,
        Table::SnatPolicies => stated.snat_policies,
    };
    let most =
        MOST.iter().find(|(name, _)| *name == field).map_or(usize::MAX, |(_, most)| *most as usize);
    let message = if need <= most {
        format!("`{field}` is {room}; expected {need} or more, which the documents need")
    } else {
        format!("`{field}` is {room}; the documents need {need}, and expected are at most {most}")
    };
    (at!["gateway", "tables", field.as_str()], message)
}

/// Where the document of a kind and name is.
struct Places<'a> {
    tree: &'a Tree,
    gateway: &'a Gateway,
    documents: &'a [Document],
    by_name: HashMap<(&'static str, &'a str), usize>,
}

impl<'a> Places<'a> {
    fn of(tree: &'a Tree, gateway: &'a Gateway, documents: &'a [Document]) -> Self {
        let numbered = documents.iter().enumerate();
        let by_name = numbered.map(|(n, document)| ((document.kind(), document.name()), n));
        Self { tree, gateway, documents, by_name: by_name.collect() }
    }

    fn at(&self, kind: &'static str, name: &str, fields: &[&str]) -> Path {
        let Some(n) = self.by_name.get(&(kind, name)) else { return at!["documents"] };
        fields.iter().fold(at!["documents", *n], |path, field| path.child(*field))
    }

    /// Where what the compiler found is, and how it is said there.
    fn place(&self, diagnostic: &Diagnostic) -> (Path, String) {
        let path = match diagnostic {
            Diagnostic::EmptyGroup { group } => {
                self.at("SmartGroup", group, &["spec", "selectors"])
            }
            Diagnostic::RuleNeverMatches { rule, side, .. } => {
                let field = match side {
                    Side::Source => "sources",
                    Side::Destination => "destinations",
                };
                self.at("Rule", rule, &["spec", field])
            }
            Diagnostic::SnatNeverMatches { policy, side, .. } => {
                let field = match side {
                    Side::Source => "src_group",
                    Side::Destination => "dst_group",
                };
                self.at("SnatPolicy", policy, &["spec", field])
            }
            Diagnostic::Shadowed { rule, .. } | Diagnostic::Redundant { rule, .. } => {
                self.at("Rule", rule, &["spec", "priority"])
            }
            Diagnostic::Contested(conflict) => return self.contested(conflict),
        };
        (path, diagnostic.to_string())
    }

    /// Said at the last of the claimants, which names the others and their lines.
    fn contested(&self, conflict: &Conflict) -> (Path, String) {
        let mut claims: Vec<(usize, Path)> = conflict
            .claimants
            .iter()
            .filter_map(|name| self.by_name.get(&("Endpoint", name.as_str())).copied())
            .filter_map(|n| {
                let Document::Endpoint(endpoint) = &self.documents[n] else { return None };
                let mut addresses = endpoint.spec.addresses.iter();
                let index = addresses.position(|address| address.net() == conflict.prefix)?;
                Some((n, at!["documents", n, "spec", "addresses", index]))
            })
            .collect();
        claims.sort_unstable_by_key(|(n, _)| *n);
        let address = Prefix::new(conflict.prefix)
            .map_or_else(|| conflict.prefix.to_string(), |address| address.to_string());
        let Some((_, last)) = claims.pop() else {
            return (at!["documents"], Diagnostic::Contested(conflict.clone()).to_string());
        };
        let others: Vec<String> = claims
            .iter()
            .map(|(n, path)| {
                let (_, position, _) = self.tree.locate(path);
                let name = self.documents[*n].name();
                format!("{} `{name}` in line {}", conflict.kind, position.line)
            })
            .collect();
        let message = format!(
            "`{}` is {address} in domain {}, as that of {}; only one can have it, and \
             meanwhile what one of them may not is refused",
            last.field(),
            self.domain(conflict.domain),
            others.join(", ")
        );
        (last, message)
    }

    fn domain(&self, id: DomainId) -> &str {
        let stated = self.gateway.domains.iter().find(|domain| domain.number.get() == id.0);
        stated.map_or(FABRIC, |domain| domain.name.as_str())
    }
}
