// The AI SDK's three providers against a server: text, streams, two-step tool loops, reasoning,
// usage and errors, each in the dialect of its provider.
//
//     DS4_URL=http://127.0.0.1:8000 node clients.mjs

import assert from "node:assert/strict";

import { createAnthropic } from "@ai-sdk/anthropic";
import { createOpenAI } from "@ai-sdk/openai";
import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import { generateText, jsonSchema, Output, stepCountIs, streamText, tool } from "ai";

const url = process.env.DS4_URL;
const model = "deepseek-v4-flash";
const openai = createOpenAI({ baseURL: `${url}/v1`, apiKey: "none" });
const anthropic = createAnthropic({ baseURL: `${url}/v1`, apiKey: "none" });
const compatible = createOpenAICompatible({
  name: "ds4",
  baseURL: `${url}/v1`,
  includeUsage: true,
  supportsStructuredOutputs: true,
});

// The providers know their makers' models by name, and have to be told what others can do.
const thinking = {
  anthropic: {
    thinking: { type: "enabled", budgetTokens: 1024 },
    structuredOutputMode: "outputFormat",
  },
};
const reasons = (store) => ({
  openai: {
    store,
    forceReasoning: true,
    reasoningSummary: "auto",
    include: ["reasoning.encrypted_content"],
  },
});

const dialects = {
  "openai-compatible": { model: compatible(model), options: {} },
  "openai responses, stored": { model: openai.responses(model), options: reasons(true) },
  "openai responses, not stored": { model: openai.responses(model), options: reasons(false) },
  "openai chat": { model: openai.chat(model), options: {}, silent: true },
  anthropic: { model: anthropic(model), options: thinking },
};

const get_weather = tool({
  description: "Get the weather in a city",
  inputSchema: jsonSchema({
    type: "object",
    properties: { city: { type: "string", description: "Name of the city" } },
    required: ["city"],
  }),
  execute: async ({ city }) => {
    assert.equal(city, "Paris");
    return "condition: snowy, temperature: 3";
  },
});

const common = ({ model, options }) => ({
  model,
  providerOptions: options,
  maxOutputTokens: 600,
  maxRetries: 0,
  topP: 0.01,
  onError: () => {},
});

const tests = {
  async text(dialect) {
    const result = await generateText({ ...common(dialect), prompt: "What is 17 + 25?" });
    assert.match(result.text, /42/);
    if (!dialect.silent) assert.ok(result.reasoningText, "no reasoning");
    assert.equal(result.finishReason, "stop");
    assert.ok(result.usage.inputTokens > 0 && result.usage.outputTokens > 0);
  },

  async stream(dialect) {
    const result = streamText({ ...common(dialect), prompt: "What is 17 + 25?" });
    const kinds = new Set();
    let text = "";
    for await (const part of result.fullStream) {
      assert.notEqual(part.type, "error", String(part.error));
      kinds.add(part.type);
      if (part.type === "text-delta") text += part.text;
    }
    assert.match(text, /42/);
    if (!dialect.silent) assert.ok(kinds.has("reasoning-delta"), [...kinds].join());
    assert.equal(await result.finishReason, "stop");
    assert.ok((await result.usage).outputTokens > 0);
  },

  async "two steps with a tool"(dialect) {
    const result = await generateText({
      ...common(dialect),
      prompt: "What is the weather in Paris?",
      tools: { get_weather },
      stopWhen: stepCountIs(2),
    });
    assert.equal(result.steps.length, 2);
    assert.match(result.text, /snowy/);
    const [first, second] = result.steps.map((step) => step.usage);
    const known = first.inputTokens + first.outputTokens;
    assert.ok(second.cachedInputTokens >= known - 3, `${second.cachedInputTokens} of ${known}`);
  },

  async "two steps with a tool, streamed"(dialect) {
    const result = streamText({
      ...common(dialect),
      system: "You are helpful.",
      prompt: "What is the weather in Paris?",
      tools: { get_weather },
      stopWhen: stepCountIs(2),
    });
    const kinds = new Set();
    for await (const part of result.fullStream) {
      assert.notEqual(part.type, "error", String(part.error));
      kinds.add(part.type);
    }
    assert.ok(kinds.has("tool-input-delta"), [...kinds].join());
    assert.match(await result.text, /snowy/);
  },

  async "an object by its schema"(dialect) {
    const schema = jsonSchema({
      type: "object",
      properties: { sum: { type: "integer" } },
      required: ["sum"],
      additionalProperties: false,
    });
    const result = await generateText({
      ...common(dialect),
      prompt: "What is 17 + 25? Answer in JSON.",
      output: Output.object({ schema }),
    });
    assert.ok(Number.isInteger(result.output.sum), JSON.stringify(result.output));
  },

  async errors(dialect) {
    const prompt = "word ".repeat(100_000);
    await assert.rejects(generateText({ ...common(dialect), prompt }), (error) => {
      assert.equal(error.statusCode, 400);
      assert.match(error.message, /context/);
      assert.equal(error.isRetryable, false);
      return true;
    });
    const result = streamText({ ...common(dialect), prompt });
    const errors = [];
    for await (const part of result.fullStream) {
      if (part.type === "error") errors.push(part.error);
    }
    assert.equal(errors.length, 1);
    assert.equal(errors[0].statusCode, 400);
  },
};

let failed = 0;
globalThis.AI_SDK_LOG_WARNINGS = false;
for (const [name, dialect] of Object.entries(dialects)) {
  for (const [what, test] of Object.entries(tests)) {
    try {
      await test(dialect);
      console.log("ok  ", `${name}: ${what}`);
    } catch (error) {
      failed += 1;
      console.log("FAIL", `${name}: ${what}`, error);
    }
  }
}
process.exit(failed ? 1 : 0);
