// The drop target: converts an image to tokens, shows their bits, and completes the image from its first rows.

import { post } from "./api.js";
import { drawBits, drawKept, loaded } from "./picture.js";

const element = (id) => document.getElementById(id);

export class Completion {
  constructor(form, complete) {
    this.form = form;
    element("file").addEventListener("change", (event) => this.take(event.target.files[0]));
    element("rows").addEventListener("input", () => this.show());
    element("go-on").addEventListener("click", () => complete(this.prefix));
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
      const answer = await post("/v1/tokens", { model: model.id, size: size.name, image: await base64(file) });
      this.image = await loaded(answer.image);
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
    this.show();
  }

  show() {
    if (!this.answer) return;
    const { grid, bits, grid_tokens: tokens } = this.answer;
    const size = this.form.size;
    const rows = Number(element("rows").value);
    element("rows-shown").textContent = `${rows} of ${size.rows_of_patches} rows`;
    drawKept(element("kept"), this.image, rows, size);
    const style = getComputedStyle(document.documentElement);
    const ink = { set: style.getPropertyValue("--accent"), clear: style.getPropertyValue("--plane") };
    drawBits(element("bits"), tokens, grid, bits, ink);
    element("bits-caption").textContent = `${bits} bits of ${grid[0]} × ${grid[1]} tokens`;
    element("kept").setAttribute("aria-label", `The image decoded from its tokens, ${rows} rows kept`);
    element("bits").setAttribute("aria-label", `${bits} bit planes`);
  }

  get prefix() {
    const size = this.form.size;
    const each = size.patches / size.rows_of_patches;
    return { tokens: this.answer.tokens, patches: Number(element("rows").value) * each };
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
