// The live panel: what /server_info says, every two seconds while the page is seen.

import { make } from "./turn.js";

const EVERY_MS = 2000;

export class Panel {
  constructor({ element, headers }) {
    Object.assign(this, { element, headers });
    this.before = null;
  }

  start() {
    this.look();
    setInterval(() => {
      if (!document.hidden) this.look();
    }, EVERY_MS);
    document.addEventListener("visibilitychange", () => {
      this.before = null;
      if (!document.hidden) this.look();
    });
  }

  async look() {
    try {
      const answer = await fetch("server_info", { headers: this.headers() });
      if (answer.status === 401) this.set("state", "needs an API key");
      else if (!answer.ok) this.set("state", `status ${answer.status}`);
      else this.show(await answer.json());
    } catch {
      this.set("state", "unreachable");
    }
  }

  show(info) {
    const [state = {}] = info.internal_states ?? [];
    const totals = state.totals ?? {};
    this.element("model").textContent = info.served_model_name ?? info.model_path ?? "";
    this.set("state", info.engine?.phase ?? "unknown");
    this.set("running", state.running ?? 0);
    this.set("waiting", state.waiting ?? 0);
    this.set("rate", this.rate(totals.generation_tokens ?? 0));
    const prompt = totals.prompt_tokens ?? 0;
    const cached = totals.cached_tokens ?? 0;
    this.set("hits", prompt ? `${Math.round((100 * cached) / prompt)}%` : "–");
    const total = state.total_pages ?? 0;
    const used = total - (state.free_pages ?? 0) - (state.cached_pages ?? 0);
    this.set("pages", total ? `${used} of ${total}` : "–");
    this.element("p-meter").value = total ? used / total : 0;
    this.showGroups(state.groups ?? []);
  }

  // The pages of each group of layers, where there are several.
  showGroups(groups) {
    const list = this.element("groups");
    list.hidden = groups.length < 2;
    list.replaceChildren(
      ...groups.flatMap(({ kind, held, cached, total }) => [
        make("dt", "", `${kind} pages`),
        make("dd", "", `${held} used, ${cached} cached, of ${total}`),
      ]),
    );
  }

  rate(tokens) {
    const now = performance.now();
    const before = this.before;
    this.before = { tokens, now };
    if (!before || tokens < before.tokens) return "–";
    return ((1000 * (tokens - before.tokens)) / (now - before.now)).toFixed(1);
  }

  set(name, text) {
    this.element(`p-${name}`).textContent = String(text);
  }
}
