// Keeps the site for visits without a network, and lets the page use several threads, which browsers allow to isolated
// pages only: servers that cannot send the two headers need not.

const VERSION = "__VERSION__";
const SHELL = __SHELL__;
const HEADERS = {
  "Cross-Origin-Opener-Policy": "same-origin",
  "Cross-Origin-Embedder-Policy": "require-corp",
};

self.addEventListener("install", (event) => {
  const fresh = SHELL.map((file) => new Request(file, { cache: "reload" }));
  event.waitUntil(caches.open(VERSION).then((cache) => cache.addAll(fresh)).then(() => self.skipWaiting()));
});

self.addEventListener("activate", (event) => {
  const clear = async () => {
    for (const name of await caches.keys()) if (name.startsWith("fewshot-gan-") && name !== VERSION) await caches.delete(name);
    await self.clients.claim();
  };
  event.waitUntil(clear());
});

function isolated(answer) {
  if (!answer || answer.type === "opaque") return answer;
  const headers = new Headers(answer.headers);
  for (const [name, value] of Object.entries(HEADERS)) headers.set(name, value);
  return new Response(answer.body, { status: answer.status, statusText: answer.statusText, headers });
}

async function answered(request) {
  const cache = await caches.open(VERSION);
  const kept = await cache.match(request, { ignoreSearch: true });
  if (kept) return isolated(kept);
  const answer = await fetch(request);
  if (answer.ok) await cache.put(request, answer.clone());
  return isolated(answer);
}

self.addEventListener("fetch", (event) => {
  const here = event.request.url.startsWith(self.registration.scope);
  if (event.request.method === "GET" && here) event.respondWith(answered(event.request));
});
