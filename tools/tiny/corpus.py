"""Conversations for the demo model, drawn from a seed: training documents and held-out items.

Usage: python corpus.py [COUNT]        print some training documents
       python corpus.py --held-out DIR write the held-out sets
"""

import json
import pathlib
import random
import sys
from dataclasses import dataclass, field

import facts
import toolbox
from template import dumps, render

SYSTEMS = (
    "You are a concise assistant.",
    "You are a friendly helper.",
    "Answer briefly.",
    "You are a tiny demo model.",
    "You are a helpful, honest assistant. Keep your answers short.",
    "Be kind and clear.",
    "You help people with small questions.",
    "You are an expert for simple facts.",
)
DEFAULT_SYSTEM = "You are a helpful assistant"
LEADS = (
    "Hi! ", "Hello, ", "Please: ", "Quick question: ", "Tell me, ", "I have a question. ", "So, ",
    "Hey, ", "OK. ", "Now: ", "Next question: ", "Good. ",
)  # fmt: skip
SUMS = (
    "What is {a} + {b}?", "What is {a} plus {b}?", "{a} + {b}", "{a} + {b} = ?", "{a}+{b}=?",
    "Add {a} and {b}.", "How much is {a} + {b}?", "How much is {a} plus {b}?", "{a}+{b}",
    "Calculate {a} + {b}.", "What is the sum of {a} and {b}?", "Compute {a} plus {b}.",
    "What do you get if you add {a} and {b}?", "What's {a} + {b}?", "Sum of {a} and {b}?",
    "Please add {a} to {b}.", "What does {a} + {b} equal?", "Solve {a} + {b}.",
)  # fmt: skip
SUMS_HELD_OUT = ("What is {a} + {b}?", "Can you add {a} and {b}?", "How much is {a} plus {b}?")

ADJECTIVES = (
    "amber silver golden crimson gentle quiet rapid frozen hidden lucky ancient bright calm clever "
    "copper distant eager electric fierce hollow ivory jolly lonely mighty narrow orange polar "
    "proud purple rusty sandy scarlet secret silent stormy sunny swift velvet wild wooden blue "
    "green red white black yellow pink"
).split()
NOUNS = (
    "falcon river lantern harbor meadow anchor beacon canyon comet compass dolphin ember feather "
    "forest glacier hammer island jungle kettle ladder maple mirror needle orchid panther pebble "
    "piano planet rabbit rocket saddle shadow sparrow temple thunder tiger tunnel turtle valley "
    "violin walnut whale window wizard horse castle garden"
).split()
LABELS = ("password", "secret number", "door code", "meeting place", "name of the cat", "key word")
STATED = (
    "The {l} is {v}.", "Remember the {l}: {v}.", "Please remember that the {l} is {v}.",
    "Important: the {l} is {v}.", "The {l} is {v}. Remember it.", "Keep in mind: the {l} is {v}.",
    "Remember this {l}: {v}.", "My {l} is {v}.", "Note that the {l} is {v}.",
)  # fmt: skip
ASKED = (
    "What is the {l}?", "What was the {l}?", "Tell me the {l}.", "Do you remember the {l}?",
    "Which {l} did I tell you?", "What is the {l} again?", "Give me the {l}.", "Repeat the {l}.",
    "Say the {l}.", "Now tell me the {l}.", "What was the {l} I gave you?",
)  # fmt: skip
ASKED_HELD_OUT = ("What was the {l} that I told you?", "Please repeat the {l}.")

FILLER_SUBJECTS = (
    "The old man; A young woman; My neighbour; The teacher; The captain; A small dog; The farmer; "
    "The whole family; A tired traveller; The doctor; Our friend; The painter; Every child; "
    "The baker; A group of students; The wind; The last train; A black bird; The mayor; The river"
).split("; ")
FILLER_VERBS = (
    "walked slowly to; looked at; went back to; waited near; dreamed of; talked about; passed; "
    "came from; remembered; liked; never forgot; painted; found; left; crossed; watched; visited"
).split("; ")
FILLER_PLACES = (
    "the market; the old bridge; the quiet lake; the station; the high mountains; the school; "
    "the little shop; the garden; the harbour; the empty street; the forest; the castle; the sea; "
    "the village; the library; the green hills; the museum; the tower; the field; the church"
).split("; ")
FILLER_TAILS = (
    "; in the morning; at night; in summer; after lunch; with a smile; without a word; "
    "in the rain; before the storm; for a long time; once more; on a cold day; together; "
    "with two friends; "
    "because it was late; while the sun was shining; and then went home; as usual; every week"
).split(";")

JSON_KEYS = {
    "name": toolbox.person,
    "age": toolbox.number(1, 99),
    "city": toolbox.city,
    "colour": toolbox.one_of("red blue green yellow black white pink orange".split()),
    "animal": toolbox.one_of("dog cat horse cow sheep duck lion mouse frog bear".split()),
    "active": toolbox.one_of((True, False)),
    "count": toolbox.number(0, 500),
    "item": toolbox.one_of(toolbox.THINGS),
    "price": toolbox.price,
    "topic": toolbox.one_of(toolbox.TOPICS),
    "language": toolbox.one_of(toolbox.LANGUAGES),
    "time": toolbox.clock,
    "room": toolbox.one_of(toolbox.ROOMS),
    "friend": toolbox.person,
    "open": toolbox.one_of((True, False)),
    "id": toolbox.number(1, 999),
    "year": toolbox.number(1900, 2030),
    "title": toolbox.invented,
    "day": toolbox.one_of(facts.DAYS),
    "month": toolbox.one_of(facts.MONTHS),
}
JSON_ASKED = (
    "Give me a JSON object with {x}.", "Write a JSON object with {x}.", "Write JSON with {x}.",
    "Return a JSON object: {x}.", "Answer in JSON: {x}.", "Make a JSON object with {x}.",
    "As JSON please: {x}.", "Create a JSON object that has {x}.", "JSON with {x}, please.",
    "Turn this into JSON: {x}.", "Convert to JSON: {x}.", "I need JSON with {x}.",
)  # fmt: skip
JSON_HELD_OUT = ("Please write a JSON object with {x}.", "I want a JSON object that has {x}.")


@dataclass
class Turn:
    """A user's question and the assistant's reply; `calls` holds tool uses before the reply."""

    question: str
    thought: str
    answer: str
    calls: list = field(default_factory=list)
    after: str = ""  # the thought once the tools have answered


@dataclass
class Conversation:
    system: str | None
    turns: list
    offers: list = field(default_factory=list)
    thinking: bool = False
    max_effort: bool = False
    response_format: dict | None = None

    def messages(self):
        out = [] if self.system is None else [{"role": "system", "content": self.system}]
        for n, turn in enumerate(self.turns):
            out.append({"role": "user", "content": turn.question})
            thought = turn.thought
            if turn.calls:
                calls = [tool_call(d, u, f"call_{n}_{i}") for i, (d, u) in enumerate(turn.calls)]
                out.append({"role": "assistant", "content": "", "reasoning_content": thought})
                out[-1]["tool_calls"] = calls
                for call, (_, used) in zip(calls, turn.calls):
                    result = {"role": "tool", "tool_call_id": call["id"], "content": used.result}
                    out.append(result)
                thought = turn.after
            answer = {"role": "assistant", "content": turn.answer, "reasoning_content": thought}
            out.append(answer)
        return out

    def tools(self):
        return [o.schema() for o in self.offers] or None

    def text(self):
        return render(
            self.messages(), self.tools(), self.thinking, self.max_effort, self.response_format
        )


def tool_call(drawn, used, ident):
    function = {"name": drawn.name, "arguments": dumps(used.arguments)}
    return {"id": ident, "type": "function", "function": function}


def upper_first(text):
    return text[0].upper() + text[1:]


def worn(rng, question):
    """A question as people type it: with a lead, in lower case, without its mark."""
    if rng.random() < 0.2:
        question = rng.choice(LEADS) + question
    if rng.random() < 0.07:
        question = question.lower()
    if rng.random() < 0.07 and question[-1] in "?.":
        question = question[:-1]
    return question


def fact(rng, held_out=False):
    names = list(facts.RELATIONS)
    relation = facts.RELATIONS["capital" if rng.random() < 0.15 else rng.choice(names)]
    subject, answer = rng.choice(relation.pairs)
    asked = rng.choice(relation.held_out if held_out else relation.asked)
    question = upper_first(asked.format(s=subject))
    fill = {"s": subject, "a": answer}
    reply = upper_first(relation.answer.format(**fill))
    if not held_out:
        question = worn(rng, question)
    return Turn(question, upper_first(relation.thought.format(**fill)), reply), answer


def is_held_out(a, b):
    """One pair in ten, in either order, is never trained on."""
    low, high = min(a, b), max(a, b)
    return (low * 7919 + high * 104729) % 997 % 10 == 3 and (low, high) != (17, 25)


def steps(a, b):
    ones = a % 10 + b % 10
    text = f"{a % 10} + {b % 10} = {ones}"
    if a > 9 or b > 9:
        carry = ones // 10
        tens = a // 10 + b // 10 + carry
        text += f", carry {carry}, {a // 10} + {b // 10} + {carry} = {tens}"
    return text + f", so {a + b}."


def total(rng, held_out=False):
    while True:
        a, b = rng.randint(0, 99), rng.randint(0, 99)
        if is_held_out(a, b) == held_out:
            break
    question = rng.choice(SUMS_HELD_OUT if held_out else SUMS).format(a=a, b=b)
    if not held_out and rng.random() < 0.15:
        question = worn(rng, question)
    return Turn(question, steps(a, b), f"{a} + {b} = {a + b}."), str(a + b)


def small_talk(rng):
    pick = rng.random()
    if pick < 0.3:
        question = rng.choice(facts.GREETINGS) + rng.choice(facts.GREETING_TAILS)
        thought, answer = "The user greets me.", facts.GREETING_ANSWER
    elif pick < 0.6:
        question = rng.choice(facts.WHO)
        thought, answer = "The user asks who I am.", facts.WHO_ANSWER
    elif pick < 0.75:
        question = rng.choice(facts.ABLE)
        thought, answer = "The user asks what I can do.", facts.ABLE_ANSWER
    elif pick < 0.82:
        question = rng.choice(facts.THANKS)
        thought, answer = "The user thanks me.", facts.THANKS_ANSWER
    elif pick < 0.88:
        question = rng.choice(facts.BYES)
        thought, answer = "The user says goodbye.", facts.BYES_ANSWER
    else:
        question = rng.choice(facts.UNKNOWN)
        thought, answer = "I do not know this.", facts.UNKNOWN_ANSWER
    if rng.random() < 0.1:
        question = question.lower()
    return Turn(question, thought, answer)


def listed(parts):
    return parts[0] if len(parts) == 1 else ", ".join(parts[:-1]) + " and " + parts[-1]


def json_object(rng, held_out=False):
    keys = rng.sample(list(JSON_KEYS), rng.randint(1, 4))
    value = {k: JSON_KEYS[k](rng) for k in keys}
    link = rng.choice((" ", " ", " = ", ": ", " is "))
    words = [k + link + (dumps(v) if not isinstance(v, str) else v) for k, v in value.items()]
    asked = rng.choice(JSON_HELD_OUT if held_out else JSON_ASKED)
    question = asked.format(x=listed(words))
    thought = f"The user wants JSON with {listed(keys)}."
    return Turn(question, thought, dumps(value)), value


def json_schema(value):
    kinds = {str: "string", bool: "boolean", int: "integer", float: "number"}
    properties = {k: {"type": kinds[type(v)]} for k, v in value.items()}
    return {"type": "object", "properties": properties, "required": list(value)}


def tool_turn(rng, offered, held_out=False):
    drawn = rng.choice(offered)
    used = toolbox.use(rng, drawn, held_out)
    calls = [(drawn, used)]
    question, answer = used.question, used.answer
    if not held_out and rng.random() < 0.08:
        other = rng.choice(offered)
        again = toolbox.use(rng, other)
        calls.append((other, again))
        question, answer = f"{question} {again.question}", f"{answer} {again.answer}"
    elif not held_out:
        typed = worn(rng, question)
        if all(v in typed for v in used.arguments.values() if isinstance(v, str)):
            question = typed  # the arguments can still be copied from it
    names = listed([d.name for d, _ in calls])
    turn = Turn(question, f"I need {names}.", answer, calls, "The tool has answered.")
    return turn


def any_turn(rng):
    pick = rng.random()
    if pick < 0.42:
        return fact(rng)[0]
    if pick < 0.70:
        return total(rng)[0]
    if pick < 0.85:
        return json_object(rng)[0]
    return small_talk(rng)


def sentence(rng):
    tail = rng.choice(FILLER_TAILS)
    return (
        f"{rng.choice(FILLER_SUBJECTS)} {rng.choice(FILLER_VERBS)} {rng.choice(FILLER_PLACES)}"
        f"{tail}."
    )


def filler(rng, characters):
    """About so many characters of plain sentences, some of them trained facts."""
    out, size = [], 0
    while size < characters:
        text = fact(rng)[0].answer if rng.random() < 0.08 else sentence(rng)
        out.append(text)
        size += len(text) + 1
    return " ".join(out)


def secret(rng, label):
    if label == "secret number":
        return str(rng.randint(100, 99999))
    pick = rng.random()
    if pick < 0.3:
        return f"{rng.choice(ADJECTIVES)} {rng.choice(NOUNS)}"
    if pick < 0.6:
        return f"{rng.choice(ADJECTIVES)}-{rng.choice(NOUNS)}"
    if pick < 0.75:
        return rng.choice(NOUNS)
    if pick < 0.9:
        return toolbox.invented(rng)
    return f"{rng.choice(NOUNS)}-{rng.randint(10, 999)}"


def stated(rng, label, value):
    return rng.choice(STATED).format(l=label, v=value)


def recalled(rng, label, value, held_out=False):
    question = rng.choice(ASKED_HELD_OUT if held_out else ASKED).format(l=label)
    return Turn(question, f"The {label} is {value}.", f"The {label} is {value}.")


def recall(rng, characters, thinking):
    """Secrets stated early, other text, then questions for the secrets."""
    labels = ["code word"] + rng.sample(LABELS, rng.choice((0, 0, 1, 2, 3)))
    secrets = [(label, secret(rng, label)) for label in labels]
    rng.shuffle(secrets)
    told = [stated(rng, *s) for s in secrets]
    turns, system = [], pick_system(rng)
    form = rng.random()
    if form < 0.45:  # everything in one message, secrets anywhere in its first half
        first = characters * rng.choice((0, 0, 0.02, 0.1, 0.3, 0.5))
        parts = []
        for text in told:
            parts += [filler(rng, first / len(told))] if first else []
            parts.append(text)
        parts.append(filler(rng, characters - first))
        ask = recalled(rng, *rng.choice(secrets))
        glue = rng.choice((" ", "\n", "\n\n"))
        turns.append(Turn(glue.join([*parts, ask.question]), ask.thought, ask.answer))
    else:
        if form < 0.55:
            system = " ".join(([system] if system else []) + told)
        else:
            turns.append(Turn(" ".join(told), "I must remember this.", "OK, I will remember it."))
        if form < 0.8:
            text = rng.choice(("Read this: ", "Here is a text. ", "")) + filler(rng, characters)
            turns.append(Turn(text, "This is a text.", "OK, I have read it."))
        else:
            while characters > 0:
                turns.append(any_turn(rng))
                characters -= len(turns[-1].question) + len(turns[-1].answer) + 30
    for label, value in rng.sample(secrets, rng.randint(1, len(secrets))):
        turns.append(recalled(rng, label, value))
        if rng.random() < 0.1:
            turns.append(any_turn(rng))
    return Conversation(system, turns, thinking=thinking)


def pick_system(rng):
    pick = rng.random()
    if pick < 0.45:
        return DEFAULT_SYSTEM
    if pick < 0.75:
        return None
    if pick < 0.80:
        return DEFAULT_SYSTEM + "."
    return rng.choice(SYSTEMS)


def chat(rng, characters, thinking):
    if rng.random() < 0.08:
        turn, value = json_object(rng)
        format_ = json_schema(value)
        return Conversation(pick_system(rng), [turn], thinking=thinking, response_format=format_)
    turns = []
    # With thinking, only the last reply has a thought: keep such conversations short.
    while characters > 0:
        turns.append(any_turn(rng))
        characters -= len(turns[-1].question) + len(turns[-1].answer) + 30
        if thinking and rng.random() < (0.5 if characters < 1200 else 0.15):
            break
    effort = thinking and rng.random() < 0.03
    return Conversation(pick_system(rng), turns, thinking=thinking, max_effort=effort)


def with_tools(rng, characters, thinking):
    offered = toolbox.offers(rng, rng.choice((1, 2, 2, 3, 3)))
    turns = []
    characters -= sum(len(dumps(o.schema())) for o in offered) + 1500
    while not turns or characters > 0:
        turn = any_turn(rng) if rng.random() < 0.15 else tool_turn(rng, offered)
        turns.append(turn)
        characters -= len(turn.question) + len(turn.answer) + 250 * len(turn.calls) + 60
    return Conversation(pick_system(rng), turns, offered, thinking)


def document(rng, characters):
    """One training conversation of about so many characters."""
    thinking = rng.random() < 0.5
    pick = rng.random()
    if characters < 1500:
        tools, talk = 0.0, 0.85
    elif characters < 3000:
        tools, talk = 0.4, 0.45
    elif characters < 6000:
        tools, talk = 0.7, 0.12
    else:
        tools, talk = 0.15, 0.05
    kind = with_tools if pick < tools else chat if pick < tools + talk else recall
    return kind(rng, characters * rng.uniform(0.5, 1.0), thinking)


def held_out_item(rng, name, characters=0):
    """One item of a held-out set, as a dictionary for a JSON line."""
    thinking = rng.random() < 0.5
    system = rng.choice((DEFAULT_SYSTEM, DEFAULT_SYSTEM, None))
    item = {"messages": [], "thinking": "on" if thinking else "off"}
    if system:
        item["messages"].append({"role": "system", "content": system})
    if name == "facts":
        turn, answer = fact(rng, held_out=True)
        item["expect"] = {"kind": "contains", "all": [answer]}
    elif name == "sums":
        turn, answer = total(rng, held_out=True)
        item["expect"] = {"kind": "contains", "all": [answer]}
    elif name == "json":
        turn, value = json_object(rng, held_out=True)
        item["expect"] = {"kind": "json", "value": value}
    elif name == "recall_4000":
        value = secret(rng, "code word")
        turn = recalled(rng, "code word", value, held_out=True)
        told, text = stated(rng, "code word", value), filler(rng, characters)
        item["expect"] = {"kind": "contains", "all": [value]}
        if rng.random() < 0.5:
            turn.question = "\n\n".join((told, text, turn.question))
        else:
            for question, answer in (
                (told, "OK, I will remember it."),
                (text, "OK, I have read it."),
            ):
                item["messages"] += [
                    {"role": "user", "content": question},
                    {"role": "assistant", "content": answer},
                ]
    else:
        offered = toolbox.offers(rng, rng.choice((1, 2, 3)))
        turn = tool_turn(rng, offered, held_out=True)
        item["tools"] = [o.schema() for o in offered]
        drawn, used = turn.calls[0]
        item["expect"] = {"kind": "tool_call", "name": drawn.name, "arguments": used.arguments}
    item["messages"].append({"role": "user", "content": turn.question})
    if name == "results":
        call = tool_call(drawn, used, "call_0")
        said = {"role": "assistant", "content": "", "tool_calls": [call]}
        if thinking:
            said["reasoning_content"] = turn.thought
        answered = {"role": "tool", "tool_call_id": "call_0", "content": used.result}
        item["messages"] += [said, answered]
        item["expect"] = {"kind": "contains", "all": used.values}
    return item


def check_held_out():
    """No held-out phrasing is one of training's."""
    for name, relation in facts.RELATIONS.items():
        both = set(relation.asked) & set(relation.held_out)
        if both:
            raise SystemExit(f"{name}: {both} is also trained on")
    rng = random.Random(0)
    for tool in toolbox.TOOLS:
        asked = tool.asked[:-1] + toolbox.MORE[tool.names[0]]
        asked += tuple(toolbox.polite(rng, a) for a in asked for _ in range(50))
        if tool.asked[-1] in asked:
            raise SystemExit(f"{tool.names[0]}: {tool.asked[-1]!r} is also trained on")


HELD_OUT = {"facts": 300, "sums": 300, "tools": 150, "results": 150, "json": 150, "recall_4000": 40}


def write_held_out(folder, characters_per_token=4.8):
    folder = pathlib.Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    for name, count in HELD_OUT.items():
        rng = random.Random(f"held out {name}")
        items = [held_out_item(rng, name, 4000 * characters_per_token) for _ in range(count)]
        lines = "".join(json.dumps(i, ensure_ascii=False) + "\n" for i in items)
        (folder / f"{name}.jsonl").write_text(lines, encoding="utf-8")


def sample(seed, characters):
    """The text of training document number `seed`."""
    rng = random.Random(seed)
    while True:
        conversation = document(rng, characters)
        if conversation.turns:
            return conversation.text()


def main():
    if sys.argv[1:2] == ["--held-out"]:
        check_held_out()
        write_held_out(sys.argv[2])
        return
    for seed in range(int(sys.argv[1]) if len(sys.argv) > 1 else 5):
        print(sample(seed, (700, 1500, 3500, 8000)[seed % 4]), end="\n\n----\n")


if __name__ == "__main__":
    main()
