//! The demo as a program: what it leaves behind.

mod support;

use std::fs::{self, File};
use std::path::Path;

use rustix::process::Signal;
use support::{Program, forebay, free_port, wait_for};

/// Starts a demo with these arguments, sends it `signal` once its output has `cue`, and gives the
/// exit status. Its folder must be there before, and gone after.
#[track_caller]
fn end_with(signal: Signal, cue: &str, arguments: &[&str]) -> i32 {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let (own, log) = (folder.path().join("own"), folder.path().join("log"));
    fs::create_dir(&own).expect("a writable folder");
    let mut demo = Program::start(
        forebay()
            .args(["demo", "--port", &free_port(1).to_string()])
            .args(["--admin", &format!("127.0.0.1:{}", free_port(1))])
            .args(arguments)
            .env("TMPDIR", &own)
            .stdout(File::create(&log).expect("a writable folder")),
    );
    wait_for(cue, || {
        fs::read_to_string(&log)
            .expect("text")
            .contains(cue)
            .then_some(())
    });
    assert_eq!(entries(&own), 1, "one folder with manifests");
    demo.signal(signal);
    let status = wait_for("the demo's end", || demo.ended());
    assert_eq!(entries(&own), 0, "nothing is left behind");
    status
}

fn entries(folder: &Path) -> usize {
    fs::read_dir(folder).expect("readable").count()
}

#[test]
fn a_signal_leaves_nothing_behind() {
    // Within the comparison, which lasts for minutes, and after one that is as short as can be.
    let short = ["--seconds", "5", "--rate", "8", "--time-scale", "0.1"];
    for signal in [Signal::TERM, Signal::INT] {
        assert_eq!(end_with(signal, "round-robin ", &[]), 1);
        assert_eq!(end_with(signal, "Serving on ", &short), 0);
    }
}
