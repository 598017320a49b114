// The live page: reads the API once, then follows the WebSocket. No inline code, no libraries.

const TOKEN = "hcp-token";
const RECONNECT_MIN_MS = 500;
const RECONNECT_MAX_MS = 15000;
const REFRESH_MS = 60000;
const SWITCHES_MAX = 20;
const ENDED = new Set(["completed", "failed", "cancelled", "expired"]);
const ACTIVITIES = ["serve", "mine", "idle", "curtailed", "maintenance"];

const byId = (id) => document.getElementById(id);
const state = {
  token: sessionStorage.getItem(TOKEN),
  me: null,
  sites: new Map(),
  workloads: new Map(),
  switches: [],
  usage: null,
  socket: null,
  retryMs: RECONNECT_MIN_MS,
};

// --- small helpers ---------------------------------------------------------------------------

class SignedOut extends Error {}

async function call(path, options = {}) {
  const headers = { ...(options.headers ?? {}) };
  if (state.token) headers.Authorization = `Bearer ${state.token}`;
  const answer = await fetch(path, { ...options, headers });
  if (answer.status === 401 && state.token) throw new SignedOut();
  const body = await answer.json();
  if (!answer.ok) throw new Error(body.detail ?? answer.statusText);
  return body;
}

function element(name, text, attributes = {}) {
  const made = document.createElement(name);
  if (text !== undefined && text !== null) made.textContent = text;
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  return made;
}

function bar(parts, total) {
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

function watts(value) {
  if (value === null || value === undefined) return "unknown";
  const size = Math.abs(value);
  if (size >= 1e6) return `${(value / 1e6).toFixed(2)} MW`;
  return size >= 1e3 ? `${(value / 1e3).toFixed(1)} kW` : `${value.toFixed(0)} W`;
}

function money(value, unit = "") {
  if (value === null || value === undefined) return "unknown";
  const number = Number(value);
  const text = number.toLocaleString("en-US", { style: "currency", currency: "USD" });
  return text + unit;
}

function duration(ms) {
  const hours = ms / 3600000;
  return hours >= 1 ? `${hours.toFixed(1)} device-hours` : `${(ms / 60000).toFixed(1)} device-minutes`;
}

function clock(text) {
  return text ? new Date(text).toLocaleTimeString([], { hour12: false }) : "";
}

function took(us) {
  return us >= 1e6 ? `${(us / 1e6).toFixed(2)} s` : `${(us / 1e3).toFixed(1)} ms`;
}

// --- drawing ---------------------------------------------------------------------------------

let drawing = false;

function draw() {
  if (drawing) return;
  drawing = true;
  requestAnimationFrame(() => {
    drawing = false;
    drawFigures();
    drawSites();
    drawWorkloads();
    drawSwitches();
  });
}

function drawFigures() {
  const sites = [...state.sites.values()];
  const online = sites.filter((site) => site.online);
  const known = online.filter((site) => site.power_w !== null);
  const earning = online.filter((site) => site.earning_usd_per_h != null);
  const sum = (rows, field) => rows.reduce((total, row) => total + (row[field] ?? 0), 0);
  byId("f-sites").textContent = `${online.length} of ${sites.length}`;
  const offline = sites.filter((site) => !site.online).map((site) => site.site_id);
  byId("f-sites-note").textContent = offline.length ? `offline: ${offline.join(", ")}` : "";
  byId("f-power").textContent = known.length ? watts(sum(known, "power_w")) : "unknown";
  byId("f-power-note").textContent = `cap ${watts(sum(online, "power_cap_w"))}`;
  byId("f-earning").textContent = earning.length ? money(sum(earning, "earning_usd_per_h"), "/h") : "–";
  byId("f-earning-note").textContent = earning.length ? "as the sites report it" : "no report yet";
  if (state.usage) {
    byId("f-served").textContent = money(state.usage.total_usd);
    byId("f-served-note").textContent = duration(state.usage.active_ms);
  }
  const rows = [...state.workloads.values()];
  byId("f-running").textContent = rows.filter((row) => row.state === "running").length;
  byId("f-running-note").textContent = `${rows.filter((row) => row.state === "queued").length} queued`;
}

function siteCard(site) {
  const card = element("article");
  const title = element("h3", site.name || site.site_id);
  const kind = site.online ? "good" : "bad";
  title.append(element("span", site.online ? "online" : "offline", { class: "badge", "data-kind": kind }));
  const facts = element("dl");
  const name = site.online ? "Power" : "Power, last known";
  const rows = [[name, `${watts(site.power_w)} of ${watts(site.power_cap_w)}`]];
  if (site.price_usd_per_mwh != null) rows.push(["Energy price", money(site.price_usd_per_mwh, "/MWh")]);
  if (site.earning_usd_per_h != null) rows.push(["Earning", money(site.earning_usd_per_h, "/h")]);
  if (site.hashrate_ths != null) rows.push(["Hash rate", `${(site.hashrate_ths / 1000).toFixed(2)} PH/s`]);
  if (site.backlog_records) rows.push(["Waiting to be sent", `${site.backlog_records} records`]);
  for (const [term, value] of rows) facts.append(element("dt", term), element("dd", value));
  card.append(title, bar([["load", site.power_w ?? 0]], site.power_cap_w ?? 0), facts);
  for (const row of site.classes ?? []) card.append(classRow(row));
  return card;
}

function classRow(row) {
  const box = element("div", null, { class: "class" });
  const head = element("div");
  const parts = ACTIVITIES.map((name) => [name, row.by_activity[name] ?? 0]);
  const rest = row.total - parts.reduce((total, [, count]) => total + count, 0);
  const said = [...parts, ["other", rest]].filter(([, count]) => count > 0);
  head.append(element("strong", `${row.total.toLocaleString("en-US")} × ${row.device_class}`));
  head.append(element("span", said.map(([name, count]) => `${count} ${name}`).join(", ")));
  box.append(head, bar(said, row.total));
  return box;
}

function drawSites() {
  const sites = [...state.sites.values()].sort((a, b) => a.site_id.localeCompare(b.site_id));
  byId("sites").replaceChildren(...sites.map(siteCard));
  byId("sites-empty").hidden = sites.length > 0;
}

function stateBadge(row) {
  const kinds = { running: "good", failed: "bad", preempted: "warn", cancelling: "warn", queued: "warn" };
  return element("span", row.state, { class: "badge", "data-kind": kinds[row.state] ?? "", title: row.reason ?? "" });
}

function drawWorkloads() {
  const rows = [...state.workloads.values()].sort((a, b) => (a.workload_id < b.workload_id ? 1 : -1));
  const lines = rows.map((row) => {
    const line = element("tr");
    const badge = element("td");
    badge.append(stateBadge(row));
    const wish = row.device_class ? `${row.count} × ${row.device_class}` : "";
    const name = element("td", row.name ?? row.workload_id, { title: row.workload_id });
    if (row.endpoint_url) name.append(element("small", row.endpoint_url, { class: "endpoint" }));
    line.append(name, badge);
    line.append(element("td", wish), element("td", row.placed_site_id ?? row.site_id ?? ""));
    line.append(element("td", clock(row.updated_at)));
    return line;
  });
  byId("workloads").replaceChildren(...lines);
  byId("workloads-empty").hidden = lines.length > 0;
}

function drawSwitches() {
  const lines = state.switches.map((row) => {
    const line = element("tr");
    const lost = row.rolled_back + row.quarantined;
    const count = `${row.committed} × ${row.device_class}${lost ? ` (${lost} failed)` : ""}`;
    for (const text of [clock(row.at), row.site_id, count, `${row.from_activity} → ${row.to_activity}`, took(row.took_us), row.reason]) {
      line.append(element("td", text));
    }
    return line;
  });
  byId("switches").replaceChildren(...lines);
  byId("switches-empty").hidden = lines.length > 0;
}

// --- data ------------------------------------------------------------------------------------

const isStaff = () => state.me !== null && state.me.role !== "customer";

async function load() {
  const reads = [call("/api/v1/workloads?live_only=true&limit=100"), call("/api/v1/usage")];
  if (isStaff()) reads.push(call("/api/v1/resources"), call(`/api/v1/switches?limit=${SWITCHES_MAX}`));
  const [workloads, usage, resources, switches] = await Promise.all(reads);
  state.workloads = new Map(workloads.items.map((row) => [row.workload_id, row]));
  state.usage = usage;
  for (const site of resources?.sites ?? []) {
    state.sites.set(site.site_id, { ...state.sites.get(site.site_id), ...site });
  }
  state.switches = switches?.switches ?? [];
  draw();
}

async function heard(message) {
  if (message.topic === "site") {
    const before = state.sites.get(message.site_id) ?? {};
    // What a message leaves open (null, no classes) stays as it was; power alone may become unknown.
    const known = Object.entries(message).filter(([, value]) => value !== null && value.length !== 0);
    state.sites.set(message.site_id, { ...before, power_w: null, ...Object.fromEntries(known) });
  } else if (message.topic === "workload") {
    await heardWorkload(message);
  } else if (message.topic === "switch") {
    state.switches = [message, ...state.switches].slice(0, SWITCHES_MAX);
  } else if (message.topic === "resync") {
    await load();
  }
  draw();
}

async function heardWorkload(message) {
  const id = message.workload_id;
  if (ENDED.has(message.state)) {
    state.workloads.delete(id);
    return;
  }
  const known = state.workloads.get(id) ?? (await call(`/api/v1/workloads/${id}`));
  if (ENDED.has(known.state)) return;
  const news = { state: message.state, reason: message.reason, updated_at: message.at, endpoint_url: message.endpoint_url ?? null };
  if (message.site_id) news.placed_site_id = message.site_id;
  state.workloads.set(id, { ...known, ...news });
}

function link(kind, text) {
  byId("link").dataset.state = kind;
  byId("link").textContent = text;
}

function listen() {
  const scheme = location.protocol === "https:" ? "wss" : "ws";
  const socket = new WebSocket(`${scheme}://${location.host}/api/v1/live`, "hcp.live.v1");
  state.socket = socket;
  socket.onopen = () => socket.send(JSON.stringify({ token: state.token }));
  socket.onmessage = (event) => {
    const message = JSON.parse(event.data);
    if (message.topic === "hello") {
      state.retryMs = RECONNECT_MIN_MS;
      link("live", "live");
      // What happened before the hello is read, what happens after it is heard.
      load().catch(failed);
    } else {
      heard(message).catch(failed);
    }
  };
  socket.onclose = (event) => {
    if (state.socket !== socket) return;
    if (event.code === 4401) {
      signOut();
      return;
    }
    link("lost", "reconnecting");
    const wait = state.retryMs * (0.5 + Math.random() / 2);
    state.retryMs = Math.min(RECONNECT_MAX_MS, state.retryMs * 2);
    setTimeout(() => state.token && state.socket === socket && listen(), wait);
  };
}

function failed(error) {
  if (error instanceof SignedOut) signOut();
  else link("lost", error.message);
}

// --- signing in and out ----------------------------------------------------------------------

async function signIn(event) {
  event.preventDefault();
  byId("login-error").textContent = "";
  try {
    const body = JSON.stringify({ email: byId("email").value, password: byId("password").value });
    const headers = { "Content-Type": "application/json" };
    const answer = await call("/api/v1/auth/login", { method: "POST", body, headers });
    state.token = answer.access_token;
    sessionStorage.setItem(TOKEN, state.token);
    byId("password").value = "";
    await start();
  } catch (error) {
    byId("login-error").textContent = error.message;
  }
}

function signOut() {
  sessionStorage.removeItem(TOKEN);
  const socket = state.socket;
  Object.assign(state, { token: null, me: null, socket: null, usage: null, switches: [] });
  state.sites.clear();
  state.workloads.clear();
  socket?.close();
  link("off", "signed out");
  show();
}

function show() {
  const inside = state.me !== null;
  byId("login").hidden = inside;
  byId("board").hidden = !inside;
  byId("logout").hidden = !inside;
  byId("who").hidden = !inside;
  byId("who").textContent = inside ? `${state.me.email} · ${state.me.role}` : "";
  for (const part of document.querySelectorAll("[data-staff]")) part.hidden = !isStaff();
}

async function start() {
  state.me = await call("/api/v1/auth/me");
  show();
  link("lost", "connecting");
  listen();
}

byId("login").addEventListener("submit", signIn);
byId("logout").addEventListener("click", signOut);
setInterval(() => state.me && load().catch(failed), REFRESH_MS);
show();
if (state.token) start().catch(failed);
