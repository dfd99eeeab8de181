/* utf8.h - strict UTF-8 (RFC 3629: no surrogates, no overlong forms, at most U+10FFFF). */
#ifndef CPET_COMMON_UTF8_H
#define CPET_COMMON_UTF8_H

#include <stddef.h>
#include <stdint.h>

/* Bytes of the valid character at s (1 to 4), its code point in *cp; 0 when invalid or cut; n > 0. */
size_t utf8_next(const char *s, size_t n, uint32_t *cp);
/* Offset of the first byte that is not valid UTF-8, or n when all is. */
size_t utf8_valid(const char *s, size_t n);
/* How many of the last bytes of s are the beginning of a character whose rest is missing (0 to 3). */
size_t utf8_tail(const char *s, size_t n);
/* How many bytes of s to show when at most `most` fit: n, or fewer, not ending inside a character. As an int for
 * "%.*s". */
int utf8_cut(const char *s, size_t n, size_t most);
/* Puts '?' for every control character (C0, DEL, C1) of a string that a terminal or a log of lines will show. In place.
 */
void utf8_hide_controls(char *s);
/* Writes cp (valid) to out, returns the bytes (1 to 4). */
size_t utf8_put(uint32_t cp, char out[4]);

#endif
