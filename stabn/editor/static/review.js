// The lead's review: one video after the other whose curves are done and that nobody has accepted yet.

import { get } from "./api.js";
import { comparePage } from "./compare.js";
import { h } from "./dom.js";
import { bind, showKeys } from "./keys.js";

const PASSED = "stabn/passed-review";

/** Return the page of the next video that waits; `asked` is a query that narrows them down: person, action. */
export async function reviewPage(context, asked = "") {
  const passed = JSON.parse(sessionStorage.getItem(PASSED) ?? "[]");
  const query = new URLSearchParams({ ...Object.fromEntries(new URLSearchParams(asked)), passed: passed.join(",") });
  const { video_id: id, waiting } = await get(`api/lead/review?${query}`);
  if (!id) return nothing(context);
  const go = (kept) => {
    sessionStorage.setItem(PASSED, JSON.stringify(kept.slice(-200)));
    context.reopen();
  };
  const others = passed.filter((other) => other !== id);
  return comparePage(context, id, { waiting, after: () => go(others), later: () => go([...others, id]) });
}

function nothing(context) {
  bind([
    { group: "Page", keys: ["d"], label: "light or dark", run: () => context.toggleTheme() },
    { group: "Page", keys: ["?"], label: "these keys", run: () => showKeys() },
  ]);
  const element = h("section", { class: "page message" }, h("h1", {}, "Nothing waits for review"),
    h("p", {}, "A video comes here when all that was begun of it is done."), h("a", { href: "#/overview" }, "To the overview"));
  return { element, title: "Review" };
}
