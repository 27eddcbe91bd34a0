//! The tokenizer behind a seam: which library it is, is known here alone.
//!
//! `fastokens` gives the tokens that Hugging Face's `tokenizers` gives, at a small part of the cost
//! (the tests compare them). It keeps what it has met in caches per thread, of at most 100 MiB for
//! each of the four tokenizers that a thread used last.

use crate::LoadError;

/// Makes tokens of text.
pub(crate) trait Engine: Send + Sync + std::fmt::Debug {
    /// The tokens of `text`, those around it included if `special`.
    ///
    /// # Errors
    /// A sentence, if the engine gives up.
    fn encode(&self, text: &str, special: bool) -> Result<Vec<u32>, String>;
}

/// A tokenizer of Hugging Face's `tokenizer.json`.
pub(crate) struct HuggingFace(fastokens::Tokenizer);

impl std::fmt::Debug for HuggingFace {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "HuggingFace({} tokens)", self.0.vocab_size())
    }
}

impl HuggingFace {
    pub(crate) fn new(json: &[u8]) -> Result<Self, LoadError> {
        let bad = |error: &dyn std::fmt::Display| LoadError::Tokenizer(error.to_string());
        let json = serde_json::from_slice(json).map_err(|error| bad(&error))?;
        let mut tokenizer = fastokens::Tokenizer::from_json(json).map_err(|error| bad(&error))?;
        // What model servers do with a prompt is neither.
        tokenizer.set_truncation(None);
        tokenizer.set_padding(None);
        // The first text sets up what the others use.
        tokenizer.encode("a text").map_err(|error| bad(&error))?;
        Ok(Self(tokenizer))
    }
}

impl Engine for HuggingFace {
    fn encode(&self, text: &str, special: bool) -> Result<Vec<u32>, String> {
        let tokens = self.0.encode_with_special_tokens(text, special);
        tokens.map_err(|error| error.to_string())
    }
}
