// The page: wires conversation, settings, panel and inspector to the elements of index.html.
import { Attachments } from "./attachments.js";
import { Chat } from "./chat.js";
import { Inspector } from "./inspector.js";
import { Panel } from "./panel.js";

const element = (id) => document.getElementById(id);
const FIELDS = ["temperature", "top_p", "top_k", "min_p", "repetition_penalty", "max_tokens", "seed"];
const KEPT = [...FIELDS, "stop-text", "system", "schema", "tools"];

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

// Returns a field's JSON; undefined where it is empty.
function parsed(id, what) {
  const text = element(id).value.trim();
  if (!text) return undefined;
  try {
    return JSON.parse(text);
  } catch (error) {
    throw new Error(`${what} is not JSON: ${error.message}`);
  }
}

// What the answer must look like, and the functions that it may call.
function form() {
  const found = {};
  const schema = parsed("schema", "The schema");
  if (schema !== undefined) {
    found.response_format = { type: "json_schema", json_schema: { name: "answer", schema } };
  }
  const tools = parsed("tools", "The list of functions");
  if (tools !== undefined) {
    found.tools = [tools].flat().map((tool) => (tool.type ? tool : { type: "function", function: tool }));
  }
  return found;
}

function showError(text) {
  element("error").textContent = text;
  element("error").hidden = !text;
}

const chat = new Chat({
  log: element("log"),
  headers,
  extras: () => ({ ...sampling(), ...form() }),
  system: () => element("system").value.trim(),
  onError: showError,
  onBusy: (isBusy) => {
    element("send").hidden = isBusy;
    element("stop").hidden = !isBusy;
    element("again").disabled = isBusy;
  },
  onInspect: (id) => inspector.show(id),
});
const inspector = new Inspector({
  dialog: element("inspector"),
  title: element("inspector-title"),
  content: element("inspector-content"),
  headers,
});
const attachments = new Attachments({
  list: element("attachments"),
  input: element("images"),
  drop: element("ask"),
  onError: showError,
});

function send() {
  const text = element("input").value.trim();
  if ((!text && !attachments.urls.length) || chat.isBusy) return;
  try {
    form();
  } catch (error) {
    showError(error.message);
    return;
  }
  element("input").value = "";
  fit();
  element("hint").hidden = true;
  chat.say(text, attachments.take());
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
element("attach").addEventListener("click", () => element("images").click());
element("requests").addEventListener("click", () => inspector.list());
element("inspector-close").addEventListener("click", () => element("inspector").close());
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
  if (event.key === "?" && !isTyping && !element("inspector").open) inspector.list();
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
