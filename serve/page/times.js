// The time that each stage took for the last images.

const element = (id) => document.getElementById(id);
const shown = (milliseconds) => milliseconds.toLocaleString("en", { maximumFractionDigits: milliseconds < 10 ? 2 : 0 });

export function showTimes(timing) {
  const stages = Object.entries(timing.stages).sort(([, a], [, b]) => b.milliseconds - a.milliseconds);
  const most = Math.max(...stages.map(([, stage]) => stage.milliseconds));
  const rows = stages.map(([name, { launches, milliseconds }]) => {
    const row = document.createElement("tr");
    const head = Object.assign(document.createElement("th"), { scope: "row", textContent: name });
    head.style.setProperty("--part", milliseconds / most);
    const cells = [launches.toLocaleString("en"), shown(milliseconds / launches), shown(milliseconds)];
    row.append(head, ...cells.map((text) => Object.assign(document.createElement("td"), { textContent: text })));
    return row;
  });
  element("times").querySelector("tbody").replaceChildren(...rows);
  element("times").querySelector("table").hidden = false;
  element("times-empty").hidden = true;
  const shared = timing.batch_images === 1 ? "1 image" : `a batch of ${timing.batch_images} images`;
  element("times-total").textContent =
    `${shown(timing.milliseconds)} ms for ${shared}, after ${shown(timing.waited_milliseconds)} ms in the queue`;
}
