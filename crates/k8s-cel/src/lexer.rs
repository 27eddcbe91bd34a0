//! Expressions to tokens.

use crate::source::Fault;

/// A token and where it begins.
#[derive(Clone, Debug)]
pub(crate) struct Token {
    pub(crate) at: usize,
    pub(crate) kind: TokenKind,
}

/// What a token is.
#[derive(Clone, PartialEq, Debug)]
pub(crate) enum TokenKind {
    Ident(String),
    Int(String),
    Uint(String),
    Double(String),
    Str(String),
    Bytes(Vec<u8>),
    /// An operator, a bracket, or one of the words `in`, `true`, `false`, `null`.
    Sign(&'static str),
    End,
}

/// Signs, longer ones before those that they begin with.
const SIGNS: [&str; 24] = [
    "==", "!=", "<=", ">=", "&&", "||", "<", ">", "[", "]", "{", "}", "(", ")", ".", ",", "-", "!",
    "?", ":", "+", "*", "/", "%",
];

/// Splits the expression into tokens, the last of which is the end.
pub(crate) fn lex(source: &str) -> Result<Vec<Token>, Fault> {
    let mut lexer = Lexer { source, at: 0 };
    let mut tokens = Vec::new();
    loop {
        lexer.skip_space();
        let at = lexer.at;
        let kind = lexer.token()?;
        let end = kind == TokenKind::End;
        tokens.push(Token { at, kind });
        if end {
            return Ok(tokens);
        }
    }
}

struct Lexer<'a> {
    source: &'a str,
    at: usize,
}

impl<'a> Lexer<'a> {
    fn rest(&self) -> &'a str {
        &self.source[self.at..]
    }

    fn byte(&self, ahead: usize) -> u8 {
        let bytes = self.source.as_bytes();
        bytes.get(self.at + ahead).copied().unwrap_or(0)
    }

    fn skip_space(&mut self) {
        loop {
            match self.byte(0) {
                b' ' | b'\t' | b'\r' | b'\n' | 0x0c => self.at += 1,
                b'/' if self.byte(1) == b'/' => {
                    self.at += self.rest().find('\n').unwrap_or_else(|| self.rest().len());
                }
                _ => return,
            }
        }
    }

    fn token(&mut self) -> Result<TokenKind, Fault> {
        if self.rest().is_empty() {
            return Ok(TokenKind::End);
        }
        if let Some(text) = self.text()? {
            return Ok(text);
        }
        let first = self.byte(0);
        if first.is_ascii_digit() || (first == b'.' && self.byte(1).is_ascii_digit()) {
            return Ok(self.number());
        }
        if first.is_ascii_alphabetic() || first == b'_' {
            let letter = |b: &u8| b.is_ascii_alphanumeric() || *b == b'_';
            let length = self.rest().bytes().take_while(letter).count();
            let word = self.take(length);
            return Ok(match word.as_str() {
                "in" => TokenKind::Sign("in"),
                "true" => TokenKind::Sign("true"),
                "false" => TokenKind::Sign("false"),
                "null" => TokenKind::Sign("null"),
                _ => TokenKind::Ident(word),
            });
        }
        if let Some(sign) = SIGNS.iter().find(|sign| self.rest().starts_with(**sign)) {
            self.at += sign.len();
            return Ok(TokenKind::Sign(sign));
        }
        let what: String = self.rest().chars().take(1).collect();
        Err(self.error(&format!("token recognition error at: '{what}'")))
    }

    fn take(&mut self, length: usize) -> String {
        let taken = self.rest()[..length].to_owned();
        self.at += length;
        taken
    }

    fn error(&self, message: &str) -> Fault {
        Fault::syntax(self.at, message)
    }

    fn number(&mut self) -> TokenKind {
        let bytes = self.rest().as_bytes();
        let digits = |from: usize| {
            let run = bytes.iter().skip(from);
            run.take_while(|b| b.is_ascii_digit()).count()
        };
        if self.byte(0) == b'0' && self.byte(1) == b'x' && self.byte(2).is_ascii_hexdigit() {
            let hex = bytes[2..].iter().take_while(|b| b.is_ascii_hexdigit());
            return self.integer(2 + hex.count());
        }
        let whole = digits(0);
        let mut length = whole;
        if self.byte(length) == b'.' && self.byte(length + 1).is_ascii_digit() {
            length += 1 + digits(length + 1);
        }
        if matches!(self.byte(length), b'e' | b'E') {
            let sign = usize::from(matches!(self.byte(length + 1), b'+' | b'-'));
            if self.byte(length + 1 + sign).is_ascii_digit() {
                length += 1 + sign + digits(length + 1 + sign);
            }
        }
        if length > whole {
            return TokenKind::Double(self.take(length));
        }
        self.integer(whole)
    }

    fn integer(&mut self, length: usize) -> TokenKind {
        let text = self.take(length);
        if matches!(self.byte(0), b'u' | b'U') {
            self.at += 1;
            return TokenKind::Uint(text);
        }
        TokenKind::Int(text)
    }

    /// A string or bytes, with the prefixes `b` and `r`, in one or three quotes.
    fn text(&mut self) -> Result<Option<TokenKind>, Fault> {
        let mut ahead = 0;
        let bytes = matches!(self.byte(ahead), b'b' | b'B');
        ahead += usize::from(bytes);
        let raw = matches!(self.byte(ahead), b'r' | b'R');
        ahead += usize::from(raw);
        let quote = self.byte(ahead);
        if quote != b'"' && quote != b'\'' {
            return Ok(None);
        }
        let triple = self.byte(ahead + 1) == quote && self.byte(ahead + 2) == quote;
        let width = if triple { 3 } else { 1 };
        let start = self.at + ahead + width;
        let end = self.closing(start, quote, width, raw)?;
        let content = self.source.get(start..end).unwrap_or_default();
        let content = content.replace("\r\n", "\n").replace('\r', "\n");
        let decoded = if raw {
            content.into_bytes()
        } else {
            unescape(&content, bytes).map_err(|message| self.error(message))?
        };
        let token = if bytes {
            TokenKind::Bytes(decoded)
        } else {
            let text = String::from_utf8(decoded);
            TokenKind::Str(text.map_err(|_| self.error("invalid unicode code point"))?)
        };
        self.at = end + width;
        Ok(Some(token))
    }

    /// Where the quotes that close the text begin.
    fn closing(&self, start: usize, quote: u8, width: usize, raw: bool) -> Result<usize, Fault> {
        let bytes = self.source.as_bytes();
        let mut end = start;
        loop {
            match bytes.get(end) {
                Some(b'\\') if !raw => end += 2,
                Some(b'\n' | b'\r') if width == 1 => return Err(self.unclosed()),
                Some(b) if *b == quote => {
                    let closes = bytes[end..].iter().take(width).filter(|b| **b == quote);
                    if closes.count() == width {
                        return Ok(end);
                    }
                    end += 1;
                }
                Some(_) => end += 1,
                None => return Err(self.unclosed()),
            }
        }
    }

    fn unclosed(&self) -> Fault {
        self.error(&format!("token recognition error at: '{}'", self.rest()))
    }
}

/// The content of a quoted string with its escapes resolved. Escapes of bytes stand for bytes.
fn unescape(content: &str, bytes: bool) -> Result<Vec<u8>, &'static str> {
    let mut out = Vec::with_capacity(content.len());
    let mut rest = content;
    while let Some(at) = rest.find('\\') {
        out.extend_from_slice(&rest.as_bytes()[..at]);
        let escape = rest.as_bytes().get(at + 1).copied().unwrap_or(0);
        let (base, from, length) = match escape {
            b'x' | b'X' => (16, at + 2, 2),
            b'u' if !bytes => (16, at + 2, 4),
            b'U' if !bytes => (16, at + 2, 8),
            b'0'..=b'3' => (8, at + 1, 3),
            _ => {
                out.push(simple_escape(escape).ok_or("unable to unescape string")?);
                rest = &rest[at + 2..];
                continue;
            }
        };
        let code = rest
            .get(from..from + length)
            .filter(|digits| digits.bytes().all(|b| b.is_ascii_hexdigit()))
            .and_then(|digits| u32::from_str_radix(digits, base).ok())
            .ok_or("unable to unescape string")?;
        match u8::try_from(code) {
            Ok(byte) if bytes => out.push(byte),
            _ => {
                let char = char::from_u32(code).ok_or("invalid unicode code point")?;
                out.extend_from_slice(char.encode_utf8(&mut [0; 4]).as_bytes());
            }
        }
        rest = &rest[from + length..];
    }
    out.extend_from_slice(rest.as_bytes());
    Ok(out)
}

fn simple_escape(escape: u8) -> Option<u8> {
    Some(match escape {
        b'a' => 7,
        b'b' => 8,
        b'f' => 12,
        b'n' => b'\n',
        b'r' => b'\r',
        b't' => b'\t',
        b'v' => 11,
        b'\\' | b'\'' | b'"' | b'`' | b'?' => escape,
        _ => return None,
    })
}
