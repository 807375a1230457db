// The form: the options of the server, the chosen settings, and errors at the field they are about.

const CHIPS = 24; // up to this number of classes are shown as buttons, more as a text field with suggestions
const element = (id) => document.getElementById(id);

export class Form {
  constructor(capabilities) {
    this.capabilities = capabilities;
    for (const model of capabilities.models) element("model").append(new Option(model.id));
    element("model-field").hidden = capabilities.models.length < 2;
    element("model").addEventListener("change", () => this.showModel());
    element("size").addEventListener("change", () => this.announceSize());
    element("n").max = capabilities.max_n;
    element("steps").max = element("steps-range").max = capabilities.max_num_inference_steps;
    for (const name of ["steps", "guidance"]) tie(element(name), element(`${name}-range`));
    element("format").replaceChildren(...capabilities.output_formats.map((name) => new Option(name.toUpperCase(), name)));
    element("published").addEventListener("change", () => this.setDefaults());
    for (const name of ["steps", "steps-range", "guidance", "guidance-range", "sampler"]) {
      element(name).addEventListener("input", () => { element("published").checked = false; });
    }
    this.showModel();
  }

  get model() {
    return this.capabilities.models.find((model) => model.id === element("model").value);
  }

  showModel() {
    const model = this.model;
    const names = model.classes.length ? model.classes : Array.from({ length: model.num_classes }, (_, id) => String(id));
    this.chips = names.length > 0 && names.length <= CHIPS; // a text-to-image model has no classes
    element("prompt-label").textContent = names.length ? "Class" : "Prompt";
    element("negative-field").hidden = !model.negative_prompt;
    element("chips-field").hidden = !this.chips;
    element("prompt-field").hidden = this.chips;
    element("chips").replaceChildren(...(this.chips ? names.map(chip) : []));
    element("classes").replaceChildren(...(this.chips ? [] : names.map((name) => new Option(name))));
    element("prompt").value = this.chips ? "" : names[0] ?? "";
    element("size").replaceChildren(...model.sizes.map(({ name }) => new Option(name.replace("x", "\u00a0×\u00a0"), name)));
    element("size").disabled = model.sizes.length === 1;
    element("published").checked = false;
    element("published-shown").textContent = settings(model.published);
    element("published-field").hidden = settings(model.published) === settings(model);
    this.setDefaults();
    this.announceSize();
  }

  // Sets what the model is best at, or what its checkpoint was published with.
  setDefaults() {
    const { num_inference_steps: steps, guidance_scale: guidance, sampler } =
      element("published").checked ? this.model.published : this.model;
    this.set({ steps, guidance, sampler });
  }

  announceSize() {
    document.dispatchEvent(new CustomEvent("size"));
  }

  // The chosen size: { name, grid, patches, rows_of_patches }.
  get size() {
    return this.model.sizes.find(({ name }) => name === element("size").value);
  }

  get prompt() {
    return this.chips ? element("chips").querySelector("input:checked").value : element("prompt").value.trim();
  }

  // The body of a request. Text that is not a number is sent unchanged, and the server says what is wrong with it.
  body() {
    const number = (id) => (Number.isNaN(Number(element(id).value)) ? element(id).value : Number(element(id).value));
    const body = {
      model: this.model.id,
      prompt: this.prompt,
      size: this.size.name,
      n: number("n"),
      num_inference_steps: number("steps"),
      guidance_scale: number("guidance"),
      sampler: element("sampler").value,
      output_format: element("format").value,
    };
    if (element("published").checked) body.published = true; // with the schedule of its guidance
    const negative = element("negative").value.trim();
    if (this.model.negative_prompt && negative) body.negative_prompt = negative;
    if (element("seed").value.trim()) body.seed = number("seed");
    return body;
  }

  set({ prompt, steps, guidance, sampler, published, format, seed, n }) {
    if (prompt !== undefined && this.chips) {
      for (const input of element("chips").querySelectorAll("input")) input.checked = input.value === prompt;
    } else if (prompt !== undefined) element("prompt").value = prompt;
    if (steps !== undefined) element("steps").value = element("steps-range").value = steps;
    if (guidance !== undefined) element("guidance").value = element("guidance-range").value = guidance;
    if (sampler !== undefined) element("sampler").value = sampler;
    if (published !== undefined) element("published").checked = published;
    if (format !== undefined) element("format").value = format;
    if (seed !== undefined) element("seed").value = seed;
    if (n !== undefined) element("n").value = n;
  }

  clearErrors() {
    for (const place of document.querySelectorAll(".error")) place.hidden = true;
    for (const input of document.querySelectorAll("[aria-invalid]")) input.removeAttribute("aria-invalid");
  }

  // Shows an error at its field, or above the images if it is about none.
  showError(error) {
    const field = error.param
      ? [...document.querySelectorAll(`[data-param~="${CSS.escape(error.param)}"]`)].find((found) => !found.hidden)
      : null;
    const place = field?.querySelector(".error") ?? element("notice");
    place.textContent = inWords(error, field);
    place.hidden = false;
    const input = field?.querySelector("input:not([type=range]), select");
    if (!input) return place.scrollIntoView({ block: "nearest" });
    place.id ||= `error-${error.param}`;
    input.setAttribute("aria-invalid", "true");
    input.setAttribute("aria-describedby", place.id);
    input.focus();
  }
}

// The message with the field as the page calls it, in place of its name in the API.
function inWords(error, field) {
  const label = field?.querySelector("label, legend")?.firstChild.textContent.trim();
  return label && error.message.startsWith(`${error.param} `) ? label + error.message.slice(error.param.length) : error.message;
}

function settings({ num_inference_steps: steps, guidance_scale: guidance, guidance_schedule: schedule, sampler }) {
  return `${steps} steps, guidance ${guidance}${schedule === "constant" ? "" : `, ${schedule}`}, ${sampler}`;
}

function chip(name, index) {
  const label = document.createElement("label");
  const input = Object.assign(document.createElement("input"), { type: "radio", name: "class", value: name, checked: !index });
  const text = Object.assign(document.createElement("span"), { textContent: name });
  label.append(input, text);
  return label;
}

function tie(number, range) {
  range.addEventListener("input", () => { number.value = range.value; });
  number.addEventListener("input", () => { range.value = number.value; });
}
