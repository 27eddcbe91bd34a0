//! What lies below `deploy`, held against a real API server: it takes every manifest, the rules of
//! the definitions refuse what they should, and the rights of the ServiceAccount are enough and no
//! more.
//!
//! Needs `FOREBAY_TEST_KUBECONFIG`, as `cargo xtask test` sets it, and Go's module of the Gateway API
//! with its definitions; a test that cannot run names itself as skipped.

mod cluster;
mod manifests;
mod rights;
mod rules;
