//! The configuration file as a tree in which everything knows where it stands.
//!
//! One generic mechanism gives every later message its line: a path such as
//! `documents[3].spec.ports[0]` leads to a node, and a node has a position. The tree also
//! remembers which of its parts could not be read, so that one mistake is reported once and what
//! is left can still be read and checked.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::fmt;

use super::decode::short;
use super::yaml;

/// A place in the file; both count from 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Position {
    pub(crate) line: usize,
    pub(crate) column: usize,
}

/// A step on a path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    Key(String),
    Index(usize),
}

impl From<&str> for Step {
    fn from(key: &str) -> Self {
        Self::Key(key.to_owned())
    }
}

impl From<usize> for Step {
    fn from(index: usize) -> Self {
        Self::Index(index)
    }
}

/// The way from the root to a node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Path(pub(crate) Vec<Step>);

impl Path {
    pub(crate) fn child(&self, step: impl Into<Step>) -> Self {
        let mut path = self.clone();
        path.0.push(step.into());
        path
    }

    /// The field at its end, as messages name it: `vlan`, `ports[0]`.
    pub(crate) fn field(&self) -> String {
        let from = self.0.iter().rposition(|step| matches!(step, Step::Key(_))).unwrap_or(0);
        Self(self.0[from..].to_vec()).to_string()
    }
}

impl fmt::Display for Path {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (n, step) in self.0.iter().enumerate() {
            match step {
                Step::Key(key) if n == 0 => f.write_str(&short(key))?,
                Step::Key(key) => write!(f, ".{}", short(key))?,
                Step::Index(index) => write!(f, "[{index}]")?,
            }
        }
        Ok(())
    }
}

/// Builds a [`Path`] from keys and indices.
macro_rules! at {
    ($($step:expr),* $(,)?) => {
        $crate::config::tree::Path(vec![$($crate::config::tree::Step::from($step)),*])
    };
}
pub(crate) use at;

/// What a node holds.
#[derive(Debug)]
pub(crate) enum Value {
    Null,
    Bool(bool),
    /// Below zero.
    Signed(i64),
    Unsigned(u64),
    /// Any other number, as it is written: no field has one.
    Fraction(String),
    Text(String),
    List(Vec<Node>),
    Map(Vec<Entry>),
}

/// A value and where it stands.
#[derive(Debug)]
pub(crate) struct Node {
    /// Unique in the tree.
    pub(crate) id: usize,
    pub(crate) position: Position,
    pub(crate) value: Value,
}

/// A key and its value.
#[derive(Debug)]
pub(crate) struct Entry {
    pub(crate) key: String,
    pub(crate) key_position: Position,
    pub(crate) value: Node,
}

impl Node {
    /// The entry of this key, if it is a map that has one.
    pub(crate) fn entry(&self, key: &str) -> Option<&Entry> {
        let Value::Map(entries) = &self.value else { return None };
        entries.iter().find(|entry| entry.key == key)
    }

    /// The text under this key.
    pub(crate) fn text(&self, key: &str) -> Option<&str> {
        let Value::Text(text) = &self.entry(key)?.value.value else { return None };
        Some(text)
    }

    /// The elements under this key; none if it is absent or no list.
    pub(crate) fn list(&self, key: &str) -> &[Node] {
        match self.entry(key).map(|entry| &entry.value.value) {
            Some(Value::List(nodes)) => nodes,
            _ => &[],
        }
    }

    fn children(&self) -> Box<dyn Iterator<Item = (Step, &Node)> + '_> {
        match &self.value {
            Value::List(nodes) => {
                Box::new(nodes.iter().enumerate().map(|(n, node)| (Step::Index(n), node)))
            }
            Value::Map(entries) => {
                Box::new(entries.iter().map(|entry| (Step::Key(entry.key.clone()), &entry.value)))
            }
            Value::Null
            | Value::Bool(_)
            | Value::Signed(_)
            | Value::Unsigned(_)
            | Value::Fraction(_)
            | Value::Text(_) => Box::new(std::iter::empty()),
        }
    }

    /// The entry whose value has this id.
    fn entry_of(&mut self, id: usize) -> Option<&mut Entry> {
        // Ids ascend, as below.
        match &mut self.value {
            Value::List(nodes) => nodes.iter_mut().rfind(|node| node.id <= id)?.entry_of(id),
            Value::Map(entries) => {
                let entry = entries.iter_mut().rfind(|entry| entry.value.id <= id)?;
                if entry.value.id == id { Some(entry) } else { entry.value.entry_of(id) }
            }
            Value::Null
            | Value::Bool(_)
            | Value::Signed(_)
            | Value::Unsigned(_)
            | Value::Fraction(_)
            | Value::Text(_) => None,
        }
    }

    /// The way from here to the node with this id.
    fn path_to(&self, id: usize) -> Option<Path> {
        // Ids are given when a node begins, so those inside of a node are a range.
        if self.id == id {
            return Some(Path::default());
        }
        let mut candidate = None;
        for (step, child) in self.children() {
            if child.id > id {
                break;
            }
            candidate = Some((step, child));
        }
        let (step, child) = candidate?;
        let mut path = child.path_to(id)?;
        path.0.insert(0, step);
        Some(path)
    }
}

/// Something wrong at a place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Fault {
    pub(crate) position: Position,
    pub(crate) path: Path,
    pub(crate) message: String,
}

/// The file, and which parts of it were given up.
#[derive(Debug)]
pub(crate) struct Tree {
    pub(crate) root: Node,
    /// Nodes that are not looked at any more.
    hidden: HashSet<usize>,
    /// Those of them that were wrong.
    wrong: BTreeSet<usize>,
}

impl Tree {
    /// Reads the text; keys that stand twice are reported, and the first is kept.
    pub(crate) fn read(text: &str, faults: &mut Vec<Fault>) -> Result<Self, Fault> {
        let root = yaml::read(text, faults)?;
        Ok(Self { root, hidden: HashSet::new(), wrong: BTreeSet::new() })
    }

    /// Leaves a node out from now on, because something else has read it.
    pub(crate) fn hide(&mut self, id: usize) {
        self.hidden.insert(id);
    }

    /// Leaves a node out from now on, because it is wrong.
    pub(crate) fn give_up(&mut self, id: usize) {
        self.hidden.insert(id);
        self.wrong.insert(id);
    }

    /// Takes a value from now on for that of another key, which was meant.
    pub(crate) fn rename(&mut self, id: usize, key: &str) {
        if let Some(entry) = self.root.entry_of(id) {
            key.clone_into(&mut entry.key);
        }
    }

    pub(crate) fn is_hidden(&self, node: &Node) -> bool {
        self.hidden.contains(&node.id)
    }

    /// The fields of a node that something else has read.
    pub(crate) fn read_before<'a>(&self, node: &'a Node) -> Vec<&'a str> {
        let Value::Map(entries) = &node.value else { return Vec::new() };
        let is_read = |id| self.hidden.contains(id) && !self.wrong.contains(id);
        let read = entries.iter().filter(|entry| is_read(&entry.value.id));
        read.map(|entry| entry.key.as_str()).collect()
    }

    /// The way to a node by its id.
    pub(crate) fn path_to(&self, id: usize) -> Path {
        self.root.path_to(id).unwrap_or_default()
    }

    /// Where a path leads. Indices count what was read, and come back as the file counts them.
    /// Where a key is absent, the position is that of what should have it.
    pub(crate) fn locate(&self, path: &Path) -> (Path, Position, Option<&Node>) {
        self.follow(path, |list, index| self.as_written(list, index))
    }

    /// The index in the file of an element that was read: of a list only what is wrong is left out.
    /// There is little of it, and there may be a hundred thousand elements.
    fn as_written(&self, list: &[Node], mut index: usize) -> usize {
        let (Some(first), Some(last)) = (list.first(), list.last()) else { return index };
        for id in self.wrong.range(first.id..=last.id) {
            // Ids ascend along a list; one inside of an element is not found.
            if let Ok(gone) = list.binary_search_by_key(id, |node| node.id)
                && gone <= index
            {
                index += 1;
            }
        }
        index
    }

    /// The same, where indices already count as the file does.
    pub(crate) fn locate_as_written(&self, path: &Path) -> (Path, Position, Option<&Node>) {
        self.follow(path, |_, index| index)
    }

    fn follow(
        &self,
        path: &Path,
        written: impl Fn(&[Node], usize) -> usize,
    ) -> (Path, Position, Option<&Node>) {
        let mut found = Path::default();
        let mut at = Some(&self.root);
        let mut position = self.root.position;
        for step in &path.0 {
            let mut shown = step.clone();
            at = match step {
                Step::Key(key) => at.and_then(|node| node.entry(key)).map(|entry| {
                    position = entry.key_position;
                    &entry.value
                }),
                Step::Index(index) => {
                    let list = match at.map(|node| &node.value) {
                        Some(Value::List(nodes)) => nodes.as_slice(),
                        _ => &[],
                    };
                    let index = written(list, *index);
                    list.get(index).inspect(|node| {
                        shown = Step::Index(index);
                        position = node.position;
                    })
                }
            };
            found.0.push(shown);
        }
        (found, position, at)
    }

    /// Whether something at or below the path was wrong, so that what was read there is not what
    /// was meant.
    pub(crate) fn is_damaged(&self, path: &Path) -> bool {
        fn any(node: &Node, wrong: &BTreeSet<usize>) -> bool {
            wrong.contains(&node.id) || node.children().any(|(_, child)| any(child, wrong))
        }
        !self.wrong.is_empty() && self.locate(path).2.is_some_and(|node| any(node, &self.wrong))
    }

    /// Where everything below a part of the file stands, by its path.
    pub(crate) fn below(&self, part: &str) -> BTreeMap<String, Position> {
        fn add(at: &Path, position: Position, node: &Node, all: &mut BTreeMap<String, Position>) {
            all.insert(at.to_string(), position);
            for (step, child) in node.children() {
                let position = match &step {
                    Step::Key(key) => node.entry(key).map(|entry| entry.key_position),
                    Step::Index(_) => None,
                };
                add(&at.child(step), position.unwrap_or(child.position), child, all);
            }
        }
        let mut all = BTreeMap::new();
        if let Some(entry) = self.root.entry(part) {
            add(&at![part], entry.key_position, &entry.value, &mut all);
        }
        all
    }

    /// A message about what is at the path.
    pub(crate) fn fault(&self, path: &Path, message: String) -> Fault {
        let (path, position, _) = self.locate(path);
        Fault { position, path, message }
    }

    /// The same, where indices already count as the file does.
    pub(crate) fn fault_as_written(&self, path: &Path, message: String) -> Fault {
        let (path, position, _) = self.locate_as_written(path);
        Fault { position, path, message }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "\
gateway:
  name: gw
  list:
    - a
    - { b: 1, c: [2, 3] }
documents: []
";

    #[test]
    fn every_path_has_a_line_and_a_column() {
        let tree = Tree::read(TEXT, &mut Vec::new()).unwrap();
        for (path, line, column, shown) in [
            (at!["gateway"], 1, 1, "gateway"),
            (at!["gateway", "name"], 2, 3, "gateway.name"),
            (at!["gateway", "list"], 3, 3, "gateway.list"),
            (at!["gateway", "list", 0], 4, 7, "gateway.list[0]"),
            (at!["gateway", "list", 1, "c"], 5, 15, "gateway.list[1].c"),
            (at!["gateway", "list", 1, "c", 1], 5, 22, "gateway.list[1].c[1]"),
            (at!["gateway", "list", 1, "d"], 5, 7, "gateway.list[1].d"), // absent
            (at!["documents"], 6, 1, "documents"),
        ] {
            let (found, position, _) = tree.locate(&path);
            assert_eq!(position, Position { line, column }, "{path}");
            assert_eq!(found.to_string(), shown);
        }
    }

    #[test]
    fn every_node_is_found_by_its_id() {
        fn all(node: &Node, tree: &Tree) {
            let path = tree.path_to(node.id);
            assert_eq!(tree.locate(&path).2.map(|found| found.id), Some(node.id), "{path}");
            node.children().for_each(|(_, child)| all(child, tree));
        }
        let tree = Tree::read(TEXT, &mut Vec::new()).unwrap();
        all(&tree.root, &tree);
    }

    #[test]
    fn a_value_is_found_under_the_key_that_it_was_given() {
        let mut tree = Tree::read(TEXT, &mut Vec::new()).unwrap();
        let c = at!["gateway", "list", 1, "c"];
        let id = tree.locate(&c).2.unwrap().id;
        tree.rename(id, "d");
        assert!(tree.locate(&c).2.is_none());
        let (path, position, found) = tree.locate(&at!["gateway", "list", 1, "d"]);
        assert_eq!((found.map(|node| node.id), position.column), (Some(id), 15), "{path}");
        // An element of a list has no key.
        let element = tree.locate(&at!["gateway", "list", 0]).2.unwrap().id;
        tree.rename(element, "e");
        assert!(tree.locate(&at!["gateway", "list", 0]).2.is_some());
    }

    #[test]
    fn what_was_given_up_is_skipped_and_keeps_its_index() {
        let mut tree = Tree::read("list: [a, b, c]", &mut Vec::new()).unwrap();
        let b = tree.locate(&at!["list", 1]).2.unwrap().id;
        assert!(!tree.is_damaged(&at!["list"]));
        tree.give_up(b);
        let (path, position, _) = tree.locate(&at!["list", 1]);
        assert_eq!((path.to_string().as_str(), position.column), ("list[2]", 14));
        assert!(tree.is_damaged(&at!["list"]));
        assert!(!tree.is_damaged(&at!["list", 0]));
    }
}
