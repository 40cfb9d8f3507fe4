/** A call of `/embed_batch` as programs that run as they are, in the folder that has the files. */

/** What stands for a key. */
export const KEY_PLACEHOLDER = "YOUR_KEY";

/** `sources` are File or URL; `keyed`, whether a key is sent. Gives a program by the name of its language. */
export function programs(root, sources, keyed) {
  const urls = typeof sources[0] === "string" ? sources : null;
  const names = urls ? [] : sources.map((file) => file.name);
  return {
    curl: curl(`${root}/embed_batch`, urls, names, keyed),
    python: python(`${root}/embed_batch`, urls, names, keyed),
    javascript: javascript(`${root}/embed_batch`, urls, names, keyed),
  };
}

function curl(address, urls, names, keyed) {
  const lines = [`curl -s ${shell(address)}`];
  if (keyed) lines.push(`-H ${shell(`X-API-Key: ${KEY_PLACEHOLDER}`)}`);
  if (urls) {
    lines.push("-H 'Content-Type: application/json'", `-d ${shell(JSON.stringify({ urls, details: true }))}`);
  } else {
    lines.push("-F details=true", ...names.map((name) => `-F ${shell(`files=@${quoted(name)}`)}`));
  }
  return lines.join(" \\\n  ");
}

function python(address, urls, names, keyed) {
  const headers = keyed ? `, headers={"X-API-Key": ${JSON.stringify(KEY_PLACEHOLDER)}}` : "";
  const sent = urls
    ? ["urls = [", ...urls.map((url) => `    ${literal(url)},`), "]"]
    : ["names = [", ...names.map((name) => `    ${literal(name)},`), "]"];
  const body = urls
    ? `json={"urls": urls, "details": True}`
    : `files=[("files", open(name, "rb")) for name in names], data={"details": "true"}`;
  return [
    "import requests",
    "",
    ...sent,
    "answer = requests.post(",
    `    ${literal(address)},`,
    `    ${body}${headers},`,
    ")",
    "answer.raise_for_status()",
    'for vector in answer.json()["embeddings"]:',
    "    print(len(vector) if vector else None)",
  ].join("\n");
}

function javascript(address, urls, names, keyed) {
  const key = keyed ? `"X-API-Key": ${JSON.stringify(KEY_PLACEHOLDER)}` : "";
  const shown = [
    "if (!answer.ok) throw new Error(await answer.text());",
    "for (const vector of (await answer.json()).embeddings) console.log(vector?.length ?? null);",
  ];
  if (urls) {
    const headers = ['"Content-Type": "application/json"', ...(key ? [key] : [])].join(", ");
    return [
      "const urls = [",
      ...urls.map((url) => `  ${literal(url)},`),
      "];",
      `const answer = await fetch(${literal(address)}, {`,
      '  method: "POST",',
      `  headers: { ${headers} },`,
      "  body: JSON.stringify({ urls, details: true }),",
      "});",
      ...shown,
    ].join("\n");
  }
  return [
    'import { openAsBlob } from "node:fs";',
    "",
    "const names = [",
    ...names.map((name) => `  ${literal(name)},`),
    "];",
    "const body = new FormData();",
    'body.append("details", "true");',
    'for (const name of names) body.append("files", await openAsBlob(name), name);',
    `const answer = await fetch(${literal(address)}, { method: "POST", body${key ? `, headers: { ${key} }` : ""} });`,
    ...shown,
  ].join("\n");
}

/** A word of a POSIX shell. */
function shell(text) {
  return /^[\w./:=@-]+$/.test(text) ? text : `'${text.replaceAll("'", String.raw`'\''`)}'`;
}

/** A file's name as curl's -F reads it: `;` and `,` would end it outside of quotes. */
function quoted(name) {
  return /^[\w. -]+$/.test(name) ? name : `"${name.replaceAll("\\", "\\\\").replaceAll('"', '\\"')}"`;
}

/** A string literal of Python and of JavaScript: in JSON's form both read it. */
function literal(text) {
  return JSON.stringify(text).replace(/[\u007f-\u009f\u2028\u2029]/g, escaped);
}

function escaped(character) {
  return `\\u${character.charCodeAt(0).toString(16).padStart(4, "0")}`;
}
