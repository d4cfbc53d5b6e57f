// A conversation: what was said, and the answer that is streaming.

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

// Texts and fenced code in turn: text is never read as markup.
export function show(target, text) {
  target.replaceChildren(
    ...text.split(/^```[^\n]*\n?/m).map((part, index) => {
      const piece = document.createElement(index % 2 ? "pre" : "p");
      piece.textContent = index % 2 ? part.replace(/\n$/, "") : part.trim();
      return piece;
    }),
  );
}

export class Chat {
  constructor({ log, headers, sampling, system, onError, onBusy }) {
    Object.assign(this, { log, headers, sampling, system, onError, onBusy });
    this.said = [];
    this.turns = [];
    this.aborting = null;
  }

  get isBusy() {
    return this.aborting !== null;
  }

  // Says something and streams the answer.
  async say(text) {
    this.add("user", text);
    this.said.push({ role: "user", content: text });
    await this.answer();
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

  add(role, text) {
    const turn = document.createElement("article");
    turn.className = `turn ${role}`;
    const who = document.createElement("div");
    who.className = "who";
    who.textContent = role === "user" ? "You" : "Model";
    const body = document.createElement("div");
    show(body, text);
    turn.append(who, body);
    this.log.append(turn);
    this.turns.push(turn);
    turn.scrollIntoView({ block: "end" });
    return { turn, who, body };
  }

  async answer() {
    const { turn, who, body } = this.add("assistant", "");
    const said = this.said;
    const aborting = (this.aborting = new AbortController());
    const begun = performance.now();
    let text = "";
    let usage = null;
    turn.classList.add("busy");
    this.onError("");
    this.onBusy(true);
    try {
      for await (const part of this.parts(aborting.signal)) {
        if (part.usage) usage = part.usage;
        const piece = part.choices?.[0]?.delta?.content ?? "";
        if (!piece) continue;
        text += piece;
        const isAtEnd = this.log.scrollHeight - this.log.scrollTop - this.log.clientHeight < 80;
        show(body, text);
        if (isAtEnd) this.log.scrollTop = this.log.scrollHeight;
      }
    } catch (error) {
      if (error.name !== "AbortError") this.onError(error.message);
    }
    const seconds = (performance.now() - begun) / 1000;
    if (usage) {
      const rate = usage.completion_tokens / seconds;
      const cached = usage.prompt_tokens_details?.cached_tokens ?? 0;
      who.textContent += ` · ${usage.completion_tokens} tokens in ${seconds.toFixed(1)} s`
        + ` (${rate.toFixed(0)}/s) · ${cached} of ${usage.prompt_tokens} prompt tokens cached`;
    }
    turn.classList.remove("busy");
    if (said === this.said) {
      if (text) said.push({ role: "assistant", content: text });
      else this.turns.splice(this.turns.indexOf(turn), 1)[0]?.remove();
    }
    if (this.aborting === aborting) {
      this.aborting = null;
      this.onBusy(false);
    }
  }

  // Yields the chunks of an answer; throws what the server refuses.
  async *parts(signal) {
    const system = this.system();
    const messages = system ? [{ role: "system", content: system }, ...this.said] : this.said;
    const stream = { stream: true, stream_options: { include_usage: true } };
    const response = await fetch(ROUTE, {
      method: "POST",
      signal,
      headers: { "content-type": "application/json", ...this.headers() },
      body: JSON.stringify({ messages, ...stream, ...this.sampling() }),
    });
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
