// Colour carries data only. Ten hues that colour-blind readers can tell apart (by lightness too) for the ten most
// used quanta, grey for the rest; one ramp, even in lightness, for values. Each once for a light and once for a dark page.

const LIGHT = ["#3b5bb5", "#d0661a", "#2f8f4e", "#b23a8e", "#c99a00", "#3aa3c9", "#7a4b2a", "#6b4fc0", "#c23b3b", "#6e9b1f"];
const DARK = ["#7f9bf0", "#f08f4a", "#5cc27f", "#e279c0", "#e6c04a", "#6fcaea", "#c0906a", "#a893f5", "#f07878", "#a5cf5a"];
const RAMP = [[0, 32, 76], [58, 72, 108], [110, 110, 116], [154, 146, 112], [205, 186, 91], [255, 233, 69]];

const query = matchMedia("(prefers-color-scheme: dark)");
export const dark = () => query.matches;
export const onTheme = (listener) => query.addEventListener("change", listener);

export const greyPoint = () => (dark() ? "#6f737a" : "#a9abaf");
export const accent = () => (dark() ? "#7cc0ff" : "#0a58a8");

export const ofRank = (rank) => (rank >= 0 && rank < 10 ? (dark() ? DARK : LIGHT)[rank] : greyPoint());

// share: 0 to 1. The end of the ramp that would vanish on the page's own lightness is left out.
export function ramp(share) {
  const inside = Math.min(1, Math.max(0, share));
  const place = (dark() ? 0.25 + 0.75 * inside : 0.85 * inside) * (RAMP.length - 1);
  const step = Math.min(RAMP.length - 2, Math.floor(place));
  const mix = RAMP[step].map((low, i) => Math.round(low + (RAMP[step + 1][i] - low) * (place - step)));
  return `rgb(${mix.join(" ")})`;
}
