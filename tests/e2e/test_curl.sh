#!/bin/sh
# The API by curl: test_curl.sh URL MODEL. Needs a running cpetd; says what failed and exits 1.
url=$1 model=$2
command -v curl >/dev/null || { echo "skip curl: not installed"; exit 0; }
out=$(mktemp) || exit 1
trap 'rm -f "$out"' EXIT
failed=0

ask() { # ask NAME STATUS PATTERN curl-arguments...
    name=$1 want=$2 pattern=$3
    shift 3
    got=$(curl -sS -m 60 -o "$out" -w '%{http_code}' "$@")
    if [ "$got" = "$want" ] && grep -q -e "$pattern" "$out"; then
        echo "ok $name"
    else
        echo "FAIL $name: $got"
        cat "$out"
        failed=1
    fi
}

json='Content-Type: application/json'
ask health 200 ok "$url/health"
ask models 200 "\"id\":\"$model\"" "$url/v1/models"
ask completion 200 '"finish_reason":"length"' -H "$json" "$url/v1/completions" \
    -d "{\"model\": \"$model\", \"prompt\": \"One, two,\", \"max_tokens\": 4}"
ask stream 200 '^data: \[DONE\]' -N -H "$json" "$url/v1/completions" \
    -d "{\"model\": \"$model\", \"prompt\": \"One, two,\", \"max_tokens\": 4, \"stream\": true}"
ask n 200 '"index":2' -H "$json" "$url/v1/completions" \
    -d "{\"model\": \"$model\", \"prompt\": \"One\", \"max_tokens\": 4, \"n\": 3}"
ask logprobs 200 '"token_logprobs":\[-' -H "$json" "$url/v1/completions" \
    -d "{\"model\": \"$model\", \"prompt\": \"One\", \"max_tokens\": 4, \"logprobs\": 2}"
ask unknown-model 404 model_not_found -H "$json" "$url/v1/completions" -d '{"model": "none", "prompt": "x"}'
ask unknown-field 400 '"param":"colour"' -H "$json" "$url/v1/completions" \
    -d "{\"model\": \"$model\", \"prompt\": \"x\", \"colour\": 1}"
ask bad-json 400 invalid_request_error -H "$json" "$url/v1/completions" -d '{'
ask wrong-method 405 error -X DELETE "$url/v1/models"
ask nothing-there 404 error "$url/v2/models"
# a stream that is left midway
curl -sS -m 1 -N -o "$out" -H "$json" "$url/v1/completions" \
    -d "{\"model\": \"$model\", \"prompt\": \"One\", \"max_tokens\": 2000, \"stream\": true, \"ignore_eos\": true}" 2>/dev/null
ask still-there 200 ok "$url/health"
exit $failed
