// A conversation: what was said, and the answer that is streaming.
import { Turn } from "./turn.js";

const ROUTE = "v1/chat/completions";

// Yields the data of each server-sent event of a response.
export async function* events(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    const parts = (rest + value).split("\n\n");
    rest = parts.pop();
    for (const part of parts) {
      if (part.startsWith("data: ")) yield part.slice(6);
    }
  }
}

// Joins the parts of streamed calls, by their index.
export function addCalls(calls, parts) {
  for (const part of parts ?? []) {
    const call = (calls[part.index] ??= { id: "", name: "", arguments: "" });
    call.id = part.id ?? call.id;
    call.name += part.function?.name ?? "";
    call.arguments += part.function?.arguments ?? "";
  }
}

export class Chat {
  constructor({ log, headers, extras, system, onError, onBusy, onInspect }) {
    Object.assign(this, { log, headers, extras, system, onError, onBusy, onInspect });
    this.said = [];
    this.turns = [];
    this.aborting = null;
  }

  get isBusy() {
    return this.aborting !== null;
  }

  // Says something, with images as data URLs, and streams the answer.
  async say(text, images = []) {
    const parts = images.map((url) => ({ type: "image_url", image_url: { url } }));
    const content = parts.length ? [...parts, { type: "text", text }] : text;
    this.add("user").showText(text, images);
    this.said.push({ role: "user", content });
    await this.answer();
  }

  // Answers a call of a function, and goes on once all calls of its turn are answered.
  async returnResult(id, result) {
    this.said.push({ role: "tool", tool_call_id: id, content: result });
    this.add("tool").showText(result);
    const asked = this.said.findLast((message) => message.tool_calls)?.tool_calls ?? [];
    const answered = new Set(this.said.map((message) => message.tool_call_id));
    if (asked.every((call) => answered.has(call.id))) await this.answer();
  }

  // Drops the last answer and asks for another.
  async again() {
    if (this.isBusy || !this.said.length) return;
    if (this.said.at(-1).role === "assistant") {
      this.said.pop();
      this.turns.pop().remove();
    }
    await this.answer();
  }

  stop() {
    this.aborting?.abort();
  }

  clear() {
    this.stop();
    this.said = [];
    this.turns.splice(0).forEach((turn) => turn.remove());
  }

  add(role) {
    const turn = new Turn(role);
    this.log.append(turn.element);
    this.turns.push(turn);
    turn.element.scrollIntoView({ block: "end" });
    return turn;
  }

  async answer() {
    const turn = this.add("assistant");
    const said = this.said;
    const aborting = (this.aborting = new AbortController());
    const begun = performance.now();
    const got = { text: "", thoughts: "", calls: [], usage: null, id: "" };
    turn.setBusy(true);
    this.onError("");
    this.onBusy(true);
    try {
      for await (const part of this.parts(aborting.signal, got)) {
        if (part.usage) got.usage = part.usage;
        const delta = part.choices?.[0]?.delta ?? {};
        got.text += delta.content ?? "";
        got.thoughts += delta.reasoning_content ?? "";
        addCalls(got.calls, delta.tool_calls);
        const isAtEnd = this.log.scrollHeight - this.log.scrollTop - this.log.clientHeight < 80;
        turn.showAnswer(got);
        if (isAtEnd) this.log.scrollTop = this.log.scrollHeight;
      }
    } catch (error) {
      if (error.name !== "AbortError") this.onError(error.message);
    }
    turn.setBusy(false);
    turn.showUsage(got.usage, (performance.now() - begun) / 1000);
    if (said === this.said) this.keep(turn, got);
    if (this.aborting === aborting) {
      this.aborting = null;
      this.onBusy(false);
    }
  }

  // Keeps an answer that has something in it, and drops one that has not.
  keep(turn, got) {
    if (!got.text && !got.calls.length) {
      if (!got.thoughts) this.turns.splice(this.turns.indexOf(turn), 1)[0]?.remove();
      return;
    }
    const message = { role: "assistant", content: got.text };
    if (got.calls.length) {
      message.tool_calls = got.calls.map(({ id, name, arguments: given }) => ({
        id,
        type: "function",
        function: { name, arguments: given },
      }));
      turn.askResults(got.calls, (id, result) => this.returnResult(id, result));
    }
    this.said.push(message);
    turn.addInspect(() => this.onInspect(got.id));
  }

  // Yields the chunks of an answer; throws what the server refuses.
  async *parts(signal, got) {
    const system = this.system();
    const messages = system ? [{ role: "system", content: system }, ...this.said] : this.said;
    const stream = { stream: true, stream_options: { include_usage: true } };
    const response = await fetch(ROUTE, {
      method: "POST",
      signal,
      headers: { "content-type": "application/json", ...this.headers() },
      body: JSON.stringify({ messages, ...stream, ...this.extras() }),
    });
    got.id = response.headers.get("x-request-id") ?? "";
    if (!response.ok) {
      const refusal = await response.json().catch(() => null);
      throw new Error(refusal?.error?.message ?? `The server answers with status ${response.status}.`);
    }
    for await (const data of events(response)) {
      if (data === "[DONE]") return;
      const part = JSON.parse(data);
      if (part.error) throw new Error(part.error.message);
      yield part;
    }
  }
}
