// People's curves of one video over its frames, and over the network's own; a lead accepts one or sends it back.

import { get, post } from "./api.js";
import { themed } from "./colors.js";
import { REASON_NAMES, ask, button, clock, counted, duration, h, percent, say, stateChip } from "./dom.js";
import { Frames } from "./frames.js";
import { bind, keyCap, showKeys } from "./keys.js";
import { Player } from "./player.js";
import { Timeline } from "./timeline.js";

const swatch = (i) => h("span", { class: "swatch", vars: { "--swatch": `var(--stripe-${i})` } });

/** Return the page of a video; with `review`, {waiting, after, later}, it is one of those that wait for a lead's word. */
export async function comparePage(context, videoId, review = null) {
  const path = `api/lead/videos/${encodeURIComponent(videoId)}`;
  const video = await get(path);
  const frames = new Frames(context.round.round_id, video);
  const own = video.curve, first = video.edits[0];
  const timeline = new Timeline({ frames, own, ratio: video.width / video.height, readonly: true, onseek: (frame) => { player.stop(); player.seek(frame); }, onpreview() {}, oncommit() {} });
  const player = new Player({ frames, length: video.num_frames, size: [video.width, video.height], onframe: (frame) => timeline.show({ frame }) });
  player.range = () => timeline.view;
  frames.onframes = (first, last) => { timeline.arrived(first, last); if (!player.playing) player.draw(); };
  frames.load();

  async function judge(edit, verdict, withNote = true) {
    const accepted = verdict === "accepted";
    const note = !withNote ? "" : await ask(accepted ? `Accept the curve of ${edit.editor}?` : `Send it back to ${edit.editor}`, (close) => {
      const text = h("textarea", { rows: 3, maxlength: 2000, id: "judge-note", placeholder: accepted ? "Optional" : "What should change?" });
      return [
        accepted && edit.slot > 1 ? h("p", {}, "It becomes the one that is learnt from; the other stays in the history.") : null,
        h("label", { for: "judge-note" }, "Note"), text,
        h("div", { class: "dialog-foot" }, h("button", { type: "button", class: "tool", onclick: () => close() }, "Cancel"),
          h("button", { type: "button", class: "primary", onclick: () => close(text.value) }, accepted ? "Accept" : "Send back"))];
    });
    if (note === null || note === undefined) return;
    try {
      await post(`${path}/review`, { slot: edit.slot, revision: edit.revision, verdict, note });
      say(accepted ? "Accepted." : `Sent back to ${edit.editor}.`, { toast: true });
    } catch (error) {
      say(error.message, { toast: true });
      return context.reopen();
    }
    if (review) review.after(videoId);
    else context.reopen();
  }

  const pairs = video.agreement.map((pair) => h("p", { class: "agreement" },
    `Curves ${pair.slots.join(" and ")}: mean absolute difference ${pair.difference.toFixed(2)}, overlap of segments ${pair.overlap.toFixed(2)}`));
  const element = h("article", { class: "page compare" },
    h("header", { class: "page-head" }, h("p", { class: "eyebrow" }, review ? `${counted(review.waiting, "video waits", "videos wait")} for review · true action` : "True action"),
      h("h1", {}, context.round.classes[video.class_index]),
      h("p", {}, `Video ${video.video_id} · ${video.num_frames} frames · the network said `,
        h("em", {}, context.round.classes[video.predicted]), ` ${percent(video.score)}`),
      review ? button("", { class: "tool later", onclick: () => review.later(videoId) }, h("span", {}, "Later"), keyCap("n")) : null),
    h("div", { class: "workplace" },
      h("section", { class: "view" }, player.stage, player.transport),
      h("aside", { class: "side" },
        video.edits.length ? null : h("p", { class: "empty" }, "Nobody has corrected this video yet."),
        video.edits.map((edit, i) => h("section", { class: "panel curve-card", tabIndex: -1, "aria-label": `Curve of ${edit.editor}` },
          h("h2", {}, swatch(i), edit.editor, " ", stateChip(edit.state)),
          h("p", { class: "about" }, edit.slot === 1 ? "learnt from" : `independent curve ${edit.slot}`, ` · revision ${edit.revision} · ${clock(edit.edited_at)} · ${duration(edit.seconds)}`),
          edit.skip_reason ? h("p", {}, `Skipped: ${REASON_NAMES[edit.skip_reason]}`) : null,
          edit.note ? h("blockquote", {}, edit.note) : null,
          edit.review ? h("p", { class: "about" }, `${edit.review.verdict === "accepted" ? "Accepted" : "Sent back"} by ${edit.review.reviewer}`,
            edit.review.note ? [": ", h("q", {}, edit.review.note)] : "") : null,
          h("div", { class: "row" },
            button("", { class: "tool", disabled: edit.status === "draft", onclick: () => judge(edit, "accepted", !review) }, h("span", {}, "Accept"), review && i === 0 ? keyCap("Enter") : null),
            button("", { class: "tool", onclick: () => judge(edit, "sent_back") }, h("span", {}, "Send back …"), review && i === 0 ? keyCap("b") : null),
            h("a", { class: "tool", href: `#/video/${encodeURIComponent(videoId)}/${edit.slot}` }, "Open")))),
        pairs)),
    h("section", { class: "bench" }, timeline.element,
      h("p", { class: "legend" }, h("span", { class: "swatch own dashed" }), "the network’s own",
        video.edits.map((edit, i) => [swatch(i), edit.editor]))));
  let chosen = 0;
  const choose = (i) => { chosen = i; element.querySelectorAll(".curve-card")[i].focus(); };
  const act = (run) => () => { if (video.edits[chosen]) run(video.edits[chosen]); };
  bind([
    ...video.edits.map((edit, i) => ({ group: "Curve", keys: [String(i + 1)], label: `choose that of ${edit.editor}`, run: () => choose(i) })),
    ...(review ? [
      { group: "Review", keys: ["Enter"], label: "accept it, next", once: true, run: act((edit) => { if (edit.status !== "draft") judge(edit, "accepted", false); }) },
      { group: "Review", keys: ["n"], label: "later, next", once: true, run: () => review.later(videoId) },
    ] : []),
    { group: "Curve", keys: ["a"], label: review ? "accept it with a note" : "accept it", run: act((edit) => { if (edit.status !== "draft") judge(edit, "accepted"); }) },
    { group: "Curve", keys: ["b"], label: "send it back", run: act((edit) => judge(edit, "sent_back")) },
    { group: "Curve", keys: ["e"], label: "open it", run: act((edit) => context.go(`#/video/${encodeURIComponent(videoId)}/${edit.slot}`)) },
    { group: "Video", keys: [" "], label: "play or pause", run: () => player.toggle() },
    { group: "Video", keys: ["ArrowLeft"], label: "one frame back", run: () => player.step(-1) },
    { group: "Video", keys: ["ArrowRight"], label: "one frame on", run: () => player.step(1) },
    { group: "Page", keys: ["Escape"], label: "overview", run: () => context.go("#/overview") },
    { group: "Page", keys: ["d"], label: "light or dark", run: () => context.toggleTheme() },
    { group: "Page", keys: ["?"], label: "these keys", run: () => showKeys() },
  ]);
  timeline.show({
    curve: first?.edited_attention ?? own,
    others: video.edits.map((edit, i) => ({ curve: edit.edited_attention, color: themed(`stripe-${i}`) })).reverse(),
  });
  player.seek(0);
  return { element, timeline, player, close: () => [timeline, player, frames].forEach((part) => part.close()) };
}
