//! Tables as kubectl prints them: no borders, three spaces between columns.

use std::io::Write;

use super::jit::text::plain;

/// Rows under a header. Cells are shown on one line, whatever is in them.
#[derive(Debug, Default)]
pub struct Table {
    header: Vec<&'static str>,
    rows: Vec<Vec<String>>,
}

impl Table {
    /// Without rows yet.
    #[must_use]
    pub const fn new(header: Vec<&'static str>) -> Self {
        Self { header, rows: Vec::new() }
    }

    /// Adds a row; what is empty is shown as `<none>`.
    pub fn row(&mut self, cells: impl IntoIterator<Item = String>) {
        let shown = |cell: String| if cell.trim().is_empty() { "<none>".to_owned() } else { plain(&cell) };
        self.rows.push(cells.into_iter().map(shown).collect());
    }

    /// Writes it; each line begins with `indent`.
    ///
    /// # Errors
    /// When the output cannot be written.
    pub fn write(&self, out: &mut dyn Write, indent: &str, header: bool) -> std::io::Result<()> {
        let header_row: Vec<String> = self.header.iter().map(ToString::to_string).collect();
        let rows: Vec<&Vec<String>> = header.then_some(&header_row).into_iter().chain(&self.rows).collect();
        let width = |column: usize| {
            rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count()).max().unwrap_or(0)
        };
        let widths: Vec<usize> = (0..self.header.len()).map(width).collect();
        for row in rows {
            let mut line = indent.to_owned();
            for (column, cell) in row.iter().enumerate() {
                line.push_str(cell);
                if column + 1 < row.len() {
                    let missing = widths[column].saturating_sub(cell.chars().count());
                    line.extend(std::iter::repeat_n(' ', missing + 3));
                }
            }
            writeln!(out, "{}", line.trim_end())?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_aligned_and_one_row_is_one_line() {
        let mut table = Table::new(vec!["NAME", "STATE", "AGE"]);
        table.row(["a".into(), "Pending".into(), "3s".into()]);
        table.row(["longer\nname".into(), String::new(), "2m".into()]);
        let mut out = Vec::new();
        table.write(&mut out, "", true).unwrap();
        assert_eq!(
            String::from_utf8(out).unwrap(),
            "NAME           STATE     AGE\n\
             a              Pending   3s\n\
             longer\\nname   <none>    2m\n"
        );
    }
}
