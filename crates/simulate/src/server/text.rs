//! A stand-in for a tokeniser: four bytes are one token.
//!
//! Not a real vocabulary; what it keeps is what caching depends on: texts with equal beginnings have
//! tokens with equal beginnings, message by message, and an answer that comes back as history has the
//! tokens it was generated with. Token and text turn into each other without loss.

use crate::engine::tokens::mix;

/// Bytes per token, close to the mean of English text with common vocabularies.
const BYTES_PER_TOKEN: usize = 4;
/// Tokens above this stand for no text: `0xFF` as last byte occurs in no UTF-8 text.
const SPECIAL: u32 = 0xff00_0000;
/// End of a message.
const END_OF_TURN: u32 = SPECIAL;
/// Beginning of a text.
const BEGIN: u32 = SPECIAL + 1;
/// Tokens that stand for one image, sound or file of a multi-modal message.
const MEDIA_TOKENS: u32 = 256;

/// Tokens of a prompt under construction.
#[derive(Clone, Debug)]
pub(super) struct Tokens(pub(super) Vec<u32>);

impl Tokens {
    /// An empty prompt: nothing but its beginning.
    pub(super) fn begin() -> Self {
        Self(vec![BEGIN])
    }

    /// Starts a message; the role becomes one token.
    pub(super) fn role(&mut self, role: &str) {
        let hash = role
            .bytes()
            .fold(0, |hash, byte| mix(hash ^ u64::from(byte)));
        self.0.push(SPECIAL + 16 + (hash % 1000) as u32);
    }

    /// Ends a message.
    pub(super) fn end(&mut self) {
        self.0.push(END_OF_TURN);
    }

    /// Adds text.
    pub(super) fn text(&mut self, text: &str) {
        let chunks = text.as_bytes().chunks(BYTES_PER_TOKEN);
        self.0.extend(chunks.map(|chunk| {
            let mut bytes = [0; BYTES_PER_TOKEN];
            bytes[..chunk.len()].copy_from_slice(chunk);
            u32::from_le_bytes(bytes)
        }));
    }

    /// Adds something that is not text, by its address or content.
    pub(super) fn media(&mut self, content: &str) {
        let hash = content
            .bytes()
            .fold(0, |hash, byte| mix(hash ^ u64::from(byte)));
        let token = |index: u32| SPECIAL + (mix(hash ^ u64::from(index)) % 0x00ff_ffff) as u32;
        self.0.extend((0..MEDIA_TOKENS).map(token));
    }
}

/// The text of tokens; special ones have none.
pub(super) fn detokenize(tokens: &[u32]) -> String {
    let mut bytes = Vec::with_capacity(tokens.len() * BYTES_PER_TOKEN);
    for token in tokens.iter().filter(|token| **token < SPECIAL) {
        bytes.extend(token.to_le_bytes().into_iter().filter(|byte| *byte != 0));
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_survives_and_equal_beginnings_stay_equal() {
        for text in [
            "",
            "a",
            "hello world",
            "häßlich und schön",
            "日本語テキスト",
        ] {
            let mut tokens = Tokens::begin();
            tokens.text(text);
            assert_eq!(detokenize(&tokens.0), text);
            assert_eq!(tokens.0.len(), 1 + text.len().div_ceil(4));
        }
        let (mut one, mut other) = (Tokens::begin(), Tokens::begin());
        one.text("you are a helpful robot");
        other.text("you are a helpful human");
        assert_eq!(one.0[..5], other.0[..5]);
        assert_ne!(one.0, other.0);
    }
}
