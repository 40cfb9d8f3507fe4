/** The page's words, in English and in French: by the browser's first language that is one of the two. */

const ENGLISH = {
  pageTitle: "Playground: image-embedder",
  title: "Playground",
  lead: "What the vectors of your pictures say: which are near, which are copies, how they lie.",
  untrained: "This model is untrained.",
  untrainedMeans:
    "Its vectors say next to nothing about pictures. They are enough to try the service, and useless for search.",
  model: "Model",
  trained: "Trained",
  yes: "yes",
  no: "no",
  weights: "Weights",
  fingerprint: "Fingerprint",
  dimension: "Numbers a vector",
  precision: "Precision",
  keyLabel: "This service asks for an API key.",
  keyUse: "Use this key",
  keyHint: "It is kept in this tab only, and sent to this service only.",
  keyRefused: "The service does not take this key.",
  keyForget: "Forget the key",
  intake: "Pictures",
  drop: "Drop pictures anywhere on this page, or paste them.",
  choose: "Choose pictures",
  samples: "Use sample pictures",
  urls: "Or paste URLs, one a line",
  embedUrls: "Embed these URLs",
  tooMany: "{most} pictures at once are the limit: {count} was left out.|{most} pictures at once are the limit: {count} were left out.",
  notUrls: "{n} line is no URL and was left out: {first}|{n} lines are no URLs and were left out, the first: {first}",
  nothing: "There was no picture and no URL in it.",
  progress: "{done} of {all} picture has its vector|{done} of {all} pictures have their vectors",
  failed: "{n} failed",
  rests: "the service is busy: again in {seconds} s",
  tryAgain: "Try again",
  tryFailed: "Try the failed one again|Try the {n} failed ones again",
  clear: "Start over",
  near: "Nearest",
  nearHint: "Each picture with those whose vectors are nearest. The number is the cosine: 1 is the same direction.",
  nearOf: "{name}, cosine {cosine}",
  nearList: "Nearest to {name}",
  waiting: "waiting",
  asked: "in work",
  sizeAndFormat: "{format} {width} × {height}",
  unreachable: "The service does not answer.",
  broken: "The service's answer broke off, or can't be read.",
  unreadable: "The file can't be read.",
  copies: "Near copies",
  threshold: "Cosine of at least",
  groups: "{n} group, with {pictures} pictures in it|{n} groups, with {pictures} pictures in them",
  noGroups: "No two pictures are that near.",
  groupOf: "{n} pictures, cosine {lowest} or more|{n} pictures, cosine {lowest} or more",
  more: "and {n} more",
  map: "Map",
  mapHint: "Principal components: the two directions in which the vectors differ most, {share} of their variance. Near on the map is often near, not always.",
  mapFew: "With three pictures there is a map.",
  matrix: "All pairs",
  matrixHint: "The cosine of each picture with each. Point at a field, or use the arrow keys.",
  pair: "{one} and {two}: {cosine}",
  call: "The call that was just made",
  callSaid: "{n} picture, answered in {ms} ms.|{n} pictures, answered in {ms} ms.",
  stage_fetch: "fetch",
  stage_decode: "decode",
  stage_queue: "queue",
  stage_encode: "network",
  stage_total: "in the service",
  ms: "{ms} ms",
  codeNeeds_curl: "It runs in the folder that has the files.",
  codeNeeds_python: "It takes the package requests, and the folder that has the files.",
  codeNeeds_javascript: "For Node.js 20 or newer, as a module (call.mjs), in the folder that has the files.",
  codeNeeds_key: "In place of YOUR_KEY your key.",
  copy: "Copy",
  copied: "Copied.",
  notCopied: "It is selected: copy it with the keyboard.",
  stays: "Pictures go to this service and nowhere else; nothing is stored.",
  docs: "API documentation",
};

const FRENCH = {
  pageTitle: "Bac à sable : image-embedder",
  title: "Bac à sable",
  lead: "Ce que disent les vecteurs de vos images : lesquelles sont proches, lesquelles sont des copies, comment elles se placent.",
  untrained: "Ce modèle n’est pas entraîné.",
  untrainedMeans:
    "Ses vecteurs ne disent presque rien des images. C’est assez pour essayer le service, et inutile pour chercher.",
  model: "Modèle",
  trained: "Entraîné",
  yes: "oui",
  no: "non",
  weights: "Poids",
  fingerprint: "Empreinte",
  dimension: "Nombres par vecteur",
  precision: "Précision",
  keyLabel: "Ce service demande une clé d’API.",
  keyUse: "Utiliser cette clé",
  keyHint: "Elle reste dans cet onglet, et n’est envoyée qu’à ce service.",
  keyRefused: "Le service n’accepte pas cette clé.",
  keyForget: "Oublier la clé",
  intake: "Images",
  drop: "Déposez des images n’importe où sur cette page, ou collez-les.",
  choose: "Choisir des images",
  samples: "Prendre les images d’exemple",
  urls: "Ou collez des URL, une par ligne",
  embedUrls: "Calculer les vecteurs",
  tooMany: "La limite est de {most} images à la fois : {count} a été laissée de côté.|La limite est de {most} images à la fois : {count} ont été laissées de côté.",
  notUrls: "{n} ligne n’est pas une URL et a été laissée de côté : {first}|{n} lignes ne sont pas des URL et ont été laissées de côté, la première : {first}",
  nothing: "Il n’y avait ni image ni URL.",
  progress: "{done} image sur {all} a son vecteur|{done} images sur {all} ont leur vecteur",
  failed: "{n} en échec",
  rests: "le service est occupé : nouvel essai dans {seconds} s",
  tryAgain: "Réessayer",
  tryFailed: "Réessayer celle en échec|Réessayer les {n} en échec",
  clear: "Recommencer",
  near: "Plus proches",
  nearHint: "Chaque image avec celles dont les vecteurs sont les plus proches. Le nombre est le cosinus : 1 est la même direction.",
  nearOf: "{name}, cosinus {cosine}",
  nearList: "Plus proches de {name}",
  waiting: "en attente",
  asked: "en cours",
  sizeAndFormat: "{format} {width} × {height}",
  unreachable: "Le service ne répond pas.",
  broken: "La réponse du service est incomplète ou illisible.",
  unreadable: "Le fichier ne peut pas être lu.",
  copies: "Quasi-copies",
  threshold: "Cosinus d’au moins",
  groups: "{n} groupe, qui réunit {pictures} images|{n} groupes, qui réunissent {pictures} images",
  noGroups: "Aucune paire d’images n’est si proche.",
  groupOf: "{n} images, cosinus {lowest} ou plus|{n} images, cosinus {lowest} ou plus",
  more: "et {n} de plus",
  map: "Carte",
  mapHint: "Composantes principales : les deux directions où les vecteurs diffèrent le plus, {share} de leur variance. Proche sur la carte veut souvent dire proche, pas toujours.",
  mapFew: "Avec trois images, il y aura une carte.",
  matrix: "Toutes les paires",
  matrixHint: "Le cosinus de chaque image avec chacune. Pointez une case, ou utilisez les flèches.",
  pair: "{one} et {two} : {cosine}",
  call: "L’appel qui vient d’être fait",
  callSaid: "{n} image, réponse en {ms} ms.|{n} images, réponse en {ms} ms.",
  stage_fetch: "téléchargement",
  stage_decode: "décodage",
  stage_queue: "attente",
  stage_encode: "réseau",
  stage_total: "dans le service",
  ms: "{ms} ms",
  codeNeeds_curl: "À lancer dans le dossier des fichiers.",
  codeNeeds_python: "Il faut le paquet requests, et le dossier des fichiers.",
  codeNeeds_javascript: "Pour Node.js 20 ou plus récent, en module (call.mjs), dans le dossier des fichiers.",
  codeNeeds_key: "À la place de YOUR_KEY, votre clé.",
  copy: "Copier",
  copied: "Copié.",
  notCopied: "Le texte est sélectionné : copiez-le au clavier.",
  stays: "Les images vont à ce service et nulle part ailleurs ; rien n’est conservé.",
  docs: "Documentation de l’API",
};

const spoken = navigator.languages.map((tag) => tag.slice(0, 2).toLowerCase()).find((tag) => ["en", "fr"].includes(tag));
/** "en" or "fr". */
export const LANGUAGE = spoken ?? "en";
const WORDS = LANGUAGE === "fr" ? FRENCH : ENGLISH;
const plural = new Intl.PluralRules(LANGUAGE);
const threeDecimals = new Intl.NumberFormat(LANGUAGE, { minimumFractionDigits: 3, maximumFractionDigits: 3 });
const percent = new Intl.NumberFormat(LANGUAGE, { style: "percent" });
const whole = new Intl.NumberFormat(LANGUAGE, { maximumFractionDigits: 0 });

/** A sentence with `values` in it. Where it has two forms, `values.n` chooses. */
export function word(name, values = {}) {
  const forms = WORDS[name].split("|");
  const form = forms.length > 1 && plural.select(values.n) !== "one" ? forms[1] : forms[0];
  return form.replaceAll(/\{(\w+)\}/g, (_, key) => `${values[key]}`);
}

/** "0.973", in French "0,973" */
export const cosineText = (cosine) => threeDecimals.format(cosine);
export const percentText = (share) => percent.format(share);
export const wholeText = (number) => whole.format(number);

/** Puts the words into the elements that name one, and says which language they are. */
export function translate(root) {
  root.documentElement.lang = LANGUAGE;
  root.title = word("pageTitle");
  for (const element of root.querySelectorAll("[data-word]")) element.textContent = word(element.dataset.word);
}
