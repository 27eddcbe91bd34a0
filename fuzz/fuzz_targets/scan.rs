//! The scanner accepts what `serde_json` accepts and reads the same; forms never break the search.
#![no_main]

use forebay_dialect::{Api, multipart, scan, splice};
use libfuzzer_sys::fuzz_target;
use serde_json::Value;

fuzz_target!(|body: &[u8]| {
    let _ = multipart::fields("multipart/form-data; boundary=XX", body);
    let model = serde_json::from_slice::<Value>(body)
        .ok()
        .filter(Value::is_object);
    let scan = scan::scan(Api::ChatCompletions, body);
    let Some(model) = model else {
        assert!(scan.is_err(), "accepted what serde_json refuses");
        return;
    };
    let scan = scan.expect("serde_json accepts it");
    assert_eq!(scan.model_name(body).as_deref(), model["model"].as_str());
    assert_eq!(scan.stream, model["stream"].as_bool());
    assert_eq!(scan.limits.max_tokens, model["max_tokens"].as_u64());
    if let Some(span) = scan.model {
        let spliced = splice::replace_model(body, span, "a\"b");
        let spliced: Value = serde_json::from_slice(&spliced).expect("still valid");
        assert_eq!(spliced["model"], "a\"b");
    }
});
