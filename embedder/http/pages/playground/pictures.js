/** One picture: where it is from, what is known of it, and a small copy of it to show. */

/** Longest side of a small copy, in pixels: twice as many as it is shown with, for dense screens. */
const SMALL = 320;
/** Files begin with their size; a JPEG's may be behind a colour profile and a preview. */
const HEAD_BYTES = 262144;

let last = 0;

export class Picture {
  id = ++last;
  /** "waiting", "asked", "done" or "failed". */
  state = "waiting";
  /** Its place among the vectors; null without one. */
  place = null;
  /** Of a failure: `{code, sentence}`. */
  error = null;
  /** What the service says: `{format, width, height, bytes, sha256}`. */
  details = null;
  /** The address of its small copy, which can be shown; null without one. */
  small = null;
  tries = 0;

  /** `source` is a File or a URL. */
  constructor(source) {
    this.source = source;
    if (typeof source === "string") {
      const url = URL.canParse(source) ? new URL(source) : null;
      const path = decoded(url?.pathname.split("/").filter(Boolean).pop() ?? "");
      this.host = url?.host ?? "";
      this.name = (path || url?.host || source).slice(0, 200);
    } else {
      this.host = "";
      this.name = source.name || "?";
    }
  }

  get isFile() {
    return typeof this.source !== "string";
  }

  /**
   * Makes the small copy of a file, unless it has more than `mostPixels`: decoding takes four bytes for each.
   * Throws where the file can't be read. One that the browser can't show stays without.
   */
  async shrink(mostPixels) {
    const head = new Uint8Array(await this.source.slice(0, HEAD_BYTES).arrayBuffer());
    const size = sizeOf(head);
    if (size && size[0] * size[1] > mostPixels) return;
    let bitmap;
    try {
      bitmap = await createImageBitmap(this.source);
    } catch {
      return; // a TIFF, say, or no picture at all: the service says which
    }
    const scale = Math.min(1, SMALL / Math.max(bitmap.width, bitmap.height));
    const canvas = document.createElement("canvas");
    canvas.width = Math.max(1, Math.round(bitmap.width * scale));
    canvas.height = Math.max(1, Math.round(bitmap.height * scale));
    const context = canvas.getContext("2d");
    context.imageSmoothingQuality = "high";
    context.drawImage(bitmap, 0, 0, canvas.width, canvas.height);
    bitmap.close();
    const blob = await new Promise((resolve) => canvas.toBlob(resolve, "image/webp", 0.85));
    if (blob) this.small = URL.createObjectURL(blob);
  }

  /** Lets the small copy go. */
  release() {
    if (this.small) URL.revokeObjectURL(this.small);
    this.small = null;
  }
}

function decoded(text) {
  try {
    return decodeURIComponent(text);
  } catch {
    return text;
  }
}

/** The width and height that the head of a file states, for formats that browsers decode; null where it is unknown. */
export function sizeOf(head) {
  const view = new DataView(head.buffer, head.byteOffset, head.byteLength);
  const text = (at, length) => String.fromCharCode(...head.subarray(at, at + length));
  try {
    if (text(1, 3) === "PNG") return [view.getUint32(16), view.getUint32(20)];
    if (text(0, 3) === "GIF") return [view.getUint16(6, true), view.getUint16(8, true)];
    if (text(0, 2) === "BM") return [Math.abs(view.getInt32(18, true)), Math.abs(view.getInt32(22, true))];
    if (text(0, 4) === "RIFF" && text(8, 4) === "WEBP") return webp(view, text(12, 4));
    if (text(4, 4) === "ftyp") return isobmff(view, text);
    if (view.getUint16(0) === 0xffd8) return jpeg(view);
  } catch (error) {
    if (!(error instanceof RangeError)) throw error; // the head ends before its size
  }
  return null;
}

function webp(view, chunk) {
  if (chunk === "VP8 ") return [view.getUint16(26, true) & 0x3fff, view.getUint16(28, true) & 0x3fff];
  if (chunk === "VP8L") {
    const bits = view.getUint32(21, true);
    return [(bits & 0x3fff) + 1, ((bits >>> 14) & 0x3fff) + 1];
  }
  const uint24 = (at) => view.getUint16(at, true) + 65536 * view.getUint8(at + 2);
  return [uint24(24) + 1, uint24(27) + 1];
}

/** AVIF and HEIC: of all items the largest, as its box `ispe` says. */
function isobmff(view, text) {
  let largest = null;
  for (let at = 0; at + 16 <= view.byteLength; at++) {
    if (view.getUint8(at) !== 0x69 || text(at, 4) !== "ispe") continue;
    const size = [view.getUint32(at + 8), view.getUint32(at + 12)];
    if (!largest || size[0] * size[1] > largest[0] * largest[1]) largest = size;
  }
  return largest;
}

function jpeg(view) {
  for (let at = 2; ; at += 2 + view.getUint16(at + 2)) {
    while (view.getUint8(at) === 0xff && view.getUint8(at + 1) === 0xff) at += 1;
    const marker = view.getUint8(at + 1);
    const frame = marker >= 0xc0 && marker <= 0xcf && ![0xc4, 0xc8, 0xcc].includes(marker);
    if (frame) return [view.getUint16(at + 7), view.getUint16(at + 5)];
    if (view.getUint8(at) !== 0xff || marker === 0xda) return null;
  }
}
