//! The `forebay` program: flags, roles and wiring.
fn main() {}
