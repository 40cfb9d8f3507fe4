/** What people drop, paste and write, as files and URLs. */

/** Like `https:`, and like anything else that the service has a sentence for. */
const URL_LIKE = /^[a-z][a-z0-9+.-]*:\S+$/i;

/**
 * The URLs of a text, one a line: `{urls, files, others}`. A `data:` URL carries its picture, which becomes a file.
 * `others` are the lines that are no URL.
 */
export function fromText(text) {
  const found = { urls: [], files: [], others: [] };
  for (const line of text.split(/[\r\n]+/).map((each) => each.trim())) {
    if (!line || line.startsWith("#")) continue; // which text/uri-list has for comments
    const file = carried(line, found.files.length + 1);
    if (file) found.files.push(file);
    else if (URL_LIKE.test(line)) found.urls.push(line);
    else found.others.push(line);
  }
  return found;
}

/** The same of a drop or a paste. Folders are looked through. */
export async function fromTransfer(transfer) {
  // All at once: the browser forgets them when the event is over.
  const entries = [...transfer.items].filter((item) => item.kind === "file").map(entryOf);
  const text = transfer.getData("text/uri-list") || transfer.getData("text/plain");
  const files = (await Promise.all(entries.map(filesOf))).flat();
  // Who drags a picture out of another page drops its file and its URL.
  return files.length ? { urls: [], files, others: [] } : fromText(text);
}

function entryOf(item) {
  const entry = item.webkitGetAsEntry?.();
  return entry?.isDirectory ? entry : item.getAsFile();
}

/** The files of a File, or of a folder and those in it. */
async function filesOf(entry) {
  if (!entry) return [];
  if (entry instanceof File) return [entry];
  if (entry.isFile) return [await new Promise((resolve, reject) => entry.file(resolve, reject))];
  const reader = entry.createReader();
  const files = [];
  for (;;) {
    const some = await new Promise((resolve, reject) => reader.readEntries(resolve, reject));
    if (!some.length) return files;
    for (const each of some) files.push(...(await filesOf(each)));
  }
}

/** The picture in a `data:` URL of base64, as a File; null for anything else. */
function carried(line, number) {
  const parts = /^data:(image\/([a-z0-9.+-]+))?[^,]*;base64,([a-z0-9+/=_-]+)$/i.exec(line);
  if (!parts) return null;
  try {
    const bytes = Uint8Array.from(atob(parts[3]), (character) => character.charCodeAt(0));
    return new File([bytes], `data-${number}.${parts[2] ?? "bin"}`, { type: parts[1] ?? "" });
  } catch {
    return null; // the service says what is wrong with it
  }
}
