// The plugin `text-digest` in C: what a host hands over, read and answered. ../README.md defines every rule; its sections are
// named where their modules begin.

#include "digest.h"

#include <stdio.h>
#include <string.h>
#include <strings.h>

#include "task_plugin.h"

#define TEXT_BYTES_MAX (256 * 1024)
#define SENTENCES_DEFAULT 3

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
  take_text(text, count);
  JsonOut out = digest((size_t)wanted);
  log_counts();
  task_plugin_string_dup(&ret->content_type, "application/json");
  ret->bytes = (task_plugin_list_u8_t){(uint8_t *)out.bytes, out.length};
  return true;
}
