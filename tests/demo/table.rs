//! Tables of text that fit a terminal of 100 columns.

/// How wide a table may be.
const WIDTH: usize = 100;

/// Prints rows under a head. The widest column is cut where the table would not fit.
pub(crate) fn print<const N: usize>(head: [&str; N], rows: &[[String; N]]) {
    for line in lines(head, rows) {
        println!("{line}");
    }
    println!();
}

fn lines<const N: usize>(head: [&str; N], rows: &[[String; N]]) -> Vec<String> {
    let mut widths = head.map(str::len);
    for row in rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    // Two blanks ahead of every column.
    while widths.iter().sum::<usize>() + 2 * N > WIDTH {
        if let Some(widest) = widths.iter_mut().max() {
            *widest -= 1;
        }
    }
    let line = |cells: &[String; N]| {
        let cells = cells.iter().zip(widths).map(|(cell, width)| {
            let cell: String = cell.chars().take(width).collect();
            format!("  {cell:<width$}")
        });
        cells.collect::<String>().trim_end().to_owned()
    };
    let head = line(&head.map(|word| word.to_uppercase()));
    std::iter::once(head).chain(rows.iter().map(line)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_is_as_wide_as_its_cells_and_never_wider_than_the_terminal() {
        for (cell, expected) in [(1, 2 + 3 + 2 + 2), (92, 2 + 92 + 2 + 2), (200, 100)] {
            let rows = [["x".repeat(cell), "yy".to_owned()]];
            let lines = lines(["who", "to"], &rows);
            let widest = lines.iter().map(|line| line.chars().count()).max();
            assert_eq!(widest, Some(expected.min(100)), "{lines:?}");
            assert!(lines[0].starts_with("  WHO") && lines[0].ends_with("TO"), "{lines:?}");
        }
    }
}
