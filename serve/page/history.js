// The images made since the page was opened, newest first.

import { SMALL } from "./picture.js";

const MOST = 100;
const element = (id) => document.getElementById(id);

export function describe({ prompt, seed, steps, guidance, model, size, made }) {
  const from = made ? ` · ${made}` : "";
  return `${prompt} · seed ${seed} · ${steps} steps · guidance ${guidance} · ${size} · ${model}${from}`;
}

export class History {
  constructor(open) {
    this.open = open;
  }

  add(entry) {
    element("past-empty").hidden = true;
    const image = Object.assign(new Image(), {
      src: `data:image/${entry.format};base64,${entry.base64}`,
      alt: describe(entry),
      onload: () => image.classList.toggle("small", image.naturalWidth <= SMALL),
    });
    const button = Object.assign(document.createElement("button"), { type: "button", title: describe(entry) });
    const label = Object.assign(document.createElement("span"), { textContent: `${entry.prompt} · ${entry.seed}` });
    label.setAttribute("aria-hidden", "true");
    button.append(image, label);
    button.addEventListener("click", () => this.open(entry));
    const item = document.createElement("li");
    item.append(button);
    element("history").prepend(item);
    while (element("history").children.length > MOST) element("history").lastChild.remove();
  }
}
