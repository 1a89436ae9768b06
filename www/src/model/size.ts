// Sizes and offsets as people write them.

const UNITS = ["bytes", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"] as const;

/** "1.36 GiB": three digits that matter, binary units. */
export function sizeText(bytes: bigint | number): string {
  const exact = typeof bytes === "bigint" ? bytes : BigInt(Math.round(bytes));
  let unit = 0;
  let value = Number(exact);
  while (value >= 1024 && unit < UNITS.length - 1) {
    value /= 1024;
    unit += 1;
  }
  if (unit === 0) return exact === 1n ? "1 byte" : `${exact} bytes`;
  const digits = value >= 100 ? 0 : value >= 10 ? 1 : 2;
  return `${Number(value.toFixed(digits))} ${UNITS[unit]}`;
}

/** "1,459,617,792 bytes". */
export function bytesText(bytes: bigint): string {
  return bytes === 1n ? "1 byte" : `${bytes.toLocaleString("en")} bytes`;
}

export function offsetText(offset: bigint | number): string {
  return `0x${offset.toString(16)}`;
}

/** A share as "12 %", "0.4 %", "<0.1 %". */
export function shareText(part: number, whole: number): string {
  if (whole <= 0 || part <= 0) return "0 %";
  const percent = (100 * part) / whole;
  if (percent < 0.1) return "<0.1 %";
  if (percent > 99.9 && part < whole) return ">99.9 %";
  return `${percent < 10 ? Number(percent.toFixed(1)) : Math.round(percent)} %`;
}

const SHIFTS: Record<string, bigint> = { "": 0n, b: 0n, k: 10n, m: 20n, g: 30n, t: 40n, p: 50n, e: 60n };

/**
 * The offset that a person wrote: `0x1f0000`, `2031616`, `64k`, `1.5 GiB`, `2_031_616`; null when it is none.
 */
export function parseOffset(text: string): bigint | null {
  const plain = text.trim().replace(/[\s_,]/g, "").toLowerCase();
  if (/^0x[0-9a-f]+$/.test(plain)) return BigInt(plain);
  const parts = /^(\d+)(?:\.(\d+))?(?:([kmgtpe])i?b?|b)?$/.exec(plain);
  if (!parts) return null;
  const shift = SHIFTS[parts[3] ?? ""] ?? 0n;
  const whole = BigInt(parts[1] ?? "0") << shift;
  const fraction = parts[2];
  if (fraction === undefined) return whole;
  if (shift === 0n) return null;
  return whole + (BigInt(fraction) << shift) / 10n ** BigInt(fraction.length);
}
