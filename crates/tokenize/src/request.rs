//! What of a request becomes its prompt: a text, tokens, or a conversation for the chat template, in
//! the form in which vLLM hands it over.

use minijinja::value::{Value, ValueKind};
use serde::Deserialize;
use serde::de::{Deserializer, MapAccess, Visitor};

use crate::{Api, Untokenized};

/// A prompt before it is tokens.
#[derive(Debug)]
pub(crate) enum Prompt {
    Text(String),
    Tokens(Vec<u32>),
    Chat(Chat),
}

/// What a chat template is given.
#[derive(Debug)]
pub(crate) struct Chat {
    pub(crate) messages: Vec<Message>,
    pub(crate) tools: Option<Value>,
    pub(crate) documents: Option<Value>,
    pub(crate) add_generation_prompt: bool,
    pub(crate) kwargs: Option<Value>,
}

/// A message: its text apart from the rest, since templates differ in how they want it.
#[derive(Debug)]
pub(crate) struct Message {
    /// Texts, each a part of its own if the content has parts.
    pub(crate) content: Content,
    /// All other fields, the role among them.
    pub(crate) fields: Vec<(String, Value)>,
}

#[derive(Debug)]
pub(crate) enum Content {
    None,
    Text(String),
    Parts(Vec<String>),
}

#[derive(Deserialize)]
struct ChatBody {
    messages: Vec<Fields>,
    #[serde(default)]
    tools: Option<Vec<Fields>>,
    #[serde(default)]
    tool_choice: Option<Value>,
    #[serde(default)]
    documents: Option<Value>,
    #[serde(default)]
    add_generation_prompt: Option<bool>,
    #[serde(default)]
    continue_final_message: Option<bool>,
    #[serde(default)]
    add_special_tokens: Option<bool>,
    #[serde(default)]
    chat_template: Option<Value>,
    #[serde(default)]
    chat_template_kwargs: Option<Value>,
    #[serde(default)]
    reasoning_effort: Option<Value>,
}

#[derive(Deserialize)]
struct CompletionBody {
    prompt: Input,
    #[serde(default)]
    suffix: Option<String>,
    #[serde(default)]
    prompt_embeds: Option<Value>,
    #[serde(default)]
    add_special_tokens: Option<bool>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Input {
    Text(String),
    Tokens(Vec<u32>),
    Texts([String; 1]),
    TokenLists([Vec<u32>; 1]),
}

#[derive(Deserialize)]
struct GenerateBody {
    token_ids: Vec<u32>,
}

#[derive(Deserialize)]
struct MessagesBody {
    messages: Vec<Fields>,
    #[serde(default)]
    system: Option<Value>,
    #[serde(default)]
    tools: Option<Value>,
}

/// An object whose fields keep their order: templates write them as they came.
#[derive(Debug, Default)]
struct Fields(Vec<(String, Value)>);

impl<'de> Deserialize<'de> for Fields {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct InOrder;
        impl<'de> Visitor<'de> for InOrder {
            type Value = Fields;
            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("an object")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Fields, A::Error> {
                let mut fields = Vec::new();
                while let Some(field) = map.next_entry()? {
                    fields.push(field);
                }
                Ok(Fields(fields))
            }
        }
        deserializer.deserialize_map(InOrder)
    }
}

impl Fields {
    fn take(&mut self, name: &str) -> Option<Value> {
        let at = self.0.iter().position(|(own, _)| own == name)?;
        Some(self.0.remove(at).1)
    }

    fn into_value(self) -> Value {
        self.0.into_iter().collect()
    }
}

impl Prompt {
    pub(crate) fn of(api: Api, body: &[u8]) -> Result<Self, Untokenized> {
        match api {
            Api::Chat => chat(read(body)?),
            Api::Completions => completion(read(body)?),
            Api::Generate => Ok(Self::Tokens(read::<GenerateBody>(body)?.token_ids)),
            Api::Messages => messages(read(body)?),
            Api::Responses => Err(Untokenized::Unsupported("the responses API")),
            Api::Tokenize => Err(Untokenized::Unsupported("the tokenize API")),
        }
    }
}

fn read<'a, T: Deserialize<'a>>(body: &'a [u8]) -> Result<T, Untokenized> {
    serde_json::from_slice(body).map_err(|error| Untokenized::Body(error.to_string()))
}

fn completion(body: CompletionBody) -> Result<Prompt, Untokenized> {
    if body.suffix.is_some() || body.prompt_embeds.is_some() {
        return Err(Untokenized::Unsupported("a suffix or embeddings"));
    }
    if body.add_special_tokens == Some(false) {
        return Err(Untokenized::Unsupported("add_special_tokens"));
    }
    Ok(match body.prompt {
        Input::Text(text) | Input::Texts([text]) => Prompt::Text(text),
        Input::Tokens(tokens) | Input::TokenLists([tokens]) => Prompt::Tokens(tokens),
    })
}

fn chat(body: ChatBody) -> Result<Prompt, Untokenized> {
    let changes = [
        (
            body.continue_final_message == Some(true),
            "continue_final_message",
        ),
        (body.add_special_tokens == Some(true), "add_special_tokens"),
        (
            body.chat_template.is_some(),
            "a chat template of the request's own",
        ),
        (body.reasoning_effort.is_some(), "reasoning_effort"),
    ];
    if let Some((_, what)) = changes.iter().find(|(asked, _)| *asked) {
        return Err(Untokenized::Unsupported(what));
    }
    let no_tools = body.tool_choice == Some(Value::from("none"));
    let tools = body.tools.filter(|tools| !tools.is_empty() && !no_tools);
    let messages = body.messages.into_iter().map(message);
    Ok(Prompt::Chat(Chat {
        messages: messages.collect::<Result<_, _>>()?,
        tools: tools.map(|tools| tools.into_iter().map(tool).collect()),
        documents: body.documents,
        add_generation_prompt: body.add_generation_prompt.unwrap_or(true),
        kwargs: body.chat_template_kwargs,
    }))
}

/// Anthropic's messages as a chat, as long as all is text.
fn messages(body: MessagesBody) -> Result<Prompt, Untokenized> {
    if body.tools.is_some() {
        return Err(Untokenized::Unsupported("tools in the messages API"));
    }
    let system = body.system.map(|content| {
        let role = ("role".to_owned(), Value::from("system"));
        message(Fields(vec![role, ("content".to_owned(), content)]))
    });
    let messages = system
        .into_iter()
        .chain(body.messages.into_iter().map(message));
    Ok(Prompt::Chat(Chat {
        messages: messages.collect::<Result<_, _>>()?,
        tools: None,
        documents: None,
        add_generation_prompt: true,
        kwargs: None,
    }))
}

fn message(mut fields: Fields) -> Result<Message, Untokenized> {
    let content = fields.take("content").unwrap_or_default();
    let content = match content.kind() {
        ValueKind::Undefined | ValueKind::None => Content::None,
        ValueKind::String => Content::Text(text_of(&content).unwrap_or_default()),
        ValueKind::Seq => Content::Parts(items(&content).map(part).collect::<Result<_, _>>()?),
        _ => {
            let error = "a content that is neither text nor parts";
            return Err(Untokenized::Body(error.to_owned()));
        }
    };
    for (name, value) in &mut fields.0 {
        if name == "tool_calls" {
            *value = items(value).map(|call| with_arguments(&call)).collect();
        }
    }
    fields.0.retain(|(_, value)| !value.is_none());
    Ok(Message {
        content,
        fields: fields.0,
    })
}

fn items(value: &Value) -> impl Iterator<Item = Value> {
    value.try_iter().into_iter().flatten()
}

fn text_of(value: &Value) -> Option<String> {
    value.as_str().map(str::to_owned)
}

fn part(part: Value) -> Result<String, Untokenized> {
    if let Some(text) = text_of(&part) {
        return Ok(text);
    }
    let field = |name: &str| part.get_attr(name).ok().as_ref().and_then(text_of);
    match (field("type").as_deref(), field("text")) {
        (None | Some("text" | "input_text" | "output_text"), Some(text)) => Ok(text),
        _ => Err(Untokenized::Media),
    }
}

/// A call with its arguments as values, as templates are given them, not as text.
fn with_arguments(call: &Value) -> Value {
    let changed = |name: &str, value: Value| match name {
        "arguments" => {
            let text = text_of(&value);
            let parsed = text.and_then(|text| serde_json::from_str(&text).ok());
            parsed.unwrap_or(value)
        }
        _ => value,
    };
    map(call, |name, value| match name {
        "function" => map(&value, changed),
        _ => value,
    })
}

/// The same object with its fields changed.
fn map(object: &Value, change: impl Fn(&str, Value) -> Value) -> Value {
    let field = |name: Value| {
        let value = object.get_item(&name).unwrap_or_default();
        let name = text_of(&name)?;
        let value = change(&name, value);
        Some((name, value))
    };
    items(object).filter_map(field).collect()
}

/// A tool as the server's own types have it: name, description and parameters are always there, and
/// come first.
fn tool(mut tool: Fields) -> Value {
    let kind = tool.take("type").unwrap_or_else(|| Value::from("function"));
    let Some(function) = tool.take("function").filter(|f| f.kind() == ValueKind::Map) else {
        return tool.into_value();
    };
    let first = ["name", "description", "parameters"];
    let mut all: Vec<(String, Value)> = Vec::new();
    for name in first {
        let value = function.get_attr(name).unwrap_or_default();
        let value = if value.is_undefined() {
            Value::from(())
        } else {
            value
        };
        all.push((name.to_owned(), value));
    }
    for name in items(&function).filter_map(|name| text_of(&name)) {
        if !first.contains(&name.as_str()) {
            let value = function.get_attr(&name).unwrap_or_default();
            all.push((name, value));
        }
    }
    let function: Value = all.into_iter().collect();
    [("type", kind), ("function", function)]
        .into_iter()
        .collect()
}

impl Message {
    /// The message as a template takes it.
    pub(crate) fn into_value(self, takes_parts: bool) -> Value {
        let text = |text: String| -> Value {
            [("type", Value::from("text")), ("text", Value::from(text))]
                .into_iter()
                .collect()
        };
        let content = match (self.content, takes_parts) {
            (Content::None, true) => Value::from(Vec::<Value>::new()),
            (Content::None, false) => Value::from(""),
            (Content::Text(one), true) => [text(one)].into_iter().collect(),
            (Content::Text(one), false) => Value::from(one),
            (Content::Parts(all), true) => all.into_iter().map(text).collect(),
            (Content::Parts(all), false) => Value::from(all.join("\n")),
        };
        let mut fields = self.fields;
        fields.push(("content".to_owned(), content));
        fields.into_iter().collect()
    }
}
