// JSON for plugins in C: reads an input into a tree, and writes a result.
//
// Nothing is freed: an attempt has an instance of its own, whose memory goes with it. What cannot be had traps, and the
// host says by which limit. A plugin that asks for its instances to be kept needs another reader.

#ifndef KEIKO_JSON_H
#define KEIKO_JSON_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/// Lists and objects within each other.
#define JSON_DEPTH_MAX 64

typedef enum { JSON_NULL, JSON_FALSE, JSON_TRUE, JSON_NUMBER, JSON_TEXT, JSON_LIST, JSON_OBJECT } JsonKind;

/// A value. Elements and members are a chain from `first` over `next`.
typedef struct Json {
  JsonKind kind;
  /// A text in UTF-8, or a number as it was written; ends with a zero that is not counted.
  const char *text;
  size_t length;
  /// What a member is called; texts in JSON may have zeros in them.
  const char *name;
  size_t name_length;
  const struct Json *first, *next;
  size_t count;
} Json;

/// The value that the bytes are, or null with the reason.
const Json *json_read(const uint8_t *bytes, size_t length, const char **reason);

/// The member of an object, the last of several; null when there is none, or it is JSON's null.
const Json *json_member(const Json *object, const char *name);

/// Whether all members of an object are among these names, the last of which is null.
bool json_only(const Json *object, const char *const *names);

/// A number that is whole and not negative.
bool json_whole(const Json *value, uint64_t *number);

/// Any number.
double json_number(const Json *value);

/// Memory, or a trap.
void *json_memory(size_t bytes);

/// The code point at `*at`, which then stands behind it; below 0 when there is none before `end`, or it is no UTF-8.
int32_t utf8_next(const uint8_t **at, const uint8_t *end);

/// The bytes of a code point, of which there are up to four.
size_t utf8_put(uint32_t point, char *bytes);

/// What is written.
typedef struct {
  char *bytes;
  size_t length, capacity;
  bool follows;
} JsonOut;

void json_open(JsonOut *out, char bracket);
void json_close(JsonOut *out, char bracket);
void json_name(JsonOut *out, const char *name);
void json_put_text(JsonOut *out, const void *bytes, size_t length);
void json_put_whole(JsonOut *out, uint64_t number);
void json_put_number(JsonOut *out, double number);
/// `null`, `true`, or something that is JSON already.
void json_put_word(JsonOut *out, const char *word);
void json_put_raw(JsonOut *out, const void *json, size_t length);
/// A value that was read, with the members of objects in the order of their names: the same text for the same value, except
/// that numbers stay as they were written. Null is `null`.
void json_put(JsonOut *out, const Json *value);

#endif
