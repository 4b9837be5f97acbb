// Questions with curves in them: which of two versions counts, and which past revision comes back.

import { get } from "./api.js";
import { ask, button, clock, h, stateChip } from "./dom.js";
import { curvePicture } from "./picture.js";

function version(title, curve, own, color, note) {
  return h("figure", {}, h("figcaption", {}, title), curvePicture([{ curve: own, color: "own" }, { curve, color }]), note ? h("p", { class: "note" }, note) : null);
}

/** Ask whether my version or another person's counts; resolves to "mine", "theirs", or "later" or null for neither now. */
export function askVersion({ mine, theirs, own, holder, user }) {
  const who = theirs?.editor === user.name ? "You, in another window," : theirs?.editor;
  return ask(holder ? `${holder} is editing this video now` : `${who} saved this video in the meantime`, (close) => [
    h("p", {}, "Nothing is lost: both versions are here. What you choose becomes the newest revision, the other one stays in the history."),
    h("div", { class: "versions" },
      version("Mine", mine, own, "mine", ""),
      version(theirs ? `${theirs.editor}, ${clock(theirs.edited_at)}` : "Nothing saved yet", theirs?.edited_attention ?? own, own, "other", theirs?.note ?? "")),
    h("div", { class: "dialog-foot" },
      h("button", { type: "button", class: "tool", onclick: () => close("later") }, "Decide later"),
      h("button", { type: "button", class: "tool", disabled: !theirs, onclick: () => close("theirs") }, "Take theirs"),
      h("button", { type: "button", class: "primary", onclick: () => close("mine") }, "Keep mine")),
  ], { wide: true });
}

/** Show the saved revisions of a curve; resolves to the one to restore, null for none. */
export async function askRevision({ path, slot, own, mayRestore }) {
  const { revisions, left_out: leftOut } = await get(`${path}/revisions?slot=${slot}`);
  return ask("Past revisions", (close) => [
    revisions.length ? h("p", {}, "The newest first. Restoring makes a new revision, which undo takes back.", mayRestore ? "" : " This video cannot be changed now: press E first, if it is done.")
      : h("p", {}, "Nothing of this video is saved yet."),
    h("ol", { class: "revisions" }, revisions.map((edit, i) => h("li", {},
      curvePicture([{ curve: own, color: "own" }, { curve: edit.edited_attention, color: "mine" }], { width: 300, height: 56 }),
      h("div", { class: "what" }, h("strong", {}, `${edit.revision} · ${edit.editor}`),
        h("span", { class: "said" }, clock(edit.edited_at), " ", stateChip(edit.state)), edit.note ? h("q", {}, edit.note) : null),
      i === 0 ? h("span", { class: "said" }, "the newest")
        : button("Restore", { class: "tool", disabled: !mayRestore, "aria-label": `Restore revision ${edit.revision}`, onclick: () => close(edit) })))),
    leftOut ? h("p", { class: "note" }, `${leftOut} earlier ones are in the round's folder.`) : null,
    h("div", { class: "dialog-foot" }, h("button", { type: "button", class: "primary", onclick: () => close() }, "Close")),
  ], { wide: true });
}
