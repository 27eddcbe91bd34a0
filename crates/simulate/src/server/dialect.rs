//! How answers look in each API: whole, and as events.
//!
//! Field order and event order follow vLLM 0.32. A token's event is written into one buffer from
//! prepared pieces, since this is what the server does most. What a request means is in
//! [`super::ask`].

use bytes::BytesMut;
use forebay_tokenize::simulated::detokenize;
use serde_json::{Value, json};

use super::body::Progress;
use crate::engine::tokens::output_token;

/// An API that generates text.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Dialect {
    /// `/v1/chat/completions`.
    Chat,
    /// `/v1/completions`.
    Completions,
    /// `/v1/responses`.
    Responses,
    /// `/v1/messages`.
    Messages,
    /// `/inference/v1/generate`: tokens in, tokens out.
    Generate,
}

impl Dialect {
    const fn id_prefix(self) -> &'static str {
        match self {
            Self::Chat => "chatcmpl-",
            Self::Completions => "cmpl-",
            Self::Responses => "resp_",
            Self::Messages => "msg_",
            Self::Generate => "generate-tokens-",
        }
    }
}

/// Renders one answer.
#[derive(Debug)]
pub(super) struct Writer {
    dialect: Dialect,
    id: String,
    model: String,
    created_s: u64,
    prompt_tokens: u32,
    output_tokens: u32,
    output_seed: u64,
    stops: bool,
    include_usage: bool,
    /// What precedes the token in its event, and what follows it if it is not the last.
    before: String,
    after: &'static str,
    sequence: u32,
}

/// What the answer depends on.
#[derive(Debug)]
pub(super) struct Subject {
    pub(super) dialect: Dialect,
    pub(super) number: u64,
    pub(super) model: String,
    pub(super) created_s: u64,
    pub(super) prompt_tokens: u32,
    pub(super) output_tokens: u32,
    pub(super) output_seed: u64,
    pub(super) stops: bool,
    pub(super) include_usage: bool,
}

impl Writer {
    pub(super) fn new(subject: Subject) -> Self {
        let Subject {
            dialect,
            number,
            created_s,
            ..
        } = subject;
        let id = format!("{}{number:032x}", dialect.id_prefix());
        let escaped = Value::from(subject.model.as_str());
        let head = |object: &str| {
            format!(
                "data: {{\"id\":\"{id}\",\"object\":\"{object}\",\"created\":{created_s},\
                 \"model\":{escaped},\"system_fingerprint\":\"simulated\",\"choices\":[{{\"index\":0,"
            )
        };
        let (before, after) = match dialect {
            Dialect::Chat => (
                head("chat.completion.chunk") + "\"delta\":{\"content\":\"",
                "\"},\"logprobs\":null,\"finish_reason\":null,\"token_ids\":null}]}\n\n",
            ),
            Dialect::Completions => (
                head("text_completion") + "\"text\":\"",
                "\",\"logprobs\":null,\"finish_reason\":null,\"stop_reason\":null}],\"usage\":null}\n\n",
            ),
            Dialect::Responses => (
                format!(
                    "event: response.output_text.delta\ndata: {{\"type\":\
                     \"response.output_text.delta\",\"content_index\":0,\"output_index\":0,\
                     \"item_id\":\"{id}-0\",\"logprobs\":[],\"delta\":\""
                ),
                "\",\"sequence_number\":",
            ),
            Dialect::Messages => (
                "event: content_block_delta\ndata: {\"type\":\"content_block_delta\",\"index\":0,\
                 \"delta\":{\"type\":\"text_delta\",\"text\":\""
                    .to_owned(),
                "\"}}\n\n",
            ),
            Dialect::Generate => (
                format!(
                    "data: {{\"request_id\":\"{id}\",\"choices\":[{{\"index\":0,\"token_ids\":["
                ),
                "],\"logprobs\":null,\"finish_reason\":null}]}\n\n",
            ),
        };
        Self {
            dialect,
            id,
            model: subject.model,
            created_s,
            prompt_tokens: subject.prompt_tokens,
            output_tokens: subject.output_tokens,
            output_seed: subject.output_seed,
            stops: subject.stops,
            include_usage: subject.include_usage,
            before,
            after,
            sequence: 0,
        }
    }

    /// Events before the first token. They come with it, as in vLLM.
    pub(super) fn open(&mut self, out: &mut BytesMut, progress: Progress) {
        match self.dialect {
            Dialect::Chat => {
                let mut chunk = self.chunk("chat.completion.chunk");
                chunk["choices"] = json!([{
                    "index": 0, "delta": {"role": "assistant", "content": ""},
                    "logprobs": null, "finish_reason": null,
                }]);
                data(out, &chunk);
            }
            Dialect::Completions | Dialect::Generate => {}
            Dialect::Responses => self.open_response(out, progress),
            Dialect::Messages => {
                let mut message = self.message(&[], progress);
                message["stop_reason"] = Value::Null;
                message["usage"]["output_tokens"] = 0.into();
                event(out, "message_start", json!({"message": message}));
                let block = json!({"type": "text", "text": ""});
                event(
                    out,
                    "content_block_start",
                    json!({"index": 0, "content_block": block}),
                );
            }
        }
    }

    /// The event of one token.
    pub(super) fn token(&mut self, out: &mut BytesMut, index: u32) {
        let token = output_token(self.output_seed, index);
        let last = index + 1 == self.output_tokens;
        out.extend_from_slice(self.before.as_bytes());
        match self.dialect {
            Dialect::Generate => out.extend_from_slice(token.to_string().as_bytes()),
            // Letters and spaces only: nothing to escape.
            _ => out.extend_from_slice(&token.to_le_bytes()),
        }
        let finish = self.finish_reason();
        match self.dialect {
            Dialect::Chat | Dialect::Completions | Dialect::Generate if last => {
                let after = self.after.replacen(
                    "\"finish_reason\":null",
                    &format!("\"finish_reason\":\"{finish}\""),
                    1,
                );
                out.extend_from_slice(after.as_bytes());
            }
            Dialect::Responses => {
                out.extend_from_slice(self.after.as_bytes());
                out.extend_from_slice(format!("{}}}\n\n", self.sequence).as_bytes());
                self.sequence += 1;
            }
            Dialect::Chat | Dialect::Completions | Dialect::Generate | Dialect::Messages => {
                out.extend_from_slice(self.after.as_bytes());
            }
        }
    }

    /// Events after the last token.
    pub(super) fn close(&mut self, out: &mut BytesMut, progress: Progress) {
        match self.dialect {
            Dialect::Chat | Dialect::Completions => {
                if self.include_usage {
                    let mut chunk = self.chunk(match self.dialect {
                        Dialect::Chat => "chat.completion.chunk",
                        _ => "text_completion",
                    });
                    chunk["usage"] = self.usage(progress);
                    data(out, &chunk);
                }
                out.extend_from_slice(b"data: [DONE]\n\n");
            }
            Dialect::Generate => out.extend_from_slice(b"data: [DONE]\n\n"),
            Dialect::Responses => self.close_response(out, progress),
            Dialect::Messages => {
                event(out, "content_block_stop", json!({"index": 0}));
                let message = self.message(&[], progress);
                let delta = json!({"stop_reason": message["stop_reason"], "stop_sequence": null});
                let usage = &message["usage"];
                event(
                    out,
                    "message_delta",
                    json!({"delta": delta, "usage": usage}),
                );
                event(out, "message_stop", json!({}));
            }
        }
    }

    /// The whole answer at once.
    pub(super) fn plain(&self, progress: Progress) -> Value {
        let tokens = self.tokens();
        let finish = self.finish_reason();
        match self.dialect {
            Dialect::Chat => {
                let mut answer = self.chunk("chat.completion");
                answer["choices"] = json!([{
                    "index": 0,
                    "message": {"role": "assistant", "content": detokenize(&tokens)},
                    "logprobs": null, "finish_reason": finish, "stop_reason": null,
                }]);
                answer["usage"] = self.usage(progress);
                answer
            }
            Dialect::Completions => {
                let mut answer = self.chunk("text_completion");
                answer["choices"] = json!([{
                    "index": 0, "text": detokenize(&tokens),
                    "logprobs": null, "finish_reason": finish, "stop_reason": null,
                }]);
                answer["usage"] = self.usage(progress);
                answer
            }
            Dialect::Responses => self.response(true, progress),
            Dialect::Messages => self.message(&tokens, progress),
            Dialect::Generate => json!({
                "request_id": self.id,
                "choices": [{
                    "index": 0, "logprobs": null, "finish_reason": finish, "token_ids": tokens,
                }],
                "prompt_logprobs": null,
                "kv_transfer_params": null,
            }),
        }
    }

    fn tokens(&self) -> Vec<u32> {
        (0..self.output_tokens)
            .map(|index| output_token(self.output_seed, index))
            .collect()
    }

    const fn finish_reason(&self) -> &'static str {
        if self.stops { "stop" } else { "length" }
    }

    fn chunk(&self, object: &str) -> Value {
        json!({
            "id": self.id, "object": object, "created": self.created_s, "model": self.model,
            "system_fingerprint": "simulated", "choices": [],
        })
    }

    fn usage(&self, progress: Progress) -> Value {
        json!({
            "prompt_tokens": self.prompt_tokens,
            "total_tokens": self.prompt_tokens + self.output_tokens,
            "completion_tokens": self.output_tokens,
            "prompt_tokens_details": {"cached_tokens": progress.cached_tokens},
        })
    }

    fn message(&self, tokens: &[u32], progress: Progress) -> Value {
        let content: Vec<Value> = if tokens.is_empty() {
            Vec::new()
        } else {
            vec![json!({"type": "text", "text": detokenize(tokens)})]
        };
        json!({
            "id": self.id, "type": "message", "role": "assistant", "content": content,
            "model": self.model,
            "stop_reason": if self.stops { "end_turn" } else { "max_tokens" },
            "stop_sequence": null,
            "usage": {
                // Anthropic counts what came from the cache apart.
                "input_tokens": self.prompt_tokens.saturating_sub(progress.cached_tokens),
                "output_tokens": self.output_tokens,
                "cache_creation_input_tokens": 0,
                "cache_read_input_tokens": progress.cached_tokens,
            },
        })
    }

    fn item(&self, done: bool) -> Value {
        let content = if done { vec![self.part()] } else { Vec::new() };
        json!({
            "id": format!("{}-0", self.id), "type": "message", "role": "assistant",
            "status": if done { "completed" } else { "in_progress" }, "content": content,
        })
    }

    fn part(&self) -> Value {
        let text = detokenize(&self.tokens());
        json!({"type": "output_text", "text": text, "annotations": [], "logprobs": null})
    }

    fn response(&self, done: bool, progress: Progress) -> Value {
        let (status, output, usage) = if done {
            let usage = json!({
                "input_tokens": self.prompt_tokens,
                "input_tokens_details": {"cached_tokens": progress.cached_tokens},
                "output_tokens": self.output_tokens,
                "output_tokens_details": {"reasoning_tokens": 0},
                "total_tokens": self.prompt_tokens + self.output_tokens,
            });
            let status = if self.stops {
                "completed"
            } else {
                "incomplete"
            };
            (status, vec![self.item(true)], usage)
        } else {
            ("in_progress", Vec::new(), Value::Null)
        };
        let cut = done && !self.stops;
        json!({
            "id": self.id, "object": "response", "created_at": self.created_s,
            "status": status, "model": self.model, "output": output, "usage": usage,
            "error": null,
            "incomplete_details":
                if cut { json!({"reason": "max_output_tokens"}) } else { Value::Null },
            "instructions": null, "metadata": null, "parallel_tool_calls": true,
            "temperature": 1.0, "top_p": 1.0, "tool_choice": "auto", "tools": [],
        })
    }

    fn open_response(&mut self, out: &mut BytesMut, progress: Progress) {
        for name in ["response.created", "response.in_progress"] {
            let response = self.response(false, progress);
            self.numbered(out, name, json!({"response": response}));
        }
        let item = self.item(false);
        self.numbered(
            out,
            "response.output_item.added",
            json!({"output_index": 0, "item": item}),
        );
        let part = json!({"type": "output_text", "text": "", "annotations": [], "logprobs": []});
        self.numbered(
            out,
            "response.content_part.added",
            self.at_part("part", part),
        );
    }

    fn close_response(&mut self, out: &mut BytesMut, progress: Progress) {
        let text = detokenize(&self.tokens());
        self.numbered(
            out,
            "response.output_text.done",
            self.at_part("text", text.into()),
        );
        self.numbered(
            out,
            "response.content_part.done",
            self.at_part("part", self.part()),
        );
        let item = self.item(true);
        self.numbered(
            out,
            "response.output_item.done",
            json!({"output_index": 0, "item": item}),
        );
        let response = self.response(true, progress);
        let name = if self.stops {
            "response.completed"
        } else {
            "response.incomplete"
        };
        self.numbered(out, name, json!({"response": response}));
    }

    fn at_part(&self, field: &str, value: Value) -> Value {
        json!({
            "item_id": format!("{}-0", self.id), "output_index": 0, "content_index": 0,
            field: value,
        })
    }

    fn numbered(&mut self, out: &mut BytesMut, name: &str, mut fields: Value) {
        fields["sequence_number"] = self.sequence.into();
        self.sequence += 1;
        event(out, name, fields);
    }
}

/// An event without a name.
fn data(out: &mut BytesMut, value: &Value) {
    out.extend_from_slice(format!("data: {value}\n\n").as_bytes());
}

/// A named event; the name is repeated as the object's type.
fn event(out: &mut BytesMut, name: &str, mut fields: Value) {
    fields["type"] = name.into();
    out.extend_from_slice(format!("event: {name}\ndata: {fields}\n\n").as_bytes());
}
