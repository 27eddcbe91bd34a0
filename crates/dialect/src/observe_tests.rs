//! Tests of the observer: streams as text, cut into pieces of every size.

use super::*;
use proptest::prelude::*;

fn ms(millis: u64) -> Moment {
    Moment::from_millis(millis)
}

/// Observes `text` in pieces of `size` bytes, all at the same moment.
fn observed(api: Api, stream: bool, text: &[u8], size: usize) -> Usage {
    let mut observer = ResponseObserver::new(api, stream);
    for piece in text.chunks(size.max(1)) {
        observer.push(piece, ms(5));
    }
    observer.finish(ms(5))
}

/// Counts as prompt, completion, total, cached.
fn counts(numbers: [u64; 4]) -> TokenCounts {
    // Zero stands for absent here.
    let [
        prompt_tokens,
        completion_tokens,
        total_tokens,
        cached_tokens,
    ] = numbers.map(|n| (n > 0).then_some(n));
    TokenCounts {
        prompt_tokens,
        completion_tokens,
        total_tokens,
        cached_tokens,
    }
}

fn check(api: Api, stream: bool, text: &str, tokens: [u64; 4], events: u64, end: &str) {
    let expected = Usage {
        tokens: counts(tokens),
        first_token_at: (events > 0).then_some(ms(5)),
        last_token_at: (events > 0).then_some(ms(5)),
        content_events: events,
        saw_done: end == "done",
        saw_error: end == "error",
        lines_cut: 0,
    };
    for size in [1, 2, 3, 7, 50, text.len()] {
        let usage = observed(api, stream, text.as_bytes(), size);
        assert_eq!(usage, expected, "in pieces of {size}: {text}");
    }
    let mut whole = ResponseObserver::new(api, stream);
    whole.push_whole(text.as_bytes(), ms(5));
    assert_eq!(whole.finish(ms(5)), expected, "as a whole: {text}");
}

const CHAT: &str = r#"data: {"id":"c1","object":"chat.completion.chunk","model":"tiny","choices":[{"index":0,"delta":{"role":"assistant","content":"","reasoning_content":null},"logprobs":null,"finish_reason":null}],"usage":null}

data: {"id":"c1","object":"chat.completion.chunk","model":"tiny","choices":[{"index":0,"delta":{"reasoning_content":"hm"}}]}

data: {"id":"c1","object":"chat.completion.chunk","model":"tiny","choices":[{"index":0,"delta":{"content":"say \"usage\":{\"prompt_tokens\":9}"}}]}

data: {"id":"c1","object":"chat.completion.chunk","model":"tiny","choices":[{"index":0,"delta":{"content":""},"finish_reason":"stop"}]}

data: {"id":"c1","object":"chat.completion.chunk","model":"tiny","choices":[],"usage":{"prompt_tokens":11,"total_tokens":13,"completion_tokens":2,"prompt_tokens_details":{"audio_tokens":0,"cached_tokens":8}}}

data: [DONE]

"#;

#[test]
fn a_chat_stream_is_timed_by_its_text_and_counted_by_its_last_object() {
    check(Api::ChatCompletions, true, CHAT, [11, 2, 13, 8], 2, "done");
    let crlf = CHAT.replace('\n', "\r\n");
    check(Api::ChatCompletions, true, &crlf, [11, 2, 13, 8], 2, "done");
}

#[test]
fn first_and_last_token_have_their_own_moments() {
    let mut observer = ResponseObserver::new(Api::ChatCompletions, true);
    for (at, event) in CHAT.split_inclusive("\n\n").enumerate() {
        observer.push(event.as_bytes(), ms(at as u64));
    }
    let usage = observer.finish(ms(9));
    assert_eq!(
        (usage.first_token_at, usage.last_token_at),
        (Some(ms(1)), Some(ms(2)))
    );
}

#[test]
fn tool_calls_are_content() {
    check(
        Api::ChatCompletions,
        true,
        "data: {\"choices\":[{\"delta\":{\"role\":\"assistant\",\"tool_calls\":[{\"index\":0,\"function\":{\"name\":\"f\",\"arguments\":\"\"}}]}}]}\n\n",
        [0; 4],
        1,
        "open",
    );
}

#[test]
fn a_completions_stream_starts_with_its_first_text() {
    check(
        Api::Completions,
        true,
        "data: {\"choices\":[{\"index\":0,\"text\":\"\"}]}\n\n: ping\n\ndata: {\"choices\":[{\"index\":0,\"text\":\" a\"}]}\n\ndata: [DONE]",
        [0; 4],
        1,
        "done",
    );
}

#[test]
fn a_responses_stream_ends_with_its_response() {
    check(
        Api::Responses,
        true,
        "event: response.created\ndata: {\"response\":{\"id\":\"r\",\"usage\":null},\"type\":\"response.created\"}\n\n\
         event: response.output_text.delta\ndata: {\"content_index\":0,\"delta\":\"Hi\",\"type\":\"response.output_text.delta\"}\n\n\
         event: response.completed\ndata: {\"response\":{\"output\":[{\"usage\":{\"input_tokens\":99}}],\"usage\":{\"input_tokens\":7,\"input_tokens_details\":{\"cached_tokens\":4},\"output_tokens\":1,\"total_tokens\":8}},\"type\":\"response.completed\"}\n\n",
        [7, 1, 8, 4],
        1,
        "done",
    );
}

#[test]
fn a_messages_stream_reports_in_two_parts() {
    check(
        Api::Messages,
        true,
        "event: message_start\ndata: {\"type\":\"message_start\",\"message\":{\"id\":\"m\",\"content\":[],\"usage\":{\"input_tokens\":25,\"cache_read_input_tokens\":16,\"output_tokens\":1}}}\n\n\
         event: content_block_delta\ndata: {\"type\":\"content_block_delta\",\"index\":0,\"delta\":{\"type\":\"text_delta\",\"text\":\"Hello\"}}\n\n\
         event: content_block_delta\ndata: {\"type\":\"content_block_delta\",\"index\":0,\"delta\":{\"type\":\"text_delta\",\"text\":\"\"}}\n\n\
         event: message_delta\ndata: {\"type\":\"message_delta\",\"delta\":{\"stop_reason\":\"end_turn\",\"stop_sequence\":null},\"usage\":{\"output_tokens\":15}}\n\n\
         event: message_stop\ndata: {\"type\":\"message_stop\"}\n\n",
        [25, 15, 0, 16],
        1,
        "done",
    );
}

#[test]
fn events_without_a_name_are_known_by_their_type() {
    check(
        Api::Messages,
        true,
        "data: {\"type\": \"message_stop\"}\n\n",
        [0; 4],
        0,
        "done",
    );
}

#[test]
fn errors_are_seen_in_each_dialect() {
    for (api, text) in [
        (
            Api::ChatCompletions,
            "data: {\"error\": {\"message\":\"oom\"}}\n\n",
        ),
        (
            Api::Completions,
            "data: {\"object\":\"error\",\"message\":\"oom\"}\n\n",
        ),
        (
            Api::Messages,
            "event: error\ndata: {\"type\":\"error\"}\n\n",
        ),
        (Api::Responses, "event: response.failed\ndata: {}\n\n"),
    ] {
        check(api, true, text, [0; 4], 0, "error");
    }
    check(
        Api::ChatCompletions,
        true,
        "data: {\"error\":null}\n\n",
        [0; 4],
        0,
        "open",
    );
}

#[test]
fn native_streams_are_read_too() {
    check(
        Api::SglangGenerate,
        true,
        "data: {\"text\":\"a\",\"meta_info\":{\"id\":\"x\",\"prompt_tokens\":5,\"completion_tokens\":1,\"cached_tokens\":2}}\n\ndata: [DONE]\n\n",
        [5, 1, 0, 2],
        1,
        "done",
    );
    check(
        Api::VllmGenerate,
        true,
        "data: {\"choices\":[{\"token_ids\":[]}]}\n\ndata: {\"choices\":[{\"token_ids\":[5]}]}\n\n",
        [0; 4],
        1,
        "open",
    );
}

#[test]
fn usage_of_a_document_is_found_before_and_after_the_text() {
    let usage = r#""usage" : {"prompt_tokens":3,"completion_tokens":4,"total_tokens":7}"#;
    let text = r#""choices":[{"message":{"content":"\"usage\":{}","usage":{"prompt_tokens":1}}}]"#;
    for body in [
        format!("{{{usage},{text}}}"),
        format!("{{{text},\n{usage}}}"),
    ] {
        check(Api::ChatCompletions, false, &body, [3, 4, 7, 0], 0, "open");
    }
}

#[test]
fn usage_is_found_behind_a_line_too_long_to_keep() {
    let text = "x".repeat(LINE_BYTES_MAX + 10);
    let stream = format!(
        "event: response.completed\ndata: {{\"response\":{{\"text\":\"{text}\",\"usage\":{{\"input_tokens\":7}}}}}}\n\ndata: [DONE]\n\n"
    );
    for size in [1, 1000, LINE_BYTES_MAX, stream.len()] {
        let usage = observed(Api::Responses, true, stream.as_bytes(), size);
        assert_eq!(usage.tokens.prompt_tokens, Some(7), "in pieces of {size}");
        assert!(usage.saw_done);
        assert_eq!(usage.lines_cut, 1);
    }
}

#[test]
fn a_line_that_never_ends_is_not_kept() {
    let mut observer = ResponseObserver::new(Api::ChatCompletions, true);
    for _ in 0..100 {
        observer.push(&[b'x'; 4096], ms(1));
    }
    let Form::Events(lines) = &observer.form else {
        unreachable!("made for a stream")
    };
    assert_eq!(lines.line.len(), LINE_BYTES_MAX);
}

#[test]
fn a_usage_object_that_never_ends_is_not_kept() {
    let mut observer = ResponseObserver::new(Api::ChatCompletions, false);
    observer.push(b"{\"usage\":{\"a\":\"", ms(1));
    for _ in 0..100 {
        observer.push(&[b'x'; 4096], ms(1));
    }
    observer.push(b"\",\"prompt_tokens\":3}}", ms(1));
    assert_eq!(observer.finish(ms(1)).tokens, TokenCounts::default());
}

proptest! {
    #[test]
    fn chunks_do_not_matter(
        parts in prop::collection::vec(prop::sample::select(vec![
            "data: ", "data:", "event: ", "error", "message_stop", "\n", "\n\n", "\r\n", ":", "[DONE]",
            "{\"usage\":{\"prompt_tokens\":3}}", "{\"delta\":{\"content\":\"a\"}}", "\"", "\\", "{", "}",
            "{\"response\":{\"usage\":", "\"delta\":\"x\"", "{\"error\":{}}",
        ]), 0..30),
        size in 1usize..30, stream: bool,
    ) {
        let text = parts.concat();
        let whole = observed(Api::Responses, stream, text.as_bytes(), text.len());
        prop_assert_eq!(observed(Api::Responses, stream, text.as_bytes(), size), whole);
    }
}
