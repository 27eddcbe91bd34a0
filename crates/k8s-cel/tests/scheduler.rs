//! Expressions with what Kubernetes makes of them, recorded (`tools/cel` says how) and replayed here.
//! `library.json` is what the scheduler's library says: the outcome, the text of errors, the estimated
//! cost and the cost of the evaluation. `scheduler.json` is what a real API server and scheduler say of
//! the same expressions, which is the outcome and the text.

use forebay_k8s_cel::{Attribute, COST_MAX, CompileError, Device, EvalError, Program};
use serde::Deserialize;
use std::collections::BTreeMap;

#[derive(Deserialize)]
struct Recording {
    devices: BTreeMap<String, DeviceFacts>,
    rows: Vec<Row>,
}

#[derive(Deserialize)]
struct DeviceFacts {
    driver: String,
    #[serde(default)]
    attributes: BTreeMap<String, AttributeFacts>,
    #[serde(default)]
    capacity: BTreeMap<String, CapacityFacts>,
}

#[derive(Deserialize)]
struct CapacityFacts {
    value: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "lowercase")]
enum AttributeFacts {
    Int(i64),
    Bool(bool),
    String(String),
    Version(String),
}

#[derive(Deserialize)]
struct Row {
    expression: String,
    device: String,
    outcome: String,
    #[serde(default)]
    error: Option<String>,
    #[serde(default)]
    estimated: Option<u64>,
    #[serde(default)]
    actual: Option<u64>,
    /// By the API server or in the pod's condition.
    #[serde(default)]
    said: Option<String>,
}

impl DeviceFacts {
    fn device(&self) -> Device {
        let mut device = Device::new(self.driver.as_str());
        for (name, facts) in &self.attributes {
            let value = match facts {
                AttributeFacts::Int(value) => Attribute::Int(*value),
                AttributeFacts::Bool(value) => Attribute::Bool(*value),
                AttributeFacts::String(value) => Attribute::String(value.clone()),
                AttributeFacts::Version(value) => Attribute::Version(value.clone()),
            };
            device = device.attribute(name, value);
        }
        for (name, capacity) in &self.capacity {
            device = device.capacity(name, &capacity.value);
        }
        device
    }
}

/// What this crate makes of a row, in the words of the recording.
fn answer(row: &Row, device: &Device) -> String {
    let program = match Program::compile_stored(&row.expression) {
        Ok(program) => program,
        Err(CompileError::Invalid(message)) => return format!("compile: {message}"),
        Err(other) => return other.to_string(),
    };
    let estimated = program.estimated_cost();
    if estimated > COST_MAX {
        return format!("expensive, estimated {estimated}");
    }
    let evaluation = program.evaluate(device);
    let outcome = match evaluation.matches {
        Ok(matches) => matches.to_string(),
        Err(EvalError::Failed(message) | EvalError::TooExpensive(message)) => {
            format!("runtime: {message}")
        }
        Err(other) => other.to_string(),
    };
    format!("{outcome}, estimated {estimated}, cost {}", evaluation.cost)
}

fn recorded(row: &Row) -> String {
    let error = row.error.as_deref().unwrap_or_default();
    let estimated = row.estimated.unwrap_or_default();
    match row.outcome.as_str() {
        "compile" => format!("compile: {error}"),
        "expensive" => format!("expensive, estimated {estimated}"),
        outcome => {
            let outcome = match outcome {
                "runtime" => format!("runtime: {error}"),
                other => other.to_owned(),
            };
            format!(
                "{outcome}, estimated {estimated}, cost {}",
                row.actual.unwrap_or_default()
            )
        }
    }
}

/// The outcome of a row here in the recording's word, and the end of what is told of it.
fn outcome(row: &Row, device: &Device) -> (&'static str, String) {
    match Program::compile(&row.expression) {
        Err(CompileError::TooExpensive { .. }) => {
            ("expensive", "too complex, exceeds cost limit".to_owned())
        }
        Err(refused) => ("compile", refused.to_string()),
        Ok(program) => match program.matches(device) {
            Ok(true) => ("true", String::new()),
            Ok(false) => ("false", String::new()),
            Err(error) => ("runtime", error.to_string()),
        },
    }
}

/// Compares each row with what is made of it here; how many there are.
fn check(recording: &str, differs: impl Fn(&Row, &Device) -> Option<String>) -> usize {
    let recording: Recording = serde_json::from_str(recording).expect("it was recorded as such");
    let devices: BTreeMap<&str, Device> = recording
        .devices
        .iter()
        .map(|(name, facts)| (name.as_str(), facts.device()))
        .collect();
    let different: Vec<String> = recording
        .rows
        .iter()
        .filter_map(|row| {
            let how = differs(row, &devices[row.device.as_str()])?;
            Some(format!("{}\n{how}", row.expression))
        })
        .collect();
    assert!(
        different.is_empty(),
        "{} of {} expressions differ:\n{}",
        different.len(),
        recording.rows.len(),
        different.join("\n")
    );
    recording.rows.len()
}

#[test]
fn expressions_mean_and_cost_what_they_do_to_the_schedulers_library() {
    let rows = check(include_str!("library.json"), |row, device| {
        let (expected, found) = (recorded(row), answer(row, device));
        (expected != found).then(|| format!("  the library: {expected}\n  here:        {found}"))
    });
    assert!(rows >= 250, "{rows}");
}

#[test]
fn expressions_mean_what_they_mean_to_a_real_control_plane() {
    /// What the scheduler says of an expression that it evaluated for too many devices in its time.
    const TIMED_OUT: &str = "timed out trying to allocate devices";
    let rows = check(include_str!("scheduler.json"), |row, device| {
        let said = row.said.as_deref().unwrap_or_default();
        if said.ends_with(TIMED_OUT) {
            return None;
        }
        let (outcome, text) = outcome(row, device);
        let same = outcome == row.outcome && said.ends_with(&text);
        (!same).then(|| {
            let expected = &row.outcome;
            format!("  the control plane: {expected}, {said}\n  here: {outcome}, {text}")
        })
    });
    assert!(rows >= 250, "{rows}");
}
