//! Whatever a proxy sends to the picker, in whatever order and mode: nothing breaks, no more is held
//! than may be, each part is answered at most once, and a body that is passed on is the one that came.
//! The input is a list of things that happen: an operation, and what it needs. The fuzz target and a test
//! of the gateway both drive the machine by it.

use bytes::Bytes;
use forebay_gateway::epp::protocol::{Body, Decision, Machine, Part, Replies, Reply, Step, Wanted};
use forebay_gateway::external::protocol::Side;
use forebay_wire::ext_proc::processing_request::Request;
use forebay_wire::ext_proc::{
    HeaderMutation, HttpBody, HttpHeaders, HttpTrailers, ImmediateResponse, ProcessingRequest,
    ProtocolConfiguration,
};
use prost::Message;

/// A body's bytes are told apart by where they stand.
const TEXT: &[u8] = b"abcdefghijklmnopqrstuvwxyz";
const HELD_MAX: usize = 64;
/// Bytes of the longest piece that the input can have.
const LONGEST: usize = 255;

/// Parts that came, and answers to each.
#[derive(Default)]
struct Books {
    came: [usize; 6],
    answered: [usize; 6],
    sent: [Vec<u8>; 2],
    passed: [Vec<u8>; 2],
    changed: bool,
}

fn next(input: &mut &[u8]) -> u8 {
    let Some((&byte, rest)) = input.split_first() else {
        return 0;
    };
    *input = rest;
    byte
}

fn message(input: &mut &[u8]) -> ProcessingRequest {
    let operation = next(input);
    let end = operation & 0x80 != 0;
    let mut body = || {
        let from = usize::from(next(input)) % TEXT.len();
        HttpBody {
            body: Bytes::from_static(&TEXT[from..(from + 5).min(TEXT.len())]),
            end_of_stream: end,
        }
    };
    let head = || HttpHeaders {
        end_of_stream: end,
        ..HttpHeaders::default()
    };
    let request = match operation & 7 {
        0 => Request::RequestHeaders(head()),
        1 | 2 => Request::RequestBody(body()),
        3 => Request::RequestTrailers(HttpTrailers::default()),
        4 => Request::ResponseHeaders(head()),
        5 => Request::ResponseBody(body()),
        6 => Request::ResponseTrailers(HttpTrailers::default()),
        _ => {
            // Bytes as they come.
            let length = usize::from(next(input)).min(input.len());
            let (bytes, rest) = input.split_at(length);
            *input = rest;
            return ProcessingRequest::decode(bytes).unwrap_or_default();
        }
    };
    let config = (operation & 0x40 != 0).then(|| ProtocolConfiguration {
        request_body_mode: i32::from(next(input) % 6),
        response_body_mode: i32::from(next(input) % 6),
        send_body_without_waiting_for_header_response: operation & 0x20 != 0,
    });
    ProcessingRequest {
        request: Some(request),
        protocol_config: config,
        ..ProcessingRequest::default()
    }
}

/// Takes note of what comes.
fn count(message: &ProcessingRequest, books: &mut Books) {
    let part = match &message.request {
        Some(Request::RequestHeaders(_)) => Part::RequestHead,
        Some(Request::RequestBody(body)) => {
            books.sent[0].extend_from_slice(&body.body);
            Part::RequestBody
        }
        Some(Request::RequestTrailers(_)) => Part::RequestTrailers,
        Some(Request::ResponseHeaders(_)) => Part::ResponseHead,
        Some(Request::ResponseBody(body)) => {
            books.sent[1].extend_from_slice(&body.body);
            Part::ResponseBody
        }
        Some(Request::ResponseTrailers(_)) => Part::ResponseTrailers,
        None => return,
    };
    books.came[part as usize] += 1;
}

fn answers(replies: &mut Replies, books: &mut Books) {
    use forebay_wire::ext_proc::processing_response::Response;
    for reply in replies.drain(..) {
        let part = match reply {
            Reply::Pass(part) => part,
            Reply::Piece { side, bytes, .. } => {
                let side = usize::from(side == Side::Response);
                books.passed[side].extend_from_slice(&bytes);
                continue;
            }
            Reply::Message(message) => match message.response.expect("an answer says something") {
                Response::RequestHeaders(_) => Part::RequestHead,
                Response::ResponseHeaders(_) => Part::ResponseHead,
                Response::RequestBody(_) => Part::RequestBody,
                Response::ResponseBody(_) => Part::ResponseBody,
                Response::RequestTrailers(_) => Part::RequestTrailers,
                Response::ResponseTrailers(_) => Part::ResponseTrailers,
                Response::ImmediateResponse(_) => continue,
            },
        };
        books.answered[part as usize] += 1;
        assert!(
            books.answered[part as usize] <= books.came[part as usize],
            "{part:?} was answered more often than it came"
        );
    }
}

/// Does what the input says.
pub fn drive(input: &[u8]) {
    let mut input = input;
    let mut machine = Machine::new(HELD_MAX);
    let mut books = Books::default();
    let mut replies = Replies::new();
    while !input.is_empty() {
        let step = match next(&mut input) {
            0xff => machine.silent(),
            _ => {
                let message = message(&mut input);
                count(&message, &mut books);
                let Ok(step) = machine.take(message, &mut replies) else {
                    return;
                };
                step
            }
        };
        let longest = books.sent[0].len().max(HELD_MAX);
        assert!(machine.held_bytes() <= longest.min(HELD_MAX + LONGEST));
        match step {
            Step::Wait | Step::Head(_) => {}
            Step::Decide(_, body) => {
                if let Body::Whole(body) = &body {
                    assert_eq!(*body, books.sent[0]);
                }
                let choice = match body {
                    // What has no room is never passed on.
                    Body::TooLong => 0,
                    Body::Whole(_) | Body::Empty | Body::Unread => next(&mut input) % 4,
                };
                match choice {
                    0 => machine.refused(ImmediateResponse::default(), &mut replies),
                    1 => {
                        books.changed = true;
                        let decision = Decision {
                            body: Some(Bytes::from_static(b"changed")),
                            ..Decision::default()
                        };
                        machine.decided(decision, &mut replies);
                    }
                    more => {
                        let decision = Decision {
                            shows_response: more == 3,
                            ..Decision::default()
                        };
                        machine.decided(decision, &mut replies);
                    }
                }
            }
            Step::ResponseHead(_) => {
                let wanted = [None, Some(Wanted::Head), Some(Wanted::Bodies)];
                let wanted = wanted[usize::from(next(&mut input) % 3)];
                machine.response_head(HeaderMutation::default(), wanted, &mut replies);
            }
            Step::ResponseBody(piece, end) => {
                machine.response_piece(piece, None, end, &mut replies);
            }
            Step::ResponseOver => machine.response_over(Bytes::new(), &mut replies),
        }
        answers(&mut replies, &mut books);
        for side in 0..2 {
            let changed = side == 0 && books.changed;
            assert!(changed || books.sent[side].starts_with(&books.passed[side]));
        }
    }
}
