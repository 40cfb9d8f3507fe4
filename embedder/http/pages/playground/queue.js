/** Sends pictures to the service, a few at a time, within its limits and in its own time. */

import { Refusal } from "./service.js";
import { word } from "./words.js";

const REQUESTS_AT_ONCE = 2;
/** Small enough that vectors come in a steady flow, large enough that the network has batches. */
const MOST_IMAGES = 8;
const MOST_BYTES = 8_000_000;
/** Of a form around its files: boundaries, and headers of each. */
const FORM_BYTES = 4096;
/** Of one picture that is answered 429 or 503. */
const MOST_TRIES = 10;
const PASSING_CODES = new Set(["overloaded", "draining"]);

export class Queue {
  #service;
  #events;
  #limits = null;
  #fingerprint = "";
  #waiting = [];
  #running = 0;
  #most = MOST_IMAGES;
  #resting = null;
  #generation = 0;

  /**
   * `events` are functions: `changed(pictures)`; `embedded(picture, embedding)`, which may throw; `answered(call)`
   * with `{sources, stages, tookMs}`; `locked()` when a key is asked for; `rests(seconds)`, 0 when it goes on.
   */
  constructor(service, events) {
    this.#service = service;
    this.#events = events;
  }

  /** Sends what waits, to the service that said `info`. */
  open(info) {
    this.#limits = info.limits;
    this.#fingerprint = info.fingerprint;
    this.#most = Math.min(MOST_IMAGES, info.limits.max_urls, info.limits.max_in_flight_images);
    this.#start();
  }

  add(pictures) {
    for (const picture of pictures) Object.assign(picture, { state: "waiting", error: null });
    this.#waiting.push(...pictures);
    this.#events.changed(pictures);
    this.#start();
  }

  /** Forgets what waits, and what is answered from now on to requests that run. */
  clear() {
    this.#waiting = [];
    this.#generation += 1;
  }

  #start() {
    while (this.#limits && !this.#resting && this.#waiting.length && this.#running < REQUESTS_AT_ONCE) {
      const batch = this.#take();
      if (!batch.length) continue; // all of them were refused here
      this.#running += 1;
      this.#send(batch, this.#generation).finally(() => {
        this.#running -= 1;
        this.#start();
      });
    }
  }

  /** The pictures of the next request, from the front of those that wait. */
  #take() {
    const mostBytes = Math.min(MOST_BYTES, this.#limits.max_body_bytes - FORM_BYTES);
    const batch = [];
    let bytes = 0;
    while (this.#waiting.length && batch.length < this.#most) {
      const [picture] = this.#waiting;
      const size = picture.isFile ? picture.source.size : picture.source.length;
      const error = this.#refused(picture, size);
      if (error) {
        this.#waiting.shift();
        this.#fail([picture], error);
        continue;
      }
      const fits = picture.isFile === batch[0]?.isFile && bytes + size <= mostBytes && !picture.alone;
      if (batch.length && !fits) break;
      batch.push(this.#waiting.shift());
      bytes += size;
      if (picture.alone) break;
    }
    return batch;
  }

  /** What the service would answer to a file that is over its limits, for which nobody has to wait. */
  #refused(picture, size) {
    const said = (actual, limit) => `${actual / 1e6} MB; the limit is ${limit / 1e6} MB`;
    const { max_image_bytes: image, max_body_bytes: body } = this.#limits;
    if (picture.isFile && size > image) {
      return { code: "image_too_large", sentence: `the image is ${said(size, image)}` };
    }
    if (size + FORM_BYTES > body) {
      return { code: "body_too_large", sentence: `the request body is ${said(size + FORM_BYTES, body)}` };
    }
    return null;
  }

  async #send(batch, generation) {
    for (const picture of batch) picture.state = "asked";
    this.#events.changed(batch);
    const began = performance.now();
    try {
      const sources = batch.map((picture) => picture.source);
      const answer = await this.#service.embed(sources, this.#fingerprint);
      if (generation !== this.#generation) return;
      this.#events.answered({ sources, stages: answer.stages, tookMs: performance.now() - began });
      this.#answered(batch, answer);
    } catch (error) {
      if (!(error instanceof Refusal)) throw error;
      const rest = error.status === 0 ? await this.#readable(batch) : batch;
      if (generation !== this.#generation) return;
      // To the browser a file that can't be read is a request that failed.
      if (rest.length && rest.length < batch.length) this.#back(rest);
      else if (rest.length) this.#refusedAll(rest, error);
    }
  }

  /** Those of `batch` that can still be read: a file may be gone or another by now. The others fail. */
  async #readable(batch) {
    const found = await Promise.all(batch.map((picture) => !picture.isFile || readable(picture.source)));
    const error = { code: "unreadable", sentence: word("unreadable"), ours: true };
    this.#fail(batch.filter((_, index) => !found[index]), error);
    return batch.filter((_, index) => found[index]);
  }

  #answered(batch, { embeddings, errors, images }) {
    const whys = new Map(errors.map((error) => [error.index, error]));
    const again = [];
    batch.forEach((picture, index) => {
      const why = whys.get(index);
      if (why && PASSING_CODES.has(why.code) && picture.tries < MOST_TRIES) {
        picture.tries += 1;
        again.push(picture);
      } else if (why) {
        this.#fail([picture], { code: why.code, sentence: why.error });
      } else {
        this.#embedded(picture, embeddings[index], images[index]);
      }
    });
    this.#events.changed(batch);
    if (again.length) this.#again(again, 1);
  }

  #embedded(picture, embedding, details) {
    try {
      if (!embedding || !details) throw new RangeError("no embedding and no error");
      this.#events.embedded(picture, embedding);
      Object.assign(picture, { state: "done", error: null, details });
    } catch (error) {
      if (!(error instanceof RangeError)) throw error;
      this.#fail([picture], { code: "broken", sentence: word("broken"), ours: true });
    }
  }

  /** A request as a whole was refused, or not answered. */
  #refusedAll(batch, refusal) {
    if (refusal.status === 401) {
      this.#limits = null; // until `open`
      this.#back(batch);
      this.#events.locked();
      return;
    }
    if (refusal.passes && batch[0].tries < MOST_TRIES) {
      for (const picture of batch) picture.tries += 1;
      this.#most = Math.max(1, this.#most >> 1);
      this.#again(batch, refusal.retryAfterS ?? 1);
      return;
    }
    const oneOfThem = refusal.status >= 400 && refusal.status < 500 && ![404, 405, 409].includes(refusal.status);
    if (oneOfThem && !refusal.passes && batch.length > 1) {
      // One picture can fail a form as a whole: each alone, so that each gets its own answer.
      for (const picture of batch) picture.alone = true;
      this.#back(batch);
      return;
    }
    const ours = refusal.status === 0;
    this.#fail(batch, { code: refusal.code, sentence: ours ? word(refusal.code) : refusal.message, ours });
  }

  #fail(pictures, error) {
    for (const picture of pictures) Object.assign(picture, { state: "failed", error });
    this.#events.changed(pictures);
  }

  #back(pictures) {
    for (const picture of pictures) picture.state = "waiting";
    this.#waiting.unshift(...pictures);
    this.#events.changed(pictures);
  }

  /** Sends `pictures` after that many seconds, and nothing until then. */
  #again(pictures, seconds) {
    this.#back(pictures);
    clearTimeout(this.#resting);
    this.#events.rests(seconds);
    this.#resting = setTimeout(() => {
      this.#resting = null;
      this.#events.rests(0);
      this.#start();
    }, seconds * 1000);
  }
}

async function readable(file) {
  try {
    await file.arrayBuffer(); // the whole: of a file that is gone Chromium takes a part for empty
    return true;
  } catch {
    return false;
  }
}
