"use strict";

/** An element with text or children. */
function make(name, options, ...children) {
  const element = document.createElement(name);
  Object.assign(element, options);
  element.append(...children);
  return element;
}

let documented = null;

/** What a reference stands for. */
function resolve(schema) {
  if (!schema || !schema.$ref) return schema || {};
  return schema.$ref.slice(2).split("/").reduce((value, key) => value[key], documented);
}

/** A schema in a few words. */
function kind(schema) {
  schema = resolve(schema);
  if ("const" in schema) return JSON.stringify(schema.const);
  if (schema.enum) return schema.enum.map((word) => JSON.stringify(word)).join(" | ");
  const several = schema.anyOf || schema.oneOf;
  if (several) return [...new Set(several.map(kind))].join(" | ");
  if (schema.type === "array") return "list of " + kind(schema.items);
  const type = Array.isArray(schema.type) ? schema.type.join(" | ") : schema.type;
  const bounds = [];
  if (schema.minimum !== undefined) bounds.push("≥ " + schema.minimum);
  if (schema.maximum !== undefined) bounds.push("≤ " + schema.maximum);
  return (type || "any") + (bounds.length ? " (" + bounds.join(", ") + ")" : "");
}

/** The objects that a schema may have fields in. */
function objects(schema) {
  schema = resolve(schema);
  if (schema.properties) return [schema];
  if (schema.items) return objects(schema.items);
  return (schema.anyOf || schema.oneOf || []).flatMap(objects);
}

/** The fields of a schema, unfolded on demand. */
function fields(schema) {
  const list = make("ul", {});
  for (const object of objects(schema)) {
    for (const [name, field] of Object.entries(object.properties)) {
      const required = (object.required || []).includes(name) ? "" : "?";
      const line = [make("code", { textContent: name + required }),
        make("span", { className: "dim", textContent: " " + kind(field) })];
      const told = resolve(field).description || field.description;
      if (told) line.push(make("div", { className: "dim", textContent: told }));
      const inner = objects(field);
      if (inner.some((one) => Object.keys(one.properties).length > 0)) {
        const fold = make("details", {}, make("summary", {}, ...line));
        fold.addEventListener("toggle", () => {
          if (fold.open && fold.children.length === 1) fold.append(fields(field));
        });
        list.append(make("li", {}, fold));
      } else {
        list.append(make("li", {}, ...line));
      }
    }
  }
  return list;
}

/** A form that sends a request and shows what comes back. */
function trial(method, path, example) {
  const address = make("input", { value: path });
  const body = make("textarea", { value: example ? JSON.stringify(example, null, 2) : "" });
  const answer = make("pre", { hidden: true });
  const send = make("button", { textContent: "Send" });
  let running = null;
  send.addEventListener("click", async () => {
    if (running) return running.abort();
    running = new AbortController();
    send.textContent = "Stop";
    answer.hidden = false;
    answer.textContent = "";
    try {
      const headers = {};
      const key = document.getElementById("key").value;
      if (key) headers.authorization = "Bearer " + key;
      const request = { method, headers, signal: running.signal };
      if (method === "POST") {
        headers["content-type"] = "application/json";
        request.body = body.value;
      }
      const response = await fetch(address.value, request);
      answer.textContent = response.status + "\n";
      const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
      let text = "";
      for (let part = await reader.read(); !part.done; part = await reader.read()) {
        text += part.value;
        answer.textContent = response.status + "\n" + text;
      }
      const type = response.headers.get("content-type") || "";
      if (type.includes("json")) {
        answer.textContent = response.status + "\n" + JSON.stringify(JSON.parse(text), null, 2);
      }
    } catch (error) {
      answer.append(String(error));
    }
    running = null;
    send.textContent = "Send";
  });
  const parts = [make("h3", { textContent: "Try it" })];
  if (path.includes("{")) parts.push(address);
  if (method === "POST") parts.push(body);
  return make("div", {}, ...parts, send, answer);
}

/** One operation. */
function operation(path, method, described) {
  const shown = path === "/" ? path : "/v1" + path;
  const title = make("summary", {},
    make("span", { className: "method", textContent: method.toUpperCase() }),
    make("code", { textContent: shown }),
    make("span", { className: "dim", textContent: described.summary }));
  const fold = make("details", { id: described.operationId }, title);
  fold.addEventListener("toggle", () => {
    if (!fold.open || fold.children.length > 1) return;
    const inside = make("div", { className: "body" });
    if (described.description) inside.append(make("p", { textContent: described.description }));
    const body = described.requestBody && described.requestBody.content["application/json"];
    if (body) inside.append(make("h3", { textContent: "Request" }), fields(body.schema));
    for (const [type, content] of Object.entries(described.responses["200"].content)) {
      inside.append(make("h3", { textContent: "Answer, " + type }), fields(content.schema));
    }
    inside.append(trial(method.toUpperCase(), shown, body && body.example));
    fold.append(inside);
  });
  return fold;
}

async function show() {
  const main = document.getElementById("paths");
  documented = await (await fetch("/openapi.json")).json();
  document.getElementById("about").textContent =
    documented.info.title + " " + documented.info.version + ". " + documented.info.description;
  main.replaceChildren();
  for (const tag of documented.tags) {
    main.append(make("h2", { textContent: tag.name }));
    for (const [path, methods] of Object.entries(documented.paths)) {
      for (const [method, described] of Object.entries(methods)) {
        if (described.tags.includes(tag.name)) main.append(operation(path, method, described));
      }
    }
  }
}

show().catch((error) => { document.getElementById("paths").textContent = String(error); });
