//! Whatever a picker answers, in whatever order: nothing breaks, no byte of a body is lost or made up
//! unless the picker says so, and no field gets into a head that could end it early.
//! The input is a list of things that happen: an operation, and for an answer its length and bytes.
#![no_main]

use bytes::Bytes;
use forebay_gateway::external::protocol::{Protocol, Side, Step};
use forebay_gateway::external::{destination, mutation};
use forebay_wire::ext_proc::ProcessingResponse;
use http::HeaderMap;
use libfuzzer_sys::fuzz_target;
use prost::Message;

/// A body's bytes are told apart by where they stand.
const TEXT: &[u8] = b"abcdefghijklmnopqrstuvwxyz";

#[derive(Default)]
struct Way {
    sent: Vec<u8>,
    passed: Vec<u8>,
    replaced: bool,
    ended: bool,
}

fn piece(input: &mut &[u8]) -> Bytes {
    let from = usize::from(next(input)) % TEXT.len();
    Bytes::from_static(&TEXT[from..(from + 5).min(TEXT.len())])
}

fn next(input: &mut &[u8]) -> u8 {
    let Some((&byte, rest)) = input.split_first() else {
        return 0;
    };
    *input = rest;
    byte
}

/// What the rest of the input says; false once the exchange is over.
fn step(input: &mut &[u8], protocol: &mut Protocol, ways: &mut [Way; 2]) -> bool {
    let operation = next(input);
    let (side, way) = match operation & 1 {
        0 => (Side::Request, &mut ways[0]),
        _ => (Side::Response, &mut ways[1]),
    };
    match operation >> 1 & 7 {
        0 => protocol.send_head(side, operation & 0x80 != 0),
        1 if !way.ended => {
            let piece = piece(input);
            way.ended = operation & 0x80 != 0;
            way.sent.extend_from_slice(&piece);
            protocol.send_body(side, piece, way.ended);
        }
        2 if !way.ended => {
            way.ended = true;
            protocol.send_trailers(side);
        }
        3 => return protocol.close(side).is_ok(),
        _ => {
            let length = usize::from(next(input)).min(input.len());
            let (message, rest) = input.split_at(length);
            *input = rest;
            let Ok(message) = ProcessingResponse::decode(message) else {
                return true;
            };
            // Which side an answer is for, it says itself.
            let of_response = matches!(
                message.response,
                Some(
                    forebay_wire::ext_proc::processing_response::Response::ResponseBody(_)
                        | forebay_wire::ext_proc::processing_response::Response::ResponseHeaders(_)
                )
            );
            let way = &mut ways[usize::from(of_response)];
            match protocol.answer(message) {
                Err(_) | Ok(Step::Immediate(_)) => return false,
                Ok(Step::Nothing | Step::Trailers(_)) => {}
                Ok(Step::Body(piece)) => way.passed.extend_from_slice(&piece),
                Ok(Step::Head(head)) => {
                    way.replaced |= head.replaced.is_some();
                    let _found = destination::read(&head, |address| address.port() % 2 == 0);
                    let mut fields = HeaderMap::new();
                    if mutation::apply(&head.mutation, &mut fields).is_ok() {
                        assert!(!fields.contains_key("content-length"));
                        assert!(!fields.contains_key("host"));
                    }
                }
            }
        }
    }
    true
}

fuzz_target!(|input: &[u8]| {
    let mut input = input;
    let mut protocol = Protocol::new(64);
    let mut ways = <[Way; 2]>::default();
    while !input.is_empty() && step(&mut input, &mut protocol, &mut ways) {}
    for (side, way) in [Side::Request, Side::Response].into_iter().zip(&mut ways) {
        let changed = protocol.body(side).is_changed() || way.replaced;
        assert!(side == Side::Response || way.passed.len() <= 64 + TEXT.len());
        let rest = protocol.give_up_body(side);
        if !changed {
            let rest = rest.expect("nothing but what was sent has come back");
            rest.iter().for_each(|piece| way.passed.extend_from_slice(piece));
            assert_eq!(way.passed, way.sent);
        }
    }
});
