// The line that says that a round is finished, what that started, and how it is now.

import { get } from "./api.js";
import { clock, h } from "./dom.js";

const LOOK_SECONDS = 10;
const OVER = new Set(["SUCCEEDED", "FAILED", "CANCELED", "SKIPPED"]);
const STATES = {
  PENDING: "waits for room", RUNNING: "is running", SUCCEEDED: "has succeeded", FAILED: "has failed", CANCELED: "was cancelled",
  CANCELING: "is being cancelled", PAUSED: "is paused", SKIPPED: "was skipped",
};

/** Return what is said of what finishing a round started. */
export function runWords({ target, started, link, state }) {
  if (target === "kfp" && started) {
    return ["The fine-tuning run ", link ? h("a", { href: link, target: "_blank", rel: "noopener" }, started) : started,
      ` ${state ? STATES[state] ?? `is ${state.toLowerCase()}` : "was started"}. `];
  }
  if (target === "webhook") return [`The webhook was told (delivery ${started}). `];
  return ["Nothing further was to be started. "];
}

const words = (finish) => [h("strong", {}, `${finish.by} finished this round, ${clock(finish.at)}. `), ...runWords(finish)];

/** Return the line, which follows the run while it is shown; null: the round is open. */
export function finishedLine({ finished }, ...more) {
  if (!finished) return null;
  const said = h("span", { role: "status" }, words(finished));
  const line = h("p", { class: finished.state === "FAILED" ? "banner warn" : "banner", "data-finished": finished.state }, said, more);
  if (finished.target !== "kfp" || !finished.started || OVER.has(finished.state)) return line;
  let former = finished.state;
  const timer = setInterval(async () => {
    if (!line.isConnected) return clearInterval(timer);
    let now;
    try { ({ finished: now } = await get("api/round")); } catch { return; }
    if (!now || now.state === former) return;
    former = now.state;
    said.replaceChildren(...words(now));
    line.dataset.finished = now.state;
    line.classList.toggle("warn", now.state === "FAILED");
    if (OVER.has(now.state)) clearInterval(timer);
  }, 1000 * LOOK_SECONDS);
  return line;
}
