// The generator, in a worker of its own: it fetches the networks, changes their weights to a blend of looks, and draws.
//
// Weights are inputs of the graphs. `floats` are those of the base, `current` those of the chosen looks:
// (W + Σ α_k difference_k) · (1 + Σ α_k scale_k), where a graph of each look computes its differences and scales.

import { normals } from "./random.mjs";

const HALVES = halves();
let site, ort, floats, current, average;
const sessions = {};
const changes = new Map(); // name → session and tensors of a look
const MOST_MAPPED = 64;
const mapped = new Map(); // looks and seed → w
let shown = "{}"; // the looks that `current` has, as JSON

/** Returns the values of all half-precision numbers by their bits. */
function halves() {
  const values = new Float32Array(65536);
  for (let bits = 0; bits < 65536; bits++) {
    const exponent = (bits >> 10) & 31;
    const fraction = bits & 1023;
    const size = exponent === 0 ? fraction * 2 ** -24 : (1 + fraction / 1024) * 2 ** (exponent - 15);
    values[bits] = exponent === 31 ? (fraction ? NaN : Infinity) : size;
    if (bits & 0x8000) values[bits] *= -1;
  }
  return values;
}

/** Returns the numbers of a file of weights. */
function numbers(buffer) {
  if (!site.halved) return new Float32Array(buffer);
  const bits = new Uint16Array(buffer);
  const values = new Float32Array(bits.length);
  for (let i = 0; i < bits.length; i++) values[i] = HALVES[bits[i]];
  return values;
}

const count = (shape) => shape.reduce((a, b) => a * b, 1);

/** Fetches files of known sizes; `onBytes` is told of each part that arrives. */
async function fetched(files, onBytes) {
  const buffers = [];
  for (const { file, bytes } of files) {
    const answer = await fetch(file);
    if (!answer.ok) throw new Error(`${file}: the server says ${answer.status}`);
    const content = new Uint8Array(bytes);
    let done = 0;
    for (const reader = answer.body.getReader(); ; ) {
      const part = await reader.read();
      if (part.done) break;
      if (done + part.value.length > bytes) throw new Error(`${file} has more than ${bytes} bytes`);
      content.set(part.value, done);
      done += part.value.length;
      onBytes(part.value.length);
    }
    if (done !== bytes) throw new Error(`${file} ended after ${done} of ${bytes} bytes; reload the page`);
    buffers.push(content);
  }
  return buffers;
}

function joined(parts) {
  const whole = new Uint8Array(parts.reduce((sum, part) => sum + part.length, 0));
  let start = 0;
  for (const part of parts) {
    whole.set(part, start);
    start += part.length;
  }
  return whole.buffer;
}

/** Says whether to draw by WebGPU; a GPU that software imitates is slower than WebAssembly. */
async function takesWebGPU(device) {
  if (device === "wasm" || !site.runtime.webgpu || !navigator.gpu) return false;
  const adapter = await navigator.gpu.requestAdapter().catch(() => null);
  if (!adapter) return false;
  const { isFallbackAdapter, architecture } = adapter.info ?? {};
  const imitated = isFallbackAdapter || adapter.isFallbackAdapter || architecture === "swiftshader";
  return device === "webgpu" || !imitated;
}

async function load(description, device, onProgress) {
  site = description;
  let done = 0;
  const runtime = (await takesWebGPU(device)) ? site.runtime.webgpu : site.runtime.wasm;
  const graphs = [site.graphs.mapping, site.graphs.synthesis];
  const files = [...(runtime.wasm.bytes ? [runtime.wasm] : []), ...graphs, ...site.chunks];
  const total = files.reduce((sum, { bytes }) => sum + bytes, 0);
  const onBytes = (bytes) => onProgress((done += bytes), total);
  ort = await import(new URL(runtime.module, location.href).href);
  ort.env.wasm.numThreads = self.crossOriginIsolated ? Math.min(4, navigator.hardwareConcurrency || 1) : 1;
  ort.env.wasm.wasmPaths = new URL(runtime.folder, location.href).href;
  if (runtime.wasm.bytes) ort.env.wasm.wasmBinary = (await fetched([runtime.wasm], onBytes))[0].buffer;
  const [mapping, synthesis] = await fetched(graphs, onBytes);
  floats = numbers(joined(await fetched(site.chunks, onBytes)));
  current = floats.slice();
  average = floats.subarray(...place("mapping.w_avg"));
  sessions.mapping = await ort.InferenceSession.create(mapping, { executionProviders: ["wasm"] });
  const providers = runtime === site.runtime.webgpu ? ["webgpu", "wasm"] : ["wasm"];
  for (const provider of providers) {
    try {
      sessions.synthesis = await ort.InferenceSession.create(synthesis, { executionProviders: [provider] });
      await run("synthesis", new Float32Array(site.num_ws * site.w_dim), [1, site.num_ws, site.w_dim]);
      return { provider, threads: ort.env.wasm.numThreads };
    } catch (error) {
      if (provider === "wasm") throw error; // else the GPU cannot do it, and WebAssembly can
    }
  }
}

function place(name) {
  const [start, shape] = site.tensors[name];
  return [start, start + count(shape)];
}

function tensor(from, name) {
  return new ort.Tensor("float32", from.subarray(...place(name)), site.tensors[name][1]);
}

async function run(part, latent, shape) {
  const feeds = { latent: new ort.Tensor("float32", latent, shape) };
  for (const name of site.graphs[part].inputs) if (name !== "latent") feeds[name] = tensor(current, name);
  const results = await sessions[part].run(feeds);
  return Object.values(results)[0];
}

async function changeOf(name) {
  if (!changes.has(name)) {
    const look = [...site.looks, site.person].find((one) => one?.name === name);
    if (!look) throw new Error(`there is no look ${name}`);
    const [data] = await fetched([look.data], () => {});
    const own = numbers(data.buffer);
    const feeds = {};
    let start = 0;
    for (const [input, shape] of look.own) {
      feeds[input] = new ort.Tensor("float32", own.subarray(start, start + count(shape)), shape);
      start += count(shape);
    }
    const { file } = look.graph; // looks of one kind share a graph
    if (!sessions[file]) {
      const [graph] = await fetched([look.graph], () => {});
      sessions[file] = await ort.InferenceSession.create(graph, { executionProviders: ["wasm"] });
    }
    changes.set(name, { look, session: sessions[file], feeds });
  }
  return changes.get(name);
}

/** Gives `current` the weights of a blend of looks, {name: α}. */
async function change(weights) {
  const wanted = JSON.stringify(weights);
  if (wanted === shown) return;
  const blend = floats.slice();
  const scales = new Map();
  for (const [name, alpha] of Object.entries(weights)) {
    const { look, session, feeds } = await changeOf(name);
    const reads = Object.fromEntries(look.reads.map((read) => [read, tensor(floats, read)]));
    const results = await session.run({ ...reads, ...feeds });
    for (const [output, target, kind] of look.outputs) {
      const { data, dims } = results[output];
      if (kind === "difference") {
        const into = blend.subarray(...place(target));
        for (let i = 0; i < into.length; i++) into[i] += alpha * data[i];
      } else {
        scales.set(target, [...(scales.get(target) ?? []), { data, dims, alpha }]);
      }
    }
  }
  for (const [target, parts] of scales) scale(blend.subarray(...place(target)), site.tensors[target][1], parts);
  current = blend;
  shown = wanted;
}

/** Multiplies a weight [O, I, k, k] by 1 + Σ α · scale, each scale [O or 1, I or 1, 1, 1]. */
function scale(weight, [outputs, inputs, ...kernel], parts) {
  const area = count(kernel);
  for (let o = 0, at = 0; o < outputs; o++) {
    for (let i = 0; i < inputs; i++) {
      let factor = 1;
      for (const { data, dims, alpha } of parts) {
        factor += alpha * data[(dims[0] > 1 ? o : 0) * dims[1] + (dims[1] > 1 ? i : 0)];
      }
      for (let k = 0; k < area; k++) weight[at++] *= factor;
    }
  }
}

/** Returns w+ of a seed under the current looks, truncated, as one array [num_ws · w_dim]. */
async function styles(seed, psi) {
  const key = `${shown} ${seed}`;
  if (!mapped.has(key)) {
    if (mapped.size >= MOST_MAPPED) mapped.clear();
    mapped.set(key, (await run("mapping", normals(seed, site.z_dim), [1, site.z_dim])).data);
  }
  const w = mapped.get(key);
  const row = average.map((mean, i) => mean + psi * (w[i] - mean));
  const all = new Float32Array(site.num_ws * site.w_dim);
  for (let layer = 0; layer < site.num_ws; layer++) all.set(row, layer * site.w_dim);
  return all;
}

function edit(ws, edits) {
  for (const { name, start, stop, vector } of site.directions) {
    const strength = edits[name] ?? 0;
    if (!strength) continue;
    for (let layer = start; layer < (stop ?? site.num_ws); layer++) {
      for (let i = 0; i < site.w_dim; i++) ws[layer * site.w_dim + i] += strength * vector[i];
    }
  }
}

/** Says how strongly the person's adapter acts at w+: 1 near a photo, 0 where the average face is nearer. */
function nearness(ws) {
  const distance = (from) => Math.sqrt(from.reduce((sum, x, i) => sum + (x - ws[i]) ** 2, 0) / ws.length);
  const { photos, whole } = site.person;
  const values = photos.map((photo) => {
    const away = distance(photo);
    const reach = Math.sqrt(photo.reduce((sum, x, i) => sum + (x - average[i % site.w_dim]) ** 2, 0) / ws.length);
    return away <= whole * reach ? 1 : Math.min(1, Math.max(0, (reach - away) / (reach * (1 - whole))));
  });
  return Math.max(...values);
}

/**
 * Draws a picture.
 *
 * face: a seed, or "person"; to, at: another seed and how far to go to it, 0 to 1; psi: truncation; edits: {direction:
 * strength}; looks: {name: weight}.
 */
async function draw({ face, to, at, psi, edits, looks }) {
  const begun = performance.now();
  let changing = 0;
  const changeTo = async (weights) => {
    const start = performance.now();
    await change(weights);
    changing += performance.now() - start;
  };
  if (face !== "person" || at > 0) await changeTo(looks);
  const ws = face === "person" ? Float32Array.from(site.person.photos[0]) : await styles(face, psi);
  if (at > 0) {
    const end = await styles(to, psi);
    for (let i = 0; i < ws.length; i++) ws[i] += at * (end[i] - ws[i]);
  }
  edit(ws, edits);
  if (face === "person") {
    const strength = Math.min(1, Object.values(looks).reduce((sum, weight) => sum + Math.abs(weight), 0));
    const weight = (1 - (1 - site.person.likeness) * strength) * nearness(ws);
    await changeTo({ ...(weight ? { [site.person.name]: weight } : {}), ...looks });
  }
  const { data, dims } = await run("synthesis", ws, [1, site.num_ws, site.w_dim]);
  const area = dims[2] * dims[3];
  const rgba = new Uint8ClampedArray(4 * area).fill(255);
  for (let c = 0; c < 3; c++) {
    for (let i = 0; i < area; i++) rgba[4 * i + c] = (data[c * area + i] + 1) * 127.5;
  }
  return { rgba, size: dims[2], changing, drawing: performance.now() - begun - changing };
}

async function answer({ data: { id, method, args } }) {
  try {
    const onProgress = (done, total) => self.postMessage({ progress: { done, total } });
    const result = await (method === "load" ? load(...args, onProgress) : draw(...args));
    self.postMessage({ id, result }, result.rgba ? [result.rgba.buffer] : []);
  } catch (error) {
    self.postMessage({ id, error: error.message || String(error) });
  }
}

let last = Promise.resolve(); // one request at a time: the runtime cannot do two, and they share `current`
self.onmessage = (event) => {
  last = last.then(() => answer(event));
};
