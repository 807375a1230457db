// What is painted on an image: a mask, white where it is drawn anew, at the image's own size.

export class Mask {
  // Calls changed() after each stroke; paints only while enabled() says so.
  constructor(canvas, { enabled, changed, brush }) {
    this.canvas = canvas;
    this.changed = changed;
    this.brush = brush; // radius in pixels of the image
    this.painted = document.createElement("canvas");
    this.cursor = null; // [row, column] of the patch that the keys are at
    let last = null;
    canvas.addEventListener("pointerdown", (event) => {
      if (!enabled()) return;
      canvas.setPointerCapture(event.pointerId);
      last = this.at(event);
      this.stroke(last, last);
    });
    canvas.addEventListener("pointermove", (event) => {
      if (!last) return;
      const next = this.at(event);
      this.stroke(last, next);
      last = next;
    });
    for (const name of ["pointerup", "pointercancel"]) canvas.addEventListener(name, () => { last = null; });
    canvas.addEventListener("keydown", (event) => { if (enabled()) this.key(event); });
  }

  // Starts a mask of an image, all black; size is the form's: its patches are what the keys paint.
  reset(image, size) {
    this.size = size;
    this.painted.width = image.naturalWidth;
    this.painted.height = image.naturalHeight;
    this.cursor = null;
    this.clear();
  }

  clear() {
    const context = this.painted.getContext("2d");
    context.fillStyle = "black";
    context.fillRect(0, 0, this.painted.width, this.painted.height);
    this.changed();
  }

  // Where a pointer is, in pixels of the image; the canvas is shown whole, centred in its box.
  at(event) {
    const box = this.canvas.getBoundingClientRect();
    const scale = Math.min(box.width / this.painted.width, box.height / this.painted.height);
    const left = (box.width - this.painted.width * scale) / 2;
    const top = (box.height - this.painted.height * scale) / 2;
    return [(event.clientX - box.left - left) / scale, (event.clientY - box.top - top) / scale];
  }

  stroke([x, y], [toX, toY]) {
    const context = this.painted.getContext("2d");
    context.strokeStyle = "white";
    context.lineCap = "round";
    context.lineWidth = 2 * this.brush();
    context.beginPath();
    context.moveTo(x, y);
    context.lineTo(toX, toY);
    context.stroke();
    this.changed();
  }

  // Arrow keys move over the patches; Space paints one, or wipes it.
  key(event) {
    const moves = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1], " ": [0, 0] };
    const move = moves[event.key];
    if (!move) return;
    event.preventDefault();
    const rows = this.size.rows_of_patches;
    const columns = this.size.patches / rows;
    const [row, column] = this.cursor ?? [0, 0];
    const within = (value, count) => Math.min(Math.max(value, 0), count - 1);
    this.cursor = this.cursor ? [within(row + move[0], rows), within(column + move[1], columns)] : [0, 0];
    if (event.key === " ") {
      const context = this.painted.getContext("2d");
      const [x, y, width, height] = this.patch();
      const white = context.getImageData(x + width / 2, y + height / 2, 1, 1).data[0] > 127;
      context.fillStyle = white ? "black" : "white";
      context.fillRect(x, y, width, height);
    }
    this.changed();
  }

  // The patch at the cursor: left, top, width, height in pixels.
  patch() {
    const rows = this.size.rows_of_patches;
    const [width, height] = [this.painted.width / (this.size.patches / rows), this.painted.height / rows];
    return [this.cursor[1] * width, this.cursor[0] * height, width, height];
  }

  // Draws the mask over the image on the canvas.
  show(ink) {
    const context = this.canvas.getContext("2d");
    const { width, height } = this.painted;
    const layer = document.createElement("canvas");
    [layer.width, layer.height] = [width, height];
    const tint = layer.getContext("2d");
    const values = this.painted.getContext("2d").getImageData(0, 0, width, height);
    for (let place = 0; place < values.data.length; place += 4) values.data[place + 3] = values.data[place] > 127 ? 255 : 0;
    tint.putImageData(values, 0, 0);
    tint.globalCompositeOperation = "source-in";
    tint.fillStyle = ink;
    tint.fillRect(0, 0, width, height);
    context.globalAlpha = 0.6;
    context.drawImage(layer, 0, 0);
    context.globalAlpha = 1;
    if (this.cursor) {
      context.strokeStyle = ink;
      context.strokeRect(...this.patch());
    }
  }

  get png() {
    return this.painted.toDataURL("image/png");
  }
}
