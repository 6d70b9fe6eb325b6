// Section 6: terms.

#include "digest.h"

#include <stdlib.h>

static bool is_hangul(Class found) { return found == HANGUL; }

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

List terms_of(Table *pairs) {
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

bool *marks_of(const List *terms, Table *pairs) {
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
