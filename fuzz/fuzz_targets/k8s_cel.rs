//! Whatever somebody writes into a selector: it is refused or evaluated, within the cost that it may have.
#![no_main]

use forebay_k8s_cel::{Attribute, COST_MAX, Device, EXPRESSION_BYTES_MAX, EvalError, Program};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: &str| {
    let device = Device::new("dra.example.com")
        .attribute("kind", Attribute::String("rdma".to_owned()))
        .attribute("numa", Attribute::Int(1))
        .attribute("rdma", Attribute::Bool(true))
        .attribute("ver", Attribute::Version("1.10.2-rc.1+b7".to_owned()))
        .capacity("memory", "80Gi");
    let Ok(program) = Program::compile(input) else {
        return;
    };
    assert!(input.len() <= EXPRESSION_BYTES_MAX);
    assert!(program.estimated_cost() <= COST_MAX);
    let first = program.evaluate(&device);
    if !matches!(first.matches, Err(EvalError::TooExpensive(_))) {
        assert!(first.cost <= COST_MAX, "{}", first.cost);
    }
    assert_eq!(program.evaluate(&device), first, "the second look differs");
});
