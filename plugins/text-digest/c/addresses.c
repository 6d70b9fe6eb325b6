// Section 3: links and e-mail addresses.

#include "digest.h"

#define LINK_MAX 2048

static const char *const LINK_STARTS[] = {"http://", "https://", "www."};

static bool is_in_link(size_t at) {
  if (points[at] < 0x80) return is_alphanumeric(points[at]) || is_ascii_among(points[at], "-._~:/?#[]@!$&'()*+,;=%");
  return (is_spaced(classes[at]) || classes[at] == MARK) && classes[at] != HANGUL;
}

static size_t trimmed(size_t start, size_t end) {
  long round = 0, square = 0;
  for (size_t at = start; at < end; at++) {
    round += (points[at] == ')') - (points[at] == '(');
    square += (points[at] == ']') - (points[at] == '[');
  }
  for (; end > start; end--) {
    uint32_t last = points[end - 1];
    if (last == ')' && round > 0) round--;
    else if (last == ']' && square > 0) square--;
    else if (!is_ascii_among(last, ".,;:!?'*_~")) break;
  }
  return end;
}

/// Where the link that starts here ends; 0 when none does.
static size_t link_end(size_t start) {
  size_t prefix = 0, letters = 0;
  for (; prefix < 3; prefix++) {
    const char *letter = LINK_STARTS[prefix];
    letters = 0;
    while (letter[letters] && start + letters < length && points[start + letters] < 0x80 && small(points[start + letters]) == (uint32_t)letter[letters]) letters++;
    if (!letter[letters]) break;
  }
  if (prefix == 3 || (start && is_spaced(classes[start - 1]))) return 0;
  size_t end = start;
  while (end < length && is_in_link(end)) end++;
  end = trimmed(start, end);
  size_t rest = start + letters;
  if (rest >= end) return 0;
  if (prefix < 2) return is_word(classes[rest]) || points[rest] == '[' ? end : 0;
  for (size_t at = rest; is_word(classes[rest]) && at + 1 < end && !is_ascii_among(points[at], "/?#:"); at++) {
    if (points[at] == '.' && is_word(classes[at + 1])) return end;
  }
  return 0;
}

static bool is_label(size_t start, size_t end) {
  return start < end && end - start <= 63 && points[start] != '-' && points[end - 1] != '-';
}

static bool is_domain(size_t start, size_t end) {
  size_t label = start, dots = 0;
  for (size_t at = start; at < end; at++) {
    if (points[at] != '.') continue;
    if (!is_label(label, at)) return false;
    label = at + 1;
    dots++;
  }
  for (size_t at = label; at < end; at++) if (!is_alphabetic(points[at])) return false;
  return dots && is_label(label, end) && end - label >= 2;
}

static bool email_span(size_t floor, size_t at, Span *span) {
  size_t start = at, end = at + 1;
  while (start > floor && at - start <= 64 && (is_alphanumeric(points[start - 1]) || is_ascii_among(points[start - 1], "._%+-"))) start--;
  if (at - start > 64 || (start > floor && is_spaced(classes[start - 1]))) return false;
  while (start < at && is_ascii_among(points[start], ".-")) start++;
  if (start == at || points[at - 1] == '.') return false;
  for (size_t dot = start; dot + 1 < at; dot++) if (points[dot] == '.' && points[dot + 1] == '.') return false;
  while (end < length && end - at <= 254 && (is_alphanumeric(points[end]) || is_ascii_among(points[end], "-."))) end++;
  if (end - at > 254 || (end < length && (points[end] == '@' || is_spaced(classes[end])))) return false;
  while (end > at + 1 && is_ascii_among(points[end - 1], ".-")) end--;
  *span = (Span){start, end};
  return is_domain(at + 1, end);
}

Addresses addresses_of(void) {
  Addresses found = {0};
  for (size_t at = 0; at < length;) {
    Span span = {at, 0};
    const Span *last = found.spans.count ? (Span *)found.spans.all + found.spans.count - 1 : NULL;
    if (is_ascii_among(points[at], "hHwW") && (span.end = link_end(at))) {
      if (span.end - at <= LINK_MAX) number_of(&found.links, (Key){points + at, span.end - at});
    } else if (points[at] == '@' && email_span(last ? last->end : 0, at, &span)) {
      uint32_t *email = json_memory((span.end - span.start) * sizeof *email);
      for (size_t c = span.start; c < span.end; c++) email[c - span.start] = c > at ? small(points[c]) : points[c];
      number_of(&found.emails, (Key){email, span.end - span.start});
    } else {
      at++;
      continue;
    }
    *(Span *)grown(&found.spans, sizeof span) = span;
    at = span.end;
  }
  return found;
}
