// The keys of a video's page.

import { LEVELS, LEVEL_NAMES } from "./curve.js";
import { say } from "./dom.js";
import { showKeys } from "./keys.js";

const STEP = 0.1; // of a level, with the arrows

/** Return the bindings of an EditorPage, as `bind` takes them. */
export function editorKeys(page) {
  const { player, timeline, editing } = page;
  const entry = (group, keys, label, run) => ({ group, keys: [keys].flat(), label, run });
  const once = (...parts) => ({ ...entry(...parts), once: true });
  const step = (by) => () => { editing.unselect(); player.step(by); };
  return [
    entry("Video", " ", "play or pause", () => player.toggle()),
    entry("Video", "ArrowLeft", "one frame back", step(-1)),
    entry("Video", "ArrowRight", "one frame on", step(1)),
    entry("Video", "PageUp", "ten frames back", () => player.step(-10)),
    entry("Video", "PageDown", "ten frames on", () => player.step(10)),
    entry("Video", "Home", "first frame", () => page.seek(0)),
    entry("Video", "End", "last frame", () => page.seek(page.length - 1)),
    entry("Video", ",", "slower", () => say(`speed ${player.faster(-1)}`)),
    entry("Video", ".", "faster", () => say(`speed ${player.faster(1)}`)),
    entry("Video", "t", "go to a frame by its number", () => player.field.focus()),
    entry("Video", "l", "play the segment, or what is selected, in a loop", () => page.toggleLoop()),
    entry("Video", "j", "to the edge of a segment before", () => editing.jump(-1)),
    entry("Video", "k", "to the next edge of a segment", () => editing.jump(1)),
    entry("Video", ["+", "="], "zoom in, as the wheel does", () => timeline.zoom(1 / 2)),
    entry("Video", "-", "zoom out", () => timeline.zoom(2)),
    entry("Video", "0", "all frames", () => timeline.fit()),
    entry("Video", "h", "heat map of where the network looked", () => page.toggleHeat()),
    entry("Action", "i", "the action begins here", () => editing.setEdge("in", false)),
    entry("Action", "o", "the action ends here", () => editing.setEdge("out", false)),
    entry("Action", "Shift+i", "a further stretch begins here", () => editing.setEdge("in", true)),
    entry("Action", "Shift+o", "a further stretch ends here", () => editing.setEdge("out", true)),
    entry("Action", "g", "take the stretch that moves most", () => editing.takeMotion()),
    ...LEVELS.map((value, i) => ({
      ...entry("Level", String(i + 1), value === null ? "no opinion" : `level ${LEVEL_NAMES[i]}`, () => editing.paintKey(i)),
      release: () => editing.paintEnd(),
    })),
    entry("Level", ["Delete", "Backspace"], "no opinion", () => editing.paintKey(5)),
    entry("Level", "ArrowUp", "raise", () => editing.lift(STEP)),
    entry("Level", "ArrowDown", "lower", () => editing.lift(-STEP)),
    entry("Level", "Shift+ArrowLeft", "select to the left", () => editing.select(-1)),
    entry("Level", "Shift+ArrowRight", "select to the right", () => editing.select(1)),
    entry("Curve", "f", "fill frames without an opinion", () => editing.fill()),
    entry("Curve", "s", "smooth", () => editing.smooth()),
    entry("Curve", "v", "invert", () => editing.invert()),
    entry("Curve", "r", "back to the network’s", () => editing.reset()),
    entry("Curve", "c", "copy from the video before", () => editing.copyLast()),
    entry("Curve", ["z", "Ctrl+z"], "undo", () => editing.undo()),
    entry("Curve", ["y", "Ctrl+y", "Ctrl+Shift+z"], "redo", () => editing.redo()),
    once("Curve", "p", "past revisions, to restore one", () => page.showRevisions()),
    once("Video done", "Enter", "done, next video", () => page.finish("edited")),
    once("Video done", "x", "skip, with a reason (then 1, 2 or 3)", () => page.skip()),
    once("Video done", "q", "ask for a second opinion", () => page.finish("second_opinion")),
    once("Video done", "n", "later: next video, this one stays", () => page.next(true)),
    once("Video done", "e", "change a video again that is done", () => page.editAgain()),
    entry("Video done", "w", "write a note", () => page.noteField.focus()),
    entry("Page", "Escape", "leave the note or the selection; then the queue", () => page.escape()),
    entry("Page", "Ctrl+s", "save now", () => page.saver.flush()),
    entry("Page", "d", "light or dark", () => page.context.toggleTheme()),
    entry("Page", "?", "these keys", () => showKeys()),
  ];
}
