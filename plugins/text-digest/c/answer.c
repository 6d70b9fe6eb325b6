// The answer: everything that the sections found, as one object of JSON.

#include "digest.h"

#define NAMED_MAX 100
#define TERMS_NAMED_MAX 10

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

JsonOut digest(size_t wanted) {
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
