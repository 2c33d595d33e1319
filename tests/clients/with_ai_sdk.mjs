// The AI SDK: with_ai_sdk.mjs http://...
import assert from "node:assert/strict";
import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import { generateText, Output, stepCountIs, streamText, tool } from "ai";
import { z } from "zod";

const provider = createOpenAICompatible({
  name: "grainserve",
  baseURL: `${process.argv[2]}/v1`,
  apiKey: "any",
  includeUsage: true,
  supportsStructuredOutputs: true,
});
const model = provider("scripted");
const quiet = { maxRetries: 0 };

const whole = await generateText({ ...quiet, model, prompt: "hello" });
assert.equal(whole.text, "hello");
assert.equal(whole.finishReason, "stop");
assert.equal(whole.usage.outputTokens, 6);

const stream = streamText({ ...quiet, model, prompt: "hello" });
let text = "";
for await (const piece of stream.textStream) text += piece;
assert.equal(text, "hello");
assert.equal((await stream.usage).outputTokens, 6);

const steered = await generateText({
  ...quiet,
  model,
  prompt: "hello",
  providerOptions: { grainserve: { steering: { profile: "cheerful", strength: 0.5 } } },
});
assert.equal(steered.text, "cheerful*0.5: hello");
const menu = await generateText({ ...quiet, model: provider("scripted:cheerful"), prompt: "hello" });
assert.equal(menu.text, "cheerful*1: hello");

const tools = {
  add: tool({ description: "adds", inputSchema: z.object({ a: z.int() }), execute: ({ a }) => a + 1 }),
};
for (const run of [generateText, streamText]) {
  const called = await run({ ...quiet, model, prompt: "add 3", tools, stopWhen: stepCountIs(3) });
  assert.match(await called.text, /4/);
  assert.equal((await called.steps).length, 2);
}
const forced = await generateText({ ...quiet, model, prompt: "add 3", tools, toolChoice: "required" });
assert.deepEqual(forced.toolCalls[0].input, { a: 3 });

const person = z.object({ name: z.string() });
const shaped = await generateText({ ...quiet, model, prompt: "hello", output: Output.object({ schema: person }) });
assert.deepEqual(shaped.output, { name: "hello" });

const completed = await generateText({
  ...quiet,
  model: provider.completionModel("scripted"),
  prompt: "hello",
  maxOutputTokens: 3,
});
assert.equal(completed.finishReason, "length");

await assert.rejects(generateText({ ...quiet, model, prompt: "hello", temperature: 9 }), /temperature/);
console.log("done");
