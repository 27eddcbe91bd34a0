"""Drives a running gateway with the official OpenAI and Anthropic clients.

For every dialect that the gateway speaks: that the clients parse what they get, plain and
streamed, and that they raise the error class which their users catch. It does not judge the
text of answers. The server's address is in BASE_URL (without `/v1`); the model is the first one
listed unless MODEL names it. Prints `ok NAME` or `FAILED NAME: why` for each check and exits
with 1 when one failed.
"""

import http.client
import json
import os
import sys
import traceback
from urllib.parse import urlsplit

import anthropic
import openai

BASE_URL = os.environ["BASE_URL"].rstrip("/")
TIMEOUT_S = 30
UNKNOWN_MODEL = "no-such-model"
QUESTION = [{"role": "user", "content": "Say something short about rivers."}]
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "water_level",
            "description": "Level of a river in metres",
            "parameters": {
                "type": "object",
                "properties": {"river": {"type": "string"}},
                "required": ["river"],
            },
        },
    }
]

# One attempt each: a retry inside the client would hide a failure of the gateway.
client = openai.OpenAI(base_url=f"{BASE_URL}/v1", api_key="sk-test", max_retries=0, timeout=TIMEOUT_S)
claude = anthropic.Anthropic(base_url=BASE_URL, api_key="sk-test", max_retries=0, timeout=TIMEOUT_S)

CHECKS = []


def check(function):
    """Registers a check under its own name."""
    CHECKS.append(function)
    return function


def post_raw(path, body):
    """Sends bytes as they are; returns the status and the decoded JSON answer."""
    address = urlsplit(BASE_URL)
    connection = http.client.HTTPConnection(address.hostname, address.port, timeout=TIMEOUT_S)
    try:
        headers = {"content-type": "application/json", "authorization": "Bearer sk-test"}
        connection.request("POST", path, body=body, headers=headers)
        answer = connection.getresponse()
        return answer.status, json.loads(answer.read())
    finally:
        connection.close()


def expect(condition, shown):
    """An assertion that survives `python -O` and shows what was there instead."""
    if not condition:
        raise AssertionError(f"got {shown!r}")


def raised(error_class, call):
    """The error that the call raises, which must be of this class and no relative of it."""
    try:
        answer = call()
    except error_class as error:
        expect(type(error) is error_class, error)
        return error
    raise AssertionError(f"no {error_class.__name__}; got {answer!r}")


def listed_model():
    """The model under test with all that the list says about it."""
    models = list(client.models.list())
    expect(models, models)
    wanted = os.environ.get("MODEL", models[0].id)
    return next(model for model in models if model.id == wanted)


def model_name():
    return os.environ.get("MODEL") or listed_model().id


# --- OpenAI ---------------------------------------------------------------------------------


@check
def openai_models_list():
    model = listed_model()
    expect(model.object == "model", model)


@check
def openai_chat_plain():
    answer = client.chat.completions.create(model=model_name(), messages=QUESTION, max_tokens=16)
    choice = answer.choices[0]
    expect(choice.message.role == "assistant" and choice.message.content, choice)
    expect(choice.finish_reason in ("stop", "length"), choice)
    usage = answer.usage
    expect(usage.prompt_tokens > 0 and 0 < usage.completion_tokens <= 16, usage)
    expect(usage.total_tokens == usage.prompt_tokens + usage.completion_tokens, usage)


@check
def openai_chat_streamed():
    stream = client.chat.completions.create(
        model=model_name(),
        messages=QUESTION,
        max_tokens=16,
        stream=True,
        stream_options={"include_usage": True},
    )
    pieces, finish_reasons, usages = [], [], []
    for chunk in stream:
        if chunk.usage is not None:
            usages.append(chunk.usage)
        for choice in chunk.choices:
            pieces.append(choice.delta.content or "")
            if choice.finish_reason:
                finish_reasons.append(choice.finish_reason)
    expect("".join(pieces).strip(), pieces)
    expect(len([piece for piece in pieces if piece]) > 1, pieces)
    expect(len(finish_reasons) == 1 and finish_reasons[0] in ("stop", "length"), finish_reasons)
    expect(usages and usages[-1].completion_tokens > 0, usages)


@check
def openai_chat_streamed_without_usage_unasked():
    stream = client.chat.completions.create(
        model=model_name(), messages=QUESTION, max_tokens=4, stream=True
    )
    chunks = list(stream)
    expect(chunks and all(chunk.usage is None for chunk in chunks), chunks)


@check
def openai_chat_with_tools_is_accepted():
    answer = client.chat.completions.create(
        model=model_name(), messages=QUESTION, tools=TOOLS, tool_choice="auto", max_tokens=16
    )
    message = answer.choices[0].message
    expect(message.content or message.tool_calls, message)


@check
def openai_chat_with_content_parts():
    parts = [{"role": "user", "content": [{"type": "text", "text": "Grüße, 河流"}]}]
    answer = client.chat.completions.create(model=model_name(), messages=parts, max_tokens=4)
    expect(answer.choices[0].message.content, answer)


@check
def openai_completions_plain():
    answer = client.completions.create(model=model_name(), prompt="Rivers are", max_tokens=8)
    expect(answer.choices[0].text, answer)
    expect(answer.usage.completion_tokens > 0, answer.usage)


@check
def openai_completions_streamed():
    stream = client.completions.create(
        model=model_name(), prompt="Rivers are", max_tokens=8, stream=True
    )
    text = "".join(choice.text for chunk in stream for choice in chunk.choices)
    expect(text, text)


@check
def openai_embeddings():
    answer = client.embeddings.create(
        model=model_name(), input=["a river", "a lake"], encoding_format="float"
    )
    expect(len(answer.data) == 2, answer)
    expect([item.index for item in answer.data] == [0, 1], answer)
    lengths = {len(item.embedding) for item in answer.data}
    expect(len(lengths) == 1 and lengths.pop() > 0, answer)
    expect(answer.usage.prompt_tokens > 0, answer.usage)


@check
def openai_responses_plain():
    answer = client.responses.create(
        model=model_name(), input="Say something short about rivers.", max_output_tokens=16
    )
    expect(answer.status in ("completed", "incomplete"), answer)
    expect(answer.output_text, answer)
    expect(answer.usage.input_tokens > 0 and answer.usage.output_tokens > 0, answer.usage)


@check
def openai_responses_streamed():
    stream = client.responses.create(
        model=model_name(),
        input="Say something short about rivers.",
        max_output_tokens=16,
        stream=True,
    )
    events = list(stream)
    kinds = [event.type for event in events]
    text = "".join(event.delta for event in events if event.type == "response.output_text.delta")
    expect(kinds[0] == "response.created", kinds)
    expect(kinds[-1] in ("response.completed", "response.incomplete"), kinds)
    expect(text and text == events[-1].response.output_text, (text, kinds))


@check
def openai_unknown_model_is_not_found():
    error = raised(
        openai.NotFoundError,
        lambda: client.chat.completions.create(model=UNKNOWN_MODEL, messages=QUESTION),
    )
    expect(error.code == "model_not_found", error.body)
    expect(UNKNOWN_MODEL in error.message, error.message)


@check
def openai_wrong_type_is_a_bad_request():
    error = raised(
        openai.BadRequestError,
        lambda: client.chat.completions.create(
            model=model_name(), messages=QUESTION, extra_body={"messages": "not a list"}
        ),
    )
    expect(error.body and error.body.get("message"), error.body)


@check
def openai_too_long_prompt_is_a_bad_request():
    # vLLM and its likes list their limit; the fallback is longer than any default.
    limit_tokens = getattr(listed_model(), "max_model_len", None) or 131_072
    prompt = "river " * (limit_tokens + 64)
    error = raised(
        openai.BadRequestError,
        lambda: client.chat.completions.create(
            model=model_name(), messages=[{"role": "user", "content": prompt}]
        ),
    )
    expect(error.body and error.body.get("message"), error.body)


@check
def openai_malformed_json_names_the_offset():
    body = b'{"model": "m", "messages": [}'
    status, answer = post_raw("/v1/chat/completions", body)
    expect(status == 400, (status, answer))
    message = answer["error"]["message"]
    # The stray brace is byte 28 counted from 0; parsers differ in where they notice.
    offsets = [str(offset) for offset in (27, 28, 29)]
    expect(any(offset in message for offset in offsets), message)


# --- Anthropic ------------------------------------------------------------------------------


@check
def anthropic_messages_plain():
    answer = claude.messages.create(model=model_name(), max_tokens=16, messages=QUESTION)
    expect(answer.role == "assistant" and answer.content[0].type == "text", answer)
    expect(answer.content[0].text, answer)
    expect(answer.stop_reason in ("end_turn", "max_tokens"), answer)
    expect(answer.usage.input_tokens > 0 and answer.usage.output_tokens > 0, answer.usage)


@check
def anthropic_messages_streamed():
    with claude.messages.stream(
        model=model_name(), max_tokens=16, system="Be brief.", messages=QUESTION
    ) as stream:
        text = "".join(stream.text_stream)
        final = stream.get_final_message()
    expect(text and text == final.content[0].text, (text, final))
    expect(final.stop_reason in ("end_turn", "max_tokens"), final)
    expect(final.usage.output_tokens > 0, final.usage)


@check
def anthropic_count_tokens():
    short = claude.messages.count_tokens(model=model_name(), messages=QUESTION)
    long = claude.messages.count_tokens(
        model=model_name(), messages=[{"role": "user", "content": "river " * 200}]
    )
    expect(0 < short.input_tokens < long.input_tokens, (short, long))


@check
def anthropic_unknown_model_is_not_found():
    error = raised(
        anthropic.NotFoundError,
        lambda: claude.messages.create(model=UNKNOWN_MODEL, max_tokens=4, messages=QUESTION),
    )
    expect(error.body["type"] == "error", error.body)
    expect(error.body["error"]["type"] == "not_found_error", error.body)


@check
def anthropic_malformed_json_is_an_invalid_request():
    status, answer = post_raw("/v1/messages", b'{"model": "m", "messages": [}')
    expect(status == 400, (status, answer))
    expect(answer["type"] == "error", answer)
    expect(answer["error"]["type"] == "invalid_request_error", answer)


def main():
    """Runs the checks whose names hold one of the arguments, or all of them."""
    wanted = [c for c in CHECKS if not sys.argv[1:] or any(word in c.__name__ for word in sys.argv[1:])]
    if not wanted:
        print(f"no check matches {sys.argv[1:]}")
        return 1
    failed = 0
    for function in wanted:
        try:
            function()
        except Exception as error:  # one broken check must not hide the others
            failed += 1
            print(f"FAILED {function.__name__}: {type(error).__name__}: {str(error)[:2000]}", flush=True)
            if not isinstance(error, AssertionError):
                traceback.print_exc()
        else:
            print(f"ok {function.__name__}", flush=True)
    print(f"{len(wanted) - failed} of {len(wanted)} checks passed", flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
