// The images made in this browser, newest first.

import { Past } from "./past.js";
import { SMALL } from "./picture.js";

const MOST = 100;
const element = (id) => document.getElementById(id);

export function describe({ prompt, seed, steps, guidance, sampler, model, size, made }) {
  const from = made ? ` · ${made}` : "";
  return `${prompt} · seed ${seed} · ${steps} steps · guidance ${guidance} · ${sampler} · ${size} · ${model}${from}`;
}

export class History {
  constructor(open) {
    this.open = open;
    this.past = new Past(MOST);
    element("clear").addEventListener("click", () => this.clear());
  }

  // Shows what earlier visits have made.
  async restore() {
    for (const entry of await this.past.entries()) this.show(entry);
  }

  async add(entry) {
    this.show(entry);
    await this.past.add(entry);
  }

  async clear() {
    element("history").replaceChildren();
    element("clear").hidden = true;
    element("past-empty").hidden = false;
    await this.past.clear();
  }

  show(entry) {
    element("past-empty").hidden = true;
    element("clear").hidden = false;
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
