//! Whatever a runtime sends to a plugin: frames and messages are cut the same however the bytes arrive,
//! and what was cut survives being written again.
#![no_main]

use forebay_nri::frame::{Decoder, Message, ProtocolError, encode};
use libfuzzer_sys::fuzz_target;

fn decode(input: &[u8], step: usize) -> (Vec<Message>, Option<ProtocolError>) {
    let mut decoder = Decoder::default();
    let mut messages = Vec::new();
    for piece in input.chunks(step) {
        decoder.buffer().extend_from_slice(piece);
        loop {
            match decoder.next_message() {
                Ok(Some(message)) => messages.push(message),
                Ok(None) => break,
                Err(error) => return (messages, Some(error)),
            }
        }
    }
    (messages, None)
}

fuzz_target!(|input: &[u8]| {
    let Some((step, input)) = input.split_first() else {
        return;
    };
    let (messages, error) = decode(input, usize::from(*step).max(1));
    assert_eq!(decode(input, input.len().max(1)), (messages.clone(), error));
    let written: Vec<u8> = messages
        .iter()
        .flat_map(|message| encode(message).expect("it was short enough to be read"))
        .collect();
    assert_eq!(decode(&written, 4096), (messages, None));
});
