//! What only the compiler can say of a file: whether its documents fit the tables.
//!
//! A file that `check` accepts and `run` refuses is found out about at the worst moment. So the
//! documents are compiled here exactly as the engine compiles them, once everything else is right.

use api::document::Document;
use policy_compiler::{Capacity, CompileError, Table};

use super::check::MOST;
use super::settings::Gateway;
use super::tree::{Path, Tree, at};
use super::{Findings, convert};

pub(super) fn check(
    tree: &Tree,
    gateway: &Gateway,
    documents: &[Document],
    findings: &mut Findings,
) {
    let mut capacity = convert::capacity(&gateway.tables);
    loop {
        match convert::compile(gateway, documents, &capacity) {
            Ok(_) => return,
            // The compiler stops at the first table; with room there it comes to the next.
            Err(CompileError::NoRoom { table, need, .. }) if widen(&mut capacity, table, need) => {
                let (path, message) = too_small(gateway, table, need);
                findings.errors.push(tree.fault(&path, message));
            }
            Err(refused) => {
                findings.errors.push(tree.fault(&at!["documents"], refused.to_string()));
                return;
            }
        }
    }
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
    let most = MOST.iter().find(|(name, _)| *name == field).map_or(usize::MAX, |(_, most)| *most);
    let message = if need <= most {
        format!("`{field}` is {room}; expected {need} or more, which the documents need")
    } else {
        format!("`{field}` is {room}; the documents need {need}, and expected are at most {most}")
    };
    (at!["gateway", "tables", field.as_str()], message)
}
