// Sections 1 and 2: the text as code points, their classes, and their small forms.

#include "digest.h"

#include <stdlib.h>
#include <string.h>

const char *const NAMES[CLASSES] = {
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

uint32_t *points;
uint8_t *classes;
size_t length;

static Row rows[256];
static size_t row_count;

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

uint32_t small(uint32_t c) {
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
bool is_small(uint32_t c) { return class_of(c) <= CYRILLIC && !is_capital(c); }

/// Whether a code point is one of the characters of a text in UTF-8.
bool is_among(uint32_t point, const char *characters) {
  const uint8_t *at = (const uint8_t *)characters, *end = at + strlen(characters);
  while (at < end) if (utf8_next(&at, end) == (int32_t)point) return true;
  return false;
}

bool is_ascii_among(uint32_t point, const char *characters) {
  return point && point < 0x80 && strchr(characters, (int)point);
}

size_t count_classes(size_t start, size_t end, bool (*wanted)(Class)) {
  size_t count = 0;
  for (size_t at = start; at < end; at++) count += wanted(classes[at]);
  return count;
}

/// Code points in UTF-8, with their number of bytes.
char *bytes_of(const uint32_t *from, size_t count, size_t *bytes) {
  char *all = json_memory(4 * count + 1);
  *bytes = 0;
  for (size_t at = 0; at < count; at++) *bytes += utf8_put(from[at], all + *bytes);
  return all;
}

void take_text(const uint8_t *bytes, size_t count) {
  const uint8_t *at = bytes, *end = bytes + count;
  read_rows();
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
