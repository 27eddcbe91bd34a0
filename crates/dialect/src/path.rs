//! Which API a request speaks, told from its method and path alone.
//!
//! Paths are matched by their end, so that a prefix such as `/openai/v1/...` or a route's own
//! prefix does not matter; the longest known ending wins. What a body of an API holds is the
//! business of [`crate::scan`] (JSON) and [`crate::multipart`] (forms).

/// An API that model servers offer.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Api {
    /// `POST .../chat/completions`.
    ChatCompletions,
    /// `POST .../completions`.
    Completions,
    /// `POST .../responses`.
    Responses,
    /// `POST .../conversations`.
    Conversations,
    /// `POST .../embeddings`, and vLLM's `/pooling` and `/classify`, which take the same `input`.
    Embeddings,
    /// `POST .../rerank`.
    Rerank,
    /// `POST .../score`.
    Score,
    /// `POST .../tokenize`, and the `/render` twins of the completions.
    Tokenize,
    /// `POST .../detokenize`.
    Detokenize,
    /// `POST .../audio/transcriptions` and `.../audio/translations`: a form, not JSON.
    Transcriptions,
    /// `POST .../audio/speech`.
    Speech,
    /// `POST .../images/generations`.
    Images,
    /// Anthropic's `POST .../v1/messages`.
    Messages,
    /// Anthropic's `POST .../v1/messages/count_tokens`.
    CountTokens,
    /// vLLM's `POST .../inference/v1/generate`: tokens in, tokens out.
    VllmGenerate,
    /// SGLang's `POST .../generate`.
    SglangGenerate,
    /// `GET .../models`.
    Models,
    /// Anything else: relayed unread.
    Other,
}

/// Whose conventions an API follows, which decides the shape of errors.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Dialect {
    /// `{"error": {...}}`.
    OpenAi,
    /// `{"type": "error", "error": {...}}`.
    Anthropic,
}

/// What a request's body is.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum BodyKind {
    /// One JSON object: read it with [`crate::scan::scan`].
    Json,
    /// `multipart/form-data`: read it with [`crate::multipart::fields`].
    Multipart,
    /// Not looked at, or not there.
    Opaque,
}

impl Api {
    /// The API of a request; `path` comes without its query.
    #[must_use]
    pub fn of(method: &str, path: &str) -> Self {
        let last = path.rsplit('/').next().unwrap_or("");
        match method {
            "POST" => Self::of_post(path, last),
            "GET" if last == "models" => Self::Models,
            _ => Self::Other,
        }
    }

    fn of_post(path: &str, last: &str) -> Self {
        let ends = |suffix: &str| path.ends_with(suffix);
        match last {
            "completions" if ends("/chat/completions") => Self::ChatCompletions,
            "completions" => Self::Completions,
            "responses" => Self::Responses,
            "conversations" => Self::Conversations,
            "embeddings" | "pooling" | "classify" => Self::Embeddings,
            "rerank" => Self::Rerank,
            "score" => Self::Score,
            "render" if ends("/completions/render") => Self::Tokenize,
            "tokenize" => Self::Tokenize,
            "detokenize" => Self::Detokenize,
            "transcriptions" if ends("/audio/transcriptions") => Self::Transcriptions,
            "translations" if ends("/audio/translations") => Self::Transcriptions,
            "speech" if ends("/audio/speech") => Self::Speech,
            "generations" if ends("/images/generations") => Self::Images,
            // The version is part of it: OpenAI's `/v1/threads/{id}/messages` is another API.
            "messages" if ends("/v1/messages") => Self::Messages,
            "count_tokens" if ends("/v1/messages/count_tokens") => Self::CountTokens,
            "generate" if ends("/inference/v1/generate") => Self::VllmGenerate,
            "generate" => Self::SglangGenerate,
            _ => Self::Other,
        }
    }

    /// Whose conventions it follows.
    #[must_use]
    pub const fn dialect(self) -> Dialect {
        match self {
            Self::Messages | Self::CountTokens => Dialect::Anthropic,
            Self::ChatCompletions
            | Self::Completions
            | Self::Responses
            | Self::Conversations
            | Self::Embeddings
            | Self::Rerank
            | Self::Score
            | Self::Tokenize
            | Self::Detokenize
            | Self::Transcriptions
            | Self::Speech
            | Self::Images
            | Self::VllmGenerate
            | Self::SglangGenerate
            | Self::Models
            | Self::Other => Dialect::OpenAi,
        }
    }

    /// What its request bodies are.
    #[must_use]
    pub const fn body(self) -> BodyKind {
        match self {
            Self::Models | Self::Other => BodyKind::Opaque,
            Self::Transcriptions => BodyKind::Multipart,
            Self::ChatCompletions
            | Self::Completions
            | Self::Responses
            | Self::Conversations
            | Self::Embeddings
            | Self::Rerank
            | Self::Score
            | Self::Tokenize
            | Self::Detokenize
            | Self::Speech
            | Self::Images
            | Self::Messages
            | Self::CountTokens
            | Self::VllmGenerate
            | Self::SglangGenerate => BodyKind::Json,
        }
    }

    /// Whether `stream: true` in the request makes the answer a stream of events.
    #[must_use]
    pub const fn may_stream(self) -> bool {
        matches!(
            self,
            Self::ChatCompletions
                | Self::Completions
                | Self::Responses
                | Self::Messages
                | Self::Transcriptions
                | Self::VllmGenerate
                | Self::SglangGenerate
        )
    }

    /// Whether a server decodes tokens for it, so that an output limit means something.
    #[must_use]
    pub const fn generates(self) -> bool {
        matches!(
            self,
            Self::ChatCompletions
                | Self::Completions
                | Self::Responses
                | Self::Messages
                | Self::VllmGenerate
                | Self::SglangGenerate
        )
    }

    /// The members that make the prompt, in the order in which a server lays them out: chat
    /// templates put tools and the system text before the first message, whatever the order of
    /// keys in the body. At most [`PROMPT_PARTS_MAX`].
    #[must_use]
    pub const fn prompt_keys(self) -> &'static [&'static str] {
        match self {
            Self::ChatCompletions | Self::Messages | Self::CountTokens => {
                &["tools", "system", "messages"]
            }
            Self::Completions | Self::Images => &["prompt"],
            Self::Responses => &["tools", "instructions", "input"],
            Self::Conversations => &["items"],
            Self::Embeddings => &["messages", "input"],
            Self::Rerank => &["query", "documents"],
            Self::Score => &["queries", "text_1", "documents", "text_2"],
            Self::Tokenize => &["tools", "messages", "prompt"],
            Self::Detokenize => &["tokens"],
            Self::Speech => &["input"],
            Self::VllmGenerate => &["token_ids"],
            Self::SglangGenerate => &["text", "input_ids"],
            Self::Transcriptions | Self::Models | Self::Other => &[],
        }
    }
}

/// The longest list that [`Api::prompt_keys`] gives.
pub const PROMPT_PARTS_MAX: usize = 4;

#[cfg(test)]
mod tests {
    use super::*;

    fn check(method_and_path: &str, api: Api) {
        let (method, path) = method_and_path.split_once(' ').unwrap();
        assert_eq!(Api::of(method, path), api, "{method_and_path}");
        assert!(api.prompt_keys().len() <= PROMPT_PARTS_MAX);
    }

    #[test]
    fn the_longest_known_ending_wins() {
        check("POST /v1/chat/completions", Api::ChatCompletions);
        check("POST /v1/completions", Api::Completions);
        check("POST /inference/v1/generate", Api::VllmGenerate);
        check("POST /generate", Api::SglangGenerate);
        check("POST /v1/messages/count_tokens", Api::CountTokens);
        check("POST /v1/chat/completions/render", Api::Tokenize);
    }

    #[test]
    fn a_prefix_does_not_matter() {
        check("POST /openai/v1/chat/completions", Api::ChatCompletions);
        check("POST /team-a/v1/messages", Api::Messages);
        check("GET /openai/v1/models", Api::Models);
    }

    #[test]
    fn each_served_path_is_known() {
        check("POST /v1/responses", Api::Responses);
        check("POST /v1/conversations", Api::Conversations);
        check("POST /v1/embeddings", Api::Embeddings);
        check("POST /pooling", Api::Embeddings);
        check("POST /rerank", Api::Rerank);
        check("POST /v2/rerank", Api::Rerank);
        check("POST /v1/score", Api::Score);
        check("POST /tokenize", Api::Tokenize);
        check("POST /detokenize", Api::Detokenize);
        check("POST /v1/audio/transcriptions", Api::Transcriptions);
        check("POST /v1/audio/translations", Api::Transcriptions);
        check("POST /v1/audio/speech", Api::Speech);
        check("POST /v1/images/generations", Api::Images);
    }

    #[test]
    fn what_only_looks_alike_is_relayed_unread() {
        check("GET /v1/chat/completions", Api::Other);
        check("POST /v1/models", Api::Other);
        check("POST /v1/threads/t1/messages", Api::Other);
        check("GET /v1/models/tiny", Api::Other);
        check("POST /v1/xcompletions", Api::Other);
        check("POST ", Api::Other);
        check("POST /v1/chat/completions/", Api::Other);
    }

    #[test]
    fn only_messages_speak_anthropic() {
        assert_eq!(Api::Messages.dialect(), Dialect::Anthropic);
        assert_eq!(Api::CountTokens.dialect(), Dialect::Anthropic);
        assert_eq!(Api::Other.dialect(), Dialect::OpenAi);
        assert_eq!(Api::Transcriptions.body(), BodyKind::Multipart);
        assert_eq!(Api::Models.body(), BodyKind::Opaque);
    }
}
