"use strict";
// Everything a model writes goes into the page as text, never as markup.

const $ = (id) => document.getElementById(id);
const make = (tag, text = "", name = "") => {
  const node = document.createElement(tag);
  if (text) node.textContent = text;
  if (name) node.className = name;
  return node;
};

// --- What is remembered ---------------------------------------------------------------------

const KEPT = ["effort", "system", "tools", "temperature", "most"];
let messages = [];
let running = null;

function load() {
  try {
    const kept = JSON.parse(localStorage.getItem("ds4") || "{}");
    for (const id of KEPT) if (typeof kept[id] === "string") $(id).value = kept[id];
    if (Array.isArray(kept.messages)) messages = kept.messages;
  } catch (_) { /* A page that forgets is better than one that does not open. */ }
  // A key is for this tab only.
  $("key").value = sessionStorage.getItem("ds4-key") || "";
}

function save() {
  const kept = { messages };
  for (const id of KEPT) kept[id] = $(id).value;
  try { localStorage.setItem("ds4", JSON.stringify(kept)); } catch (_) { /* full or forbidden */ }
  sessionStorage.setItem("ds4-key", $("key").value);
}

// --- Markdown -------------------------------------------------------------------------------

const INLINE = /(`+)([^`][\s\S]*?)\1|\*\*([^*\n]+)\*\*|\*([^*\s][^*\n]*)\*|\[([^\]\n]+)\]\((https?:\/\/[^\s)]+)\)/g;

function inline(parent, text) {
  let last = 0;
  for (const match of text.matchAll(INLINE)) {
    parent.append(text.slice(last, match.index));
    last = match.index + match[0].length;
    if (match[2] !== undefined) parent.append(make("code", match[2]));
    else if (match[3] !== undefined) parent.append(make("strong", match[3]));
    else if (match[4] !== undefined) parent.append(make("em", match[4]));
    else {
      const link = make("a", match[5]);
      link.href = match[6];
      link.rel = "noreferrer noopener";
      link.target = "_blank";
      parent.append(link);
    }
  }
  parent.append(text.slice(last));
}

function markdown(parent, text) {
  parent.replaceChildren();
  const lines = text.split("\n");
  const item = /^(\s*)([-*+]|\d+[.)])\s+(.*)$/;
  const row = (line) => line.trim().replace(/^\||\|$/g, "").split("|");
  for (let at = 0; at < lines.length;) {
    const line = lines[at];
    const fence = line.match(/^\s*(```+|~~~+)(.*)$/);
    if (fence) {
      let end = at + 1;
      while (end < lines.length && !lines[end].trim().startsWith(fence[1])) end++;
      const block = make("pre");
      block.append(make("code", lines.slice(at + 1, end).join("\n")));
      parent.append(block);
      at = end + 1;
    } else if (/^#{1,6}\s/.test(line)) {
      const level = line.match(/^#+/)[0].length;
      const heading = make("h" + Math.min(6, level + 1));
      inline(heading, line.slice(level).trim());
      parent.append(heading);
      at++;
    } else if (item.test(line)) {
      const list = make(/^\s*\d/.test(line) ? "ol" : "ul");
      while (at < lines.length && item.test(lines[at])) {
        const entry = make("li");
        inline(entry, lines[at].match(item)[3]);
        list.append(entry);
        at++;
      }
      parent.append(list);
    } else if (line.includes("|") && /^[\s|:-]+$/.test(lines[at + 1] || "") && (lines[at + 1] || "").includes("-")) {
      const table = make("table");
      for (let first = true; at < lines.length && lines[at].includes("|"); at++) {
        if (/^[\s|:-]+$/.test(lines[at])) continue;
        const cells = make("tr");
        for (const cell of row(lines[at])) {
          const node = make(first ? "th" : "td");
          inline(node, cell.trim());
          cells.append(node);
        }
        first = false;
        table.append(cells);
      }
      parent.append(table);
    } else if (!line.trim()) {
      at++;
    } else {
      const paragraph = make("p");
      const from = at;
      while (at < lines.length && lines[at].trim() && (at === from || !/^\s*(```|~~~|#{1,6}\s)/.test(lines[at])) && (at === from || !item.test(lines[at]))) at++;
      inline(paragraph, lines.slice(from, at).join("\n"));
      parent.append(paragraph);
    }
  }
}

// --- Showing --------------------------------------------------------------------------------

function nearEnd() {
  const log = $("log");
  return log.scrollHeight - log.scrollTop - log.clientHeight < 80;
}

function follow(was) { if (was) $("log").scrollTop = $("log").scrollHeight; }

/** An assistant's message on the page; `show` draws what there is of it. */
function view(message) {
  const node = make("article", "", "assistant");
  const thought = make("details");
  const summary = make("summary", "Thinking");
  const thinking = make("div");
  thought.append(summary, thinking);
  const text = make("div");
  const calls = make("div");
  node.append(thought, text, calls);
  $("log").append(node);
  const show = (live) => {
    const was = nearEnd();
    thought.hidden = !message.reasoning_content;
    thinking.textContent = message.reasoning_content || "";
    summary.textContent = live && !message.content ? "Thinking …" : "Thought";
    markdown(text, message.content || "");
    calls.replaceChildren(...(message.tool_calls || []).map(callView));
    follow(was);
  };
  show(false);
  return show;
}

function callView(call) {
  const node = make("div", "", "call");
  node.append(make("strong", call.function.name || "…"));
  const text = make("pre");
  text.append(make("code", pretty(call.function.arguments)));
  node.append(text);
  const result = messages.find((other) => other.role === "tool" && other.tool_call_id === call.id);
  if (result) {
    const shown = make("pre");
    shown.append(make("code", result.content));
    node.append(shown);
  }
  return node;
}

function pretty(json) {
  try { return JSON.stringify(JSON.parse(json), null, 2); } catch (_) { return json; }
}

/** What the user's own programs would do: run the calls and send the results. */
function askForResults(message) {
  const open = (message.tool_calls || []).filter((call) => !messages.some((other) => other.tool_call_id === call.id));
  if (!open.length) return;
  const form = make("form", "", "call");
  const fields = open.map((call) => {
    const field = make("textarea");
    field.rows = 2;
    field.placeholder = "Result of " + call.function.name;
    field.setAttribute("aria-label", field.placeholder);
    form.append(field);
    return field;
  });
  const send = make("button", "Send results");
  send.type = "submit";
  form.append(send);
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    if (running) return;
    open.forEach((call, index) => messages.push({ role: "tool", tool_call_id: call.id, content: fields[index].value }));
    redraw();
    answer();
  });
  $("log").lastElementChild.append(form);
  follow(true);
}

function redraw() {
  $("log").replaceChildren();
  for (const message of messages) {
    if (message.role === "user") $("log").append(make("article", message.content, "user"));
    else if (message.role === "assistant") view(message);
  }
  const last = messages[messages.length - 1];
  if (last && last.role === "assistant") askForResults(last);
  follow(true);
}

function complain(text) {
  const node = make("article", text, "error");
  node.setAttribute("role", "alert");
  $("log").append(node);
  follow(true);
}

// --- Asking ---------------------------------------------------------------------------------

function headers() {
  const all = { "content-type": "application/json" };
  if ($("key").value) all.authorization = "Bearer " + $("key").value;
  return all;
}

function request() {
  const body = { model: "ds4", stream: true, stream_options: { include_usage: true }, reasoning_effort: $("effort").value };
  const system = $("system").value.trim();
  body.messages = system ? [{ role: "system", content: system }, ...messages] : messages;
  if ($("temperature").value !== "") body.temperature = Number($("temperature").value);
  if ($("most").value !== "") body.max_completion_tokens = Number($("most").value);
  if ($("tools").value.trim()) body.tools = JSON.parse($("tools").value);
  return body;
}

/** The data of an event stream's frames, whole. */
async function* frames(response) {
  const reader = response.body.getReader();
  const decoder = new TextDecoder();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read();
    rest += decoder.decode(value, { stream: !done });
    const parts = rest.split("\n\n");
    rest = parts.pop();
    for (const part of parts) {
      const data = part.split("\n").filter((line) => line.startsWith("data:")).map((line) => line.slice(5).trim()).join("\n");
      if (data) yield data;
    }
    if (done) return;
  }
}

function take(message, delta) {
  if (delta.reasoning_content) message.reasoning_content = (message.reasoning_content || "") + delta.reasoning_content;
  if (delta.content) message.content += delta.content;
  for (const part of delta.tool_calls || []) {
    message.tool_calls = message.tool_calls || [];
    const call = (message.tool_calls[part.index] = message.tool_calls[part.index] || { id: "", type: "function", function: { name: "", arguments: "" } });
    if (part.id) call.id = part.id;
    if (part.function && part.function.name) call.function.name = part.function.name;
    if (part.function && part.function.arguments) call.function.arguments += part.function.arguments;
  }
}

async function answer() {
  $("settings-error").textContent = "";
  let body;
  try {
    body = request();
  } catch (error) {
    $("settings").hidden = false;
    $("settings-error").textContent = "Tools are no JSON: " + error.message;
    return;
  }
  const message = { role: "assistant", content: "" };
  running = new AbortController();
  $("send").hidden = true;
  $("stop").hidden = false;
  $("stats").textContent = "Reading …";
  const began = performance.now();
  let first = 0, usage = null, finish = null, show = null, drawing = false;
  const draw = () => {
    if (drawing) return;
    drawing = true;
    requestAnimationFrame(() => { drawing = false; if (running) show(true); });
  };
  try {
    const response = await fetch("/v1/chat/completions", { method: "POST", headers: headers(), body: JSON.stringify(body), signal: running.signal });
    if (!response.ok) {
      const error = await response.json().catch(() => null);
      if (response.status === 401) $("settings").hidden = false;
      throw new Error((error && error.error && error.error.message) || "The server answered " + response.status + ".");
    }
    show = view(message);
    for await (const data of frames(response)) {
      if (data === "[DONE]") break;
      const chunk = JSON.parse(data);
      if (chunk.error) throw new Error(chunk.error.message);
      if (chunk.usage) usage = chunk.usage;
      const choice = chunk.choices && chunk.choices[0];
      if (!choice) continue;
      if (choice.finish_reason) finish = choice.finish_reason;
      const had = message.content.length + (message.reasoning_content || "").length + (message.tool_calls ? 1 : 0);
      take(message, choice.delta);
      if (!first && message.content.length + (message.reasoning_content || "").length + (message.tool_calls ? 1 : 0) > had) first = performance.now();
      draw();
    }
  } catch (error) {
    if (error.name !== "AbortError") complain(error.message);
    else finish = "stopped";
  }
  running = null;
  $("send").hidden = false;
  $("stop").hidden = true;
  if (show) show(false);
  if (finish !== null && finish !== "tool_calls") delete message.tool_calls;
  if (message.content || message.reasoning_content || message.tool_calls) messages.push(message);
  if (message.tool_calls) askForResults(message);
  stats(usage, finish, began, first);
  save();
}

function stats(usage, finish, began, first) {
  const parts = [];
  const now = performance.now();
  if (usage) {
    const cached = (usage.prompt_tokens_details && usage.prompt_tokens_details.cached_tokens) || 0;
    parts.push("prompt " + usage.prompt_tokens + " (" + cached + " cached)");
    const rate = first && now > first ? usage.completion_tokens / ((now - first) / 1000) : 0;
    parts.push("answer " + usage.completion_tokens + (rate ? ", " + rate.toFixed(rate < 10 ? 1 : 0) + " tok/s" : ""));
  }
  if (first) parts.push("first token after " + ((first - began) / 1000).toFixed(2) + " s");
  if (finish === "length") parts.push("cut: most tokens reached");
  if (finish === "stopped") parts.push("stopped");
  $("stats").textContent = parts.join(" · ");
}

// --- The page's controls --------------------------------------------------------------------

$("ask").addEventListener("submit", (event) => {
  event.preventDefault();
  const text = $("question").value.trim();
  if (!text || running) return;
  $("question").value = "";
  $("question").style.height = "";
  messages.push({ role: "user", content: text });
  $("log").append(make("article", text, "user"));
  follow(true);
  save();
  answer();
});
$("question").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
    event.preventDefault();
    $("ask").requestSubmit();
  }
});
$("question").addEventListener("input", () => {
  $("question").style.height = "";
  $("question").style.height = $("question").scrollHeight + 2 + "px";
});
$("stop").addEventListener("click", () => running && running.abort());
$("new").addEventListener("click", () => {
  if (running) running.abort();
  messages = [];
  redraw();
  $("stats").textContent = "";
  save();
  $("question").focus();
});
$("settings-button").addEventListener("click", () => {
  $("settings").hidden = !$("settings").hidden;
  $("settings-button").setAttribute("aria-expanded", String(!$("settings").hidden));
});
for (const id of [...KEPT, "key"]) $(id).addEventListener("change", save);

load();
redraw();
fetch("/v1/models", { headers: headers() })
  .then((response) => response.json())
  .then((list) => {
    const model = list.data && list.data[0];
    if (model) $("model").textContent = model.id + (model.context_length ? " · " + model.context_length.toLocaleString() + " tokens of context" : "");
  })
  .catch(() => {});
