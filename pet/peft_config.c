/* peft_config.c - what adapter_config.json says: which modules, which ranks, which scales.
 *
 * One thread at a time; the configuration owns its JSON tree and compiled patterns. The rules are PEFT's own: a list
 * of targets matches whole names or their ends, a text of targets is a regular expression for the whole name,
 * rank_pattern and alpha_pattern take the first key that `(.*\.)?(KEY)$` matches, layers are found by the first number
 * in the name. Keys that are known to change nothing when a module is applied are passed over. A key that makes the
 * module something else than plain LoRA is refused by name when it is set, and so is a key that is not known: to guess
 * that it does not matter would be to serve wrong answers.
 *
 * The ways to start a LoRA that change the base weights as well (PiSSA, OLoRA, CorDA, LoRA-GA, LoftQ) are refused: the
 * saved tensors belong to weights that the backbone does not have. PEFT converts them to plain LoRA when it is given
 * path_initial_model_for_weight_conversion, and then writes init_lora_weights true.
 */
#include "pet/peft_config.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "formats/json.h"
#include "pet/pattern.h"

enum { MAX_PATTERNS = 4096, MAX_LIST = 16384, MAX_COMPARES = 100000000, MAX_CONFIG_VALUES = 200000 };

#define ANY '\x01' /* in a keyed text */

struct keyed {  /* one entry of rank_pattern or alpha_pattern */
    char *text; /* where the key is plain text, else NULL */
    bool anchored;
    struct pattern *pattern;
    double value;
};

struct keyed_list {
    struct keyed *at;
    size_t n;
};

struct names { /* target_modules or exclude_modules */
    json_t *list;
    struct pattern *pattern;
};

struct peft_config {
    json_t *root;
    struct pattern_budget budget;
    size_t compares; /* of names with list entries, so far */
    const char *base;
    uint32_t r;
    double alpha;
    bool rslora, any_target;
    struct keyed_list ranks, alphas;
    struct names targets, excluded;
    json_t *layers; /* an integer, or an array of integers; NULL: all */
    struct pattern **layer_patterns;
    size_t n_layer_patterns;
};

/* Keys that change what a module computes. */
static const struct {
    const char *key, *what;
} refused[] = {
    {"use_dora", "DoRA"},
    {"lora_bias", "LoRA with a bias of its own"},
    {"modules_to_save", "whole modules saved beside the LoRA"},
    {"trainable_token_indices", "trained tokens"},
    {"layer_replication", "replicated layers"},
    {"alora_invocation_tokens", "aLoRA (activated at a token sequence)"},
    {"use_qalora", "QALoRA"},
    {"target_parameters", "LoRA on bare parameters"},
    {"megatron_config", "Megatron layers"},
    {"arrow_config", "Arrow routing"},
    {"use_bdlora", "block-diagonal LoRA"},
    {"kasa_config", "KaSA"},
    {"monteclora_config", "MonteCLoRA"},
};

/* Keys that are read here, or that matter in training only. */
static const char *const known[] = {
    "peft_type", "r", "lora_alpha", "use_rslora", "rank_pattern", "alpha_pattern", "target_modules", "exclude_modules",
    "layers_to_transform", "layers_pattern", "bias", "init_lora_weights", "base_model_name_or_path", "fan_in_fan_out",
    /* no effect on what a saved module computes */
    "auto_mapping", "corda_config", "ensure_weight_tying", "eva_config", "inference_mode", "lora_dropout",
    "lora_ga_config", "loftq_config", "megatron_core", "peft_version", "qalora_group_size", "revision",
    "runtime_config", "task_type", "unsloth_fixed", "velora_config"};

static bool is_set(const json_t *v)
{
    if (!v || json_is_null(v) || json_is_false(v))
        return false;
    if (json_is_string(v))
        return json_string_length(v) > 0;
    return !(json_is_array(v) && !json_array_size(v)) && !(json_is_object(v) && !json_object_size(v));
}

static int refuse_keys(json_t *root, struct err *e)
{
    const char *key;
    json_t *v;
    json_object_foreach(root, key, v)
    {
        if (!is_set(v))
            continue;
        bool ok = false;
        for (size_t i = 0; i < sizeof refused / sizeof *refused; i++) {
            if (!strcmp(key, refused[i].key))
                return err_param(e, -EINVAL, key, "%s (\"%s\") is not supported", refused[i].what, key);
        }
        for (size_t i = 0; !ok && i < sizeof known / sizeof *known; i++)
            ok = !strcmp(key, known[i]);
        if (!ok)
            return err_param(e, -EINVAL, "", "key \"%.64s\" is not known, and it may change what the module computes",
                             key);
    }
    return 0;
}

static int check_kind(json_t *root, struct err *e)
{
    const char *type = NULL;
    int r = json_get_str(root, "peft_type", true, &type, e);
    if (!r && strcmp(type, "LORA"))
        r = err_param(e, -EINVAL, "peft_type", "modules of kind \"%.32s\" are not supported, only LORA is", type);
    const char *bias = NULL;
    if (!r)
        r = json_get_str(root, "bias", false, &bias, e);
    if (!r && bias && strcmp(bias, "none"))
        r = err_param(e, -EINVAL, "bias", "trained biases (\"bias\" is \"%.32s\") are not supported", bias);
    return r;
}

static int check_init(json_t *root, struct err *e)
{
    static const char *const plain[] = {"gaussian", "eva", "orthogonal", "mica"};
    json_t *v = json_object_get(root, "init_lora_weights");
    if (!v || json_is_null(v) || json_is_boolean(v))
        return 0;
    const char *s = json_string_value(v);
    for (size_t i = 0; s && i < sizeof plain / sizeof *plain; i++) {
        if (!strcasecmp(s, plain[i]))
            return 0;
    }
    return err_param(
        e, -EINVAL, "init_lora_weights",
        "\"init_lora_weights\" is \"%.32s\": the module belongs to base weights that were changed with it; "
        "save it with path_initial_model_for_weight_conversion, which makes it plain LoRA",
        s ? s : "(not a text)");
}

/* Counts a walk over n entries: lists times modules can be long on purpose. */
static int spend(struct peft_config *c, size_t n, struct err *e)
{
    c->compares += n;
    if (c->compares > MAX_COMPARES)
        return err_set(e, -E2BIG, "its lists are too long for so many modules");
    return 0;
}

/* ---- patterns ---- */

/* Keys of plain text need no regular expression: letters, digits, "_", "-", escaped punctuation, and dots; perhaps "^"
 * in front. NULL when key is not one, or no memory is left; else a malloc'ed text where ANY stands for any character.
 */
static char *plain_text(const char *key, bool *anchored)
{
    char *out = malloc(strlen(key) + 1), *o = out;
    *anchored = *key == '^';
    for (const char *s = key + *anchored; out && *s; s++) {
        if (*s == '.') {
            *o++ = ANY;
        } else if (*s == '\\' && s[1] && strchr(".-_", s[1])) {
            *o++ = *++s;
        } else if (strchr("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-", *s)) {
            *o++ = *s;
        } else {
            free(out);
            return NULL;
        }
    }
    if (out)
        *o = 0;
    return out;
}

/* What `(.*\.)?(key)$` does for such a key. */
static bool plain_match(const struct keyed *key, const char *module)
{
    size_t k = strlen(key->text), m = strlen(module);
    if (k > m || (key->anchored && k != m))
        return false;
    const char *end = module + (m - k);
    if (end != module && end[-1] != '.')
        return false;
    for (size_t i = 0; i < k; i++) {
        if (key->text[i] != ANY && key->text[i] != end[i])
            return false;
    }
    return true;
}

static int read_keyed(struct peft_config *c, const char *name, double min, double max, struct keyed_list *out,
                      struct err *e)
{
    json_t *obj = NULL, *v;
    const char *key;
    int r = json_get_object(c->root, name, false, &obj, e);
    if (r || !obj || !json_object_size(obj))
        return r;
    if (json_object_size(obj) > MAX_PATTERNS)
        return err_param(e, -E2BIG, name, "\"%s\" has more than %d entries", name, MAX_PATTERNS);
    out->at = calloc(json_object_size(obj), sizeof *out->at);
    if (!out->at)
        return err_set(e, -ENOMEM, "out of memory");
    json_object_foreach(obj, key, v)
    {
        struct keyed *k = &out->at[out->n++];
        k->value = json_number_value(v);
        if (!json_is_number(v) || !(k->value >= min && k->value <= max) || (min > 0 && !json_is_integer(v)))
            return err_param(e, -EINVAL, name, "\"%s\": the value of \"%.64s\" must be %s", name, key,
                             min > 0 ? "an integer of 1 or more" : "a finite number");
        k->text = plain_text(key, &k->anchored);
        r = k->text ? 0 : pattern_compile("(.*\\.)?(", key, ")$", &c->budget, &k->pattern, e);
        if (r)
            return err_prefix(e, r, "\"%s\"", name);
    }
    return 0;
}

/* The first entry that matches, or *out as it was. */
static int find_keyed(struct peft_config *c, const struct keyed_list *l, const char *module, double *out, struct err *e)
{
    int r = spend(c, l->n, e);
    for (size_t i = 0; !r && i < l->n; i++) {
        bool found = false;
        if (l->at[i].pattern)
            r = pattern_match(l->at[i].pattern, module, false, &found, NULL, NULL, e);
        else
            found = plain_match(&l->at[i], module);
        if (!r && found) {
            *out = l->at[i].value;
            return 0;
        }
    }
    return r;
}

static void free_keyed(struct keyed_list *l)
{
    for (size_t i = 0; i < l->n; i++) {
        pattern_free(l->at[i].pattern);
        free(l->at[i].text);
    }
    free(l->at);
}

/* ---- which modules ---- */

static int check_strings(const json_t *list, const char *name, struct err *e)
{
    size_t i;
    const json_t *v;
    if (json_array_size(list) > MAX_LIST)
        return err_param(e, -E2BIG, name, "\"%s\" has more than %d entries", name, MAX_LIST);
    json_array_foreach(list, i, v)
    {
        if (!json_is_string(v))
            return err_param(e, -EINVAL, name, "\"%s\"[%zu] must be a string", name, i);
    }
    return 0;
}

/* A list of names, or a regular expression for whole names. */
static int read_names(struct peft_config *c, const char *name, struct names *out, struct err *e)
{
    json_t *v = json_object_get(c->root, name);
    if (!is_set(v))
        return 0;
    if (json_is_array(v)) {
        out->list = v;
        return check_strings(v, name, e);
    }
    if (!json_is_string(v))
        return err_param(e, -EINVAL, name, "\"%s\" must be a list of strings or a string", name);
    int r = pattern_compile("(?:", json_string_value(v), ")", &c->budget, &out->pattern, e);
    return r ? err_prefix(e, r, "\"%s\"", name) : 0;
}

/* exact: the whole name is in the list. */
static bool in_list(const json_t *list, const char *module, bool *exact)
{
    size_t i, m = strlen(module);
    const json_t *v;
    bool end = false;
    json_array_foreach(list, i, v)
    {
        const char *s = json_string_value(v);
        size_t n = json_string_length(v);
        if (!strcmp(s, module)) {
            *exact = true;
            return true;
        }
        end |= n < m && module[m - n - 1] == '.' && !strcmp(module + (m - n), s);
    }
    *exact = false;
    return end;
}

static int read_layers(struct peft_config *c, struct err *e)
{
    json_t *v = json_object_get(c->root, "layers_to_transform"), *item;
    size_t i;
    if (json_is_integer(v) || (json_is_array(v) && json_array_size(v)))
        c->layers = v;
    else if (is_set(v))
        return err_param(e, -EINVAL, "layers_to_transform",
                         "\"layers_to_transform\" must be an integer or a list of integers");
    if (json_array_size(v) > MAX_LIST)
        return err_param(e, -E2BIG, "layers_to_transform", "\"layers_to_transform\" has more than %d entries",
                         MAX_LIST);
    json_array_foreach(v, i, item)
    {
        if (!json_is_integer(item))
            return err_param(e, -EINVAL, "layers_to_transform", "\"layers_to_transform\"[%zu] must be an integer", i);
    }
    if (c->layers && c->targets.pattern)
        return err_param(e, -EINVAL, "layers_to_transform",
                         "\"layers_to_transform\" cannot be used where \"target_modules\" is a string");
    return 0;
}

static int read_layer_patterns(struct peft_config *c, struct err *e)
{
    json_t *v = json_object_get(c->root, "layers_pattern");
    if (!is_set(v) || !c->layers)
        return 0;
    if (!json_is_array(v) && !json_is_string(v))
        return err_param(e, -EINVAL, "layers_pattern", "\"layers_pattern\" must be a string or a list of strings");
    int r = check_strings(v, "layers_pattern", e);
    size_t n = json_is_array(v) ? json_array_size(v) : 1;
    if (!r && n > MAX_PATTERNS)
        r = err_param(e, -E2BIG, "layers_pattern", "\"layers_pattern\" has more than %d entries", MAX_PATTERNS);
    if (!r && !(c->layer_patterns = calloc(n, sizeof *c->layer_patterns)))
        r = err_set(e, -ENOMEM, "out of memory");
    for (size_t i = 0; !r && i < n; i++) {
        const char *s = json_string_value(json_is_array(v) ? json_array_get(v, i) : v);
        r = pattern_compile("(?:^|.*?\\.)", s, "\\.(?P<idx>\\d+)\\.", &c->budget, &c->layer_patterns[i], e);
        if (r)
            err_prefix(e, r, "\"layers_pattern\"");
        else
            c->n_layer_patterns++;
    }
    return r;
}

/* PEFT's `.*?\.[^.]*\.(?P<idx>\d+)\.`: the first part of the name that is a number, has two parts before it and one
 * after. */
static bool first_number(const char *module, const char **idx, size_t *len)
{
    size_t part = 0;
    for (const char *s = module;; part++) {
        size_t n = strcspn(s, "."), digits = strspn(s, "0123456789");
        if (!s[n])
            return false;
        if (part >= 2 && n && digits == n) {
            *idx = s;
            *len = n;
            return true;
        }
        s += n + 1;
    }
}

static int layer_is_in(const struct peft_config *c, const char *module, bool *in, struct err *e)
{
    const char *idx = NULL;
    size_t len = 0, i;
    bool found = false;
    for (size_t p = 0; p < c->n_layer_patterns && !found; p++) {
        int r = pattern_match(c->layer_patterns[p], module, false, &found, &idx, &len, e);
        if (r)
            return r;
    }
    if (!c->n_layer_patterns)
        first_number(module, &idx, &len);
    *in = false;
    if (!idx || len > 9)
        return 0;
    json_int_t layer = strtoll(idx, NULL, 10);
    const json_t *v;
    if (json_is_integer(c->layers))
        *in = json_integer_value(c->layers) == layer;
    json_array_foreach(c->layers, i, v) *in |= json_integer_value(v) == layer;
    return 0;
}

static int is_target(struct peft_config *c, const char *module, bool *out, struct err *e)
{
    bool hit = false, exact = false;
    int r =
        spend(c, json_array_size(c->excluded.list) + json_array_size(c->targets.list) + json_array_size(c->layers), e);
    if (r)
        return r;
    if (c->excluded.pattern)
        r = pattern_match(c->excluded.pattern, module, true, &hit, NULL, NULL, e);
    else if (c->excluded.list)
        hit = in_list(c->excluded.list, module, &exact);
    if (r || hit) {
        *out = false;
        return r;
    }
    if (c->any_target) {
        *out = true;
        return 0;
    }
    if (c->targets.pattern)
        return pattern_match(c->targets.pattern, module, true, out, NULL, NULL, e);
    hit = in_list(c->targets.list, module, &exact);
    if (hit && !exact && c->layers)
        return layer_is_in(c, module, out, e);
    *out = hit;
    return 0;
}

/* ---- the whole ---- */

static int read_numbers(struct peft_config *c, struct err *e)
{
    static const uint32_t def_r = 8;
    static const double def_alpha = 8;
    static const bool no = false;
    bool unused = false;
    int r = json_get_u32(c->root, "r", 1, INT32_MAX, &def_r, &c->r, e);
    if (!r)
        r = json_get_f64(c->root, "lora_alpha", -1e30, 1e30, &def_alpha, &c->alpha, e);
    if (!r)
        r = json_get_bool(c->root, "use_rslora", &no, &c->rslora, e);
    if (!r)
        r = json_get_bool(c->root, "fan_in_fan_out", &no, &unused, e);
    if (!r)
        r = read_keyed(c, "rank_pattern", 1, INT32_MAX, &c->ranks, e);
    if (!r)
        r = read_keyed(c, "alpha_pattern", -1e30, 1e30, &c->alphas, e);
    return r;
}

static int read_targets(struct peft_config *c, struct err *e)
{
    const char *s = json_string_value(json_object_get(c->root, "target_modules"));
    c->any_target = !is_set(json_object_get(c->root, "target_modules")) || (s && !strcasecmp(s, "all-linear"));
    int r = c->any_target ? 0 : read_names(c, "target_modules", &c->targets, e);
    if (!r)
        r = read_names(c, "exclude_modules", &c->excluded, e);
    if (!r)
        r = read_layers(c, e);
    return r ? r : read_layer_patterns(c, e);
}

int peft_config_parse(const char *text, size_t n, struct peft_config **out, struct err *e)
{
    static const struct json_limits limits = {.depth = 16, .values = MAX_CONFIG_VALUES};
    struct peft_config *c = calloc(1, sizeof *c);
    if (!c)
        return err_set(e, -ENOMEM, "out of memory");
    int r = json_parse(text, n, &limits, &c->root, e);
    if (!r && !json_is_object(c->root))
        r = err_set(e, -EINVAL, "not a JSON object");
    if (!r)
        r = check_kind(c->root, e);
    if (!r)
        r = refuse_keys(c->root, e);
    if (!r)
        r = check_init(c->root, e);
    if (!r)
        r = json_get_str(c->root, "base_model_name_or_path", false, &c->base, e);
    if (!r)
        r = read_numbers(c, e);
    if (!r)
        r = read_targets(c, e);
    if (r)
        peft_config_free(c);
    else
        *out = c;
    return r;
}

void peft_config_free(struct peft_config *c)
{
    if (!c)
        return;
    free_keyed(&c->ranks);
    free_keyed(&c->alphas);
    pattern_free(c->targets.pattern);
    pattern_free(c->excluded.pattern);
    for (size_t i = 0; i < c->n_layer_patterns; i++)
        pattern_free(c->layer_patterns[i]);
    free(c->layer_patterns);
    json_decref(c->root);
    free(c);
}

const char *peft_config_base(const struct peft_config *c)
{
    return c->base ? c->base : "";
}

int peft_config_module(struct peft_config *c, const char *module, uint32_t *rank, float *scale, struct err *e)
{
    bool target = false;
    double r = c->r, alpha = c->alpha;
    int rc = is_target(c, module, &target, e);
    if (!rc && !target)
        rc = err_set(e, -EINVAL, "it holds tensors for module \"%s\", which the configuration does not target", module);
    if (!rc)
        rc = find_keyed(c, &c->ranks, module, &r, e);
    if (!rc)
        rc = find_keyed(c, &c->alphas, module, &alpha, e);
    if (rc)
        return rc;
    *rank = (uint32_t)r;
    *scale = (float)(alpha / (c->rslora ? sqrt(r) : r));
    return 0;
}
