// The plugin `text-digest` in TypeScript. ../README.md defines every rule; its sections are named here where they begin.

import * as log from 'keiko:log/log@0.1.0';
import type { Failure, Payload } from 'keiko:plugin/types@0.1.0';

type Span = [start: number, end: number];
type Word = { start: number; end: number; folded: string };
type Sentence = { start: number; end: number; words: Span };
type Term = { text: string; isPair: boolean; count: number; weight: number; first: number };

const TEXT_BYTES_MAX = 256 * 1024;
const SENTENCES_DEFAULT = 3;
const SENTENCES_MAX = 20;

export const task = {
  run(kind: string, input: Payload): Payload {
    if (kind !== 'digest') throw invalid(`there is no kind ${kind}`);
    const { text, sentences } = read(input);
    const answer = digest(text, sentences);
    const field = (name: 'characters' | 'words') => ({ name, value: String(answer[name]) });
    log.write('debug', 'text digested', [field('characters'), field('words')]);
    return { contentType: 'application/json', bytes: new TextEncoder().encode(JSON.stringify(answer)) };
  },
};

function invalid(text: string): Failure {
  return { tag: 'invalid-input', val: text };
}

// The input.

function read(payload: Payload): { text: string; sentences: number } {
  const [type = '', ...parameters] = payload.contentType.split(';').map((part) => part.trim());
  const isText = type.toLowerCase() === 'text/plain';
  if (!isText && type.toLowerCase() !== 'application/json') throw invalid(`the input is ${type}, and neither text nor JSON`);
  const charset = parameters.find((one) => /^charset=/i.test(one))?.slice(8).replace(/^"(.*)"$/, '$1') ?? 'utf-8';
  if (isText && !/^(utf-8|us-ascii)$/i.test(charset)) throw invalid(`text in ${charset} instead of utf-8`);
  let text: string;
  try {
    text = new TextDecoder('utf-8', { fatal: true, ignoreBOM: true }).decode(payload.bytes);
  } catch {
    throw invalid('the input is not utf-8');
  }
  const input = isText ? { text, sentences: SENTENCES_DEFAULT } : readJson(text);
  const bytes = isText ? payload.bytes.length : new TextEncoder().encode(input.text).length;
  if (bytes > TEXT_BYTES_MAX) throw invalid(`text of ${bytes} bytes exceeds the limit of ${TEXT_BYTES_MAX}`);
  if (input.sentences > SENTENCES_MAX) throw invalid(`${input.sentences} sentences exceed the limit of ${SENTENCES_MAX}`);
  return input;
}

function readJson(json: string): { text: string; sentences: number } {
  let given: unknown;
  try {
    given = JSON.parse(json);
  } catch (error) {
    throw invalid(String(error));
  }
  if (typeof given !== 'object' || given === null || Array.isArray(given)) throw invalid('the input is no object');
  const { text, sentences, ...unknown } = given as Record<string, unknown>;
  for (const name of Object.keys(unknown)) throw invalid(`unknown field \`${name}\``);
  // Half a surrogate pair is a string in this language, and none in UTF-8.
  if (typeof text !== 'string' || /[\ud800-\udfff]/u.test(text)) throw invalid('`text` is no text');
  const wanted = sentences ?? SENTENCES_DEFAULT;
  if (!Number.isInteger(wanted) || (wanted as number) < 0) throw invalid('`sentences` is no whole number');
  return { text, sentences: wanted as number };
}

// Section 2: classes. A class is a number, so that those of a text fit into bytes.

const SCRIPTS = ['latin', 'greek', 'cyrillic', 'hebrew', 'arabic', 'devanagari', 'thai', 'han', 'hiragana', 'katakana', 'hangul', 'other'];
const CLASSES = ['letter', 'digit', 'mark', 'space', 'symbol', 'control'];
const NAMES = [...SCRIPTS, ...CLASSES.slice(1)];
const class_ = (name: string) => NAMES.indexOf(name);
const [LATIN, GREEK, CYRILLIC] = [class_('latin'), class_('greek'), class_('cyrillic')];
const [HAN, HIRAGANA, KATAKANA, HANGUL, OTHER] = ['han', 'hiragana', 'katakana', 'hangul', 'other'].map(class_) as [number, number, number, number, number];
const [DIGIT, MARK, SPACE, CONTROL] = ['digit', 'mark', 'space', 'control'].map(class_) as [number, number, number, number];

/** The table of the README as it stands there; what no range names is a letter of another script. */
const RANGES = `
0000-0008 control  0009-000D space  000E-001F control  0020 space  0021-002F symbol  0030-0039 digit
003A-0040 symbol  0041-005A latin  005B-0060 symbol  0061-007A latin  007B-007E symbol  007F-0084 control
0085 space  0086-009F control  00A0 space  00A1-00A9 symbol  00AA latin  00AB-00AC symbol  00AD mark
00AE-00B4 symbol  00B5 latin  00B6-00B9 symbol  00BA latin  00BB-00BF symbol  00C0-00D6 latin  00D7 symbol
00D8-00F6 latin  00F7 symbol  00F8-02FF latin  0300-036F mark  0370-037D greek  037E symbol  037F-0386 greek
0387 symbol  0388-03FF greek  0400-0482 cyrillic  0483-0489 mark  048A-052F cyrillic  0589-058A symbol
0591-05BD mark  05BE symbol  05BF-05C7 mark  05D0-05F2 hebrew  05F3-05F4 symbol  0600-060F symbol
0610-061A mark  061B-061F symbol  0620-064A arabic  064B-065F mark  0660-0669 digit  066A-066D symbol
066E-066F arabic  0670 mark  0671-06D3 arabic  06D4 symbol  06D5 arabic  06D6-06ED mark  06EE-06EF arabic
06F0-06F9 digit  06FA-06FF arabic  0750-077F arabic  08A0-08FF arabic  0900-0963 devanagari  0964-0965 symbol
0966-096F digit  0970-097F devanagari  0E01-0E3A thai  0E3F symbol  0E40-0E4E thai  0E4F symbol  0E50-0E59 digit
0E5A-0E5B symbol  1100-11FF hangul  1680 space  1AB0-1AFF mark  1C80-1C8F cyrillic  1DC0-1DFF mark
1E00-1EFF latin  1F00-1FFF greek  2000-200A space  200B symbol  200C-200D mark  200E-2027 symbol
2028-2029 space  202A-202E symbol  202F space  2030-205E symbol  205F space  2060-20CF symbol  20D0-20FF mark
2100-2BFF symbol  2C60-2C7F latin  2DE0-2DFF mark  2E00-2E7F symbol  2E80-2FDF han  2FF0-2FFF symbol  3000 space
3001-3004 symbol  3005-3007 han  3008-3020 symbol  3021-3029 han  302A-302F mark  3030-3037 symbol
3038-303B han  303C-303F symbol  3041-3096 hiragana  3099-309A mark  309B-309C symbol  309D-309F hiragana
30A0 symbol  30A1-30FA katakana  30FB symbol  30FC-30FF katakana  3130-318F hangul  31F0-31FF katakana
3200-33FF symbol  3400-4DBF han  4DC0-4DFF symbol  4E00-9FFF han  A640-A69F cyrillic  A720-A7FF latin
A960-A97F hangul  AC00-D7FF hangul  E000-F8FF symbol  F900-FAFF han  FB00-FB06 latin  FB1D-FB4F hebrew
FB50-FDFB arabic  FDFC-FDFF symbol  FE00-FE0F mark  FE10-FE1F symbol  FE20-FE2F mark  FE30-FE6F symbol
FE70-FEFE arabic  FEFF symbol  FF01-FF0F symbol  FF10-FF19 digit  FF1A-FF20 symbol  FF21-FF3A latin
FF3B-FF40 symbol  FF41-FF5A latin  FF5B-FF65 symbol  FF66-FF9F katakana  FFA0-FFDC hangul  FFE0-FFFF symbol
1B000-1B16F hiragana  1F000-1FAFF symbol  20000-3FFFF han  E0000-E01EF mark  F0000-10FFFF symbol
`;

/** Rows of the table as first, last and class. */
const ROWS = [...RANGES.matchAll(/([0-9A-F]+)(?:-([0-9A-F]+))? ([a-z]+)/g)].map(
  ([, first, last, name]) => [parseInt(first!, 16), parseInt(last ?? first!, 16), class_(name!)] as const,
);
/** The classes of the first plane. */
const PLANE = new Uint8Array(0x10000).fill(OTHER);
for (const [first, last, found] of ROWS) if (first < 0x10000) PLANE.fill(found, first, last + 1);
const BEYOND = ROWS.filter(([first]) => first >= 0x10000);

const classOf = (c: number) => PLANE[c] ?? BEYOND.find(([first, last]) => first <= c && c <= last)?.[2] ?? OTHER;
const isLetter = (found: number) => found <= OTHER;
const isWord = (found: number) => found <= DIGIT;
const isUnspaced = (found: number) => found === HAN || found === HIRAGANA || found === KATAKANA;
const isSpaced = (found: number) => isWord(found) && !isUnspaced(found);
const isBlank = (found: number) => found === SPACE || found === CONTROL;

const SINGLES = new Map([[0x130, 0x69], [0x178, 0xff], [0x386, 0x3ac], [0x38c, 0x3cc], [0x3c2, 0x3c3], [0x4c0, 0x4cf], [0x1e9e, 0xdf], [0x2019, 0x27]]);
const within = (c: number, ...spans: Span[]) => spans.some(([first, last]) => first <= c && c <= last);

function small(c: number): number {
  if (c < 0x80) return c >= 0x41 && c <= 0x5a ? c + 32 : c;
  const single = SINGLES.get(c);
  if (single !== undefined) return single;
  if (within(c, [0xc0, 0xde], [0x391, 0x3ab], [0x410, 0x42f], [0xff21, 0xff3a])) return c === 0xd7 || c === 0x3a2 ? c : c + 32;
  if (within(c, [0x100, 0x12f], [0x132, 0x137], [0x14a, 0x177], [0x460, 0x481], [0x48a, 0x4bf], [0x4d0, 0x52f], [0x1e00, 0x1e95], [0x1ea0, 0x1eff])) return c | 1;
  if (within(c, [0x139, 0x148], [0x179, 0x17e], [0x4c1, 0x4ce])) return c + (c & 1);
  if (within(c, [0x388, 0x38a])) return c + 37;
  if (within(c, [0x38e, 0x38f])) return c + 63;
  return within(c, [0x400, 0x40f]) ? c + 80 : c;
}

const isCapital = (c: number) => isLetter(classOf(c)) && c !== 0x3c2 && small(c) !== c;
const isSmall = (c: number) => [LATIN, GREEK, CYRILLIC].includes(classOf(c)) && !isCapital(c);

const code = (letter: string) => letter.codePointAt(0)!;
const codes = (letters: string) => new Set(Array.from(letters, code));
const isAlphabetic = (c: number | undefined) => c !== undefined && within(c, [0x41, 0x5a], [0x61, 0x7a]);
const isAlphanumeric = (c: number) => isAlphabetic(c) || within(c, [0x30, 0x39]);

/** Code points as a text, piece by piece, because a call takes so many arguments and no more. */
function textOf(all: number[]): string {
  let text = '';
  for (let start = 0; start < all.length; start += 4096) text += String.fromCodePoint(...all.slice(start, start + 4096));
  return text;
}

/** A text as code points, with the class of each. */
class Text {
  readonly codes: number[];
  readonly classes: Uint8Array;

  /** Section 1. */
  constructor(raw: string) {
    this.codes = Array.from(raw.replace(/^\ufeff/, '').replace(/\r\n?/g, '\n'), code);
    this.classes = Uint8Array.from(this.codes, classOf);
  }

  get length(): number {
    return this.codes.length;
  }

  slice(start: number, end: number): string {
    return textOf(this.codes.slice(start, end));
  }
}

// Section 3: addresses.

const NAMED_MAX = 100;
const LINK_MAX = 2048;
const LINK_STARTS = ['http://', 'https://', 'www.'].map((start) => Array.from(start, code));
const IN_LINK = codes("-._~:/?#[]@!$&'()*+,;=%");
const DROPPED = codes(".,;:!?'*_~");
const [OPEN, CLOSE, OPEN_SQUARE, CLOSE_SQUARE, DOT, HYPHEN, AT] = Array.from('()[].-@', code) as [number, number, number, number, number, number, number];
const AFTER_HOST = codes('/?#:');
const IN_LOCAL = codes('._%+-');

function addresses(text: Text): { spans: Span[]; links: string[]; emails: string[] } {
  const [spans, links, emails] = [[] as Span[], new Set<string>(), new Set<string>()];
  const starts = codes('hHwW');
  let at = 0;
  while (at < text.length) {
    const c = text.codes[at]!;
    let span: Span | undefined;
    if (starts.has(c)) {
      const end = linkEnd(text, at);
      if (end !== undefined) span = [at, end];
      if (span && span[1] - at <= LINK_MAX) links.add(text.slice(...span));
    } else if (c === AT) {
      span = emailSpan(text, spans.at(-1)?.[1] ?? 0, at);
      if (span) emails.add(text.slice(span[0], at) + text.slice(at, span[1]).toLowerCase());
    }
    if (span) spans.push(span);
    at = span ? span[1] : at + 1;
  }
  return { spans, links: [...links], emails: [...emails] };
}

function linkEnd(text: Text, start: number): number | undefined {
  const prefix = LINK_STARTS.find((one) => one.every((c, index) => small(text.codes[start + index] ?? 0) === c && text.codes[start + index]! < 0x80));
  if (!prefix || (start > 0 && isSpaced(text.classes[start - 1]!))) return undefined;
  let end = start;
  while (end < text.length && isInLink(text.codes[end]!, text.classes[end]!)) end++;
  end = trimmed(text, start, end);
  const rest = Math.min(start + prefix.length, end);
  const isNamed = (index: number) => index < end && isWord(text.classes[index]!);
  if (prefix !== LINK_STARTS[2]) return isNamed(rest) || (rest < end && text.codes[rest] === OPEN_SQUARE) ? end : undefined;
  let host = rest;
  while (host < end && !AFTER_HOST.has(text.codes[host]!) && !(text.codes[host] === DOT && isNamed(host + 1))) host++;
  return isNamed(rest) && host < end && text.codes[host] === DOT ? end : undefined;
}

function isInLink(c: number, found: number): boolean {
  if (c < 0x80) return isAlphanumeric(c) || IN_LINK.has(c);
  return (isSpaced(found) || found === MARK) && found !== HANGUL;
}

function trimmed(text: Text, start: number, end: number): number {
  const count = (wanted: number) => text.codes.slice(start, end).filter((c) => c === wanted).length;
  const surplus = new Map([[CLOSE, count(CLOSE) - count(OPEN)], [CLOSE_SQUARE, count(CLOSE_SQUARE) - count(OPEN_SQUARE)]]);
  for (; end > start; end--) {
    const last = text.codes[end - 1]!;
    const left = surplus.get(last) ?? 0;
    if (!DROPPED.has(last) && left <= 0) break;
    if (left > 0) surplus.set(last, left - 1);
  }
  return end;
}

function emailSpan(text: Text, floor: number, at: number): Span | undefined {
  let start = at;
  const isLocal = (c: number) => isAlphanumeric(c) || IN_LOCAL.has(c);
  while (start > floor && at - start <= 64 && isLocal(text.codes[start - 1]!)) start--;
  if (at - start > 64 || (start > floor && isSpaced(text.classes[start - 1]!))) return undefined;
  while (start < at && (text.codes[start] === DOT || text.codes[start] === HYPHEN)) start++;
  const local = text.slice(start, at);
  if (local === '' || local.endsWith('.') || local.includes('..')) return undefined;
  let end = at + 1;
  const isDomain = (c: number) => isAlphanumeric(c) || c === DOT || c === HYPHEN;
  while (end < text.length && end - at - 1 <= 253 && isDomain(text.codes[end]!)) end++;
  if (end - at - 1 > 253 || (end < text.length && (text.codes[end] === AT || isSpaced(text.classes[end]!)))) return undefined;
  while (end > at + 1 && (text.codes[end - 1] === DOT || text.codes[end - 1] === HYPHEN)) end--;
  const labels = text.slice(at + 1, end).split('.');
  const isLabel = (label: string) => label.length >= 1 && label.length <= 63 && !label.startsWith('-') && !label.endsWith('-');
  return labels.length >= 2 && labels.every(isLabel) && /^[A-Za-z]{2,}$/.test(labels.at(-1)!) ? [start, end] : undefined;
}

// Section 4: words.

const [APOSTROPHE, TYPOGRAPHIC, COMMA, SOFT_HYPHEN] = [0x27, 0x2019, 0x2c, 0xad];

function wordsOf(text: Text, spans: Span[]): Word[] {
  const words: Word[] = [];
  let at = 0;
  for (const [limit, behind] of [...spans, [text.length, text.length] as Span]) {
    while (at < limit) {
      if (!isWord(text.classes[at]!)) {
        at++;
        continue;
      }
      const end = wordEnd(text, at, limit);
      const folded = text.codes.slice(at, end).filter((c) => c !== SOFT_HYPHEN);
      words.push({ start: at, end, folded: textOf(folded.map(small)) });
      at = end;
    }
    at = behind;
  }
  return words;
}

function wordEnd(text: Text, start: number, limit: number): number {
  const found = (index: number) => (index < limit ? text.classes[index]! : CONTROL);
  let end = start + 1;
  if (isUnspaced(text.classes[start]!)) {
    while (found(end) === MARK) end++;
    return end;
  }
  for (;;) {
    if (isSpaced(found(end)) || found(end) === MARK) end++;
    else if (end + 1 < limit && joins(text.codes[end]!, text.classes[end - 1]!, found(end + 1))) end += 2;
    else return end;
  }
}

function joins(c: number, before: number, after: number): boolean {
  if (c === APOSTROPHE || c === TYPOGRAPHIC) return (isLetter(before) || before === MARK) && isLetter(after) && isSpaced(after);
  return (c === DOT || c === COMMA) && before === DIGIT && after === DIGIT;
}

// Section 5: paragraphs and sentences.

const SENTENCE_MAX = 1000;
const STRONG = codes('\u0589\u061f\u06d4\u0964\u0965。！？\uff61');
const STOPS = codes('\u0589\u061f\u06d4\u0964\u0965。！？\uff61.!?…‼⁇⁈⁉');
const CLOSERS = codes('"\')]}»›”’」』）］】》〉〕\uff63');
const OPENERS = codes('"\'([{«‹„‚“‘¿¡「『（［【《〈〔\uff62');

function paragraphsOf(text: Text): Span[] {
  const paragraphs: Span[] = [];
  let goesOn = false;
  for (let start = 0; start < text.length; ) {
    const feed = text.codes.indexOf(0x0a, start);
    const end = feed < 0 ? text.length : feed + 1;
    const isFull = text.classes.subarray(start, end).some((found) => !isBlank(found));
    if (isFull && goesOn) paragraphs.at(-1)![1] = end;
    else if (isFull) paragraphs.push([start, end]);
    goesOn = isFull;
    start = end;
  }
  return paragraphs;
}

function sentencesOf(text: Text, paragraphs: Span[], spans: Span[], words: Word[]): Sentence[] {
  const pieces: Span[] = [];
  let [address, word] = [0, 0];
  for (const [first, limit] of paragraphs) {
    let [start, at] = [first, first];
    let before: Word | undefined;
    while (at < limit) {
      if (spans[address]?.[0] === at) {
        at = spans[address++]![1];
        before = undefined;
      } else if (words[word]?.start === at) {
        before = words[word++]!;
        at = before.end;
      } else if (STOPS.has(text.codes[at]!)) {
        let stops = at;
        while (stops < limit && STOPS.has(text.codes[stops]!)) stops++;
        let end = stops;
        while (end < limit && CLOSERS.has(text.codes[end]!)) end++;
        if (endsHere(text, at, stops, end, limit, before?.end === at ? before : undefined)) {
          pieces.push([start, end]);
          start = end;
        }
        at = end;
      } else at++;
    }
    pieces.push([start, limit]);
  }
  return withWords(pieces.flatMap((piece) => cut(text, piece)), words);
}

function endsHere(text: Text, start: number, stops: number, end: number, limit: number, before: Word | undefined): boolean {
  let next = end;
  while (next < limit && isBlank(text.classes[next]!)) next++;
  if (next === limit || text.codes.slice(start, stops).some((c) => STRONG.has(c))) return true;
  if (next === end) return false;
  while (next < limit && (isBlank(text.classes[next]!) || OPENERS.has(text.codes[next]!))) next++;
  if (next < limit && isSmall(text.codes[next]!)) return false;
  return !(stops === start + 1 && text.codes[start] === DOT && before && takesPoint(text, before));
}

function takesPoint(text: Text, { start, end }: Word): boolean {
  const length = end - start;
  if (length === 1) return isSpaced(text.classes[start]!);
  if (length === 2 && text.classes[start] === DIGIT && text.classes[start + 1] === DIGIT) return true;
  return length <= 3 && /^[B-DF-HJ-NP-TV-XZ][b-df-hj-np-tv-xz]{1,2}$/.test(text.slice(start, end));
}

/** A piece without blanks at its ends, in several when it is too long. */
function cut(text: Text, [start, end]: Span): Span[] {
  const cuts: Span[] = [];
  for (;;) {
    while (start < end && isBlank(text.classes[start]!)) start++;
    while (start < end && isBlank(text.classes[end - 1]!)) end--;
    if (start === end) return cuts;
    let to = end;
    if (end - start > SENTENCE_MAX) {
      for (to = start + SENTENCE_MAX; to > start && !isBlank(text.classes[to]!); to--);
      if (to === start) to = start + SENTENCE_MAX;
    }
    let last = to;
    while (isBlank(text.classes[last - 1]!)) last--;
    cuts.push([start, last]);
    start = to;
  }
}

function withWords(pieces: Span[], words: Word[]): Sentence[] {
  const sentences: Sentence[] = [];
  let taken = 0;
  for (const [start, end] of pieces) {
    const first = taken;
    while (taken < words.length && words[taken]!.start < end) taken++;
    if (first < taken) sentences.push({ start, end, words: [first, taken] });
  }
  return sentences;
}

// Section 6: terms.

function termsOf(text: Text, words: Word[]): Term[] {
  const terms = new Map<string, Term>();
  const count = (term: string, isPair: boolean, weight: number, first: number) => {
    const key = (isPair ? 'p' : 'w') + term;
    const found = terms.get(key) ?? { text: term, isPair, count: 0, weight, first };
    found.count++;
    terms.set(key, found);
  };
  words.forEach((word, index) => {
    const pair = pairAt(text, words, index);
    if (pair) count(pair, true, 3, words[index - 1]!.start);
    if (isUnspaced(text.classes[word.start]!)) return;
    const known = terms.get('w' + word.folded);
    if (known) return void known.count++;
    const body = text.classes.subarray(word.start, word.end);
    const length = body.filter(isWord).length + body.filter((found) => found === HANGUL).length;
    if (length >= 4 && length <= 64 && body.some(isLetter)) count(word.folded, false, Math.min(length, 12) - 3, word.start);
  });
  const order = (a: Term, b: Term) => b.count * b.weight - a.count * a.weight || b.count - a.count || a.first - b.first;
  const all = [...terms.values()].sort(order);
  return all.slice(0, Math.min(100, Math.max(8, Math.ceil(all.length / 10))));
}

/** The word and the one before it as a term: both han or both katakana, and nothing between them. */
function pairAt(text: Text, words: Word[], index: number): string | undefined {
  const [before, word] = [words[index - 1], words[index]!];
  const found = text.classes[word.start]!;
  if ((found !== HAN && found !== KATAKANA) || before?.end !== word.start || text.classes[before.start] !== found) return undefined;
  return String.fromCodePoint(text.codes[before.start]!, text.codes[word.start]!);
}

function marksOf(text: Text, words: Word[], terms: Term[]): boolean[] {
  const of = (isPair: boolean) => new Set(terms.filter((term) => term.isPair === isPair).map((term) => term.text));
  const [whole, pairs] = [of(false), of(true)];
  const marks = words.map((word) => whole.has(word.folded) && !isUnspaced(text.classes[word.start]!));
  words.forEach((_, index) => {
    if (pairs.has(pairAt(text, words, index) ?? '')) marks[index - 1] = marks[index] = true;
  });
  return marks;
}

// Section 7: the summary.

function worth(marks: boolean[]): number {
  let [best, first, last, count] = [0, 0, 0, 0];
  marks.forEach((isMarked, place) => {
    if (!isMarked) return;
    if (count > 0 && place - last <= 5) count++;
    else [first, count] = [place, 1];
    last = place;
    best = Math.max(best, Math.floor((1000 * count * count) / (last - first + 1)));
  });
  return best;
}

function summaryOf(text: Text, sentences: Sentence[], marks: boolean[], wanted: number): string[] {
  const ranked = sentences.map((one, place) => ({ place, worth: worth(marks.slice(...one.words)) }));
  ranked.sort((a, b) => b.worth - a.worth || a.place - b.place);
  const [seen, chosen] = [new Set<string>(), [] as { place: number; shown: string }[]];
  for (const { place } of ranked) {
    if (chosen.length === wanted) break;
    const shown = show(text, sentences[place]!);
    if (!seen.has(shown)) chosen.push({ place, shown });
    seen.add(shown);
  }
  return chosen.sort((a, b) => a.place - b.place).map(({ shown }) => shown);
}

/** A sentence with every run of blanks as one space. */
function show(text: Text, { start, end }: Sentence): string {
  const shown: number[] = [];
  for (let at = start; at < end; at++) {
    if (!isBlank(text.classes[at]!)) shown.push(text.codes[at]!);
    else if (!isBlank(text.classes[at - 1]!)) shown.push(0x20);
  }
  return textOf(shown);
}

// The answer.

const share = (scale: number, part: number, whole: number) =>
  whole === 0 ? 0 : Math.floor((scale * part + Math.floor(whole / 2)) / whole);

function digest(raw: string, wanted: number) {
  const text = new Text(raw);
  const { spans, links, emails } = addresses(text);
  const words = wordsOf(text, spans);
  const paragraphs = paragraphsOf(text);
  const sentences = sentencesOf(text, paragraphs, spans, words);
  const terms = termsOf(text, words);
  const counts = new Array<number>(NAMES.length).fill(0);
  for (const found of text.classes) counts[found]!++;
  const letters = counts.slice(0, OTHER + 1).reduce((sum, count) => sum + count, 0);
  const unspaced = words.filter((word) => isUnspaced(text.classes[word.start]!)).length;
  const inWords = words.reduce((sum, { start, end }) => sum + text.classes.subarray(start, end).filter(isWord).length, 0);
  const named = (names: string[], value: (name: string) => number) => Object.fromEntries(names.map((name) => [name, value(name)]));
  return {
    characters: text.length,
    paragraphs: paragraphs.length,
    sentences: sentences.length,
    words: words.length,
    distinct_words: new Set(words.map((word) => word.folded)).size,
    word_length_hundredths: share(100, inWords, words.length),
    sentence_words_hundredths: share(100, words.length, sentences.length),
    reading_minutes: Math.ceil((500 * (words.length - unspaced) + 240 * unspaced) / 120000),
    characters_by_class: named(CLASSES, (name) => (name === 'letter' ? letters : counts[class_(name)]!)),
    letters_by_script_per_mille: named(SCRIPTS, (name) => share(1000, counts[class_(name)]!, letters)),
    terms: terms.slice(0, 10).map(({ text, count }) => ({ term: text, count })),
    summary: summaryOf(text, sentences, marksOf(text, words, terms), wanted),
    links: links.slice(0, NAMED_MAX),
    links_left_out: Math.max(0, links.length - NAMED_MAX),
    emails: emails.slice(0, NAMED_MAX),
    emails_left_out: Math.max(0, emails.length - NAMED_MAX),
  };
}
