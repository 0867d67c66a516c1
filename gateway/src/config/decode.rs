//! From the tree to typed values, with every mistake instead of the first.
//!
//! The types derive `Deserialize`, which stops at the first mistake. So whatever is wrong is
//! noted, given up in the tree (an optional field falls back to its default, an element drops out
//! of its list) and the reading starts again, until what is left can be read. A field that is
//! missing because it was given up is not reported a second time, and one that is mistyped is read on
//! as what was meant.

use std::borrow::Cow;
use std::fmt;

use serde::de::value::StrDeserializer;
use serde::de::{
    self, DeserializeOwned, DeserializeSeed, Deserializer, Error as _, IntoDeserializer, MapAccess,
    SeqAccess, Unexpected, Visitor,
};

use super::MOST_FAULTS;
use super::tree::{Entry, Fault, Node, Path, Tree, Value};

/// Reads a value from the node; `None` if what is left of it is no such value, or if there are too
/// many faults to look for more: each has the reading start again.
///
/// The node is named by a function because the tree changes between two attempts.
pub(super) fn decode<T: DeserializeOwned>(
    tree: &mut Tree,
    node: impl Fn(&Tree) -> &Node,
    faults: &mut Vec<Fault>,
) -> Option<T> {
    loop {
        let root = node(tree);
        let error = match T::deserialize(Reader { tree, node: root }) {
            Ok(value) => return Some(value),
            Err(error) => error,
        };
        let culprit = error.culprit(tree, root);
        let root = root.id;
        faults.extend(culprit.fault);
        if faults.len() > MOST_FAULTS {
            tree.give_up(root);
            return None;
        }
        match culprit.mending {
            Mending::GiveUp(node) => {
                tree.give_up(node);
                if node == root {
                    return None;
                }
            }
            Mending::Rename(node, key) => tree.rename(node, key),
        }
    }
}

/// What is wrong, before it is known where.
#[derive(Debug)]
enum Wrong {
    Value { found: String, expected: String },
    Variant { found: String, expected: &'static [&'static str] },
    UnknownField { field: String, expected: &'static [&'static str] },
    MissingField(&'static str),
    Other(String),
}

/// A mistake, and the node in which it is.
#[derive(Debug)]
pub(super) struct Error {
    wrong: Wrong,
    node: Option<usize>,
}

impl Error {
    fn new(wrong: Wrong) -> Self {
        Self { wrong, node: None }
    }

    /// The innermost node that sees the error is where it is.
    fn at(mut self, node: &Node) -> Self {
        self.node.get_or_insert(node.id);
        self
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.wrong)
    }
}

impl std::error::Error for Error {}

impl de::Error for Error {
    fn custom<T: fmt::Display>(message: T) -> Self {
        Self::new(Wrong::Other(message.to_string()))
    }

    fn invalid_type(found: Unexpected<'_>, expected: &dyn de::Expected) -> Self {
        Self::invalid_value(found, expected)
    }

    fn invalid_value(found: Unexpected<'_>, expected: &dyn de::Expected) -> Self {
        Self::new(Wrong::Value { found: name(found), expected: words(&expected.to_string()) })
    }

    fn unknown_variant(found: &str, expected: &'static [&'static str]) -> Self {
        Self::new(Wrong::Variant { found: found.to_owned(), expected })
    }

    fn unknown_field(field: &str, expected: &'static [&'static str]) -> Self {
        Self::new(Wrong::UnknownField { field: field.to_owned(), expected })
    }

    fn missing_field(field: &'static str) -> Self {
        Self::new(Wrong::MissingField(field))
    }
}

/// What was found, as a person would say it.
fn name(found: Unexpected<'_>) -> String {
    match found {
        Unexpected::Bool(value) => value.to_string(),
        Unexpected::Unsigned(value) => value.to_string(),
        Unexpected::Signed(value) => value.to_string(),
        Unexpected::Str(text) => format!("\"{}\"", short(text)),
        Unexpected::Unit => "empty".to_owned(),
        Unexpected::Seq => "a list".to_owned(),
        Unexpected::Map => "a mapping".to_owned(),
        Unexpected::Char(_)
        | Unexpected::Bytes(_)
        | Unexpected::Option
        | Unexpected::NewtypeStruct
        | Unexpected::Enum
        | Unexpected::UnitVariant
        | Unexpected::NewtypeVariant
        | Unexpected::TupleVariant
        | Unexpected::StructVariant
        | Unexpected::Float(_) => found.to_string(),
        Unexpected::Other(written) => short(written).into_owned(),
    }
}

/// What the derived code expects, as a person would say it.
fn words(expected: &str) -> String {
    let words = match expected {
        "a sequence" => "a list",
        "a map" => "a mapping",
        "a string" | "string or map" | "str" => "text",
        "a boolean" => "true or false",
        "u16" => "a number from 0 to 65535",
        "u32" => "a number from 0 to 4294967295",
        "u64" | "usize" => "a number, not below 0",
        "a nonzero u16" => "1 to 65535",
        "path string" => "a path",
        _ if expected.starts_with("struct ") => "a mapping of fields",
        _ => expected,
    };
    words.to_owned()
}

/// The beginning of a text that is far longer than anything that would be right.
pub(super) fn short(text: &str) -> Cow<'_, str> {
    const LONGEST: usize = 80;
    match text.char_indices().nth(LONGEST) {
        Some((end, _)) => Cow::Owned(format!("{}…", &text[..end])),
        None => Cow::Borrowed(text),
    }
}

/// `a`, `b` or `c`.
pub(super) fn choice(words: &[&str]) -> String {
    let quoted: Vec<String> = words.iter().map(|word| format!("`{word}`")).collect();
    match quoted.split_last() {
        None => "nothing".to_owned(),
        Some((last, [])) => last.clone(),
        Some((last, rest)) => format!("{} or {last}", rest.join(", ")),
    }
}

/// The word that was meant, if one is close to what was written.
pub(super) fn meant<'a>(found: &str, words: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let closest = words
        .into_iter()
        .map(|word| (strsim::jaro_winkler(&found.to_lowercase(), &word.to_lowercase()), word))
        .max_by(|(a, _), (b, _)| a.total_cmp(b));
    closest.filter(|(likeness, _)| *likeness > 0.8).map(|(_, word)| word)
}

/// `; did you mean ...?` if one of the words is close to what was written.
pub(super) fn suggestion<'a>(found: &str, words: impl IntoIterator<Item = &'a str>) -> String {
    meant(found, words).map_or_else(String::new, |word| format!("; did you mean `{word}`?"))
}

/// How the tree is changed, so that an error does not come again.
enum Mending {
    GiveUp(usize),
    /// The value stands under a key that was meant to be this one.
    Rename(usize, &'static str),
}

/// What is done about an error, and what is said about it.
struct Culprit {
    mending: Mending,
    /// `None` if it follows from what was said before.
    fault: Option<Fault>,
}

impl Error {
    fn culprit(self, tree: &Tree, root: &Node) -> Culprit {
        let id = self.node.unwrap_or(root.id);
        let path = tree.path_to(id);
        let (_, _, node) = tree.locate_as_written(&path);
        let fault = |path, message| Some(tree.fault_as_written(&path, message));
        match self.wrong {
            Wrong::Value { found, expected } => {
                let message = format!("`{}` is {found}; expected {expected}", path.field());
                Culprit { mending: Mending::GiveUp(id), fault: fault(path, message) }
            }
            Wrong::Variant { found, expected } => {
                let message = format!(
                    "`{}` is `{}`; expected {}{}",
                    path.field(),
                    short(&found),
                    choice(expected),
                    suggestion(&found, expected.iter().copied())
                );
                Culprit { mending: Mending::GiveUp(id), fault: fault(path, message) }
            }
            Wrong::UnknownField { field, expected } => {
                let meant = meant(&field, expected.iter().copied());
                let hint = match meant {
                    Some(word) => format!("; did you mean `{word}`?"),
                    None => {
                        // What was read before this is a field as well.
                        let read = node.map_or_else(Vec::new, |node| tree.read_before(node));
                        format!("; expected {}", choice(&[&read[..], expected].concat()))
                    }
                };
                let entry = |key: &str| node.and_then(|node| node.entry(key));
                let mending = match (entry(&field), meant) {
                    (Some(e), Some(word)) if entry(word).is_none() => {
                        Mending::Rename(e.value.id, word)
                    }
                    (Some(e), _) => Mending::GiveUp(e.value.id),
                    (None, _) => Mending::GiveUp(id),
                };
                let message = format!("unknown field `{}`{hint}", short(&field));
                Culprit { mending, fault: fault(path.child(field.as_str()), message) }
            }
            Wrong::MissingField(field) => {
                let was_there = node.is_some_and(|node| node.entry(field).is_some());
                let message = match right(&path, field) {
                    Some(right) => format!("`{field}` is missing; expected {right}"),
                    None => format!("`{field}` is missing"),
                };
                let fault = if was_there { None } else { fault(path.child(field), message) };
                Culprit { mending: Mending::GiveUp(id), fault }
            }
            Wrong::Other(message) => {
                let message = format!("`{}`: {message}", path.field());
                Culprit { mending: Mending::GiveUp(id), fault: fault(path, message) }
            }
        }
    }
}

/// What would be right in the place of a field that has to be there.
fn right(path: &Path, field: &str) -> Option<&'static str> {
    Some(match field {
        "name" | "kind" if path.field() == "workload" => "what the controller is called",
        "name" => "a name of its own",
        "spec" => "a mapping of fields",
        "namespace" => "the name that the namespace has in its cluster",
        "domain" => "the name of a routing domain",
        "kind" => "`spoke`, `connection` or `internet`",
        "type" => {
            "`pod`, `node`, `service`, `vm`, `interface`, `subnet`, `vpc`, `site` or `external`"
        }
        "addresses" => "a list of addresses and prefixes",
        "regions" => "a list of regions, such as [eu-central-1]",
        "region" => "a region, such as eu-central-1",
        "cluster" => "the name that the cluster has in EKS",
        "selectors" => "a list of selectors, such as `{ cidr: 10.0.0.0/8 }`",
        "priority" => "a number of its own; the lowest that matches decides",
        "order" => "a number of its own; the lowest that matches is taken",
        "action" => "`permit`, `deny` or `reject`",
        "sources" | "destinations" => "a list of groups, such as `anywhere`",
        "attachments" => "a list of attachments",
        "number" => "a number of its own, from 1 to 65535",
        "interface" => "the name of an interface",
        "path" | "certificate" => "an absolute path",
        "key" if path.field() == "tls" => "an absolute path",
        "key" => "the name of a label",
        "operator" => "`In`, `NotIn`, `Exists` or `DoesNotExist`",
        _ => return None,
    })
}

/// A node as a source of values.
#[derive(Clone, Copy)]
struct Reader<'a> {
    tree: &'a Tree,
    node: &'a Node,
}

impl<'a> Reader<'a> {
    fn visit<'de, V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        match &self.node.value {
            Value::Null => visitor.visit_unit(),
            Value::Bool(value) => visitor.visit_bool(*value),
            Value::Signed(value) => visitor.visit_i64(*value),
            Value::Unsigned(value) => visitor.visit_u64(*value),
            Value::Fraction(_) => Err(Error::invalid_type(unexpected(&self.node.value), &visitor)),
            Value::Text(text) => visitor.visit_str(text),
            Value::List(nodes) => visitor.visit_seq(List { tree: self.tree, rest: nodes.iter() }),
            Value::Map(entries) => {
                visitor.visit_map(Map { tree: self.tree, rest: entries.iter(), value: None })
            }
        }
    }
}

impl<'de> Deserializer<'de> for Reader<'_> {
    type Error = Error;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        self.visit(visitor).map_err(|error| error.at(self.node))
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        visitor.visit_some(self)
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(
        self,
        _name: &'static str,
        visitor: V,
    ) -> Result<V::Value, Error> {
        visitor.visit_newtype_struct(self).map_err(|error| error.at(self.node))
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        _name: &'static str,
        variants: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Error> {
        let result = if let Value::Text(text) = &self.node.value {
            let word: StrDeserializer<'_, Error> = text.as_str().into_deserializer();
            visitor.visit_enum(word)
        } else {
            let found = name(unexpected(&self.node.value));
            Err(Error::new(Wrong::Value { found, expected: choice(variants) }))
        };
        result.map_err(|error| error.at(self.node))
    }

    /// The derived code takes a list as well, by the order of the fields; nobody means one here.
    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _name: &'static str,
        _fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Error> {
        if let Value::List(_) = &self.node.value {
            return Err(Error::invalid_type(Unexpected::Seq, &visitor).at(self.node));
        }
        self.deserialize_any(visitor)
    }

    serde::forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf unit
        unit_struct seq tuple tuple_struct map identifier ignored_any
    }
}

fn unexpected(value: &Value) -> Unexpected<'_> {
    match value {
        Value::Null => Unexpected::Unit,
        Value::Bool(value) => Unexpected::Bool(*value),
        Value::Signed(value) => Unexpected::Signed(*value),
        Value::Unsigned(value) => Unexpected::Unsigned(*value),
        Value::Fraction(written) => Unexpected::Other(written),
        Value::Text(text) => Unexpected::Str(text),
        Value::List(_) => Unexpected::Seq,
        Value::Map(_) => Unexpected::Map,
    }
}

struct List<'a> {
    tree: &'a Tree,
    rest: std::slice::Iter<'a, Node>,
}

impl<'de> SeqAccess<'de> for List<'_> {
    type Error = Error;

    fn next_element_seed<T: DeserializeSeed<'de>>(
        &mut self,
        seed: T,
    ) -> Result<Option<T::Value>, Error> {
        let tree = self.tree;
        match self.rest.find(|node| !tree.is_hidden(node)) {
            Some(node) => {
                seed.deserialize(Reader { tree, node }).map(Some).map_err(|error| error.at(node))
            }
            None => Ok(None),
        }
    }
}

struct Map<'a> {
    tree: &'a Tree,
    rest: std::slice::Iter<'a, Entry>,
    value: Option<&'a Node>,
}

impl<'de> MapAccess<'de> for Map<'_> {
    type Error = Error;

    fn next_key_seed<K: DeserializeSeed<'de>>(
        &mut self,
        seed: K,
    ) -> Result<Option<K::Value>, Error> {
        let tree = self.tree;
        let Some(entry) = self.rest.find(|entry| !tree.is_hidden(&entry.value)) else {
            return Ok(None);
        };
        self.value = Some(&entry.value);
        let key: StrDeserializer<'_, Error> = entry.key.as_str().into_deserializer();
        seed.deserialize(key).map(Some)
    }

    fn next_value_seed<V: DeserializeSeed<'de>>(&mut self, seed: V) -> Result<V::Value, Error> {
        let node = self.value.take().ok_or_else(|| Error::custom("a value without a key"))?;
        seed.deserialize(Reader { tree: self.tree, node }).map_err(|error| error.at(node))
    }
}
