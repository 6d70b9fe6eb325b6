// The plugin `text-digest` in C. ../README.md defines every rule; its sections are named here where they begin.
//
// Nothing is freed: an attempt has an instance of its own. Words and terms are found through a table of hashes, and equal
// hashes are compared, so that no text can make two words one.

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

#include "keiko_json.h"
#include "task_plugin.h"

#define TEXT_BYTES_MAX (256 * 1024)
#define SENTENCES_DEFAULT 3
#define SENTENCES_MAX 20
#define NAMED_MAX 100
#define TERMS_NAMED_MAX 10
#define LINK_MAX 2048
#define SENTENCE_MAX 1000

typedef struct { size_t start, end; } Span;
typedef struct { size_t start, end, id; } Word;
typedef struct { Span span, words; } Sentence;
typedef struct { uint64_t weight; size_t count, first, word, pair; } Term;
typedef struct { void *all; size_t count, capacity; } List;

// Section 2: classes. Letters come first, in the order of their scripts.

typedef enum {
  LATIN, GREEK, CYRILLIC, HEBREW, ARABIC, DEVANAGARI, THAI, HAN, HIRAGANA, KATAKANA, HANGUL, OTHER,
  DIGIT, MARK, SPACE, SYMBOL, CONTROL, CLASSES
} Class;

static const char *const NAMES[CLASSES] = {
  "latin", "greek", "cyrillic", "hebrew", "arabic", "devanagari", "thai", "han", "hiragana", "katakana", "hangul", "other",
  "digit", "mark", "space", "symbol", "control",
};

/// The table of the README as it stands there; what no range names is a letter of another script.
static const char RANGES[] =
  "0000-0008 control  0009-000D space  000E-001F control  0020 space  0021-002F symbol  0030-0039 digit  "
  "003A-0040 symbol  0041-005A latin  005B-0060 symbol  0061-007A latin  007B-007E symbol  007F-0084 control  "
  "0085 space  0086-009F control  00A0 space  00A1-00A9 symbol  00AA latin  00AB-00AC symbol  00AD mark  "
  "00AE-00B4 symbol  00B5 latin  00B6-00B9 symbol  00BA latin  00BB-00BF symbol  00C0-00D6 latin  00D7 symbol  "
  "00D8-00F6 latin  00F7 symbol  00F8-02FF latin  0300-036F mark  0370-037D greek  037E symbol  037F-0386 greek  "
  "0387 symbol  0388-03FF greek  0400-0482 cyrillic  0483-0489 mark  048A-052F cyrillic  0589-058A symbol  "
  "0591-05BD mark  05BE symbol  05BF-05C7 mark  05D0-05F2 hebrew  05F3-05F4 symbol  0600-060F symbol  "
  "0610-061A mark  061B-061F symbol  0620-064A arabic  064B-065F mark  0660-0669 digit  066A-066D symbol  "
  "066E-066F arabic  0670 mark  0671-06D3 arabic  06D4 symbol  06D5 arabic  06D6-06ED mark  06EE-06EF arabic  "
  "06F0-06F9 digit  06FA-06FF arabic  0750-077F arabic  08A0-08FF arabic  0900-0963 devanagari  0964-0965 symbol  "
  "0966-096F digit  0970-097F devanagari  0E01-0E3A thai  0E3F symbol  0E40-0E4E thai  0E4F symbol  0E50-0E59 digit  "
  "0E5A-0E5B symbol  1100-11FF hangul  1680 space  1AB0-1AFF mark  1C80-1C8F cyrillic  1DC0-1DFF mark  "
  "1E00-1EFF latin  1F00-1FFF greek  2000-200A space  200B symbol  200C-200D mark  200E-2027 symbol  "
  "2028-2029 space  202A-202E symbol  202F space  2030-205E symbol  205F space  2060-20CF symbol  20D0-20FF mark  "
  "2100-2BFF symbol  2C60-2C7F latin  2DE0-2DFF mark  2E00-2E7F symbol  2E80-2FDF han  2FF0-2FFF symbol  3000 space  "
  "3001-3004 symbol  3005-3007 han  3008-3020 symbol  3021-3029 han  302A-302F mark  3030-3037 symbol  "
  "3038-303B han  303C-303F symbol  3041-3096 hiragana  3099-309A mark  309B-309C symbol  309D-309F hiragana  "
  "30A0 symbol  30A1-30FA katakana  30FB symbol  30FC-30FF katakana  3130-318F hangul  31F0-31FF katakana  "
  "3200-33FF symbol  3400-4DBF han  4DC0-4DFF symbol  4E00-9FFF han  A640-A69F cyrillic  A720-A7FF latin  "
  "A960-A97F hangul  AC00-D7FF hangul  E000-F8FF symbol  F900-FAFF han  FB00-FB06 latin  FB1D-FB4F hebrew  "
  "FB50-FDFB arabic  FDFC-FDFF symbol  FE00-FE0F mark  FE10-FE1F symbol  FE20-FE2F mark  FE30-FE6F symbol  "
  "FE70-FEFE arabic  FEFF symbol  FF01-FF0F symbol  FF10-FF19 digit  FF1A-FF20 symbol  FF21-FF3A latin  "
  "FF3B-FF40 symbol  FF41-FF5A latin  FF5B-FF65 symbol  FF66-FF9F katakana  FFA0-FFDC hangul  FFE0-FFFF symbol  "
  "1B000-1B16F hiragana  1F000-1FAFF symbol  20000-3FFFF han  E0000-E01EF mark  F0000-10FFFF symbol  ";

typedef struct { uint32_t first, last; Class found; } Row;

/// The text as code points, with the class of each.
static uint32_t *points;
static uint8_t *classes;
static size_t length;

static Row rows[256];
static size_t row_count;

static void *grown(List *list, size_t size) {
  if (list->count == list->capacity) {
    list->capacity = list->capacity ? 2 * list->capacity : 16;
    list->all = realloc(list->all, list->capacity * size);
    if (!list->all) abort();
  }
  return (char *)list->all + size * list->count++;
}

static void read_rows(void) {
  for (const char *at = RANGES; *at; row_count++) {
    char *end;
    Row *row = &rows[row_count];
    row->first = row->last = (uint32_t)strtoul(at, &end, 16);
    if (*end == '-') row->last = (uint32_t)strtoul(end + 1, &end, 16);
    at = end + strspn(end, " ");
    size_t letters = strcspn(at, " ");
    for (row->found = 0; strlen(NAMES[row->found]) != letters || strncmp(NAMES[row->found], at, letters);) row->found++;
    at += letters + strspn(at + letters, " ");
  }
}

static Class class_of(uint32_t point) {
  size_t low = 0, high = row_count;
  while (low < high) {
    size_t middle = (low + high) / 2;
    if (rows[middle].last < point) low = middle + 1;
    else high = middle;
  }
  return low < row_count && rows[low].first <= point ? rows[low].found : OTHER;
}

static bool is_letter(Class found) { return found <= OTHER; }
static bool is_word(Class found) { return found <= DIGIT; }
static bool is_unspaced(Class found) { return found == HAN || found == HIRAGANA || found == KATAKANA; }
static bool is_spaced(Class found) { return is_word(found) && !is_unspaced(found); }
static bool is_blank(Class found) { return found == SPACE || found == CONTROL; }

static bool within(uint32_t point, uint32_t first, uint32_t last) { return first <= point && point <= last; }

static uint32_t small(uint32_t c) {
  if (c < 0x80) return within(c, 'A', 'Z') ? c + 32 : c;
  switch (c) {
    case 0xd7: case 0x3a2: return c;
    case 0x130: return 0x69;
    case 0x178: return 0xff;
    case 0x386: return 0x3ac;
    case 0x38c: return 0x3cc;
    case 0x3c2: return 0x3c3;
    case 0x4c0: return 0x4cf;
    case 0x1e9e: return 0xdf;
    case 0x2019: return 0x27;
  }
  if (within(c, 0xc0, 0xde) || within(c, 0x391, 0x3ab) || within(c, 0x410, 0x42f) || within(c, 0xff21, 0xff3a)) return c + 32;
  if (within(c, 0x100, 0x12f) || within(c, 0x132, 0x137) || within(c, 0x14a, 0x177) || within(c, 0x460, 0x481)) return c | 1;
  if (within(c, 0x48a, 0x4bf) || within(c, 0x4d0, 0x52f) || within(c, 0x1e00, 0x1e95) || within(c, 0x1ea0, 0x1eff)) return c | 1;
  if (within(c, 0x139, 0x148) || within(c, 0x179, 0x17e) || within(c, 0x4c1, 0x4ce)) return c + (c & 1);
  if (within(c, 0x388, 0x38a)) return c + 37;
  if (within(c, 0x38e, 0x38f)) return c + 63;
  return within(c, 0x400, 0x40f) ? c + 80 : c;
}

static bool is_capital(uint32_t c) { return is_letter(class_of(c)) && c != 0x3c2 && small(c) != c; }
static bool is_small(uint32_t c) { return class_of(c) <= CYRILLIC && !is_capital(c); }
static bool is_alphabetic(uint32_t c) { return within(c, 'A', 'Z') || within(c, 'a', 'z'); }
static bool is_alphanumeric(uint32_t c) { return is_alphabetic(c) || within(c, '0', '9'); }

/// Whether a code point is one of the characters of a text in UTF-8.
static bool is_among(uint32_t point, const char *characters) {
  const uint8_t *at = (const uint8_t *)characters, *end = at + strlen(characters);
  while (at < end) if (utf8_next(&at, end) == (int32_t)point) return true;
  return false;
}

static bool is_ascii_among(uint32_t point, const char *characters) {
  return point && point < 0x80 && strchr(characters, (int)point);
}

/// Code points in UTF-8, with their number of bytes.
static char *bytes_of(const uint32_t *from, size_t count, size_t *bytes) {
  char *all = json_memory(4 * count + 1);
  *bytes = 0;
  for (size_t at = 0; at < count; at++) *bytes += utf8_put(from[at], all + *bytes);
  return all;
}

/// Section 1. The text is UTF-8 by now.
static void take_text(const uint8_t *bytes, size_t count) {
  const uint8_t *at = bytes, *end = bytes + count;
  points = json_memory(count * sizeof *points);
  classes = json_memory(count);
  bool follows_return = false, is_first = true;
  while (at < end) {
    uint32_t point = (uint32_t)utf8_next(&at, end);
    bool is_left_out = (is_first && point == 0xfeff) || (point == '\n' && follows_return);
    is_first = false;
    follows_return = point == '\r';
    if (is_left_out) continue;
    points[length] = follows_return ? '\n' : point;
    classes[length] = (uint8_t)class_of(points[length]);
    length++;
  }
}

// Different texts, numbered in the order in which they come.

typedef struct { const uint32_t *points; size_t count; } Key;
typedef struct { List keys; size_t *slots, size; } Table;

static uint64_t hash_of(Key key) {
  uint64_t hash = 0xcbf29ce484222325;
  for (size_t at = 0; at < key.count; at++) hash = (hash ^ key.points[at]) * 0x100000001b3;
  return hash ^ hash >> 32;
}

static size_t *slot_of(Table *table, Key key) {
  size_t at = hash_of(key) & (table->size - 1);
  for (;; at = (at + 1) & (table->size - 1)) {
    if (!table->slots[at]) return &table->slots[at];
    Key *known = (Key *)table->keys.all + table->slots[at] - 1;
    if (known->count == key.count && !memcmp(known->points, key.points, key.count * sizeof *key.points)) return &table->slots[at];
  }
}

static size_t number_of(Table *table, Key key) {
  if (2 * table->keys.count >= table->size) {
    table->size = table->size ? 2 * table->size : 64;
    table->slots = json_memory(table->size * sizeof *table->slots);
    for (size_t at = 0; at < table->keys.count; at++) *slot_of(table, ((Key *)table->keys.all)[at]) = at + 1;
  }
  size_t *slot = slot_of(table, key);
  if (!*slot) {
    *(Key *)grown(&table->keys, sizeof(Key)) = key;
    *slot = table->keys.count;
  }
  return *slot - 1;
}

// Section 3: addresses.

static const char *const LINK_STARTS[] = {"http://", "https://", "www."};

static bool is_in_link(size_t at) {
  if (points[at] < 0x80) return is_alphanumeric(points[at]) || is_ascii_among(points[at], "-._~:/?#[]@!$&'()*+,;=%");
  return (is_spaced(classes[at]) || classes[at] == MARK) && classes[at] != HANGUL;
}

static size_t trimmed(size_t start, size_t end) {
  long round = 0, square = 0;
  for (size_t at = start; at < end; at++) {
    round += (points[at] == ')') - (points[at] == '(');
    square += (points[at] == ']') - (points[at] == '[');
  }
  for (; end > start; end--) {
    uint32_t last = points[end - 1];
    if (last == ')' && round > 0) round--;
    else if (last == ']' && square > 0) square--;
    else if (!is_ascii_among(last, ".,;:!?'*_~")) break;
  }
  return end;
}

/// Where the link that starts here ends; 0 when none does.
static size_t link_end(size_t start) {
  size_t prefix = 0, letters = 0;
  for (; prefix < 3; prefix++) {
    const char *letter = LINK_STARTS[prefix];
    letters = 0;
    while (letter[letters] && start + letters < length && points[start + letters] < 0x80 && small(points[start + letters]) == (uint32_t)letter[letters]) letters++;
    if (!letter[letters]) break;
  }
  if (prefix == 3 || (start && is_spaced(classes[start - 1]))) return 0;
  size_t end = start;
  while (end < length && is_in_link(end)) end++;
  end = trimmed(start, end);
  size_t rest = start + letters;
  if (rest >= end) return 0;
  if (prefix < 2) return is_word(classes[rest]) || points[rest] == '[' ? end : 0;
  for (size_t at = rest; is_word(classes[rest]) && at + 1 < end && !is_ascii_among(points[at], "/?#:"); at++) {
    if (points[at] == '.' && is_word(classes[at + 1])) return end;
  }
  return 0;
}

static bool is_label(size_t start, size_t end) {
  return start < end && end - start <= 63 && points[start] != '-' && points[end - 1] != '-';
}

static bool is_domain(size_t start, size_t end) {
  size_t label = start, dots = 0;
  for (size_t at = start; at < end; at++) {
    if (points[at] != '.') continue;
    if (!is_label(label, at)) return false;
    label = at + 1;
    dots++;
  }
  for (size_t at = label; at < end; at++) if (!is_alphabetic(points[at])) return false;
  return dots && is_label(label, end) && end - label >= 2;
}

static bool email_span(size_t floor, size_t at, Span *span) {
  size_t start = at, end = at + 1;
  while (start > floor && at - start <= 64 && (is_alphanumeric(points[start - 1]) || is_ascii_among(points[start - 1], "._%+-"))) start--;
  if (at - start > 64 || (start > floor && is_spaced(classes[start - 1]))) return false;
  while (start < at && is_ascii_among(points[start], ".-")) start++;
  if (start == at || points[at - 1] == '.') return false;
  for (size_t dot = start; dot + 1 < at; dot++) if (points[dot] == '.' && points[dot + 1] == '.') return false;
  while (end < length && end - at <= 254 && (is_alphanumeric(points[end]) || is_ascii_among(points[end], "-."))) end++;
  if (end - at > 254 || (end < length && (points[end] == '@' || is_spaced(classes[end])))) return false;
  while (end > at + 1 && is_ascii_among(points[end - 1], ".-")) end--;
  *span = (Span){start, end};
  return is_domain(at + 1, end);
}

typedef struct { List spans; Table links, emails; } Addresses;

static Addresses addresses_of(void) {
  Addresses found = {0};
  for (size_t at = 0; at < length;) {
    Span span = {at, 0};
    const Span *last = found.spans.count ? (Span *)found.spans.all + found.spans.count - 1 : NULL;
    if (is_ascii_among(points[at], "hHwW") && (span.end = link_end(at))) {
      if (span.end - at <= LINK_MAX) number_of(&found.links, (Key){points + at, span.end - at});
    } else if (points[at] == '@' && email_span(last ? last->end : 0, at, &span)) {
      uint32_t *email = json_memory((span.end - span.start) * sizeof *email);
      for (size_t c = span.start; c < span.end; c++) email[c - span.start] = c > at ? small(points[c]) : points[c];
      number_of(&found.emails, (Key){email, span.end - span.start});
    } else {
      at++;
      continue;
    }
    *(Span *)grown(&found.spans, sizeof span) = span;
    at = span.end;
  }
  return found;
}

// Section 4: words.

static Word *words;
static size_t word_count;
/// The different ones, in small letters.
static Table different;

static bool joins(uint32_t c, Class before, Class after) {
  if (c == '\'' || c == 0x2019) return (is_letter(before) || before == MARK) && is_letter(after) && is_spaced(after);
  return (c == '.' || c == ',') && before == DIGIT && after == DIGIT;
}

static size_t word_end(size_t start, size_t limit) {
  size_t end = start + 1;
  if (is_unspaced(classes[start])) {
    while (end < limit && classes[end] == MARK) end++;
    return end;
  }
  for (;;) {
    if (end < limit && (is_spaced(classes[end]) || classes[end] == MARK)) end++;
    else if (end + 1 < limit && joins(points[end], classes[end - 1], classes[end + 1])) end += 2;
    else return end;
  }
}

static void read_words(const List *spans) {
  List found = {0};
  uint32_t *folded = json_memory(length * sizeof *folded);
  for (size_t which = 0, at = 0; which <= spans->count; which++) {
    Span span = which < spans->count ? ((Span *)spans->all)[which] : (Span){length, length};
    while (at < span.start) {
      if (!is_word(classes[at])) {
        at++;
        continue;
      }
      size_t end = word_end(at, span.start);
      Key key = {folded, 0};
      for (size_t c = at; c < end; c++) if (points[c] != 0xad) folded[key.count++] = small(points[c]);
      *(Word *)grown(&found, sizeof(Word)) = (Word){at, end, number_of(&different, key)};
      folded += key.count;
      at = end;
    }
    at = span.end;
  }
  words = found.all;
  word_count = found.count;
}

static size_t count_classes(size_t start, size_t end, bool (*wanted)(Class)) {
  size_t count = 0;
  for (size_t at = start; at < end; at++) count += wanted(classes[at]);
  return count;
}

static bool is_hangul(Class found) { return found == HANGUL; }

// Section 5: paragraphs and sentences.

#define STRONG "\u0589\u061f\u06d4\u0964\u0965。！？\uff61"
#define STOPS STRONG ".!?…‼⁇⁈⁉"
#define CLOSERS "\"')]}»›”’」』）］】》〉〕\uff63"
#define OPENERS "\"'([{«‹„‚“‘¿¡「『（［【《〈〔\uff62"

static List sentences;

static List paragraphs_of(void) {
  List found = {0};
  bool goes_on = false;
  for (size_t start = 0, end; start < length; start = end) {
    for (end = start; end < length && points[end] != '\n';) end++;
    if (end < length) end++;
    bool is_full = count_classes(start, end, is_blank) < end - start;
    if (is_full && goes_on) ((Span *)found.all)[found.count - 1].end = end;
    else if (is_full) *(Span *)grown(&found, sizeof(Span)) = (Span){start, end};
    goes_on = is_full;
  }
  return found;
}

static bool takes_point(const Word *word) {
  const uint32_t *c = points + word->start;
  size_t count = word->end - word->start;
  if (count == 1) return is_spaced(classes[word->start]);
  if (count == 2 && classes[word->start] == DIGIT && classes[word->start + 1] == DIGIT) return true;
  bool is_title = count <= 3 && within(c[0], 'A', 'Z') && !is_ascii_among(c[0], "AEIOUY");
  for (size_t at = 1; at < count && is_title; at++) is_title = within(c[at], 'a', 'z') && !is_ascii_among(c[at], "aeiouy");
  return is_title;
}

static bool ends_here(size_t start, size_t stops, size_t end, size_t limit, const Word *before) {
  size_t next = end;
  while (next < limit && is_blank(classes[next])) next++;
  if (next == limit) return true;
  for (size_t at = start; at < stops; at++) if (is_among(points[at], STRONG)) return true;
  if (next == end) return false;
  while (next < limit && (is_blank(classes[next]) || is_among(points[next], OPENERS))) next++;
  if (next < limit && is_small(points[next])) return false;
  return !(stops == start + 1 && points[start] == '.' && before && takes_point(before));
}

static void take_sentence(Span span, size_t *taken) {
  size_t first = *taken;
  while (*taken < word_count && words[*taken].start < span.end) ++*taken;
  if (first < *taken) *(Sentence *)grown(&sentences, sizeof(Sentence)) = (Sentence){span, {first, *taken}};
}

/// Takes a piece without blanks at its ends, in several when it is too long.
static void take_piece(size_t start, size_t end, size_t *taken) {
  for (;;) {
    while (start < end && is_blank(classes[start])) start++;
    while (start < end && is_blank(classes[end - 1])) end--;
    if (start == end) return;
    size_t cut = end;
    if (end - start > SENTENCE_MAX) {
      for (cut = start + SENTENCE_MAX; cut > start && !is_blank(classes[cut]);) cut--;
      if (cut == start) cut = start + SENTENCE_MAX;
    }
    size_t last = cut;
    while (is_blank(classes[last - 1])) last--;
    take_sentence((Span){start, last}, taken);
    start = cut;
  }
}

static void read_sentences(const List *paragraphs, const List *spans) {
  size_t address = 0, word = 0, taken = 0;
  for (size_t which = 0; which < paragraphs->count; which++) {
    Span paragraph = ((Span *)paragraphs->all)[which];
    size_t start = paragraph.start, at = start;
    const Word *before = NULL;
    while (at < paragraph.end) {
      if (address < spans->count && ((Span *)spans->all)[address].start == at) {
        at = ((Span *)spans->all)[address++].end;
        before = NULL;
      } else if (word < word_count && words[word].start == at) {
        before = &words[word++];
        at = before->end;
      } else if (is_among(points[at], STOPS)) {
        size_t stops = at, end;
        while (stops < paragraph.end && is_among(points[stops], STOPS)) stops++;
        for (end = stops; end < paragraph.end && is_among(points[end], CLOSERS);) end++;
        if (ends_here(at, stops, end, paragraph.end, before && before->end == at ? before : NULL)) {
          take_piece(start, end, &taken);
          start = end;
        }
        at = end;
      } else {
        at++;
      }
    }
    take_piece(start, paragraph.end, &taken);
  }
}

// Section 6: terms. A term is a word or a pair, and the number of either, from 1, is in its own field.

/// The word and the one before it, when they are a pair: both han or both katakana, and nothing between them.
static bool pair_at(size_t index, Key *pair) {
  if (!index || words[index - 1].end != words[index].start) return false;
  Class before = classes[words[index - 1].start], found = classes[words[index].start];
  if (before != found || (found != HAN && found != KATAKANA)) return false;
  uint32_t *both = json_memory(2 * sizeof *both);
  both[0] = points[words[index - 1].start];
  both[1] = points[words[index].start];
  *pair = (Key){both, 2};
  return true;
}

static int by_weight(const void *left, const void *right) {
  const Term *a = left, *b = right;
  if (a->weight != b->weight) return a->weight < b->weight ? 1 : -1;
  if (a->count != b->count) return a->count < b->count ? 1 : -1;
  return a->first < b->first ? -1 : a->first > b->first;
}

static size_t word_weight(const Word *word) {
  size_t letters = count_classes(word->start, word->end, is_word) + count_classes(word->start, word->end, is_hangul);
  bool is_term = !is_unspaced(classes[word->start]) && letters >= 4 && letters <= 64;
  if (!is_term || !count_classes(word->start, word->end, is_letter)) return 0;
  return (letters < 12 ? letters : 12) - 3;
}

static void count_term(List *terms, size_t *place, Term term, size_t weight) {
  if (!*place) {
    *(Term *)grown(terms, sizeof term) = term;
    *place = terms->count;
  }
  Term *found = (Term *)terms->all + *place - 1;
  found->count++;
  found->weight += weight;
}

static List terms_of(Table *pairs) {
  List terms = {0};
  size_t *word_places = json_memory((different.keys.count + 1) * sizeof *word_places);
  size_t *pair_places = json_memory((word_count + 1) * sizeof *pair_places);
  for (size_t index = 0; index < word_count; index++) {
    Key key;
    size_t weight = word_weight(&words[index]);
    if (weight) {
      Term term = {.first = words[index].start, .word = words[index].id + 1};
      count_term(&terms, &word_places[words[index].id], term, weight);
    } else if (pair_at(index, &key)) {
      size_t pair = number_of(pairs, key);
      count_term(&terms, &pair_places[pair], (Term){.first = words[index - 1].start, .pair = pair + 1}, 3);
    }
  }
  qsort(terms.all, terms.count, sizeof(Term), by_weight);
  size_t tenth = (terms.count + 9) / 10;
  size_t significant = tenth < 8 ? 8 : tenth > 100 ? 100 : tenth;
  if (terms.count > significant) terms.count = significant;
  return terms;
}

static bool *marks_of(const List *terms, Table *pairs) {
  bool *whole = json_memory(different.keys.count + 1), *both = json_memory(pairs->keys.count + 1);
  bool *marks = json_memory(word_count + 1);
  for (size_t at = 0; at < terms->count; at++) {
    const Term *term = (Term *)terms->all + at;
    if (term->word) whole[term->word - 1] = true;
    else both[term->pair - 1] = true;
  }
  for (size_t index = 0; index < word_count; index++) {
    Key key;
    if (whole[words[index].id]) marks[index] = true;
    if (pair_at(index, &key) && both[number_of(pairs, key)]) marks[index - 1] = marks[index] = true;
  }
  return marks;
}

// Section 7: the summary.

typedef struct { uint64_t worth; size_t place; const char *shown; size_t bytes; } Ranked;

static uint64_t worth_of(const bool *marks, Span span) {
  uint64_t best = 0, count = 0;
  size_t first = 0, last = 0;
  for (size_t place = span.start; place < span.end; place++) {
    if (!marks[place]) continue;
    bool goes_on = count && place - last <= 5;
    count = goes_on ? count + 1 : 1;
    first = goes_on ? first : place;
    last = place;
    uint64_t worth = 1000 * count * count / (last - first + 1);
    best = worth > best ? worth : best;
  }
  return best;
}

static int by_worth(const void *left, const void *right) {
  const Ranked *a = left, *b = right;
  if (a->worth != b->worth) return a->worth < b->worth ? 1 : -1;
  return a->place < b->place ? -1 : a->place > b->place;
}

static int by_place(const void *left, const void *right) {
  const Ranked *a = left, *b = right;
  return a->place < b->place ? -1 : a->place > b->place;
}

/// A sentence with every run of blanks as one space.
static void show(Ranked *ranked) {
  Span span = ((Sentence *)sentences.all)[ranked->place].span;
  uint32_t *shown = json_memory((span.end - span.start) * sizeof *shown);
  size_t count = 0;
  for (size_t at = span.start; at < span.end; at++) {
    if (!is_blank(classes[at])) shown[count++] = points[at];
    else if (!is_blank(classes[at - 1])) shown[count++] = ' ';
  }
  ranked->shown = bytes_of(shown, count, &ranked->bytes);
}

static void put_summary(JsonOut *out, const bool *marks, size_t wanted) {
  Ranked *ranked = json_memory((sentences.count + 1) * sizeof *ranked), chosen[SENTENCES_MAX];
  size_t count = 0;
  for (size_t place = 0; place < sentences.count; place++) {
    ranked[place] = (Ranked){.worth = worth_of(marks, ((Sentence *)sentences.all)[place].words), .place = place};
  }
  qsort(ranked, sentences.count, sizeof *ranked, by_worth);
  for (size_t at = 0; at < sentences.count && count < wanted; at++) {
    bool is_new = true;
    show(&ranked[at]);
    for (size_t other = 0; other < count && is_new; other++) {
      is_new = chosen[other].bytes != ranked[at].bytes || memcmp(chosen[other].shown, ranked[at].shown, ranked[at].bytes);
    }
    if (is_new) chosen[count++] = ranked[at];
  }
  qsort(chosen, count, sizeof *chosen, by_place);
  json_open(out, '[');
  for (size_t at = 0; at < count; at++) json_put_text(out, chosen[at].shown, chosen[at].bytes);
  json_close(out, ']');
}

// The answer.

static uint64_t share(uint64_t scale, uint64_t part, uint64_t whole) {
  return whole ? (scale * part + whole / 2) / whole : 0;
}

static void put_count(JsonOut *out, const char *name, uint64_t count) {
  json_name(out, name);
  json_put_whole(out, count);
}

static void put_key(JsonOut *out, Key key) {
  size_t bytes;
  char *text = bytes_of(key.points, key.count, &bytes);
  json_put_text(out, text, bytes);
}

static void put_addresses(JsonOut *out, const char *name, const char *left_out, const Table *found) {
  size_t count = found->keys.count;
  json_name(out, name);
  json_open(out, '[');
  for (size_t at = 0; at < count && at < NAMED_MAX; at++) put_key(out, ((Key *)found->keys.all)[at]);
  json_close(out, ']');
  put_count(out, left_out, count > NAMED_MAX ? count - NAMED_MAX : 0);
}

static void put_classes(JsonOut *out) {
  uint64_t counts[CLASSES] = {0}, letters = 0;
  for (size_t at = 0; at < length; at++) counts[classes[at]]++;
  for (Class found = 0; found <= OTHER; found++) letters += counts[found];
  json_name(out, "characters_by_class");
  json_open(out, '{');
  put_count(out, "letter", letters);
  for (Class found = DIGIT; found < CLASSES; found++) put_count(out, NAMES[found], counts[found]);
  json_close(out, '}');
  json_name(out, "letters_by_script_per_mille");
  json_open(out, '{');
  for (Class found = 0; found <= OTHER; found++) put_count(out, NAMES[found], share(1000, counts[found], letters));
  json_close(out, '}');
}

static void put_terms(JsonOut *out, const List *terms, const Table *pairs) {
  json_name(out, "terms");
  json_open(out, '[');
  for (size_t at = 0; at < terms->count && at < TERMS_NAMED_MAX; at++) {
    const Term *term = (Term *)terms->all + at;
    json_open(out, '{');
    json_name(out, "term");
    put_key(out, term->word ? ((Key *)different.keys.all)[term->word - 1] : ((Key *)pairs->keys.all)[term->pair - 1]);
    put_count(out, "count", term->count);
    json_close(out, '}');
  }
  json_close(out, ']');
}

static JsonOut digest(size_t wanted) {
  JsonOut out = {0};
  Table pairs = {0};
  Addresses addresses = addresses_of();
  read_words(&addresses.spans);
  List paragraphs = paragraphs_of();
  read_sentences(&paragraphs, &addresses.spans);
  List terms = terms_of(&pairs);
  uint64_t unspaced = 0, letters = 0;
  for (size_t at = 0; at < word_count; at++) {
    unspaced += is_unspaced(classes[words[at].start]);
    letters += count_classes(words[at].start, words[at].end, is_word);
  }
  json_open(&out, '{');
  put_count(&out, "characters", length);
  put_count(&out, "paragraphs", paragraphs.count);
  put_count(&out, "sentences", sentences.count);
  put_count(&out, "words", word_count);
  put_count(&out, "distinct_words", different.keys.count);
  put_count(&out, "word_length_hundredths", share(100, letters, word_count));
  put_count(&out, "sentence_words_hundredths", share(100, word_count, sentences.count));
  put_count(&out, "reading_minutes", (500 * (word_count - unspaced) + 240 * unspaced + 119999) / 120000);
  put_classes(&out);
  put_terms(&out, &terms, &pairs);
  json_name(&out, "summary");
  put_summary(&out, marks_of(&terms, &pairs), wanted);
  put_addresses(&out, "links", "links_left_out", &addresses.links);
  put_addresses(&out, "emails", "emails_left_out", &addresses.emails);
  json_close(&out, '}');
  return out;
}

// The input.

static bool refuse(exports_keiko_plugin_task_failure_t *failure, const char *reason) {
  failure->tag = KEIKO_PLUGIN_TYPES_FAILURE_INVALID_INPUT;
  task_plugin_string_dup(&failure->val.invalid_input, reason);
  return false;
}

/// Whether the letters at `at` are these, in any case.
static bool reads(const task_plugin_string_t *text, size_t at, const char *letters) {
  return text->len - at >= strlen(letters) && !strncasecmp((char *)text->ptr + at, letters, strlen(letters));
}

/// The same, with nothing behind them that belongs to the same word.
static bool reads_whole(const task_plugin_string_t *text, size_t at, const char *letters) {
  size_t behind = at + strlen(letters);
  return reads(text, at, letters) && (behind == text->len || strchr(" \";", text->ptr[behind]));
}

static size_t without_blanks(const task_plugin_string_t *text, size_t at) {
  while (at < text->len && text->ptr[at] == ' ') at++;
  return at;
}

/// Whether a content type is this media type, whatever its parameters.
static bool is_type(const task_plugin_string_t *type, const char *name) {
  return reads_whole(type, 0, name);
}

/// Whether a content type says nothing else than UTF-8.
static bool is_utf8(const task_plugin_string_t *type) {
  for (size_t at = 0; at < type->len; at++) {
    if (type->ptr[at] != ';') continue;
    size_t value = without_blanks(type, at + 1);
    if (!reads(type, value, "charset=")) continue;
    value += strlen("charset=");
    value += value < type->len && type->ptr[value] == '"';
    return reads_whole(type, value, "utf-8") || reads_whole(type, value, "us-ascii");
  }
  return true;
}

static const char *read_json(const task_plugin_list_u8_t *bytes, const uint8_t **text, size_t *count, uint64_t *wanted) {
  static const char *const KNOWN[] = {"text", "sentences", NULL};
  const char *reason;
  const Json *given = json_read(bytes->ptr, bytes->len, &reason);
  if (!given) return reason;
  if (given->kind != JSON_OBJECT || !json_only(given, KNOWN)) return "the input is no object of `text` and `sentences`";
  const Json *of_text = json_member(given, "text"), *of_wanted = json_member(given, "sentences");
  if (!of_text || of_text->kind != JSON_TEXT) return "`text` is no text";
  if (of_wanted && !json_whole(of_wanted, wanted)) return "`sentences` is no whole number";
  *text = (const uint8_t *)of_text->text;
  *count = of_text->length;
  return NULL;
}

static const char *read_input(const exports_keiko_plugin_task_payload_t *input, const uint8_t **text, size_t *count, uint64_t *wanted) {
  *wanted = SENTENCES_DEFAULT;
  if (is_type(&input->content_type, "application/json")) return read_json(&input->bytes, text, count, wanted);
  if (!is_type(&input->content_type, "text/plain")) return "the input is neither text nor JSON";
  if (!is_utf8(&input->content_type)) return "the text is in something else than utf-8";
  *text = input->bytes.ptr;
  *count = input->bytes.len;
  for (const uint8_t *at = *text, *end = at + *count; at < end;) if (utf8_next(&at, end) < 0) return "the text is not utf-8";
  return NULL;
}

static void log_counts(void) {
  char counts[2][24];
  const char *const names[] = {"characters", "words"};
  task_plugin_string_t message;
  keiko_log_log_field_t fields[2];
  snprintf(counts[0], sizeof counts[0], "%zu", length);
  snprintf(counts[1], sizeof counts[1], "%zu", word_count);
  for (size_t at = 0; at < 2; at++) {
    task_plugin_string_set(&fields[at].name, names[at]);
    task_plugin_string_set(&fields[at].value, counts[at]);
  }
  task_plugin_string_set(&message, "text digested");
  keiko_log_log_write(KEIKO_LOG_LOG_LEVEL_DEBUG, &message, &(keiko_log_log_list_field_t){fields, 2});
}

bool exports_keiko_plugin_task_run(task_plugin_string_t *kind, exports_keiko_plugin_task_payload_t *input,
                                   exports_keiko_plugin_task_payload_t *ret, exports_keiko_plugin_task_failure_t *err) {
  const uint8_t *text;
  size_t count;
  uint64_t wanted;
  if (kind->len != 6 || memcmp(kind->ptr, "digest", 6)) return refuse(err, "there is only the kind `digest`");
  const char *reason = read_input(input, &text, &count, &wanted);
  char told[80];
  if (!reason && count > TEXT_BYTES_MAX) {
    snprintf(told, sizeof told, "text of %zu bytes exceeds the limit of %d", count, TEXT_BYTES_MAX);
    reason = told;
  } else if (!reason && wanted > SENTENCES_MAX) {
    snprintf(told, sizeof told, "%llu sentences exceed the limit of %d", (unsigned long long)wanted, SENTENCES_MAX);
    reason = told;
  }
  if (reason) return refuse(err, reason);
  read_rows();
  take_text(text, count);
  JsonOut out = digest((size_t)wanted);
  log_counts();
  task_plugin_string_dup(&ret->content_type, "application/json");
  ret->bytes = (task_plugin_list_u8_t){(uint8_t *)out.bytes, out.length};
  return true;
}
