/** Each picture with what is known of it, and its nearest: the list that comes first. */

import { sizeAndFormat } from "./album.js";
import { cosineText, word } from "./words.js";

const NEAREST = 5;

export class Rows {
  #list;
  #album;
  #rows = new Map();
  #visible = new Set();
  #watch;

  constructor(list, album) {
    this.#list = list;
    this.#album = album;
    // What is far from the screen waits until it is near: 500 rows have 2500 neighbours.
    this.#watch = new IntersectionObserver((entries) => this.#scrolled(entries), { rootMargin: "400px" });
  }

  /** The vectors to find the nearest in. */
  vectors = null;
  /** From this cosine on a neighbour is a near copy. */
  threshold = 1;

  add(picture) {
    const row = document.createElement("li");
    row.id = `picture-${picture.id}`;
    row.tabIndex = -1;
    const parts = {
      row,
      picture,
      self: part("div", "self"),
      name: part("p", "name"),
      meta: part("p", "meta quiet"),
      state: part("p", "state"),
      near: part("ol", "near"),
      slots: [],
      look: "",
    };
    const about = part("div", "about");
    about.append(parts.name, parts.meta, parts.state);
    row.append(parts.self, about, parts.near);
    parts.near.setAttribute("aria-label", word("nearList", { name: picture.name }));
    this.#rows.set(picture, parts);
    this.#list.append(row);
    this.#watch.observe(row);
    this.update(picture);
  }

  /** Brings what is said of `picture` up to date. */
  update(picture) {
    const parts = this.#rows.get(picture);
    if (!parts) return; // an answer to what was cleared meanwhile
    const look = this.#album.look(picture);
    if (parts.look !== look) {
      parts.look = look;
      parts.self.replaceChildren(this.#album.face(picture));
      parts.name.textContent = picture.name;
      parts.name.title = picture.isFile ? picture.name : picture.source.slice(0, 2000);
    }
    parts.row.dataset.state = picture.state;
    const meta = [picture.host, picture.details ? sizeAndFormat(picture.details) : ""];
    parts.meta.textContent = meta.filter(Boolean).join(" · ");
    parts.state.replaceChildren(...said(picture));
  }

  /** Shows the nearest of the rows that are on the screen. */
  render() {
    for (const picture of this.#visible) this.#nearest(this.#rows.get(picture));
  }

  go(picture) {
    const { row } = this.#rows.get(picture);
    row.scrollIntoView({ block: "center" });
    row.focus({ preventScroll: true });
  }

  clear() {
    this.#watch.disconnect();
    this.#rows.clear();
    this.#visible.clear();
    this.#list.replaceChildren();
  }

  #scrolled(entries) {
    for (const { target, isIntersecting } of entries) {
      const parts = [...this.#rows.values()].find(({ row }) => row === target);
      if (!parts) continue;
      if (isIntersecting) this.#visible.add(parts.picture);
      else this.#visible.delete(parts.picture);
      if (isIntersecting) this.#nearest(parts);
    }
  }

  #nearest({ picture, near, slots }) {
    const found = picture.place === null ? [] : this.vectors.nearest(picture.place, NEAREST);
    found.forEach(({ place, cosine }, rank) => {
      slots[rank] ??= this.#slot(near);
      this.#fill(slots[rank], this.#album.placed[place], cosine);
    });
    for (const slot of slots.splice(found.length)) slot.item.remove();
  }

  /** A neighbour's place in the list. It stays while others move into it, so that it keeps the focus. */
  #slot(near) {
    const slot = { item: document.createElement("li"), button: part("button", "neighbour"), cosine: part("span", "cosine") };
    slot.button.type = "button";
    slot.button.addEventListener("click", () => this.go(slot.picture));
    slot.item.append(slot.button);
    near.append(slot.item);
    return slot;
  }

  #fill(slot, picture, cosine) {
    const look = this.#album.look(picture);
    if (slot.look !== look) {
      slot.look = look;
      slot.picture = picture;
      slot.button.title = picture.name;
      slot.button.replaceChildren(this.#album.face(picture), slot.cosine);
    }
    slot.cosine.textContent = cosineText(cosine);
    slot.button.classList.toggle("copy", cosine >= this.threshold);
    slot.button.setAttribute("aria-label", word("nearOf", { name: picture.name, cosine: cosineText(cosine) }));
  }
}

/** What there is to say of a picture's state, as nodes. */
function said(picture) {
  if (picture.state === "waiting" || picture.state === "asked") return [word(picture.state)];
  if (picture.state !== "failed") return [];
  const sentence = document.createElement("span");
  sentence.className = "bad";
  sentence.textContent = picture.error.sentence;
  if (picture.error.ours) return [sentence];
  sentence.lang = "en"; // the API's words
  const code = part("code", "quiet");
  code.textContent = picture.error.code;
  return [sentence, " ", code];
}

function part(name, className) {
  const element = document.createElement(name);
  element.className = className;
  return element;
}
