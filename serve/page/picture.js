// Draws images on canvases: whole, or up to a patch or a row, with the rest clear or faint.

export async function loaded(base64, format = "png") {
  const image = new Image();
  image.src = `data:image/${format};base64,${base64}`;
  await image.decode();
  return image;
}

export const SMALL = 128; // pixels across; images up to this width are enlarged without smoothing

export function draw(canvas, image) {
  canvas.classList.toggle("small", image.naturalWidth <= SMALL);
  canvas.width = image.naturalWidth;
  canvas.height = image.naturalHeight;
  canvas.getContext("2d").drawImage(image, 0, 0);
}

// Patches are square and made row by row.
export function drawPatches(canvas, image, patch, size) {
  draw(canvas, image);
  const rows = size.rows_of_patches;
  const columns = size.patches / rows;
  const [width, height] = [canvas.width / columns, canvas.height / rows];
  const context = canvas.getContext("2d");
  for (let missing = patch; missing < size.patches; missing += 1) {
    context.clearRect((missing % columns) * width, Math.floor(missing / columns) * height, width, height);
  }
}

// Draws the first rows of patches at full strength and the others faintly.
export function drawKept(canvas, image, rows, size) {
  draw(canvas, image);
  const context = canvas.getContext("2d");
  const top = (canvas.height / size.rows_of_patches) * rows;
  context.clearRect(0, top, canvas.width, canvas.height - top);
  context.globalAlpha = 0.22;
  context.drawImage(image, 0, top, canvas.width, canvas.height - top, 0, top, canvas.width, canvas.height - top);
}

// Draws bits [rows, columns, bits], packed in raster order, as one plane per bit, side by side.
export function drawBits(canvas, packed, [rows, columns], bits, ink) {
  const bytes = Uint8Array.from(atob(packed), (character) => character.charCodeAt(0));
  const across = Math.ceil(Math.sqrt(bits));
  const down = Math.ceil(bits / across);
  canvas.width = across * (columns + 1) - 1;
  canvas.height = down * (rows + 1) - 1;
  const context = canvas.getContext("2d");
  for (let place = 0; place < rows * columns * bits; place += 1) {
    const bit = place % bits;
    const token = (place - bit) / bits;
    const set = (bytes[place >> 3] >> (7 - (place & 7))) & 1;
    context.fillStyle = set ? ink.set : ink.clear;
    context.fillRect((bit % across) * (columns + 1) + (token % columns),
      Math.floor(bit / across) * (rows + 1) + Math.floor(token / columns), 1, 1);
  }
}
