// The live page: reads the API once, then follows the WebSocket. No inline code, no libraries.

import { SignedOut, bar, byId, call, cell, duration, element, fill, money, send, state, took, watts, when } from "./common.js";
import { clearForms } from "./forms.js";
import { clearKeys, loadKeys, workloadKey } from "./keys.js";
import { clearOrders, countOrders, drawOrderSites, loadOrders } from "./orders.js";

const TOKEN = "hcp-token";
const RECONNECT_MIN_MS = 500;
const RECONNECT_MAX_MS = 15000;
const REFRESH_MS = 60000;
const ORDERS_MS = 5000;
const SWITCHES_MAX = 20;
const WORKLOADS_MAX = 100;
const ENDED = new Set(["completed", "failed", "cancelled", "expired"]);
const ACTIVITIES = ["serve", "mine", "idle", "curtailed", "maintenance"];

state.token = sessionStorage.getItem(TOKEN);
state.retryMs = RECONNECT_MIN_MS;

// --- drawing ---------------------------------------------------------------------------------

let drawing = false;

function draw() {
  if (drawing) return;
  drawing = true;
  requestAnimationFrame(() => {
    drawing = false;
    drawFigures();
    drawSites();
    drawOrderSites();
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
  const cap = site.power_cap_w == null ? "" : ` of ${watts(site.power_cap_w)}`;
  const rows = [[name, `${watts(site.power_w)}${cap}`]];
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
  return element("span", row.state, { class: "badge", "data-kind": kinds[row.state] ?? "" });
}

function drawWorkloads() {
  const rows = [...state.workloads.values()].sort((a, b) => (a.workload_id < b.workload_id ? 1 : -1));
  const lines = rows.map((row) => {
    const line = element("tr");
    const badge = element("td");
    badge.append(stateBadge(row));
    if (row.reason) badge.append(element("small", row.reason.replaceAll("_", " "), { class: "note" }));
    const wish = row.device_class ? `${row.count} × ${row.device_class}` : "";
    const name = element("td", row.name ?? row.workload_id, { title: row.workload_id });
    if (row.endpoint_url) name.append(element("small", row.endpoint_url, { class: "endpoint" }));
    line.append(name, badge, cell(wish), cell(row.placed_site_id ?? row.site_id ?? ""));
    line.append(cell(when(row.updated_at)));
    if (!isStaff()) line.append(workloadKey(row));
    return line;
  });
  fill("workloads", lines);
  byId("workloads-more").hidden = !state.moreWorkloads;
  byId("workloads-empty").hidden = lines.length > 0;
}

function drawSwitches() {
  const lines = state.switches.map((row) => {
    const line = element("tr");
    const lost = row.rolled_back + row.quarantined;
    const count = `${row.committed} × ${row.device_class}${lost ? ` (${lost} failed)` : ""}`;
    for (const text of [when(row.at), row.site_id, count, `${row.from_activity} → ${row.to_activity}`, took(row.took_us), row.reason]) {
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
  const reads = [call(`/api/v1/workloads?live_only=true&limit=${WORKLOADS_MAX}`), call("/api/v1/usage")];
  if (isStaff()) reads.push(call("/api/v1/resources"), call(`/api/v1/switches?limit=${SWITCHES_MAX}`));
  const [workloads, usage, resources, switches] = await Promise.all(reads);
  state.workloads = new Map(workloads.items.map((row) => [row.workload_id, row]));
  state.moreWorkloads = workloads.next !== null;
  state.usage = usage;
  for (const site of resources?.sites ?? []) {
    state.sites.set(site.site_id, { ...state.sites.get(site.site_id), ...site });
  }
  state.switches = switches?.switches ?? [];
  // A read that failed before has been made up for.
  if (state.live) link("live", "live");
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
      state.live = true;
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
      signOut("Your session has ended. Sign in again.");
      return;
    }
    state.live = false;
    link("lost", "reconnecting");
    const wait = state.retryMs * (0.5 + Math.random() / 2);
    state.retryMs = Math.min(RECONNECT_MAX_MS, state.retryMs * 2);
    setTimeout(() => state.token && state.socket === socket && listen(), wait);
  };
}

function failed(error) {
  if (error instanceof SignedOut) signOut("Your session has ended. Sign in again.");
  else link("lost", error.message);
}

// --- signing in and out ----------------------------------------------------------------------

async function signIn(event) {
  event.preventDefault();
  byId("login-error").textContent = "";
  try {
    const body = { email: byId("email").value, password: byId("password").value };
    const answer = await send("POST", "/api/v1/auth/login", body);
    state.token = answer.access_token;
    sessionStorage.setItem(TOKEN, state.token);
    byId("password").value = "";
    await start();
  } catch (error) {
    byId("login-error").textContent = error.message;
  }
}

function signOut(why = "") {
  sessionStorage.removeItem(TOKEN);
  const socket = state.socket;
  Object.assign(state, { token: null, me: null, socket: null, live: false, usage: null, switches: [] });
  state.sites.clear();
  state.workloads.clear();
  clearForms();
  clearKeys();
  clearOrders();
  byId("login-error").textContent = why;
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
  for (const part of document.querySelectorAll("[data-customer]")) part.hidden = isStaff();
}

async function start() {
  state.me = await call("/api/v1/auth/me");
  show();
  link("lost", "connecting");
  listen();
  await loadKeys();
}

function refreshOrders() {
  if (isStaff() && !document.hidden) loadOrders().catch(failed);
}

document.addEventListener("hcp-failed", (event) => failed(event.detail));
document.addEventListener("hcp-draw", draw);
document.addEventListener("visibilitychange", refreshOrders);
byId("zone").textContent = `Times are of ${Intl.DateTimeFormat().resolvedOptions().timeZone}`;
byId("login").addEventListener("submit", signIn);
byId("logout").addEventListener("click", () => signOut());
setInterval(refreshOrders, ORDERS_MS);
setInterval(() => state.me && load().catch(failed), REFRESH_MS);
setInterval(() => isStaff() && !document.hidden && countOrders().catch(failed), REFRESH_MS);
show();
if (state.token) start().catch(failed);
