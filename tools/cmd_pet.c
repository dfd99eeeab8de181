/* cmd_pet.c - cpet pet pack|convert|inspect|verify: modules on the command line. One thread.
 *
 * Everything here is asked of pet/; this file turns arguments into calls and results into text or JSON. A backbone's
 * shapes come from its config.json and its lineage from cpet.json; the weights are not read, so that a module can be
 * checked against a model of any size in no time.
 */
#include "tools/cmds.h"

#include <getopt.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "common/file.h"
#include "formats/json.h"
#include "model/config.h"
#include "pet/pet.h"

enum { CPET_JSON_CAP = 16 << 20 };

static const char help[] =
    "usage: cpet pet pack SRC OUT.pet [--model DIR]    a PEFT directory or recovery file as one .pet file\n"
    "       cpet pet convert FILE DIR                  a LoRA as a PEFT directory\n"
    "       cpet pet inspect PATH                      what a module holds\n"
    "       cpet pet verify PATH [--model DIR]         reads all of it, checks hashes, values and shapes\n"
    "\n"
    "PATH: a PEFT directory, a .pet file or a recovery .safetensors file.\n"
    "\n"
    "  --model DIR   the backbone: pack records its lineage in the file; both check shapes and lineage against it\n"
    "  --json        print the result as JSON\n";

struct pet_args {
    const char *argv0, *path, *out, *model;
    bool json;
};

/* ---- a backbone's shapes and lineage ---- */

struct backbone_shape {
    struct pet_target target;
    struct pet_site *sites;
    bool has_lineage;
};

static int read_lineage(const char *dir, struct backbone_shape *b, struct err *e)
{
    json_t *root = NULL, *obj = NULL;
    const char *arch = NULL, *hash[2] = {NULL, NULL};
    static const char *const keys[] = {"tokenizer", "weights"};
    struct pet_lineage *l = &b->target.lineage;
    struct stat st;
    char *path = path_join(dir, "cpet.json");
    int r = path ? 0 : err_set(e, -ENOMEM, "out of memory");
    if (r || stat(path, &st)) {
        free(path);
        return r; /* a directory that others made: no lineage */
    }
    r = json_read_file(path, CPET_JSON_CAP, &root, e);
    if (!r) {
        r = json_get_object(root, "lineage", true, &obj, e);
        if (!r)
            r = json_get_str(obj, "architecture", true, &arch, e);
        if (!r && (!*arch || strlen(arch) >= sizeof l->architecture))
            r = err_set(e, -EINVAL, "\"architecture\" must have 1 to %zu characters", sizeof l->architecture - 1);
        for (int i = 0; !r && i < 2; i++) {
            r = json_get_str(obj, keys[i], false, &hash[i], e);
            if (!r && hash[i] && hash_parse(hash[i], i ? &l->weights : &l->tokenizer))
                r = err_set(e, -EINVAL, "\"%s\" must be 64 hexadecimal digits", keys[i]);
        }
        if (r)
            err_prefix(e, r, "%s", path);
    }
    if (!r) {
        strcpy(l->architecture, arch);
        b->has_lineage = true;
    }
    json_decref(root);
    free(path);
    return r;
}

static void add_site(struct backbone_shape *b, uint32_t layer, const char *name, const char *module, uint32_t k,
                     uint32_t n)
{
    struct pet_site *s = &b->sites[b->target.n_sites++];
    snprintf(s->name, sizeof s->name, "layers.%u.%s", layer, name);
    snprintf(s->module, sizeof s->module, "model.layers.%u.%s", layer, module);
    s->k = s->k_orig = k;
    s->n = s->n_orig = n;
}

static void add_layer(struct backbone_shape *b, const struct model_config *c, uint32_t i)
{
    const struct model_layer_config *l = &c->layer[i];
    uint32_t q = l->n_heads * c->head_dim, kv = l->n_kv_heads * c->head_dim;
    add_site(b, i, "q", "self_attn.q_proj", c->hidden, q);
    add_site(b, i, "k", "self_attn.k_proj", c->hidden, kv);
    add_site(b, i, "v", "self_attn.v_proj", c->hidden, kv);
    add_site(b, i, "o", "self_attn.o_proj", q, c->hidden);
    add_site(b, i, "gate", "mlp.gate_proj", c->hidden, l->ffn);
    add_site(b, i, "up", "mlp.up_proj", c->hidden, l->ffn);
    add_site(b, i, "down", "mlp.down_proj", l->ffn, c->hidden);
}

static int read_backbone(const char *dir, struct backbone_shape *b, struct err *e)
{
    struct model_config c = {0};
    int r = model_config_read(dir, &c, e);
    if (r)
        return r;
    b->sites = calloc((size_t)c.n_layers * 7 + 1, sizeof *b->sites);
    if (!b->sites)
        r = err_set(e, -ENOMEM, "out of memory");
    for (uint32_t i = 0; !r && i < c.n_layers; i++)
        add_layer(b, &c, i);
    if (!r) {
        struct pet_site *head = &b->sites[b->target.n_sites++];
        strcpy(head->name, "head");
        strcpy(head->module, "lm_head");
        head->k = head->k_orig = c.hidden;
        head->n = head->n_orig = c.vocab;
        b->target.sites = b->sites;
        b->target.type = KERN_BF16;
        b->target.base_name = dir;
        strcpy(b->target.lineage.architecture, c.architecture);
        r = read_lineage(dir, b, e);
    }
    model_config_free(&c);
    return r;
}

/* ---- results ---- */

static json_t *hash_json(const struct hash *h)
{
    char hex[HASH_HEX];
    hash_hex(h, hex);
    return json_string(hex);
}

static json_t *info_json(const char *path, const struct pet *p)
{
    const struct pet_info *i = pet_info(p);
    json_t *o = json_pack("{ss ss so sI sI sI sb}", "path", path, "kind", pet_kind_name(i->kind), "hash",
                          hash_json(&i->hash), "bytes", (json_int_t)i->bytes, "rank", (json_int_t)i->max_rank, "sites",
                          (json_int_t)i->n_sites, "verified", i->verified);
    if (o && *i->base)
        json_object_set_new(o, "base", json_string(i->base));
    if (o && i->verified)
        json_object_set_new(o, "lineage",
                            json_pack("{ss so so}", "architecture", i->lineage.architecture, "tokenizer",
                                      hash_json(&i->lineage.tokenizer), "weights", hash_json(&i->lineage.weights)));
    return o;
}

static void print_info(const char *path, const struct pet *p)
{
    const struct pet_info *i = pet_info(p);
    char hex[HASH_HEX];
    hash_hex(&i->hash, hex);
    printf("%s: %s on %u linears, rank up to %u, %.2f MB, %s\n", path, pet_kind_name(i->kind), i->n_sites, i->max_rank,
           (double)i->bytes / 1e6, i->verified ? "verified" : "unverified (states no lineage)");
    printf("hash %s\n", hex);
    if (*i->base)
        printf("base %s\n", i->base);
    if (i->verified) {
        hash_hex(&i->lineage.weights, hex);
        printf("lineage %s, weights %s\n", i->lineage.architecture, hex);
    }
}

static const char *fn_name(enum kern_fn fn)
{
    return fn == KERN_FN_GELU ? "gelu" : fn == KERN_FN_GELU_TANH ? "gelu_tanh" : "none";
}

/* ---- the four ---- */

static int pack(const struct pet_args *a, struct err *e)
{
    struct pet *p = NULL;
    struct backbone_shape b = {0};
    int r = pet_open(a->path, NULL, &p, e);
    if (!r && a->model)
        r = read_backbone(a->model, &b, e);
    if (!r && a->model && !b.has_lineage)
        r = err_set(e, -EINVAL, "%s: no cpet.json there, so it has no lineage to record ('cpet import' writes one)",
                    a->model);
    if (!r && a->model)
        r = pet_check(p, &b.target, e);
    if (!r) {
        const struct pet_info *i = pet_info(p);
        r = pet_write(p, a->model ? &b.target.lineage : i->verified ? &i->lineage : NULL, a->out, e);
    }
    pet_close(p);
    p = NULL;
    if (!r)
        r = pet_open(a->out, NULL, &p, e); /* what was written is read back, hashes and all */
    int status = r ? cmd_fail(a->argv0, e) : a->json ? cmd_json(a->argv0, info_json(a->out, p)) : CMD_OK;
    if (!r && !a->json) {
        print_info(a->out, p);
        status = cmd_done(a->argv0);
    }
    free(b.sites);
    pet_close(p);
    return status;
}

static int convert(const struct pet_args *a, struct err *e)
{
    struct pet *p = NULL;
    int r = pet_open(a->path, NULL, &p, e);
    if (!r)
        r = pet_write_peft(p, a->out, e);
    int status = r ? cmd_fail(a->argv0, e) : a->json ? cmd_json(a->argv0, info_json(a->out, p)) : CMD_OK;
    if (!r && !a->json) {
        printf("%s: a PEFT directory of %u linears\n", a->out, pet_info(p)->n_sites);
        status = cmd_done(a->argv0);
    }
    pet_close(p);
    return status;
}

static int inspect_json(const struct pet_args *a, const struct pet *p)
{
    json_t *o = info_json(a->path, p), *parts = json_array();
    for (uint32_t i = 0; i < pet_info(p)->n_sites; i++) {
        struct pet_part q;
        pet_part(p, i, &q);
        json_array_append_new(parts, json_pack("{ss sI sI sI sf ss}", "module", q.module, "rank", (json_int_t)q.rank,
                                               "inputs", (json_int_t)q.k, "outputs", (json_int_t)q.n, "scale",
                                               (double)q.scale, "fn", fn_name(q.fn)));
    }
    if (!o || json_object_set_new(o, "modules", parts)) {
        json_decref(o);
        o = NULL;
    }
    return cmd_json(a->argv0, o);
}

static int inspect(const struct pet_args *a, struct err *e)
{
    struct pet *p = NULL;
    int status;
    if (pet_open(a->path, NULL, &p, e))
        return cmd_fail(a->argv0, e);
    if (a->json) {
        status = inspect_json(a, p);
    } else {
        print_info(a->path, p);
        printf("%-48s %5s %7s %7s %12s %s\n", "module", "rank", "inputs", "outputs", "scale", "function");
        for (uint32_t i = 0; i < pet_info(p)->n_sites; i++) {
            struct pet_part q;
            pet_part(p, i, &q);
            printf("%-48s %5u %7u %7u %12.8g %s\n", q.module, q.rank, q.k, q.n, (double)q.scale, fn_name(q.fn));
        }
        status = cmd_done(a->argv0);
    }
    pet_close(p);
    return status;
}

/* Each part of the module is a site of its own: what pet_check looks at beside a backbone is then all that it finds. */
static int check_alone(const struct pet *p, struct err *e)
{
    const struct pet_info *i = pet_info(p);
    struct pet_site *sites = calloc(i->n_sites, sizeof *sites);
    if (!sites)
        return err_set(e, -ENOMEM, "out of memory");
    int r = 0;
    for (uint32_t j = 0; !r && j < i->n_sites; j++) {
        struct pet_part q;
        pet_part(p, j, &q);
        if (strlen(q.module) >= sizeof sites[j].module)
            r = err_set(e, -EINVAL, "module \"%s\": no backbone has a linear of so long a name", q.module);
        else
            strcpy(sites[j].module, q.module);
        sites[j].k = sites[j].k_orig = q.k;
        sites[j].n = sites[j].n_orig = q.n;
    }
    struct pet_target t = {.lineage = i->lineage, .sites = sites, .n_sites = i->n_sites, .type = KERN_BF16};
    if (!r)
        r = pet_check(p, &t, e);
    free(sites);
    return r;
}

static int verify(const struct pet_args *a, struct err *e)
{
    struct pet *p = NULL;
    struct backbone_shape b = {0};
    int r = pet_open(a->path, NULL, &p, e), status = CMD_OK;
    if (!r)
        r = check_alone(p, e);
    if (!r && a->model)
        r = read_backbone(a->model, &b, e);
    if (!r && a->model)
        r = pet_check(p, &b.target, e);
    if (r) {
        status = cmd_fail(a->argv0, e);
    } else if (a->json) {
        json_t *o = info_json(a->path, p);
        json_object_set_new(o, "ok", json_true());
        if (a->model)
            json_object_set_new(o, "model", json_string(a->model));
        status = cmd_json(a->argv0, o);
    } else {
        print_info(a->path, p);
        if (a->model)
            printf("good, and it fits %s\n", a->model);
        else
            puts("good");
        status = cmd_done(a->argv0);
    }
    free(b.sites);
    pet_close(p);
    return status;
}

static const struct {
    const char *name;
    int n_args;
    bool takes_model;
    int (*run)(const struct pet_args *a, struct err *e);
} subcommands[] = {{"pack", 2, true, pack},
                   {"convert", 2, false, convert},
                   {"inspect", 1, false, inspect},
                   {"verify", 1, true, verify}};

static int run_one(size_t which, int argc, char **argv)
{
    static const struct option options[] = {{"model", required_argument, NULL, 'm'},
                                            {"json", no_argument, NULL, 'j'},
                                            {"help", no_argument, NULL, 'h'},
                                            {0}};
    char name[64];
    snprintf(name, sizeof name, "cpet pet %s", subcommands[which].name);
    argv[0] = name;
    struct pet_args a = {.argv0 = name};
    struct err e = {0};
    for (int c; (c = getopt_long(argc, argv, "h", options, NULL)) != -1;) {
        if (c == 'h') {
            fputs(help, stdout);
            return cmd_done(name);
        }
        if (c == 'm' && subcommands[which].takes_model)
            a.model = optarg;
        else if (c == 'm')
            return cmd_usage("cpet pet", "'%s' takes no --model", subcommands[which].name);
        else if (c == 'j')
            a.json = true;
        else
            return cmd_usage("cpet pet", "see the options");
    }
    if (argc - optind != subcommands[which].n_args)
        return cmd_usage("cpet pet", "'%s' takes %d paths, not %d", subcommands[which].name, subcommands[which].n_args,
                         argc - optind);
    a.path = argv[optind];
    a.out = subcommands[which].n_args > 1 ? argv[optind + 1] : NULL;
    return subcommands[which].run(&a, &e);
}

int cmd_pet(int argc, char **argv)
{
    if (argc > 1 && (!strcmp(argv[1], "--help") || !strcmp(argv[1], "-h"))) {
        fputs(help, stdout);
        return cmd_done(argv[0]);
    }
    for (size_t i = 0; argc > 1 && i < sizeof subcommands / sizeof *subcommands; i++) {
        if (!strcmp(argv[1], subcommands[i].name))
            return run_one(i, argc - 1, argv + 1);
    }
    return cmd_usage(argv[0], "needs one of pack, convert, inspect, verify");
}
