// The page: its controls, the address that reproduces a picture, and pictures as the engine draws them.

const TO_SAVE = { png: "image/png", webp: "image/webp" };
const MORE = 8;
const THUMBNAIL = 256; // px
const PLAY_STEP = 0.1;
const RELOADED = `reloaded ${location.pathname}`;
const READY_WITHIN = 10_000; // ms; then the page works without what keeps it
const $ = (id) => document.getElementById(id);
const picture = $("picture");
let site, engine, wanted, drawing, playing;

class Engine {
  constructor(onProgress) {
    this.worker = new Worker("engine.mjs", { type: "module" });
    this.waiting = new Map();
    this.next = 0;
    this.worker.onmessage = ({ data }) => {
      if (data.progress) return onProgress(data.progress);
      const { resolve, reject } = this.waiting.get(data.id);
      this.waiting.delete(data.id);
      return data.error ? reject(new Error(data.error)) : resolve(data.result);
    };
    this.worker.onerror = (event) => {
      for (const { reject } of this.waiting.values()) reject(new Error(event.message || "the worker cannot be started"));
    };
  }

  call(method, ...args) {
    const id = this.next++;
    return new Promise((resolve, reject) => {
      this.waiting.set(id, { resolve, reject });
      this.worker.postMessage({ id, method, args });
    });
  }
}

function say(text, failed = false) {
  $("status").textContent = text;
  $("status").classList.toggle("failed", failed);
}

// ------------------------------------------------------------------------------------------------ the address

const bounded = (text, low, high, usual) => {
  const number = Number.parseFloat(text);
  return Number.isFinite(number) ? Math.min(high, Math.max(low, number)) : usual;
};
const seedOf = (text, usual = 0) => Math.floor(bounded(text, 0, 2 ** 32 - 1, usual));
const decoded = (text) => {
  try {
    return decodeURIComponent(text);
  } catch {
    return text; // somebody typed a % into the address
  }
};
const pairs = (text) => (text ?? "").split(",").map((part) => part.split(":").map(decoded));

/** Puts what the address says into the controls. */
function readAddress() {
  const given = new URLSearchParams(location.hash.slice(1));
  $("seed").value = seedOf(given.get("seed"));
  $("psi").value = bounded(given.get("psi"), 0, 1.2, site.psi);
  $("to").value = seedOf(given.get("to"), 1);
  $("at").value = bounded(given.get("at"), 0, 1, 0);
  $("person").checked = Boolean(site.person) && given.get("face") === "person";
  const looks = new Map(pairs(given.get("look")));
  for (const [i, { name, strength }] of site.looks.entries()) {
    const said = looks.has(name) ? bounded(looks.get(name), 0, 1.5, 1) : 0;
    $(`look-${i}`).value = given.has("look") ? said : strength;
  }
  const edits = new Map(pairs(given.get("edit")));
  for (const [i, { name }] of site.directions.entries()) $(`edit-${i}`).value = bounded(edits.get(name), -3, 3, 0);
}

/** Returns what the controls say. */
function state() {
  const values = (list, id) =>
    Object.fromEntries(list.map(({ name }, i) => [name, Number($(`${id}-${i}`).value)]).filter(([, value]) => value));
  return {
    face: $("person").checked ? "person" : seedOf($("seed").value),
    to: seedOf($("to").value, 1),
    at: Number($("at").value),
    psi: Number($("psi").value),
    looks: values(site.looks, "look"),
    edits: values(site.directions, "edit"),
  };
}

function writeAddress({ face, to, at, psi, looks, edits }) {
  const named = ([name, value]) => `${encodeURIComponent(name)}:${value}`;
  const listed = (values) => Object.entries(values).map(named).join(",");
  const said = new URLSearchParams({ seed: seedOf($("seed").value), psi, look: listed(looks) });
  if (face === "person") said.set("face", "person");
  if (at) {
    said.set("to", to);
    said.set("at", at);
  }
  if (Object.keys(edits).length) said.set("edit", listed(edits));
  const device = new URLSearchParams(location.hash.slice(1)).get("device");
  if (device) said.set("device", device);
  try {
    history.replaceState(null, "", `#${said.toString().replaceAll("%3A", ":").replaceAll("%2C", ",")}`);
  } catch {
    // some browsers allow a hundred changes in ten seconds; the next picture writes it
  }
}

// ------------------------------------------------------------------------------------------------ pictures

function inWords({ face, at, to, looks }) {
  const names = Object.entries(looks).map(([name, weight]) => (weight === 1 ? name : `${name} ${weight}`));
  const who = face === "person" ? "The person" : `Face ${face}`;
  return `${who}${at ? `, ${Math.round(100 * at)} % of the way to face ${to}` : ""}: ${names.join(" + ") || "no look"}`;
}

function show(canvas, { rgba, size }) {
  canvas.width = canvas.height = size;
  canvas.getContext("2d").putImageData(new ImageData(rgba, size, size), 0, 0);
}

/** Draws what the controls say; while a picture is drawn, only the latest wish waits. */
async function draw() {
  wanted = state();
  showNumbers();
  if (drawing) return drawing;
  drawing = (async () => {
    try {
      while (wanted) {
        const now = wanted;
        wanted = null;
        say("Drawing …");
        const result = await engine.call("draw", now);
        show(picture, result);
        picture.setAttribute("aria-label", inWords(now));
        const seconds = ((result.changing + result.drawing) / 1000).toFixed(1);
        say(`${inWords(now)}. ${result.size} px in ${seconds} s.`);
        writeAddress(now);
        const { dataset } = document.body; // for those who measure the page
        dataset.times = JSON.stringify([result.changing, result.drawing]);
        dataset.drawn = Number(dataset.drawn ?? 0) + 1;
      }
      return true;
    } catch (error) {
      wanted = null;
      say(`The picture could not be drawn: ${error.message}`, true);
      return false;
    } finally {
      drawing = null;
    }
  })();
  return drawing;
}

/** Draws small pictures of the next seeds in the same looks; a click makes one the picture. */
async function drawMore() {
  const now = { ...state(), at: 0 };
  const first = seedOf($("seed").value);
  $("more").disabled = true;
  $("grid").replaceChildren();
  try {
    for (let i = 1; i <= MORE; i++) {
      const seed = (first + i) % 2 ** 32;
      const result = await engine.call("draw", { ...now, face: seed });
      const whole = document.createElement("canvas");
      show(whole, result);
      const small = document.createElement("canvas");
      small.width = small.height = THUMBNAIL;
      small.getContext("2d").drawImage(whole, 0, 0, THUMBNAIL, THUMBNAIL);
      const button = document.createElement("button");
      button.setAttribute("aria-label", `Show face ${seed}`);
      button.append(small);
      button.addEventListener("click", () => choose(seed));
      $("grid").append(button);
    }
  } catch (error) {
    say(`The faces could not be drawn: ${error.message}`, true);
  } finally {
    $("more").disabled = false;
  }
}

function choose(seed) {
  $("seed").value = seed;
  $("person").checked = false;
  $("at").value = 0;
  draw();
  picture.scrollIntoView({ block: "nearest" });
}

function setPlaying(on) {
  playing = on ? {} : null; // each run has a token of its own
  $("play").setAttribute("aria-pressed", on);
  $("play").textContent = on ? "Pause" : "Play";
  return playing;
}

async function play() {
  const own = setPlaying(!playing);
  for (let step = PLAY_STEP; own && playing === own; ) {
    const at = Number($("at").value) + step;
    if (at < 0 || at > 1) step = -step;
    $("at").value = Math.min(1, Math.max(0, at));
    if (!(await draw()) && playing === own) setPlaying(false);
  }
}

async function save(kind) {
  const blob = await new Promise((resolve) => picture.toBlob(resolve, TO_SAVE[kind], 0.95));
  const link = document.createElement("a");
  link.href = URL.createObjectURL(blob);
  const ending = blob.type.split("/")[1]; // some browsers write PNG where they cannot write WebP
  link.download = `${picture.getAttribute("aria-label").toLowerCase().replace(/[^\w.]+/g, "-")}.${ending}`;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60_000);
}

async function copyLink() {
  try {
    await navigator.clipboard.writeText(location.href);
    say("The link is copied. It draws this picture in any browser.");
  } catch {
    say(`Copy the address of the page: ${location.href}`);
  }
}

// ------------------------------------------------------------------------------------------------ the start

function slider(parent, id, name, low, high) {
  const label = document.createElement("label");
  label.htmlFor = id;
  label.textContent = name;
  const input = document.createElement("input");
  Object.assign(input, { id, type: "range", min: low, max: high, step: 0.01, value: 0 });
  parent.append(label, input);
}

/** Shows the number of each slider beside its name. */
function showNumbers() {
  for (const input of document.querySelectorAll("input[type=range]")) {
    const label = document.querySelector(`label[for="${input.id}"]`);
    label.dataset.value = Number(input.value);
  }
}

function build() {
  for (const [i, { name }] of site.looks.entries()) slider($("looks"), `look-${i}`, name, 0, 1.5);
  for (const [i, { name }] of site.directions.entries()) slider($("edits").lastElementChild, `edit-${i}`, name, -3, 3);
  $("looks").hidden = !site.looks.length;
  $("edits").hidden = !site.directions.length;
  $("person").hidden = $("person-label").hidden = !site.person;
  $("licence").textContent = site.licence;
  if (site.person) {
    $("unreal").textContent = "These people do not exist, except the person named below.";
    $("consent").hidden = false;
    $("consent").textContent = `The person: ${site.person.consent}`;
  }
  $("controls").addEventListener("input", () => draw());
  $("controls").addEventListener("submit", (event) => event.preventDefault());
  $("new").addEventListener("click", () => choose(Math.floor(Math.random() * 1_000_000)));
  $("more").addEventListener("click", drawMore);
  $("play").addEventListener("click", play);
  $("link").addEventListener("click", copyLink);
  for (const kind of Object.keys(TO_SAVE)) $(kind).addEventListener("click", () => save(kind));
  addEventListener("hashchange", () => {
    readAddress();
    draw();
  });
}

/** Installs the service worker, and loads the page once more if that lets it use several threads. */
async function keepForLater() {
  if (!("serviceWorker" in navigator)) return;
  if (navigator.serviceWorker.controller) {
    navigator.serviceWorker.addEventListener("controllerchange", () => location.reload()); // the site was renewed
  }
  try {
    await navigator.serviceWorker.register("sw.js");
    const late = new Promise((_, reject) => setTimeout(reject, READY_WITHIN));
    await Promise.race([navigator.serviceWorker.ready, late]);
  } catch {
    return; // e.g. a private window: the page works, but is not kept
  }
  if (!crossOriginIsolated && !sessionStorage.getItem(RELOADED)) {
    sessionStorage.setItem(RELOADED, "1");
    location.reload();
    await new Promise(() => {});
  }
}

async function start() {
  await keepForLater();
  const answer = await fetch("site.json");
  if (!answer.ok) throw new Error(`site.json: the server says ${answer.status}`);
  site = await answer.json();
  build();
  readAddress();
  engine = new Engine(({ done, total }) => {
    $("progress").value = done / total;
    say(`Loading ${(done / 2 ** 20).toFixed(1)} of ${(total / 2 ** 20).toFixed(1)} MB …`);
  });
  const device = new URLSearchParams(location.hash.slice(1)).get("device");
  const { provider, threads } = await engine.call("load", site, device);
  document.body.dataset.engine = `${provider}, ${threads} threads`;
  $("progress").hidden = true;
  for (const button of document.querySelectorAll("button")) button.disabled = false;
  $("controls").inert = false;
  await draw();
  keepLooks();
}

/** Lets the service worker keep the looks that were not used yet, for visits without a network. */
async function keepLooks() {
  if (!navigator.serviceWorker?.controller) return;
  for (const file of site.files) if (file.startsWith("looks/")) await fetch(file).catch(() => {});
}

start().catch((error) => say(`The page could not be started: ${error.message}`, true));
