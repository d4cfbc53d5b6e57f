// The page: wires the conversation, the settings and the panel to the elements of index.html.
import { Chat } from "./chat.js";
import { Panel } from "./panel.js";

const element = (id) => document.getElementById(id);
const FIELDS = ["temperature", "top_p", "top_k", "min_p", "repetition_penalty", "max_tokens", "seed"];
const KEPT = [...FIELDS, "stop-text", "system"];

function headers() {
  const key = element("key").value.trim();
  return key ? { authorization: `Bearer ${key}` } : {};
}

function sampling() {
  const found = {};
  for (const name of FIELDS) {
    if (element(name).value !== "") found[name] = Number(element(name).value);
  }
  if (element("stop-text").value) found.stop = [element("stop-text").value];
  return found;
}

function showError(text) {
  element("error").textContent = text;
  element("error").hidden = !text;
}

const chat = new Chat({
  log: element("log"),
  headers,
  sampling,
  system: () => element("system").value.trim(),
  onError: showError,
  onBusy: (isBusy) => {
    element("send").hidden = isBusy;
    element("stop").hidden = !isBusy;
    element("again").disabled = isBusy;
  },
});

function send() {
  const text = element("input").value.trim();
  if (!text || chat.isBusy) return;
  element("input").value = "";
  fit();
  element("hint").hidden = true;
  chat.say(text);
}

function fit() {
  const input = element("input");
  input.rows = Math.min(10, Math.max(2, input.value.split("\n").length));
}

function toggleControls(isOpen) {
  element("controls").classList.toggle("open", isOpen);
  element("toggle-controls").setAttribute("aria-expanded", String(isOpen));
}

function theme(name) {
  if (name) document.documentElement.dataset.theme = name;
}

element("ask").addEventListener("submit", (event) => {
  event.preventDefault();
  send();
});
element("input").addEventListener("input", fit);
element("input").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
    event.preventDefault();
    send();
  }
});
element("stop").addEventListener("click", () => chat.stop());
element("again").addEventListener("click", () => chat.again());
element("clear").addEventListener("click", () => {
  chat.clear();
  showError("");
  element("hint").hidden = false;
  element("input").focus();
});
element("toggle-controls").addEventListener("click", () => {
  toggleControls(!element("controls").classList.contains("open"));
});
element("theme").addEventListener("click", () => {
  const isDark = matchMedia("(prefers-color-scheme: dark)").matches;
  const now = document.documentElement.dataset.theme ?? (isDark ? "dark" : "light");
  const next = now === "dark" ? "light" : "dark";
  theme(next);
  localStorage.setItem("theme", next);
});
document.addEventListener("keydown", (event) => {
  if (event.key === "Escape") {
    chat.stop();
    toggleControls(false);
  }
  const isTyping = /^(INPUT|TEXTAREA)$/.test(event.target.tagName);
  if (event.key === "/" && !isTyping) {
    event.preventDefault();
    element("input").focus();
  }
});
for (const id of KEPT) {
  element(id).value = localStorage.getItem(id) ?? "";
  element(id).addEventListener("change", () => localStorage.setItem(id, element(id).value));
}
element("key").value = sessionStorage.getItem("key") ?? "";
element("key").addEventListener("change", () => {
  sessionStorage.setItem("key", element("key").value);
  panel.look();
});
theme(localStorage.getItem("theme"));
const panel = new Panel({ element, headers });
panel.start();
element("input").focus();
