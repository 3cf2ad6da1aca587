//! Aligned columns, a little colour, and words that people count with.

use serde_json::Value;

/// A terminal colour; nothing without a terminal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Ink {
    Plain,
    Bold,
    Dim,
    Red,
    Green,
}

/// Writes text in a colour.
#[derive(Debug, Clone, Copy)]
pub(super) struct Paint(pub bool);

impl Paint {
    pub(super) fn paint(self, ink: Ink, text: &str) -> String {
        let code = match ink {
            Ink::Bold => "1",
            Ink::Dim => "2",
            Ink::Red => "31",
            Ink::Green => "32",
            Ink::Plain => return text.to_owned(),
        };
        if self.0 { format!("\x1b[{code}m{text}\x1b[0m") } else { text.to_owned() }
    }
}

/// Rows of cells, and lines of text between them.
#[derive(Debug, Default)]
pub(super) struct Table {
    lines: Vec<Line>,
}

#[derive(Debug)]
enum Line {
    Cells(Vec<(Ink, String)>),
    Text(Ink, String),
}

impl Table {
    /// A table with a heading.
    pub(super) fn new(heading: &[&str]) -> Table {
        let mut table = Table::default();
        table.row(heading.iter().map(|cell| (Ink::Dim, (*cell).to_owned())));
        table
    }

    pub(super) fn row(&mut self, cells: impl IntoIterator<Item = (Ink, String)>) {
        self.lines.push(Line::Cells(cells.into_iter().map(|(ink, text)| (ink, clean(&text))).collect()));
    }

    /// A line of its own below the last row.
    pub(super) fn text(&mut self, ink: Ink, text: &str) {
        self.lines.push(Line::Text(ink, clean(text)));
    }

    /// The table, each line indented by two. Every column is as wide as its widest cell; the last one is not filled.
    pub(super) fn render(&self, paint: Paint) -> String {
        let mut widths: Vec<usize> = Vec::new();
        for line in &self.lines {
            let Line::Cells(cells) = line else { continue };
            widths.resize(widths.len().max(cells.len()), 0);
            for (width, (_, text)) in widths.iter_mut().zip(cells) {
                *width = (*width).max(text.chars().count());
            }
        }
        let mut out = String::new();
        for line in &self.lines {
            match line {
                Line::Text(ink, text) => out += &format!("  {}\n", paint.paint(*ink, text)),
                Line::Cells(cells) => {
                    let last = cells.len().saturating_sub(1);
                    for (at, ((ink, text), width)) in cells.iter().zip(&widths).enumerate() {
                        out += "  ";
                        out += &paint.paint(*ink, text);
                        if at < last {
                            out.extend(std::iter::repeat_n(' ', width - text.chars().count()));
                        }
                    }
                    out.truncate(out.trim_end_matches(' ').len());
                    out.push('\n');
                }
            }
        }
        out
    }
}

/// Text from elsewhere (a backend's error, a site's name) on a terminal: without control characters.
pub(super) fn clean(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect()
}

/// `1 site`, `2 sites`, `9,950 sites`.
pub(super) fn count(n: usize, word: &str) -> String {
    format!("{} {word}{}", thousands(n), if n == 1 { "" } else { "s" })
}

/// `9950` as `9,950`.
pub(super) fn thousands(n: usize) -> String {
    let digits = n.to_string();
    let mut out = String::new();
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

/// The first names of a list and how many more there are.
pub(super) fn some_of(names: &[&str], shown_max: usize) -> String {
    let shown = names.iter().take(shown_max).copied().collect::<Vec<_>>().join(", ");
    match names.len().saturating_sub(shown_max) {
        0 => shown,
        more => format!("{shown} and {} more", thousands(more)),
    }
}

/// A text of a JSON object; empty where it is missing or something else.
pub(super) fn text<'a>(value: &'a Value, name: &str) -> &'a str {
    value.get(name).and_then(Value::as_str).unwrap_or_default()
}

/// A number of a JSON object; zero where it is missing or something else.
pub(super) fn number(value: &Value, name: &str) -> u64 {
    value.get(name).and_then(Value::as_u64).unwrap_or_default()
}

/// A list of a JSON object; empty where it is missing or something else.
pub(super) fn list<'a>(value: &'a Value, name: &str) -> &'a [Value] {
    value.get(name).and_then(Value::as_array).map_or(&[], Vec::as_slice)
}

/// The texts of a list of a JSON object.
pub(super) fn texts<'a>(value: &'a Value, name: &str) -> Vec<&'a str> {
    list(value, name).iter().filter_map(Value::as_str).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_as_wide_as_their_widest_cell_also_with_umlauts_and_colour() {
        let mut table = Table::new(&["NAME", "STATE"]);
        table.row([(Ink::Plain, "käse.example".into()), (Ink::Green, "up".into())]);
        table.row([(Ink::Plain, "b".into()), (Ink::Red, "down".into())]);
        table.text(Ink::Red, "because");
        let plain = table.render(Paint(false));
        assert_eq!(plain, "  NAME          STATE\n  käse.example  up\n  b             down\n  because\n");
        let coloured = table.render(Paint(true));
        assert!(coloured.contains("b             \x1b[31mdown\x1b[0m\n"), "{coloured:?}");
    }

    #[test]
    fn control_characters_never_reach_the_terminal() {
        let mut table = Table::default();
        table.row([(Ink::Plain, "a\x1b[2J\nb".into())]);
        assert_eq!(table.render(Paint(false)), "  a\u{fffd}[2J\u{fffd}b\n");
    }

    #[test]
    fn numbers_and_lists_read_well() {
        assert_eq!((count(1, "site"), count(0, "site")), ("1 site".into(), "0 sites".into()));
        assert_eq!(count(1_234_567, "site"), "1,234,567 sites");
        assert_eq!((thousands(999), thousands(1000)), ("999".into(), "1,000".into()));
        assert_eq!(some_of(&["a", "b", "c"], 2), "a, b and 1 more");
        assert_eq!(some_of(&["a", "b"], 2), "a, b");
    }
}
