// What is on a video's page: its elements, and the lines above the picture that say how the video stands.

import { LEVELS, LEVEL_NAMES } from "./curve.js";
import { button, clock, h, icon, stateChip } from "./dom.js";
import { finishedLine } from "./finished.js";
import { keyCap } from "./keys.js";
import { keepCopy } from "./saver.js";

/** Make the elements of an EditorPage, which keeps those that change later. */
export function build(page) {
  const { video, editing, player, timeline, context } = page;
  const tool = (text, cap, run, props = {}) => button("", { class: "tool", onclick: run, disabled: page.readonly, ...props },
    h("span", {}, text), cap ? keyCap(cap) : null);
  const quiet = (name, label, cap, run, props = {}) => button("", { class: "quiet", "aria-label": label, title: `${label}  ${cap}`, onclick: run, ...props }, icon(name));
  page.levels = h("div", { class: "segmented levels", role: "group", "aria-label": "Level to paint" },
    LEVELS.map((value, i) => button("", {
      "aria-label": value === null ? "No opinion" : `Level ${value}`, disabled: page.readonly,
      title: `${value === null ? "No opinion" : "Level"} ${value ?? ""}  key ${i + 1}`, onclick: () => editing.setLevel(i),
    }, h("span", { class: `level-dot level-${i}` }), LEVEL_NAMES[i])));
  page.undoButton = quiet("undo", "Undo", "Z", () => editing.undo());
  page.redoButton = quiet("redo", "Redo", "Y", () => editing.redo());
  page.pastButton = quiet("past", "Past revisions", "P", () => page.showRevisions());
  page.motionButton = tool("Motion", "g", () => editing.takeMotion(), { title: "Take the stretch that moves most" });
  page.copyButton = tool("Copy last", "c", () => editing.copyLast(), { title: "Take the curve of the video before" });
  page.heatButton = tool("Heat map", "h", () => page.toggleHeat(), { disabled: false, "aria-pressed": "false", title: "Where the network looked" });
  page.loopButton = tool("Loop", "l", () => page.toggleLoop(), { disabled: false, "aria-pressed": "false", title: "Play the segment in a loop" });
  page.fitButton = quiet("fit", "All frames", "0", () => timeline.fit(), { disabled: true });
  page.readout = h("p", { class: "readout", "aria-hidden": "true" });
  page.noteField = h("textarea", {
    id: "note", rows: 1, maxlength: 2000, value: page.note, disabled: page.readonly || page.done, placeholder: "Note for the lead", "aria-keyshortcuts": "w",
    oninput: (event) => { page.note = event.target.value; page.changed(); },
  });
  player.speeds.before(page.loopButton);
  player.transport.append(page.heatButton);
  player.count.after(page.readout);
  page.chip = h("span", {}, stateChip(video.state));
  page.banner = h("div", { class: "banners" }, banners(page));
  return h("article", { class: "editor", "aria-labelledby": "video-title" },
    h("div", { class: "workplace" },
      h("section", { class: "view", "aria-label": "Video" },
        h("header", { class: "video-head" },
          h("p", { class: "eyebrow" }, "True action"),
          h("p", { class: "about" }, `Video ${video.video_id} · ${page.length} frames`, " ", page.chip,
            context.user.role === "lead" && video.edit ? h("a", { href: `#/compare/${encodeURIComponent(video.video_id)}` }, "Review") : null,
            video.shared ? h("span", { class: "chip plain" }, "given to several people") : null),
          h("h1", { id: "video-title", title: context.round.classes[video.class_index] }, context.round.classes[video.class_index])),
        page.banner, player.stage, player.transport),
      h("aside", { class: "side" },
        page.verdict.element,
        h("section", { class: "panel actions", "aria-label": "Finish" },
          tool("Done, next", "Enter", () => page.finish("edited"), { class: "primary big" }),
          h("div", { class: "row" },
            tool("Skip …", "x", () => page.skip()), tool("Second opinion", "q", () => page.finish("second_opinion")),
            tool("Later", "n", () => page.next(true), { disabled: false })),
          h("label", { for: "note", class: "visually-hidden" }, "Note for the lead"), page.noteField))),
    h("section", { class: "bench", "aria-label": "Attention per frame" },
      h("div", { class: "toolbar", role: "toolbar", "aria-label": "Change the curve" },
        page.levels,
        h("span", { class: "hint" }, "action from ", keyCap("i"), " to ", keyCap("o")),
        tool("Fill", "f", () => editing.fill(), { title: "Fill frames without an opinion" }),
        tool("Smooth", "s", () => editing.smooth()),
        tool("Invert", "v", () => editing.invert()),
        tool("Reset", "r", () => editing.reset(), { title: "Back to the network’s own curve" }),
        page.copyButton, page.motionButton,
        h("span", { class: "more" }, page.undoButton, page.redoButton, page.pastButton, quiet("less", "Zoom out", "−", () => timeline.zoom(2)),
          quiet("more", "Zoom in", "+", () => timeline.zoom(1 / 2)), page.fitButton)),
      timeline.element,
      h("p", { class: "legend" },
        h("span", { class: "swatch mine" }), "my attention", h("span", { class: "swatch own dashed" }), "the network’s own",
        h("span", { class: "swatch motion" }), "where most moves", h("span", { class: "dot" }), "frames that the network sees",
        h("span", { class: "grow" }), h("span", { class: "hint" }, "Drag: frames scrub · curve draws · colours paint · segments move and resize, beside them you add one. Wheel: zoom."))));
}

/** Return the lines that say how the video stands. */
export function banners(page) {
  const { video, context } = page, { edit } = video;
  const notes = [finishedLine(context.round, "What is changed from now on is not learnt from.")].filter(Boolean);
  const said = (text) => (text ? [": ", h("q", {}, text)] : ["."]);
  if (page.taken) {
    notes.push(h("p", { class: "banner warn" }, h("strong", {}, `${page.taken} took this video over. `),
      "What you change is kept here; saving it asks which version counts."));
  }
  if (page.refused) notes.push(refusedLine(page));
  if (!video.lease.mine) {
    notes.push(h("p", { class: "banner warn" }, h("strong", {}, `${video.lease.holder} is editing this video now. `),
      button("Edit it all the same", { class: "link", onclick: () => context.reopen({ slot: video.slot, takeOver: true }) })));
  }
  if (video.blind) notes.push(h("p", { class: "banner" }, "Another person corrects this video too, each on their own."));
  if (!edit) return notes;
  const other = edit.editor !== context.user.name, accepted = edit.review?.verdict === "accepted";
  if (accepted) {
    notes.push(h("p", { class: "banner" }, h("strong", {}, `${edit.review.reviewer} accepted this curve`), said(edit.review.note), " ",
      page.locked ? "Only a lead can change it now." : again(page)));
  } else if (page.done && !page.readonly) {
    notes.push(h("p", { class: "banner" }, `${other ? edit.editor : "You"} finished this video at ${clock(edit.edited_at)}. `, again(page)));
  } else if (edit.review?.verdict === "sent_back" && edit.status === "draft") {
    notes.push(h("p", { class: "banner warn" }, h("strong", {}, `${edit.review.reviewer} sent it back`), said(edit.review.note)));
  } else if (video.state === "automatic") {
    notes.push(h("p", { class: "banner" }, "This correction was made automatically; nobody has looked at it yet."));
  } else if (other && edit.status === "second_opinion") {
    notes.push(h("p", { class: "banner" }, h("strong", {}, `${edit.editor} asks for a second opinion`), said(edit.note)));
  } else if (other) {
    notes.push(h("p", { class: "banner" }, `${edit.editor} worked on this video at ${clock(edit.edited_at)}; what you change becomes a new revision.`));
  }
  return notes;
}

const again = (page) => (page.done ? [button("Change it again", { class: "link", onclick: () => page.editAgain() }), " ", keyCap("e")] : []);

/** Say that the server will not take what this computer keeps, and what can be done with it. */
function refusedLine(page) {
  return h("p", { class: "banner warn", role: "alert" }, h("strong", {}, "What you changed cannot be saved: "), `${page.refused}. `,
    button("Keep a copy", { class: "link", onclick: () => keepCopy(page.saver.key, page.video.video_id) }), " or ",
    button("discard it", { class: "link", onclick: () => page.discard() }), ".");
}
