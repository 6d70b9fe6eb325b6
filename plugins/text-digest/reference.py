"""A second reading of README.md, for comparing: python3 reference.py < input.json, or --check vectors.json."""

import json
import re
import sys

README = open(__file__.rsplit("/", 1)[0] + "/README.md" if "/" in __file__ else "README.md", encoding="utf-8").read()
SCRIPTS = "latin greek cyrillic hebrew arabic devanagari thai han hiragana katakana hangul other".split()
CLASSES = "letter digit mark space symbol control".split()
UNSPACED = ("han", "hiragana", "katakana")
STRONG = "\u0589\u061f\u06d4\u0964\u0965。！？\uff61"
WEAK = ".!?…‼⁇⁈⁉"
CLOSERS = "\"')]}»›”’」』）］】》〉〕\uff63"
OPENERS = "\"'([{«‹„‚“‘¿¡「『（［【《〈〔\uff62"

TABLE = []
for cell in re.findall(r"([0-9A-F]+)(?:-([0-9A-F]+))? ([a-z]+)", README.split("```ranges\n")[1].split("```")[0]):
    TABLE.append((int(cell[0], 16), int(cell[1] or cell[0], 16), cell[2]))


def name(c):
    for first, last, found in TABLE:
        if first <= ord(c) <= last:
            return found
    return "other"


class Names(dict):
    def __missing__(self, c):
        self[c] = name(c)
        return self[c]


NAMES = Names()


def kind(c):
    return "letter" if NAMES[c] in SCRIPTS else NAMES[c]


def small(c):
    n = ord(c)
    singles = {0x130: 0x69, 0x178: 0xFF, 0x386: 0x3AC, 0x38C: 0x3CC, 0x3C2: 0x3C3, 0x4C0: 0x4CF, 0x1E9E: 0xDF, 0x2019: 0x27}
    if n in singles:
        return chr(singles[n])

    def within(*ranges):
        return any(first <= n <= last for first, last in ranges)

    if within((0x41, 0x5A), (0xC0, 0xDE), (0x391, 0x3AB), (0x410, 0x42F), (0xFF21, 0xFF3A)) and n not in (0xD7, 0x3A2):
        return chr(n + 32)
    if within((0x100, 0x12F), (0x132, 0x137), (0x14A, 0x177), (0x460, 0x481), (0x48A, 0x4BF), (0x4D0, 0x52F)):
        return chr(n + 1 - n % 2)
    if within((0x1E00, 0x1E95), (0x1EA0, 0x1EFF)):
        return chr(n + 1 - n % 2)
    if within((0x139, 0x148), (0x179, 0x17E), (0x4C1, 0x4CE)):
        return chr(n + n % 2)
    for first, last, step in ((0x388, 0x38A, 37), (0x38E, 0x38F, 63), (0x400, 0x40F, 80)):
        if first <= n <= last:
            return chr(n + step)
    return c


def is_capital(c):
    return kind(c) == "letter" and c != "\u03c2" and small(c) != c


def is_small(c):
    return NAMES[c] in ("latin", "greek", "cyrillic") and not is_capital(c)


def is_blank(c):
    return kind(c) in ("space", "control")


def is_word(c):
    return kind(c) in ("letter", "digit")


def is_unspaced(c):
    return NAMES[c] in UNSPACED


def is_spaced(c):
    return is_word(c) and not is_unspaced(c)


def share(scale, part, whole):
    return (scale * part + whole // 2) // whole if whole else 0


def link_at(text, start):
    prefix = re.match(r"https?://|www\.", text[start : start + 8], re.I | re.A)
    if not prefix or (start and is_spaced(text[start - 1])):
        return None
    end = start
    while end < len(text):
        c = text[end]
        if ord(c) < 128:
            fits = re.match(r"[A-Za-z0-9\-._~:/?#\[\]@!$&'()*+,;=%]", c)
        else:
            fits = (is_spaced(c) or kind(c) == "mark") and NAMES[c] != "hangul"
        if not fits:
            break
        end += 1
    run = text[start:end]
    surplus = {")": run.count(")") - run.count("("), "]": run.count("]") - run.count("[")}
    while end > start:
        last = text[end - 1]
        if surplus.get(last, 0) > 0:
            surplus[last] -= 1
        elif last not in ".,;:!?'*_~":
            break
        end -= 1
    run = text[start:end]
    rest = run[prefix.end() :]
    if not rest:
        return None
    if prefix.group().lower() == "www.":
        host = re.split(r"[/?#:]", rest)[0]
        dotted = any(rest[i] == "." and i + 1 < len(rest) and is_word(rest[i + 1]) for i in range(len(host)))
        if not is_word(rest[0]) or not dotted:
            return None
    elif not (is_word(rest[0]) or rest[0] == "["):
        return None
    return start + len(run)


def email_at(text, floor, at):
    start = at
    while start > floor and re.match(r"[A-Za-z0-9._%+\-]", text[start - 1]):
        start -= 1
        if at - start > 64:
            return None
    if start > floor and is_spaced(text[start - 1]):
        return None
    local = text[start:at].lstrip(".-")
    if not local or local.endswith(".") or ".." in local:
        return None
    end = at + 1
    while end < len(text) and re.match(r"[A-Za-z0-9.\-]", text[end]):
        end += 1
        if end - at - 1 > 253:
            return None
    if end < len(text) and (text[end] == "@" or is_spaced(text[end])):
        return None
    labels = text[at + 1 : end].rstrip(".-")
    parts = labels.split(".")
    if len(parts) < 2 or not all(re.fullmatch(r"(?!-)[A-Za-z0-9\-]{1,63}(?<!-)", part) for part in parts):
        return None
    if not re.fullmatch(r"[A-Za-z]{2,}", parts[-1]):
        return None
    return at - len(local), at + 1 + len(labels)


def addresses(text):
    spans, links, emails, at = [], [], [], 0
    while at < len(text):
        if text[at] in "hHwW" and (end := link_at(text, at)):
            if end - at <= 2048:
                links.append(text[at:end])
        elif text[at] == "@" and (span := email_at(text, spans[-1][1] if spans else 0, at)):
            local, domain = text[span[0] : at], text[at : span[1]]
            emails.append(local + domain.lower())
            at, end = span
        else:
            at += 1
            continue
        spans.append((at, end))
        at = end
    return spans, list(dict.fromkeys(links)), list(dict.fromkeys(emails))


def words_in(text, spans):
    words, start = [], 0
    for span in spans + [(len(text), len(text))]:
        at, limit = start, span[0]
        while at < limit:
            if not is_word(text[at]):
                at += 1
                continue
            end = at + 1
            if is_unspaced(text[at]):
                while end < limit and kind(text[end]) == "mark":
                    end += 1
            else:
                while end < limit:
                    c, before, after = text[end], text[end - 1], text[end + 1] if end + 1 < limit else "\0"
                    if is_spaced(c) or kind(c) == "mark":
                        end += 1
                    elif c in "'\u2019" and kind(before) in ("letter", "mark") and kind(after) == "letter" and is_spaced(after):
                        end += 1
                    elif c in ".," and kind(before) == "digit" and kind(after) == "digit":
                        end += 1
                    else:
                        break
            words.append((at, end, "".join(small(c) for c in text[at:end] if c != "\u00ad")))
            at = end
        start = span[1]
    return words


def takes_point(word):
    if len(word) < 3 and all(kind(c) == "digit" for c in word):
        return True
    return (len(word) == 1 and is_spaced(word)) or bool(re.fullmatch(r"(?![AEIOUY])[A-Z](?![aeiouy])[a-z](?:(?![aeiouy])[a-z])?", word))


def ends(text, start, stops, end, limit, word_before):
    first = next((at for at in range(end, limit) if not is_blank(text[at])), limit)
    if first == limit:
        return True
    if any(c in STRONG for c in text[start:stops]):
        return True
    if first == end:
        return False
    begin = next((text[at] for at in range(first, limit) if not is_blank(text[at]) and text[at] not in OPENERS), None)
    if begin and is_small(begin):
        return False
    return not (text[start:stops] == "." and word_before and takes_point(word_before))


def sentences_in(text, spans, words):
    paragraphs, at, open_ = [], 0, False
    for line in text.split("\n"):
        blank = all(is_blank(c) for c in line)
        end = min(at + len(line) + 1, len(text))
        if not blank and open_:
            paragraphs[-1][1] = end
        elif not blank:
            paragraphs.append([at, end])
        open_ = not blank
        at = end
    ends_of = {span[0]: (span[1], None) for span in spans}
    ends_of.update({word[0]: (word[1], text[word[0] : word[1]]) for word in words})
    pieces = []
    for first, limit in paragraphs:
        start = at = first
        before = (None, None)
        while at < limit:
            if at in ends_of:
                end, word = ends_of[at]
                before = (end, word)
                at = end
            elif text[at] in STRONG + WEAK:
                stops = at
                while stops < limit and text[stops] in STRONG + WEAK:
                    stops += 1
                end = stops
                while end < limit and text[end] in CLOSERS:
                    end += 1
                if ends(text, at, stops, end, limit, before[1] if before[0] == at else None):
                    pieces.append((start, end))
                    start = end
                at = end
            else:
                at += 1
        pieces.append((start, limit))
    short = []
    for first, last in pieces:
        while True:
            while first < last and is_blank(text[first]):
                first += 1
            while first < last and is_blank(text[last - 1]):
                last -= 1
            if first == last:
                break
            cut = last
            if last - first > 1000:
                cut = next((i for i in range(first + 1000, first, -1) if is_blank(text[i])), first + 1000)
            end = cut
            while is_blank(text[end - 1]):
                end -= 1
            short.append((first, end))
            first = cut
    found, taken = [], 0
    for first, end in short:
        begin = taken
        while taken < len(words) and words[taken][0] < end:
            taken += 1
        if begin < taken:
            found.append((first, end, begin, taken))
    return found, len(paragraphs)


def significant_terms(text, words):
    terms = {}
    for index, (start, end, folded) in enumerate(words):
        c = text[start]
        if not is_unspaced(c):
            body = text[start:end]
            length = sum(is_word(x) for x in body) + sum(NAMES[x] == "hangul" for x in body)
            if 4 <= length <= 64 and any(kind(x) == "letter" for x in body):
                terms.setdefault(("word", folded), [0, min(length, 12) - 3, start])[0] += 1
        elif index and words[index - 1][1] == start and NAMES[text[words[index - 1][0]]] == NAMES[c] != "hiragana":
            first = words[index - 1][0]
            terms.setdefault(("pair", text[first] + c), [0, 3, first])[0] += 1
    order = sorted(terms, key=lambda t: (-terms[t][0] * terms[t][1], -terms[t][0], terms[t][2]))
    keep = order[: min(100, max(8, (len(order) + 9) // 10))]
    return [(term, terms[term][0]) for term in keep]


def worth(marks):
    best = first = last = count = 0
    for place, mark in enumerate(marks):
        if mark:
            if count and place - last <= 5:
                count += 1
            else:
                first, count = place, 1
            last = place
            best = max(best, 1000 * count * count // (last - first + 1))
    return best


def digest(text, wanted=3):
    if text.startswith("\ufeff"):
        text = text[1:]
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    spans, links, emails = addresses(text)
    words = words_in(text, spans)
    sentences, paragraphs = sentences_in(text, spans, words)
    terms = significant_terms(text, words)
    chosen = {term for term, _ in terms}
    marks = [("word", word[2]) in chosen and not is_unspaced(text[word[0]]) for word in words]
    for index in range(1, len(words)):
        a, b = words[index - 1], words[index]
        if a[1] == b[0] and is_unspaced(text[a[0]]) and ("pair", text[a[0]] + text[b[0]]) in chosen:
            marks[index - 1] = marks[index] = True
    ranked = sorted(range(len(sentences)), key=lambda i: (-worth(marks[sentences[i][2] : sentences[i][3]]), i))
    summary = {}
    for i in ranked:
        if len(summary) == wanted:
            break
        shown = re.sub("\0+", " ", "".join("\0" if is_blank(c) else c for c in text[sentences[i][0] : sentences[i][1]]))
        if shown not in summary.values():
            summary[i] = shown
    unspaced = sum(is_unspaced(text[word[0]]) for word in words)
    letters = [NAMES[c] for c in text if kind(c) == "letter"]
    kinds = [kind(c) for c in text]
    return {
        "characters": len(text),
        "paragraphs": paragraphs,
        "sentences": len(sentences),
        "words": len(words),
        "distinct_words": len({word[2] for word in words}),
        "word_length_hundredths": share(100, sum(is_word(c) for word in words for c in text[word[0] : word[1]]), len(words)),
        "sentence_words_hundredths": share(100, len(words), len(sentences)),
        "reading_minutes": -(-(500 * (len(words) - unspaced) + 240 * unspaced) // 120000),
        "characters_by_class": {c: kinds.count(c) for c in CLASSES},
        "letters_by_script_per_mille": {s: share(1000, letters.count(s), len(letters)) for s in SCRIPTS},
        "terms": [{"term": term[1], "count": count} for term, count in terms[:10]],
        "summary": [summary[i] for i in sorted(summary)],
        "links": links[:100],
        "links_left_out": max(0, len(links) - 100),
        "emails": emails[:100],
        "emails_left_out": max(0, len(emails) - 100),
    }


def main():
    if sys.argv[1:2] == ["--check"]:
        vectors = json.load(open(sys.argv[2], encoding="utf-8"))
        wrong = [v["name"] for v in vectors if digest(v["input"]["text"], v["input"].get("sentences", 3)) != v["result"]]
        print(f"{len(vectors)} vectors, {len(wrong)} wrong", *wrong)
        sys.exit(bool(wrong))
    given = json.load(sys.stdin)
    print(json.dumps(digest(given["text"], given.get("sentences", 3)), ensure_ascii=False, indent=1))


if __name__ == "__main__":
    main()
