//! Tests of the scanner: literals for what it finds, `serde_json` as the model of what is valid.

use super::*;
use proptest::prelude::*;
use serde_json::{Value, json};

/// What the scan found, as JSON, so that a test can state it whole.
fn found(api: Api, body: &[u8]) -> Value {
    let scan = scan(api, body).expect("the test's body is valid");
    let text = |text: Option<Text>| text.map(|text| text.value(body).into_owned());
    let prompt: Vec<String> = scan
        .prompt_spans()
        .map(|span| String::from_utf8(span.of(body).to_vec()).unwrap())
        .collect();
    let all = json!({
        "model": text(scan.model), "stream": scan.stream, "limit": scan.limits.tokens(),
        "n": scan.choices, "user": text(scan.user), "salt": text(scan.cache_salt),
        "cache_key": text(scan.prompt_cache_key), "previous": text(scan.previous_response),
        "conversation": text(scan.conversation), "usage": scan.include_usage,
        "tools": scan.has_tools.then_some(true),
        "prompt": (!prompt.is_empty()).then_some(prompt),
    });
    let Value::Object(all) = all else {
        unreachable!("made as an object")
    };
    all.into_iter()
        .filter(|(_, value)| !value.is_null())
        .collect()
}

fn check(api: Api, body: &str, expected: Value) {
    assert_eq!(found(api, body.as_bytes()), expected, "{body}");
}

fn check_fault(body: impl AsRef<[u8]>, offset: usize, what: &'static str) {
    let body = body.as_ref();
    assert_eq!(
        scan(Api::ChatCompletions, body),
        Err(ScanError { offset, what }),
        "{}",
        String::from_utf8_lossy(body)
    );
    assert!(serde_json::from_slice::<serde_json::Map<String, Value>>(body).is_err());
}

#[test]
fn chat_gives_model_limits_and_prompt() {
    check(
        Api::ChatCompletions,
        r#"{"messages": [{"role":"user","content":"hi"}], "max_completion_tokens": 9, "max_tokens": 7,
            "stream_options": {"include_usage": true}, "user": "u", "n": 2, "stream": true,
            "cache_salt": "s", "prompt_cache_key": "k", "model": "tiny"}"#,
        json!({"model": "tiny", "stream": true, "limit": 9, "n": 2, "user": "u", "salt": "s",
            "cache_key": "k", "usage": true,
            "prompt": [r#"[{"role":"user","content":"hi"}]"#]}),
    );
}

#[test]
fn tools_and_system_come_before_messages_whatever_the_order_of_keys() {
    for body in [
        r#"{"messages":[1],"system":"s","tools":[{}]}"#,
        r#"{"tools":[{}],"messages":[1],"system":"s"}"#,
    ] {
        check(
            Api::Messages,
            body,
            json!({"tools": true, "prompt": ["[{}]", "\"s\"", "[1]"]}),
        );
    }
}

#[test]
fn each_api_has_its_own_prompt() {
    check(
        Api::Responses,
        r#"{"input":"q","instructions":"i","previous_response_id":"r1","max_output_tokens":5,
            "conversation":{"id":"c1","x":[1]}}"#,
        json!({"previous": "r1", "conversation": "c1", "limit": 5, "prompt": ["\"i\"", "\"q\""]}),
    );
    check(
        Api::SglangGenerate,
        r#"{"text":"t","input":"no","sampling_params":{"max_new_tokens":3,"n":4,"stop":["a"]}}"#,
        json!({"limit": 3, "n": 4, "prompt": ["\"t\""]}),
    );
    check(
        Api::VllmGenerate,
        r#"{"token_ids":[1,2],"sampling_params":{"max_tokens":8}}"#,
        json!({"limit": 8, "prompt": ["[1,2]"]}),
    );
    check(
        Api::Rerank,
        r#"{"documents":["a"],"query":"q"}"#,
        json!({"prompt": ["\"q\"", "[\"a\"]"]}),
    );
    check(
        Api::Messages,
        r#"{"metadata":{"user_id":"u9"},"conversation":"c"}"#,
        json!({"user": "u9", "conversation": "c"}),
    );
}

#[test]
fn the_last_of_equal_keys_counts_even_if_it_has_another_type() {
    check(
        Api::ChatCompletions,
        r#"{"model":"a","model":"b","stream":true,"stream":"yes","n":1,"n":-1,
            "stream_options":{"include_usage":true},"stream_options":null,"tools":[1],"tools":[ ]}"#,
        json!({"model": "b", "prompt": ["[ ]"]}),
    );
}

#[test]
fn nested_members_of_the_same_name_do_not_count() {
    check(
        Api::ChatCompletions,
        r#"{"x":{"model":"no","stream":true},"y":[{"model":"no"}],"model":"yes"}"#,
        json!({"model": "yes"}),
    );
}

#[test]
fn escapes_are_read_in_keys_and_values() {
    check(
        Api::ChatCompletions,
        r#"{"mod\u0065l":"a\/b \ud83d\ude00 \"c\""}"#,
        json!({"model": "a/b \u{1f600} \"c\""}),
    );
}

#[test]
fn numbers_that_are_no_counts_are_no_limits() {
    for number in [
        "-1",
        "1.0",
        "1e3",
        "18446744073709551616",
        "-0",
        "null",
        "\"5\"",
    ] {
        check(
            Api::ChatCompletions,
            &format!("{{\"max_tokens\":{number}}}"),
            json!({}),
        );
    }
}

#[test]
fn token_ids_are_counted_and_text_is_estimated() {
    let estimate = |api, body: &str| {
        scan(api, body.as_bytes())
            .unwrap()
            .prompt_tokens_estimate(body.as_bytes())
    };
    assert_eq!(estimate(Api::VllmGenerate, r#"{"token_ids":[5,6,7]}"#), 3);
    assert_eq!(estimate(Api::Completions, r#"{"prompt":[[1,2],[ 3]]}"#), 3);
    assert_eq!(estimate(Api::Completions, r#"{"prompt":"12345678"}"#), 3);
    assert_eq!(estimate(Api::Completions, r#"{"prompt":[]}"#), 1);
    assert_eq!(estimate(Api::Completions, "{}"), 0);
}

#[test]
fn faults_are_named_with_their_place() {
    check_fault("", 0, "expected an object");
    check_fault("[1]", 0, "expected an object");
    check_fault("\u{feff}{}", 0, "expected an object");
    check_fault("{} x", 3, "expected the end");
    check_fault(r#"{"a":1,}"#, 7, "expected a key in quotes");
    check_fault(r#"{"a" 1}"#, 5, "expected `:`");
    check_fault(r#"{"a":tru}"#, 5, "expected a value");
    check_fault(r#"{"a":[1 2]}"#, 8, "expected `,` or `]`");
    check_fault(r#"{"a":[1,]}"#, 8, "expected a value");
    check_fault(r#"{"a":[1,2,]}"#, 10, "expected a value");
    check_fault(r#"{"a":[1,02,3]}"#, 9, "expected `,` or `]`");
    check_fault(r#"{"a":{"b":1]}"#, 11, "expected `,` or `}`");
    check_fault(r#"{"a":01}"#, 6, "expected `,` or `}`");
    check_fault(r#"{"a":1.}"#, 7, "expected a digit");
    check_fault(r#"{"a":1e999}"#, 5, "number out of range");
    check_fault("{\"a\":\"x\ny\"}", 7, "control character in a string");
    check_fault(r#"{"a":"\x"}"#, 6, "unknown escape");
    check_fault(r#"{"a":"\ud800 "}"#, 6, "lone surrogate");
    check_fault(r#"{"a":"\udc00"}"#, 6, "lone surrogate");
    check_fault(r#"{"a":"\u12g4"}"#, 6, "expected `\\u` and four hex digits");
    check_fault(b"{\"a\":\"ok\xff\"}", 8, "invalid UTF-8");
    check_fault(b"{\"a\":\"\xc3", 6, "invalid UTF-8");
    check_fault(r#"{"a":"b"#, 7, "string without an end");
}

#[test]
fn the_deepest_document_is_the_deepest_of_serde_json() {
    for depth in [
        DEPTH_MAX as usize - 2,
        DEPTH_MAX as usize - 1,
        DEPTH_MAX as usize,
    ] {
        let body = format!("{{\"a\":{}{}}}", "[".repeat(depth), "]".repeat(depth));
        agree(body.as_bytes());
        assert_eq!(
            scan(Api::Other, body.as_bytes()).is_ok(),
            depth < DEPTH_MAX as usize
        );
    }
}

/// Asserts that scanner and `serde_json` accept the same bytes and read the same from them.
fn agree(body: &[u8]) {
    let model = serde_json::from_slice::<Value>(body)
        .ok()
        .filter(Value::is_object);
    let scan = scan(Api::ChatCompletions, body);
    let Some(model) = model else {
        assert!(
            scan.is_err(),
            "accepted {:?}",
            String::from_utf8_lossy(body)
        );
        return;
    };
    let scan = scan.unwrap_or_else(|e| panic!("{e}: {}", String::from_utf8_lossy(body)));
    let text = |text: Option<Text>| text.map(|text| text.value(body).into_owned());
    let text_of = |value: &Value| value.as_str().map(str::to_owned);
    assert_eq!(text(scan.model), text_of(&model["model"]));
    assert_eq!(text(scan.user), text_of(&model["user"]));
    assert_eq!(scan.stream, model["stream"].as_bool());
    assert_eq!(scan.limits.max_tokens, model["max_tokens"].as_u64());
    assert_eq!(
        scan.include_usage,
        model["stream_options"]["include_usage"].as_bool()
    );
    assert_eq!(
        scan.has_tools,
        model["tools"]
            .as_array()
            .is_some_and(|tools| !tools.is_empty())
    );
    let prompt: Vec<Value> = scan
        .prompt_spans()
        .map(|span| serde_json::from_slice(span.of(body)).unwrap())
        .collect();
    let expected: Vec<Value> = ["tools", "system", "messages"]
        .iter()
        .filter_map(|key| model.get(key).cloned())
        .collect();
    assert_eq!(prompt, expected);
}

fn any_value() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        "\\PC{0,90}".prop_map(Value::from),
        "[\\x00-\\x7f]{0,40}".prop_map(Value::from),
    ];
    leaf.prop_recursive(4, 32, 6, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..6).prop_map(Value::from),
            prop::collection::vec((any_key(), inner), 0..6)
                .prop_map(|members| members.into_iter().collect::<Value>()),
        ]
    })
}

fn any_key() -> impl Strategy<Value = String> {
    prop_oneof![
        prop::sample::select(vec![
            "model",
            "stream",
            "user",
            "max_tokens",
            "messages",
            "tools",
            "system",
            "stream_options",
            "include_usage",
        ])
        .prop_map(str::to_owned),
        "\\PC{0,5}",
    ]
}

/// An object as text, with repeated keys and white space as they come.
fn any_body() -> impl Strategy<Value = Vec<u8>> {
    let member = (any_key(), any_value(), any::<bool>());
    prop::collection::vec(member, 0..8).prop_map(|members| {
        let members: Vec<String> = members
            .iter()
            .map(|(key, value, pretty)| {
                let value = if *pretty {
                    serde_json::to_string_pretty(value)
                } else {
                    serde_json::to_string(value)
                };
                format!("{}:{}", Value::from(key.as_str()), value.unwrap())
            })
            .collect();
        format!("{{{}}}", members.join(",")).into_bytes()
    })
}

proptest! {
    #[test]
    fn agrees_with_serde_json_on_valid_bodies(body in any_body()) {
        agree(&body);
    }

    #[test]
    fn agrees_with_serde_json_on_damaged_bodies(
        body in any_body(),
        cut in any::<prop::sample::Index>(),
        edits in prop::collection::vec((any::<prop::sample::Index>(), any_byte()), 0..3),
    ) {
        let mut body = body;
        for (at, byte) in edits {
            let at = at.index(body.len());
            body[at] = byte;
        }
        agree(&body);
        body.truncate(cut.index(body.len()));
        agree(&body);
    }

    #[test]
    fn agrees_with_serde_json_on_numbers(number in "-?[0-9]{0,3}(\\.[0-9]{0,3})?([eE][+-]?[0-9]{0,4})?") {
        agree(format!("{{\"max_tokens\":{number}}}").as_bytes());
    }
}

fn any_byte() -> impl Strategy<Value = u8> {
    prop_oneof![
        prop::sample::select(b"\"\\{}[]:, \nu0-.e/".to_vec()),
        any::<u8>(),
    ]
}
