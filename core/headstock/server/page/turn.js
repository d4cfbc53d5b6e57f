// One turn of a conversation, as it is seen. Text is never read as markup.

const NAMES = { user: "You", assistant: "Model", tool: "Function" };

export function make(tag, className = "", text = "") {
  const made = document.createElement(tag);
  if (className) made.className = className;
  if (text) made.textContent = text;
  return made;
}

// Texts and fenced code in turn.
export function show(target, text) {
  target.replaceChildren(
    ...text.split(/^```[^\n]*\n?/m).map((part, index) => {
      const isCode = index % 2 === 1;
      return make(isCode ? "pre" : "p", "", isCode ? part.replace(/\n$/, "") : part.trim());
    }),
  );
}

// JSON with line breaks, where it is JSON already.
function pretty(text) {
  try {
    return JSON.stringify(JSON.parse(text), null, 1);
  } catch {
    return text;
  }
}

export class Turn {
  constructor(role) {
    this.element = make("article", `turn ${role}`);
    this.who = make("div", "who", NAMES[role]);
    this.body = make("div");
    this.element.append(this.who, this.body);
    this.thoughts = null;
    this.calls = null;
  }

  remove() {
    this.element.remove();
  }

  setBusy(isBusy) {
    this.element.classList.toggle("busy", isBusy);
  }

  showText(text, images = []) {
    show(this.body, text);
    for (const url of images) {
      const image = make("img");
      image.src = url;
      image.alt = "An image of this message";
      this.body.prepend(image);
    }
  }

  // Shows what has come of an answer: thoughts, text and calls.
  showAnswer({ text, thoughts, calls }) {
    if (thoughts) this.showThoughts(thoughts);
    if (text || !calls.length) show(this.body, text);
    if (!calls.length) return;
    if (!this.calls) {
      this.calls = make("div", "calls");
      this.element.append(this.calls);
    }
    this.calls.replaceChildren(
      ...calls.map((call) => {
        const shown = make("div", "call");
        shown.append(make("strong", "", call.name), make("pre", "", pretty(call.arguments)));
        return shown;
      }),
    );
  }

  showThoughts(text) {
    if (!this.thoughts) {
      this.thoughts = make("details", "thoughts");
      this.thoughts.append(make("summary", "", "Thoughts"), make("p"));
      this.who.after(this.thoughts);
    }
    this.thoughts.lastChild.textContent = text.trim();
  }

  showUsage(usage, seconds) {
    if (!usage) return;
    const rate = usage.completion_tokens / seconds;
    const cached = usage.prompt_tokens_details?.cached_tokens ?? 0;
    this.who.textContent += ` · ${usage.completion_tokens} tokens in ${seconds.toFixed(1)} s`
      + ` (${rate.toFixed(0)}/s) · ${cached} of ${usage.prompt_tokens} prompt tokens cached`;
  }

  // Asks for what the called functions return.
  askResults(calls, onResult) {
    [...this.calls.children].forEach((shown, index) => {
      const form = make("form", "result");
      const input = make("input");
      input.placeholder = `What ${calls[index].name} returns`;
      input.setAttribute("aria-label", input.placeholder);
      const button = make("button", "", "Return");
      button.type = "submit";
      form.append(input, button);
      form.addEventListener("submit", (event) => {
        event.preventDefault();
        form.remove();
        onResult(calls[index].id, input.value);
      });
      shown.append(form);
    });
  }

  addInspect(onInspect) {
    const button = make("button", "inspect", "Inspect");
    button.type = "button";
    button.addEventListener("click", onInspect);
    this.who.append(button);
  }
}
