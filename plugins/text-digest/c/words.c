// Section 4: words.

#include "digest.h"

Word *words;
size_t word_count;
Table different;

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

void read_words(const List *spans) {
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
