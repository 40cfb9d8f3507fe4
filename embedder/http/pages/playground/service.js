/** The service as this page asks it: `/info` and `/embed_batch`, with a key that stays in this tab. */

const ROOT = new URL("..", import.meta.url);
const KEY = "embedder.key";

/** Why there is no answer. `status` is 0 where nothing answered, or its answer broke off. */
export class Refusal extends Error {
  constructor(status, code, sentence, { retryAfterS = null } = {}) {
    super(sentence);
    this.status = status;
    this.code = code;
    this.retryAfterS = retryAfterS;
  }

  /** Whether the same may succeed a little later. */
  get passes() {
    return this.status === 429 || this.status === 503;
  }
}

export class Service {
  root = ROOT.href.replace(/\/$/, "");
  key = sessionStorage.getItem(KEY) ?? "";

  /** Keeps a key until the tab is closed; an empty one forgets it. */
  use(key) {
    this.key = key;
    if (key) sessionStorage.setItem(KEY, key);
    else sessionStorage.removeItem(KEY);
  }

  /** What `/info` says. Throws a Refusal. */
  async info() {
    return (await this.#asked("info")).content;
  }

  /** The names of the sample pictures. Throws a Refusal. */
  async samples() {
    return (await this.#asked("playground/samples.json")).content;
  }

  /** A sample picture as a File. Throws a Refusal. */
  async sample(name) {
    const response = await this.#fetched(`playground/samples/${encodeURIComponent(name)}`, {});
    const bytes = await read(() => response.blob());
    if (!response.ok) throw new Refusal(response.status, "not_found", `${response.status} ${response.statusText}`);
    return new File([bytes], name, { type: bytes.type });
  }

  /**
   * Embeds `sources`, all File or all URLs, with the model of `fingerprint` or none.
   *
   * Gives `{embeddings, errors, images, stages}`: as `/embed_batch` answers, and milliseconds by stage.
   * Throws a Refusal for the request as a whole.
   */
  async embed(sources, fingerprint) {
    const headers = { "X-Expect-Model": fingerprint };
    let body;
    if (typeof sources[0] === "string") {
      headers["Content-Type"] = "application/json";
      body = JSON.stringify({ urls: sources, details: true });
    } else {
      body = new FormData();
      body.append("details", "true");
      // Nobody asks for the files' names, and they may be anything.
      sources.forEach((file, index) => body.append("files", file, `${index}`));
    }
    const { content, response } = await this.#asked("embed_batch", { method: "POST", headers, body });
    const whole = [content?.embeddings, content?.images].every((list) => list?.length === sources.length);
    if (!whole || !Array.isArray(content.errors)) throw broken();
    return { ...content, stages: stages(response.headers.get("Server-Timing") ?? "") };
  }

  async #asked(path, options = {}) {
    const response = await this.#fetched(path, options);
    const text = await read(() => response.text());
    let content;
    try {
      content = JSON.parse(text);
    } catch {
      if (response.ok) throw broken();
    }
    if (response.ok) return { content, response };
    const retryAfterS = Number.parseFloat(response.headers.get("Retry-After") ?? "");
    throw new Refusal(
      response.status,
      content?.code ?? "unknown",
      content?.error ?? `${response.status} ${response.statusText}`,
      { retryAfterS: Number.isFinite(retryAfterS) ? retryAfterS : null },
    );
  }

  async #fetched(path, { headers = {}, ...options }) {
    const keyed = this.key ? { "X-API-Key": this.key, ...headers } : headers;
    return read(() => fetch(new URL(path, ROOT), { ...options, headers: keyed, credentials: "same-origin" }));
  }
}

/** What `reading` gives. Throws a Refusal where the connection fails. */
async function read(reading) {
  try {
    return await reading();
  } catch {
    throw new Refusal(0, "unreachable", "");
  }
}

function broken() {
  return new Refusal(0, "broken", "");
}

/** Milliseconds by stage, in their order: https://www.w3.org/TR/server-timing. */
function stages(header) {
  return [...header.matchAll(/([a-z]+);dur=([0-9.]+)/g)].map(([, name, took]) => [name, Number(took)]);
}
