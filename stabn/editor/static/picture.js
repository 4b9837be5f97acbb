// Small pictures of curves, for dialogs and tables.

import { s } from "./dom.js";

/** Return an SVG of curves [{curve, color}] with values from 0 to 1 upwards; gaps where there is no opinion. */
export function curvePicture(curves, { width = 320, height = 84 } = {}) {
  const inset = 4;
  return s("svg", { viewBox: `0 0 ${width} ${height}`, class: "curve-picture", role: "img", "aria-label": "Curves over the frames" },
    s("line", { x1: 0, x2: width, y1: height - inset, y2: height - inset, class: "axis" }),
    curves.map(({ curve, color }) => {
      let open = false;
      const steps = curve.map((value, frame) => {
        if (value === null) { open = false; return ""; }
        const x = curve.length === 1 ? width / 2 : (frame * width) / (curve.length - 1);
        const step = `${open ? "L" : "M"}${x.toFixed(1)} ${(inset + (1 - value) * (height - 2 * inset)).toFixed(1)}`;
        open = true;
        return step;
      });
      return s("path", { d: steps.join(""), class: `stroke-${color}` });
    }));
}
