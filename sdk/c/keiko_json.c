#include "keiko_json.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef struct {
  const uint8_t *at, *end;
  const char *reason;
  unsigned depth;
} Reader;

static bool read_value(Reader *reader, Json *value);

void *json_memory(size_t bytes) {
  void *memory = calloc(1, bytes ? bytes : 1);
  if (!memory) abort();
  return memory;
}

int32_t utf8_next(const uint8_t **at, const uint8_t *end) {
  static const uint32_t LEAST[] = {0, 0x80, 0x800, 0x10000};
  if (*at == end) return -1;
  uint8_t first = *(*at)++;
  if (first < 0x80) return first;
  unsigned more = first >= 0xc2 && first < 0xe0 ? 1 : first >= 0xe0 && first < 0xf0 ? 2 : first >= 0xf0 && first < 0xf5 ? 3 : 0;
  if (!more || (size_t)(end - *at) < more) return -1;
  uint32_t point = first & (0x3f >> more);
  for (unsigned left = more; left; left--) {
    uint8_t byte = *(*at)++;
    if ((byte & 0xc0) != 0x80) return -1;
    point = point << 6 | (byte & 0x3f);
  }
  bool is_one = point >= LEAST[more] && point < 0x110000 && !(point >= 0xd800 && point < 0xe000);
  return is_one ? (int32_t)point : -1;
}

size_t utf8_put(uint32_t point, char *bytes) {
  unsigned more = point < 0x80 ? 0 : point < 0x800 ? 1 : point < 0x10000 ? 2 : 3;
  static const uint8_t FIRST[] = {0, 0xc0, 0xe0, 0xf0};
  bytes[0] = (char)(FIRST[more] | point >> 6 * more);
  for (unsigned at = 1; at <= more; at++) bytes[at] = (char)(0x80 | (point >> 6 * (more - at) & 0x3f));
  return more + 1;
}

static bool fails(Reader *reader, const char *reason) {
  if (!reader->reason) reader->reason = reason;
  return false;
}

static void skip_blanks(Reader *reader) {
  while (reader->at < reader->end && strchr(" \t\n\r", *reader->at) && *reader->at) reader->at++;
}

static bool takes(Reader *reader, char expected) {
  skip_blanks(reader);
  if (reader->at == reader->end || *reader->at != (uint8_t)expected) return false;
  reader->at++;
  return true;
}

static bool read_hex(Reader *reader, uint32_t *unit) {
  *unit = 0;
  if (reader->end - reader->at < 4) return fails(reader, "an escape has no end");
  for (int digit = 0; digit < 4; digit++) {
    uint8_t c = *reader->at++;
    uint32_t value = c - '0' < 10u ? c - '0' : (c | 32u) - 'a' < 6u ? (c | 32u) - 'a' + 10 : 16;
    if (value > 15) return fails(reader, "an escape has a letter that is no digit");
    *unit = *unit << 4 | value;
  }
  return true;
}

static bool read_escape(Reader *reader, char **to) {
  static const char LETTERS[] = "\"\\/bfnrt", MEANT[] = "\"\\/\b\f\n\r\t";
  if (reader->at == reader->end) return fails(reader, "a text has no end");
  uint8_t letter = *reader->at++;
  const char *known = letter ? strchr(LETTERS, letter) : NULL;
  if (known) {
    *(*to)++ = MEANT[known - LETTERS];
    return true;
  }
  uint32_t unit, low;
  if (letter != 'u') return fails(reader, "there is no such escape");
  if (!read_hex(reader, &unit)) return false;
  if (unit >= 0xd800 && unit < 0xe000) {
    bool is_high = unit < 0xdc00 && reader->end - reader->at >= 6 && reader->at[0] == '\\' && reader->at[1] == 'u';
    if (!is_high) return fails(reader, "half a surrogate pair is no character");
    reader->at += 2;
    if (!read_hex(reader, &low)) return false;
    if (low < 0xdc00 || low >= 0xe000) return fails(reader, "half a surrogate pair is no character");
    unit = 0x10000 + ((unit - 0xd800) << 10 | (low - 0xdc00));
  }
  *to += utf8_put(unit, *to);
  return true;
}

/// Escapes are longer than what they stand for, so the text fits into its own length.
static bool read_text(Reader *reader, const char **text, size_t *length) {
  if (!takes(reader, '"')) return fails(reader, "a text is expected");
  const uint8_t *end = reader->at;
  while (end < reader->end && *end != '"') end += *end == '\\' ? 2 : 1;
  if (end >= reader->end) return fails(reader, "a text has no end");
  char *start = json_memory((size_t)(end - reader->at) + 1), *to = start;
  while (reader->at < end) {
    if (*reader->at == '\\') {
      reader->at++;
      if (!read_escape(reader, &to)) return false;
      continue;
    }
    const uint8_t *from = reader->at;
    int32_t point = utf8_next(&reader->at, end);
    if (point < 0x20) return fails(reader, point < 0 ? "a text is not utf-8" : "a text has a control character");
    memcpy(to, from, (size_t)(reader->at - from));
    to += reader->at - from;
  }
  reader->at++;
  *text = start;
  *length = (size_t)(to - start);
  return true;
}

static bool read_digits(Reader *reader) {
  const uint8_t *start = reader->at;
  while (reader->at < reader->end && *reader->at - '0' < 10u) reader->at++;
  return reader->at > start;
}

static bool is_next(const Reader *reader, const char *any) {
  return reader->at < reader->end && *reader->at && strchr(any, *reader->at);
}

static bool read_number(Reader *reader, Json *value) {
  const uint8_t *start = reader->at;
  if (is_next(reader, "-")) reader->at++;
  if (is_next(reader, "0")) reader->at++;
  else if (!read_digits(reader)) return fails(reader, "a value is expected");
  if (is_next(reader, ".") && (reader->at++, !read_digits(reader))) return fails(reader, "a number has no end");
  if (is_next(reader, "eE")) {
    reader->at++;
    if (is_next(reader, "+-")) reader->at++;
    if (!read_digits(reader)) return fails(reader, "a number has no end");
  }
  value->kind = JSON_NUMBER;
  value->length = (size_t)(reader->at - start);
  value->text = memcpy(json_memory(value->length + 1), start, value->length);
  return true;
}

static bool read_many(Reader *reader, Json *value, char bracket) {
  const Json **last = &value->first;
  if (takes(reader, bracket)) return true;
  if (++reader->depth > JSON_DEPTH_MAX) return fails(reader, "lists and objects are too deep within each other");
  do {
    Json *one = json_memory(sizeof *one);
    if (value->kind == JSON_OBJECT) {
      if (!read_text(reader, &one->name, &one->name_length)) return false;
      if (!takes(reader, ':')) return fails(reader, "a member has no value");
    }
    if (!read_value(reader, one)) return false;
    *last = one;
    last = &one->next;
    value->count++;
  } while (takes(reader, ','));
  reader->depth--;
  return takes(reader, bracket) || fails(reader, "a list or an object has no end");
}

static bool read_word(Reader *reader, Json *value, const char *word, JsonKind kind) {
  size_t length = strlen(word);
  if ((size_t)(reader->end - reader->at) < length || memcmp(reader->at, word, length)) {
    return fails(reader, "a value is expected");
  }
  reader->at += length;
  value->kind = kind;
  return true;
}

static bool read_value(Reader *reader, Json *value) {
  skip_blanks(reader);
  if (reader->at == reader->end) return fails(reader, "a value is expected");
  switch (*reader->at) {
    case '"':
      value->kind = JSON_TEXT;
      return read_text(reader, &value->text, &value->length);
    case '[':
    case '{':
      value->kind = *reader->at++ == '[' ? JSON_LIST : JSON_OBJECT;
      return read_many(reader, value, value->kind == JSON_LIST ? ']' : '}');
    case 'n':
      return read_word(reader, value, "null", JSON_NULL);
    case 't':
      return read_word(reader, value, "true", JSON_TRUE);
    case 'f':
      return read_word(reader, value, "false", JSON_FALSE);
    default:
      return read_number(reader, value);
  }
}

const Json *json_read(const uint8_t *bytes, size_t length, const char **reason) {
  Reader reader = {.at = bytes, .end = bytes + length};
  Json *value = json_memory(sizeof *value);
  bool is_read = read_value(&reader, value);
  skip_blanks(&reader);
  if (is_read && reader.at < reader.end) fails(&reader, "something follows the value");
  *reason = reader.reason;
  return reader.reason ? NULL : value;
}

static bool is_named(const Json *member, const char *name) {
  return member->name_length == strlen(name) && !memcmp(member->name, name, member->name_length);
}

const Json *json_member(const Json *object, const char *name) {
  const Json *found = NULL;
  for (const Json *member = object->first; member; member = member->next) {
    if (object->kind == JSON_OBJECT && is_named(member, name)) found = member;
  }
  return found && found->kind != JSON_NULL ? found : NULL;
}

bool json_only(const Json *object, const char *const *names) {
  for (const Json *member = object->first; member; member = member->next) {
    const char *const *name = names;
    while (*name && !is_named(member, *name)) name++;
    if (!*name) return false;
  }
  return true;
}

bool json_whole(const Json *value, uint64_t *number) {
  *number = 0;
  if (value->kind != JSON_NUMBER) return false;
  for (const char *digit = value->text; *digit; digit++) {
    if (*digit < '0' || *digit > '9' || __builtin_mul_overflow(*number, 10, number)) return false;
    if (__builtin_add_overflow(*number, (uint64_t)(*digit - '0'), number)) return false;
  }
  return true;
}

double json_number(const Json *value) {
  return value->kind == JSON_NUMBER ? strtod(value->text, NULL) : 0;
}

static void put(JsonOut *out, const void *bytes, size_t length) {
  if (out->capacity - out->length < length) {
    out->capacity = 2 * (out->capacity + length);
    out->bytes = realloc(out->bytes, out->capacity);
    if (!out->bytes) abort();
  }
  memcpy(out->bytes + out->length, bytes, length);
  out->length += length;
}

static void begin(JsonOut *out) {
  if (out->follows) put(out, ",", 1);
  out->follows = true;
}

void json_open(JsonOut *out, char bracket) {
  begin(out);
  put(out, &bracket, 1);
  out->follows = false;
}

void json_close(JsonOut *out, char bracket) {
  put(out, &bracket, 1);
  out->follows = true;
}

static void put_name(JsonOut *out, const char *name, size_t length) {
  json_put_text(out, name, length);
  put(out, ":", 1);
  out->follows = false;
}

void json_name(JsonOut *out, const char *name) { put_name(out, name, strlen(name)); }

void json_put_text(JsonOut *out, const void *bytes, size_t length) {
  static const char MEANT[] = "\"\\\b\f\n\r\t", LETTERS[] = "\"\\bfnrt";
  const uint8_t *from = bytes, *end = from + length;
  begin(out);
  put(out, "\"", 1);
  while (from < end) {
    const uint8_t *plain = from;
    while (plain < end && *plain >= 0x20 && *plain != '"' && *plain != '\\') plain++;
    put(out, from, (size_t)(plain - from));
    if (plain < end) {
      const char *known = *plain ? strchr(MEANT, *plain) : NULL;
      char escape[7] = {'\\', known ? LETTERS[known - MEANT] : 0};
      if (!known) snprintf(escape, sizeof escape, "\\u%04x", (unsigned)*plain);
      put(out, escape, strlen(escape));
      plain++;
    }
    from = plain;
  }
  put(out, "\"", 1);
}

void json_put_whole(JsonOut *out, uint64_t number) {
  char digits[24];
  snprintf(digits, sizeof digits, "%" PRIu64, number);
  json_put_word(out, digits);
}

void json_put_number(JsonOut *out, double number) {
  char digits[32];
  snprintf(digits, sizeof digits, "%.17g", number);
  json_put_word(out, digits);
}

void json_put_word(JsonOut *out, const char *word) { json_put_raw(out, word, strlen(word)); }

void json_put_raw(JsonOut *out, const void *json, size_t length) {
  begin(out);
  put(out, json, length);
}

static int by_name(const void *left, const void *right) {
  const Json *one = *(const Json *const *)left, *other = *(const Json *const *)right;
  size_t shorter = one->name_length < other->name_length ? one->name_length : other->name_length;
  int order = memcmp(one->name, other->name, shorter);
  return order ? order : (one->name_length > other->name_length) - (one->name_length < other->name_length);
}

static void put_many(JsonOut *out, const Json *value) {
  bool is_object = value->kind == JSON_OBJECT;
  const Json **all = json_memory(value->count * sizeof *all);
  size_t count = 0;
  for (const Json *one = value->first; one; one = one->next) all[count++] = one;
  if (is_object) qsort(all, count, sizeof *all, by_name);
  json_open(out, is_object ? '{' : '[');
  for (size_t at = 0; at < count; at++) {
    if (is_object) put_name(out, all[at]->name, all[at]->name_length);
    json_put(out, all[at]);
  }
  json_close(out, is_object ? '}' : ']');
}

void json_put(JsonOut *out, const Json *value) {
  static const char *const WORDS[] = {"null", "false", "true"};
  if (!value || value->kind <= JSON_TRUE) json_put_word(out, WORDS[value ? value->kind : JSON_NULL]);
  else if (value->kind == JSON_NUMBER) json_put_word(out, value->text);
  else if (value->kind == JSON_TEXT) json_put_text(out, value->text, value->length);
  else put_many(out, value);
}
