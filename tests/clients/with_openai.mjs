// openai-node: with_openai.mjs http://...
import assert from "node:assert/strict";
import OpenAI from "openai";
import { zodResponseFormat } from "openai/helpers/zod";
import { z } from "zod";

const client = new OpenAI({ baseURL: `${process.argv[2]}/v1`, apiKey: "any", maxRetries: 0 });
const hello = { model: "scripted", messages: [{ role: "user", content: "hello" }] };
const add = {
  type: "function",
  function: {
    name: "add",
    parameters: { type: "object", properties: { a: { type: "integer" } }, required: ["a"] },
  },
};

const whole = await client.chat.completions.create({ ...hello, n: 2, logprobs: true, top_logprobs: 2 });
assert.deepEqual(whole.choices.map((choice) => choice.message.content), ["hello", "hello"]);
assert.equal(whole.choices[0].logprobs.content[0].token, "h");

const stream = await client.chat.completions.create({
  ...hello,
  stream: true,
  stream_options: { include_usage: true },
  steering: { profile: "cheerful", strength: 0.5 },
});
let text = "";
let last, proof;
for await (const chunk of stream) {
  text += chunk.choices[0]?.delta.content ?? "";
  proof = chunk.steering ?? proof;
  last = chunk;
}
assert.equal(text, "cheerful*0.5: hello");
assert.equal(proof[0].profile, "cheerful");
assert.ok(last.usage.completion_tokens > 5);

const helper = client.chat.completions.stream(hello);
assert.equal(await helper.finalContent(), "hello");

const runner = client.chat.completions.runTools({
  ...hello,
  messages: [{ role: "user", content: "add 3" }],
  tools: [{ ...add, function: { ...add.function, function: ({ a }) => a + 1, parse: JSON.parse } }],
});
assert.match(await runner.finalContent(), /4/);

const parsed = await client.chat.completions.parse({
  ...hello,
  response_format: zodResponseFormat(z.object({ name: z.string() }), "person"),
});
assert.deepEqual(parsed.choices[0].message.parsed, { name: "hello" });

const completed = await client.completions.create({ model: "scripted", prompt: "user\nhello", max_tokens: 3 });
assert.equal(completed.choices[0].text, "hel");

const responded = await client.responses.create({ model: "scripted", input: "hello" });
assert.equal(responded.output_text, "hello");
const events = client.responses.stream({ model: "scripted", input: "hello" });
assert.equal((await events.finalResponse()).output_text, "hello");

const models = [];
for await (const model of client.models.list()) models.push(model.id);
assert.deepEqual(models, ["scripted", "scripted:cheerful", "scripted:concise"]);
assert.equal((await client.models.retrieve("scripted:cheerful")).id, "scripted:cheerful");

await assert.rejects(
  client.chat.completions.create({ ...hello, temperature: 9 }),
  (error) => error instanceof OpenAI.BadRequestError && error.param === "temperature",
);
await assert.rejects(client.models.retrieve("gpt-4"), OpenAI.NotFoundError);
console.log("done");
