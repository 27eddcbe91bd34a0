//! The CEL of Kubernetes' device selectors: the environment in which the API server checks the
//! expressions of `DeviceClass` and `ResourceClaim`, and in which the scheduler evaluates them.
//!
//! It is Kubernetes 1.36's, with the features that are on by default: types, functions, errors and their
//! texts, the estimated cost and the cost of an evaluation are those of the scheduler's own library. That
//! matters at the edges: an unknown domain is an empty map, an unknown id is an error and no mismatch,
//! and an error ends the attempt to schedule the pod.
//!
//! ```
//! use forebay_k8s_cel::{Attribute, Device, Program};
//!
//! let selector = r#"device.attributes["dra.net"].?rdma.orValue(false)"#;
//! let program = Program::compile(selector).expect("it is a selector");
//! let nic = Device::new("dra.net").attribute("rdma", Attribute::Bool(true));
//! assert_eq!(program.matches(&nic), Ok(true));
//! assert_eq!(program.matches(&Device::new("dra.net")), Ok(false));
//! assert!(program.estimated_cost() < 10);
//! ```
//!
//! Time is bounded by the cost; what CEL's costs do not see, lists that share parts, has a bound of its
//! own. Nothing here looks at a clock, a file or a socket.
//!
//! What differs from the scheduler: named time zones other than UTC are unknown here, messages (`a.B{}`)
//! cannot be written, and the texts of syntax errors name less of what was expected.

#![allow(
    clippy::rc_buffer,
    reason = "lists and maps that nobody else has grow in place"
)]

mod ast;
mod call_costs;
mod checker;
mod decls;
mod device;
mod estimate;
mod eval;
mod lexer;
mod library;
mod macros;
mod parser;
mod plan;
mod program;
mod source;
mod types;
mod validate;
mod value;

pub use device::{Attribute, Device};
pub use program::{COST_MAX, CompileError, EXPRESSION_BYTES_MAX, EvalError, Evaluation, Program};
