//! Greeting, frames, commands, messages: bytes in, values out, and back. No I/O.

use std::fmt;

use bytes::{Buf as _, Bytes, BytesMut};
use smallvec::SmallVec;

use crate::Role;

/// Length of the greeting that both sides begin with.
pub const GREETING_BYTES: usize = 64;
/// Bytes of a command; those that there are take a few dozen.
const COMMAND_BYTES_MAX: usize = 4096;

const MORE: u8 = 1;
const LONG: u8 = 2;
const COMMAND: u8 = 4;

/// What a peer may send. More is a [`ProtocolError`], after which the connection is of no use.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Limits {
    /// Bytes of all frames of a message.
    pub message_bytes: usize,
    /// Frames of a message.
    pub frames: usize,
}

/// A message: one frame or more.
pub type Message = SmallVec<[Bytes; 4]>;

/// Why a peer cannot be spoken with.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum ProtocolError {
    /// It does not begin as ZMTP does.
    NotZmtp,
    /// Its version is before 3.0.
    Version(u8),
    /// It wants a security mechanism that is not NULL.
    Mechanism(String),
    /// It is a socket of a type that does not fit ours.
    Peer(String),
    /// It refuses us, and says why.
    Refused(String),
    /// A message or a command larger than allowed.
    TooLarge {
        /// What it claims or has reached, in bytes or frames.
        size: u64,
        /// The limit.
        max: usize,
    },
    /// A frame or a command that makes no sense.
    Malformed(&'static str),
}

impl std::error::Error for ProtocolError {}

impl fmt::Display for ProtocolError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotZmtp => f.write_str("the peer does not speak ZMTP: check the port"),
            Self::Version(major) => write!(f, "the peer speaks ZMTP {major}, 3.0 is needed"),
            Self::Mechanism(name) => write!(
                f,
                "the peer wants the security mechanism {name:?}, only NULL is spoken here"
            ),
            Self::Peer(name) => write!(f, "the peer is a {name:?} socket, which does not fit"),
            Self::Refused(reason) => write!(f, "the peer refuses the connection: {reason:?}"),
            Self::TooLarge { size, max } => {
                write!(
                    f,
                    "the peer sends a message of size {size}, {max} is allowed"
                )
            }
            Self::Malformed(what) => write!(f, "the peer breaks the protocol: {what}"),
        }
    }
}

/// The greeting, the same for both sides under NULL.
#[must_use]
pub fn greeting() -> [u8; GREETING_BYTES] {
    let mut greeting = [0; GREETING_BYTES];
    (greeting[0], greeting[9]) = (0xff, 0x7f);
    // Version 3.0: subscriptions are messages then, which peers of every version 3 understand.
    greeting[10] = 3;
    greeting[12..16].copy_from_slice(b"NULL");
    greeting
}

/// Judges a peer's greeting.
///
/// # Errors
/// If it is not ZMTP 3 with mechanism NULL.
pub fn check_greeting(greeting: &[u8; GREETING_BYTES]) -> Result<(), ProtocolError> {
    if greeting[0] != 0xff || greeting[9] & 1 != 1 {
        return Err(ProtocolError::NotZmtp);
    }
    if greeting[10] < 3 {
        return Err(ProtocolError::Version(greeting[10]));
    }
    let name = greeting[12..32].split(|byte| *byte == 0).next();
    match name.unwrap_or_default() {
        b"NULL" => Ok(()),
        other => Err(ProtocolError::Mechanism(shown(other))),
    }
}

/// What arrives after the greeting.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Incoming {
    /// The peer is ready; the name of its socket's type.
    Ready(Bytes),
    /// The peer is alive, and wants to be told the same with this context.
    Ping(Bytes),
    /// The peer wants, or no longer wants, messages that begin so.
    Subscribe {
        /// The beginning.
        topic: Bytes,
        /// Whether it does.
        wanted: bool,
    },
    /// A message.
    Message(Message),
}

/// Puts frames together from bytes.
#[derive(Debug)]
pub struct Decoder {
    limits: Limits,
    role: Role,
    buffer: BytesMut,
    message: Message,
    message_bytes: usize,
}

impl Decoder {
    /// A decoder for what the peer of a `role` sends after its greeting.
    #[must_use]
    pub fn new(role: Role, limits: Limits) -> Self {
        Self {
            limits,
            role,
            buffer: BytesMut::new(),
            message: Message::new(),
            message_bytes: 0,
        }
    }

    /// Where to put what has been read. Never holds much more than one message.
    pub fn buffer(&mut self) -> &mut BytesMut {
        &mut self.buffer
    }

    /// The next thing that has arrived whole; `None` if more bytes are needed.
    ///
    /// # Errors
    /// If the peer breaks the protocol or a limit. Nothing can be read after that.
    pub fn take(&mut self) -> Result<Option<Incoming>, ProtocolError> {
        while let Some((flags, body)) = self.frame()? {
            if flags & COMMAND != 0 {
                if let Some(incoming) = command(body)? {
                    return Ok(Some(incoming));
                }
                continue;
            }
            self.message_bytes += body.len();
            self.message.push(body);
            if flags & MORE == 0 {
                self.message_bytes = 0;
                let message = std::mem::take(&mut self.message);
                return Ok(Some(self.whole(message)));
            }
            if self.message.len() >= self.limits.frames {
                return Err(ProtocolError::TooLarge {
                    size: self.message.len() as u64 + 1,
                    max: self.limits.frames,
                });
            }
        }
        Ok(None)
    }

    /// Subscriptions of ZMTP 3.0 are messages with a byte in front.
    fn whole(&self, message: Message) -> Incoming {
        if self.role == Role::Publisher
            && let [only] = message.as_slice()
            && let Some(&wanted @ (0 | 1)) = only.first()
        {
            return Incoming::Subscribe {
                topic: only.slice(1..),
                wanted: wanted == 1,
            };
        }
        Incoming::Message(message)
    }

    fn frame(&mut self) -> Result<Option<(u8, Bytes)>, ProtocolError> {
        let Some(&flags) = self.buffer.first() else {
            return Ok(None);
        };
        if flags & !(MORE | LONG | COMMAND) != 0 {
            return Err(ProtocolError::Malformed("flags that there are not"));
        }
        if flags & COMMAND != 0 && flags & MORE != 0 {
            return Err(ProtocolError::Malformed("a command in parts"));
        }
        let head = if flags & LONG != 0 { 9 } else { 2 };
        let Some(length) = self.buffer.get(1..head) else {
            return Ok(None);
        };
        let length = length.iter().fold(0, |n, byte| n << 8 | u64::from(*byte));
        let room = match flags & COMMAND {
            0 => self.limits.message_bytes - self.message_bytes,
            _ => COMMAND_BYTES_MAX,
        };
        let body = usize::try_from(length).ok().filter(|body| *body <= room);
        let body = body.ok_or(ProtocolError::TooLarge {
            size: length,
            max: room,
        })?;
        if self.buffer.len() < head + body {
            // Room at once, so that a long frame is not moved several times.
            self.buffer.reserve(head + body - self.buffer.len());
            return Ok(None);
        }
        self.buffer.advance(head);
        Ok(Some((flags, self.buffer.split_to(body).freeze())))
    }
}

/// What a command means; `None` for those that mean nothing to us.
fn command(mut body: Bytes) -> Result<Option<Incoming>, ProtocolError> {
    let cut = ProtocolError::Malformed("a command that ends early");
    let name = take_short(&mut body).ok_or_else(|| cut.clone())?;
    Ok(match &name[..] {
        b"READY" => Some(Incoming::Ready(socket_type(body).ok_or(cut)?)),
        b"PING" => {
            if body.len() < 2 {
                return Err(cut);
            }
            // Two bytes of time to live, then what comes back.
            Some(Incoming::Ping(body.slice(2..)))
        }
        b"SUBSCRIBE" | b"CANCEL" => Some(Incoming::Subscribe {
            topic: body,
            wanted: &name[..] == b"SUBSCRIBE",
        }),
        b"ERROR" => {
            let reason = take_short(&mut body).unwrap_or_default();
            return Err(ProtocolError::Refused(shown(&reason)));
        }
        _ => None,
    })
}

/// The property of READY that says what the peer is.
fn socket_type(mut properties: Bytes) -> Option<Bytes> {
    let mut found = Bytes::new();
    while !properties.is_empty() {
        let name = take_short(&mut properties)?;
        let length = properties.try_get_u32().ok()? as usize;
        if length > properties.len() {
            return None;
        }
        let value = properties.split_to(length);
        if name.eq_ignore_ascii_case(b"Socket-Type") {
            found = value;
        }
    }
    Some(found)
}

fn take_short(bytes: &mut Bytes) -> Option<Bytes> {
    let length = usize::from(*bytes.first()?);
    if length >= bytes.len() {
        return None;
    }
    bytes.advance(1);
    Some(bytes.split_to(length))
}

fn shown(bytes: &[u8]) -> String {
    let bytes = &bytes[..bytes.len().min(200)];
    String::from_utf8_lossy(bytes).into_owned()
}

/// Appends a message.
pub fn put_message(frames: &[&[u8]], out: &mut Vec<u8>) {
    for (at, frame) in frames.iter().enumerate() {
        let more = if at + 1 < frames.len() { MORE } else { 0 };
        put_frame(more, frame, out);
    }
}

/// Appends the command READY of a socket.
pub fn put_ready(role: Role, out: &mut Vec<u8>) {
    let mut body = b"\x05READY\x0bSocket-Type\0\0\0".to_vec();
    body.push(role.name().len() as u8);
    body.extend_from_slice(role.name().as_bytes());
    put_frame(COMMAND, &body, out);
}

/// Appends the answer to a ping.
pub fn put_pong(context: &[u8], out: &mut Vec<u8>) {
    let body = [b"\x04PONG", context].concat();
    put_frame(COMMAND, &body, out);
}

/// Appends a subscription.
pub fn put_subscription(topic: &[u8], out: &mut Vec<u8>) {
    put_frame(0, &[b"\x01", topic].concat(), out);
}

fn put_frame(flags: u8, body: &[u8], out: &mut Vec<u8>) {
    match u8::try_from(body.len()) {
        Ok(short) => out.extend([flags, short]),
        Err(_) => {
            out.push(flags | LONG);
            out.extend((body.len() as u64).to_be_bytes());
        }
    }
    out.extend_from_slice(body);
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const LIMITS: Limits = Limits {
        message_bytes: 1000,
        frames: 4,
    };

    fn decode(role: Role, bytes: &[u8], step: usize) -> Result<Vec<Incoming>, ProtocolError> {
        let mut decoder = Decoder::new(role, LIMITS);
        let mut all = Vec::new();
        for piece in bytes.chunks(step.max(1)) {
            decoder.buffer().extend_from_slice(piece);
            while let Some(incoming) = decoder.take()? {
                all.push(incoming);
            }
        }
        Ok(all)
    }

    proptest! {
        #[test]
        fn messages_come_out_as_they_went_in_however_they_are_cut(
            messages in prop::collection::vec(
                prop::collection::vec(prop::collection::vec(any::<u8>(), 0..300), 1..=3), 0..6),
            step in 1_usize..400,
        ) {
            let mut bytes = Vec::new();
            for message in &messages {
                let frames: Vec<&[u8]> = message.iter().map(Vec::as_slice).collect();
                put_message(&frames, &mut bytes);
            }
            let wanted: Vec<Incoming> = messages
                .iter()
                .map(|m| Incoming::Message(m.iter().cloned().map(Bytes::from).collect()))
                .collect();
            prop_assert_eq!(decode(Role::Subscriber, &bytes, step), Ok(wanted));
        }

        #[test]
        fn whatever_arrives_ends_in_messages_or_an_error(
            bytes in prop::collection::vec(any::<u8>(), 0..200), step in 1_usize..9,
        ) {
            let _any = decode(Role::Publisher, &bytes, step);
        }
    }

    #[test]
    fn commands_and_subscriptions_are_understood() {
        let mut bytes = Vec::new();
        put_ready(Role::Subscriber, &mut bytes);
        put_subscription(b"kv@", &mut bytes);
        put_frame(COMMAND, b"\x09SUBSCRIBEa", &mut bytes);
        put_frame(COMMAND, b"\x06CANCELa", &mut bytes);
        put_frame(COMMAND, b"\x04PING\0\x0actx", &mut bytes);
        put_frame(COMMAND, b"\x05NOVEL", &mut bytes);
        let subscribe = |topic: &'static str, wanted| Incoming::Subscribe {
            topic: topic.into(),
            wanted,
        };
        assert_eq!(
            decode(Role::Publisher, &bytes, 7),
            Ok(vec![
                Incoming::Ready("SUB".into()),
                subscribe("kv@", true),
                subscribe("a", true),
                subscribe("a", false),
                Incoming::Ping("ctx".into()),
            ])
        );
    }

    #[test]
    fn a_peer_is_held_to_the_limits_before_anything_is_kept() {
        let check = |bytes: &[u8], error| {
            assert_eq!(decode(Role::Subscriber, bytes, 1000), Err(error));
        };
        let too_large = |size, max| ProtocolError::TooLarge { size, max };
        check(
            &[LONG, 0xff, 0xff, 0xff, 0xff, 0, 0, 0, 0],
            too_large(0xffff_ffff << 32, 1000),
        );
        // A message of two frames that are too large together.
        let mut two = vec![MORE, 200];
        two.extend([0; 200]);
        two.extend([LONG, 0, 0, 0, 0, 0, 0, 3, 0x21]);
        check(&two, too_large(801, 800));
        check(&[MORE, 0, MORE, 0, MORE, 0, MORE, 0], too_large(5, 4));
        check(
            &[COMMAND | LONG, 0, 0, 0, 0, 0, 1, 0, 0],
            too_large(65536, 4096),
        );
        check(
            &[0x80],
            ProtocolError::Malformed("flags that there are not"),
        );
        check(
            &[COMMAND | MORE, 0],
            ProtocolError::Malformed("a command in parts"),
        );
        check(
            b"\x04\x07\x05ERROR\0",
            ProtocolError::Refused(String::new()),
        );
    }

    #[test]
    fn greetings_of_others_are_told_apart() {
        let check = |change: fn(&mut [u8; 64]), wanted| {
            let mut peer = greeting();
            change(&mut peer);
            assert_eq!(check_greeting(&peer), wanted);
        };
        check(|_| (), Ok(()));
        check(|g| g[11] = 1, Ok(()));
        check(
            |g| g.copy_from_slice(&[b'H'; 64]),
            Err(ProtocolError::NotZmtp),
        );
        check(|g| g[10] = 1, Err(ProtocolError::Version(1)));
        check(
            |g| g[12..17].copy_from_slice(b"CURVE"),
            Err(ProtocolError::Mechanism("CURVE".to_owned())),
        );
    }
}
