// The page as a whole: who is signed in, which view is shown, and the bar above all of them.

import { get, post, session, signIn } from "./api.js";
import { ask, button, h, icon, put, say } from "./dom.js";
import { bind, showKeys } from "./keys.js";
import { sendUnsaved } from "./saver.js";

const THEME = "stabn/theme", DELIVER_SECONDS = 30;
const main = document.getElementById("main"), top_ = document.getElementById("top");

const context = {
  user: null,
  round: null,
  action: null,
  go(hash) { if (location.hash === hash) show(); else location.hash = hash; },
  reopen(options) { show(options); },
  setStatus(text, name = "") {
    const place = document.getElementById("status");
    if (!place) return;
    place.textContent = text;
    place.dataset.state = name;
  },
  async refresh() {
    if (context.user.place === "round") context.round = await get("api/round");
    drawBar();
    return context.round;
  },
  toggleTheme,
};

let page = null, turn = 0;

/** Return where the list of rounds is; a round is two folders below it. */
const home = () => (context.user.place === "rounds" ? "#/" : "../../");

function theme(name) {
  if (name) document.documentElement.dataset.theme = name;
  else delete document.documentElement.dataset.theme;
}

function toggleTheme() {
  const dark = document.documentElement.dataset.theme ?? (matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light");
  const next = dark === "dark" ? "light" : "dark";
  localStorage.setItem(THEME, next);
  theme(next);
  window.dispatchEvent(new Event("resize"));
  page?.timeline?.resize();
  say(`${next} colours`);
}

function drawBar() {
  const { user, round } = context;
  if (!user) return top_.replaceChildren();
  const done = round?.counts.done ?? 0;
  const [view] = route();
  const link = (hash, text, name) => h("a", { href: hash, "aria-current": view === name ? "page" : null }, text);
  const status = document.getElementById("status");
  put(top_,
    h("a", { class: "brand", href: "#/" }, h("img", { src: "static/icon.svg", alt: "", width: 24, height: 24 }), "Attention editor"),
    h("nav", { "aria-label": "Pages" }, user.has_list ? h("a", { href: home(), "aria-current": user.place === "rounds" ? "page" : null }, "Rounds") : null,
      round ? [link("#/", "Queue", ["round", "list"].includes(view) ? view : "queue"), user.role === "lead" ? [link("#/overview", "Overview", "overview"), link("#/review", "Review", "review")] : null] : null),
    round ? h("p", { class: "bar-progress", title: "done in this round" },
      h("span", { class: "meter", vars: { "--part": round.total ? done / round.total : 0 } }), `${done} of ${round.total}`,
      h("span", { class: "mine" }, ` · ${round.mine.done} by me`)) : null,
    h("span", { class: "grow" }),
    status ?? h("p", { id: "status", class: "save-status", role: "status", "aria-live": "polite" }),
    button("", { class: "quiet", "aria-label": "Keys", title: "Keys  ?", onclick: () => showKeys() }, icon("keys")),
    button("", { class: "quiet", "aria-label": "Light or dark", title: "Light or dark  D", onclick: toggleTheme }, icon("theme")),
    h("p", { class: "who" }, h("span", { class: "name", title: user.name }, user.name), user.role === "lead" ? h("span", { class: "chip plain" }, "lead") : null,
      user.auth === "proxy" ? null : button("Sign out", { class: "link", onclick: signOut })));
}

async function signOut() {
  page?.close?.();
  page = null;
  try { await post("api/sign-out"); } finally { location.reload(); }
}

/** Return a part of an address; one that is no valid code stays as it is written. */
function readable(text) {
  try { return decodeURIComponent(text); } catch { return text; }
}

function route() {
  const [name, id, ...rest] = location.hash.replace(/^#\/?/, "").split("/").map(readable);
  return [name || "queue", id, ...rest];
}

async function show(options = {}) {
  const mine = turn += 1;
  const [name, id, slot] = route();
  page?.close?.();
  page = null;
  bind([{ group: "Page", keys: ["?"], label: "these keys", run: () => showKeys() },
    { group: "Page", keys: ["d"], label: "light or dark", run: toggleTheme }]);
  try {
    await context.refresh();
    let made;
    if (context.user.place === "rounds") {
      if (name === "round" && id) return location.replace(`rounds/${encodeURIComponent(id)}/`); // a link of earlier versions
      made = await (await import("./rounds.js")).roundsPage(context);
    } else if (name === "video" && id) {
      const { editorPage } = await import("./editor.js");
      made = await editorPage(context, id, { slot: slot ? Number(slot) : null, ...options });
    } else if (name === "overview" && context.user.role === "lead") {
      made = await (await import("./overview.js")).overviewPage(context);
    } else if (name === "compare" && id && context.user.role === "lead") {
      made = await (await import("./compare.js")).comparePage(context, id);
    } else if (name === "review" && context.user.role === "lead") {
      made = await (await import("./review.js")).reviewPage(context, id);
    } else if (name === "round" && id && id !== context.round.round_id) {
      throw Object.assign(new Error(`The link names round ${id}; this editor has round ${context.round.round_id} open.`), { code: "round" });
    } else made = await (await import("./queue.js")).queuePage(context, name === "list" ? id : "");
    if (mine !== turn) return made.close?.();
    page = made;
    main.replaceChildren(made.element);
    document.title = `${made.title ?? made.element.querySelector("h1")?.textContent ?? "Queue"} – Attention editor`;
    drawBar();
    made.shown?.();
    if (made.player) made.timeline.element.focus({ preventScroll: true });
    else main.focus({ preventScroll: true });
    window.scrollTo(0, 0);
    deliver();
  } catch (error) {
    if (mine !== turn || error.code === "sign_in") return;
    if (!error.code) console.error(error);
    main.replaceChildren(h("section", { class: "message" }, h("h1", {}, "This cannot be shown"), h("p", {}, error.message),
      button("Try again", { class: "primary", onclick: () => show() }), " ",
      error.code === "no_round" ? context.user.has_list ? h("a", { href: home() }, "All rounds") : h("a", { href: "../../" }, "To that round") : h("a", { href: "#/" }, "Back to the queue")));
  }
}

let delivering = false;

/** Send what was finished without a connection and left. */
async function deliver() {
  if (delivering || !context.round || !context.user) return;
  delivering = true;
  const sent = await sendUnsaved(context.round.round_id, context.user.name);
  delivering = false;
  if (!sent) return;
  say(sent === 1 ? "What was kept on this computer is saved now." : `${sent} videos kept on this computer are saved now.`, { toast: true });
  if (route()[0] === "queue") show();
}

function signInForm(auth, done) {
  const wrong = h("p", { class: "error", role: "alert" });
  const name = h("input", { id: "name", autocomplete: "username", required: true, maxlength: 128, value: context.user?.name ?? "" });
  const password = h("input", { id: "password", type: "password", autocomplete: "current-password", required: true, maxlength: 1000 });
  const submit = h("button", { class: "primary big" }, "Sign in");
  return h("form", {
    class: "sign-in-form",
    async onsubmit(event) {
      event.preventDefault();
      submit.disabled = true;
      wrong.textContent = "";
      try { done(await signIn(name.value, auth === "open" ? "" : password.value)); }
      catch (error) { wrong.textContent = `${error.message}.`.replace(/\.\.$/, "."); password.value = ""; password.focus(); }
      submit.disabled = false;
    },
  }, h("label", { for: "name" }, "Name"), name,
    auth === "open" ? null : [h("label", { for: "password" }, "Password"), password], wrong, submit);
}

async function signInPage() {
  let auth;
  try { ({ auth } = await get("api/sign-in")); } catch (error) { auth = null; }
  drawBar();
  document.title = "Sign in – Attention editor";
  const intro = { open: "Give the name under which your corrections are kept.", accounts: "With the account that your lead made for you." }[auth];
  main.replaceChildren(h("section", { class: "sign-in" },
    h("img", { src: "static/icon.svg", alt: "", width: 48, height: 48 }), h("h1", {}, "Attention editor"),
    auth === "open" || auth === "accounts"
      ? [h("p", {}, intro), signInForm(auth, (user) => { context.user = user; show(); })]
      : [h("p", {}, auth ? "The proxy in front of this page did not say who you are. Sign in there, then reload this page."
        : "There is no connection to the server."), button("Reload", { class: "primary", onclick: () => location.reload() })]));
  main.querySelector("input")?.focus();
}

let asking = false;

document.addEventListener("signed-out", async () => {
  if (!context.user || asking) return;
  const former = context.user;
  if (former.auth === "proxy") return say("Your sign-in ended; reload the page. What you changed is kept.", { toast: true });
  asking = true;
  const user = await ask("Your sign-in ended", (close) => [
    h("p", {}, "Sign in again to go on; what you changed is kept."), signInForm(former.auth, close)]);
  asking = false;
  if (!user) return;
  if (user.name !== former.name) return location.reload();
  context.user = user;
  document.dispatchEvent(new Event("signed-in"));
  if (!page) show();
});

document.querySelector(".skip-link").addEventListener("click", (event) => {
  event.preventDefault();  // the address names the page's view, which stays
  main.focus();
});
window.addEventListener("hashchange", () => show());
window.addEventListener("online", deliver);
document.addEventListener("signed-in", deliver);
setInterval(deliver, 1000 * DELIVER_SECONDS);
theme(localStorage.getItem(THEME));
try {
  context.user = await session();
  await show();
} catch (error) {
  if (error.status === 401 || error.status === 0) await signInPage();
  else main.replaceChildren(h("section", { class: "message" }, h("h1", {}, "This cannot be shown"), h("p", {}, error.message)));
}
