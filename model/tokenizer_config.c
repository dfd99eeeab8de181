/* tokenizer_config.c - what the files beside tokenizer.json say: bos, eos, every id that ends a generation, and the
 * chat template. Runs in the loading thread; the texts belong to the tokenizer. A bos or eos whose text no token has is
 * an error, since a template would print it as plain text.
 */
#include "model/tokenizer_impl.h"

#include <stdlib.h>
#include <string.h>

#define EOS_MAX 256

/* "bos_token": a string, or an added token written out; NULL for none. */
static const json_t *token_member(const json_t *o, const char *key)
{
    const json_t *v = json_object_get(o, key);
    if (json_is_object(v))
        v = json_object_get(v, "content");
    return json_is_string(v) ? v : NULL;
}

static int token_apply(const struct tok *t, const json_t *config, const json_t *map, const char *key,
                       struct tok_str *text, int32_t *id, struct err *e)
{
    const json_t *v = token_member(config, key);
    if (!v)
        v = token_member(map, key);
    if (!v || !json_string_length(v))
        return 0;
    *id = tok_id(t, json_string_value(v), json_string_length(v));
    if (*id < 0)
        return err_set(e, -EINVAL, "tokenizer_config.json: %s \"%.60s\" is not a token", key, json_string_value(v));
    return tok_str_set(text, json_string_value(v), json_string_length(v)) ? err_set(e, -ENOMEM, "out of memory") : 0;
}

/* Nothing here pads, so a pad token that the vocabulary does not have is none. */
static int pad_apply(struct tok *t, const json_t *config, const json_t *map, struct err *e)
{
    const json_t *v = token_member(config, "pad_token");
    if (!v)
        v = token_member(map, "pad_token");
    if (!v || tok_id(t, json_string_value(v), json_string_length(v)) < 0)
        return 0;
    return tok_str_set(&t->pad_text, json_string_value(v), json_string_length(v)) ? err_set(e, -ENOMEM, "out of memory")
                                                                                  : 0;
}

static int template_apply(struct tok *t, const json_t *config, struct err *e)
{
    const json_t *v = json_object_get(config, "chat_template");
    if (json_is_array(v)) {
        const json_t *list = v;
        v = NULL;
        for (size_t i = 0; i < json_array_size(list); i++) {
            const json_t *name = json_object_get(json_array_get(list, i), "name");
            if (json_is_string(name) && !strcmp(json_string_value(name), "default"))
                v = json_object_get(json_array_get(list, i), "template");
        }
    }
    if (!v || json_is_null(v))
        return 0;
    if (!json_is_string(v))
        return err_set(e, -EINVAL, "tokenizer_config.json: chat_template must be a string");
    return tok_str_set(&t->chat_template, json_string_value(v), json_string_length(v))
               ? err_set(e, -ENOMEM, "out of memory")
               : 0;
}

int tok_config_apply(struct tok *t, const json_t *config, const json_t *special_map, struct err *e)
{
    int rc;
    if ((rc = token_apply(t, config, special_map, "bos_token", &t->bos_text, &t->bos, e)) ||
        (rc = token_apply(t, config, special_map, "eos_token", &t->eos_text, &t->eos, e)) ||
        (rc = pad_apply(t, config, special_map, e)))
        return rc;
    return template_apply(t, config, e);
}

static int eos_add(struct tok *t, const char *file, const json_t *v, struct err *e)
{
    json_int_t id = json_is_integer(v) ? json_integer_value(v) : -1;
    if (id < 0 || id >= TOK_ID_MAX)
        return err_set(e, -EINVAL, "%s: eos_token_id must be an id or a list of ids", file);
    for (size_t i = 0; i < t->n_eos_ids; i++)
        if (t->eos_ids[i] == (int32_t)id)
            return 0;
    if (t->n_eos_ids >= EOS_MAX)
        return err_set(e, -EINVAL, "%s: more than %d ids in eos_token_id", file, EOS_MAX);
    t->eos_ids[t->n_eos_ids++] = (int32_t)id;
    return 0;
}

static int eos_member(struct tok *t, const char *file, const json_t *v, struct err *e)
{
    if (!json_is_array(v))
        return eos_add(t, file, v, e);
    int rc = 0;
    for (size_t i = 0; i < json_array_size(v) && !rc; i++)
        rc = eos_add(t, file, json_array_get(v, i), e);
    return rc;
}

/* bos or eos from config.json, where the tokenizer's own files name none. */
static int id_fallback(struct tok *t, const json_t *config, const char *key, int32_t *id, struct tok_str *text)
{
    const json_t *v = json_object_get(config, key);
    if (*id >= 0 || !json_is_integer(v) || json_integer_value(v) < 0 || json_integer_value(v) >= t->n_ids)
        return 0;
    int32_t found = (int32_t)json_integer_value(v);
    if (!t->flags[found])
        return 0;
    size_t n;
    const char *s = tok_text(t, found, &n);
    *id = found;
    return tok_str_set(text, s, n);
}

int tok_config_eos(struct tok *t, const json_t *generation, const json_t *model_config, struct err *e)
{
    t->eos_ids = calloc(EOS_MAX, sizeof *t->eos_ids);
    if (!t->eos_ids || id_fallback(t, model_config, "bos_token_id", &t->bos, &t->bos_text) ||
        id_fallback(t, model_config, "eos_token_id", &t->eos, &t->eos_text))
        return err_set(e, -ENOMEM, "out of memory");
    if (t->eos >= 0)
        t->eos_ids[t->n_eos_ids++] = t->eos;
    const json_t *v = json_object_get(generation, "eos_token_id");
    if (v && !json_is_null(v))
        return eos_member(t, "generation_config.json", v, e);
    v = json_object_get(model_config, "eos_token_id");
    return v && !json_is_null(v) ? eos_member(t, "config.json", v, e) : 0;
}

int32_t tok_bos(const struct tok *t)
{
    return t->bos;
}

int32_t tok_eos(const struct tok *t)
{
    return t->eos;
}

const int32_t *tok_eos_ids(const struct tok *t, size_t *n)
{
    *n = t->n_eos_ids;
    return t->eos_ids;
}

const char *tok_chat_template(const struct tok *t, size_t *n)
{
    *n = t->chat_template.n;
    return t->chat_template.data;
}

const char *tok_bos_text(const struct tok *t)
{
    return t->bos_text.data ? t->bos_text.data : "";
}

const char *tok_eos_text(const struct tok *t)
{
    return t->eos_text.data ? t->eos_text.data : "";
}

const char *tok_pad_text(const struct tok *t)
{
    return t->pad_text.data ? t->pad_text.data : "";
}
