// Requests to the server of this page. An error becomes an ApiError, which names the field that it is about.

export class ApiError extends Error {
  constructor(status, detail) {
    super(detail.message);
    this.status = status;
    this.param = detail.param;
    this.code = detail.code;
  }
}

let token = sessionStorage.getItem("token") ?? "";

async function send(method, path, body) {
  const headers = { Accept: "application/json" };
  if (token) headers.Authorization = `Bearer ${token}`;
  if (body !== undefined) headers["Content-Type"] = "application/json";
  let response;
  try {
    response = await fetch(path, { method, headers, body: body === undefined ? undefined : JSON.stringify(body) });
  } catch {
    throw new ApiError(0, { message: "The server does not respond. Is it still running?", code: "unreachable" });
  }
  if (response.ok) return response;
  const answer = await response.json().catch(() => ({}));
  const error = new ApiError(response.status, answer.error ?? { message: `The server responded with status ${response.status}.` });
  if (response.status !== 401) throw error;
  await askForToken();
  return send(method, path, body);
}

function askForToken() {
  const dialog = document.getElementById("token-dialog");
  const input = document.getElementById("token");
  input.value = "";
  if (!dialog.open) dialog.showModal();
  return new Promise((resolve) => {
    dialog.addEventListener("close", () => {
      token = input.value.trim();
      sessionStorage.setItem("token", token);
      resolve();
    }, { once: true });
  });
}

export const get = async (path) => (await send("GET", path)).json();
export const post = async (path, body) => (await send("POST", path, body)).json();

export async function health() {
  const response = await fetch("/health").catch(() => null);
  return response ? response.json() : { status: "unreachable" };
}

// Yields { event, data } of server-sent events. Over fetch, because EventSource cannot send a token.
export async function* watch(path) {
  const response = await send("GET", path);
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let text = "";
  for (;;) {
    const { value, done } = await reader.read().catch(() => ({ done: true }));
    if (done) return;
    text += value;
    const frames = text.split("\n\n");
    text = frames.pop();
    for (const frame of frames) {
      const fields = Object.fromEntries(frame.split("\n").map((line) => {
        const colon = line.indexOf(":");
        return [line.slice(0, colon), line.slice(colon + 1).trim()];
      }));
      if (fields.event) yield { event: fields.event, data: JSON.parse(fields.data) };
    }
  }
}
