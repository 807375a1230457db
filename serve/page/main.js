// The page: runs one request at a time, from the settings to the images on the stage.

import { ApiError, get, health, post, watch } from "./api.js";
import { Completion } from "./complete.js";
import { Form } from "./form.js";
import { describe, History } from "./history.js";
import { Stage } from "./stage.js";
import { showTimes } from "./times.js";

const element = (id) => document.getElementById(id);
const PREVIEWS = 64; // of each image at most; fewer if it has fewer patches
const HEALTH_EVERY = 5000;

class Page {
  constructor(capabilities) {
    this.form = new Form(capabilities);
    this.stage = new Stage();
    this.history = new History((entry) => this.open(entry));
    new Completion(this.form, (change, made) => this.generate(change, made));
    this.job = null;
    element("form").addEventListener("submit", (event) => { event.preventDefault(); this.generate(); });
    element("cancel").addEventListener("click", () => this.cancel());
    document.addEventListener("keydown", (event) => { if (event.key === "Escape") this.cancel(); });
  }

  async generate(change = {}, made = "") {
    if (this.busy) return;
    this.setBusy(true);
    this.form.clearErrors();
    try {
      const size = this.form.size;
      const asked = {
        ...this.form.body(),
        preview_every: Math.ceil(size.patches / PREVIEWS),
        preview_kind: this.form.model.fast_previews ? "fast" : "full", // a full preview takes as long as decoding an image
      };
      this.job = await post("/v1/jobs", { ...asked, ...change });
      this.stage.clear(this.job.n, size);
      this.stage.caption("Waiting for the device…");
      element("stage").scrollIntoView({ block: "nearest", behavior: "smooth" });
      await this.follow(this.job, { prompt: asked.prompt, made, published: asked.published ?? false });
    } catch (error) {
      this.form.showError(error);
      this.stage.caption("");
      if (!(error instanceof ApiError)) throw error;
    } finally {
      this.job = null;
      this.setBusy(false);
    }
  }

  async follow(job, asked) {
    for await (const { event, data } of watch(`/v1/jobs/${job.id}/events`)) {
      if (event === "job.preview") {
        await this.stage.preview(data.index, data.b64_json, data.patch);
      } else if (event === "job.progress") {
        this.stage.progress(data.patches_done, data.patches);
        if (data.patches_done) this.stage.caption(`${asked.prompt}: patch ${data.patches_done} of ${data.patches}`);
      } else if (event === "job.completed") {
        return this.finish(data, asked);
      } else if (event === "job.cancelled") {
        this.stage.progress(0, 1);
        return this.stage.caption(`Cancelled after ${data.patches_done} of ${data.patches} patches.`);
      } else {
        throw new ApiError(0, event === "job.failed" ? data.error : data.error ?? { message: "The server stopped." });
      }
    }
    throw new ApiError(0, { message: "The connection was lost before the images were done.", code: "broken" });
  }

  async finish(job, { prompt, made, published }) {
    const entries = job.data.map(({ b64_json: base64, seed }) => ({
      base64,
      seed,
      prompt,
      made,
      format: job.output_format,
      steps: job.num_inference_steps,
      guidance: job.guidance_scale,
      sampler: job.sampler,
      published,
      model: job.model,
      size: job.size.replace("x", "\u00a0×\u00a0"),
      name: `${prompt.replace(/[^\p{L}\p{N}]+/gu, "_").slice(0, 40)}-seed${seed}.${job.output_format}`,
    }));
    await Promise.all(entries.map((entry, index) => this.stage.show(entry, index)));
    await Promise.all(entries.map((entry) => this.history.add(entry)));
    this.describe(entries);
    this.stage.progress(1, 1);
    showTimes(job.timing);
  }

  // Shows an image of the history on the stage again.
  async open(entry) {
    if (this.busy) return;
    this.stage.clear(1, this.form.size);
    await this.stage.show(entry);
    this.describe([entry]);
    element("stage").scrollIntoView({ block: "nearest", behavior: "smooth" });
  }

  describe(entries) {
    const [first, last] = [entries[0], entries.at(-1)];
    const seed = first === last ? first.seed : `${first.seed}–${last.seed}`;
    this.stage.caption(describe({ ...first, seed }));
    this.stage.offer(entries, () => this.form.set({ ...first, n: entries.length }));
  }

  async cancel() {
    if (!this.job) return;
    element("cancel").disabled = true;
    await post(`/v1/jobs/${this.job.id}/cancel`).catch((error) => this.form.showError(error));
  }

  setBusy(busy) {
    this.busy = busy;
    element("caption").setAttribute("aria-busy", busy); // so that screen readers read it at the end, not at every patch
    element("generate").disabled = element("go-on").disabled = busy;
    element("cancel").disabled = !busy;
  }
}

async function showHealth() {
  if (document.hidden) return;
  const { status } = await health();
  element("health").dataset.status = status;
  element("health").querySelector("span").textContent = status;
}

await showHealth();
setInterval(showHealth, HEALTH_EVERY);
try {
  const page = new Page(await get("/v1/capabilities"));
  await page.history.restore();
  document.body.dataset.ready = "yes";
} catch (error) {
  element("notice").textContent = error.message;
  element("notice").hidden = false;
}
