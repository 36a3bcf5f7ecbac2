"""DeepSeek V4's chat template: messages to the text that the model reads.

Messages are OpenAI's (`role`, `content`, `tool_calls`, `tool_call_id`), assistants may carry
`reasoning_content`. `python template.py` checks itself.
"""

import json

BOS, EOS, PAD = "<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>", "<｜▁pad▁｜>"
USER, ASSISTANT = "<｜User｜>", "<｜Assistant｜>"
THINK, END_THINK = "<think>", "</think>"
DSML = "｜DSML｜"
REMINDER = "<｜latest_reminder｜>"
TASKS = tuple(
    f"<｜{name}｜>" for name in ("action", "query", "authority", "domain", "title", "read_url")
)

MAX_EFFORT = (
    "Reasoning Effort: Absolute maximum with no shortcuts permitted.\n"
    "You MUST be very thorough in your thinking and comprehensively decompose the problem to "
    "resolve the root cause, rigorously stress-testing your logic against all potential paths, "
    "edge cases, and adversarial scenarios.\n"
    "Explicitly write out your entire deliberation process, documenting every intermediate step, "
    "considered alternative, and rejected hypothesis to ensure absolutely no assumption is left "
    "unchecked.\n\n"
)

TOOLS_HEAD = """## Tools

You have access to a set of tools to help answer the user's question. You can invoke tools by \
writing a "<¤tool_calls>" block like the following:

<¤tool_calls>
<¤invoke name="$TOOL_NAME">
<¤parameter name="$PARAMETER_NAME" string="true|false">$PARAMETER_VALUE</¤parameter>
...
</¤invoke>
<¤invoke name="$TOOL_NAME2">
...
</¤invoke>
</¤tool_calls>

String parameters should be specified as is and set `string="true"`. For all other types \
(numbers, booleans, arrays, objects), pass the value in JSON format and set `string="false"`.

If thinking_mode is enabled (triggered by <think>), you MUST output your complete reasoning \
inside <think>...</think> BEFORE any tool calls or final response.

Otherwise, output directly after </think> with tool calls or final response.

### Available Tool Schemas

""".replace("¤", DSML)
TOOLS_TAIL = (
    "\n\nYou MUST strictly follow the above defined tool name and parameter schemas to invoke "
    "tool calls.\n"
)
FORMAT_HEAD = (
    "\n\n## Response Format:\n\nYou MUST strictly adhere to the following schema to reply:\n"
)


def dumps(value):
    return json.dumps(value, ensure_ascii=False)


def tools_block(tools):
    return TOOLS_HEAD + "\n".join(dumps(t["function"]) for t in tools) + TOOLS_TAIL


def tool_calls_block(calls):
    def parameter(name, value):
        text, kind = (value, "true") if isinstance(value, str) else (dumps(value), "false")
        return f'<{DSML}parameter name="{name}" string="{kind}">{text}</{DSML}parameter>'

    def invoke(call):
        function = call["function"]
        arguments = json.loads(function["arguments"])
        lines = "\n".join(parameter(k, v) for k, v in arguments.items())
        return f'<{DSML}invoke name="{function["name"]}">\n{lines}\n</{DSML}invoke>'

    body = "\n".join(invoke(c) for c in calls)
    return f"\n\n<{DSML}tool_calls>\n{body}\n</{DSML}tool_calls>"


def merged(messages):
    """Tool results become user blocks in the order of their calls; neighbouring users merge."""
    out, order = [], {}
    for message in messages:
        role = message["role"]
        if role == "assistant":
            order = {c["id"]: i for i, c in enumerate(message.get("tool_calls") or [])}
        if role in ("user", "tool"):
            if role == "tool":
                place = order.get(message.get("tool_call_id"), len(order))
                block = (place, f"<tool_result>{message['content']}</tool_result>")
            else:
                block = (None, message["content"])
            if not (out and out[-1]["role"] == "user"):
                out.append({"role": "user", "blocks": []})
            out[-1]["blocks"].append(block)
        else:
            out.append(message)
    for message in out:
        if message["role"] == "user":
            blocks = message["blocks"]
            results = iter(sorted((b for b in blocks if b[0] is not None), key=lambda b: b[0]))
            message["blocks"] = [(next(results) if b[0] is not None else b)[1] for b in blocks]
    return out


def render(messages, tools=None, thinking=False, max_effort=False, response_format=None):
    """The prompt text; it ends with the assistant's opening unless an assistant spoke last."""
    messages = merged(messages)
    if (tools or response_format) and (not messages or messages[0]["role"] != "system"):
        messages = [{"role": "system", "content": ""}] + messages
    last_user = max((i for i, m in enumerate(messages) if m["role"] == "user"), default=-1)
    keep_reasoning = bool(tools)
    out = [BOS, MAX_EFFORT if thinking and max_effort else ""]
    for i, message in enumerate(messages):
        role = message["role"]
        if role == "system":
            out.append(message["content"])
            if i == 0 and tools:
                out.append("\n\n" + tools_block(tools))
            if i == 0 and response_format:
                out.append(FORMAT_HEAD + dumps(response_format))
        elif role == "latest_reminder":
            out.append(REMINDER + message["content"])
        elif role == "user":
            out.append(USER + "\n\n".join(message["blocks"]))
            following = messages[i + 1]["role"] if i + 1 < len(messages) else None
            if following in (None, "assistant", "latest_reminder"):
                thinks = thinking and (keep_reasoning or i == last_user)
                out.append(ASSISTANT + (THINK if thinks else END_THINK))
        elif role == "assistant":
            if thinking and (keep_reasoning or i > last_user):
                out.append((message.get("reasoning_content") or "") + END_THINK)
            out.append(message.get("content") or "")
            if message.get("tool_calls"):
                out.append(tool_calls_block(message["tool_calls"]))
            out.append(EOS)
        else:
            raise ValueError(f"unknown role {role!r}")
    return "".join(out)


def self_check():
    import hashlib

    def digest(text):
        return hashlib.sha256(text.encode()).hexdigest()

    helpful = {"role": "system", "content": "You are helpful."}
    hi = {"role": "user", "content": "Hi"}
    assert render([helpful, hi]) == f"{BOS}You are helpful.{USER}Hi{ASSISTANT}{END_THINK}"
    hello = {"role": "assistant", "reasoning_content": "x", "content": "Hello!"}
    bye = {"role": "user", "content": "Bye"}
    two = render([hi, hello, bye], thinking=True)
    assert two == f"{BOS}{USER}Hi{ASSISTANT}</think>Hello!{EOS}{USER}Bye{ASSISTANT}<think>"
    assert "a\n\nb" in render([{"role": "user", "content": c} for c in "ab"])
    effort = render([helpful, hi], thinking=True, max_effort=True)
    assert digest(effort).startswith("8e359f9bf72ace63"), digest(effort)

    city = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
    function = {"name": "get_weather", "description": "Get weather", "parameters": city}
    arguments = '{"city": "Paris", "days": 3}'
    call = {"id": "1", "function": {"name": "get_weather", "arguments": arguments}}
    text = render(
        [
            helpful,
            {"role": "user", "content": "Weather in Paris?"},
            {"role": "assistant", "reasoning_content": "Need tool.", "tool_calls": [call]},
            {"role": "tool", "tool_call_id": "1", "content": "22C"},
        ],
        tools=[{"type": "function", "function": function}],
        thinking=True,
    )
    assert len(text) == 1506, len(text)
    assert digest(text).startswith("fec081100ca2f3de"), digest(text)
    print("template: all checks passed")


if __name__ == "__main__":
    self_check()
