// Numbers as text. Missing numbers (NaN, null) read as an en dash.

export const missing = (value) => value === null || value === undefined || Number.isNaN(value);

export const count = (value) => (missing(value) ? "–" : Math.round(value).toLocaleString("en"));

export const fixed = (value, digits = 2) =>
  missing(value) ? "–" : value.toFixed(digits).replace(/^-(0\.?0*)$/, "$1").replace("-", "−");

export const percent = (share) => {
  if (missing(share)) return "–";
  const value = share * 100;
  return `${value >= 9.95 ? value.toFixed(0) : value >= 0.095 ? value.toFixed(1) : value > 0 ? "<0.1" : "0"} %`;
};

export const millions = (value) => {
  for (const [size, name] of [[1e9, "B"], [1e6, "M"], [1e3, "k"]]) {
    if (value >= size) return `${(value / size).toPrecision(value / size >= 100 ? 3 : 2)} ${name}`;
  }
  return count(value);
};

export const plural = (number, one, many = `${one}s`) => `${count(number)} ${number === 1 ? one : many}`;
