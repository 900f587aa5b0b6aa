// Keeps the site for visits without a network, and lets the page use several threads, which browsers allow to isolated
// pages only: servers that cannot send the headers need not.

const PREFIX = `fewshot-gan ${self.registration.scope} `; // pages of one origin share its caches
const CACHE = `${PREFIX}__VERSION__`;
const SHELL = __SHELL__; // fetched at once; the names of the other files change with their content
const KEPT = new Set([...SHELL, ...__OTHERS__].map((file) => new URL(file, self.registration.scope).href));
const HEADERS = {
  "Cross-Origin-Opener-Policy": "same-origin",
  "Cross-Origin-Embedder-Policy": "require-corp",
  "Content-Security-Policy":
    "default-src 'none'; script-src 'self' 'wasm-unsafe-eval'__HOST__; worker-src 'self' blob:; connect-src 'self'__HOST__; " +
    "style-src 'self'; img-src 'self' blob: data:; base-uri 'none'; form-action 'none'",
};

self.addEventListener("install", (event) => {
  const fresh = SHELL.map((file) => new Request(file, { cache: "reload" }));
  event.waitUntil(caches.open(CACHE).then((cache) => cache.addAll(fresh)).then(() => self.skipWaiting()));
});

self.addEventListener("activate", (event) => {
  const clear = async () => {
    for (const name of await caches.keys()) if (name.startsWith(PREFIX) && name !== CACHE) await caches.delete(name);
    await self.clients.claim();
  };
  event.waitUntil(clear());
});

function isolated(answer) {
  if (!answer.status) return answer; // a redirection or an answer of another origin
  const headers = new Headers(answer.headers);
  for (const [name, value] of Object.entries(HEADERS)) headers.set(name, value);
  return new Response(answer.body, { status: answer.status, statusText: answer.statusText, headers });
}

async function answered(event) {
  const cache = await caches.open(CACHE);
  const kept = await cache.match(event.request, { ignoreSearch: true });
  if (kept) return isolated(kept);
  const answer = await fetch(event.request);
  // not awaited: the page shows progress meanwhile, and works where there is no room for a copy
  if (answer.ok) event.waitUntil(cache.put(event.request, answer.clone()).catch(() => {}));
  return isolated(answer);
}

self.addEventListener("fetch", (event) => {
  const address = event.request.url.split(/[?#]/)[0];
  if (event.request.method === "GET" && KEPT.has(address)) event.respondWith(answered(event));
});
