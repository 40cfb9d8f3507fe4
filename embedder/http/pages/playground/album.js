/** The pictures of this page, in the order they came, and how each is shown. */

import { word } from "./words.js";

/** So many stay smooth: 124,750 pairs. */
export const MOST_PICTURES = 500;

export class Album {
  pictures = [];
  /** By their place among the vectors. */
  placed = [];
  #twins = new Map();

  get room() {
    return MOST_PICTURES - this.pictures.length;
  }

  /** How many are in that state. */
  count(state) {
    return this.pictures.filter((picture) => picture.state === state).length;
  }

  /** From 1 on, as people count. */
  number(picture) {
    return this.pictures.indexOf(picture) + 1;
  }

  /** Learns how `picture` is shown, and gives the URLs with the same file behind them: they are shown so too. */
  known(picture) {
    if (!picture.small || !picture.details) return [];
    const { sha256 } = picture.details;
    this.#twins.set(sha256, picture);
    return this.placed.filter((other) => !other.small && other.details?.sha256 === sha256);
  }

  /** The address of a small copy; null where the page has none. */
  small(picture) {
    return picture.small ?? this.#twins.get(picture.details?.sha256)?.small ?? null;
  }

  /** Forgets the vectors, which another model made. */
  unplace() {
    for (const picture of this.placed) Object.assign(picture, { place: null, state: "waiting", tries: 0 });
    this.placed = [];
  }

  clear() {
    for (const picture of this.pictures) picture.release();
    this.pictures = [];
    this.placed = [];
    this.#twins.clear();
  }

  /** An element that shows `picture`, without a name for screen readers: what holds it has one. */
  face(picture) {
    const face = document.createElement("span");
    face.className = "face";
    const small = this.small(picture);
    if (small) {
      const image = document.createElement("img");
      image.src = small;
      image.alt = "";
      image.decoding = "async";
      image.draggable = false;
      face.append(image);
      return face;
    }
    // Of a picture at a URL the page has no pixels, and asks nobody for them.
    face.classList.add("tile");
    face.append(line("b", `${this.number(picture)}`), line("span", picture.name), line("span", picture.host));
    if (picture.details) face.append(line("span", sizeAndFormat(picture.details)));
    return face;
  }

  /** What `face` would look like, as a text: equal texts, equal faces. */
  look(picture) {
    return `${picture.id} ${this.small(picture) ?? ""} ${picture.details ? sizeAndFormat(picture.details) : ""}`;
  }
}

/** "JPEG 451 × 300" */
export function sizeAndFormat({ format, width, height }) {
  return word("sizeAndFormat", { format, width, height });
}

function line(name, text) {
  const element = document.createElement(name);
  element.textContent = text;
  return element;
}
