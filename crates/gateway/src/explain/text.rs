//! An [`Entry`] as text for people, as `forebay explain` prints it. What it says is decided in
//! [`super`].

use std::fmt::Write as _;

use super::{Candidate, Entry, Picked};

/// An entry for people: what happened, then a table of the endpoints with what each scorer added.
#[must_use]
pub fn render_text(entry: &Entry) -> String {
    let mut text = String::with_capacity(1024);
    let line = &mut text;
    let ends = if entry.end == "complete" {
        String::new()
    } else {
        format!(", {}", entry.end)
    };
    let _infallible = writeln!(
        line,
        "{}  {}  {} -> {}{}{ends}",
        entry.time,
        entry.id,
        entry.request.escape_debug(),
        entry.status,
        entry
            .reason
            .as_deref()
            .map_or_else(String::new, |r| format!(" {r}")),
    );
    render_facts(line, entry);
    if let Some(queue) = &entry.queue {
        let _infallible = writeln!(
            line,
            "  queued at priority {} behind {}, pool {:.2} full: {} after {:.1} ms",
            entry.priority, queue.ahead, queue.saturation, queue.end, queue.wait_ms
        );
    }
    if let Some(outside) = &entry.picker {
        outside.render(line, entry.pick.is_some());
    }
    for (at, attempt) in entry.tries.iter().enumerate() {
        let outcome = attempt.failure.as_deref().unwrap_or("answered");
        let _infallible = writeln!(line, "  try {}: {}: {outcome}", at + 1, attempt.endpoint);
    }
    match (&entry.pick, &entry.picker) {
        (Some(pick), _) => render_pick(line, pick, entry),
        (None, Some(outside)) if !outside.endpoints.is_empty() => {}
        (None, _) => line.push_str("  no endpoint was picked\n"),
    }
    text
}

fn render_facts(text: &mut String, entry: &Entry) {
    let mut facts = Vec::new();
    let mut fact = |key: &str, value: Option<String>| {
        facts.extend(value.map(|value| format!("{key} {value}")));
    };
    fact("route", entry.route.clone());
    fact("pool", entry.pool.clone());
    fact(
        "model",
        entry.model.as_deref().map(|m| m.escape_debug().to_string()),
    );
    fact("served as", entry.model_served.clone());
    fact(
        "priority",
        (entry.priority != 0).then(|| entry.priority.to_string()),
    );
    fact("trace", entry.trace_id.clone());
    if !facts.is_empty() {
        let _infallible = writeln!(text, "  {}", facts.join(", "));
    }
    let mut times = vec![format!("took {:.1} ms", entry.duration_ms)];
    times.extend(
        entry
            .ttft_ms
            .map(|ms| format!("first token after {ms:.1} ms")),
    );
    times.extend(entry.pick_us.map(|us| format!("pick {us} µs")));
    if let (Some(input), Some(output)) = (entry.input_tokens, entry.output_tokens) {
        let cached = entry
            .cached_tokens
            .map_or_else(String::new, |c| format!(" ({c} cached)"));
        times.push(format!("{input} tokens in{cached}, {output} out"));
    }
    let _infallible = writeln!(text, "  {}", times.join(", "));
}

fn render_pick(text: &mut String, pick: &Picked, entry: &Entry) {
    let _infallible = writeln!(
        text,
        "  picked by: {} ({} candidates, prompt of {} blocks)",
        pick.why, pick.candidates, pick.prompt_blocks
    );
    for note in &pick.notes {
        let _infallible = writeln!(text, "  note: {note}");
    }
    let mut rows = vec![header(pick)];
    rows.extend(
        pick.endpoints
            .iter()
            .map(|candidate| row(candidate, pick, entry)),
    );
    table(text, &rows);
}

fn header(pick: &Picked) -> Vec<String> {
    let mut cells = vec!["endpoint".to_owned(), "total".to_owned()];
    cells.extend(
        pick.scorers
            .iter()
            .map(|s| format!("{}×{}", s.scorer, s.weight)),
    );
    cells.extend(["hit".to_owned(), "prefill ms".to_owned(), String::new()]);
    cells
}

/// Scores are shown with their weight, so that a row adds up to its total.
fn row(candidate: &Candidate, pick: &Picked, entry: &Entry) -> Vec<String> {
    let tried = entry
        .tries
        .iter()
        .position(|t| t.endpoint == candidate.endpoint);
    let out = candidate.excluded.is_some();
    let number = |shown: bool, text: String| if shown { text } else { "-".to_owned() };
    let mut cells = vec![candidate.endpoint.clone()];
    cells.push(number(!out, format!("{:.3}", candidate.total)));
    cells.extend(pick.scorers.iter().enumerate().map(|(at, scorer)| {
        let score = candidate.scores.get(at).copied();
        number(
            score.is_some(),
            format!("{:.3}", score.unwrap_or(0.0) * scorer.weight),
        )
    }));
    // What is known by more or less than what was sent says so.
    let by = match candidate.knowledge.as_str() {
        "" | "sent" => String::new(),
        other => format!(" by {other}"),
    };
    cells.push(number(!out, format!("{}{by}", candidate.hit_blocks)));
    cells.push(number(
        !out && candidate.prefill_ms.is_some(),
        format!("{:.1}", candidate.prefill_ms.unwrap_or_default()),
    ));
    cells.push(match (tried, &candidate.excluded) {
        (Some(at), None) => format!("<- try {}", at + 1),
        (Some(at), Some(why)) => format!("<- try {}; {why}", at + 1),
        (None, Some(why)) => why.clone(),
        (None, None) => String::new(),
    });
    cells
}

/// Columns as wide as their widest cell; the first and last to the left, numbers to the right.
fn table(text: &mut String, rows: &[Vec<String>]) {
    let columns = rows.first().map_or(0, Vec::len);
    let width = |column: usize| {
        rows.iter()
            .map(|row| row[column].chars().count())
            .max()
            .unwrap_or(0)
    };
    let widths: Vec<usize> = (0..columns).map(width).collect();
    for row in rows {
        let mut line = String::from("   ");
        for (column, (cell, width)) in row.iter().zip(&widths).enumerate() {
            let _infallible = if column == 0 || column + 1 == columns {
                write!(line, " {cell:<width$}")
            } else {
                write!(line, " {cell:>width$}")
            };
        }
        text.push_str(line.trim_end());
        text.push('\n');
    }
}
