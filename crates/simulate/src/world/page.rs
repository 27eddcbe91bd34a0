//! A comparison as a Markdown page.

use std::fmt::Write as _;

use super::compare::{Cell, Comparison};
use super::outcome::{Predicted, Score};

/// Ours counts as best within this share of the best.
const MARGIN: f64 = 0.02;

/// One column of the table.
struct Column {
    name: &'static str,
    value: fn(&Score) -> f64,
    decimals: usize,
    less_is_better: bool,
}

const COLUMNS: [Column; 5] = [
    Column {
        name: "TTFT p50 ms",
        value: |s| s.ttft_p50_ms,
        decimals: 0,
        less_is_better: true,
    },
    Column {
        name: "TTFT p95 ms",
        value: |s| s.ttft_p95_ms,
        decimals: 0,
        less_is_better: true,
    },
    Column {
        name: "TPOT ms",
        value: |s| s.tpot_ms,
        decimals: 1,
        less_is_better: true,
    },
    Column {
        name: "goodput/s",
        value: |s| s.goodput_per_s,
        decimals: 1,
        less_is_better: false,
    },
    Column {
        name: "hit rate %",
        value: |s| s.hit_rate * 100.0,
        decimals: 1,
        less_is_better: false,
    },
];

/// Mean over seeds and half of what lies between the lowest and the highest.
fn spread(cell: &Cell, column: &Column) -> (f64, f64) {
    let values = cell.scores.iter().map(column.value);
    let (low, high) = values.clone().fold((f64::MAX, f64::MIN), |(low, high), v| {
        (low.min(v), high.max(v))
    });
    let mean = values.sum::<f64>() / cell.scores.len().max(1) as f64;
    (mean, (high - low) / 2.0)
}

/// How far `value` is behind the best, as a share of it; 0 or less if it is the best.
fn behind(column: &Column, value: f64, best: f64) -> f64 {
    if best == 0.0 {
        return 0.0;
    }
    if column.less_is_better {
        value / best - 1.0
    } else {
        1.0 - value / best
    }
}

fn best_of(cells: &[&Cell], column: &Column) -> f64 {
    let means = cells.iter().map(|cell| spread(cell, column).0);
    if column.less_is_better {
        means.fold(f64::MAX, f64::min)
    } else {
        means.fold(f64::MIN, f64::max)
    }
}

pub(super) fn render(all: &Comparison) -> String {
    let mut page = String::new();
    for (at, scenario) in all.scenarios.iter().enumerate() {
        let _ = writeln!(
            page,
            "### {}\n\n{}. SLO: first token within {:.0} ms, further ones {:.0} ms apart on average.\n",
            scenario.name, scenario.about, scenario.slo.ttft_ms, scenario.slo.tpot_ms
        );
        for (load, (name, per_s)) in scenario.loads.iter().enumerate() {
            let of = |cell: &&Cell| cell.scenario == at && cell.load == load;
            let cells: Vec<&Cell> = all.cells.iter().filter(of).collect();
            let requests = cells
                .iter()
                .flat_map(|cell| &cell.scores)
                .map(|score| f64::from(score.requests));
            let runs = cells.iter().map(|cell| cell.scores.len()).sum::<usize>();
            let requests = requests.sum::<f64>() / runs.max(1) as f64;
            let _ = writeln!(
                page,
                "**{name}**: {per_s} conversations/s, {:.1} requests/s (SIMULATED)\n",
                requests / scenario.measured_s as f64
            );
            table(&mut page, all, &cells);
        }
    }
    page
}

/// Prediction errors of the last policy, and the share of answers below what 90 % should be below.
pub(super) fn accuracy(all: &Comparison) -> String {
    let mut page = String::from(
        "| world | load | TTFT error: median | mean | below p90 | TPOT error: median | mean | below p90 |\n\
         |---|---|---:|---:|---:|---:|---:|---:|\n",
    );
    let ours = all.policies.len().saturating_sub(1);
    for cell in all.cells.iter().filter(|cell| cell.policy == ours) {
        let scenario = &all.scenarios[cell.scenario];
        let _ = write!(
            page,
            "| {} | {} |",
            scenario.name, scenario.loads[cell.load].0
        );
        for kind in [|s: &Score| s.ttft_predicted, |s: &Score| s.tpot_predicted] {
            for value in [
                |p: Predicted| p.error_p50,
                |p: Predicted| p.mape,
                |p: Predicted| p.coverage,
            ] {
                let sum: f64 = cell.scores.iter().map(|score| value(kind(score))).sum();
                let mean = 100.0 * sum / cell.scores.len().max(1) as f64;
                let _ = write!(page, " {mean:.0} % |");
            }
        }
        page.push('\n');
    }
    page
}

fn table(page: &mut String, all: &Comparison, cells: &[&Cell]) {
    page.push_str("| policy |");
    COLUMNS.iter().for_each(|column| {
        let _ = write!(page, " {} |", column.name);
    });
    page.push_str(" refused % |\n|---|");
    page.push_str(&"---:|".repeat(COLUMNS.len() + 1));
    page.push('\n');
    for cell in cells {
        let _ = write!(page, "| {} |", all.policies[cell.policy].0);
        for column in &COLUMNS {
            let (mean, half) = spread(cell, column);
            let best = behind(column, mean, best_of(cells, column)) <= MARGIN;
            let mark = if best { "**" } else { "" };
            let decimals = column.decimals;
            let _ = write!(page, " {mark}{mean:.decimals$}{mark} ± {half:.decimals$} |");
        }
        let sum = |of: fn(&Score) -> u32| cell.scores.iter().map(|s| f64::from(of(s))).sum::<f64>();
        let refused = 100.0 * sum(|s| s.refused) / sum(|s| s.requests).max(1.0);
        let _ = writeln!(page, " {refused:.1} |");
    }
    page.push('\n');
}

/// Where the last policy is not the best or within the margin of it: scenario, load, column, and
/// how far it is behind whom.
pub(super) fn shortfalls(all: &Comparison) -> Vec<String> {
    let mut lines = Vec::new();
    let ours = all.policies.len().saturating_sub(1);
    for (at, scenario) in all.scenarios.iter().enumerate() {
        for (load, (name, _)) in scenario.loads.iter().enumerate() {
            let of = |cell: &&Cell| cell.scenario == at && cell.load == load;
            let cells: Vec<&Cell> = all.cells.iter().filter(of).collect();
            let Some(own) = cells.iter().find(|cell| cell.policy == ours) else {
                continue;
            };
            for column in &COLUMNS {
                let best = best_of(&cells, column);
                let (mean, half) = spread(own, column);
                let behind = behind(column, mean, best);
                if behind <= MARGIN {
                    continue;
                }
                let whose = cells.iter().find(|cell| spread(cell, column).0 == best);
                let whose = whose.map_or("", |cell| &all.policies[cell.policy].0);
                let decimals = column.decimals;
                lines.push(format!(
                    "{}, {name}: {} {mean:.decimals$} ± {half:.decimals$}, {:.1} % behind {whose} ({best:.decimals$})",
                    scenario.name, column.name, behind * 100.0
                ));
            }
        }
    }
    lines
}
