//! One TCP connection of a test, and messages as they stood on the wire.
//!
//! Reads what is allowed and nothing more forgiving: a test wants to see what the gateway wrote.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpStream};

use super::PATIENCE;

/// One TCP connection with what has been read and not been looked at.
pub struct Peer {
    pub stream: TcpStream,
    buf: Vec<u8>,
}

/// A request or response, taken apart.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Message {
    /// Request line or status line.
    pub start: String,
    /// Fields in order, names as sent.
    pub fields: Vec<(String, String)>,
    pub body: Vec<u8>,
    pub trailers: Vec<(String, String)>,
    /// Chunks of the body, where it was chunked.
    pub chunks: Vec<usize>,
    /// False if the connection ended before the message did.
    pub complete: bool,
}

impl Message {
    pub fn status(&self) -> u16 {
        let status = self.start.split(' ').nth(1).and_then(|s| s.parse().ok());
        status.unwrap_or_else(|| panic!("no status in {:?}", self.start))
    }

    /// The value of a field; several are joined by `|`.
    pub fn field(&self, name: &str) -> Option<String> {
        let values: Vec<&str> = self
            .fields
            .iter()
            .filter(|(own, _)| own.eq_ignore_ascii_case(name))
            .map(|(_, value)| &**value)
            .collect();
        (!values.is_empty()).then(|| values.join("|"))
    }

    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    pub fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.body)
            .unwrap_or_else(|e| panic!("{e} in {:?} {:?}", self.start, self.text()))
    }
}

impl Peer {
    pub fn of(stream: TcpStream) -> Self {
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.set_write_timeout(Some(PATIENCE)).unwrap();
        stream.set_nodelay(true).unwrap();
        Self {
            stream,
            buf: Vec::new(),
        }
    }

    pub fn connect(port: u16) -> Self {
        Self::of(TcpStream::connect((Ipv4Addr::LOCALHOST, port)).unwrap())
    }

    /// Writes; a peer that has closed is found out by reading.
    pub fn send(&mut self, bytes: impl AsRef<[u8]>) {
        let _closed = self.stream.write_all(bytes.as_ref());
    }

    /// Reads more; false at the end of the stream, however it ended.
    fn fill(&mut self) -> bool {
        let mut piece = [0; 65_536];
        match self.stream.read(&mut piece) {
            Ok(0) => false,
            Ok(n) => {
                self.buf.extend_from_slice(&piece[..n]);
                true
            }
            Err(e) if e.kind() == std::io::ErrorKind::ConnectionReset => false,
            Err(e) => panic!("waiting for the peer: {e}; read so far {:?}", self.so_far()),
        }
    }

    fn so_far(&self) -> String {
        String::from_utf8_lossy(&self.buf[..self.buf.len().min(2000)]).into_owned()
    }

    /// Bytes up to and including `end`; `None` if the stream ends before.
    pub fn until(&mut self, end: &str) -> Option<Vec<u8>> {
        let end = end.as_bytes();
        loop {
            if let Some(at) = self.buf.windows(end.len()).position(|w| w == end) {
                return Some(self.buf.drain(..at + end.len()).collect());
            }
            if !self.fill() {
                return None;
            }
        }
    }

    fn exactly(&mut self, length: usize) -> Option<Vec<u8>> {
        while self.buf.len() < length {
            if !self.fill() {
                return None;
            }
        }
        Some(self.buf.drain(..length).collect())
    }

    /// Everything up to the end of the stream.
    pub fn rest(&mut self) -> Vec<u8> {
        while self.fill() {}
        std::mem::take(&mut self.buf)
    }

    /// Whether the peer closes without sending anything more.
    pub fn closes(&mut self) -> bool {
        self.rest().is_empty()
    }

    /// The final response to a request of this method.
    pub fn response(&mut self, method: &str) -> Message {
        let message = self.message(Some(method));
        message.expect("the gateway answers")
    }

    /// Reads a head: start line and fields.
    pub fn head(&mut self) -> Option<Message> {
        let head = self.until("\r\n\r\n")?;
        let head = String::from_utf8(head).unwrap();
        let mut lines = head.trim_end_matches("\r\n").split("\r\n");
        Some(Message {
            start: lines.next().unwrap().to_owned(),
            fields: lines.map(field).collect(),
            ..Message::default()
        })
    }

    /// Reads a message; `answer_to` is the request's method if it is a response.
    pub fn message(&mut self, answer_to: Option<&str>) -> Option<Message> {
        let mut message = self.head()?;
        let status = answer_to.map(|_| message.status());
        let bodiless = answer_to == Some("HEAD") || matches!(status, Some(101 | 204 | 304));
        if bodiless {
            message.complete = true;
        } else if message.field("transfer-encoding").is_some() {
            message.complete = self.chunks(&mut message).is_some();
        } else if let Some(length) = message.field("content-length") {
            let length = length.parse().unwrap();
            match self.exactly(length) {
                Some(body) => (message.body, message.complete) = (body, true),
                None => message.body = std::mem::take(&mut self.buf),
            }
        } else if answer_to.is_some() {
            message.body = self.rest();
            message.complete = true;
        } else {
            message.complete = true;
        }
        Some(message)
    }

    /// Reads one chunk; an empty one ends the body.
    pub fn chunk(&mut self) -> Option<Vec<u8>> {
        let line = String::from_utf8(self.until("\r\n")?).unwrap();
        let size = usize::from_str_radix(line.trim_end(), 16).unwrap();
        if size == 0 {
            return Some(Vec::new());
        }
        let mut data = self.exactly(size + 2)?;
        assert_eq!(data.split_off(size), b"\r\n");
        Some(data)
    }

    fn chunks(&mut self, message: &mut Message) -> Option<()> {
        loop {
            let data = self.chunk()?;
            if data.is_empty() {
                break;
            }
            message.chunks.push(data.len());
            message.body.extend(data);
        }
        loop {
            let line = String::from_utf8(self.until("\r\n")?).unwrap();
            if line == "\r\n" {
                return Some(());
            }
            message.trailers.push(field(line.trim_end()));
        }
    }
}

fn field(line: &str) -> (String, String) {
    let (name, value) = line.split_once(':').unwrap();
    (name.to_owned(), value.trim().to_owned())
}
