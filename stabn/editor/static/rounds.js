// All rounds: how far each is, by whom, how long still, and what waits for it.

import { get } from "./api.js";
import { clock, counted, h, put } from "./dom.js";
import { bind, showKeys } from "./keys.js";
import { runWords } from "./finished.js";
import { unsaved } from "./saver.js";

const LOOK_SECONDS = 10;
const PEOPLE = 4; // named in a row; the others are a number
const GROUPS = [["open", "Under way"], ["waiting", "Not begun"], ["finished", "Finished"]];

export async function roundsPage(context) {
  const lists = h("div", { class: "page rounds" });
  let former = "";

  async function load(look = 0) {
    const found = await get(`api/rounds?look=${look}`), text = JSON.stringify(found);
    if (text === former) return;
    former = text;
    draw(found);
  }

  function draw({ rounds, problems }) {
    const number = (state) => rounds.filter((round) => round.state === state).length;
    put(lists,
      h("header", { class: "page-head" }, h("h1", {}, "Rounds"),
        h("p", {}, rounds.length ? GROUPS.filter(([state]) => number(state)).map(([state, name]) => `${number(state)} ${name.toLowerCase()}`).join(", ")
          : "There is no round yet: the stage export-attention makes one.")),
      problems.length ? h("div", { class: "banner warn" }, h("strong", {}, "Rounds that cannot be used:"),
        h("ul", {}, problems.map((text) => h("li", {}, text)))) : null,
      GROUPS.filter(([state]) => number(state)).map(([state, name]) => h("section", { "aria-label": name },
        h("h2", { class: "group" }, name),
        h("div", { class: "videos", role: "list" }, rounds.filter((round) => round.state === state).map((round) => row(round, context.user))))));
  }

  bind([
    { group: "Page", keys: ["d"], label: "light or dark", run: () => context.toggleTheme() },
    { group: "Page", keys: ["?"], label: "these keys", run: () => showKeys() },
  ]);
  await load(1);
  const timer = setInterval(() => load().catch(() => { /* offline: the next one will do */ }), 1000 * LOOK_SECONDS);
  return { element: lists, title: "Rounds", close: () => clearInterval(timer) };
}

function row(round, user) {
  const kept = unsaved(round.round_id, user.name).length, href = `rounds/${encodeURIComponent(round.round_id)}/`;
  return h("article", { class: "round-row", role: "listitem", "data-round": round.round_id },
    h("div", { class: "what" },
      h("a", { class: "name", href }, `Round of ${isToday(round.created_at) ? "today, " : ""}${clock(round.created_at)}`),
      h("span", { class: "said" }, `${counted(round.total, "video", "videos")} of ${counted(round.num_actions, "action", "actions")}`),
      h("span", { class: "said" }, round.round_id)),
    h("div", { class: "what far" }, progress(round)),
    h("div", { class: "what" }, round.is_counted ? people(round, user) : null),
    h("div", { class: "what" }, ends(round),
      kept ? h("strong", { class: "warn" }, `${counted(kept, "video", "videos")} not saved yet, kept on this computer`) : null));
}

function progress(round) {
  if (!round.is_counted) return [h("span", { class: "meter" }), h("span", { class: "said" }, "counting …")];
  const { done, total, begun } = round;
  return [
    h("span", { class: "meter", role: "img", "aria-label": `${done} of ${total} done`, vars: { "--part": total ? done / total : 0 } }),
    h("span", {}, h("strong", {}, `${done} of ${total}`), " done", begun ? `, ${begun} begun` : ""),
    round.finished || !round.hours_left ? null : h("span", { class: "said" }, `${hours(round.hours_left)} of work left, at ${Math.round(round.per_hour)} an hour`)];
}

function people({ people: all, mine, sent_back: sent }, user) {
  const others = all.filter(({ name }) => name !== user.name), named = others.slice(0, PEOPLE);
  return [
    mine ? h("span", {}, h("strong", {}, `${mine} by you`)) : null,
    sent ? h("strong", { class: "warn" }, `${sent} sent back to you`) : null,
    others.length ? h("span", { class: "said" }, named.map(({ name, done }) => `${name} ${done}`).join(", "),
      others.length > PEOPLE ? ` and ${others.length - PEOPLE} more` : "") : null];
}

function ends(round) {
  if (round.finished) return h("span", { class: "said" }, `${round.finished.by}, ${clock(round.finished.at)}. `, runWords(round.finished));
  if (!round.runs.length) return h("span", { class: "said" }, "No run of the pipeline waits for it.");
  return round.runs.map(({ run_id: id, link, needed, until }) => h("span", {}, "Run ",
    link ? h("a", { href: link, target: "_blank", rel: "noopener" }, id) : id || "started by hand",
    h("span", { class: "said" }, ` waits for ${needed} done, until ${clock(new Date(1000 * until).toISOString())}`)));
}

const isToday = (text) => new Date(text).toDateString() === new Date().toDateString();

/** Return a number of hours as people say it. */
function hours(number) {
  if (number < 1) return `about ${Math.max(1, Math.round(60 * number))} min`;
  return `about ${number < 10 ? Math.round(10 * number) / 10 : Math.round(number)} h`;
}
