// The lead's overview: progress, people, agreement, settings, export and import, and finishing the round.

import { call, get, post } from "./api.js";
import { REASON_NAMES, STATE_NAMES, ask, button, clock, counted, duration, h, listLink, say } from "./dom.js";
import { finishedLine } from "./finished.js";

const NUMERIC = new Set(["Done", "Open", "Accepted", "Skipped", "Asked", "Begun", "Sent back", "Median", "Difference", "Overlap", "Last"]);

const SHOWN = 200; // of the videos given to several people
const NAMED = 8; // of the files in a question

const ratio = (value) => (value === null ? "–" : value.toFixed(2));

/** Return a mean overlap with its interval and the number of pairs. */
function overlap({ overlap: mean, interval, pairs }) {
  if (mean === null) return "–";
  return h("span", { title: interval ? `95% interval of ${pairs} pairs` : `${counted(pairs, "pair", "pairs")}: too few for an interval` }, ratio(mean),
    h("span", { class: "said" }, interval ? ` ${ratio(interval[0])}–${ratio(interval[1])}` : ""));
}

/** Return a number that leads to the videos that it counts. */
const listed = (number, filters) => (number ? h("a", { href: listLink(filters) }, String(number)) : "0");

export async function overviewPage(context) {
  const { round } = context;
  const data = await get("api/lead/overview");
  const { counts } = data;
  const element = h("div", { class: "page overview" },
    finishedLine(data),
    h("header", { class: "page-head" }, h("h1", {}, "Overview"), h("p", {}, `Round ${round.round_id}, ${round.total} videos`),
      data.to_review ? h("a", { class: "tool primary", href: "#/review" }, `Review ${counted(data.to_review, "video", "videos")}`) : null),
    data.problems.length ? h("div", { class: "banner warn" }, h("strong", {}, "Documents that cannot be used:"),
      h("ul", {}, data.problems.map((text) => h("li", {}, text)))) : null,
    h("dl", { class: "tiles" },
      tile("Done by people", listed(counts.done, { state: "done" }), `of ${round.total}, skipped ones too`),
      tile("Accepted", listed(counts.accepted, { state: "accepted" }), `${data.to_review} wait for review`),
      tile("Skipped", Object.values(data.reasons).reduce((a, b) => a + b, 0), Object.entries(data.reasons).map(([name, n]) => `${n} ${REASON_NAMES[name]}`).join(", ")),
      tile("Second opinion", listed(counts.second_opinion, { state: "second_opinion" }), "wanted"),
      tile("Time per video", duration(data.median_seconds), "median"),
      tile("Difference", ratio(data.agreement.difference), `mean absolute, ${counted(data.agreement.pairs, "pair", "pairs")} of curves`),
      tile("Overlap", ratio(data.agreement.overlap), data.agreement.interval ? `${data.agreement.interval.map(ratio).join(" to ")}, of the segments (IoU)` : "of the action’s segments (IoU)")),
      section("Actions", table(["Action", "Progress", "Done", "Open", "Overlap"], data.actions.map((action) => [
        h("a", { href: listLink({ action: action.class_index }) }, action.name), h("span", { class: "meter", vars: { "--part": action.done / action.total } }),
        listed(action.done, { action: action.class_index, state: "done" }), action.total - action.done, overlap(action)]))),
      section("People", data.people.length ? table(["Name", "Done", "Accepted", "Skipped", "Asked", "Begun", "Sent back", "Median", "Overlap", "Last"],
        data.people.map((p) => [
          [h("a", { href: listLink({ person: p.name }) }, p.name), p.needs_training ? h("span", { class: "chip training", title: "Agrees less with others than they do among themselves, by more than chance" }, "needs training") : null],
          listed(p.done + p.automatic, { person: p.name, state: p.automatic ? "automatic" : "done" }), listed(p.accepted, { person: p.name, state: "accepted" }),
          p.skipped, listed(p.second_opinion, { person: p.name, state: "second_opinion" }), listed(p.draft, { person: p.name, state: "draft" }),
          listed(p.sent_back, { person: p.name, state: "sent_back" }), duration(p.median_seconds), overlap(p), clock(p.last)])) : h("p", { class: "empty" }, "Nobody has saved anything yet.")),
    section("Videos given to several people", [
      settingsForm(data.settings),
      data.shared.length ? table(["Video", "Action", "People", "Difference", "Overlap", ""], data.shared.slice(0, SHOWN).map((video) => [
        h("a", { href: `#/compare/${encodeURIComponent(video.video_id)}` }, video.video_id), round.classes[video.class_index],
        video.people.map((p) => `${p.name} (${STATE_NAMES[p.state]})`).join(", ") || `nobody yet, ${video.wanted} wanted`,
        ratio(video.difference), ratio(video.overlap),
        h("a", { href: `#/compare/${encodeURIComponent(video.video_id)}` }, "compare")])) : h("p", { class: "empty" }, "None: set a share above."),
      data.shared.length > SHOWN ? h("p", {}, `${SHOWN} of ${data.shared.length}; the others are reached from their video.`) : null,
    ]),
    h("div", { class: "columns" },
      section("Take out and bring in", exchange(context)),
      section("Finish the round", finish(context, data))));
  return { element, title: "Overview" };
}

const tile = (name, value, more) => h("div", { class: "tile" }, h("dt", {}, name), h("dd", {}, h("strong", {}, value), h("span", {}, more)));

const section = (title, ...content) => h("section", { class: "panel" }, h("h2", {}, title), ...content);

function table(heads, rows) {
  const numeric = heads.map((head) => NUMERIC.has(head));
  return h("div", { class: "scroll", tabIndex: 0 }, h("table", {},
    h("thead", {}, h("tr", {}, heads.map((text, i) => h("th", { scope: "col", class: numeric[i] ? "number" : "" }, text)))),
    h("tbody", {}, rows.map((cells) => h("tr", {}, cells.map((cell, i) =>
      h(i ? "td" : "th", { class: numeric[i] ? "number nowrap" : "", scope: i ? null : "row" }, cell instanceof Node || Array.isArray(cell) ? cell : String(cell))))))));
}

function settingsForm(settings) {
  const share = h("input", { type: "number", min: 0, max: 100, step: 1, value: Math.round(settings.shared_share * 100), id: "share" });
  const people = h("input", { type: "number", min: 2, max: 9, value: settings.people_per_shared, id: "people" });
  return h("form", {
    class: "inline-form",
    async onsubmit(event) {
      event.preventDefault();
      try {
        await call("PUT", "api/lead/settings", { shared_share: Number(share.value) / 100, people_per_shared: Number(people.value) });
        say("Set. It holds for videos handed out from now on.", { toast: true });
      } catch (error) { say(error.message, { toast: true }); }
    },
  }, h("label", { for: "share" }, "Share of the videos, in percent"), share, h("label", { for: "people" }, "People for each"), people,
    h("button", { class: "tool" }, "Set"));
}

/** Send files to the server one after the other; returns those that were taken, those of corrected videos, and what failed. */
async function sendArrays(files, query = "") {
  const taken = [], corrected = [], said = [];
  for (const file of files) {
    try {
      await call("POST", `api/lead/arrays/${encodeURIComponent(file.name.replace(/\.npy$/i, ""))}${query}`, file);
      taken.push(file);
    } catch (error) {
      if (error.code === "corrected") corrected.push(file);
      else said.push(`${file.name}: ${error.message}`);
    }
  }
  return { taken, corrected, said };
}

function exchange(context) {
  const result = h("div", { class: "result", role: "status" });
  const tell = (...lines) => result.replaceChildren(...lines.map((text) => h("p", {}, text)));
  const lines = h("input", {
    type: "file", accept: ".jsonl,application/jsonl", id: "lines",
    async onchange() {
      const [file] = lines.files;
      if (!file) return;
      try {
        const r = await call("POST", "api/lead/edits.jsonl", file);
        if (!file.size) return tell(`${file.name}: it is empty, as the export of a round is that nobody has corrected.`);
        tell(`${file.name}: ${r.imported.length} taken, ${r.unchanged.length} were the same, ${r.kept.length} are newer here and stay.`,
          ...(r.others.length ? [`Left out, as another person made a curve here independently: ${r.others.slice(0, NAMED).join(", ")}${r.others.length > NAMED ? " …" : ""}`] : []));
        context.refresh();
      } catch (error) { tell(...(error.body?.errors ? [...error.body.errors, "Nothing was written."] : [error.message])); }
      lines.value = "";
    },
  });
  const arrays = h("input", {
    type: "file", accept: ".npy", multiple: true, id: "arrays",
    async onchange() {
      const files = [...arrays.files], { taken, corrected, said } = await sendArrays(files);
      if (corrected.length && await ask("Replace what people corrected here?", (close) => [
        h("p", {}, `${counted(corrected.length, "of the videos was", "of the videos were")} corrected in this round, with another curve. `,
          "Arrays have no date, so which is newer is yours to say; what is replaced stays in the history."),
        h("p", {}, corrected.slice(0, NAMED).map((file) => file.name).join(", "), corrected.length > NAMED ? " …" : ""),
        h("div", { class: "dialog-foot" }, h("button", { type: "button", class: "tool", onclick: () => close() }, "Keep theirs"),
          h("button", { type: "button", class: "primary", onclick: () => close(true) }, "Replace"))])) {
        const again = await sendArrays(corrected.splice(0), "?replace=1");
        said.push(...again.said);
        taken.push(...again.taken);
      }
      tell(`${counted(taken.length, "array", "arrays")} taken${corrected.length ? `, ${corrected.length} left out` : ""}.`, ...said);
      arrays.value = "";
      context.refresh();
    },
  });
  return [
    h("p", {}, h("a", { class: "tool", href: "api/lead/edits.jsonl", download: "" }, "Export all corrections"), " JSON Lines, one document per curve."),
    h("p", { class: "file" }, h("label", { for: "lines" }, "Import corrections (JSON Lines)"), lines),
    h("p", { class: "file" }, h("label", { for: "arrays" }, "Import arrays of the desktop tool (VIDEO.npy, one number per frame)"), arrays),
    result,
  ];
}

function finish(context, data) {
  if (data.finished) {
    return [h("p", {}, `${data.finished.by} finished it, ${clock(data.finished.at)}; what that started is said above.`)];
  }
  const follows = { webhook: "Then the webhook is told, once.", kfp: "Then the fine-tuning pipeline is started, once.",
    none: "No webhook and no pipeline is configured; this only records it." }[data.target];
  const undone = data.counts.todo + data.counts.draft + data.counts.sent_back + data.counts.second_opinion;
  return [
    h("p", {}, undone ? `${undone === 1 ? "One video is" : `${undone} videos are`} not done yet. ` : "All videos are done. ", follows),
    button("Finish the round", { class: "primary", onclick: async () => {
      const sure = await ask("Finish the round?", (close) => [
        h("p", {}, undone ? `Not done, and not learnt from: ${undone} of ${context.round.total} videos.` : "All videos are done.", " ", follows),
        h("div", { class: "dialog-foot" }, h("button", { type: "button", class: "tool", onclick: () => close() }, "Not yet"),
          h("button", { type: "button", class: "primary", onclick: () => close(true) }, "Finish"))]);
      if (!sure) return;
      try {
        await post("api/lead/finish", { anyway: true });
        say("The round is finished.", { toast: true });
        window.scrollTo(0, 0);
      } catch (error) { say(error.message, { toast: true }); }
      context.go("#/overview");
    } }),
  ];
}
