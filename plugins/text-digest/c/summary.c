// Section 7: the summary.

#include "digest.h"

#include <stdlib.h>
#include <string.h>

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

void put_summary(JsonOut *out, const bool *marks, size_t wanted) {
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
