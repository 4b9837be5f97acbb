// The queue: how far the round is, one button that goes on, and all videos with filters.

import { get, post } from "./api.js";
import { STATE_NAMES, ask, button, h, percent, say, stateChip } from "./dom.js";
import { finishedLine } from "./finished.js";
import { bind, keyCap, showKeys } from "./keys.js";
import { keepCopy, unsaved } from "./saver.js";

const ORDER = ["accepted", "edited", "skipped", "automatic", "second_opinion", "sent_back", "draft", "todo"];

/** Return the page; `query` is that of a link to the list, such as person=ann&state=edited. */
export async function queuePage(context, query = "") {
  const FILTER = `stabn/filter:${context.round.round_id}`;
  const { round, user } = context, none = { action: "", state: "", text: "", person: "" };
  const kept = query ? Object.fromEntries(new URLSearchParams(query)) : JSON.parse(sessionStorage.getItem(FILTER) ?? "{}");
  const filter = { ...none, ...kept };
  context.action = filter.action === "" ? null : Number(filter.action);
  const list = h("div", { class: "videos", role: "list", "aria-label": "Videos" });
  const count = h("p", { class: "count", role: "status" });
  const more = button("Show more", { class: "tool", hidden: true, onclick: () => load(true) });
  let shown = 0, asked = 0;

  async function load(append = false) {
    const mine = asked += 1;
    sessionStorage.setItem(FILTER, JSON.stringify(filter));
    context.action = filter.action === "" ? null : Number(filter.action);
    const wanted = new URLSearchParams({ ...filter, offset: append ? shown : 0 });
    const { total, videos } = await get(`api/videos?${wanted}`);
    if (mine !== asked) return;
    const rows = videos.map((video) => row(round, video, filter.person && user.role === "lead" ? "compare" : "video"));
    if (append) list.append(...rows); else list.replaceChildren(...rows);
    shown = list.childElementCount;
    more.hidden = shown >= total;
    count.textContent = total === 1 ? "1 video" : `${total} videos`;
  }

  async function start() {
    try {
      const { video_id: id } = await post("api/next", { passed: [], action: context.action });
      if (id) context.go(`#/video/${encodeURIComponent(id)}`);
      else say("Nothing is left for you just now.", { toast: true });
    } catch (error) { say(error.message, { toast: true }); }
  }

  const select = (name, label, options) => h("label", { class: "filter" }, h("span", {}, label), h("select", {
    onchange: (event) => { filter[name] = event.target.value; load(); },
  }, options.map(([value, text]) => h("option", { value, selected: String(filter[name]) === String(value) }, text))));
  let typing;
  const search = h("label", { class: "filter" }, h("span", {}, "Search"), h("input", {
    type: "search", value: filter.text, placeholder: "video or action",
    oninput: (event) => { filter.text = event.target.value; clearTimeout(typing); typing = setTimeout(() => load(), 200); },
  }));

  bind([
    { group: "Queue", keys: ["Enter"], label: "next video", run: start, once: true },
    { group: "Queue", keys: ["/"], label: "search", run: () => search.querySelector("input").focus() },
    { group: "Queue", keys: ["d"], label: "light or dark", run: () => context.toggleTheme() },
    { group: "Queue", keys: ["?"], label: "these keys", run: () => showKeys() },
  ]);

  const { counts, mine, total } = round;
  const people = counts.done;
  const left = unsaved(round.round_id, user.name);
  const begun = mine.draft + mine.sent_back;
  const element = h("div", { class: "page queue" },
    finishedLine(round, "Corrections from now on are not learnt from."),
    left.length ? unsavedLine(context, left) : null,
    h("section", { class: "hero", "aria-labelledby": "hero-title" },
      h("div", {},
        h("h1", { id: "hero-title" }, people ? `${people} of ${total} videos are done` : `${total} videos wait for you`),
        h("p", {}, mine.done ? `${mine.done} of them by you. ` : "",
          mine.sent_back ? `${mine.sent_back} sent back to you. ` : "", mine.draft ? `${mine.draft} begun by you. ` : "",
          "Those that the network got most wrong come first.")),
      h("button", { type: "button", class: "primary big", onclick: start }, begun ? "Go on" : "Next video", keyCap("Enter")),
      h("div", { class: "stack", role: "img", "aria-label": ORDER.filter((s) => counts[s]).map((s) => `${counts[s]} ${STATE_NAMES[s]}`).join(", ") },
        ORDER.filter((state) => counts[state]).map((state) => h("span", { class: state, vars: { "--part": counts[state] } }))),
      h("ul", { class: "stack-legend" }, ORDER.filter((state) => counts[state]).map((state) =>
        h("li", {}, h("span", { class: `swatch ${state}` }), `${counts[state]} ${STATE_NAMES[state]}`)))),
    h("section", { class: "all", "aria-label": "All videos" },
      h("div", { class: "filters" },
        select("action", "Action", [["", "All actions"], ...round.actions.map((a) => {
          return [a.class_index, `${a.name} (${a.total - a.done} open)`];
        })]),
        select("state", "Status", [["", "Any"], ["mine", "mine"], ["done", "done, skipped or accepted"], ...Object.entries(STATE_NAMES).filter(([name]) => name !== "edited"), ["edited", "done, not reviewed"]]),
        filter.person ? h("p", { class: "filter" }, h("span", {}, "Person"), h("span", { class: "chip plain" }, filter.person, " ",
          button("×", { class: "link", "aria-label": `Of everybody, not only ${filter.person}`, onclick: () => { filter.person = ""; sessionStorage.setItem(FILTER, JSON.stringify(filter)); context.go("#/"); } }))) : null,
        search, h("span", { class: "grow" }), count),
      list, more));
  await load();
  return { element, title: "Queue" };
}

/** Say what only this computer has; a video may be opened, or what is kept of it taken as a file, or thrown away. */
function unsavedLine(context, left) {
  const drop = async ({ key, video }) => {
    const sure = await ask(`Discard what you changed in video ${video}?`, (close) => [
      h("p", {}, "It is nowhere but on this computer."),
      h("div", { class: "dialog-foot" }, h("button", { type: "button", class: "tool", onclick: () => close() }, "Keep it"),
        h("button", { type: "button", class: "primary", onclick: () => close(true) }, "Discard"))]);
    if (!sure) return;
    localStorage.removeItem(key);
    context.go("#/");
  };
  return h("div", { class: "banner warn" }, h("strong", {}, "Not saved yet, kept on this computer:"), h("ul", { class: "unsaved" }, left.map((kept) => h("li", {},
    h("a", { href: `#/video/${encodeURIComponent(kept.video)}` }, `video ${kept.video}`), " · ",
    button("keep a copy", { class: "link", "aria-label": `Keep a copy of video ${kept.video}`, onclick: () => keepCopy(kept.key, kept.video) }), " · ",
    button("discard", { class: "link", "aria-label": `Discard video ${kept.video}`, onclick: () => drop(kept) })))));
}

function row(round, video, page) {
  const id = encodeURIComponent(video.video_id), middle = Math.floor(video.num_frames / 2);
  const who = video.busy ? `${video.busy} is editing it` : video.editor && video.state !== "automatic" ? video.editor : "";
  return h("a", { class: "video", role: "listitem", href: `#/${page}/${id}` },
    h("img", { src: `frames/${round.round_id}/${id}/${middle}.jpg`, alt: "", loading: "lazy", width: 128, height: 72 }),
    h("span", { class: "what" }, h("strong", {}, round.classes[video.class_index]),
      h("span", { class: "said" }, `${video.predicted === video.class_index ? "network agrees" : "network: "}`,
        video.predicted === video.class_index ? "" : round.classes[video.predicted], ` ${percent(video.score)}`)),
    h("span", { class: "facts" }, stateChip(video.state), h("span", {}, who)),
    h("span", { class: "facts numbers" }, h("span", {}, `video ${video.video_id}`), h("span", {}, `${video.num_frames} frames`)));
}
