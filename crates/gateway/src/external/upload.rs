//! The body of a request on its way to a picker, in pieces.

use std::collections::VecDeque;
use std::future::poll_fn;

use bytes::Bytes;
use forebay_wire::ext_proc::ProcessingResponse;

use super::PIECE_BYTES_MAX;
use super::call::{Call, CallError};
use super::message;
use super::protocol::{Protocol, Side};
use crate::upstream::Outgoing;

/// What is still to be sent.
#[derive(Debug)]
pub(super) struct Upload {
    rest: VecDeque<Bytes>,
    length: Option<usize>,
}

impl Upload {
    /// The pieces of `body`. One that is passed on unread has none: the picker sees the head alone.
    pub(super) fn of(body: &Outgoing) -> Self {
        let mut rest = VecDeque::new();
        let mut length = None;
        match body {
            // Trailers are not shown: see the section "A picker outside" of `docs/picking.md`.
            Outgoing::Whole { pieces, .. } => {
                length = Some(pieces.iter().map(Bytes::len).sum());
                for piece in pieces.iter().filter(|piece| !piece.is_empty()) {
                    pieces_of(piece.clone(), |piece| rest.push_back(piece));
                }
            }
            Outgoing::Empty | Outgoing::Stream(..) => {}
        }
        Self { rest, length }
    }

    /// Whether there is nothing to send.
    pub(super) fn is_empty(&self) -> bool {
        self.rest.is_empty()
    }

    /// Bytes of the whole, if it is sent.
    pub(super) fn length(&self) -> Option<usize> {
        self.length
    }

    /// Sends on until there is a message of the picker; `None` once it has ended the call.
    pub(super) async fn next(
        &mut self,
        call: &mut Call,
        protocol: &mut Protocol,
    ) -> Result<Option<ProcessingResponse>, CallError> {
        poll_fn(|cx| {
            loop {
                while call.has_room()
                    && let Some(piece) = self.rest.pop_front()
                {
                    let end = self.rest.is_empty();
                    message::body(Side::Request, piece.clone(), end, call.queue());
                    protocol.send_body(Side::Request, piece, end);
                }
                if call.poll_flush(cx).is_pending() || !call.has_room() || self.rest.is_empty() {
                    break;
                }
            }
            call.poll_next(cx)
        })
        .await
    }
}

/// Cuts `data` into pieces that fit a message each.
pub(super) fn pieces_of(mut data: Bytes, mut each: impl FnMut(Bytes)) {
    while !data.is_empty() {
        each(data.split_to(data.len().min(PIECE_BYTES_MAX)));
    }
}
