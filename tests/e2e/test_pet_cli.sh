#!/bin/sh
# test_pet_cli.sh - cpet pet pack, convert, inspect, verify on the modules of tests/golden/pet: results, lineage, exit
# statuses. Needs nothing but the binary: CPET=build/cpet sh tests/e2e/test_pet_cli.sh
set -u
root=$(cd "$(dirname "$0")/../.." && pwd)
cpet=${CPET:-$root/build/cpet}
golden=$root/tests/golden/pet
tmp=$(mktemp -d) || exit 1
trap 'rm -rf "$tmp"' EXIT
failures=0

# check STATUS TEXT ARGUMENTS...: the command's exit status, and a text that stdout or stderr has to hold
check() {
    want=$1 text=$2
    shift 2
    out=$("$cpet" pet "$@" 2>&1)
    status=$?
    case $out in
    *"$text"*) ;;
    *) status="$status, without '$text'" ;;
    esac
    if [ "$status" != "$want" ]; then
        echo "FAIL cpet pet $*: status $status, not $want: $out"
        failures=$((failures + 1))
    else
        echo "ok pet $1: $text"
    fi
}

zeros=0000000000000000000000000000000000000000000000000000000000000000
ones=1111111111111111111111111111111111111111111111111111111111111111
model() { # DIR HIDDEN: a configuration alone; no weights are read
    mkdir -p "$1"
    cat > "$1/config.json" <<END
{"architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": 24, "hidden_size": $2,
 "intermediate_size": 12, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1,
 "max_position_embeddings": 2048, "rms_norm_eps": 1e-6, "rope_theta": 10000.0, "hidden_act": "silu",
 "tie_word_embeddings": false}
END
}
lineage() { # DIR WEIGHTS
    echo "{\"format\": \"cpet-backbone\", \"version\": 1, \"lineage\": {\"architecture\": \"llama\"," \
        "\"tokenizer\": \"$zeros\", \"weights\": \"$2\"}}" > "$1/cpet.json"
}
model "$tmp/plain" 16
model "$tmp/base" 16
model "$tmp/other" 16
model "$tmp/wide" 32
lineage "$tmp/base" $ones
lineage "$tmp/other" 2222222222222222222222222222222222222222222222222222222222222222

check 0 "unverified" pack "$golden/head" "$tmp/plain.pet"
check 0 "verified" pack "$golden/head" "$tmp/head.pet" --model "$tmp/base"
check 0 "\"verified\":true" inspect "$tmp/head.pet" --json
check 0 "lm_head" inspect "$tmp/head.pet"
check 0 "\"rank\":2" inspect "$golden/head" --json
check 0 "fits" verify "$tmp/head.pet" --model "$tmp/base"
check 0 "fits" verify "$tmp/head.pet" --model "$tmp/plain"
check 0 "\"ok\":true" verify "$tmp/head.pet" --json
check 0 "fits" verify "$tmp/plain.pet" --model "$tmp/other"
check 0 "good" verify "$golden/patterns"
check 1 "original weights" verify "$tmp/head.pet" --model "$tmp/other"
check 1 "has 24 and 32 there" verify "$tmp/head.pet" --model "$tmp/wide"
check 1 "no cpet.json" pack "$golden/head" "$tmp/x.pet" --model "$tmp/plain"
check 1 "original weights" pack "$tmp/head.pet" "$tmp/x.pet" --model "$tmp/other"
check 0 "PEFT directory" convert "$tmp/head.pet" "$tmp/back"
check 1 "DoRA" pack "$golden/dora" "$tmp/x.pet"
check 1 "IA3" inspect "$golden/ia3"
check 1 "x.pet" inspect "$tmp/x.pet"
check 2 "needs one of" nonsense
check 2 "takes 2 paths" pack "$golden/head"
check 2 "takes no --model" inspect "$golden/head" --model "$tmp/base"
check 2 "try" verify --nonsense
check 0 "usage" --help
check 0 "usage" pack --help

hash() {
    "$cpet" pet inspect "$1" | sed -n 's/^hash //p'
}
for p in "$tmp/plain.pet" "$tmp/head.pet" "$tmp/back"; do
    if [ "$(hash "$p")" != "$(hash "$golden/head")" ]; then
        echo "FAIL $p does not have the hash of $golden/head"
        failures=$((failures + 1))
    fi
done
head -c 600 "$tmp/head.pet" > "$tmp/cut.pet"
check 1 "cut" verify "$tmp/cut.pet"
[ -e "$tmp/x.pet" ] && echo "FAIL a refused module left a file" && failures=$((failures + 1))

[ $failures -eq 0 ]
