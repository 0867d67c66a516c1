//! Tables that fit a terminal.

/// How wide lines may be: what COLUMNS says, else as wide as they are.
pub(crate) fn width() -> usize {
    let columns = std::env::var("COLUMNS").ok();
    columns.and_then(|columns| columns.parse().ok()).filter(|n| *n > 0).unwrap_or(usize::MAX)
}

/// Rows under a heading.
pub(crate) struct Table {
    rows: Vec<Vec<String>>,
}

const GAP: &str = "  ";

/// No column is cut below this: a word or the start of an address stays readable.
const LEAST: usize = 6;

impl Table {
    pub(crate) fn new<const N: usize>(heading: [&str; N]) -> Self {
        Self { rows: vec![heading.map(str::to_owned).to_vec()] }
    }

    pub(crate) fn row<const N: usize>(&mut self, cells: [String; N]) {
        self.rows.push(cells.to_vec());
    }

    /// Whether there is nothing under the heading.
    pub(crate) fn is_empty(&self) -> bool {
        self.rows.len() == 1
    }

    /// The table in lines of at most `width` characters, as far as [`LEAST`] allows.
    pub(crate) fn render(&self, width: usize) -> String {
        let columns = self.rows[0].len();
        let mut widths: Vec<usize> = (0..columns)
            .map(|n| self.rows.iter().map(|row| row[n].chars().count()).max().unwrap_or(0))
            .collect();
        let gaps = GAP.len() * columns.saturating_sub(1);
        while widths.iter().sum::<usize>() + gaps > width {
            // The widest has most to give; of equals the last, since the first names the row.
            let widest = widths.iter_mut().max().filter(|widest| **widest > LEAST);
            match widest {
                Some(widest) => *widest -= 1,
                None => break,
            }
        }
        let mut text = String::new();
        for row in &self.rows {
            let mut line = String::new();
            for (cell, width) in row.iter().zip(&widths) {
                if !line.is_empty() {
                    line.push_str(GAP);
                }
                line.push_str(&fitted(cell, *width));
            }
            text.push_str(line.trim_end());
            text.push('\n');
        }
        text
    }
}

/// The text in exactly `width` characters; an ellipsis stands for what is cut.
fn fitted(text: &str, width: usize) -> String {
    if text.chars().count() <= width {
        format!("{text:width$}")
    } else {
        text.chars().take(width.saturating_sub(1)).chain(['…']).collect()
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
        let mut table = Table::new(["NAME", "GROUPS"]);
        table.row(["a".into(), "payments, checkout".into()]);
        table.row(["a-longer-name".into(), "-".into()]);
        table
    }

    #[test]
    fn columns_are_as_wide_as_what_is_in_them() {
        assert_eq!(
            table().render(usize::MAX),
            "NAME           GROUPS\na              payments, checkout\na-longer-name  -\n"
        );
    }

    #[test]
    fn lines_fit_the_terminal_as_long_as_words_stay_readable() {
        for width in [33, 32, 20, 14] {
            let text = table().render(width);
            assert!(text.lines().all(|line| line.chars().count() <= width), "{width}:\n{text}");
        }
        assert_eq!(
            table().render(1),
            "NAME    GROUPS\na       payme…\na-lon…  -\n",
            "no narrower than this"
        );
        assert!(!table().render(33).contains('…'));
        assert!(table().render(32).contains('…'));
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
