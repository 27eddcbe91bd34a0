//! Chores of the repository: one entry for tests, benchmarks, calibration and linting.
fn main() {}
