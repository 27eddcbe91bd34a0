//! Bytes to messages and back, without I/O: ttrpc messages (10-byte header: length, stream, type, flags)
//! in frames of a multiplexed socket (8-byte header: connection, length), all big endian.
//!
//! Every length that the peer claims is held against its bound before anything is kept for it; a
//! connection on which one is exceeded cannot be read further and has to be closed.

use std::fmt;

use bytes::{Buf, BufMut, Bytes, BytesMut};

/// Connection on which the runtime calls the plugin.
pub const PLUGIN_SERVICE: u32 = 1;
/// Connection on which the plugin calls the runtime.
pub const RUNTIME_SERVICE: u32 = 2;

/// Bytes of a message after its header. The protocol's own bound.
pub const MESSAGE_LEN_MAX: usize = 4 << 20;
/// Bytes of a frame after its header: a whole message with its header. The protocol's own bound.
pub const FRAME_LEN_MAX: usize = MESSAGE_HEADER_LEN + MESSAGE_LEN_MAX;

const FRAME_HEADER_LEN: usize = 8;
const MESSAGE_HEADER_LEN: usize = 10;
/// A message begins with a frame of at most this, and what is left follows in one frame. containerd reads
/// each frame in one go into a buffer of 4096 bytes, or into what the message still lacks if that is
/// more: any other cut would give it frames that do not fit.
const FIRST_FRAME_LEN: usize = 4096;

/// What a message is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    /// Asks.
    Request,
    /// Answers, on the stream of the request.
    Response,
    /// Part of a stream; NRI has none.
    Data,
    /// Something that this version of ttrpc does not have.
    Other(u8),
}

/// One message of ttrpc.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Message {
    /// The connection inside the socket.
    pub connection: u32,
    /// The stream inside the connection: odd, and rising with every request.
    pub stream: u32,
    /// What it is.
    pub kind: Kind,
    /// Depend on the kind; 0 for calls with one request and one response.
    pub flags: u8,
    /// Protobuf.
    pub payload: Bytes,
}

/// The peer does not speak the protocol, or more of it than the bounds allow.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ProtocolError {
    /// A frame claims this many bytes, more than [`FRAME_LEN_MAX`].
    FrameTooLong(usize),
    /// A message claims this many bytes, more than [`MESSAGE_LEN_MAX`].
    MessageTooLong(usize),
    /// A message of this connection is not what it should be.
    MessageNotProtobuf(u32),
}

impl fmt::Display for ProtocolError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::FrameTooLong(len) => {
                write!(
                    f,
                    "a frame of {len} bytes, at most {FRAME_LEN_MAX} are allowed"
                )
            }
            Self::MessageTooLong(len) => {
                write!(
                    f,
                    "a message of {len} bytes, at most {MESSAGE_LEN_MAX} are allowed"
                )
            }
            Self::MessageNotProtobuf(connection) => {
                write!(
                    f,
                    "a message on connection {connection} is not valid protobuf"
                )
            }
        }
    }
}

impl std::error::Error for ProtocolError {}

/// Takes bytes as they come and gives messages. Holds at most one unfinished frame and, for each of the
/// two connections, one unfinished message with the frame that did not finish it.
#[derive(Default, Debug)]
pub struct Decoder {
    trunk: BytesMut,
    plugin: BytesMut,
    runtime: BytesMut,
}

impl Decoder {
    /// Where bytes from the socket go.
    pub fn buffer(&mut self) -> &mut BytesMut {
        &mut self.trunk
    }

    /// The next whole message, if there is one. After an error the connection is to be closed.
    pub fn next_message(&mut self) -> Result<Option<Message>, ProtocolError> {
        loop {
            for (connection, buffer) in [
                (PLUGIN_SERVICE, &mut self.plugin),
                (RUNTIME_SERVICE, &mut self.runtime),
            ] {
                if let Some(message) = cut_message(connection, buffer)? {
                    return Ok(Some(message));
                }
            }
            let Some((connection, frame)) = cut_frame(&mut self.trunk)? else {
                return Ok(None);
            };
            match connection {
                PLUGIN_SERVICE => self.plugin.extend_from_slice(&frame),
                RUNTIME_SERVICE => self.runtime.extend_from_slice(&frame),
                // Nobody listens there; runtimes let such frames fall too.
                _ => {}
            }
        }
    }
}

fn cut_frame(trunk: &mut BytesMut) -> Result<Option<(u32, BytesMut)>, ProtocolError> {
    let Some(mut header) = trunk.get(..FRAME_HEADER_LEN) else {
        return Ok(None);
    };
    let connection = header.get_u32();
    let len = header.get_u32() as usize;
    if len > FRAME_LEN_MAX {
        return Err(ProtocolError::FrameTooLong(len));
    }
    if trunk.len() < FRAME_HEADER_LEN + len {
        trunk.reserve(FRAME_HEADER_LEN + len - trunk.len());
        return Ok(None);
    }
    trunk.advance(FRAME_HEADER_LEN);
    Ok(Some((connection, trunk.split_to(len))))
}

fn cut_message(connection: u32, buffer: &mut BytesMut) -> Result<Option<Message>, ProtocolError> {
    let Some(mut header) = buffer.get(..MESSAGE_HEADER_LEN) else {
        return Ok(None);
    };
    let len = header.get_u32() as usize;
    let stream = header.get_u32();
    let kind = match header.get_u8() {
        1 => Kind::Request,
        2 => Kind::Response,
        3 => Kind::Data,
        other => Kind::Other(other),
    };
    let flags = header.get_u8();
    if len > MESSAGE_LEN_MAX {
        return Err(ProtocolError::MessageTooLong(len));
    }
    if buffer.len() < MESSAGE_HEADER_LEN + len {
        return Ok(None);
    }
    buffer.advance(MESSAGE_HEADER_LEN);
    Ok(Some(Message {
        connection,
        stream,
        kind,
        flags,
        payload: buffer.split_to(len).freeze(),
    }))
}

/// A message as it goes to the socket. Refused if it is longer than [`MESSAGE_LEN_MAX`].
pub fn encode(message: &Message) -> Result<Bytes, ProtocolError> {
    let len = message.payload.len();
    if len > MESSAGE_LEN_MAX {
        return Err(ProtocolError::MessageTooLong(len));
    }
    let whole = MESSAGE_HEADER_LEN + len;
    let first = whole.min(FIRST_FRAME_LEN);
    let mut out = BytesMut::with_capacity(2 * FRAME_HEADER_LEN + whole);
    put_frame_header(&mut out, message.connection, first);
    put_u32(&mut out, len);
    out.put_u32(message.stream);
    out.put_u8(match message.kind {
        Kind::Request => 1,
        Kind::Response => 2,
        Kind::Data => 3,
        Kind::Other(kind) => kind,
    });
    out.put_u8(message.flags);
    let (begin, rest) = message.payload.split_at(first - MESSAGE_HEADER_LEN);
    out.put_slice(begin);
    if !rest.is_empty() {
        put_frame_header(&mut out, message.connection, rest.len());
        out.put_slice(rest);
    }
    Ok(out.freeze())
}

fn put_frame_header(out: &mut BytesMut, connection: u32, len: usize) {
    out.put_u32(connection);
    put_u32(out, len);
}

fn put_u32(out: &mut BytesMut, len: usize) {
    out.put_u32(u32::try_from(len).expect("held against FRAME_LEN_MAX above"));
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(connection: u32, len: usize) -> Message {
        Message {
            connection,
            stream: 7,
            kind: Kind::Request,
            flags: 0,
            payload: Bytes::from(vec![5; len]),
        }
    }

    #[test]
    fn messages_survive_the_wire_however_it_is_cut() {
        let sent = [
            message(PLUGIN_SERVICE, 0),
            message(RUNTIME_SERVICE, 4086),
            message(PLUGIN_SERVICE, 4087),
            message(RUNTIME_SERVICE, 20_000),
        ];
        let wire: Vec<u8> = sent
            .iter()
            .flat_map(|message| encode(message).expect("short enough"))
            .collect();
        for step in [1, 7, 4096, wire.len()] {
            let mut decoder = Decoder::default();
            let mut got = Vec::new();
            for piece in wire.chunks(step) {
                decoder.buffer().extend_from_slice(piece);
                while let Some(message) = decoder.next_message().expect("valid") {
                    got.push(message);
                }
            }
            assert_eq!(got, sent, "in pieces of {step}");
        }
    }

    #[test]
    fn messages_of_two_connections_may_be_cut_into_each_other() {
        let [one, two] = [PLUGIN_SERVICE, RUNTIME_SERVICE]
            .map(|id| encode(&message(id, 10_000)).expect("short enough"));
        let cut = FRAME_HEADER_LEN + FIRST_FRAME_LEN;
        let mut decoder = Decoder::default();
        for piece in [&one[..cut], &two[..cut], &two[cut..], &one[cut..]] {
            decoder.buffer().extend_from_slice(piece);
        }
        let mut next = || decoder.next_message().expect("valid").map(|m| m.connection);
        assert_eq!([next(), next(), next()], [Some(2), Some(1), None]);
    }

    #[test]
    fn a_frame_that_nobody_listens_to_is_let_fall() {
        let mut decoder = Decoder::default();
        let stray = encode(&message(9, 30)).expect("short enough");
        decoder.buffer().extend_from_slice(&stray);
        assert_eq!(decoder.next_message(), Ok(None));
    }

    #[test]
    fn a_length_beyond_its_bound_is_refused_before_anything_is_kept_for_it() {
        let mut decoder = Decoder::default();
        decoder
            .buffer()
            .extend_from_slice(&[0, 0, 0, 1, 0xff, 0xff, 0xff, 0xff]);
        let error = decoder.next_message();
        assert_eq!(error, Err(ProtocolError::FrameTooLong(0xffff_ffff)));

        let mut decoder = Decoder::default();
        decoder
            .buffer()
            .extend_from_slice(&[0, 0, 0, 1, 0, 0, 0, 10]);
        decoder
            .buffer()
            .extend_from_slice(&[0, 0x40, 0, 1, 0, 0, 0, 1, 1, 0]);
        let error = decoder.next_message();
        assert_eq!(error, Err(ProtocolError::MessageTooLong((4 << 20) + 1)));
        assert!(encode(&message(1, MESSAGE_LEN_MAX + 1)).is_err());
    }
}
