// Makes the calls of all scenarios with OpenAI's library for Node, and prints what came of each.
//
// Standard input: one JSON line per run, {"name", "base", "engine", "calls"}; standard output: one per run,
// {"name", "outcomes"}, as tests/conformance/scenario.py describes them.
import { createRequire } from 'node:module';
import { createInterface } from 'node:readline';
import { pathToFileURL } from 'node:url';

const AT_ONCE = 8;
const library = createRequire(`${process.argv[2]}/`).resolve('openai');
const { default: OpenAI, toFile } = await import(pathToFileURL(library));

const camel = (name) => name.replace(/_([a-z])/g, (_, letter) => letter.toUpperCase());
const FINAL = { 'chat.completions.stream': 'finalChatCompletion', 'responses.stream': 'finalResponse' };
// Methods that take a body, even an empty one, before their options.
const BODIED = /(create|generate|edit|stream|count)$/;

async function argument(value) {
  if (value && typeof value === 'object' && '$file' in value) {
    const [name, text] = value.$file;
    return toFile(Buffer.from(text), name);
  }
  return value;
}

function failure(error) {
  return {
    kind: error.constructor.name,
    status: error.status ?? null,
    code: error.code ?? null,
    type: error.type ?? null,
    param: error.param ?? null,
    message: error.message,
    // In a stream that had begun it is known, too; Python's library does not tell it there.
    request_id: error.status === undefined ? null : (error.requestID ?? null),
  };
}

async function make(run, call) {
  const outcome = { value: null, events: [], failure: null, attempts: 0, headers: {}, request_id: null };
  let go = call.engine_go_on_refusal ? `${run.engine}/go` : '';
  const began = performance.now();
  const client = new OpenAI({
    baseURL: run.base,
    apiKey: call.key,
    maxRetries: call.retries,
    timeout: call.timeout_seconds * 1000,
    logLevel: 'off',
    fetch: async (url, init) => {
      outcome.attempts += 1;
      const response = await fetch(url, init);
      outcome.headers = Object.fromEntries(response.headers);
      if (go && !response.ok) {
        await fetch(go);
        go = '';
      }
      return response;
    },
  });
  try {
    const names = call.method.split('.').map(camel);
    const method = names.pop();
    const resource = names.reduce((object, name) => object[name], client);
    const fields = {};
    for (const [name, value] of Object.entries(call.fields)) fields[name] = await argument(value);
    const options = { headers: call.headers };
    let given = [...call.given];
    if (call.method === 'get' || call.method === 'post') given.push({ ...fields, ...options });
    else if (BODIED.test(call.method) || Object.keys(fields).length) given.push(fields, options);
    else if (call.method.endsWith('input_items.list')) given.push({}, options);
    else given.push(options);
    const promise = resource[method](...given);
    if (call.method in FINAL) {
      outcome.value = await promise[FINAL[call.method]]();
    } else if (call.method.endsWith('.list')) {
      outcome.value = [];
      for await (const item of promise) outcome.value.push(item);
    } else {
      const result = await promise;
      if (fields.stream === true) {
        for await (const event of result) {
          outcome.events.push(event);
          if (outcome.events.length === call.leave_after) break;
        }
      } else if (result instanceof Response) {
        outcome.value = Buffer.from(await result.arrayBuffer()).toString('base64');
      } else {
        outcome.value = result ?? null;
        outcome.request_id = result?._request_id ?? null;
      }
    }
  } catch (error) {
    outcome.failure = failure(error);
  }
  return { ...outcome, seconds: (performance.now() - began) / 1000 };
}

const runs = [];
for await (const line of createInterface({ input: process.stdin })) runs.push(JSON.parse(line));
async function worker() {
  for (let run = runs.shift(); run; run = runs.shift()) {
    const outcomes = [];
    for (const call of run.calls) outcomes.push(await make(run, call));
    process.stdout.write(`${JSON.stringify({ name: run.name, outcomes })}\n`);
  }
}
await Promise.all(Array.from({ length: AT_ONCE }, worker));
process.exit(0);
