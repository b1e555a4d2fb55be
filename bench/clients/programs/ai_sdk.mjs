// The AI SDK; TASK.api chooses its provider: responses, chat (openai-compatible) or messages.
import { createAnthropic } from "@ai-sdk/anthropic";
import { createOpenAI } from "@ai-sdk/openai";
import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import { generateText, stepCountIs, streamText, tool } from "ai";
import { z } from "zod";

const task = JSON.parse(process.env.TASK);
const settings = { baseURL: `${task.url}/v1`, apiKey: "caller", name: "gateway" };
const model = {
  responses: () => createOpenAI(settings)("auto"),
  chat: () => createOpenAICompatible(settings)("auto"),
  messages: () => createAnthropic(settings)("auto"),
}[task.api]();
const get_weather = tool({
  description: "Weather.",
  inputSchema: z.object({ city: z.string() }),
  execute: async () => task.found,
});
const thinking = {
  anthropic: { thinking: { type: "enabled", budgetTokens: 2000 } },
  openai: { reasoningSummary: "auto", forceReasoning: true },
};
const messages = [];
for (const prompt of task.prompts) {
  const image = task.image ? [{ type: "image", image: new URL(task.image) }] : [];
  messages.push({ role: "user", content: [{ type: "text", text: prompt }, ...image] });
  const asked = {
    model,
    messages,
    tools: task.tools ? { get_weather } : undefined,
    stopWhen: stepCountIs(5),
    providerOptions: task.thinking ? thinking : undefined,
  };
  let failure;
  const result = task.stream
    ? streamText({ ...asked, onError: ({ error }) => (failure = error) })
    : await generateText(asked);
  if (task.stream) await result.consumeStream();
  if (failure) throw failure;
  console.log(await result.reasoningText, await result.text);
  messages.push(...(await result.response).messages);
}
