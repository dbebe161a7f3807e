// Let an exported folder go on with a text, in Node.js.
//
//     npm install onnxruntime-node @huggingface/transformers
//     node onnx_chat.mjs out-onnx "Душанбе пойтахти" 40
//
// transformers.js gives the tokenizer here; its AutoModelForCausalLM opens the folder too.
// In a browser: onnxruntime-web, and externalData: [{ path, data }] for model.onnx_data.

import { readFileSync } from "node:fs";
import { basename, dirname, join, resolve } from "node:path";
import * as ort from "onnxruntime-node";
import { AutoTokenizer, env } from "@huggingface/transformers";

const [folder, prompt, count] = [resolve(process.argv[2]), process.argv[3], Number(process.argv[4])];
env.allowRemoteModels = false;
env.localModelPath = dirname(folder) + "/";
const tokenizer = await AutoTokenizer.from_pretrained(basename(folder));
const settings = JSON.parse(readFileSync(join(folder, "generation_config.json"), "utf8"));
const stop = [settings.eos_token_id].flat();

const session = await ort.InferenceSession.create(join(folder, "onnx", "model_last.onnx"));
const int64 = (values) => new ort.Tensor("int64", BigInt64Array.from(values, BigInt), [1, values.length]);

// Keys and values begin empty; what a step gives as present.* is the next one's past_key_values.*
const feeds = {};
for (const input of session.inputMetadata) {
  if (input.name.startsWith("past_key_values")) {
    const [, heads, , size] = input.shape;
    const empty = input.type === "float16" ? new Uint16Array(0) : new Float32Array(0);
    feeds[input.name] = new ort.Tensor(input.type, empty, [1, heads, 0, size]);
  }
}

let step = tokenizer.encode(prompt);
let length = 0;
const said = [];
process.stdout.write(prompt);
let shown = "";
for (let i = 0; i < count; i++) {
  length += step.length;
  feeds.input_ids = int64(step);
  feeds.attention_mask = int64(new Array(length).fill(1));
  const results = await session.run(feeds);
  const logits = results.logits.data; // of the last token: [1, 1, vocabulary]
  let token = 0;
  for (let v = 1; v < logits.length; v++) if (logits[v] > logits[token]) token = v;
  if (stop.includes(token)) break;
  said.push(token);
  const text = tokenizer.decode(said, { skip_special_tokens: true });
  if (!text.endsWith("\ufffd")) {
    process.stdout.write(text.slice(shown.length));
    shown = text;
  }
  for (const [name, value] of Object.entries(results)) {
    if (name.startsWith("present")) feeds[name.replace("present", "past_key_values")] = value;
  }
  step = [token];
}
process.stdout.write("\n");
