//! Chat requests that look like a product's: one of a few shared system prompts, some turns of
//! conversation, and a user text that differs in every request.
//!
//! The bodies are made once from a fixed seed, so two runs send the same bytes. A number inside
//! the last user message is overwritten for each request (`Body::parts`), so no request ever
//! repeats another as a whole while system prompts do repeat, which is what a prefix index meets
//! in production. Fields stand in the order of the official Python client: messages first.

use serde_json::json;

/// Bytes of bodies that one load process keeps; large bodies come in fewer versions.
const SET_BYTES_MAX: usize = 8 << 20;

/// Versions of a small body.
const SET_LEN_MAX: usize = 256;

/// System prompts shared among the bodies of a set.
const SYSTEM_PROMPTS: usize = 8;

/// What stands where each request's own number goes.
const NUMBER: &str = "0000000000000000";

const WORDS: [&str; 48] = [
    "please",
    "compare",
    "the",
    "latency",
    "of",
    "two",
    "replicas",
    "when",
    "cache",
    "is",
    "warm",
    "and",
    "report",
    "median",
    "values",
    "for",
    "each",
    "region",
    "then",
    "explain",
    "why",
    "prefill",
    "takes",
    "longer",
    "than",
    "decode",
    "under",
    "load",
    "with",
    "examples",
    "in",
    "plain",
    "language",
    "summarise",
    "attached",
    "notes",
    "about",
    "customer",
    "orders",
    "from",
    "Zürich",
    "naïve",
    "\"quoted\"",
    "step-by-step",
    "answer,",
    "policy.",
    "returns;",
    "数据",
];

/// One request body, cut around the number.
#[derive(Debug)]
pub(super) struct Body {
    text: String,
    number_at: usize,
}

impl Body {
    /// Bytes of the body.
    pub(super) fn len(&self) -> usize {
        self.text.len()
    }

    /// The body before and behind the number.
    pub(super) fn parts(&self) -> (&[u8], &[u8]) {
        let bytes = self.text.as_bytes();
        (
            &bytes[..self.number_at],
            &bytes[self.number_at + NUMBER.len()..],
        )
    }
}

/// A number as the bytes that stand between a body's parts.
pub(super) fn number(value: u64) -> [u8; NUMBER.len()] {
    let mut text = [b'0'; NUMBER.len()];
    let mut left = value;
    for slot in text.iter_mut().rev() {
        *slot = b"0123456789abcdef"[usize::try_from(left % 16).expect("below 16")];
        left /= 16;
    }
    text
}

/// Bodies of about `size` bytes (never more, and less by at most one word and its quotes).
pub(super) fn set(size: usize, stream: bool) -> Vec<Body> {
    let mut words = Words(0x9e37_79b9_7f4a_7c15);
    // Two fifths of the prompt are shared: the share of a typical assistant's instructions.
    let systems: Vec<String> = (0..SYSTEM_PROMPTS)
        .map(|_| words.text(size * 2 / 5))
        .collect();
    let len = (SET_BYTES_MAX / size.max(1)).clamp(16, SET_LEN_MAX);
    (0..len)
        .map(|i| body(size, stream, &systems[i % SYSTEM_PROMPTS], &mut words))
        .collect()
}

fn body(size: usize, stream: bool, system: &str, words: &mut Words) -> Body {
    let render = |turn: &str, question: &str| {
        let mut ask = json!({
            "messages": [
                {"role": "system", "content": system},
                {"role": "user", "content": turn},
                {"role": "assistant", "content": "Understood. Here is a short overview first."},
                {"role": "user", "content": format!("Ticket {NUMBER}: {question}")},
            ],
            "model": "mock",
            "max_tokens": 64,
            "temperature": 0.7,
        });
        if stream {
            ask["stream"] = json!(true);
        }
        ask.to_string()
    };
    let room = size.saturating_sub(render("", "").len());
    let turn = words.text(room / 2);
    let room = size.saturating_sub(render(&turn, "").len());
    let text = render(&turn, &words.text(room));
    let number_at = text
        .rfind(NUMBER)
        .expect("rendered into the last message just above");
    Body { text, number_at }
}

/// A small generator of words; xorshift, because only variety matters here.
struct Words(u64);

impl Words {
    fn next(&mut self) -> &'static str {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        WORDS[usize::try_from(self.0 % WORDS.len() as u64).expect("below the length of a list")]
    }

    /// Words whose JSON form has at most `bytes` bytes.
    fn text(&mut self, bytes: usize) -> String {
        let mut text = String::with_capacity(bytes);
        let mut used = 0;
        loop {
            let word = self.next();
            let escapes = word.bytes().filter(|byte| *byte == b'"').count();
            used += word.len() + escapes + 1;
            if used > bytes {
                return text;
            }
            text.push_str(word);
            text.push(' ');
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{number, set};
    use serde_json::Value;
    use std::collections::HashSet;

    #[test]
    fn bodies_are_valid_distinct_and_of_the_size_asked_for() {
        for size in [2_048, 16_384, 220_000] {
            let bodies = set(size, true);
            let mut seen = HashSet::new();
            for (i, body) in bodies.iter().enumerate() {
                assert!(
                    body.len() <= size && body.len() + 32 > size,
                    "{} of {size}",
                    body.len()
                );
                let (front, back) = body.parts();
                let whole = [front, &number(i as u64), back].concat();
                let value: Value = serde_json::from_slice(&whole).unwrap();
                assert_eq!(value["model"], "mock");
                assert_eq!(value["stream"], true);
                assert!(seen.insert(whole), "body {i} repeats");
            }
        }
    }

    #[test]
    fn system_prompts_are_shared_and_few() {
        let prompts: HashSet<String> = set(2_048, false)
            .iter()
            .map(|body| {
                let value: Value = serde_json::from_str(&body.text).unwrap();
                value["messages"][0]["content"].as_str().unwrap().to_owned()
            })
            .collect();
        assert_eq!(prompts.len(), super::SYSTEM_PROMPTS);
    }

    #[test]
    fn numbers_are_fixed_width() {
        assert_eq!(&number(0), b"0000000000000000");
        assert_eq!(&number(0xbeef), b"000000000000beef");
    }
}
