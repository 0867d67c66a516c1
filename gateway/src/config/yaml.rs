//! The text of the configuration file, read into the nodes of a tree.
//!
//! Anchors, aliases and tags are refused: a value that stands elsewhere has no line of its own.

use super::tree::{Entry, Fault, Node, Path, Position, Value};
use saphyr_parser::{Event, Marker, Parser, ScalarStyle, ScanError, Span, StrInput};

/// No field is half as deep. What is deeper is a mistake, or meant to exhaust the stack.
const DEPTH: usize = 16;

impl From<Marker> for Position {
    fn from(marker: Marker) -> Self {
        Self { line: marker.line(), column: marker.col() + 1 }
    }
}

/// Reads the text of a file; keys that stand twice are reported, and the first is kept.
pub(super) fn read(text: &str, faults: &mut Vec<Fault>) -> Result<Node, Fault> {
    Reader { text, parser: Parser::new_from_str(text), next_id: 0, faults }.file()
}

struct Reader<'a, 'f> {
    text: &'a str,
    parser: Parser<'a, StrInput<'a>>,
    next_id: usize,
    faults: &'f mut Vec<Fault>,
}

fn unreadable(error: &ScanError, text: &str) -> Fault {
    let Position { line, column } = (*error.marker()).into();
    // A tab looks like the spaces that were meant; the reader stops at it or behind it.
    let tab = text.lines().nth(line - 1).and_then(|text| {
        let mut here = [column.saturating_sub(1), column].into_iter();
        here.find(|column| *column > 0 && text.chars().nth(*column - 1) == Some('\t'))
    });
    let here = tab.map(|column| Position { line, column });
    // In the middle of a text it names the beginning of that.
    let behind = || {
        let mut lines = (1..).zip(text.lines()).skip(line - 1);
        lines.find_map(|(line, text)| {
            let column = 1 + text.chars().position(|character| character == '\t')?;
            Some(Position { line, column })
        })
    };
    let tab = here.or_else(|| error.info().contains("found a tab").then(behind)?);
    match tab {
        Some(position) => {
            let message = "a tab stands here; expected spaces".to_owned();
            Fault { position, path: Path::default(), message }
        }
        None => {
            let message = format!("this is not YAML: {}", error.info());
            Fault { position: Position { line, column }, path: Path::default(), message }
        }
    }
}

impl<'a> Reader<'a, '_> {
    fn next(&mut self) -> Result<(Event<'a>, Span), Fault> {
        match self.parser.next_event() {
            Some(Ok(event)) => Ok(event),
            Some(Err(error)) => Err(unreadable(&error, self.text)),
            None => Ok((Event::StreamEnd, Span::default())),
        }
    }

    fn file(mut self) -> Result<Node, Fault> {
        let fault = |span: Span, message: &str| Fault {
            position: span.start.into(),
            path: Path::default(),
            message: message.to_owned(),
        };
        let mut root = None;
        loop {
            let (event, span) = self.next()?;
            match event {
                Event::StreamEnd => break,
                Event::DocumentStart(_) if root.is_some() => {
                    return Err(fault(
                        span,
                        "a second `---` begins here; expected one YAML document",
                    ));
                }
                Event::Nothing
                | Event::StreamStart
                | Event::DocumentStart(_)
                | Event::DocumentEnd => {}
                Event::Alias(_)
                | Event::Scalar(..)
                | Event::SequenceStart(..)
                | Event::SequenceEnd
                | Event::MappingStart(..)
                | Event::MappingEnd => root = Some(self.node(event, span, &Path::default())?),
            }
        }
        root.ok_or_else(|| Fault {
            position: Position { line: 1, column: 1 },
            path: Path::default(),
            message: "the file is empty; expected `gateway` and `documents`".to_owned(),
        })
    }

    fn node(&mut self, event: Event<'a>, span: Span, path: &Path) -> Result<Node, Fault> {
        let position = Position::from(span.start);
        let id = self.next_id;
        self.next_id += 1;
        let refused =
            |message: &str| Fault { position, path: path.clone(), message: message.to_owned() };
        if path.0.len() > DEPTH {
            return Err(refused("this is nested too deep; no field is so deep"));
        }
        const TAG: &str = "a tag (`!...`) stands here; expected a plain value";
        const ANCHOR: &str = "an anchor or alias stands here; write the value out in each place";
        let value = match event {
            Event::Scalar(_, _, _, Some(_))
            | Event::SequenceStart(_, Some(_))
            | Event::MappingStart(_, Some(_)) => return Err(refused(TAG)),
            Event::Alias(_) => return Err(refused(ANCHOR)),
            Event::Scalar(_, _, anchor, _)
            | Event::SequenceStart(anchor, _)
            | Event::MappingStart(anchor, _)
                if anchor != 0 =>
            {
                return Err(refused(ANCHOR));
            }
            Event::Scalar(text, ScalarStyle::Plain, ..) => plain(&text),
            Event::Scalar(text, ..) => Value::Text(text.into_owned()),
            Event::SequenceStart(..) => self.list(path)?,
            Event::MappingStart(..) => self.map(path)?,
            Event::Nothing
            | Event::StreamStart
            | Event::StreamEnd
            | Event::DocumentStart(_)
            | Event::DocumentEnd
            | Event::SequenceEnd
            | Event::MappingEnd => return Err(refused("a value is missing here")),
        };
        Ok(Node { id, position, value })
    }

    fn list(&mut self, path: &Path) -> Result<Value, Fault> {
        let mut nodes = Vec::new();
        loop {
            let (event, span) = self.next()?;
            if matches!(event, Event::SequenceEnd) {
                return Ok(Value::List(nodes));
            }
            let inner = path.child(nodes.len());
            nodes.push(self.node(event, span, &inner)?);
        }
    }

    fn map(&mut self, path: &Path) -> Result<Value, Fault> {
        let mut entries: Vec<Entry> = Vec::new();
        loop {
            let (event, span) = self.next()?;
            let key_position = Position::from(span.start);
            if matches!(event, Event::MappingEnd) {
                return Ok(Value::Map(entries));
            }
            let Event::Scalar(key, _, 0, None) = event else {
                let message = "a key is not plain text; expected `name: value`".to_owned();
                return Err(Fault { position: key_position, path: path.clone(), message });
            };
            let key = key.into_owned();
            let inner = path.child(key.as_str());
            let (event, span) = self.next()?;
            let value = self.node(event, span, &inner)?;
            match entries.iter().find(|entry| entry.key == key) {
                Some(first) => self.faults.push(Fault {
                    position: key_position,
                    message: format!(
                        "`{key}` stands twice, first in line {}; expected it once",
                        first.key_position.line
                    ),
                    path: inner,
                }),
                None => entries.push(Entry { key, key_position, value }),
            }
        }
    }
}

/// What an unquoted word means, by the core schema of YAML 1.2.
fn plain(text: &str) -> Value {
    match text {
        "" | "~" | "null" | "Null" | "NULL" => return Value::Null,
        "true" | "True" | "TRUE" => return Value::Bool(true),
        "false" | "False" | "FALSE" => return Value::Bool(false),
        _ => {}
    }
    let radix = |digits: &str, radix| u64::from_str_radix(digits, radix).ok();
    let unsigned = match text.get(..2) {
        Some("0x") => radix(&text[2..], 16),
        Some("0o") => radix(&text[2..], 8),
        _ => text.parse().ok(),
    };
    if let Some(number) = unsigned {
        return Value::Unsigned(number);
    }
    if let Ok(number) = text.parse() {
        return Value::Signed(number);
    }
    // `inf` and `nan` are numbers to Rust and words to YAML.
    let looks_like_a_number =
        text.bytes().all(|byte| byte.is_ascii_digit() || b"+-.eE".contains(&byte));
    if looks_like_a_number && text.parse::<f64>().is_ok() {
        return Value::Fraction(text.to_owned());
    }
    Value::Text(text.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unquoted_words_mean_what_yaml_says() {
        for (text, expected) in [
            ("12", "Unsigned(12)"),
            ("012", "Unsigned(12)"),
            ("0x10", "Unsigned(16)"),
            ("-3", "Signed(-3)"),
            ("1.5", "Fraction(\"1.5\")"),
            ("1e3", "Fraction(\"1e3\")"),
            ("18446744073709551616", "Fraction(\"18446744073709551616\")"),
            ("yes", "Text(\"yes\")"),
            ("inf", "Text(\"inf\")"),
            ("300s", "Text(\"300s\")"),
            ("10.0.0.1", "Text(\"10.0.0.1\")"),
            ("~", "Null"),
            ("true", "Bool(true)"),
        ] {
            assert_eq!(format!("{:?}", plain(text)), expected, "{text}");
        }
    }
}
