"""openai-python and anthropic-python against a server: chat, streams, two-step tool loops,
reasoning, usage and errors in each dialect, every answer checked against the clients' own types,
and all JSON against the published shapes (shapes.py).

    DS4_URL=http://127.0.0.1:8000 python clients.py
"""

import json
import os
import sys
import traceback

import anthropic
import httpx2
import openai

import shapes

URL = os.environ["DS4_URL"]
MODEL = "deepseek-v4-flash"
QUESTION = "What is the weather in Paris?"
RESULT = "condition: snowy, temperature: 3"
CITY = {
    "type": "object",
    "properties": {"city": {"type": "string", "description": "Name of the city"}},
    "required": ["city"],
}
FUNCTION = {
    "name": "get_weather",
    "description": "Get the weather in a city",
    "parameters": CITY,
}
CHAT_TOOL = {"type": "function", "function": FUNCTION}

recorder = shapes.Recorder()
openai_options = {
    "base_url": URL + "/v1",
    "api_key": "none",
    "max_retries": 0,
    "http_client": httpx2.Client(transport=recorder),
}
openai_client = openai.OpenAI(**openai_options, _strict_response_validation=True)
lenient_client = openai.OpenAI(**openai_options)
anthropic_client = anthropic.Anthropic(
    base_url=URL,
    api_key="none",
    max_retries=0,
    http_client=httpx2.Client(transport=recorder),
    _strict_response_validation=True,
)


def chat(messages, **more):
    return openai_client.chat.completions.create(
        model=MODEL, messages=messages, temperature=0, max_tokens=300, **more
    )


def user(text):
    return [{"role": "user", "content": text}]


def test_chat():
    answer = chat(user("What is 17 + 25?"))
    message = answer.choices[0].message
    assert "42" in message.content, message
    assert message.reasoning_content
    assert answer.choices[0].finish_reason == "stop"
    usage = answer.usage
    assert usage.total_tokens == usage.prompt_tokens + usage.completion_tokens
    assert 0 < usage.completion_tokens_details.reasoning_tokens < usage.completion_tokens


def test_chat_without_thinking():
    answer = chat(user("What is the capital of France?"), reasoning_effort="none")
    assert "Paris" in answer.choices[0].message.content
    assert not hasattr(answer.choices[0].message, "reasoning_content")


def test_chat_stream_says_the_same():
    whole = chat(user("What is 17 + 25?"))
    reasoning, text, usage = "", "", None
    for chunk in chat(
        user("What is 17 + 25?"), stream=True, stream_options={"include_usage": True}
    ):
        if not chunk.choices:
            usage = chunk.usage
            continue
        delta = chunk.choices[0].delta
        reasoning += getattr(delta, "reasoning_content", None) or ""
        text += delta.content or ""
    assert text == whole.choices[0].message.content
    assert reasoning == whole.choices[0].message.reasoning_content
    assert usage.completion_tokens == whole.usage.completion_tokens


def test_chat_tools():
    messages = user(QUESTION)
    first = chat(messages, tools=[CHAT_TOOL])
    message = first.choices[0].message
    assert first.choices[0].finish_reason == "tool_calls"
    call = message.tool_calls[0]
    assert json.loads(call.function.arguments) == {"city": "Paris"}
    messages.append(message.model_dump(exclude={"reasoning_content"}, exclude_none=True))
    messages.append({"role": "tool", "tool_call_id": call.id, "content": RESULT})
    second = chat(messages, tools=[CHAT_TOOL])
    assert "snowy" in second.choices[0].message.content
    known = first.usage.total_tokens
    assert second.usage.prompt_tokens_details.cached_tokens >= known - 2


def test_chat_tools_in_a_stream():
    with openai_client.chat.completions.stream(
        model=MODEL, messages=user(QUESTION), tools=[CHAT_TOOL], temperature=0
    ) as stream:
        kinds = [event.type for event in stream]
        message = stream.get_final_completion().choices[0].message
    assert "tool_calls.function.arguments.delta" in kinds
    assert json.loads(message.tool_calls[0].function.arguments) == {"city": "Paris"}


def test_chat_forced_tool_and_schema():
    forced = chat(
        user("Hello"),
        tools=[CHAT_TOOL],
        tool_choice={"type": "function", "function": {"name": "get_weather"}},
    )
    assert forced.choices[0].message.tool_calls[0].function.name == "get_weather"
    schema = {
        "type": "object",
        "properties": {"sum": {"type": "integer"}},
        "required": ["sum"],
        "additionalProperties": False,
    }
    answer = chat(
        user("What is 17 + 25?"),
        response_format={
            "type": "json_schema",
            "json_schema": {"name": "sum", "schema": schema, "strict": True},
        },
    )
    assert isinstance(json.loads(answer.choices[0].message.content)["sum"], int)


def test_chat_allowed_tools():
    other = {"type": "function", "function": {**FUNCTION, "name": "get_time"}}
    allowed = [{"type": "function", "function": {"name": "get_time"}}]
    answer = chat(
        user(QUESTION),
        tools=[CHAT_TOOL, other],
        tool_choice={
            "type": "allowed_tools",
            "allowed_tools": {"mode": "required", "tools": allowed},
        },
    )
    assert answer.choices[0].message.tool_calls[0].function.name == "get_time"


def test_chat_logprobs():
    answer = chat(user("Hi"), logprobs=True, top_logprobs=2, reasoning_effort="none")
    tokens = answer.choices[0].logprobs.content
    assert all(len(token.top_logprobs) == 2 for token in tokens)
    said = b"".join(bytes(token.bytes) for token in tokens).decode()
    assert said == answer.choices[0].message.content


def test_openai_errors():
    try:
        chat(user("Hi"), top_logprobs=3)
        raise AssertionError("no error")
    except openai.BadRequestError as error:
        assert error.param == "top_logprobs", error
        assert error.body["type"] == "invalid_request_error"
    try:
        chat(user("word " * 200_000))
        raise AssertionError("no error")
    except openai.BadRequestError as error:
        assert error.code == "context_length_exceeded"
    try:
        openai_client.models.retrieve("no-such-model")
        raise AssertionError("no error")
    except openai.NotFoundError as error:
        assert error.code == "model_not_found"


def test_completions_and_models():
    answer = openai_client.completions.create(
        model=MODEL, prompt="The capital of France is", max_tokens=4, temperature=0
    )
    # The client's types lack the null that OpenAI's own streams have here.
    pieces = lenient_client.completions.create(
        model=MODEL, prompt="The capital of France is", max_tokens=4, temperature=0, stream=True
    )
    text = "".join(piece.choices[0].text for piece in pieces if piece.choices)
    assert text == answer.choices[0].text
    models = openai_client.models.list().data
    assert models and openai_client.models.retrieve(models[0].id).id == models[0].id


RESPONSE_TOOL = {"type": "function", "strict": False, **FUNCTION}


def respond(input, **more):
    return openai_client.responses.create(
        model=MODEL, input=input, temperature=0, max_output_tokens=300, **more
    )


def test_responses():
    response = respond("What is 17 + 25?", reasoning={"summary": "auto"})
    assert response.status == "completed"
    assert "42" in response.output_text
    assert response.output[0].type == "reasoning"
    assert response.output[0].summary[0].text == response.output[0].content[0].text
    assert response.usage.output_tokens_details.reasoning_tokens > 0
    short = respond("What is 17 + 25?", extra_body={"max_output_tokens": 2})
    assert short.incomplete_details.reason == "max_output_tokens"


def test_responses_stream_says_the_same():
    whole = respond("What is 17 + 25?")
    with openai_client.responses.stream(
        model=MODEL, input="What is 17 + 25?", temperature=0, max_output_tokens=300
    ) as stream:
        text = "".join(
            event.delta for event in stream if event.type == "response.output_text.delta"
        )
        final = stream.get_final_response()
    assert text == whole.output_text == final.output_text
    assert final.usage.output_tokens == whole.usage.output_tokens


def test_responses_tools():
    for store in (False, True):
        messages = [{"role": "user", "content": QUESTION}]
        more = {
            "tools": [RESPONSE_TOOL, {"type": "web_search"}],
            "store": store,
            "include": ["reasoning.encrypted_content"],
            "extra_body": {"cache_salt": f"responses {store}"},
        }
        first = respond(messages, **more)
        call = first.output[-1]
        assert call.type == "function_call", first
        assert json.loads(call.arguments) == {"city": "Paris"}
        if store:
            messages += [{"type": "item_reference", "id": item.id} for item in first.output]
        else:
            messages += [item.model_dump(exclude={"content"}) for item in first.output]
        messages.append(
            {"type": "function_call_output", "call_id": call.call_id, "output": RESULT}
        )
        second = respond(messages, **more)
        assert "snowy" in second.output_text
        known = first.usage.total_tokens
        assert second.usage.input_tokens_details.cached_tokens >= known - 2, second.usage


def test_responses_in_every_way():
    schema = {
        "type": "object",
        "properties": {"sum": {"type": "integer"}},
        "required": ["sum"],
        "additionalProperties": False,
    }
    other = {**RESPONSE_TOOL, "name": "get_time"}
    ways = [
        {"reasoning": {"effort": "none"}},
        {"reasoning": {"effort": "high", "summary": "auto"}},
        {"include": ["reasoning.encrypted_content", "message.output_text.logprobs"]},
        {"top_logprobs": 2},
        {"instructions": "Be brief.", "metadata": {"a": "b"}, "store": False},
        {"text": {"format": {"type": "json_schema", "name": "sum", "schema": schema}}},
        {"text": {"format": {"type": "json_object"}}},
        {"tools": [RESPONSE_TOOL], "tool_choice": "required"},
        {"tools": [RESPONSE_TOOL], "tool_choice": "none"},
        {"tools": [RESPONSE_TOOL], "tool_choice": {"type": "function", "name": "get_weather"}},
        {
            "tools": [RESPONSE_TOOL, other],
            "parallel_tool_calls": False,
            "tool_choice": {
                "type": "allowed_tools",
                "mode": "required",
                "tools": [{"type": "function", "name": "get_time"}],
            },
        },
        {"extra_body": {"max_output_tokens": 3}},
    ]
    for way in ways:
        whole = respond("What is 17 + 25?", **way)
        events = list(respond("What is 17 + 25?", stream=True, **way))
        assert [event.sequence_number for event in events] == list(range(len(events)))
        last = events[-1].response
        assert last.status == whole.status
        assert last.output_text == whole.output_text
        kinds = [item.type for item in whole.output]
        assert [item.type for item in last.output] == kinds
        if "allowed_tools" in str(way):
            assert whole.output[-1].name == "get_time"


def test_responses_errors_and_count():
    try:
        respond("Hi", previous_response_id="resp_0")
        raise AssertionError("no error")
    except openai.BadRequestError as error:
        assert error.param == "previous_response_id"
        assert error.code == "previous_response_not_found"
    counted = openai_client.responses.input_tokens.count(model=MODEL, input="Hi")
    assert counted.input_tokens == respond("Hi").usage.input_tokens


MESSAGE_TOOL = {
    "name": "get_weather",
    "description": FUNCTION["description"],
    "input_schema": CITY,
}
THINKING = {"type": "enabled", "budget_tokens": 1024}


def ask(messages, **more):
    more = {"max_tokens": 300, **more}
    more["extra_body"] = {"temperature": 0, **more.get("extra_body", {})}
    return anthropic_client.messages.create(model=MODEL, messages=messages, **more)


def test_messages():
    message = ask(user("What is 17 + 25?"))
    assert [block.type for block in message.content] == ["text"]
    assert "42" in message.content[0].text
    assert message.stop_reason == "end_turn"
    message = ask(user("What is 17 + 25?"), thinking=THINKING)
    assert [block.type for block in message.content] == ["thinking", "text"]
    assert message.content[0].thinking and message.content[0].signature
    stopped = ask(user("What is the capital of France?"), stop_sequences=["Paris"])
    assert (stopped.stop_reason, stopped.stop_sequence) == ("stop_sequence", "Paris")


def test_messages_stream_says_the_same():
    whole = ask(user("What is 17 + 25?"), thinking=THINKING)
    with anthropic_client.messages.stream(
        model=MODEL,
        messages=user("What is 17 + 25?"),
        max_tokens=300,
        thinking=THINKING,
        extra_body={"temperature": 0},
    ) as stream:
        kinds = {event.type for event in stream}
        final = stream.get_final_message()
    assert {"thinking", "signature", "text", "content_block_stop"} <= kinds
    said = [(block.type, getattr(block, block.type)) for block in whole.content]
    assert said == [(block.type, getattr(block, block.type)) for block in final.content]
    assert final.usage.output_tokens == whole.usage.output_tokens
    assert final.content[0].signature


def test_messages_tools():
    for streamed in (False, True):
        messages = user(QUESTION)
        more = {
            "tools": [MESSAGE_TOOL, {"type": "web_search_20250305", "name": "web_search"}],
            "thinking": THINKING,
            "extra_body": {"cache_salt": f"messages {streamed}"},
        }

        def turn():
            if not streamed:
                return ask(messages, **more)
            body = {"temperature": 0, **more["extra_body"]}
            with anthropic_client.messages.stream(
                model=MODEL, messages=messages, max_tokens=300, **{**more, "extra_body": body}
            ) as stream:
                return stream.get_final_message()

        first = turn()
        assert first.stop_reason == "tool_use", first
        call = first.content[-1]
        assert call.input == {"city": "Paris"}
        messages.append({"role": "assistant", "content": first.content})
        result = {"type": "tool_result", "tool_use_id": call.id, "content": RESULT}
        messages.append({"role": "user", "content": [result]})
        second = turn()
        assert "snowy" in second.content[-1].text
        known = first.usage.input_tokens + first.usage.cache_read_input_tokens
        known += first.usage.output_tokens
        assert second.usage.cache_read_input_tokens >= known - 2, second.usage


def test_messages_schema():
    schema = {
        "type": "object",
        "properties": {"sum": {"type": "integer"}},
        "required": ["sum"],
        "additionalProperties": False,
    }
    message = ask(
        user("What is 17 + 25?"),
        output_config={"format": {"type": "json_schema", "schema": schema}},
    )
    assert isinstance(json.loads(message.content[0].text)["sum"], int)


def test_messages_count_and_models():
    counted = anthropic_client.messages.count_tokens(model=MODEL, messages=user("Hi"))
    usage = ask(user("Hi"), max_tokens=1).usage
    assert counted.input_tokens == usage.input_tokens + usage.cache_read_input_tokens
    assert anthropic_client.models.list().data[0].type == "model"


def test_anthropic_errors():
    for body, error in [
        ({"max_tokens": -1}, anthropic.BadRequestError),
        ({"messages": user("word " * 200_000)}, anthropic.BadRequestError),
    ]:
        try:
            ask(user("Hi"), extra_body=body)
            raise AssertionError("no error")
        except error as caught:
            assert caught.body["error"]["type"] == "invalid_request_error"
            assert caught.request_id
    try:
        anthropic_client.models.retrieve("no-such-model")
        raise AssertionError("no error")
    except anthropic.NotFoundError as caught:
        assert caught.body["error"]["type"] == "not_found_error"


def main():
    failed = 0
    for name, test in list(globals().items()):
        if not name.startswith("test_"):
            continue
        try:
            test()
            print("ok  ", name)
        except Exception:
            failed += 1
            print("FAIL", name)
            traceback.print_exc()
    faults, counted = shapes.check(recorder.recorded)
    for name, count in sorted(counted.items()):
        print(f"{count:6} of {name}")
    for fault in faults:
        print("FAIL", fault[:2000])
    failed += len(faults)
    sys.exit(min(failed, 1))


main()
