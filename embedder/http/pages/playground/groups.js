/** Near copies: groups of pictures above a cosine. */

import { cosineText, wholeText, word } from "./words.js";

/** Of one group; all the others are a number. */
const MOST_SHOWN = 48;

export class Groups {
  #list;
  #count;
  #album;
  #go;
  #shown = "";

  /** `go(picture)` shows a picture's row. */
  constructor(list, count, album, go) {
    this.#list = list;
    this.#count = count;
    this.#album = album;
    this.#go = go;
  }

  render(vectors, threshold) {
    const groups = vectors.groups(threshold);
    const pictures = groups.reduce((sum, group) => sum + group.length, 0);
    const counted = groups.length ? word("groups", { n: groups.length, pictures }) : word("noGroups");
    if (this.#count.textContent !== counted) this.#count.textContent = counted;
    const looks = groups.map((group) => group.slice(0, MOST_SHOWN).map((place) => this.#look(place)).join());
    const shown = looks.join(";") + groups.map((group) => group.length).join();
    if (shown === this.#shown) return;
    this.#shown = shown;
    this.#list.replaceChildren(...groups.map((group) => this.#group(group, vectors)));
  }

  #look(place) {
    return this.#album.look(this.#album.placed[place]);
  }

  #group(group, vectors) {
    let lowest = 1;
    for (const one of group) for (const two of group) lowest = Math.min(lowest, vectors.cosine(one, two));
    const item = document.createElement("li");
    const text = document.createElement("p");
    text.className = "quiet";
    text.textContent = word("groupOf", { n: group.length, lowest: cosineText(lowest) });
    const members = document.createElement("div");
    members.className = "members";
    for (const place of group.slice(0, MOST_SHOWN)) members.append(this.#member(this.#album.placed[place]));
    if (group.length > MOST_SHOWN) {
      const more = document.createElement("p");
      more.textContent = word("more", { n: wholeText(group.length - MOST_SHOWN) });
      members.append(more);
    }
    item.append(members, text);
    return item;
  }

  #member(picture) {
    const button = document.createElement("button");
    button.type = "button";
    button.className = "neighbour";
    button.title = picture.name;
    button.setAttribute("aria-label", picture.name);
    button.append(this.#album.face(picture));
    button.addEventListener("click", () => this.#go(picture));
    return button;
  }
}
