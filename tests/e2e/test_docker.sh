#!/usr/bin/env bash
# test_docker.sh - builds deploy/docker/Dockerfile with buildah on a base made by debootstrap, and runs the image as its
# own user on a root file system that is read-only: two tasks answer, a stop drains, only libraries that are needed are
# in it. Skips where it is not root, or buildah or debootstrap is missing. Needs the demo (CPETD_MODEL, CPETD_PETS).
#
# The base comes from the mirror that this machine's apt uses, and is kept in var/docker.
set -uo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
model=${CPETD_MODEL:-$root/var/models/smollm2-135m-instruct-int8} pets=${CPETD_PETS:-$root/var/pets}
work=$root/var/docker
. "$root/tests/e2e/debian_base.sh"
failed=0

skip() {
    echo "skip test_docker: $*"
    exit 0
}
((EUID == 0)) || skip "needs root"
for tool in buildah debootstrap; do
    command -v "$tool" >/dev/null || skip "$tool is not installed"
done
[[ -d $model && -e $pets/extract.pet && -e $pets/triage.pet ]] || skip "the demo is not there"

# check NAME COMMAND...
check() {
    local name=$1
    shift
    if "$@"; then echo "ok test_docker/$name"; else
        echo "FAIL test_docker/$name"
        failed=1
    fi
}

mkdir -p "$work"
b=(buildah --root "$work/storage" --runroot "$work/run" --storage-driver vfs)
box='' server='' mounted='' keys=$(mktemp -d)
finish() {
    [[ -z $server ]] || kill -KILL "$server" 2>/dev/null
    [[ -z $mounted ]] || umount -R "$mounted"
    [[ -z $box ]] || "${b[@]}" rm "$box" >/dev/null
    rm -rf "$keys"
}
trap finish EXIT

image() {
    if ! "${b[@]}" inspect --type image localhost/cpetd-base >/dev/null 2>&1; then
        box=$("${b[@]}" from scratch) && "${b[@]}" add -q "$box" "$work/base.tar" / >/dev/null &&
            "${b[@]}" commit -q "$box" localhost/cpetd-base >/dev/null && "${b[@]}" rm "$box" >/dev/null || return 1
        box=''
    fi
    "${b[@]}" build --isolation chroot --format docker --build-arg BASE=localhost/cpetd-base -q \
        -f "$root/deploy/docker/Dockerfile" -t localhost/cpetd "$root" >"$work/build.log" 2>&1 || {
        tail -20 "$work/build.log"
        return 1
    }
}

# In the container, by the image's own user, on a read-only root.
inside() {
    "${b[@]}" run --isolation chroot --network host -v "$model:/model:ro" -v "$pets:/modules:ro" -v "$keys:/run/secrets:ro" \
        -v "$work/data:/data" "$box" -- "$@"
}

start() {
    box=$("${b[@]}" from --pull-never localhost/cpetd) || return 1
    rm -rf "$work/data" && install -d -o 10001 -g 10001 -m 700 "$work/data"
    printf 'acme:%s\n' "$(printf %s the-key | b2sum -l 256 | cut -d' ' -f1)" >"$keys/api-keys"
    chmod 755 "$keys" && chmod 644 "$keys/api-keys"
    inside true || return 1 # makes the places that are mounted over
    # Read-only but for /run, where buildah itself writes.
    mounted=$("${b[@]}" mount "$box") && mount --bind "$mounted" "$mounted" && mount -t tmpfs -o size=1M tmpfs "$mounted/run" &&
        mount -o remount,bind,ro "$mounted" || return 1
    inside env CPETD_LISTEN=127.0.0.1:0 CPETD_NAME=base CPETD_PET=extract=/modules/extract.pet,triage=/modules/triage.pet \
        cpetd 2>"$work/cpetd.log" &
    server=$!
    for _ in $(seq 600); do
        grep -q '^cpetd: ready' "$work/cpetd.log" && break
        kill -0 $server 2>/dev/null || break
        sleep 0.1
    done
    port=$(sed -n 's|^cpetd: listening on http://.*:||p' "$work/cpetd.log")
    grep -q '^cpetd: ready' "$work/cpetd.log" || {
        cat "$work/cpetd.log"
        return 1
    }
}

ask() {
    curl -sS -m 60 "http://127.0.0.1:$port/v1/chat/completions" -H 'Content-Type: application/json' -H 'Authorization: Bearer the-key' \
        -d "{\"model\": \"$1\", \"temperature\": 0, \"max_tokens\": 40, \"messages\": [{\"role\": \"user\", \"content\":
            \"Hello, this is Maria Lopez from Lisbon. The kettle does not switch on. My order number is 48213.\"}]}" |
        python3 -c 'import json, sys; print(json.load(sys.stdin)["choices"][0]["message"]["content"])'
}

two_tasks() {
    local extract triage
    extract=$(ask extract) && triage=$(ask triage) || return 1
    echo "  extract: $extract"
    echo "  triage: $triage"
    [[ $extract == *48213* && $triage && $extract != "$triage" ]]
}

confined() {
    [[ $(inside id -u) == 10001 ]] && ! inside touch /usr/bin/x 2>/dev/null && ! inside touch /tmp/x 2>/dev/null &&
        inside touch /data/x
}

small() {
    [[ -z $(inside sh -c 'command -v gcc; command -v meson; command -v python3; ls -d /src /build 2>/dev/null; true') ]]
}

healthy() {
    inside env CPETD_LISTEN="127.0.0.1:$port" cpetd-healthcheck && ! inside cpetd-healthcheck 1 2>/dev/null
}

# What the image says of itself.
described() {
    "${b[@]}" inspect --type image localhost/cpetd | python3 -c '
import json, sys
c = json.load(sys.stdin)["Docker"]["config"]
assert c["User"] == "10001:10001" and c["Entrypoint"] == ["cpetd"] and c["StopSignal"] == "SIGTERM", c
assert c["Healthcheck"]["Test"][-1] == "cpetd-healthcheck" and "/data" in c["Volumes"], c'
}

# cpetd is a descendant of the command that runs it.
descendant() {
    local child
    for child in $(pgrep -P "$1"); do
        [[ $(readlink "/proc/$child/exe") == */usr/bin/cpetd ]] && echo "$child"
        descendant "$child"
    done
}

stops() {
    local pid stream status
    pid=$(descendant "$server") && [[ $pid ]] || return 1
    curl -sSN -m 60 "http://127.0.0.1:$port/v1/completions" -H 'Content-Type: application/json' -H 'Authorization: Bearer the-key' \
        -d '{"model": "base", "prompt": "Once", "max_tokens": 60, "ignore_eos": true, "stream": true}' >"$keys/stream" &
    stream=$!
    for _ in $(seq 100); do
        [[ -s $keys/stream ]] && break
        sleep 0.05
    done
    kill -TERM "$pid"
    wait "$stream" && wait "$server"
    status=$?
    server=''
    grep -q '\[DONE\]' "$keys/stream" && return "$status"
}

check base debian_base "$work"
check build image
((failed)) && exit 1
check described described
check starts start
((failed)) && exit 1
check two_tasks two_tasks
check read_only_and_no_root confined
check nothing_else_in_it small
check healthcheck healthy
check stop_drains stops
exit $failed
