// What every part of the page shares: state, calls of the API, how values are written.

export const byId = (id) => document.getElementById(id);
export const state = {
  token: null,
  me: null,
  sites: new Map(),
  workloads: new Map(),
  moreWorkloads: false,
  switches: [],
  usage: null,
  socket: null,
  live: false,
  retryMs: 0,
};

// --- calls of the API ------------------------------------------------------------------------

export class SignedOut extends Error {}

export class ApiError extends Error {
  // fields: [{pointer, detail}], as the API names them.
  constructor(message, fields = []) {
    super(message);
    this.fields = fields;
  }
}

export async function call(path, options = {}) {
  const headers = { ...(options.headers ?? {}) };
  if (state.token) headers.Authorization = `Bearer ${state.token}`;
  let answer;
  try {
    answer = await fetch(path, { ...options, headers });
  } catch {
    throw new Error("the hub cannot be reached");
  }
  if (answer.status === 401 && state.token) throw new SignedOut();
  // A proxy before the hub may answer with a page of its own.
  const body = await answer.json().catch(() => null);
  if (body !== null && answer.ok) return body;
  if (body === null) throw new Error(`the hub gave no readable answer (${answer.status})`);
  throw new ApiError(body.detail ?? answer.statusText, body.errors ?? []);
}

export const send = (method, path, body) =>
  call(path, { method, body: JSON.stringify(body), headers: { "Content-Type": "application/json" } });

// --- elements --------------------------------------------------------------------------------

export function element(name, text, attributes = {}) {
  const made = document.createElement(name);
  if (text !== undefined && text !== null) made.textContent = text;
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  return made;
}

export function cell(text, small) {
  const made = element("td", text);
  if (small) made.append(element("small", small, { class: "note" }));
  return made;
}

export function button(text, key, act) {
  // The key finds the button again when its row was drawn anew while it had the focus.
  const made = element("button", text, { type: "button", "data-focus": key });
  made.addEventListener("click", act);
  return made;
}

export function fill(id, rows) {
  const focused = document.activeElement?.dataset.focus;
  byId(id).replaceChildren(...rows);
  if (focused && document.activeElement === document.body) {
    document.querySelector(`[data-focus="${CSS.escape(focused)}"]`)?.focus();
  }
}

export function bar(parts, total) {
  const space = "http://www.w3.org/2000/svg";
  const svg = document.createElementNS(space, "svg");
  svg.setAttribute("viewBox", "0 0 1000 10");
  svg.setAttribute("preserveAspectRatio", "none");
  let x = 0;
  for (const [kind, count] of [["track", null], ...parts]) {
    const rect = document.createElementNS(space, "rect");
    const width = count === null ? 1000 : total > 0 ? Math.min(1000, (count / total) * 1000) : 0;
    rect.setAttribute("class", kind);
    rect.setAttribute("x", count === null ? 0 : x);
    rect.setAttribute("width", width);
    rect.setAttribute("height", 10);
    if (count !== null) x += width;
    svg.append(rect);
  }
  return svg;
}

// --- values ----------------------------------------------------------------------------------

export function watts(value) {
  if (value === null || value === undefined) return "unknown";
  const size = Math.abs(value);
  if (size >= 1e6) return `${(value / 1e6).toFixed(2)} MW`;
  return size >= 1e3 ? `${(value / 1e3).toFixed(1)} kW` : `${value.toFixed(0)} W`;
}

export function money(value, unit = "") {
  if (value === null || value === undefined) return "unknown";
  const number = Number(value);
  if (number > 0 && number < 0.01) return `under $0.01${unit}`;
  const text = number.toLocaleString("en-US", { style: "currency", currency: "USD" });
  return text + unit;
}

export function duration(ms) {
  const hours = ms / 3600000;
  return hours >= 1 ? `${hours.toFixed(1)} device-hours` : `${(ms / 60000).toFixed(1)} device-minutes`;
}

export function when(text) {
  if (!text) return "";
  const at = new Date(text);
  const time = at.toLocaleTimeString([], { hour12: false });
  return at.toDateString() === new Date().toDateString() ? time : `${day(at)} ${time}`;
}

export function minute(text) {
  if (!text) return "";
  const at = new Date(text);
  return `${day(at)} ${at.toLocaleTimeString([], { hour12: false, hour: "2-digit", minute: "2-digit" })}`;
}

const two = (number) => String(number).padStart(2, "0");
const day = (at) => `${at.getFullYear()}-${two(at.getMonth() + 1)}-${two(at.getDate())}`;

export function took(us) {
  return us >= 1e6 ? `${(us / 1e6).toFixed(2)} s` : `${(us / 1e3).toFixed(1)} ms`;
}
