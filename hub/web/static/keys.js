// API keys of the signed-in user, and the keys of a customer's served models.

import { byId, button, call, cell, element, fill, minute, send, state } from "./common.js";
import { confirmed, onSubmit, report, showErrors, showSecret } from "./forms.js";

const KINDS = { active: "good", expired: "", revoked: "" };
const ONCE = "It is shown this once. Keep it where your program reads its secrets.";

// --- of the user -----------------------------------------------------------------------------

export async function loadKeys() {
  const answer = await call("/api/v1/api-keys");
  drawKeys(answer.items);
}

export function clearKeys() {
  byId("keys").replaceChildren();
  byId("keys-empty").hidden = true;
}

function drawKeys(rows) {
  fill("keys", rows.map(keyLine));
  byId("keys-empty").hidden = rows.length > 0;
}

function keyLine(row) {
  const line = element("tr");
  const badge = element("td");
  badge.append(element("span", row.state, { class: "badge", "data-kind": KINDS[row.state] ?? "" }));
  if (row.revoked_at) badge.append(element("small", minute(row.revoked_at), { class: "note" }));
  const act = element("td");
  if (row.state === "active") act.append(button("Revoke", `key-${row.key_id}`, () => revoke(row).catch(report)));
  const used = row.last_used_at ? minute(row.last_used_at) : "never";
  line.append(cell(row.name, `${row.prefix}…`), badge, cell(minute(row.created_at)), cell(used), cell(minute(row.expires_at)), act);
  return line;
}

async function revoke(row) {
  const question = `Revoke the key “${row.name}” (${row.prefix}…)? Programs that use it are refused from now on. This cannot be undone.`;
  if (!(await confirmed(question, "Revoke"))) return;
  await call(`/api/v1/api-keys/${row.key_id}`, { method: "DELETE" });
  await loadKeys();
}

onSubmit(byId("key-form"), async () => {
  const form = byId("key-form");
  const body = { name: form.elements.name.value.trim(), expires_in_days: Number(form.elements.expires_in_days.value) };
  const made = await send("POST", "/api/v1/api-keys", body);
  form.reset();
  showSecret(`The key “${made.key.name}”`, ONCE, made.api_key);
  await loadKeys();
});

// --- of a served model -----------------------------------------------------------------------

let replacing = null;

export function workloadKey(row) {
  const made = (row.keys ?? []).length > 0;
  const before = (row.keys ?? [])[1]?.until;
  const old = before && new Date(before) > new Date() ? `the one before until ${minute(before)}` : "";
  const box = cell(made ? "made" : "none: nobody is let in", old);
  box.append(" ", button(made ? "Replace" : "Make", `model-${row.workload_id}`, () => askModelKey(row, made)));
  return box;
}

function askModelKey(row, made) {
  replacing = row.workload_id;
  const form = byId("model-form");
  form.reset();
  showErrors(form, []);
  byId("model-title").textContent = `${made ? "Replace" : "Make"} the key of ${row.name}`;
  byId("model-grace").hidden = !made;
  byId("model").showModal();
}

onSubmit(byId("model-form"), async () => {
  const id = replacing;
  const made = await send("POST", `/api/v1/workloads/${id}/key`, { grace_s: Number(byId("model-form").elements.grace_s.value) });
  byId("model").close();
  const row = state.workloads.get(id);
  const keys = [{ sha256: made.key_sha256, until: null }];
  if (made.previous_until) keys.push({ sha256: "", until: made.previous_until });
  if (row) state.workloads.set(id, { ...row, keys });
  document.dispatchEvent(new CustomEvent("hcp-draw"));
  showSecret(`The key of ${row?.name ?? id}`, `${ONCE} Sites take it within seconds.`, made.api_key);
});
byId("model-no").addEventListener("click", () => byId("model").close());
