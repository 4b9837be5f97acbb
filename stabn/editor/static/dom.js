// Elements are made from text, never from markup: labels, notes and names are data.

const SVG = "http://www.w3.org/2000/svg";
const PROPERTIES = new Set(["value", "checked", "disabled", "hidden", "selected", "textContent", "htmlFor", "tabIndex"]);

/** Make an element. Props: on…: listener, vars: CSS variables, a few properties, anything else an attribute. */
export function h(tag, props = {}, ...children) {
  return fill(document.createElement(tag), props, children);
}

/** Make an SVG element; props and children as for h. */
export function s(tag, props = {}, ...children) {
  return fill(document.createElementNS(SVG, tag), props, children);
}

function fill(element, props, children) {
  for (const [name, value] of Object.entries(props)) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (name === "vars") Object.entries(value).forEach(([key, text]) => element.style.setProperty(key, text));
    else if (PROPERTIES.has(name)) element[name] = value;
    else element.setAttribute(name, value === true ? "" : String(value));
  }
  element.append(...present(children));
  return element;
}

/** Return the children that are there, of nested lists; the browser would write `null` for the others. */
const present = (children) => children.flat(3).filter((child) => child !== null && child !== undefined && child !== false);

/** Put children in place of those that an element has. */
export function put(element, ...children) { element.replaceChildren(...present(children)); }

const ICONS = {
  play: "M7 4.5v15l12-7.5z",
  pause: "M7 5h3.5v14H7zM13.5 5H17v14h-3.5z",
  back: "M15 5l-7 7 7 7",
  first: "M6 5v14M18 5l-9 7 9 7z",
  last: "M18 5v14M6 5l9 7-9 7z",
  undo: "M8 6l-4 4 4 4M4 10h10a5 5 0 0 1 0 10h-3",
  redo: "M16 6l4 4-4 4M20 10H10a5 5 0 0 0 0 10h3",
  keys: "M3 7h18v10H3zM7 10.5h.01M11 10.5h.01M15 10.5h.01M8 14h8",
  theme: "M12 4a8 8 0 1 0 8 8 6 6 0 0 1-8-8z",
  more: "M11 4a7 7 0 1 0 0 14 7 7 0 0 0 0-14M16 16l5 5M8 11h6M11 8v6",
  less: "M11 4a7 7 0 1 0 0 14 7 7 0 0 0 0-14M16 16l5 5M8 11h6",
  past: "M4 12a8 8 0 1 0 2.6-5.9M4 4v5h5M12 8v4.5l3 2",
  fit: "M3 5v14M21 5v14M7 12h10M9 9l-3 3 3 3M15 9l3 3-3 3",
  check: "M5 12.5l4.5 4.5L19 7.5",
};

/** Return a decorative icon; the button that holds it has the name. */
export function icon(name) {
  const filled = name === "play" || name === "pause";
  return s("svg", { viewBox: "0 0 24 24", class: filled ? "icon filled" : "icon", "aria-hidden": "true" },
    s("path", { d: ICONS[name] }));
}

/** Tell screen readers something, and show it for a moment where it helps others too. */
export function say(text, { toast = false } = {}) {
  const place = document.getElementById("say");
  place.textContent = "";
  requestAnimationFrame(() => { place.textContent = text; });
  if (!toast) return;
  const note = h("div", { class: "toast" }, text);
  const all = document.getElementById("toasts");
  all.replaceChildren(note);
  setTimeout(() => note.classList.add("leaving"), 3600);
  setTimeout(() => note.remove(), 4200);
}

/** A button whose key is shown; a mouse click leaves the focus where it was, so that keys go on working. */
export function button(label, props = {}, ...children) {
  return h("button", { type: "button", onpointerdown: (event) => event.preventDefault(), ...props },
    children.length ? children : label);
}

/** Show a modal dialog; resolves with what was passed to close, null for Escape. */
export function ask(title, build, { wide = false } = {}) {
  return new Promise((resolve) => {
    const dialog = h("dialog", { class: wide ? "dialog wide" : "dialog", "aria-labelledby": "dialog-title" });
    let result = null;
    const close = (value = null) => { result = value; dialog.close(); };
    dialog.append(h("h2", { id: "dialog-title" }, title), ...present([build(close)]));
    dialog.addEventListener("close", () => { dialog.remove(); resolve(result); });
    document.body.append(dialog);
    dialog.showModal();
  });
}

/** Return a number with its noun. */
export const counted = (n, one, many) => `${n} ${n === 1 ? one : many}`;

export const percent = (value) => `${Math.round(value * 100)}%`;

/** Return a duration as people say it. */
export function duration(seconds) {
  if (seconds === null || seconds === undefined) return "–";
  const whole = Math.round(seconds);
  if (whole < 90) return `${whole}\u00a0s`;
  return `${Math.floor(whole / 60)}\u00a0min\u00a0${String(whole % 60).padStart(2, "0")}\u00a0s`;
}

/** Return a moment as the reader's clock shows it. */
export function clock(text) {
  if (!text) return "–";
  const time = new Date(text);
  const today = time.toDateString() === new Date().toDateString();
  return time.toLocaleString([], today ? { hour: "2-digit", minute: "2-digit" }
    : { month: "short", day: "numeric", hour: "2-digit", minute: "2-digit" });
}

export const STATE_NAMES = {
  todo: "to do", automatic: "automatic", draft: "begun", sent_back: "sent back", second_opinion: "second opinion wanted",
  edited: "done", skipped: "skipped", accepted: "accepted",
};

/** Return the address of the queue's list with filters: person, action, state. */
export const listLink = (filters) => `#/list/${encodeURIComponent(new URLSearchParams(filters))}`;

export const REASON_NAMES = { wrong_label: "wrong label", action_not_visible: "action not visible", unsure: "unsure" };

export const stateChip = (state) => h("span", { class: `chip ${state}` }, STATE_NAMES[state]);
