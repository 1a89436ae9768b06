// The addresses that were opened lately: the only thing that the page remembers.

const KEY = "recent";
const COUNT_MAX = 6;

/** The newest first. */
export function recentUrls(): string[] {
  try {
    const kept: unknown = JSON.parse(store()?.getItem(KEY) ?? "[]");
    return Array.isArray(kept) ? kept.filter((one) => typeof one === "string").slice(0, COUNT_MAX) : [];
  } catch {
    return [];
  }
}

export function rememberUrl(url: string): void {
  keep([url, ...recentUrls().filter((one) => one !== url)].slice(0, COUNT_MAX));
}

export function forgetUrls(): void {
  keep([]);
}

function keep(urls: string[]): void {
  try {
    if (urls.length === 0) store()?.removeItem(KEY);
    else store()?.setItem(KEY, JSON.stringify(urls));
  } catch {
    // Private windows may refuse: then nothing is remembered.
  }
}

function store(): Storage | null {
  try {
    // eslint-disable-next-line no-restricted-globals -- Here and nowhere else.
    return localStorage;
  } catch {
    return null;
  }
}
