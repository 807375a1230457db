// The images of the running request, or one from the history, with a caption and buttons for them.

import { draw, drawPatches, loaded } from "./picture.js";

const element = (id) => document.getElementById(id);

export class Stage {
  constructor() {
    this.frames = [];
    this.clear(1, null);
  }

  // Shows empty frames for n images of a size.
  clear(n, size) {
    this.size = size;
    this.frames = Array.from({ length: n }, (_, index) => {
      const canvas = document.createElement("canvas");
      [canvas.width, canvas.height] = size ? size.name.split("x") : [1, 1];
      canvas.setAttribute("role", "img");
      canvas.setAttribute("aria-label", `Image ${index + 1}, not started`);
      return canvas;
    });
    element("frames").replaceChildren(...this.frames);
    element("frames").style.setProperty("--columns", Math.ceil(Math.sqrt(n)));
    element("actions").hidden = true;
    this.progress(0, 1);
  }

  caption(text) {
    element("caption").textContent = text;
  }

  progress(done, all) {
    element("progress").value = done / all;
  }

  async preview(index, base64, patch) {
    const image = await loaded(base64);
    if (this.frames[index].dataset.whole) return;
    drawPatches(this.frames[index], image, patch, this.size);
    this.frames[index].setAttribute("aria-label", `Image ${index + 1}, patch ${patch} of ${this.size.patches}`);
  }

  // Shows a finished image in a frame.
  async show(entry, index = 0) {
    const canvas = this.frames[index];
    canvas.dataset.whole = "yes";
    draw(canvas, await loaded(entry.base64, entry.format));
    canvas.setAttribute("aria-label", `${entry.prompt}, seed ${entry.seed}`);
  }

  // Shows the buttons for finished images.
  offer(entries, reuse) {
    element("actions").hidden = false;
    element("download").textContent = entries.length > 1 ? `Download all ${entries.length}` : "Download";
    element("download").onclick = () => entries.forEach(download);
    element("reuse").onclick = reuse;
  }
}

function download(entry) {
  const link = document.createElement("a");
  link.href = `data:image/${entry.format};base64,${entry.base64}`;
  link.download = entry.name;
  link.click();
}
