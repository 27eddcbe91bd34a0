//! Faults with their places, and how they are printed: with the line and a mark below it.

/// What is wrong, and where.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Fault {
    /// In bytes from the start of the expression.
    pub(crate) at: usize,
    pub(crate) message: String,
}

impl Fault {
    pub(crate) fn new(at: usize, message: impl Into<String>) -> Fault {
        let message = message.into();
        Fault { at, message }
    }

    pub(crate) fn syntax(at: usize, message: &str) -> Fault {
        Fault::new(at, format!("Syntax error: {message}"))
    }
}

/// Faults that are printed; the rest is counted.
const FAULTS_SHOWN_MAX: usize = 100;

/// All faults, each with its line of the expression and a mark below the place.
pub(crate) fn render(source: &str, faults: &[Fault]) -> String {
    let mut placed: Vec<((usize, usize), &Fault)> = faults
        .iter()
        .map(|fault| (place(source, fault.at), fault))
        .collect();
    placed.sort_by_key(|(place, _)| *place);
    let mut shown: Vec<String> = placed
        .iter()
        .take(FAULTS_SHOWN_MAX)
        .map(|((line, column), fault)| {
            let text = source.split('\n').nth(*line).unwrap_or_default();
            format!(
                "ERROR: <input>:{}:{}: {}\n | {}\n | {}^",
                line + 1,
                column + 1,
                fault.message,
                text.replace('\t', " "),
                ".".repeat(*column)
            )
        })
        .collect();
    if faults.len() > FAULTS_SHOWN_MAX {
        let more = faults.len() - FAULTS_SHOWN_MAX;
        shown.push(format!("{more} more errors were truncated"));
    }
    shown.join("\n")
}

/// Line and column, in characters, both from zero.
fn place(source: &str, at: usize) -> (usize, usize) {
    let before = &source[..source.floor_char_boundary(at.min(source.len()))];
    let line_start = before.rfind('\n').map_or(0, |newline| newline + 1);
    let column = before[line_start..].chars().count();
    (before.matches('\n').count(), column)
}
