// Results of a function, kept in the plugin's cache: what `keiko_sdk::cache::memoized` is in Rust.
//
// Of those who want a result at the same time, on all hosts, one computes it while the others wait. Where the cache does not
// answer, or is not granted, it is computed every time. Include this behind what is generated for a world that imports
// `keiko:cache/cache`; a run that asks is no longer pure.

#ifndef KEIKO_CACHE_H
#define KEIKO_CACHE_H

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "keiko_json.h"

/// What the bindings call by the name of the world.
typedef __typeof__(((keiko_cache_cache_error_t *)0)->val.invalid_key) KeikoText;
typedef __typeof__(((keiko_cache_cache_filling_t *)0)->val.hit) KeikoBytes;

/// How results are kept.
typedef struct {
  /// How long they may be read, in milliseconds; for 0 the host decides.
  uint64_t lifetime_ms;
  /// What they have in common with others, so that they can be removed together: the last is null. None when this is.
  const char *const *tags;
  /// Whether a result that is `null` is kept, too.
  bool keep_null;
} KeikoKeeping;

/// Writes the result for an input, which is one value of JSON, and says whether there is one. `given` is its caller's.
typedef bool KeikoFunction(const Json *input, void *given, JsonOut *result);

static inline keiko_cache_cache_keeping_t keiko_keeping(const KeikoKeeping *keeping) {
  keiko_cache_cache_keeping_t how = {0};
  how.lifetime_ms.is_some = keeping->lifetime_ms > 0;
  how.lifetime_ms.val = keeping->lifetime_ms;
  while (keeping->tags && keeping->tags[how.tags.len]) how.tags.len++;
  how.tags.ptr = json_memory(how.tags.len * sizeof *how.tags.ptr);
  for (size_t at = 0; at < how.tags.len; at++) {
    how.tags.ptr[at] = (KeikoText){(uint8_t *)keeping->tags[at], strlen(keeping->tags[at])};
  }
  return how;
}

/// The key of what a function answers: FNV-1a over its name and its input.
static inline KeikoText keiko_key(const JsonOut *of) {
  uint64_t hash = 0xcbf29ce484222325;
  for (size_t at = 0; at < of->length; at++) hash = (hash ^ (uint8_t)of->bytes[at]) * 0x100000001b3;
  char *text = json_memory(32);
  int length = snprintf(text, 32, "memoized:%016" PRIx64, hash);
  return (KeikoText){(uint8_t *)text, (size_t)length};
}

/// Puts another line behind the first one.
static inline KeikoBytes keiko_line(JsonOut *kept, const JsonOut *result) {
  kept->follows = false;
  json_put_raw(kept, "\n", 1);
  kept->follows = false;
  json_put_raw(kept, result->bytes, result->length);
  return (KeikoBytes){(uint8_t *)kept->bytes, kept->length};
}

/// Writes what `compute` answers for this input, from the cache when it has it; whether there is an answer.
///
/// `name` tells functions apart. When there is none, nothing is kept, and `null` only when that is asked for.
static inline bool keiko_memoized(const char *name, const Json *input, const KeikoKeeping *keeping, KeikoFunction *compute,
                                  void *given, JsonOut *out) {
  JsonOut kept = {0}, result = {0};
  json_open(&kept, '[');
  json_put_text(&kept, name, strlen(name));
  json_put(&kept, input);
  json_close(&kept, ']');
  KeikoText key = keiko_key(&kept);
  keiko_cache_cache_filling_t filling = {0};
  keiko_cache_cache_error_t error;
  bool is_asked = keiko_cache_cache_get_or_fill(&key, &filling, &error);
  bool is_hit = is_asked && filling.tag == KEIKO_CACHE_CACHE_FILLING_HIT;
  // Two inputs may have one key: the first line says which one it is, and has no end of a line in it.
  KeikoBytes hit = is_hit ? filling.val.hit : (KeikoBytes){0};
  if (hit.len > kept.length && !memcmp(hit.ptr, kept.bytes, kept.length) && hit.ptr[kept.length] == '\n') {
    json_put_raw(out, hit.ptr + kept.length + 1, hit.len - kept.length - 1);
    return true;
  }
  bool is_done = compute(input, given, &result);
  bool is_null = result.length == 4 && !memcmp(result.bytes, "null", 4);
  if (is_asked && is_done && (keeping->keep_null || !is_null)) {
    keiko_cache_cache_keeping_t how = keiko_keeping(keeping);
    KeikoBytes value = keiko_line(&kept, &result);
    // What cannot be kept is no less right.
    if (is_hit) keiko_cache_cache_set(&key, &value, &how, &error);
    else keiko_cache_cache_method_fill_complete(keiko_cache_cache_borrow_fill(filling.val.fill), &value, &how, &error);
  }
  // What was not completed goes to the next who waits.
  if (is_asked && !is_hit) keiko_cache_cache_fill_drop_own(filling.val.fill);
  if (is_done) json_put_raw(out, result.bytes, result.length);
  return is_done;
}

#endif
