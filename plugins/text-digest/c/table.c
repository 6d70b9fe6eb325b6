// Lists, and a table that numbers different texts: equal hashes are compared, so that no text can make two words one.

#include "digest.h"

#include <stdlib.h>
#include <string.h>

void *grown(List *list, size_t size) {
  if (list->count == list->capacity) {
    list->capacity = list->capacity ? 2 * list->capacity : 16;
    list->all = realloc(list->all, list->capacity * size);
    if (!list->all) abort();
  }
  return (char *)list->all + size * list->count++;
}

static uint64_t hash_of(Key key) {
  uint64_t hash = 0xcbf29ce484222325;
  for (size_t at = 0; at < key.count; at++) hash = (hash ^ key.points[at]) * 0x100000001b3;
  return hash ^ hash >> 32;
}

static size_t *slot_of(Table *table, Key key) {
  size_t at = hash_of(key) & (table->size - 1);
  for (;; at = (at + 1) & (table->size - 1)) {
    if (!table->slots[at]) return &table->slots[at];
    Key *known = (Key *)table->keys.all + table->slots[at] - 1;
    if (known->count == key.count && !memcmp(known->points, key.points, key.count * sizeof *key.points)) return &table->slots[at];
  }
}

size_t number_of(Table *table, Key key) {
  if (2 * table->keys.count >= table->size) {
    table->size = table->size ? 2 * table->size : 64;
    table->slots = json_memory(table->size * sizeof *table->slots);
    for (size_t at = 0; at < table->keys.count; at++) *slot_of(table, ((Key *)table->keys.all)[at]) = at + 1;
  }
  size_t *slot = slot_of(table, key);
  if (!*slot) {
    *(Key *)grown(&table->keys, sizeof(Key)) = key;
    *slot = table->keys.count;
  }
  return *slot - 1;
}
