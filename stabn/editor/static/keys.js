// Keys: one table from which keys act and from which the page that shows them is made.

import { ask, h } from "./dom.js";

const SWITCH = "stabn/keys";
const NAMES = {
  " ": "Space", ArrowLeft: "←", ArrowRight: "→", ArrowUp: "↑", ArrowDown: "↓", PageUp: "Page ↑", PageDown: "Page ↓",
  Escape: "Esc", Backspace: "⌫",
};

let bindings = [];
let held = null; // the key that is down, if letting it go means something

/** Whether keys without Ctrl or Alt act; people who speak to their computer switch them off. */
export const single = () => localStorage.getItem(SWITCH) !== "off";

/** Replace all keys: [{keys: ["Shift+ArrowLeft"], label, group, run, once, release}]; a key held down acts `once`, if so said. */
export function bind(list) { bindings = list; }

/** Return a key as it is shown. */
export const keyName = (key) => (key === "+" ? [key] : key.split("+")).map((part) => NAMES[part] ?? (part.length === 1 ? part.toUpperCase() : part)).join(" ");

export const keyCap = (key) => h("kbd", { "aria-hidden": "true" }, keyName(key));

const CODES = { Comma: ",", Period: ".", Slash: "/" };

/** Return what a key is by its position, as on a US keyboard: for letters that are not Latin, and digits behind Shift. */
function placed({ code = "", shiftKey }) {
  const [, sign] = code.match(/^(?:Key|Digit)([A-Z0-9])$/) ?? [];
  if (code === "Slash" && shiftKey) return "?";
  return (sign ?? CODES[code] ?? "").toLowerCase();
}

/** Return the names of a pressed key: by what is written on it, then by its position unless it is a Latin letter. */
export function pressed(event) {
  const parts = [];
  if (event.ctrlKey || event.metaKey) parts.push("Ctrl");
  if (event.altKey) parts.push("Alt");
  const key = event.key.length === 1 ? event.key.toLowerCase() : event.key;
  const shifted = event.shiftKey ? [...parts, "Shift"] : parts;
  const named = event.key.length > 1 || /[a-z]/i.test(event.key) || key === " " ? shifted : parts;
  const place = /^[a-z]$/i.test(event.key) ? "" : placed(event);
  return [[...named, key], ...(place ? [[...(place === "?" ? parts : shifted), place]] : [])].map((all) => all.join("+"));
}

document.addEventListener("keydown", (event) => {
  if (event.defaultPrevented || event.isComposing || document.querySelector("dialog[open]")) return;
  const { target } = event;
  if (target.closest("input, textarea, select") && event.key !== "Escape") return;
  if (target.closest("button, a, summary") && (event.key === "Enter" || event.key === " ")) return;
  const names = pressed(event);
  const key = names.find((name) => bindings.some((binding) => binding.keys.includes(name)));
  const found = bindings.find((binding) => binding.keys.includes(key));
  if (!found || (!single() && !/^(Ctrl|Alt)\+|Arrow|Page|Home|End|Escape|\?/.test(key))) return;
  event.preventDefault();
  if (event.repeat && (found.once || held?.code === event.code)) return;
  found.run(event);
  if (found.release) held = { code: event.code, release: found.release };
});

function letGo() {
  held?.release();
  held = null;
}

document.addEventListener("keyup", (event) => { if (event.code === held?.code) letGo(); });
window.addEventListener("blur", letGo);

/** Show all keys. */
export function showKeys() {
  const groups = new Map();
  for (const binding of bindings) groups.set(binding.group, [...(groups.get(binding.group) ?? []), binding]);
  return ask("Keys", (close) => [
    h("div", { class: "key-groups" }, [...groups].map(([name, list]) => h("section", {}, h("h3", {}, name),
      h("dl", { class: "key-list" }, list.map((binding) => [
        h("dt", {}, binding.keys.slice(0, 2).map((key, i) => [i ? " or " : "", h("kbd", {}, keyName(key))])),
        h("dd", {}, binding.label)]))))),
    h("p", {}, "Where the keyboard has other letters than Latin ones, a letter's place on a US keyboard counts."),
    h("div", { class: "dialog-foot" },
      h("label", { class: "check" }, h("input", {
        type: "checkbox", checked: single(),
        onchange: (event) => localStorage.setItem(SWITCH, event.target.checked ? "on" : "off"),
      }), "Single keys act"),
      h("button", { type: "button", class: "primary", autofocus: true, onclick: () => close() }, "Close")),
  ], { wide: true });
}
