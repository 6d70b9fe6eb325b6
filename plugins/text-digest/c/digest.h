// What the modules of the plugin have in common: the text, and what each section of ../README.md finds in it.
//
// Nothing is freed: an attempt has an instance of its own.

#ifndef DIGEST_H
#define DIGEST_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "keiko_json.h"

#define SENTENCES_MAX 20

typedef struct { size_t start, end; } Span;
typedef struct { void *all; size_t count, capacity; } List;

// table.c: lists, and different texts, numbered in the order in which they come.

typedef struct { const uint32_t *points; size_t count; } Key;
typedef struct { List keys; size_t *slots, size; } Table;

void *grown(List *list, size_t size);
size_t number_of(Table *table, Key key);

// characters.c: sections 1 and 2. Letters come first, in the order of their scripts.

typedef enum {
  LATIN, GREEK, CYRILLIC, HEBREW, ARABIC, DEVANAGARI, THAI, HAN, HIRAGANA, KATAKANA, HANGUL, OTHER,
  DIGIT, MARK, SPACE, SYMBOL, CONTROL, CLASSES
} Class;

extern const char *const NAMES[CLASSES];

/// The text as code points, with the class of each.
extern uint32_t *points;
extern uint8_t *classes;
extern size_t length;

/// Takes the text in, which is UTF-8 by now.
void take_text(const uint8_t *bytes, size_t count);

static inline bool is_letter(Class found) { return found <= OTHER; }
static inline bool is_word(Class found) { return found <= DIGIT; }
static inline bool is_unspaced(Class found) { return found == HAN || found == HIRAGANA || found == KATAKANA; }
static inline bool is_spaced(Class found) { return is_word(found) && !is_unspaced(found); }
static inline bool is_blank(Class found) { return found == SPACE || found == CONTROL; }

static inline bool within(uint32_t point, uint32_t first, uint32_t last) { return first <= point && point <= last; }
static inline bool is_alphabetic(uint32_t c) { return within(c, 'A', 'Z') || within(c, 'a', 'z'); }
static inline bool is_alphanumeric(uint32_t c) { return is_alphabetic(c) || within(c, '0', '9'); }

uint32_t small(uint32_t c);
bool is_small(uint32_t c);
bool is_among(uint32_t point, const char *characters);
bool is_ascii_among(uint32_t point, const char *characters);
size_t count_classes(size_t start, size_t end, bool (*wanted)(Class));
char *bytes_of(const uint32_t *from, size_t count, size_t *bytes);

// addresses.c: section 3.

typedef struct { List spans; Table links, emails; } Addresses;

Addresses addresses_of(void);

// words.c: section 4.

typedef struct { size_t start, end, id; } Word;

extern Word *words;
extern size_t word_count;
/// The different ones, in small letters.
extern Table different;

void read_words(const List *spans);

// sentences.c: section 5.

typedef struct { Span span, words; } Sentence;

extern List sentences;

List paragraphs_of(void);
void read_sentences(const List *paragraphs, const List *spans);

// terms.c: section 6. A term is a word or a pair, and the number of either, from 1, is in its own field.

typedef struct { uint64_t weight; size_t count, first, word, pair; } Term;

/// The significant ones, in order.
List terms_of(Table *pairs);
/// Which words are significant.
bool *marks_of(const List *terms, Table *pairs);

// summary.c: section 7.

void put_summary(JsonOut *out, const bool *marks, size_t wanted);

// answer.c: everything together.

JsonOut digest(size_t wanted);

#endif
