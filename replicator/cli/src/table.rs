//! Aligned tables for people. Nothing parses them: that is what JSON is for.

use std::fmt::Write;

/// A table under construction.
pub struct Table {
    rows: Vec<Vec<String>>,
}

impl Table {
    /// A table with these headings.
    pub fn new<const N: usize>(headings: [&str; N]) -> Self {
        Self { rows: vec![headings.map(str::to_owned).to_vec()] }
    }

    /// Adds a row, which has as many cells as there are headings.
    pub fn row<const N: usize>(&mut self, cells: [String; N]) {
        assert_eq!(cells.len(), self.rows[0].len(), "a row fits its headings");
        self.rows.push(cells.to_vec());
    }

    /// The lines, without blanks at their ends.
    pub fn render(&self) -> String {
        let width = |column: usize| self.rows.iter().map(|row| row[column].chars().count()).max();
        let widths: Vec<usize> = (0..self.rows[0].len()).filter_map(width).collect();
        let mut text = String::new();
        for row in &self.rows {
            let mut line = String::new();
            for (cell, width) in row.iter().zip(&widths) {
                write!(line, "{cell:<width$}  ").expect("a string takes all that is written to it");
            }
            text.push_str(line.trim_end());
            text.push('\n');
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_aligned() {
        let mut table = Table::new(["DISK", "STATE"]);
        table.row(["sda".into(), "streaming".into()]);
        table.row(["data-disk".into(), "-".into()]);
        assert_eq!(table.render(), "DISK       STATE\nsda        streaming\ndata-disk  -\n");
    }
}
