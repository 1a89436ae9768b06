// Keys from passphrases by the platform's own cryptography, which takes a fraction of the time.

/** What WebCrypto calls the hashes that it has. */
const HASHES = { sha1: "SHA-1", sha256: "SHA-256", sha384: "SHA-384", sha512: "SHA-512" };

/** PBKDF2; null where the platform has none: an unusual hash, or a page that did not come by https. */
export async function derive({ hash, password, salt, iterations, length }) {
  const subtle = globalThis.crypto?.subtle;
  const name = HASHES[hash];
  if (!subtle || !name) return null;
  try {
    const key = await subtle.importKey("raw", password, "PBKDF2", false, ["deriveBits"]);
    return new Uint8Array(await subtle.deriveBits({ name: "PBKDF2", hash: name, salt, iterations }, key, length * 8));
  } catch {
    // Some refuse an empty passphrase.
    return null;
  } finally {
    password.fill(0);
  }
}
