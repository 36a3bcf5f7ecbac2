"""All that a server has answered, held against the shapes that OpenAI and Anthropic publish: the
types of their clients are made from their specifications. A field that these do not have must be
one of those listed here.
"""

import json
from typing import List

import httpx2
import pydantic
from anthropic import types as anthropic_types
from openai import types as openai_types
from openai.types import chat, responses


class Failure(openai_types.ErrorObject):
    """OpenAI's specification wants all four to be there, if only as null."""

    code: str | None
    param: str | None


class Envelope(pydantic.BaseModel, extra="allow"):
    """An object that no client has a type for."""


class OpenAiError(Envelope):
    error: Failure


class OpenAiModels(Envelope):
    object: str
    data: List[openai_types.Model]


class AnthropicModels(Envelope):
    data: List[anthropic_types.ModelInfo]
    has_more: bool
    first_id: str | None
    last_id: str | None


# By path: a whole answer, a frame of a stream.
SHAPES = {
    "/v1/chat/completions": (chat.ChatCompletion, chat.ChatCompletionChunk),
    "/v1/completions": (openai_types.Completion, openai_types.Completion),
    "/v1/responses": (responses.Response, responses.ResponseStreamEvent),
    "/v1/responses/input_tokens": (responses.InputTokenCountResponse, None),
    "/v1/messages": (anthropic_types.Message, anthropic_types.RawMessageStreamEvent),
    "/v1/messages/count_tokens": (anthropic_types.MessageTokensCount, None),
}
# What is there beyond the shapes.
MORE = {
    # DeepSeek's own: reasoning, and how much of a prompt was known.
    "ChatCompletionMessage": {"reasoning_content"},
    "ChoiceDelta": {"reasoning_content"},
    "CompletionUsage": {"prompt_cache_hit_tokens", "prompt_cache_miss_tokens"},
    # How much too long a prompt is.
    "Failure": {"n_ctx", "n_prompt_tokens"},
    "InvalidRequestErrorObject": {"n_ctx", "n_prompt_tokens"},
    # One list of models for both companies' clients, and for others that want to know sizes.
    "Model": {
        "context_length",
        "created_at",
        "display_name",
        "lifecycle",
        "max_input_tokens",
        "max_model_len",
        "max_tokens",
        "supported_parameters",
        "type",
    },
    "ModelInfo": {
        "context_length",
        "created",
        "max_model_len",
        "object",
        "owned_by",
        "supported_parameters",
    },
    "OpenAiModels": {"first_id", "has_more", "last_id", "models"},
    "AnthropicModels": {"object", "models"},
    # In OpenAI's answers, but not in the types.
    "Response": {"frequency_penalty", "presence_penalty", "store"},
    "Logprob": {"bytes"},
    "LogprobTopLogprob": {"bytes"},
    "ResponseFunctionCallArgumentsDoneEvent": {"name"},
}
# Where a shape is stricter than what OpenAI and Anthropic themselves send.
EXCUSED = {
    # Null until the last frame of a stream.
    ("/v1/completions", "choices.0.finish_reason"),
}


class Recorder(httpx2.BaseTransport):
    """Passes requests on, and keeps what is answered."""

    def __init__(self):
        self.transport = httpx2.HTTPTransport()
        self.recorded = []

    def handle_request(self, request):
        response = self.transport.handle_request(request)
        body = Kept(response.stream)
        self.recorded.append((request, response, body))
        return httpx2.Response(response.status_code, headers=response.headers, stream=body)

    def close(self):
        self.transport.close()


class Kept(httpx2.SyncByteStream):
    def __init__(self, stream):
        self.stream, self.bytes = stream, b""

    def __iter__(self):
        for piece in self.stream:
            self.bytes += piece
            yield piece

    def close(self):
        self.stream.close()


def unknown(value, path):
    """The fields of a checked value that its type does not have."""
    if isinstance(value, pydantic.BaseModel):
        kind = type(value).__name__
        for name in (value.__pydantic_extra__ or {}).keys() - MORE.get(kind, set()):
            yield f"{path}: {kind} has no {name}"
        for name in type(value).model_fields:
            yield from unknown(getattr(value, name), f"{path}.{name}")
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield from unknown(item, f"{path}[{index}]")


def faults(path, shape, data):
    """What is wrong with a piece of JSON."""
    try:
        value = pydantic.TypeAdapter(shape).validate_json(data, strict=True)
    except pydantic.ValidationError as error:
        for fault in error.errors():
            place = ".".join(str(part) for part in fault["loc"])
            if (path, place) not in EXCUSED:
                yield f"{place}: {fault['msg']} in {data}"
        return
    yield from unknown(value, "")


def frames(text):
    """Names and data of the frames of a stream."""
    for frame in text.split("\n\n"):
        lines = [line for line in frame.split("\n") if line and not line.startswith(":")]
        if lines:
            fields = dict(line.split(": ", 1) for line in lines)
            yield fields.get("event"), fields["data"]


def check(recorded):
    """All faults of what was recorded, and how many pieces were held against which shapes."""
    found, counted = set(), {}

    def hold(path, shape, data):
        # Any of several, told apart by their types, has no name.
        name = shape.__name__ if isinstance(shape, type) else "event of " + path
        counted[name] = counted.get(name, 0) + 1
        found.update(f"{path} {fault}" for fault in faults(path, shape, data))

    for request, response, body in recorded:
        path, text = request.url.path, body.bytes.decode()
        anthropic = "anthropic-version" in request.headers
        if response.status_code != 200:
            hold(path, anthropic_types.ErrorResponse if anthropic else OpenAiError, text)
        elif path == "/v1/models":
            hold(path, AnthropicModels if anthropic else OpenAiModels, text)
        elif path.startswith("/v1/models/"):
            hold(path, anthropic_types.ModelInfo if anthropic else openai_types.Model, text)
        elif response.headers["content-type"].startswith("text/event-stream"):
            for event, data in frames(text):
                if data == "[DONE]" or event == "ping":
                    continue
                if event and json.loads(data)["type"] != event:
                    found.add(f"{path} is called {event}: {data}")
                hold(path, SHAPES[path][1], data)
        else:
            hold(path, SHAPES[path][0], text)
    return sorted(found), counted
