//! Tables for the terminal: columns as wide as their widest cell.

/// Lines of `rows`, each indented by `indent`; columns from `numbers_from` on are to the right.
pub(crate) fn render(rows: &[Vec<String>], indent: usize, numbers_from: usize) -> String {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width = |column: usize| {
        let cells = rows.iter().filter_map(|row| row.get(column));
        cells.map(|cell| cell.chars().count()).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..columns).map(width).collect();
    let mut text = String::new();
    for row in rows {
        let mut line = " ".repeat(indent);
        for (column, (cell, width)) in row.iter().zip(&widths).enumerate() {
            let gap = " ".repeat(width - cell.chars().count());
            let gutter = if column == 0 { "" } else { "  " };
            line += gutter;
            line += &if column < numbers_from {
                cell.clone() + &gap
            } else {
                gap + cell
            };
        }
        text += line.trim_end();
        text.push('\n');
    }
    text
}

/// A row of texts.
pub(crate) fn row<const N: usize>(cells: [&str; N]) -> Vec<String> {
    cells.map(str::to_owned).to_vec()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_stand_left_and_numbers_right() {
        let rows = [
            row(["name", "n"]),
            row(["endpoint", "1"]),
            row(["é", "200"]),
        ];
        assert_eq!(
            render(&rows, 1, 1),
            " name        n\n endpoint    1\n é         200\n"
        );
    }
}
