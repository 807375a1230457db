// The drop target: converts an image to tokens, shows their bits, and has it completed, redrawn in part, or varied.

import { post } from "./api.js";
import { Mask } from "./mask.js";
import { draw, drawBits, drawKept, loaded } from "./picture.js";

const STRENGTHS = { mask: 1, all: 0.7 }; // where each way starts

const element = (id) => document.getElementById(id);

export class Completion {
  constructor(form, complete) {
    this.form = form;
    element("file").addEventListener("change", (event) => this.take(event.target.files[0]));
    element("rows").addEventListener("input", () => this.show());
    element("strength").addEventListener("input", () => this.show());
    element("wipe").addEventListener("click", () => this.mask.clear());
    for (const choice of document.getElementsByName("how")) choice.addEventListener("change", () => this.choose());
    element("go-on").addEventListener("click", () => complete(this.change, this.description));
    this.mask = new Mask(element("kept"), {
      enabled: () => this.how === "mask",
      changed: () => this.show(),
      brush: () => (Number(element("brush").value) / 100) * element("kept").width,
    });
    document.addEventListener("paste", (event) => this.take(event.clipboardData.files[0]));
    document.addEventListener("size", () => this.forget());
    const drop = element("complete");
    for (const name of ["dragenter", "dragover"]) {
      drop.addEventListener(name, (event) => { event.preventDefault(); drop.classList.add("over"); });
    }
    for (const name of ["dragleave", "drop"]) drop.addEventListener(name, () => drop.classList.remove("over"));
    drop.addEventListener("drop", (event) => { event.preventDefault(); this.take(event.dataTransfer.files[0]); });
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => this.show());
    this.forget();
  }

  forget() {
    this.answer = null;
    element("tokens").hidden = true;
    element("complete").hidden = !this.form.model.tokenizes;
  }

  async take(file) {
    if (!file) return;
    this.form.clearErrors();
    const { model, size } = this.form;
    try {
      const source = await base64(file);
      const answer = await post("/v1/tokens", { model: model.id, size: size.name, image: source });
      this.image = await loaded(answer.image);
      this.source = source;
      this.answer = answer;
    } catch (error) {
      this.form.showError(error);
      return;
    } finally {
      element("file").value = "";
    }
    element("rows").max = size.rows_of_patches;
    element("rows").value = Math.ceil(size.rows_of_patches / 2);
    element("tokens").hidden = false;
    this.mask.reset(this.image, size);
    this.choose();
  }

  // Which part is drawn anew: "rows", "mask" or "all".
  get how() {
    return [...document.getElementsByName("how")].find((choice) => choice.checked).value;
  }

  choose() {
    for (const part of document.querySelectorAll("[data-how]")) part.hidden = !part.dataset.how.split(" ").includes(this.how);
    if (this.how in STRENGTHS) element("strength").value = STRENGTHS[this.how];
    element("kept").tabIndex = this.how === "mask" ? 0 : -1;
    element("go-on").textContent = { rows: "Complete it", mask: "Redraw it", all: "Vary it" }[this.how];
    this.show();
  }

  show() {
    if (!this.answer) return;
    const { grid, bits, grid_tokens: tokens } = this.answer;
    const size = this.form.size;
    const rows = Number(element("rows").value);
    element("rows-shown").textContent = `${rows} of ${size.rows_of_patches} rows`;
    const strength = Number(element("strength").value);
    element("strength-shown").textContent = strength < 0.5 ? `${strength}: the picture stays` : strength;
    const style = getComputedStyle(document.documentElement);
    const ink = { set: style.getPropertyValue("--accent"), clear: style.getPropertyValue("--plane") };
    if (this.how === "rows") drawKept(element("kept"), this.image, rows, size);
    else draw(element("kept"), this.image);
    if (this.how === "mask") this.mask.show(ink.set);
    drawBits(element("bits"), tokens, grid, bits, ink);
    element("bits-caption").textContent = `${bits} bits of ${grid[0]} × ${grid[1]} tokens`;
    const said = { rows: `${rows} rows kept`, mask: "paint what is drawn anew", all: "all of it is varied" };
    element("kept").setAttribute("aria-label", `The image decoded from its tokens, ${said[this.how]}`);
    element("bits").setAttribute("aria-label", `${bits} bit planes`);
  }

  // The fields of the job, and what its caption says.
  get change() {
    const size = this.form.size;
    const each = size.patches / size.rows_of_patches;
    if (this.how === "rows") return { prefix: { tokens: this.answer.tokens, patches: Number(element("rows").value) * each } };
    const edit = { image: this.source, strength: Number(element("strength").value) };
    if (this.how === "mask") Object.assign(edit, { mask: this.mask.png, candidates: Number(element("candidates").value) });
    return { edit };
  }

  get description() {
    const strength = element("strength").value;
    if (this.how === "rows") return `completed from ${this.change.prefix.patches} patches`;
    return this.how === "mask" ? `redrawn in part, strength ${strength}` : `varied, strength ${strength}`;
  }
}

async function base64(file) {
  const url = await new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.onload = () => resolve(reader.result);
    reader.onerror = () => reject(reader.error);
    reader.readAsDataURL(file);
  });
  return url.slice(url.indexOf(",") + 1);
}
