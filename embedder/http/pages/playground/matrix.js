/** All pairs as a heat map: one pixel of a canvas for each, which the style sheet enlarges. */

import { cosineText, word } from "./words.js";

/** Up to so many pictures stand beside the rows and columns. */
const MOST_FACES = 24;
const STEPS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };

export class Matrix {
  #parts;
  #album;
  #vectors = null;
  #at = null;
  #looks = "";

  /** `parts` are the elements `{field, canvas, cursor, top, left, low, high, faces, said}`. */
  constructor(parts, album) {
    this.#parts = parts;
    this.#album = album;
    parts.field.addEventListener("pointermove", (event) => this.#point(event));
    parts.field.addEventListener("pointerdown", (event) => this.#point(event));
    parts.field.addEventListener("keydown", (event) => this.#key(event));
    // Its colours are of the theme.
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => this.#vectors && this.render(this.#vectors));
  }

  render(vectors) {
    this.#vectors = vectors;
    const n = vectors.count;
    const { canvas, field, low, high } = this.#parts;
    if (!n) return;
    // Untrained networks give all pictures a cosine of 0.98 and more: the scale is as long as what is there.
    const lowest = Math.min(0.99, Math.floor(100 * vectors.lowest()) / 100);
    const [from, to] = this.#colours(field);
    const image = new ImageData(n, n);
    for (let row = 0; row < n; row++) {
      for (let column = 0; column < n; column++) {
        const share = (vectors.cosine(row, column) - lowest) / (1 - lowest);
        const clamped = Math.min(1, Math.max(0, share));
        const at = 4 * (row * n + column);
        for (let i = 0; i < 3; i++) image.data[at + i] = Math.round(from[i] + (to[i] - from[i]) * clamped);
        image.data[at + 3] = 255;
      }
    }
    canvas.width = n;
    canvas.height = n;
    canvas.getContext("2d").putImageData(image, 0, 0);
    low.textContent = cosineText(lowest);
    high.textContent = cosineText(1);
    this.#axes(n);
    if (this.#at) this.#show(...this.#at);
  }

  clear() {
    this.#at = null;
    this.#looks = "";
    this.#vectors = null;
    for (const part of ["top", "left", "faces"]) this.#parts[part].replaceChildren();
    this.#parts.said.textContent = "";
    this.#parts.cursor.hidden = true;
  }

  /** The two ends of the scale, as red, green and blue. */
  #colours(field) {
    const style = getComputedStyle(field);
    return ["--heat-low", "--heat-high"].map((name) => {
      const hex = style.getPropertyValue(name).trim().slice(1);
      return [0, 2, 4].map((at) => Number.parseInt(hex.slice(at, at + 2), 16));
    });
  }

  #axes(n) {
    const { top, left, field } = this.#parts;
    const few = n <= MOST_FACES;
    field.parentElement.classList.toggle("bare", !few);
    field.parentElement.style.setProperty("--count", `${n}`);
    const looks = few ? this.#album.placed.map((picture) => this.#album.look(picture)).join() : "";
    if (looks === this.#looks) return;
    this.#looks = looks;
    for (const axis of [top, left]) {
      axis.replaceChildren(...(few ? this.#album.placed.map((picture) => this.#cell(picture)) : []));
    }
  }

  #cell(picture) {
    const cell = document.createElement("span");
    cell.append(this.#album.face(picture));
    return cell;
  }

  #point(event) {
    const n = this.#vectors?.count;
    if (!n) return;
    const box = this.#parts.canvas.getBoundingClientRect();
    const within = (share) => Math.min(n - 1, Math.max(0, Math.floor(share * n)));
    this.#show(within((event.clientX - box.left) / box.width), within((event.clientY - box.top) / box.height));
  }

  #key(event) {
    const step = STEPS[event.key];
    const n = this.#vectors?.count;
    if (!step || !n) return;
    event.preventDefault();
    const [column, row] = this.#at ?? [0, 0];
    const within = (place) => Math.min(n - 1, Math.max(0, place));
    if (this.#at) this.#show(within(column + step[0]), within(row + step[1]));
    else this.#show(0, 0);
  }

  #show(column, row) {
    this.#at = [column, row];
    const { cursor, faces, said, field } = this.#parts;
    const [one, two] = [this.#album.placed[row], this.#album.placed[column]];
    cursor.hidden = false;
    const share = 100 / this.#vectors.count;
    field.style.setProperty("--cell", `${share}%`);
    field.style.setProperty("--column", `${column * share}%`);
    field.style.setProperty("--row", `${row * share}%`);
    faces.replaceChildren(this.#album.face(one), this.#album.face(two));
    const cosine = cosineText(this.#vectors.cosine(row, column));
    said.textContent = word("pair", { one: one.name, two: two.name, cosine });
  }
}
