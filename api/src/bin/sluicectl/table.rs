//! Tables that fit a terminal.
//!
//! What does not fit is cut where a reader loses least: long names first, lists between two of
//! their items, sentences not at all but folded. If that is not enough, whole columns go, in the
//! order that a table says, and the last line says which. Addresses, ports and numbers are there
//! whole or not at all: a part of one is another one.

use std::io::{self, IsTerminal as _};
use std::os::fd::AsRawFd as _;

/// How wide lines may be: what COLUMNS says, else what the terminal is, else as wide as they are.
pub(crate) fn width() -> usize {
    let columns = std::env::var("COLUMNS").ok();
    width_of(columns.as_deref(), io::stdout().is_terminal().then(terminal).flatten())
}

fn width_of(columns: Option<&str>, terminal: Option<u16>) -> usize {
    let stated = columns.and_then(|columns| columns.trim().parse().ok());
    stated.or(terminal.map(usize::from)).filter(|n| *n > 0).unwrap_or(usize::MAX)
}

/// The columns of the terminal that is standard output.
fn terminal() -> Option<u16> {
    let mut size = libc::winsize { ws_row: 0, ws_col: 0, ws_xpixel: 0, ws_ypixel: 0 };
    // SAFETY: the request writes one `winsize`, and there is room for it.
    let failed =
        unsafe { libc::ioctl(io::stdout().as_raw_fd(), libc::TIOCGWINSZ, &raw mut size) } != 0;
    (!failed).then_some(size.ws_col)
}

/// What a column loses where room is short.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fit {
    /// Nothing: an address, a number.
    Whole,
    /// The end of a name.
    Words,
    /// The last items of a list.
    Items,
    /// Nothing: a sentence goes on in the next line.
    Folds,
}

/// Rows under a heading.
pub(crate) struct Table {
    rows: Vec<Vec<String>>,
    fits: Vec<Fit>,
    /// Columns that go if there is no room, the first of them first.
    spare: &'static [&'static str],
}

const GAP: &str = "  ";

/// What stands for items that are left out.
const MORE: &str = ", …";

/// No name is cut below this, and no sentence folded.
const LEAST: usize = 8;

impl Table {
    /// A table whose cells are there whole.
    pub(crate) fn new<const N: usize>(heading: [&str; N]) -> Self {
        Self {
            rows: vec![heading.map(str::to_owned).to_vec()],
            fits: vec![Fit::Whole; N],
            spare: &[],
        }
    }

    /// The same, with columns that may lose something.
    pub(crate) fn fit(mut self, fit: Fit, columns: &[&str]) -> Self {
        for (column, heading) in self.fits.iter_mut().zip(&self.rows[0]) {
            if columns.contains(&heading.as_str()) {
                *column = fit;
            }
        }
        self
    }

    /// The same, with columns that one can do without, the least important first.
    pub(crate) fn spare(mut self, columns: &'static [&'static str]) -> Self {
        self.spare = columns;
        self
    }

    pub(crate) fn row<const N: usize>(&mut self, cells: [String; N]) {
        self.rows.push(cells.to_vec());
    }

    /// Whether there is nothing under the heading.
    pub(crate) fn is_empty(&self) -> bool {
        self.rows.len() == 1
    }

    /// The table in lines of at most `width` characters, as far as that is possible.
    pub(crate) fn render(&self, width: usize) -> String {
        let all = 0..self.rows[0].len();
        let most: Vec<usize> = all.clone().map(|n| self.widest(n, length)).collect();
        let least: Vec<usize> = all.clone().map(|n| self.least(n)).collect();
        // A column of nothing takes no gap either.
        let mut shown: Vec<usize> = all.filter(|n| most[*n] > 0).collect();
        let taken = |widths: &[usize], shown: &[usize]| {
            let gaps = GAP.len() * shown.len().saturating_sub(1);
            shown.iter().map(|n| widths[*n]).sum::<usize>() + gaps
        };
        let mut left_out = Vec::new();
        for name in self.spare {
            if taken(&least, &shown) <= width {
                break;
            }
            shown.retain(|n| self.rows[0][*n] != *name);
            left_out.push(*name);
        }
        let mut widths = most;
        while taken(&widths, &shown) > width {
            // The widest has most to give; of equals the last, since the first names the row.
            let gives = shown.iter().filter(|n| widths[**n] > least[**n]);
            match gives.max_by_key(|n| widths[**n]) {
                Some(n) => widths[*n] -= 1,
                None => break,
            }
        }
        let mut text = String::new();
        for row in &self.rows {
            let cells: Vec<Vec<String>> =
                shown.iter().map(|n| fitted(&row[*n], widths[*n], self.fits[*n])).collect();
            let height = cells.iter().map(Vec::len).max().unwrap_or(0);
            for line in 0..height {
                let parts = cells.iter().zip(&shown).map(|(cell, n)| {
                    let part = cell.get(line).map_or("", String::as_str);
                    format!("{part:width$}", width = widths[*n])
                });
                text.push_str(parts.collect::<Vec<_>>().join(GAP).trim_end());
                text.push('\n');
            }
        }
        if !left_out.is_empty() {
            text.push_str(&format!("not shown: {}; -o wide shows all\n", left_out.join(", ")));
        }
        text
    }

    fn widest(&self, column: usize, of: impl Fn(&str) -> usize) -> usize {
        self.rows.iter().map(|row| of(&row[column])).max().unwrap_or(0)
    }

    /// How narrow a column may become.
    fn least(&self, column: usize) -> usize {
        match self.fits[column] {
            Fit::Whole => self.widest(column, length),
            Fit::Words => self.widest(column, length).min(LEAST),
            Fit::Items => self.widest(column, |cell| match cell.split_once(", ") {
                Some((first, _)) => length(first) + length(MORE),
                None => length(cell),
            }),
            Fit::Folds => self
                .widest(column, |cell| cell.split(' ').map(length).max().unwrap_or(0))
                .max(LEAST)
                .min(self.widest(column, length)),
        }
    }
}

fn length(text: &str) -> usize {
    text.chars().count()
}

/// The text in lines of at most `width` characters, if its column may lose so much.
fn fitted(text: &str, width: usize, fit: Fit) -> Vec<String> {
    if length(text) <= width {
        return vec![text.to_owned()];
    }
    match fit {
        Fit::Whole => vec![text.to_owned()],
        Fit::Words => vec![text.chars().take(width.saturating_sub(1)).chain(['…']).collect()],
        Fit::Items => {
            let ends = text.match_indices(", ").map(|(end, _)| &text[..end]);
            let kept = ends.take_while(|kept| length(kept) + length(MORE) <= width).last();
            vec![kept.map_or_else(|| text.to_owned(), |kept| format!("{kept}{MORE}"))]
        }
        Fit::Folds => {
            let mut lines = vec![String::new()];
            for word in text.split(' ') {
                let line = lines
                    .last_mut()
                    .filter(|line| line.is_empty() || length(line) + 1 + length(word) <= width);
                match line {
                    Some(line) if line.is_empty() => line.push_str(word),
                    Some(line) => {
                        line.push(' ');
                        line.push_str(word);
                    }
                    None => lines.push(word.to_owned()),
                }
            }
            lines
        }
    }
}

/// `-` for what is not there.
pub(crate) fn or_dash<T: ToString>(value: Option<T>) -> String {
    value.map_or_else(|| "-".to_owned(), |value| value.to_string())
}

/// `a, b`, or `-` for nothing.
pub(crate) fn list<T: ToString>(values: &[T]) -> String {
    match values {
        [] => "-".to_owned(),
        values => values.iter().map(ToString::to_string).collect::<Vec<_>>().join(", "),
    }
}

/// A span of seconds in its two largest units: `59s`, `2m5s`, `3h0m`, `2d4h`.
pub(crate) fn span(seconds: u64) -> String {
    match seconds {
        0..60 => format!("{seconds}s"),
        60..3_600 => format!("{}m{}s", seconds / 60, seconds % 60),
        3_600..86_400 => format!("{}h{}m", seconds / 3_600, seconds / 60 % 60),
        _ => format!("{}d{}h", seconds / 86_400, seconds / 3_600 % 24),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table() -> Table {
        let mut table = Table::new(["ADDRESS", "NAME", "GROUPS", "HITS"])
            .fit(Fit::Words, &["NAME"])
            .fit(Fit::Items, &["GROUPS"])
            .spare(&["HITS", "GROUPS"]);
        table.row([
            "192.0.2.1:80".into(),
            "a".into(),
            "payments, checkout, web".into(),
            "7".into(),
        ]);
        table.row(["192.0.2.129:4430".into(), "a-longer-name".into(), "-".into(), "12".into()]);
        table
    }

    #[test]
    fn columns_are_as_wide_as_what_is_in_them() {
        let expected = "\
ADDRESS           NAME           GROUPS                   HITS
192.0.2.1:80      a              payments, checkout, web  7
192.0.2.129:4430  a-longer-name  -                        12
";
        assert_eq!(table().render(usize::MAX), expected);
        assert_eq!(table().render(62), expected);
    }

    #[test]
    fn what_is_long_is_cut_between_items_then_columns_go_and_addresses_stay() {
        for (width, heading, first, second, left_out) in [
            (
                61,
                "ADDRESS           NAME           GROUPS                  HITS",
                "192.0.2.1:80      a              payments, checkout, …   7",
                "192.0.2.129:4430  a-longer-name  -                       12",
                None,
            ),
            (
                45,
                "ADDRESS           NAME      GROUPS       HITS",
                "192.0.2.1:80      a         payments, …  7",
                "192.0.2.129:4430  a-longe…  -            12",
                None,
            ),
            (
                44,
                "ADDRESS           NAME          GROUPS",
                "192.0.2.1:80      a             payments, …",
                "192.0.2.129:4430  a-longer-na…  -",
                Some("not shown: HITS; -o wide shows all"),
            ),
            (
                38,
                "ADDRESS           NAME",
                "192.0.2.1:80      a",
                "192.0.2.129:4430  a-longer-name",
                Some("not shown: HITS, GROUPS; -o wide shows all"),
            ),
            // No narrower than this, however narrow the terminal is.
            (
                1,
                "ADDRESS           NAME",
                "192.0.2.1:80      a",
                "192.0.2.129:4430  a-longe…",
                Some("not shown: HITS, GROUPS; -o wide shows all"),
            ),
        ] {
            let text = table().render(width);
            let expected: Vec<&str> =
                [heading, first, second].into_iter().chain(left_out).collect();
            assert_eq!(text.lines().collect::<Vec<_>>(), expected, "{width}");
        }
    }

    #[test]
    fn a_sentence_goes_on_in_the_next_line() {
        let mut table = Table::new(["", "STAGE", "FOUND"]).fit(Fit::Folds, &["FOUND"]);
        table.row([">".into(), "route".into(), "to 192.0.2.7 by the gateway 10.0.0.1".into()]);
        table.row([String::new(), "rule".into(), "none".into()]);
        for (width, expected) in [
            (
                46,
                "   STAGE  FOUND\n>  route  to 192.0.2.7 by the gateway 10.0.0.1\n   rule   none\n",
            ),
            (
                30,
                "   STAGE  FOUND\n>  route  to 192.0.2.7 by the\n          gateway 10.0.0.1\n   rule   none\n",
            ),
            (
                1,
                "   STAGE  FOUND\n>  route  to\n          192.0.2.7\n          by the\n          \
                 gateway\n          10.0.0.1\n   rule   none\n",
            ),
        ] {
            assert_eq!(table.render(width), expected, "{width}");
        }
    }

    #[test]
    fn the_width_is_what_somebody_says_it_is() {
        for (columns, terminal, expected) in [
            (Some("100"), Some(80), 100), // the environment has the last word
            (Some("100"), None, 100),
            (None, Some(80), 80),
            (Some(""), Some(80), 80),
            (Some("wide"), Some(80), 80),
            (None, None, usize::MAX),          // a pipe
            (None, Some(0), usize::MAX),       // a terminal that does not know
            (Some("0"), Some(80), usize::MAX), // no limit
        ] {
            assert_eq!(width_of(columns, terminal), expected, "{columns:?} {terminal:?}");
        }
    }

    #[test]
    fn spans_have_two_units() {
        for (seconds, expected) in [
            (0, "0s"),
            (59, "59s"),
            (60, "1m0s"),
            (3_599, "59m59s"),
            (3_600, "1h0m"),
            (86_399, "23h59m"),
            (86_400, "1d0h"),
            (187_200, "2d4h"),
        ] {
            assert_eq!(span(seconds), expected, "{seconds}");
        }
    }
}
