//! Token for token what `tokenizers` and `jinja2` make of requests, for a tokenizer that is trained
//! for the test and for a model's real one: `tests-sdk/tokens.py` makes them up.

#![expect(clippy::disallowed_methods, reason = "a test may read files")]

use std::collections::HashMap;
use std::io::Write as _;
use std::path::Path;
use std::process::Command;

use forebay_tokenize::{Api, Files, Tokenizer};
use serde::Deserialize;

#[derive(Deserialize)]
struct Case {
    folder: String,
    api: String,
    body: Box<serde_json::value::RawValue>,
    ids: Vec<u32>,
}

fn skip(reason: &str) {
    eprintln!("tokens: skipped: {reason}");
    if let Some(path) = std::env::var_os("FOREBAY_SKIPS") {
        let file = std::fs::OpenOptions::new()
            .append(true)
            .create(true)
            .open(path);
        let written = file.and_then(|mut file| writeln!(file, "tokens: {reason}"));
        written.expect("the list of skips can be written");
    }
}

fn load(folder: &str) -> Tokenizer {
    let file = |name: &str| std::fs::read(Path::new(folder).join(name)).expect("a file");
    let (tokenizer, config) = (file("tokenizer.json"), file("tokenizer_config.json"));
    let files = Files {
        tokenizer: &tokenizer,
        config: Some(&config),
        template: None,
    };
    Tokenizer::of_files(files).expect("a tokenizer")
}

#[test]
fn tokens_are_those_of_the_reference() {
    let Some(python) = std::env::var_os("FOREBAY_SDK_PYTHON") else {
        let reason = std::env::var("FOREBAY_SDK_SKIP");
        return skip(&reason.unwrap_or_else(|_| {
            "FOREBAY_SDK_PYTHON is not set; `cargo xtask test` prepares it".to_owned()
        }));
    };
    let folder = tempfile::tempdir().expect("a temporary folder");
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests-sdk/tokens.py");
    let output = Command::new(python)
        .arg(script)
        .arg(folder.path())
        .output()
        .expect("the prepared Python starts");
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{errors}");
    let mut tokenizers: HashMap<String, Tokenizer> = HashMap::new();
    let mut compared = 0;
    for line in String::from_utf8_lossy(&output.stdout).lines() {
        let case: Case = serde_json::from_str(line).expect("a case");
        let tokenizer = tokenizers
            .entry(case.folder.clone())
            .or_insert_with(|| load(&case.folder));
        let api = match case.api.as_str() {
            "chat" => Api::Chat,
            _ => Api::Completions,
        };
        let body = case.body.get();
        let tokens = tokenizer.tokens(api, body.as_bytes(), 0);
        assert_eq!(
            tokens.as_ref(),
            Ok(&case.ids),
            "{} of {}",
            case.api,
            case.folder
        );
        compared += 1;
    }
    assert!(compared > 100, "{compared} cases");
}
