// Results of a function, kept in the plugin's cache: what `keiko_sdk::cache::memoized` is in Rust.
//
// Of those who want a result at the same time, on all hosts, one computes it while the others wait. Where the cache does not
// answer, or is not granted, it is computed every time. The plugin's world imports `keiko:cache/cache`; a run that asks is no
// longer pure.

import * as cache from 'keiko:cache/cache@0.1.0';

/** How results are kept. */
export interface Keeping {
  /** How long they may be read, in milliseconds; the host decides without one. */
  lifetimeMs?: bigint;
  /** What they have in common with others, so that they can be removed together. */
  tags?: string[];
  /** Whether a result that is `null` is kept, too. */
  keepNull?: boolean;
}

/** A value of JSON. */
export type Json = null | boolean | number | string | Json[] | { [name: string]: Json };

/** What stands in the cache: the result, and what it is the result of, because two texts may have one key. */
interface Kept {
  of: string;
  is: Json;
}

/**
 * The function, with its results kept under this name and its arguments. An exception is not kept, and `null` only with
 * `keepNull`. A result comes as JSON gives it back, whether it was kept or computed.
 */
export function memoized<A extends Json[], R extends Json>(
  name: string,
  compute: (...given: A) => R,
  keeping: Keeping = {},
): (...given: A) => R {
  return (...given) => {
    const of = JSON.stringify([name, canonical(given)]);
    const key = `memoized:${hash(of)}`;
    const filling = asked(key);
    if (filling?.tag === 'hit') {
      const kept = read(filling.val);
      if (kept?.of === of) return kept.is as R;
    }
    try {
      const is = JSON.parse(JSON.stringify(compute(...given))) as R;
      if (is !== null || keeping.keepNull) keep(filling, key, { of, is }, keeping);
      return is;
    } finally {
      // What was not completed goes to the next who waits.
      if (filling?.tag === 'fill') filling.val[Symbol.dispose]();
    }
  };
}

function asked(key: string): cache.Filling | undefined {
  try {
    return cache.getOrFill(key);
  } catch {
    return undefined;
  }
}

function keep(filling: cache.Filling | undefined, key: string, kept: Kept, keeping: Keeping): void {
  const value = new TextEncoder().encode(JSON.stringify(kept));
  const how = { lifetimeMs: keeping.lifetimeMs, tags: keeping.tags ?? [] };
  try {
    if (filling?.tag === 'fill') filling.val.complete(value, how);
    else if (filling?.tag === 'hit') cache.set(key, value, how);
  } catch {
    // What cannot be kept is no less right.
  }
}

/** What was kept, unless something else stands there. */
function read(value: Uint8Array): Kept | undefined {
  try {
    const kept = JSON.parse(new TextDecoder('utf-8', { fatal: true }).decode(value)) as Partial<Kept> | null;
    return typeof kept?.of === 'string' && kept.is !== undefined ? (kept as Kept) : undefined;
  } catch {
    return undefined;
  }
}

/** The same value with the members of objects in order. */
function canonical(value: Json): Json {
  if (Array.isArray(value)) return value.map(canonical);
  if (typeof value !== 'object' || value === null) return value;
  const members = Object.entries(value).sort(([one], [other]) => (one < other ? -1 : 1));
  return Object.fromEntries(members.map(([name, member]) => [name, canonical(member)]));
}

/** FNV-1a over UTF-16, 64 bits. */
function hash(text: string): string {
  let state = 0xcbf29ce484222325n;
  for (let at = 0; at < text.length; at++) {
    state = BigInt.asUintN(64, (state ^ BigInt(text.charCodeAt(at))) * 0x100000001b3n);
  }
  return state.toString(16).padStart(16, '0');
}
