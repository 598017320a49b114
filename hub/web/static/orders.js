// Grid orders: what was asked of a site, what becomes of it; give one, take one back.

import { ApiError, byId, button, call, cell, element, fill, minute, send, state, watts } from "./common.js";
import { confirmed, onSubmit, report } from "./forms.js";

const WORDS = { sent: "sent, not yet answered", waiting: "waiting for its time", forgotten: "never answered" };
const KINDS = { met: "good", holding: "good", missed: "bad", refused: "bad", forgotten: "bad", sent: "warn", shedding: "warn" };
const OVER = new Set(["met", "missed", "refused", "cancelled", "forgotten"]);

let shown = "";
let pendingId = null;

export function drawOrderSites() {
  const choice = byId("orders-site");
  const ids = [...state.sites.keys()].sort();
  const known = [...choice.options].map((option) => option.value);
  byId("orders-none").hidden = ids.length > 0;
  byId("orders-part").hidden = ids.length === 0;
  if (ids.join() === known.join()) return;
  const chosen = choice.value;
  choice.replaceChildren(...ids.map((id) => element("option", id, { value: id })));
  if (ids.includes(chosen)) choice.value = chosen;
  loadOrders().then(() => countOrders({ choose: !chosen })).catch(report);
}

export async function countOrders({ choose = false } = {}) {
  // Says at each site how many of its orders are not over: nobody looks through all sites for one.
  const options = [...byId("orders-site").options];
  const first = byId("orders-site").value;
  for (const option of options) {
    const answer = await call(path(option.value));
    const count = answer.orders.filter((row) => !OVER.has(row.status)).length;
    option.textContent = count ? `${option.value} (${count} not over)` : option.value;
    if (!choose || !count || byId("orders-site").value !== first) continue;
    byId("orders-site").value = option.value;
    choose = false;
    await loadOrders();
  }
}

const path = (site) => `/api/v1/sites/${encodeURIComponent(site)}/orders`;

export async function loadOrders() {
  const site = byId("orders-site").value;
  if (!site) return;
  const answer = await call(path(site));
  // Another site may have been chosen while this answer was under way.
  if (byId("orders-site").value === site) draw(site, answer.orders);
}

export function clearOrders() {
  shown = "";
  pendingId = null;
  byId("orders-site").replaceChildren();
  byId("orders").replaceChildren();
}

function draw(site, rows) {
  shown = site;
  byId("orders-loading").hidden = true;
  byId("orders-empty").hidden = rows.length > 0;
  fill("orders", rows.map(line));
}

function line(row) {
  const made = element("tr");
  const open = row.given_here && !row.cancelled_at && !row.ended_at && !OVER.has(row.status);
  const status = row.cancelled_at && !OVER.has(row.status) ? "being taken back" : (WORDS[row.status] ?? row.status);
  const badge = element("td");
  badge.append(element("span", status, { class: "badge", "data-kind": KINDS[row.status] ?? "" }));
  const note = row.why || over(row);
  if (note) badge.append(element("small", note, { class: "note" }));
  const act = element("td");
  if (open) act.append(button("Take back", `order-${row.order_id}`, () => takeBack(row).catch(report)));
  const by = row.given_here ? row.given_by : `the site itself${row.given_by ? `: ${row.given_by}` : ""}`;
  made.append(cell(row.order_id, by), badge, cell(megawatts(row.limit_mw)));
  made.append(cell(minute(row.due_at)), cell(minute(row.until_at)), cell(megawatts(row.load_mw, "–")), act);
  return made;
}

function over(row) {
  if (!row.over_s) return "";
  return `above the limit for ${Math.round(row.over_s)} s, at most ${megawatts(row.worst_mw)} over`;
}

const megawatts = (value, none = "unknown") =>
  value === null || value === undefined ? none : `${value.toLocaleString("en-US", { maximumFractionDigits: 3 })} MW`;

async function takeBack(row) {
  const question = `Take back order ${row.order_id} of ${row.site_id} (${megawatts(row.limit_mw)} until ${minute(row.until_at)})? The site may draw more as soon as it hears of it.`;
  if (!(await confirmed(question, "Take back"))) return;
  try {
    await call(`${path(row.site_id)}/${encodeURIComponent(row.order_id)}`, { method: "DELETE" });
    byId("orders-error").textContent = "";
  } catch (error) {
    if (!(error instanceof ApiError)) throw error;
    byId("orders-error").textContent = error.message;
  }
  await loadOrders();
}

function newId() {
  const bytes = crypto.getRandomValues(new Uint8Array(8));
  return `page-${[...bytes].map((one) => one.toString(16).padStart(2, "0")).join("")}`;
}

onSubmit(byId("order-form"), async () => {
  const form = byId("order-form");
  const site = byId("orders-site").value;
  const { limit_mw, due_at, until_at, order_id, reason } = form.elements;
  const limit = Number(limit_mw.value);
  const draws = state.sites.get(site)?.power_w;
  const now = draws === null || draws === undefined ? "" : ` It draws ${watts(draws)} now.`;
  const question = `Limit ${site} to ${megawatts(limit)} from ${minute(due_at.value)} until ${minute(until_at.value)}?${now}`;
  if (!(await confirmed(question, "Give the order"))) return;
  // Without an answer nobody knows whether it was taken: tried again, it is the same order.
  pendingId ??= newId();
  const body = {
    limit_mw: limit,
    due_at: new Date(due_at.value).toISOString(),
    until_at: new Date(until_at.value).toISOString(),
    order_id: order_id.value.trim() || pendingId,
    reason: reason.value.trim(),
  };
  try {
    await send("POST", path(site), body);
  } catch (error) {
    if (error instanceof ApiError) pendingId = null;
    throw error;
  }
  pendingId = null;
  form.reset();
  await loadOrders();
  await countOrders();
});

byId("orders-site").addEventListener("change", () => {
  if (byId("orders-site").value !== shown) {
    byId("orders").replaceChildren();
    byId("orders-empty").hidden = true;
    byId("orders-loading").hidden = false;
    byId("orders-error").textContent = "";
  }
  loadOrders().catch(report);
});
