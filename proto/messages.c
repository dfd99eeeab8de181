/* messages.c - the messages of a chat request: checked, flattened to text, and written again as the compact JSON that
 * a chat template reads.
 *
 * Any thread; results are in the request's arena, the buffer used on the way is freed here. A message has a role, a
 * content and perhaps a name; content parts other than text are refused by their type, and fields of tool use by name.
 */
#include "proto/parse.h"

#include <stdio.h>
#include <string.h>

#include "common/utf8.h"

/* Reads messages[i].content when it is a list: texts joined by a newline. */
static int read_parts(struct parse *p, const char *where, const json_t *v, struct req_str *out)
{
    struct buf text = {0};
    size_t i;
    json_t *part;
    char at[96];
    int rc = 0;
    if (!json_array_size(v))
        return err_param(p->e, -EINVAL, where, "%s must not be an empty list", where);
    json_array_foreach(v, i, part)
    {
        const json_t *type = json_object_get(part, "type"), *s = json_object_get(part, "text");
        snprintf(at, sizeof at, "%s[%zu]", where, i);
        if (!json_is_string(type))
            rc = err_param(p->e, -EINVAL, at, "%s must be an object with a type", at);
        else if (strcmp(json_string_value(type), "text"))
            rc = err_param(p->e, -EINVAL, at, "%s: content of type '%s' is not supported", at, json_string_value(type));
        else if (!json_is_string(s) || json_object_size(part) != 2)
            rc = err_param(p->e, -EINVAL, at, "%s must have a type and a text (a string), and nothing else", at);
        if (rc)
            break;
        if (i)
            buf_append(&text, "\n", 1);
        buf_append(&text, json_string_value(s), json_string_length(s));
    }
    if (!rc && text.failed)
        rc = err_set(p->e, -ENOMEM, "out of memory");
    if (!rc) {
        *out = (struct req_str){arena_strndup(p->a, text.data ? text.data : "", text.len), text.len};
        rc = out->ptr ? 0 : too_large(p);
    }
    buf_free(&text);
    return rc;
}

static int read_role(struct parse *p, const char *at, const json_t *v, struct req_message *m)
{
    static const char *const served[] = {"system", "user", "assistant"};
    const char *role = json_is_string(v) ? json_string_value(v) : "";
    if (!strcmp(role, "developer"))
        role = "system";
    for (size_t i = 0; i < sizeof served / sizeof served[0]; i++)
        if (!strcmp(role, served[i]))
            m->role = served[i];
    if (m->role)
        return 0;
    if (!strcmp(role, "tool") || !strcmp(role, "function"))
        return err_param(p->e, -EINVAL, at, "%s: the role '%s' is not supported", at, role);
    return err_param(p->e, -EINVAL, at, "%s must be system, developer, user or assistant", at);
}

static bool message_field_known(const char *key)
{
    static const char *const known[] = {"tool_calls",  "tool_call_id",      "function_call", "refusal", "audio",
                                        "annotations", "reasoning_content", "reasoning",     "prefix"};
    for (size_t i = 0; i < sizeof known / sizeof known[0]; i++)
        if (!strcmp(known[i], key))
            return true;
    return false;
}

static int read_member(struct parse *p, size_t i, const char *key, const json_t *v, struct req_message *m)
{
    char at[64];
    snprintf(at, sizeof at, "messages[%zu].%.*s", i, utf8_cut(key, strlen(key), 32), key);
    if (!strcmp(key, "role"))
        return read_role(p, at, v, m);
    if (!strcmp(key, "content"))
        return json_is_array(v) ? read_parts(p, at, v, &m->content) : read_str(p, at, v, &m->content);
    if (!strcmp(key, "name"))
        return read_str(p, at, v, &m->name);
    if (message_field_known(key))
        return err_param(p->e, -EINVAL, at, "%s is not supported", at);
    return err_param(p->e, -EINVAL, at, "messages[%zu] has an unknown field '%s'", i, key);
}

static int read_message(struct parse *p, size_t i, json_t *v, struct req_message *m)
{
    const char *key;
    json_t *one;
    char at[64];
    snprintf(at, sizeof at, "messages[%zu]", i);
    if (!json_is_object(v))
        return err_param(p->e, -EINVAL, at, "%s must be an object", at);
    json_object_foreach(v, key, one)
    {
        int rc = json_is_null(one) ? 0 : read_member(p, i, key, one, m);
        if (rc)
            return rc;
    }
    if (!m->role)
        return err_param(p->e, -EINVAL, at, "%s has no role", at);
    if (!m->content.ptr && strcmp(m->role, "assistant"))
        return err_param(p->e, -EINVAL, at, "%s has no content: only an assistant's may be null", at);
    return 0;
}

static void put_message(struct buf *b, const struct req_message *m)
{
    buf_printf(b, "{\"role\":\"%s\",\"content\":", m->role);
    if (m->content.ptr)
        json_put_string(b, m->content.ptr, m->content.len);
    else
        buf_puts(b, "null");
    if (m->name.ptr) {
        buf_puts(b, ",\"name\":");
        json_put_string(b, m->name.ptr, m->name.len);
    }
    buf_puts(b, "}");
}

static int put_messages(struct parse *p, const struct req_message *m, size_t n)
{
    struct buf b = {0};
    int rc = 0;
    for (size_t i = 0; i < n; i++) {
        buf_puts(&b, i ? "," : "[");
        put_message(&b, &m[i]);
    }
    buf_puts(&b, "]");
    if (b.failed) {
        rc = err_set(p->e, -ENOMEM, "out of memory");
    } else {
        p->r->messages_json = (struct req_str){arena_strndup(p->a, b.data, b.len), b.len};
        rc = p->r->messages_json.ptr ? 0 : too_large(p);
    }
    buf_free(&b);
    return rc;
}

int read_messages(struct parse *p, const char *param, const json_t *v)
{
    size_t n = json_array_size(v);
    if (!json_is_array(v) || !n || n > p->lim->max_messages)
        return err_param(p->e, -EINVAL, param, "%s must be a list of 1 to %zu messages", param, p->lim->max_messages);
    struct req_message *m = arena_calloc(p->a, n, sizeof *m);
    if (!m)
        return too_large(p);
    for (size_t i = 0; i < n; i++) {
        int rc = read_message(p, i, json_array_get(v, i), &m[i]);
        if (rc)
            return rc;
    }
    p->r->messages = m;
    p->r->n_messages = n;
    return put_messages(p, m, n);
}
