//! Restoring the model's name: chunks do not matter, and a valid document changes in nothing else.
//! The first byte chooses form and cuts.
#![no_main]

use bytes::Bytes;
use forebay_dialect::ModelRestorer;
use libfuzzer_sys::fuzz_target;
use serde_json::Value;

fn restored(text: &[u8], events: bool, size: usize) -> Vec<u8> {
    let mut restorer = ModelRestorer::new("a/b", "asked", events);
    let mut out = Vec::new();
    for piece in text.chunks(size) {
        restorer.push(Bytes::copy_from_slice(piece), &mut out);
    }
    restorer.finish(&mut out);
    out.concat()
}

fn rename(value: Option<&mut Value>) {
    if let Some(value) = value
        && value == "a/b"
    {
        *value = "asked".into();
    }
}

fuzz_target!(|input: &[u8]| {
    let Some((&choice, text)) = input.split_first() else {
        return;
    };
    let events = choice & 1 == 0;
    let whole = restored(text, events, text.len().max(1));
    for size in [1, usize::from(choice >> 1) + 2] {
        assert_eq!(restored(text, events, size), whole);
    }
    // Keys are compared as spelled, so a document that spells them with escapes proves nothing.
    if events || text.contains(&b'\\') {
        return;
    }
    if let Ok(mut expected @ Value::Object(_)) = serde_json::from_slice::<Value>(text) {
        rename(expected.get_mut("model"));
        for envelope in ["response", "message"] {
            rename(expected.get_mut(envelope).and_then(|e| e.get_mut("model")));
        }
        let actual: Value = serde_json::from_slice(&whole).expect("still valid");
        assert_eq!(actual, expected);
    }
});
