# debian_base.sh - sourced by the tests that need a small Debian of their own. debian_base WORK makes WORK/base.tar once:
# debootstrap's minbase of bookworm, from the mirror that this machine's apt uses.
debian_base() {
    local work=$1 mirror
    [[ -f $work/base.tar ]] && return
    mirror=$(apt-get indextargets --format '$(REPO_URI) $(CODENAME)' | awk '$2 == "bookworm" { print $1; exit }')
    [[ $mirror ]] || return 1
    mkdir -p "$work" && rm -rf "$work/base"
    debootstrap --variant=minbase bookworm "$work/base" "$mirror" >"$work/debootstrap.log" 2>&1 || return 1
    rm -rf "$work"/base/var/cache/apt/archives/*.deb "$work"/base/var/lib/apt/lists/*
    tar -C "$work/base" -cf "$work/base.part" . && mv "$work/base.part" "$work/base.tar" && rm -rf "$work/base"
}
