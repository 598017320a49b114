// Forms and dialogs: errors beside their fields, a question before what cannot be undone.

import { SignedOut, byId } from "./common.js";

const fieldOf = (form, name) => form.querySelector(`[name="${CSS.escape(name)}"]`);

export function showErrors(form, fields, rest = "") {
  for (const field of form.querySelectorAll("[name]")) {
    const said = fields.find((one) => one.pointer.split("/")[1] === field.name);
    field.setAttribute("aria-invalid", said ? "true" : "false");
    byId(field.getAttribute("aria-describedby")).textContent = said?.detail ?? "";
  }
  const strays = fields.filter((one) => !fieldOf(form, one.pointer.split("/")[1] ?? ""));
  form.querySelector("[role=alert]").textContent = strays.length
    ? strays.map((one) => `${one.pointer}: ${one.detail}`).join("; ")
    : fields.length ? "" : rest;
  form.querySelector("[aria-invalid=true]")?.focus();
}

export function onSubmit(form, act) {
  // One submission at a time; what the API says is wrong stands beside the field that it names.
  const go = form.querySelector("[type=submit]");
  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    const missing = [...form.querySelectorAll("[required]")].filter((field) => !field.value.trim());
    showErrors(form, missing.map((field) => ({ pointer: `/${field.name}`, detail: complaint(field) })));
    if (missing.length || go.disabled) return;
    go.disabled = true;
    try {
      await act();
    } catch (error) {
      if (error instanceof SignedOut) report(error);
      else showErrors(form, error.fields ?? [], error.message);
    } finally {
      go.disabled = false;
    }
  });
}

const complaint = (field) => (field.validity.badInput ? "cannot be read" : "is needed");

export function report(error) {
  document.dispatchEvent(new CustomEvent("hcp-failed", { detail: error }));
}

export function confirmed(question, verb) {
  // Resolves to whether the person said yes; Escape and the other button say no.
  const dialog = byId("confirm");
  byId("confirm-text").textContent = question;
  byId("confirm-yes").textContent = verb;
  dialog.returnValue = "";
  dialog.showModal();
  return new Promise((resolve) => {
    dialog.addEventListener("close", () => resolve(dialog.returnValue === "yes"), { once: true });
  });
}

export function showSecret(title, text, secret) {
  byId("secret-title").textContent = title;
  byId("secret-text").textContent = text;
  byId("secret-key").value = secret;
  byId("secret-copied").textContent = "";
  byId("secret").showModal();
  byId("secret-key").select();
}

export function clearForms() {
  for (const dialog of document.querySelectorAll("dialog")) dialog.close();
  for (const form of document.querySelectorAll("main form")) form.reset();
}

async function copy() {
  const key = byId("secret-key");
  key.select();
  try {
    await navigator.clipboard.writeText(key.value);
    byId("secret-copied").textContent = "Copied.";
  } catch {
    // Browsers give no clipboard to pages without TLS, nor where the person refused.
    byId("secret-copied").textContent = "The browser lets no page copy here: the key is selected, press Ctrl+C.";
  }
}

byId("confirm-yes").addEventListener("click", () => byId("confirm").close("yes"));
byId("confirm-no").addEventListener("click", () => byId("confirm").close("no"));
byId("secret-copy").addEventListener("click", copy);
byId("secret-done").addEventListener("click", () => byId("secret").close());
// A slip of the finger must not lose what is shown once.
byId("secret").addEventListener("cancel", (event) => event.preventDefault());
byId("secret").addEventListener("close", () => { byId("secret-key").value = ""; });
