// Section 5: paragraphs and sentences.

#include "digest.h"

#define SENTENCE_MAX 1000

#define STRONG "\u0589\u061f\u06d4\u0964\u0965。！？\uff61"
#define STOPS STRONG ".!?…‼⁇⁈⁉"
#define CLOSERS "\"')]}»›”’」』）］】》〉〕\uff63"
#define OPENERS "\"'([{«‹„‚“‘¿¡「『（［【《〈〔\uff62"

List sentences;

List paragraphs_of(void) {
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

void read_sentences(const List *paragraphs, const List *spans) {
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
