// The inspector: what became of a request, as /requests tells it.

import { make } from "./turn.js";

const WAITS = {
  slots: "for a free slot",
  pages: "for pages of the cache",
  step: "for the next step",
  prefix: "for a prefix that another request was computing",
  grammar: "for its grammar",
  pause: "for the end of a pause",
  adapter: "for its adapter's place",
  encoder: "for the encoder of images",
};
const WIDTH = 600;
const HEIGHT = 64;

function seconds(value) {
  if (value === null || value === undefined) return "–";
  if (value > 0 && value < 0.0005) return "under 1 ms";
  return value < 1 ? `${(1000 * value).toFixed(0)} ms` : `${value.toFixed(2)} s`;
}

function svg(tag, attributes, title = "") {
  const made = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  if (title) {
    const text = document.createElementNS("http://www.w3.org/2000/svg", "title");
    text.textContent = title;
    made.append(text);
  }
  return made;
}

// A line of time: waiting, chunks of the prompt, tokens.
export function timeline(one) {
  const end = one.total_s ?? one.tokens.at(-1)?.[0] ?? one.sent_s;
  const x = (at) => Math.min(WIDTH, (WIDTH * at) / (end || 1));
  const drawn = svg("svg", {
    viewBox: `0 0 ${WIDTH} ${HEIGHT}`,
    class: "timeline",
    role: "img",
    "aria-label": "Its steps in time",
  });
  const admitted = one.sent_s + (one.queue_s ?? 0);
  const bar = (kind, from, to, top, title) =>
    drawn.append(
      svg("rect", {
        class: kind,
        x: x(from),
        y: top,
        width: Math.max(1, x(to) - x(from)),
        height: 16,
      }, title),
    );
  bar("prepared", 0, one.sent_s, 4, `Tokenised in ${seconds(one.sent_s)}`);
  bar("waited", one.sent_s, admitted, 4, `Waited ${seconds(one.queue_s)}`);
  (one.chunks ?? []).forEach((chunk, index, chunks) => {
    const until = chunks[index + 1]?.at_s ?? one.first_token_s ?? end;
    const from = chunk.begin === null ? "" : ` ${chunk.begin} to`;
    const title = `Step ${chunk.step}: prompt tokens${from} ${chunk.end}, at ${seconds(chunk.at_s)}`;
    bar("chunk", chunk.at_s, Math.max(chunk.at_s, until), 24, title);
  });
  for (const [at, count] of one.tokens) {
    const title = `${count} token${count > 1 ? "s" : ""} at ${seconds(at)}`;
    drawn.append(svg("line", { class: "token", x1: x(at), x2: x(at), y1: 46, y2: 60 }, title));
  }
  return drawn;
}

function facts(rows) {
  const list = make("dl");
  for (const [name, value] of rows) {
    if (value !== undefined && value !== null) list.append(make("dt", "", name), make("dd", "", String(value)));
  }
  return list;
}

// What is known of one completion, in words.
export function describe(one) {
  const waits = Object.entries(one.waits ?? {}).filter(([, value]) => value >= 0.0005);
  waits.sort((a, b) => b[1] - a[1]);
  const why = waits.map(([name, value]) => `${seconds(value)} ${WAITS[name] ?? `for ${name}`}`);
  const rate = one.total_s && one.first_token_s !== null
    ? (one.output_tokens - 1) / (one.total_s - one.first_token_s)
    : 0;
  return facts([
    ["State", one.error ? `${one.state}: ${one.error}` : one.state],
    ["Waited", one.queue_s === undefined ? null : seconds(one.queue_s)],
    ["Why", why.length ? why.join(", ") : null],
    ["Prompt", `${one.prompt_tokens} tokens, ${one.cached_tokens} of them from the cache`],
    ["Shared", one.shared_tokens === undefined ? null : `${one.shared_tokens} tokens with requests that ran then`],
    ["Evicted", one.evicted_pages === undefined ? null : `${one.evicted_pages} pages, to make room for it`],
    ["Lost its pages", one.retractions ? `${one.retractions} times` : null],
    ["First token", seconds(one.first_token_s)],
    ["Whole", seconds(one.total_s)],
    ["Output", `${one.output_tokens} tokens${rate > 0 && Number.isFinite(rate) ? `, ${rate.toFixed(1)} a second` : ""}`],
    ["Drafts", one.drafted_tokens ? `${one.accepted_tokens} of ${one.drafted_tokens} were right` : null],
    ["Engines", one.attempts > 1 ? `${one.attempts}: the one before died` : null],
    ["Last step", one.last_step],
    ["Ended by", one.finish_reason],
  ]);
}

export class Inspector {
  constructor({ dialog, title, content, headers }) {
    Object.assign(this, { dialog, title, content, headers });
  }

  async ask(path) {
    const answer = await fetch(path, { headers: this.headers() });
    const found = await answer.json().catch(() => null);
    if (!answer.ok) throw new Error(found?.error?.message ?? `The server answers with status ${answer.status}.`);
    return found;
  }

  // Opens the dialog with what `look` returns.
  async open(title, look) {
    this.title.textContent = title;
    this.content.replaceChildren(make("p", "dim", "…"));
    if (!this.dialog.open) this.dialog.showModal();
    try {
      this.content.replaceChildren(...(await look()));
    } catch (error) {
      this.content.replaceChildren(make("p", "bad", error.message));
    }
  }

  show(id) {
    return this.open("Request", async () => {
      const request = await this.ask(`requests/${encodeURIComponent(id)}`);
      const head = facts([
        ["Name", request.id],
        ["Route", request.route],
        ["Model", request.model],
        ["Came", new Date(1000 * request.received).toLocaleString()],
      ]);
      const parts = request.completions.flatMap((one) => {
        const many = request.completions.length > 1;
        return [...(many ? [make("h3", "", `Completion ${one.index + 1}`)] : []), timeline(one), describe(one)];
      });
      return [head, ...parts];
    });
  }

  list() {
    return this.open("Last requests", async () => {
      const { data } = await this.ask("requests");
      if (!data.length) return [make("p", "dim", "There was none yet.")];
      return data.map((request) => {
        const tokens = request.completions.reduce((sum, one) => sum + (one.output_tokens ?? 0), 0);
        const item = make("button", "request");
        item.type = "button";
        item.append(
          make("span", "", request.route),
          make("span", "dim", `${new Date(1000 * request.received).toLocaleTimeString()} · ${request.state}`
            + ` · ${tokens} tokens · ${seconds(request.total_s)}`),
        );
        item.addEventListener("click", () => this.show(request.id));
        return item;
      });
    });
  }
}
