//! Expressions, compiled: what the API server says of them and what the scheduler gets from them.

use crate::checker::{Checked, check};
use crate::device::Device;
use crate::estimate::estimate;
use crate::eval::evaluate;
use crate::parser::parse;
use crate::plan::{Plan, plan};
use crate::source::{Fault, render};
use crate::types::Type;
use crate::validate::validate;
use crate::value::{Failure, Outcome, Value};
use std::fmt;

/// Bytes of an expression. The API server refuses longer ones.
pub const EXPRESSION_BYTES_MAX: usize = 10 * 1024;

/// What an expression may cost. The API server refuses those that are estimated higher; evaluation that
/// comes to more ends with an error. A unit is about one look-up; a million take about 0.1 s.
pub const COST_MAX: u64 = 1_000_000;

/// A compiled expression.
#[derive(Debug)]
pub struct Program {
    plan: Plan,
    estimated_cost: u64,
}

/// Why an expression is refused.
#[derive(Clone, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum CompileError {
    /// It has more than [`EXPRESSION_BYTES_MAX`] bytes.
    TooLong {
        /// How many it has.
        bytes: usize,
    },
    /// It is no expression, or not one of a boolean; the text is that of the API server.
    Invalid(String),
    /// It may cost more than [`COST_MAX`].
    TooExpensive {
        /// What it may cost.
        estimated: u64,
    },
}

impl fmt::Display for CompileError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            CompileError::TooLong { bytes } => write!(
                f,
                "expression of {bytes} bytes is longer than {EXPRESSION_BYTES_MAX}: split it into several selectors"
            ),
            CompileError::Invalid(message) => f.write_str(message),
            CompileError::TooExpensive { estimated } => write!(
                f,
                "expression may cost {estimated}, the limit is {COST_MAX}: bound the sizes of what it loops over"
            ),
        }
    }
}

impl std::error::Error for CompileError {}

/// Why an expression says neither yes nor no of a device. For the scheduler this is no mismatch: it ends
/// the attempt to schedule the pod.
#[derive(Clone, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum EvalError {
    /// An error of the expression, or of the device; the text is that of the scheduler.
    Failed(String),
    /// It cost more than [`COST_MAX`], or more than its cost says: its elements are shared so often that
    /// walking through them would take too long.
    TooExpensive(String),
}

impl fmt::Display for EvalError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            EvalError::Failed(message) | EvalError::TooExpensive(message) => f.write_str(message),
        }
    }
}

impl std::error::Error for EvalError {}

/// What became of an evaluation.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Evaluation {
    /// Whether the device matches.
    pub matches: Result<bool, EvalError>,
    /// What it cost, in CEL's units.
    pub cost: u64,
}

impl Program {
    /// Compiles an expression as the API server takes it: of bounded length, of the right types, and
    /// estimated to cost no more than [`COST_MAX`].
    ///
    /// # Errors
    ///
    /// What is wrong with the expression, with its place.
    pub fn compile(text: &str) -> Result<Program, CompileError> {
        let bytes = text.len();
        if bytes > EXPRESSION_BYTES_MAX {
            return Err(CompileError::TooLong { bytes });
        }
        let program = Program::compile_stored(text)?;
        let estimated = program.estimated_cost;
        if estimated > COST_MAX {
            return Err(CompileError::TooExpensive { estimated });
        }
        Ok(program)
    }

    /// Compiles an expression that an API server has taken already, whose estimate may have been another.
    /// The scheduler does this: only what evaluation really costs counts for it. Length is bounded all
    /// the same.
    ///
    /// # Errors
    ///
    /// What is wrong with the expression, with its place.
    pub fn compile_stored(text: &str) -> Result<Program, CompileError> {
        let bytes = text.len();
        if bytes > EXPRESSION_BYTES_MAX {
            return Err(CompileError::TooLong { bytes });
        }
        compile(text).map_err(CompileError::Invalid)
    }

    /// The most that the expression may cost, for devices within the limits of ResourceSlices.
    pub fn estimated_cost(&self) -> u64 {
        self.estimated_cost
    }

    /// Whether a device matches.
    ///
    /// # Errors
    ///
    /// The error of the expression for this device: a key that is not there, a cost that is too high.
    pub fn matches(&self, device: &Device) -> Result<bool, EvalError> {
        self.evaluate(device).matches
    }

    /// Whether a device matches, and what it cost to find out.
    pub fn evaluate(&self, device: &Device) -> Evaluation {
        if let Some(broken) = device.broken() {
            let matches = Err(EvalError::Failed(broken.to_owned()));
            return Evaluation { matches, cost: 0 };
        }
        let (outcome, cost) = evaluate(&self.plan, &device.value(), COST_MAX);
        let matches = to_bool(outcome);
        Evaluation { matches, cost }
    }
}

fn compile(text: &str) -> Result<Program, String> {
    let failed = |faults: &[Fault]| format!("compilation failed: {}", render(text, faults));
    let (mut expr, nodes) = parse(text).map_err(|fault| failed(&[fault]))?;
    let checked = check(&mut expr, nodes).map_err(|faults| failed(&faults))?;
    let faults = validate(&expr, &checked);
    if !faults.is_empty() {
        return Err(failed(&faults));
    }
    check_result(&checked.types[expr.id])?;
    let plan =
        plan(&expr, &checked).map_err(|error| format!("program instantiation failed: {error}"))?;
    let estimated_cost = estimated(&expr, &checked);
    Ok(Program {
        plan,
        estimated_cost,
    })
}

fn estimated(expr: &crate::ast::Expr, checked: &Checked) -> u64 {
    estimate(expr, checked).max
}

/// Only booleans match, and attributes, which may be such.
fn check_result(t: &Type) -> Result<(), String> {
    match t {
        Type::Bool | Type::Any => Ok(()),
        other => Err(format!(
            "must evaluate to bool or the unknown type, not {other}"
        )),
    }
}

fn to_bool(outcome: Outcome) -> Result<bool, EvalError> {
    let value = match outcome {
        Ok(value) => value,
        Err(Failure::Error(message)) => return Err(EvalError::Failed(message)),
        Err(Failure::Limit(message)) => return Err(EvalError::TooExpensive(message.to_owned())),
    };
    let why = match &value {
        Value::Bool(value) => return Ok(*value),
        Value::Str(_) => "unsupported native conversion from string to 'bool'",
        Value::Int(_) => "unsupported type conversion from 'int' to bool",
        Value::Semver(_) => "type conversion error from 'Semver' to 'bool'",
        _ => "unsupported conversion",
    };
    let name = value.type_name();
    Err(EvalError::Failed(format!(
        "CEL result of type {name} could not be converted to bool: {why}"
    )))
}
