/** The pictures in two dimensions. Arrow keys go to the next one in that direction. */

import { percentText, word } from "./words.js";

/** Less than that apart are the same to float32: nothing that a map should enlarge. */
const LEAST_RANGE = 1e-3;
const DIRECTIONS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };

export class PictureMap {
  #field;
  #hint;
  #album;
  #points = new Map();

  /** `go(picture)` shows a picture's row. */
  constructor(field, hint, album, go) {
    this.#field = field;
    this.#hint = hint;
    this.#album = album;
    field.addEventListener("keydown", (event) => this.#key(event));
    field.addEventListener("click", (event) => {
      const point = this.#pointOf(event.target);
      if (point) go(point.picture);
    });
    field.addEventListener("focusin", (event) => this.#current(this.#pointOf(event.target)));
  }

  render(vectors) {
    const few = vectors.count < 3;
    this.#field.hidden = few;
    if (few) {
      this.clear();
      this.#hint.textContent = word("mapFew");
      return;
    }
    const { x, y, share } = vectors.map();
    this.#hint.textContent = word("mapHint", { share: percentText(share) });
    const [left, top] = fitted(x, y);
    this.#field.style.setProperty("--face", faceSize(vectors.count));
    this.#album.placed.forEach((picture, place) => this.#place(picture, left[place], top[place]));
    if (!this.#field.querySelector('[tabindex="0"]')) this.#current(this.#points.values().next().value);
  }

  clear() {
    this.#points.clear();
    this.#field.replaceChildren();
  }

  /** `left` and `top` are shares of the room that the map has beside the picture itself, so none hangs over its edge. */
  #place(picture, left, top) {
    let point = this.#points.get(picture);
    if (!point) {
      point = { picture, button: document.createElement("button"), look: "" };
      Object.assign(point.button, { type: "button", className: "point", tabIndex: -1, title: picture.name });
      point.button.setAttribute("aria-label", picture.name);
      this.#points.set(picture, point);
      this.#field.append(point.button);
    }
    const look = this.#album.look(picture);
    if (point.look !== look) point.button.replaceChildren(this.#album.face(picture));
    Object.assign(point, { look, left, top });
    point.button.style.setProperty("--left", left.toFixed(4));
    point.button.style.setProperty("--top", top.toFixed(4));
  }

  #pointOf(target) {
    const button = target.closest(".point");
    return [...this.#points.values()].find((point) => point.button === button);
  }

  /** The one that the tabulator key reaches. */
  #current(point) {
    if (!point) return;
    for (const button of this.#field.querySelectorAll('[tabindex="0"]')) button.tabIndex = -1;
    point.button.tabIndex = 0;
  }

  #key(event) {
    const from = this.#pointOf(event.target);
    const direction = DIRECTIONS[event.key];
    if (!from || !direction) return;
    event.preventDefault();
    let best = null;
    for (const point of this.#points.values()) {
      const across = point.left - from.left;
      const down = point.top - from.top;
      const along = across * direction[0] + down * direction[1];
      if (point === from || along <= 0) continue;
      const aside = Math.abs(across * direction[1]) + Math.abs(down * direction[0]);
      const distance = along + 3 * aside;
      if (!best || distance < best.distance) best = { point, distance };
    }
    best?.point.button.focus();
  }
}

/** Coordinates from 0 to 1 within the map, with one scale for both axes: distances stay distances. */
function fitted(x, y) {
  const [left, right] = [Math.min(...x), Math.max(...x)];
  const [bottom, top] = [Math.min(...y), Math.max(...y)];
  const scale = 1 / Math.max(right - left, top - bottom, LEAST_RANGE);
  return [
    Array.from(x, (value) => 0.5 + (value - (left + right) / 2) * scale),
    Array.from(y, (value) => 0.5 - (value - (bottom + top) / 2) * scale),
  ];
}

function faceSize(count) {
  if (count <= 24) return "3.5rem";
  if (count <= 80) return "2.5rem";
  return count <= 200 ? "2rem" : "1.5rem";
}
