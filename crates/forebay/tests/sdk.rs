//! The official OpenAI and Anthropic clients against the gateway: `tests-sdk/run.py` holds the
//! checks, this starts what it talks to.

mod support;

use std::process::Command;

use support::{MODEL, World, root, skip};

#[test]
fn official_clients_work_through_the_gateway() {
    let Some(python) = std::env::var_os("FOREBAY_SDK_PYTHON") else {
        let reason = std::env::var("FOREBAY_SDK_SKIP");
        let reason = reason.unwrap_or_else(|_| {
            "FOREBAY_SDK_PYTHON is not set; `cargo xtask test` prepares it".to_owned()
        });
        return skip("sdk", &reason);
    };
    let world = World::start(2);
    let output = Command::new(python)
        .arg(root().join("tests-sdk/run.py"))
        .env("BASE_URL", format!("http://{}", world.address()))
        .env("MODEL", MODEL)
        .output()
        .expect("the prepared Python starts");
    let text = String::from_utf8_lossy(&output.stdout);
    println!("{text}");
    assert!(
        output.status.success(),
        "{text}{}",
        String::from_utf8_lossy(&output.stderr)
    );
}
