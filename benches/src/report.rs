//! What was measured, as tables and as JSON. It must never drop the spread, nor what was not run: a
//! number alone may be luck, and a missing peer is no victory.

use crate::machine::Machine;
use crate::spread::Spread;
use serde::Serialize;
use serde_json::{Map, Value, json};

/// A whole run.
#[derive(Debug, Serialize)]
pub struct Report {
    /// Where it ran.
    pub machine: Machine,
    /// What was asked, and the answers.
    pub questions: Vec<Question>,
}

/// One question and its answer.
#[derive(Debug, Serialize)]
pub struct Question {
    /// The sub-command's name.
    pub name: &'static str,
    /// What exactly is measured.
    pub measures: String,
    /// The answers.
    pub tables: Vec<Table>,
    /// What could not be run, and what is missing for it.
    pub not_run: Vec<String>,
    /// Why there is no answer.
    pub failure: Option<String>,
    /// What a reader must know beside.
    pub notes: Vec<String>,
    /// The few numbers that a summary shows.
    pub headlines: Vec<Headline>,
}

/// One number of the summary.
#[derive(Debug, Serialize)]
pub struct Headline {
    /// What it is.
    pub what: String,
    /// Its value.
    pub value: Spread,
}

/// Rows of cells under columns.
#[derive(Debug)]
pub struct Table {
    /// Its name.
    pub name: String,
    columns: Vec<Column>,
    rows: Vec<Vec<Cell>>,
}

/// What stands in a column.
#[derive(Clone, Copy, Debug)]
pub struct Column {
    /// Its name in JSON, which ends in the unit.
    pub key: &'static str,
    /// Its title for people.
    pub title: &'static str,
    /// What a value is divided by for people.
    pub unit: f64,
    /// Digits behind the point, for people.
    pub decimals: usize,
}

/// One value.
#[derive(Clone, Debug)]
pub enum Cell {
    /// A name.
    Text(String),
    /// What was measured in each round.
    Spread(Spread),
    /// Not measured here.
    Nothing,
}

impl Question {
    /// Nothing is answered yet.
    pub fn new(name: &'static str, measures: impl Into<String>) -> Self {
        Self {
            name,
            measures: measures.into(),
            tables: Vec::new(),
            not_run: Vec::new(),
            failure: None,
            notes: Vec::new(),
            headlines: Vec::new(),
        }
    }

    /// A question that has no answer.
    pub fn failed(name: &'static str, error: &anyhow::Error) -> Self {
        let mut question = Self::new(name, "Failed: nothing was measured.");
        question.failure = Some(format!("{error:#}"));
        question
    }

    /// A number for the summary, where there is one.
    pub fn headline(&mut self, what: impl Into<String>, value: Option<Spread>) {
        self.headlines.extend(value.map(|value| Headline { what: what.into(), value }));
    }

    /// Says so where there is nothing to see a spread from.
    pub fn note_rounds(&mut self, rounds: u32) {
        if rounds == 1 {
            self.notes.push("one round: no number here has a spread, each may be luck".to_owned());
        }
    }

    fn print(&self) {
        println!("\n== {}\n{}", self.name, self.measures);
        for table in &self.tables {
            print!("\n{}:\n{}", table.name, table.render());
        }
        if let Some(failure) = &self.failure {
            println!("FAILED: {failure}");
        }
        for missing in &self.not_run {
            println!("NOT RUN: {missing}");
        }
        for note in &self.notes {
            println!("note: {note}");
        }
    }
}

impl Report {
    /// Everything, for people.
    pub fn print(&self) {
        println!("{}", self.machine);
        self.questions.iter().for_each(Question::print);
    }

    /// The headlines of all questions.
    pub fn print_summary(&self) {
        let columns = vec![
            Column::text("question", "question"),
            Column::text("what", "what"),
            Column::number("value", "median (least to most)", 1.0, 2),
        ];
        let mut table = Table::new("summary", columns);
        for question in &self.questions {
            for headline in &question.headlines {
                let name = Cell::from(question.name);
                let what = Cell::from(headline.what.as_str());
                table.row(vec![name, what, headline.value.into()]);
            }
        }
        print!("\n== summary\n{}", table.render());
        for question in &self.questions {
            for missing in &question.not_run {
                println!("NOT RUN: {}: {missing}", question.name);
            }
            if let Some(failure) = &question.failure {
                println!("FAILED: {}: {failure}", question.name);
            }
        }
    }

    /// The questions that have no answer.
    pub fn failed(&self) -> impl Iterator<Item = &str> {
        self.questions.iter().filter(|asked| asked.failure.is_some()).map(|asked| asked.name)
    }
}

impl Column {
    /// A column of names.
    pub const fn text(key: &'static str, title: &'static str) -> Self {
        Self::number(key, title, 1.0, 0)
    }

    /// A column of numbers.
    pub const fn number(
        key: &'static str,
        title: &'static str,
        unit: f64,
        decimals: usize,
    ) -> Self {
        Self { key, title, unit, decimals }
    }
}

impl Table {
    /// No row yet.
    pub fn new(name: impl Into<String>, columns: Vec<Column>) -> Self {
        Self { name: name.into(), columns, rows: Vec::new() }
    }

    /// A row with as many cells as there are columns.
    pub fn row(&mut self, cells: Vec<Cell>) {
        debug_assert_eq!(cells.len(), self.columns.len(), "{}: a row fits its columns", self.name);
        self.rows.push(cells);
    }

    /// Lines for people.
    pub fn render(&self) -> String {
        let titles = self.columns.iter().map(|column| column.title.to_owned()).collect();
        let mut lines: Vec<Vec<String>> = vec![titles];
        for row in &self.rows {
            let cells = row.iter().zip(&self.columns);
            lines.push(cells.map(|(cell, column)| cell.show(column)).collect());
        }
        let width = |column: usize| {
            lines.iter().filter_map(|line| Some(line.get(column)?.chars().count())).max()
        };
        let widths: Vec<usize> = (0..self.columns.len()).filter_map(width).collect();
        let mut text = String::new();
        for line in &lines {
            let cells = line.iter().zip(&widths);
            let cells: Vec<String> = cells.map(|(cell, width)| format!("{cell:<width$}")).collect();
            text.push_str(cells.join("  ").trim_end());
            text.push('\n');
        }
        text
    }
}

impl Serialize for Table {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let rows = self.rows.iter().map(|row| {
            let cells = row.iter().zip(&self.columns);
            Value::Object(
                cells.map(|(cell, column)| (column.key.to_owned(), cell.json())).collect(),
            )
        });
        let mut table = Map::new();
        table.insert("name".to_owned(), json!(self.name));
        table.insert("rows".to_owned(), rows.collect());
        table.serialize(serializer)
    }
}

impl Cell {
    /// The spread of what the rounds measured; nothing where none did.
    pub fn over(values: impl IntoIterator<Item = f64>) -> Self {
        Spread::over(values).map_or(Self::Nothing, Self::Spread)
    }

    fn show(&self, column: &Column) -> String {
        match self {
            Self::Text(text) => text.clone(),
            Self::Spread(spread) => spread.show(column.unit, column.decimals),
            Self::Nothing => "-".to_owned(),
        }
    }

    fn json(&self) -> Value {
        match self {
            Self::Text(text) => json!(text),
            Self::Spread(spread) => json!(spread),
            Self::Nothing => Value::Null,
        }
    }
}

impl From<&str> for Cell {
    fn from(text: &str) -> Self {
        Self::Text(text.to_owned())
    }
}

impl From<Spread> for Cell {
    fn from(spread: Spread) -> Self {
        Self::Spread(spread)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table() -> Table {
        let columns = vec![
            Column::text("contender", "contender"),
            Column::number("bytes_per_second", "MB/s", 1e6, 1),
        ];
        let mut table = Table::new("speeds", columns);
        table.row(vec!["ours".into(), Cell::over([3e6, 1e6, 2e6])]);
        table.row(vec!["a peer".into(), Cell::Nothing]);
        table
    }

    #[test]
    fn people_see_the_spread_in_their_unit() {
        let shown = table().render();
        let expected = "contender  MB/s\nours       2.0 (1.0 to 3.0)\na peer     -\n";
        assert_eq!(shown, expected);
    }

    #[test]
    fn programs_see_base_units_and_what_is_missing() {
        let spread = json!({"median": 2e6, "least": 1e6, "most": 3e6, "rounds": 3});
        let expected = json!({"name": "speeds", "rows": [
            {"contender": "ours", "bytes_per_second": spread},
            {"contender": "a peer", "bytes_per_second": null},
        ]});
        assert_eq!(serde_json::to_value(table()).unwrap(), expected);
    }
}
