/* tokenizer_load.c - from the text of a tokenizer.json to a struct tok.
 *
 * The loading thread owns all until tok_parse or tok_open returns; then the tokenizer is read-only and belongs to the
 * caller, who closes it after the last user. JSON trees live only here. Files are read under a cap, nesting is bounded
 * by jansson (2,048) and by the readers of steps, and every id is checked before it indexes anything.
 */
#include "model/tokenizer_impl.h"

#include <stdlib.h>
#include <string.h>

#include "common/file.h"

#define TOK_JSON_MAX ((size_t)256 << 20)
#define SIDE_JSON_MAX ((size_t)16 << 20)

int tok_str_set(struct tok_str *s, const char *p, size_t n)
{
    char *copy = malloc(n + 1);
    if (!copy)
        return -ENOMEM;
    if (n)
        memcpy(copy, p, n);
    copy[n] = 0;
    free(s->data);
    s->data = copy;
    s->n = n;
    return 0;
}

void tok_str_free(struct tok_str *s)
{
    free(s->data);
    *s = (struct tok_str){0};
}

int tok_json_bool(const json_t *o, const char *where, const char *key, bool dflt, bool *out, struct err *e)
{
    const json_t *v = json_object_get(o, key);
    if (v && !json_is_boolean(v) && !json_is_null(v))
        return err_set(e, -EINVAL, "tokenizer.json: %s.%s must be true or false", where, key);
    *out = v && json_is_boolean(v) ? json_is_true(v) : dflt;
    return 0;
}

int tok_json_str(const json_t *o, const char *where, const char *key, const char **s, size_t *n, struct err *e)
{
    const json_t *v = json_object_get(o, key);
    *s = NULL;
    *n = 0;
    if (!v || json_is_null(v))
        return 0;
    if (!json_is_string(v))
        return err_set(e, -EINVAL, "tokenizer.json: %s.%s must be a string", where, key);
    *s = json_string_value(v);
    *n = json_string_length(v);
    return 0;
}

static int json_text(const char *name, const char *text, size_t len, json_t **out, struct err *e)
{
    json_error_t je = {0};
    *out = json_loadb(text, len, JSON_ALLOW_NUL, &je);
    if (!*out && !je.text[0]) /* jansson says nothing when memory is out */
        return err_set(e, -ENOMEM, "%s: out of memory", name);
    if (!*out)
        return err_set(e, -EINVAL, "%s: line %d: %s", name, je.line, je.text);
    if (json_is_object(*out))
        return 0;
    json_decref(*out);
    *out = NULL;
    return err_set(e, -EINVAL, "%s must hold an object", name);
}

/* A model member that asks for what is not done here, unless it is null, "", 0 or false. */
static int model_refuse(const json_t *model, const char *key, struct err *e)
{
    const json_t *v = json_object_get(model, key);
    if (!v || json_is_null(v) || json_is_false(v) || (json_is_string(v) && !json_string_length(v)) ||
        (json_is_number(v) && json_number_value(v) == 0))
        return 0;
    return err_set(e, -ENOTSUP, "tokenizer.json: model.%s is not supported", key);
}

static int model_load(struct tok *t, const json_t *model, struct err *e)
{
    if (!json_is_object(model))
        return err_set(e, -EINVAL, "tokenizer.json: model is missing");
    const json_t *type = json_object_get(model, "type");
    if (type ? !json_is_string(type) || strcmp(json_string_value(type), "BPE") : !json_object_get(model, "merges"))
        return err_set(e, -ENOTSUP, "tokenizer.json: model.type \"%.40s\" is not supported (only BPE is)",
                       json_is_string(type) ? json_string_value(type) : "");
    const char *unk;
    size_t n;
    int rc;
    if ((rc = model_refuse(model, "dropout", e)) || (rc = model_refuse(model, "continuing_subword_prefix", e)) ||
        (rc = model_refuse(model, "end_of_word_suffix", e)) ||
        (rc = tok_json_bool(model, "model", "fuse_unk", false, &t->fuse_unk, e)) ||
        (rc = tok_json_bool(model, "model", "byte_fallback", false, &t->byte_fallback, e)) ||
        (rc = tok_json_bool(model, "model", "ignore_merges", false, &t->ignore_merges, e)) ||
        (rc = tok_json_str(model, "model", "unk_token", &unk, &n, e)) ||
        (rc = tok_vocab_build(t, json_object_get(model, "vocab"), e)))
        return rc;
    t->unk = unk ? tok_vocab_find(t, unk, n, TOK_F_MODEL) : -1;
    if (unk && t->unk < 0)
        return err_set(e, -EINVAL, "tokenizer.json: model.unk_token \"%.40s\" is not in model.vocab", unk);
    return tok_bpe_build(t, json_object_get(model, "merges"), e);
}

static int post_check(const struct tok *t, struct err *e)
{
    for (size_t i = 0; i < t->n_before + t->n_after; i++) {
        int32_t id = i < t->n_before ? t->post_before[i] : t->post_after[i - t->n_before];
        if ((uint32_t)id >= t->n_ids || !t->flags[id])
            return err_set(e, -EINVAL, "tokenizer.json: post_processor adds id %d, which no token has", id);
    }
    return 0;
}

static int load(struct tok *t, const json_t *root, struct err *e)
{
    int rc;
    if ((rc = tok_added_load(t, json_object_get(root, "added_tokens"), e)) ||
        (rc = model_load(t, json_object_get(root, "model"), e)) ||
        (rc = tok_steps_norm(t, json_object_get(root, "normalizer"), 0, e)) ||
        (rc = tok_steps_pre(t, json_object_get(root, "pre_tokenizer"), 0, e)) ||
        (rc = tok_steps_dec(t, json_object_get(root, "decoder"), 0, e)) ||
        (rc = tok_steps_post(t, json_object_get(root, "post_processor"), 0, e)) || (rc = post_check(t, e)) ||
        (rc = tok_added_index(t, e)))
        return rc;
    return tok_pieces_build(t, e);
}

static int parse(const char *json, size_t len, struct tok **out, struct err *e)
{
    json_t *root;
    int rc = json_text("tokenizer.json", json, len, &root, e);
    if (rc)
        return rc;
    struct tok *t = calloc(1, sizeof *t);
    if (!t) {
        json_decref(root);
        return err_set(e, -ENOMEM, "out of memory");
    }
    t->unk = t->bos = t->eos = -1;
    rc = load(t, root, e);
    json_decref(root);
    if (rc)
        tok_close(t);
    else
        *out = t;
    return rc;
}

int tok_parse(const char *json, size_t len, const char *config_json, size_t config_len, struct tok **out, struct err *e)
{
    json_t *config = NULL;
    struct tok *t = NULL;
    int rc = config_json ? json_text("tokenizer_config.json", config_json, config_len, &config, e) : 0;
    if (!rc)
        rc = parse(json, len, &t, e);
    if (!rc)
        rc = tok_config_apply(t, config, NULL, e);
    if (!rc)
        rc = tok_config_eos(t, NULL, NULL, e);
    json_decref(config);
    if (rc)
        tok_close(t);
    else
        *out = t;
    return rc;
}

/* A JSON file beside tokenizer.json; *out stays NULL when it is not there. */
static int side_json(const char *dir, const char *name, json_t **out, struct err *e)
{
    char *path = path_join(dir, name), *text;
    size_t len;
    if (!path)
        return err_set(e, -ENOMEM, "out of memory");
    int rc = file_read(path, SIDE_JSON_MAX, &text, &len, e);
    if (!rc) {
        rc = json_text(path, text, len, out, e);
        free(text);
    } else if (rc == -ENOENT) {
        rc = 0;
    }
    free(path);
    return rc;
}

static int side_template(struct tok *t, const char *dir, struct err *e)
{
    char *path = path_join(dir, "chat_template.jinja"), *text;
    size_t len;
    if (!path)
        return err_set(e, -ENOMEM, "out of memory");
    int rc = file_read(path, SIDE_JSON_MAX, &text, &len, e);
    if (!rc) {
        rc = tok_str_set(&t->chat_template, text, len) ? err_set(e, -ENOMEM, "out of memory") : 0;
        free(text);
    } else if (rc == -ENOENT) {
        rc = 0;
    }
    free(path);
    return rc;
}

static int open_sides(struct tok *t, const char *dir, struct err *e)
{
    json_t *config = NULL, *map = NULL, *generation = NULL, *model = NULL;
    int rc;
    if (!(rc = side_json(dir, "tokenizer_config.json", &config, e)) &&
        !(rc = side_json(dir, "special_tokens_map.json", &map, e)) &&
        !(rc = side_json(dir, "generation_config.json", &generation, e)) &&
        !(rc = side_json(dir, "config.json", &model, e)) && !(rc = tok_config_apply(t, config, map, e)))
        rc = tok_config_eos(t, generation, model, e);
    if (!rc) /* it comes before a template in tokenizer_config.json, as in transformers */
        rc = side_template(t, dir, e);
    json_decref(config);
    json_decref(map);
    json_decref(generation);
    json_decref(model);
    return rc;
}

int tok_open(const char *dir, struct tok **out, struct err *e)
{
    char *path = path_join(dir, "tokenizer.json"), *text;
    size_t len;
    struct tok *t = NULL;
    if (!path)
        return err_set(e, -ENOMEM, "out of memory");
    int rc = file_read(path, TOK_JSON_MAX, &text, &len, e);
    free(path);
    if (rc)
        return rc;
    rc = parse(text, len, &t, e);
    free(text);
    if (!rc)
        rc = open_sides(t, dir, e);
    else
        err_prefix(e, rc, "%s", dir);
    if (rc)
        tok_close(t);
    else
        *out = t;
    return rc;
}

void tok_close(struct tok *t)
{
    if (!t)
        return;
    free(t->blob);
    free(t->at);
    free(t->piece_blob);
    free(t->piece_at);
    free(t->flags);
    free(t->map);
    free(t->pairs);
    free(t->joints);
    tok_steps_free(t);
    tok_added_free(t);
    free(t->eos_ids);
    tok_str_free(&t->bos_text);
    tok_str_free(&t->pad_text);
    tok_str_free(&t->eos_text);
    tok_str_free(&t->chat_template);
    free(t);
}
