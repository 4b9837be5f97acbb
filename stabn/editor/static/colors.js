// The palettes of the figures: viridis for temporal, turbo for spatial attention; polynomials fitted to both.

const VIRIDIS = [
  [0.2777, 0.0054, 0.334], [0.105, 1.4046, 1.3845], [-0.3308, 0.2148, 0.0951], [-4.6342, -5.7991, -19.3324],
  [6.2282, 14.1799, 56.6905], [4.7763, -13.7451, -65.3530], [-5.4354, 4.6458, 26.3124],
];
const TURBO = [
  [0.1357, 0.0914, 0.1067], [4.6154, 2.194, 12.6419], [-42.6603, 4.8421, -60.582], [132.1311, -14.185, 110.3628],
  [-152.9424, 4.2773, -89.9031], [59.2864, 2.8296, 27.3482],
];

const evaluate = (terms, x, channel) => {
  let value = 0;
  for (let i = terms.length - 1; i >= 0; i -= 1) value = value * x + terms[i][channel];
  return Math.round(255 * Math.min(1, Math.max(0, value)));
};

const table = (terms) => Array.from({ length: 256 }, (_, i) => [0, 1, 2].map((channel) => evaluate(terms, i / 255, channel)));

const viridisTable = table(VIRIDIS).map(([r, g, b]) => `rgb(${r} ${g} ${b})`);
export const turbo = table(TURBO);

/** Return the CSS colour of a temporal attention. */
export const viridis = (value) => viridisTable[Math.round(255 * value)];

/** Return a colour of the present theme. */
export const themed = (name) => getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();
