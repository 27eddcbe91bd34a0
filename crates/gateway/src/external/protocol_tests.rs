//! Sequences of messages, written as words, and what the state machine makes of them.
//!
//! Sent: `head`, `head.` (nothing follows), `"abc"` a piece of the body, `"abc".` the last one,
//! `trailers`. Answered, behind `<`: `head`, `head!` (continue and replace by `R`), `head-` (bodies
//! overridden to none), `"abc"` and `"abc".` streamed back, `ok` a confirmation, `="abc"` a
//! confirmation with another body, `clear`, `trailers`, `stop` an immediate answer, `other` a message
//! of an unknown kind, `end` the end of the stream. `>` before a word means the response's side.

use super::*;

/// What came of a sequence: the pieces that go on, and how things stand.
fn play(script: &str) -> String {
    let mut protocol = Protocol::new(8);
    let mut shown = Vec::new();
    let mut last = Side::Request;
    for word in script.split_whitespace() {
        let (answered, word) = strip(word, '<');
        let (response, word) = strip(word, '>');
        let side = if response {
            Side::Response
        } else {
            Side::Request
        };
        last = side;
        if !answered {
            send(&mut protocol, side, word);
            continue;
        }
        if word == "end" {
            shown.push(match protocol.close(side) {
                Ok(()) => "closed".to_owned(),
                Err(violation) => return with(shown, &violation.to_string()),
            });
            continue;
        }
        match protocol.answer(message(side, word)) {
            Ok(step) => shown.extend(describe(step)),
            Err(violation) => return with(shown, &violation.to_string()),
        }
    }
    let state = match (protocol.is_over(last), protocol.body(last).is_changed()) {
        (false, _) => "waits",
        (true, false) => "over",
        (true, true) => "over, changed",
    };
    with(shown, state)
}

fn with(mut shown: Vec<String>, end: &str) -> String {
    shown.push(format!("({end})"));
    shown.join(" ")
}

fn strip(word: &str, mark: char) -> (bool, &str) {
    match word.strip_prefix(mark) {
        Some(rest) => (true, rest),
        None => (false, word),
    }
}

/// `"abc".` as its bytes and whether it ends.
fn piece(word: &str) -> Option<(Bytes, bool)> {
    let (word, end) = match word.strip_suffix('.') {
        Some(word) => (word, true),
        None => (word, false),
    };
    let text = word.strip_prefix('"')?.strip_suffix('"')?;
    Some((Bytes::copy_from_slice(text.as_bytes()), end))
}

fn send(protocol: &mut Protocol, side: Side, word: &str) {
    match word {
        "head" => protocol.send_head(side, false),
        "head." => protocol.send_head(side, true),
        "trailers" => protocol.send_trailers(side),
        _ => {
            let (bytes, end) = piece(word).unwrap_or_else(|| panic!("{word}?"));
            protocol.send_body(side, bytes, end);
        }
    }
}

fn message(side: Side, word: &str) -> ProcessingResponse {
    let request = side == Side::Request;
    let head = |common| {
        let answer = HeadersResponse {
            response: Some(common),
        };
        if request {
            Response::RequestHeaders(answer)
        } else {
            Response::ResponseHeaders(answer)
        }
    };
    let body = |mutation: Option<Mutation>| {
        let common = forebay_wire::ext_proc::CommonResponse {
            body_mutation: mutation.map(|mutation| BodyMutation {
                mutation: Some(mutation),
            }),
            ..Default::default()
        };
        let answer = BodyResponse {
            response: Some(common),
        };
        if request {
            Response::RequestBody(answer)
        } else {
            Response::ResponseBody(answer)
        }
    };
    let response = match word {
        "head" | "head-" => head(Default::default()),
        "head!" => head(forebay_wire::ext_proc::CommonResponse {
            status: ResponseStatus::ContinueAndReplace.into(),
            body_mutation: Some(BodyMutation {
                mutation: Some(Mutation::Body("R".into())),
            }),
            ..Default::default()
        }),
        "ok" => body(None),
        "clear" => body(Some(Mutation::ClearBody(true))),
        "trailers" if request => Response::RequestTrailers(TrailersResponse::default()),
        "trailers" => Response::ResponseTrailers(TrailersResponse::default()),
        "stop" => Response::ImmediateResponse(ImmediateResponse::default()),
        "other" => return ProcessingResponse::default(),
        _ => match word.strip_prefix('=') {
            Some(word) => body(piece(word).map(|(bytes, _)| Mutation::Body(bytes))),
            None => {
                let (bytes, end) = piece(word).unwrap_or_else(|| panic!("{word}?"));
                body(Some(Mutation::StreamedResponse(StreamedBodyResponse {
                    body: bytes,
                    end_of_stream: end,
                })))
            }
        },
    };
    ProcessingResponse {
        response: Some(response),
        mode_override: (word == "head-").then(ProcessingMode::default),
        ..ProcessingResponse::default()
    }
}

fn describe(step: Step) -> Option<String> {
    Some(match step {
        Step::Nothing => return None,
        Step::Head(head) => match head.replaced {
            Some(bytes) => format!("head={}", String::from_utf8_lossy(&bytes)),
            None => "head".to_owned(),
        },
        Step::Body(bytes) => format!("{:?}", String::from_utf8_lossy(&bytes)),
        Step::Trailers(_) => "trailers".to_owned(),
        Step::Immediate(_) => "stop".to_owned(),
    })
}

fn check(script: &str, expected: &str) {
    assert_eq!(play(script), expected, "{script}");
}

#[test]
fn a_request_goes_on_as_it_comes_back() {
    check("head. <head", "head (over)");
    check("head", "(waits)");
    check(r#"head "ab". <head"#, "head (waits)");
    check(r#"head "ab". <head <"ab"."#, r#"head "ab" (over)"#);
    // Cut in other places, and ended by a piece of its own.
    check(
        r#"head "ab" "cd". <head <"a" <"bcd" <""."#,
        r#"head "a" "bcd" "" (over)"#,
    );
    // What comes back while the rest is still on its way.
    check(
        r#"head "ab" <head <"ab" "cd". <"cd"."#,
        r#"head "ab" "cd" (over)"#,
    );
}

#[test]
fn another_body_takes_the_place_of_the_one_that_was_sent() {
    check(r#"head "ab". <head <"x"."#, r#"head "x" (over, changed)"#);
    check(
        r#"head "ab". <head <"abc"."#,
        r#"head "abc" (over, changed)"#,
    );
    check(r#"head "ab". <head <"a"."#, r#"head "a" (over, changed)"#);
    check(r#"head "ab". <head <""."#, r#"head "" (over, changed)"#);
    check(
        r#"head "ab". <head <"aX" <"Y"."#,
        r#"head "aX" "Y" (over, changed)"#,
    );
    check(r#"head "ab". <head!"#, "head=R (over)");
    // Answers to what was on its way do not matter then.
    check(r#"head "ab". <head! <"ab". <ok"#, "head=R (over)");
}

#[test]
fn pieces_may_be_confirmed_in_place_of_sent_back() {
    check(
        r#"head "ab" "cd". <head <ok <ok"#,
        r#"head "ab" "cd" (over)"#,
    );
    // Before the head too: the picker waits for the end of the body.
    check(
        r#"head "ab" <ok "cd". <head <ok"#,
        r#""ab" head "cd" (over)"#,
    );
    check(
        r#"head "ab" "cd". <head <="x" <clear"#,
        r#"head "x" "" (over, changed)"#,
    );
    check(r#"head "ab" "". <head <ok"#, r#"head "ab" (waits)"#);
    check(r#"head "ab" "". <head <ok <ok"#, r#"head "ab" "" (over)"#);
}

#[test]
fn what_breaks_the_rules_is_told_apart() {
    let unasked = |script: &str, before: &str, what: &str| {
        let violation = format!("{before}(it sent {what}, which it was not asked for)");
        check(script, &violation);
    };
    unasked("<head", "", "an answer to the request");
    unasked("head. <head <head", "head ", "an answer to the request");
    unasked("head. <>head", "", "an answer to the response");
    unasked(r#"<"a"."#, "", "a request's body");
    unasked("head <trailers", "", "a request's trailers");
    unasked("head <ok", "", "the answer to a piece of a body");
    for early in [r#"head "a". <"a"."#, r#"head "a". <="a""#] {
        check(early, "(it sent a body back before it answered the head)");
    }
    check(
        r#"head "ab" "cd". <head <ok <"cd"."#,
        r#"head "ab" (it sent pieces of a body back and merely confirmed others)"#,
    );
    check(
        r#"head "ab" <head <"ab"."#,
        "head (it ended a body before it had seen the end)",
    );
    check(
        r#"head "ab". <head <"ab". <"c""#,
        r#"head "ab" (it went on with a body that it had ended)"#,
    );
    check(
        r#"head "ab". <head <"12345678" <"9""#,
        r#"head "12345678" (it made a body longer than 8 bytes)"#,
    );
    check(
        "head. <stop <head",
        "stop (it went on with a body that it had ended)",
    );
}

#[test]
fn a_stream_may_end_where_nothing_is_in_doubt() {
    check(r#"head "ab". <head <end"#, "head closed (waits)");
    check(
        r#"head "ab". <head <"a" <end"#,
        r#"head "a" closed (waits)"#,
    );
    check("head. <head <end", "head closed (over)");
    check(
        "head. <end",
        "(it ended the stream before it answered the head)",
    );
    check(
        r#"head "ab". <head <"x" <end"#,
        r#"head "x" (it ended the stream before it answered the body)"#,
    );
    // Of a confirmed body it is known what is still to come.
    check(
        r#"head "ab" "cd". <head <="x" <end"#,
        r#"head "x" closed (waits)"#,
    );
}

#[test]
fn an_immediate_answer_and_unknown_messages_may_come_at_any_time() {
    check("head <stop", "stop (waits)");
    check(r#"head "ab". <head <"a" <stop"#, r#"head "a" stop (waits)"#);
    check("head. <head <stop", "head stop (over)");
    check("<other head. <other <head", "head (over)");
}

#[test]
fn responses_follow_the_same_rules_and_end_with_trailers() {
    let request = "head. <head ";
    let check = |script: &str, expected: &str| {
        check(&format!("{request}{script}"), &format!("head {expected}"));
    };
    check(">head. <>head", "head (over)");
    check(
        r#">head >"ab" <>head <>"ab" >"cd". <>"cd"."#,
        r#"head "ab" "cd" (over)"#,
    );
    check(
        r#">head >"ab" >trailers <>head <>"ab" <>trailers"#,
        r#"head "ab" trailers (over)"#,
    );
    check(
        r#">head >"ab" >trailers <>head <>"ab""#,
        r#"head "ab" (waits)"#,
    );
    check(
        r#">head >"ab" <>trailers"#,
        "(it sent a response's trailers, which it was not asked for)",
    );
    // It does not want the body; answers to what was on its way do not matter.
    check(r#">head >"ab" <>head- <>"ab""#, "head (over)");
    // A response may be as long as it likes.
    check(
        r#">head >"123456789". <>head <>"123456789"."#,
        r#"head "123456789" (over)"#,
    );
}

#[test]
fn a_body_that_is_given_up_goes_on_where_it_stood() {
    let rest = |script: &str| {
        let mut protocol = Protocol::new(8);
        for word in script.split_whitespace() {
            let (answered, word) = strip(word, '<');
            if answered {
                let _step = protocol.answer(message(Side::Request, word));
            } else {
                send(&mut protocol, Side::Request, word);
            }
        }
        let rest = protocol.give_up_body(Side::Request)?;
        assert!(protocol.body(Side::Request).is_over());
        let pieces = rest
            .iter()
            .map(|piece| String::from_utf8_lossy(piece).into_owned());
        Some(pieces.collect::<Vec<_>>().join("|"))
    };
    let check = |script: &str, expected: Option<&str>| {
        assert_eq!(rest(script).as_deref(), expected, "{script}");
    };
    check(r#"head "ab" "cd""#, Some("ab|cd"));
    check(r#"head "ab" "cd" <head <"a""#, Some("b|cd"));
    check(r#"head "ab" "cd" <head <"abc""#, Some("d"));
    check(r#"head "ab" "cd" <head <ok"#, Some("cd"));
    check(r#"head "ab" "cd" <head <="x""#, Some("cd"));
    check(r#"head "ab" "cd" <head <"x""#, None);
    // An answer that breaks the rules takes nothing away.
    check(r#"head "ab" <head <"ab"."#, Some("ab"));
    check(r#"head "123456789" <head <"123456789""#, Some("123456789"));
    check(r#"head "123456789" <ok"#, Some("123456789"));
}
