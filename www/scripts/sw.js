// The service worker: keeps the page's own files, so that it works without a network once it was loaded. It answers for those
// files alone: every other request, such as for an image, goes its way as if it were not there.
//
// The build puts the list of files and its hash in place of the two names below.

const FILES = __FILES__;
const CACHE = `cowshed-${__VERSION__}`;

const addressOf = (file) => new URL(file, self.registration.scope).href;

self.addEventListener("install", (event) => {
  event.waitUntil(
    caches
      .open(CACHE)
      .then((cache) => cache.addAll(FILES.map(addressOf)))
      .then(() => self.skipWaiting()),
  );
});

self.addEventListener("activate", (event) => {
  event.waitUntil(
    caches
      .keys()
      .then((names) => Promise.all(names.filter((name) => name !== CACHE).map((name) => caches.delete(name))))
      .then(() => self.clients.claim()),
  );
});

self.addEventListener("fetch", (event) => {
  const { request } = event;
  const url = new URL(request.url);
  const isPage = request.mode === "navigate" && url.href.startsWith(self.registration.scope);
  // The address of the page may name an image and a place: it is the same file.
  const address = isPage ? addressOf("./") : url.origin + url.pathname;
  if (request.method !== "GET" || (!isPage && !FILES.some((file) => addressOf(file) === address))) return;
  event.respondWith(
    // What is newer on the server is there for the next visit: the browser looks for a new service worker by itself.
    caches.match(address).then((kept) => kept ?? fetch(request)),
  );
});
