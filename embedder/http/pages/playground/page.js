/**
 * The page: takes pictures, has the service embed them, and shows what their vectors say.
 *
 *     intake ─► album ─► queue ─► service ─► vectors ─► rows, groups, map, matrix
 *
 * All of it is in this tab. What people and the service write goes onto the page as text, never as markup.
 */

import { Album, MOST_PICTURES } from "./album.js";
import { programs } from "./calls.js";
import { Groups } from "./groups.js";
import { fromText, fromTransfer } from "./intake.js";
import { PictureMap } from "./map.js";
import { Matrix } from "./matrix.js";
import { Picture } from "./pictures.js";
import { Queue } from "./queue.js";
import { Rows } from "./rows.js";
import { Refusal, Service } from "./service.js";
import { Vectors } from "./vectors.js";
import { cosineText, translate, wholeText, word } from "./words.js";

/** The map of 500 takes a tenth of a second: it is drawn anew that often while vectors come. */
const MAP_EVERY_MS = 400;
/** Small copies that are made at once: each has its whole picture in memory meanwhile. */
const SHRINKING = 2;

const at = (id) => document.getElementById(id);
const service = new Service();
const album = new Album();
const rows = new Rows(at("rows"), album);
const go = (picture) => rows.go(picture);
const groups = new Groups(at("groups"), at("copies-count"), album, go);
const map = new PictureMap(at("map"), at("map-hint"), album, go);
const matrix = new Matrix(
  {
    field: at("matrix"),
    canvas: at("heat"),
    cursor: at("cursor"),
    top: at("matrix-top"),
    left: at("matrix-left"),
    low: at("heat-low"),
    high: at("heat-high"),
    faces: at("pair-faces"),
    said: at("matrix-pair"),
  },
  album,
);
const queue = new Queue(service, {
  changed: (pictures) => {
    for (const picture of pictures) {
      for (const each of [picture, ...album.known(picture)]) rows.update(each);
    }
    later();
  },
  embedded: (picture, embedding) => {
    picture.place = vectors.add(embedding);
    album.placed.push(picture);
  },
  answered: (made) => showCall(made),
  locked: () => askForKey(),
  rests: (seconds) => {
    restsS = seconds;
    later();
  },
});

let vectors = new Vectors();
let info = null;
let restsS = 0;
let call = null;
let language = "curl";
let toShrink = [];
let shrinking = 0;
let frame = 0;
let mapTimer = 0;

// What the service is

/** Asks what is served; then what waits is sent. */
async function open() {
  at("gone").hidden = true;
  const before = info?.fingerprint;
  try {
    info = await service.info();
  } catch (error) {
    if (!(error instanceof Refusal)) throw error;
    if (error.status === 401) askForKey();
    else showGone(error);
    return;
  }
  at("key-form").hidden = true;
  at("forget").hidden = !service.key;
  showModel();
  const another = before !== undefined && before !== info.fingerprint;
  if (another) forgetVectors();
  queue.open(info);
  if (another) queue.add(album.pictures.filter((picture) => picture.state !== "failed"));
  shrinkNext();
  later();
}

function showModel() {
  const { model } = info;
  at("untrained").hidden = model.trained !== false;
  const facts = [
    ["model", model.tag],
    ["weights", model.weights],
    ["trained", model.trained === undefined ? undefined : word(model.trained ? "yes" : "no")],
    ["fingerprint", info.fingerprint],
    ["dimension", info.dimension],
    ["precision", info.precision],
  ];
  const known = facts.filter(([, fact]) => fact !== undefined && fact !== null && fact !== "");
  at("model").replaceChildren(...known.map(([name, fact]) => term(word(name), `${fact}`)));
  at("model").hidden = false;
}

function term(name, text) {
  const pair = document.createElement("div");
  const title = document.createElement("dt");
  const fact = document.createElement("dd");
  title.textContent = name;
  fact.textContent = text;
  pair.append(title, fact);
  return pair;
}

function showGone(refusal) {
  at("gone").hidden = false;
  at("gone-why").textContent = refusal.status ? refusal.message : word(refusal.code);
}

function askForKey() {
  at("key-error").textContent = service.key ? word("keyRefused") : "";
  service.use("");
  at("forget").hidden = true;
  at("key-form").hidden = false;
  at("key").focus();
}

// What people give it

/** `sources` are File and URL. */
function take(sources) {
  const room = Math.max(0, album.room);
  const pictures = sources.slice(0, room).map((source) => new Picture(source));
  const left = sources.length - pictures.length;
  album.pictures.push(...pictures);
  at("results").hidden = !album.pictures.length;
  for (const picture of pictures) rows.add(picture);
  toShrink.push(...pictures.filter((picture) => picture.isFile));
  shrinkNext();
  queue.add(pictures);
  return left ? word("tooMany", { most: MOST_PICTURES, n: left, count: wholeText(left) }) : "";
}

function takeAll({ files, urls, others }) {
  const sentences = [];
  if (others.length) {
    const first = others[0].length > 60 ? `${others[0].slice(0, 60)}…` : others[0];
    sentences.push(word("notUrls", { n: others.length, first }));
  }
  const left = take([...files, ...urls]);
  if (left) sentences.push(left);
  if (!files.length && !urls.length && !others.length) sentences.push(word("nothing"));
  say(sentences.join(" "));
}

async function takeTransfer(transfer) {
  let found;
  try {
    found = await fromTransfer(transfer);
  } catch (error) {
    if (!(error instanceof DOMException)) throw error;
    say(word("unreadable")); // a folder that this person may not read
    return;
  }
  takeAll(found);
}

function say(text) {
  at("said").textContent = text;
  at("said").hidden = !text;
}

/** Makes small copies, in order, once the limits are known. */
function shrinkNext() {
  while (info && shrinking < SHRINKING && toShrink.length) {
    const picture = toShrink.shift();
    shrinking += 1;
    picture
      .shrink(info.limits.max_image_pixels)
      .then(
        () => {
          if (!album.pictures.includes(picture)) picture.release();
          for (const twin of album.known(picture)) rows.update(twin);
        },
        () => {}, // the queue says on the picture that it can't be read
      )
      .finally(() => {
        shrinking -= 1;
        rows.update(picture);
        later();
        shrinkNext();
      });
  }
}

async function takeSamples() {
  at("samples").disabled = true;
  try {
    const names = await service.samples();
    takeAll({ files: await Promise.all(names.map((name) => service.sample(name))), urls: [], others: [] });
  } catch (error) {
    if (!(error instanceof Refusal)) throw error;
    say(error.status ? error.message : word(error.code));
  } finally {
    at("samples").disabled = false;
  }
}

/** Those of another model than the one that is served now, with which nothing may be compared. */
function forgetVectors() {
  queue.clear();
  vectors = new Vectors();
  album.unplace();
  map.clear();
  matrix.clear();
}

function clear() {
  queue.clear();
  toShrink = [];
  album.clear();
  rows.clear();
  map.clear();
  matrix.clear();
  vectors = new Vectors();
  call = null;
  say("");
  at("call").hidden = true;
  at("results").hidden = true;
  at("choose").focus();
  later();
}

/** Sends what failed once more; another model may be served by now. */
async function retry() {
  const failed = album.pictures.filter((picture) => picture.state === "failed");
  for (const picture of failed) Object.assign(picture, { tries: 0, alone: false });
  await open();
  queue.add(failed);
}

// What is shown

/** Draws everything anew, once a frame however many vectors come. */
function later() {
  document.body.dataset.drawn = "not yet";
  frame ||= requestAnimationFrame(() => {
    frame = 0;
    draw();
    drawn();
  });
  mapTimer ||= setTimeout(() => {
    mapTimer = 0;
    if (album.pictures.length) map.render(vectors);
    drawn();
  }, MAP_EVERY_MS);
}

/** Says on the page when all that is known is shown. */
function drawn() {
  if (!frame && !mapTimer && !shrinking && !toShrink.length) document.body.dataset.drawn = "all";
}

function draw() {
  if (!album.pictures.length) return;
  const threshold = at("threshold").valueAsNumber;
  at("threshold-value").textContent = cosineText(threshold);
  at("threshold").setAttribute("aria-valuetext", cosineText(threshold));
  Object.assign(rows, { vectors, threshold });
  rows.render();
  groups.render(vectors, threshold);
  matrix.render(vectors);
  showProgress();
}

function showProgress() {
  const failed = album.count("failed");
  const parts = [word("progress", { done: album.count("done"), all: album.pictures.length, n: album.pictures.length })];
  if (failed) parts.push(word("failed", { n: failed }));
  if (restsS) parts.push(word("rests", { seconds: wholeText(restsS) }));
  const text = `${parts.join(", ")}.`;
  if (at("progress").textContent !== text) at("progress").textContent = text;
  at("retry").hidden = !failed;
  at("retry").textContent = word("tryFailed", { n: failed });
}

function showCall(made) {
  call = made;
  at("call").hidden = false;
  const { sources, stages, tookMs } = made;
  at("call-said").textContent = word("callSaid", { n: sources.length, ms: wholeText(tookMs) });
  at("stages").replaceChildren(
    ...stages.map(([name, took]) => term(word(`stage_${name}`), word("ms", { ms: wholeText(took) }))),
  );
  showCode();
}

function showCode() {
  at("code").textContent = programs(service.root, call.sources, Boolean(service.key))[language];
  const needs = [];
  if (typeof call.sources[0] !== "string") needs.push(word(`codeNeeds_${language}`));
  if (service.key) needs.push(word("codeNeeds_key"));
  at("code-needs").textContent = needs.join(" ");
  at("copied").textContent = "";
  for (const button of document.querySelectorAll("[data-code]")) {
    button.setAttribute("aria-pressed", `${button.dataset.code === language}`);
  }
}

async function copy() {
  try {
    await navigator.clipboard.writeText(at("code").textContent);
    at("copied").textContent = word("copied");
  } catch {
    // Pages without TLS have no clipboard.
    getSelection().selectAllChildren(at("code"));
    at("copied").textContent = word("notCopied");
  }
}

// What people do

at("choose").addEventListener("click", () => at("files").click());
at("files").addEventListener("change", () => {
  takeAll({ files: [...at("files").files], urls: [], others: [] });
  at("files").value = "";
});
at("samples").addEventListener("click", takeSamples);
at("url-form").addEventListener("submit", (event) => {
  event.preventDefault();
  const found = fromText(at("urls").value);
  takeAll(found);
  at("urls").value = found.others.join("\n");
});
at("key-form").addEventListener("submit", (event) => {
  event.preventDefault();
  const key = at("key").value.trim();
  at("key").value = "";
  if (/^[!-~]+$/.test(key)) {
    service.use(key);
    open();
  } else {
    at("key-error").textContent = word("keyRefused"); // no header can carry it
  }
});
at("forget").addEventListener("click", () => {
  service.use("");
  location.reload();
});
at("gone-retry").addEventListener("click", open);
at("retry").addEventListener("click", retry);
at("clear").addEventListener("click", clear);
at("threshold").addEventListener("input", later);
at("copy").addEventListener("click", copy);
for (const button of document.querySelectorAll("[data-code]")) {
  button.addEventListener("click", () => {
    language = button.dataset.code;
    showCode();
  });
}

document.addEventListener("paste", (event) => {
  const written = event.target.matches?.("input, textarea");
  // More lines than there may be pictures are taken at once: a text field of Chromium 156 takes over 30 s for 10,000.
  const long = event.target === at("urls") && event.clipboardData.getData("text/plain").split("\n").length > MOST_PICTURES;
  if (written && !long && !event.clipboardData.files.length) return;
  event.preventDefault();
  takeTransfer(event.clipboardData);
});
for (const name of ["dragenter", "dragover"]) {
  document.addEventListener(name, (event) => {
    event.preventDefault();
    event.dataTransfer.dropEffect = "copy";
    document.body.classList.add("dropping");
  });
}
document.addEventListener("dragleave", (event) => {
  if (!event.relatedTarget) document.body.classList.remove("dropping");
});
document.addEventListener("drop", (event) => {
  event.preventDefault();
  document.body.classList.remove("dropping");
  takeTransfer(event.dataTransfer);
});

translate(document);
open();
