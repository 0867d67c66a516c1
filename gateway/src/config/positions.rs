//! Where the settings of this machine stand in the file, for what is found wrong with them after the
//! file itself was read: by what is in force, or by the machine.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::ConfigError;
use super::tree::{Position, Tree};

/// The file and the place of every field of `gateway:`.
#[derive(Clone, Debug)]
pub(super) struct Positions {
    file: String,
    fields: Arc<BTreeMap<String, Position>>,
}

impl Positions {
    pub(super) fn of(tree: &Tree, file: &str) -> Self {
        Self { file: file.to_owned(), fields: Arc::new(tree.below("gateway")) }
    }

    /// A message about a field; of what the file does not state the place is that of what should
    /// have it.
    pub(super) fn fault(&self, path: &str, message: String) -> ConfigError {
        let mut ways =
            std::iter::successors(Some(path), |path| Some(&path[..path.rfind(['.', '['])?]));
        let position = ways.find_map(|path| self.fields.get(path));
        let Position { line, column } = *position.unwrap_or(&Position { line: 1, column: 1 });
        ConfigError { file: self.file.clone(), line, column, path: path.to_owned(), message }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_field_is_found_and_one_that_is_absent_is_where_it_should_be() {
        let text = "gateway:\n  name: gw\n  attachments:\n    - { name: a, hook: tc }\n";
        let positions = Positions::of(&Tree::read(text, &mut Vec::new()).unwrap(), "f.yaml");
        for (path, place) in [
            ("gateway.name", "f.yaml:2:3"),
            ("gateway.attachments[0].hook", "f.yaml:4:18"),
            ("gateway.attachments[0].interface", "f.yaml:4:7"),
            ("gateway.flow_log", "f.yaml:1:1"),
            ("gateway.tables.rules", "f.yaml:1:1"),
        ] {
            let said = positions.fault(path, "no".to_owned()).to_string();
            assert_eq!(said, format!("{place}: {path}: no"));
        }
    }
}
