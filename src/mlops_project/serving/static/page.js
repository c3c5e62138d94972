"use strict";
// The form is made of the OpenAPI document, which is made of the data contract.
const REASONS = 5;
const $ = id => document.getElementById(id);
const CERTAINTY = {
  good: "clear: good", bad: "clear: bad", "good bad": "unclear: both outcomes fit, for people to decide",
  "": "unclear: neither outcome fits, for people to decide",
};
let applicant;

function make(tag, attributes, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...children);
  return element;
}

function field(name, column) {
  const id = `field-${name}`, label = column.title || name;
  const hints = [column.description, column["x-codes"] ? "" : column["x-domain"]].filter(Boolean);
  const unit = column["x-unit"] ? ` (${column["x-unit"]})` : "";
  let input;
  if (column["x-codes"]) {
    // The text of an option is the meaning of its code; its value is the code as JSON, so that 1 and "1" stay apart.
    const options = column["x-codes"].map(({ code, meaning }) => make("option", { value: JSON.stringify(code) }, meaning));
    input = make("select", { id, name }, make("option", { value: "" }, "not known"), ...options);
  } else {
    // No limits here: what the contract does not allow is for the service to say.
    input = make("input", { id, name, type: "text", inputmode: "decimal", autocomplete: "off" });
  }
  input.setAttribute("aria-describedby", `${id}-hint`);
  return make("div", { class: "field" }, make("label", { for: id }, label + unit), input,
    make("p", { class: "hint", id: `${id}-hint` }, hints.join("; ")));
}

function values() {
  const found = {};
  for (const [name, column] of Object.entries(columns())) {
    const text = $(`field-${name}`).value.trim();
    if (text !== "") found[name] = column["x-codes"] ? JSON.parse(text) : text;
  }
  return found;
}

function columns() {
  return Object.fromEntries(Object.entries(applicant.properties).filter(([, c]) => !c["x-ignored"] && !c["x-reference"]));
}

function names(list) {
  return list.map(name => applicant.properties[name].title || name).join(", ");
}

function show(answer) {
  const found = answer.predictions[0];
  $("decision").textContent = found.decision === "approve" ? "Approve" : "Refuse";
  $("decision").className = found.decision;
  $("score").textContent = found.score.toFixed(0);
  $("default").textContent = `${(100 * found.probability_of_default).toFixed(1)} %`;
  $("certainty").textContent = CERTAINTY[found.conformal_set.join(" ")];
  const reasons = (found.reasons || []).map(reason => make("li", {}, reason.text));
  $("reasons").replaceChildren(...(reasons.length ? reasons : [make("li", {}, "nothing lowers it below the average")]));
  const ignored = [];
  if (found.treated_as_missing.length) {
    ignored.push(make("p", { id: "treated" }, `Not allowed by the contract, so treated as missing: ${names(found.treated_as_missing)}.`));
  }
  if (found.missing.length) ignored.push(make("p", { class: "small", id: "missing" }, `Not given: ${names(found.missing)}.`));
  $("ignored").replaceChildren(...ignored);
  $("version").textContent = `Request ${answer.request_id}, model ${answer.model_version.slice(0, 12)}`;
  $("result").hidden = false;
  $("result").focus();
}

function fail(message) {
  $("error").textContent = message;
  $("error").hidden = false;
}

async function score(event) {
  event.preventDefault();
  $("error").hidden = $("result").hidden = true;
  $("submit").disabled = true;
  const headers = { "Content-Type": "application/json" };
  const key = $("key").value.trim();
  if (key) headers.Authorization = `Bearer ${key}`;
  try {
    const response = await fetch(`/v1/predict?reasons=${REASONS}`, { method: "POST", headers, body: JSON.stringify(values()) });
    const content = await response.json();
    if (response.ok) show(content);
    else fail(response.status === 401 ? "The API key is missing or not valid." : content.detail || content.title);
  } catch (error) {
    fail(`The service does not answer (${error.message}).`);
  } finally {
    $("submit").disabled = false;
  }
}

function example() {
  for (const [name, value] of Object.entries(applicant.examples[0])) {
    $(`field-${name}`).value = applicant.properties[name]["x-codes"] ? JSON.stringify(value) : String(value);
  }
}

async function start() {
  try {
    const found = await (await fetch("/openapi.json")).json();
    applicant = found.components.schemas.Applicant;
    if (!applicant.properties) throw new Error("no model is loaded");
    $("fields").replaceChildren(...Object.entries(columns()).map(([name, column]) => field(name, column)));
    $("key-field").hidden = !found.components.securitySchemes;
    $("form").addEventListener("submit", score);
    $("form").addEventListener("reset", () => { $("error").hidden = $("result").hidden = true; });
    $("example").addEventListener("click", example);
    document.body.dataset.ready = "yes";
  } catch (error) {
    fail(`The form cannot be made (${error.message}).`);
  }
}

start();
